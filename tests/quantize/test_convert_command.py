"""``forge convert`` as a process of its own: what it prints, and that it survives being killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from forge.formats.contract import Scheme
from tests.cli.process import forge, python
from tests.factory import tiny_checkpoint
from tests.quantize.packed_folder import packed_folder

_KILLED_RUN = """
import os, signal
from forge import api
from forge.checkpoints.sink import TensorSink
finish, count = TensorSink.finish, 0
def dying(self, name, **rest):
    global count
    count += 1
    if count > {moment}:
        os.kill(os.getpid(), signal.SIGKILL)
    finish(self, name, **rest)
TensorSink.finish = dying
from pathlib import Path
# Alone, or the signal would meet another thread in the middle of finishing its tensor.
api.convert("packed", "compressed-tensors", Path("out"), threads=1)
"""


def test_prints_what_it_made_and_who_reads_it(tmp_path: Path) -> None:
    packed_folder(tmp_path / "packed", "awq-gemm", scheme=Scheme(4, 32))
    done = forge("convert", "packed", "--to", "gemv", "--out", "made", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("made\n  49 tensors, ")
    assert "'forge verify made' checks every byte." in done.stdout
    assert "notice: Only CUDA kernels read AWQ GEMV" in done.stderr
    again = forge("convert", "packed", "--to", "gemv", "--out", "made", "--json", cwd=tmp_path)
    record = json.loads(again.stdout)
    assert record["conversion"] == {"from": "awq-gemm", "to": "awq-gemv"}
    assert record["resumed_tensors"] == record["num_tensors"] == 49
    assert "nothing is left to do" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("packed", "--to", "gemn"), "There is no format 'gemn'."),
        (("packed", "--to", "gemm"), "'packed' is in AWQ GEMM already."),
        (("plain", "--to", "gemm"), "'plain' is not quantized, and a conversion only changes"),
        (("packed", "--to", "gemv", "--max-shard-size", "big"), "'big' is not a size."),
    ],
)
def test_mistakes_are_one_message(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    packed_folder(tmp_path / "packed", "awq-gemm", scheme=Scheme(4, 32))
    tiny_checkpoint(tmp_path / "plain")
    done = forge("convert", *arguments, "--out", "made", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "plain"]


@pytest.mark.parametrize("moment", [1, 20, 61])
def test_a_killed_conversion_resumes_to_the_same_bytes(tmp_path: Path, moment: int) -> None:
    packed_folder(tmp_path / "packed", "awq-gemm", scheme=Scheme(4, 32))
    arguments = ("convert", "packed", "--to", "compressed-tensors", "--out")
    killed = python(_KILLED_RUN.format(moment=moment), cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    resumed = forge(*arguments, "out", "--json", cwd=tmp_path)
    assert json.loads(resumed.stdout)["resumed_tensors"] == moment
    assert forge(*arguments, "expected", cwd=tmp_path).returncode == 0
    files = sorted(path.name for path in (tmp_path / "expected").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in files:
        expected = (tmp_path / "expected" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == expected, name
