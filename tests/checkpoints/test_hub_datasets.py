"""Files of a data set are found by its split and fetched through the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forge.checkpoints.hub_datasets import _files_of_config, _files_of_split
from forge.core.errors import CheckpointError
from tests.checkpoints.hub_server import serve_hub

CODE = """
import json, sys
from forge.checkpoints.hub_datasets import dataset_files
from forge.core.errors import ForgeError
try:
    found = [[path.name, path.read_text()] for path in dataset_files(sys.argv[1], split=sys.argv[2])]
    print(json.dumps({"found": found}))
except ForgeError as error:
    print(json.dumps({"error": str(error)}))
"""  # noqa: E501


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet",
          "data/test-00000-of-00001.parquet", "README.md"], "train",
         ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        (["train.jsonl", "trainer.jsonl", "test.jsonl"], "train", ["train.jsonl"]),
        (["a.parquet", "train.jsonl"], "train", ["a.parquet"]),
        (["notes.txt"], "train", ["notes.txt"]),
        (["en/validation/0.jsonl", "en/train/0.jsonl"], "validation", ["en/validation/0.jsonl"]),
    ],
)  # fmt: skip
def test_files_of_a_split(names: list[str], split: str, expected: list[str]) -> None:
    assert _files_of_split(names, split, label="org/notes") == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["dev.jsonl", "test.jsonl"], "It has dev.jsonl, test.jsonl. Name a split."),
        (["data.arrow"], "Download it as JSONL."),
    ],
)
def test_no_file_of_a_split(names: list[str], words: str) -> None:
    with pytest.raises(CheckpointError, match=r"no \.parquet, \.jsonl") as caught:
        _files_of_split(names, "train", label="org/notes")
    assert words in str(caught.value)


def test_a_subset_is_the_files_below_its_folder() -> None:
    names = ["README.md", "anatomy/test.parquet", "data/anatomy/dev.parquet", "anatomy.json"]
    assert _files_of_config(names, "anatomy", label="org/x") == names[1:3]
    assert _files_of_config(names, None, label="org/x") == names
    with pytest.raises(CheckpointError, match=r"no folder 'anatmy'\. Did you mean 'anatomy'\?"):
        _files_of_config(names, "anatmy", label="org/x")


def test_a_data_set_is_fetched_and_then_found_offline(tmp_path: Path) -> None:
    published = tmp_path / "published"
    (published / "data").mkdir(parents=True)
    (published / "data" / "train.jsonl").write_text('{"text": "a"}\n')
    (published / "data" / "test.jsonl").write_text('{"text": "b"}\n')
    (published / "README.md").write_text("notes")

    def fetch(url: str, *arguments: str, **environment: str) -> dict[str, object]:
        settings = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1,localhost", **environment,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", CODE, *arguments],
            env=settings, capture_output=True, text=True, timeout=60, check=False,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    expected = {"found": [["train.jsonl", '{"text": "a"}\n']]}
    with serve_hub() as hub:
        hub.models["org/notes"] = published
        assert fetch(hub.url, "org/notes", "train") == expected
        sent = [path for _, path, _ in hub.requests if path.endswith("test.jsonl")]
        assert sent == []
        assert "no .parquet" in str(fetch(hub.url, "org/notes", "dev")["error"])
        assert "neither a local folder nor a repository" in str(
            fetch(hub.url, "org/nothing", "train")["error"]
        )
        url = hub.url
    assert fetch(url, "org/notes", "train", HF_HUB_OFFLINE="1") == expected
