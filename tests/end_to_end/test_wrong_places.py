"""An output that cannot be written is one clear message, and what is there stays as it is.

Disks that are full and folders that are read-only are real ones, mounted in a namespace of the
command's own, where the system allows that; file size limits and odd parents do it everywhere.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forge.cli.app import run
from tests.end_to_end.command import (
    REPOSITORY,
    Outcome,
    file_digest,
    finish,
    forge,
    num_finished,
    partial_of,
    start,
    tree,
    wait_for_tensors,
    weight_digests,
)
from tests.end_to_end.model_folders import write_large, write_small

_NAMESPACE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


def _can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = [*_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


mounts = pytest.mark.skipif(not _can_mount(), reason="may not mount anything here")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with small models and a recipe, which is the current one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    write_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with models of 26 MB, and a recipe."""
    root = tmp_path_factory.mktemp("large")
    write_large(root, layers=8)
    return root


def _merge(capsys: pytest.CaptureFixture[str], out: str | Path, *more: str) -> Outcome:
    capsys.readouterr()
    code = run(["merge", "recipe.yaml", "--out", str(out), *more])
    return Outcome(code, *capsys.readouterr())


def _assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.stderr.count("error: ") == 1, outcome.stderr
    assert outcome.stdout == ""
    for word in words:
        assert word in outcome.error, outcome.error
    assert "Traceback" not in outcome.stderr
    assert "defect" not in outcome.stderr


def _stranger(place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("three years")


def _looks_like_a_model(place: Path) -> None:
    shutil.copytree(place / "base", place / "out")


def _file(place: Path) -> None:
    (place / "out").write_text("a file")


OCCUPIED: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "a stranger's folder": (_stranger, "'out' exists and is not empty", ()),
    "a stranger's folder, to be overwritten": (_stranger, "not made by forge", ("--overwrite",)),
    "somebody's model": (_looks_like_a_model, "not made by forge", ("--overwrite",)),
    "a file": (_file, "is not a folder", ("--overwrite",)),
}


@pytest.mark.parametrize("name", OCCUPIED)
def test_what_is_not_ours_is_not_touched(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    occupy, word, arguments = OCCUPIED[name]
    occupy(place)
    before = tree(place)
    _assert_refused(_merge(capsys, "out", *arguments), word, "out")
    assert tree(place) == before


def test_a_model_cannot_be_merged_into_itself(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(place)
    _assert_refused(_merge(capsys, "med", "--overwrite"), "not made by forge")
    assert tree(place) == before


def test_another_output_of_forge_is_kept_unless_the_user_says_overwrite(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _merge(capsys, "out").code == 0
    before = tree(place)
    _assert_refused(_merge(capsys, "out", "--seed", "7"), "--overwrite", "'out'")
    assert tree(place) == before
    assert _merge(capsys, "out", "--seed", "7", "--overwrite").code == 0
    after = tree(place)
    assert after.keys() == before.keys()
    assert after["out/model.safetensors"] != before["out/model.safetensors"]


def test_a_failed_replacement_leaves_the_old_output(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _merge(capsys, "out").code == 0
    before = tree(place / "out")
    recipe = Path("recipe.yaml").read_text()
    Path("recipe.yaml").write_text(recipe.replace("weight: 0.5", "weight: 1.0e+300"))
    _assert_refused(_merge(capsys, "out", "--overwrite"), "overflows")
    assert tree(place / "out") == before


PARENTS = {
    "a file": ("base/config.json", "config.json"),
    "below a file": ("base/config.json/deep/er", "config.json"),
    "a system's folder": ("/proc/merges", "/proc"),
    "a name that is too long": ("x" * 300, "x" * 50),
    "a device": ("/dev/null/out", "/dev/null"),
}


@pytest.mark.parametrize("name", PARENTS)
def test_a_parent_that_can_hold_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    parent, word = PARENTS[name]
    before = tree(place)
    _assert_refused(_merge(capsys, f"{parent}/out"), word)
    assert tree(place) == before


@pytest.mark.parametrize(("target", "word"), [("link", "'link'"), ("/proc/1/x", "'/proc/1'")])
def test_a_link_that_leads_nowhere(
    place: Path, capsys: pytest.CaptureFixture[str], target: str, word: str
) -> None:
    (place / "link").symlink_to(target)
    before = tree(place)
    _assert_refused(_merge(capsys, "link"), word)
    assert tree(place) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "sealed").mkdir(mode=0o555)
    before = tree(place)
    _assert_refused(_merge(capsys, "sealed/out"), "sealed", "not writable")
    assert tree(place) == before


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(place: Path) -> None:
    recipe = Path("recipe.yaml").read_text().replace("dare_ties", "task_arithmetic")
    Path("recipe.yaml").write_text(recipe.replace("density: 0.5\n      ", ""))
    assert forge("merge", "recipe.yaml", "--out", "with", cwd=place).code == 0
    outcome = forge(
        "merge", "recipe.yaml", "--out", "without",
        cwd=place, environment={"FORGE_CACHE": "/proc/nowhere"},
    )  # fmt: skip
    assert outcome.code == 0, outcome.stderr
    assert weight_digests(place / "without") == weight_digests(place / "with")


def test_the_current_folder_can_be_the_output(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = place / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("./", "../"))
    (place / "empty").mkdir()
    outcome = forge("merge", "../recipe.yaml", "--out", ".", cwd=place / "empty")
    assert outcome.code == 0, outcome.stderr
    assert (place / "empty" / "model.safetensors").is_file()
    before = tree(place)
    _assert_refused(_merge(capsys, "."), "exists and is not empty")
    assert tree(place) == before


def _in_namespace(script: str, cwd: Path) -> Outcome:
    """Run a shell script where it may mount; ``$FORGE`` is the command."""
    done = subprocess.run(
        [*_NAMESPACE, "sh", "-euc", script],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "FORGE": f"{sys.executable} -m forge",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@mounts
def test_a_read_only_file_system(place: Path) -> None:
    (place / "sealed").mkdir()
    before = tree(place)
    outcome = _in_namespace(
        "mount --bind sealed sealed; mount -o remount,bind,ro sealed;"
        "exec $FORGE merge recipe.yaml --out sealed/new/out",
        place,
    )
    _assert_refused(outcome, "sealed", "Read-only file system")
    assert tree(place) == before


@mounts
def test_a_disk_that_is_too_small_is_refused_before_the_work(large: Path) -> None:
    (large / "disk").mkdir(exist_ok=True)
    outcome = _in_namespace(
        "mount -t tmpfs -o size=20m tmpfs disk; echo kept > disk/old; code=0;"
        "$FORGE merge recipe.yaml --out disk/new/out || code=$?; find disk -type f | xargs tail;"
        "exit $code",
        large,
    )
    assert outcome.stdout == "kept\n"
    _assert_refused(Outcome(outcome.code, "", outcome.stderr), "free there", "Make room")
    assert "merging" not in outcome.stderr


@mounts
def test_a_disk_that_fills_up_in_the_middle(large: Path) -> None:
    (large / "disk").mkdir(exist_ok=True)
    outcome = _in_namespace(
        """
        mount -t tmpfs -o size=64m tmpfs disk
        echo kept > disk/old
        $FORGE merge recipe.yaml --out disk/out --threads 1 & merge=$!
        journal=disk/out.forge-partial/journal.jsonl
        until test -f $journal && test $(wc -l < $journal) -gt 1; do :; done
        kill -STOP $merge
        dd if=/dev/zero of=disk/hog bs=64k 2>&- || true
        kill -CONT $merge
        code=0; wait $merge || code=$?
        echo "exit $code"
        cat disk/old; ls -A disk
        rm disk/hog
        $FORGE merge recipe.yaml --out disk/out --quiet
        ls -A disk; sha256sum < disk/out/model.safetensors
        """,
        large,
    )
    assert outcome.code == 0, outcome
    assert outcome.stderr.count("error: ") == 1
    assert "No space left on device" in outcome.error
    assert "make room, and the same command resumes" in outcome.error
    assert "Traceback" not in outcome.stderr
    lines = outcome.stdout.splitlines()
    assert lines[:5] == ["exit 2", "kept", "hog", "old", "out.forge-partial"]
    assert lines[-3:-1] == ["old", "out"]
    assert forge("merge", "recipe.yaml", "--out", "undisturbed", cwd=large).code == 0
    assert lines[-1].split()[0] == file_digest(large / "undisturbed" / "model.safetensors")


def test_a_file_size_limit_in_the_middle(large: Path) -> None:
    limit = 8 << 20

    def restrict() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = ("merge", "recipe.yaml", "--out", "limited")
    before = tree(large)
    outcome = forge(*arguments, cwd=large, before=restrict)
    _assert_refused(outcome, "File too large", "limited.forge-partial")
    assert tree(large, but=["limited.forge-partial"]) == before
    again = forge(*arguments, cwd=large)
    assert again.code == 0, again.stderr
    assert not partial_of(large / "limited").exists()


def test_two_merges_into_one_folder(large: Path) -> None:
    out = large / "contested"
    first = start(["merge", "recipe.yaml", "--out", out, "--threads", "1"], cwd=large)
    assert wait_for_tensors(first, out, 1)
    first.send_signal(signal.SIGSTOP)
    # A thread that is writing stops only after that.
    os.waitpid(first.pid, os.WUNTRACED)
    try:
        held = num_finished(out)
        before = tree(large)
        second = forge("merge", "recipe.yaml", "--out", out, cwd=large)
        other_recipe = forge("merge", "recipe.yaml", "--out", out, "--seed", "5", cwd=large)
        for outcome in (second, other_recipe):
            _assert_refused(outcome, "being written by another run", str(first.pid), "contested")
        assert tree(large) == before
        assert num_finished(out) == held
    finally:
        first.send_signal(signal.SIGCONT)
    assert finish(first).code == 0
    assert not partial_of(out).exists()
    assert forge("merge", "recipe.yaml", "--out", "alone", cwd=large).code == 0
    assert weight_digests(out) == weight_digests(large / "alone")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_in_the_middle(large: Path, number: signal.Signals, code: int) -> None:
    out = large / f"stopped-by-{number.name}"
    before = tree(large)
    process = start(["merge", "recipe.yaml", "--out", out, "--threads", "1"], cwd=large)
    assert wait_for_tensors(process, out, 1), "the merge was over before it could be stopped"
    process.send_signal(number)
    outcome = finish(process)
    assert outcome.code == code, outcome
    assert outcome.stderr.endswith("interrupted; the same command resumes\n")
    assert "Traceback" not in outcome.stderr
    assert outcome.stdout == ""
    assert tree(large, but=[partial_of(out).name]) == before
    again = forge("merge", "recipe.yaml", "--out", out, "--json", cwd=large)
    assert again.code == 0, again.stderr
    assert '"resumed_tensors": 0' not in again.stdout
    assert not partial_of(out).exists()
