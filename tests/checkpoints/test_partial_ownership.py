"""A partial folder gets emptied, so only one that forge has made is ever taken over."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.checkpoints.sink import PlannedTensor, TensorSink
from forge.core.errors import OutputError

PLAN = [PlannedTensor("a", (4,), "F32")]


def open_sink(out: Path) -> TensorSink:
    return TensorSink(out, PLAN, max_shard_bytes=1000, fingerprint="f")


def test_a_link_is_refused_and_its_target_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    (tmp_path / "out.forge-partial").symlink_to(precious)
    with pytest.raises(OutputError, match="not one of forge's"):
        open_sink(tmp_path / "out")
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in precious.iterdir()] == ["thesis.txt"]


def test_a_strangers_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "out.forge-partial"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.forge-partial"):
        open_sink(tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.forge-partial").write_text("mine")
    with pytest.raises(OutputError, match="not one of forge's"):
        open_sink(tmp_path / "out")
    assert (tmp_path / "out.forge-partial").read_text() == "mine"


def test_an_empty_folder_and_an_unfinished_merge_are_taken(tmp_path: Path) -> None:
    (tmp_path / "out.forge-partial").mkdir()
    with open_sink(tmp_path / "out") as sink:
        sink.write("a", 0, memoryview(bytes(16)))
        sink.finish("a", digest="0" * 64, statistics={})
    with open_sink(tmp_path / "out") as sink:
        assert sink.done == {}  # the digest is wrong, so the tensor is redone
