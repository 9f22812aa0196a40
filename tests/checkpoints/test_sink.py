"""The sink: right bytes in any order, resumable after anything, visible all at once or never."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from forge.checkpoints import replace
from forge.checkpoints.hashing import FileRecord, checksum_of, record_file
from forge.checkpoints.sink import MANIFEST_FILE, PlannedTensor, TensorSink
from forge.checkpoints.source import open_safetensors
from forge.core.errors import OutputError
from tests.checkpoints.sink_process import PLAN, values, write_all

_SHARD_BYTES = 600


def _sink(out: Path, *, fingerprint: str = "f", overwrite: bool = False) -> TensorSink:
    return TensorSink(
        out, PLAN, max_shard_bytes=_SHARD_BYTES, fingerprint=fingerprint, overwrite=overwrite
    )


def _manifest(files: Mapping[str, FileRecord]) -> bytes:
    return json.dumps({name: record.digest for name, record in files.items()}).encode()


def _make(out: Path, **keywords: bool) -> None:
    with _sink(out, **keywords) as sink:
        write_all(sink)
        sink.commit({"config.json": b"{}\n", "chat_templates/tool.jinja": b"x"}, _manifest)


def _partial(out: Path) -> Path:
    return out.with_name(out.name + ".forge-partial")


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _assert_right(out: Path) -> None:
    source = open_safetensors(out, label="out")
    assert set(source.names()) == {tensor.name for tensor in PLAN}
    for tensor in PLAN:
        assert bytes(source.read(tensor.name)) == values(tensor).tobytes()
    source.close()
    assert not _partial(out).exists()


def test_an_output_is_complete_hashed_and_free_of_bookkeeping(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    _make(out)
    _assert_right(out)
    files = _snapshot(out)
    recorded = json.loads(files.pop(MANIFEST_FILE))
    assert recorded == {name: record_file(out / name).digest for name in files}
    assert sorted(files) == [
        "chat_templates/tool.jinja", "config.json",
        *(f"model-0000{i}-of-00005.safetensors" for i in range(1, 6)),
        "model.safetensors.index.json",
    ]  # fmt: skip
    assert list((tmp_path / "new").iterdir()) == [out]


def test_the_reference_implementation_reads_it(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    _make(tmp_path / "out")
    loaded: dict[str, np.ndarray] = {}
    for path in (tmp_path / "out").glob("*.safetensors"):
        loaded |= load_file(path)
    for tensor in PLAN:
        assert np.array_equal(loaded[tensor.name], values(tensor))


def test_threads_may_write_in_any_order(tmp_path: Path) -> None:
    with _sink(tmp_path / "out") as sink:
        start = threading.Barrier(4)

        def work(worker: int) -> None:
            start.wait()
            for tensor in PLAN[worker::4]:
                array = values(tensor)
                sink.write(tensor.name, 0, array)
                sink.finish(tensor.name, digest=checksum_of(array.data.cast("B")), statistics={})

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sink.commit({}, _manifest)
    _assert_right(tmp_path / "out")


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        _make(tmp_path / "out")
    finally:
        os.umask(before)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        full = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == full & ~umask, path


# -- resuming ------------------------------------------------------------------------------


def test_finished_tensors_are_not_asked_for_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _sink(out) as sink:
        write_all(sink, limit=5)
    assert not out.exists()
    with _sink(out) as sink:
        assert set(sink.done) == {f"t{number}" for number in range(7, 12)}
        assert sink.done["t9"].statistics == {"norm": 1.5}
        assert sink.discarded_reason is None
        assert write_all(sink) == 7
        sink.commit({}, _manifest)
    _assert_right(out)


def test_a_resumed_output_has_the_same_bytes(tmp_path: Path) -> None:
    _make(tmp_path / "whole")
    for stop in range(1, 12):
        out = tmp_path / f"resumed{stop}"
        with _sink(out) as sink:
            write_all(sink, limit=stop)
        _make(out)
        assert _snapshot(out) == _snapshot(tmp_path / "whole")


def test_damage_to_a_finished_tensor_is_found_and_repaired(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _sink(out) as sink:
        write_all(sink, limit=5)
        shard = next(shard for shard in sink.layout for t in shard.tensors if t.name == "t9")
        place = next(t for t in shard.tensors if t.name == "t9")
    with (_partial(out) / "output" / shard.file).open("r+b") as file:
        file.seek(place.offset + 3)
        file.write(b"\xff")
    with _sink(out) as sink:
        assert set(sink.done) == {"t7", "t8", "t10", "t11"}
        write_all(sink)
        sink.commit({}, _manifest)
    _assert_right(out)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_ignored(tmp_path: Path, cut: int) -> None:
    out = tmp_path / "out"
    with _sink(out) as sink:
        write_all(sink, limit=3)
    journal = _partial(out) / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-cut])
    with _sink(out) as sink:
        assert set(sink.done) == {"t11", "t10"}
        write_all(sink)
    with _sink(out) as sink:
        assert len(sink.done) == len(PLAN)
        sink.commit({}, _manifest)
    _assert_right(out)


@pytest.mark.parametrize("content", [b"", b"garbage\n", b'{"forge_journal": 99}\n', b"\xff\n"])
def test_an_unreadable_journal_discards_the_partial(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "out"
    with _sink(out) as sink:
        write_all(sink, limit=3)
    (_partial(out) / "journal.jsonl").write_bytes(content)
    with _sink(out) as sink:
        assert not sink.done
        assert sink.discarded_reason == "its journal is unreadable"


def test_another_merge_does_not_inherit(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _sink(out) as sink:
        write_all(sink, limit=3)
    with _sink(out, fingerprint="other") as sink:
        assert not sink.done
        assert "another recipe" in (sink.discarded_reason or "")
        write_all(sink, limit=1)
    plan = [PlannedTensor("t0", (3,), "F32")]
    with TensorSink(out, plan, max_shard_bytes=9, fingerprint="other") as sink:
        assert not sink.done
        assert "laid out differently" in (sink.discarded_reason or "")


def test_nothing_stays_when_nothing_was_finished(tmp_path: Path) -> None:
    with _sink(tmp_path / "out") as sink:
        sink.write("t0", 0, values(PLAN[0]))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_opening_keeps_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with _sink(out) as sink:
        write_all(sink, limit=3)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=1, f_frsize=1))
    with pytest.raises(OutputError, match="free"):
        _sink(out)
    monkeypatch.undo()
    with _sink(out) as sink:
        assert len(sink.done) == 3


def _start(out: Path, mode: str, pause_s: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.checkpoints.sink_process", str(out), mode, str(pause_s)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


@pytest.fixture
def slow_process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = _start(tmp_path / "out", "new", 0.05)
    assert process.stdout is not None
    assert process.stdout.readline() == "open 0\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_kill_9_in_the_middle_then_the_same_again(
    tmp_path: Path, slow_process: subprocess.Popen[str]
) -> None:
    out = tmp_path / "out"
    journal = _partial(out) / "journal.jsonl"
    while journal.read_bytes().count(b"\n") < 5:
        assert slow_process.poll() is None
    slow_process.send_signal(signal.SIGKILL)
    slow_process.wait()
    assert not out.exists()
    with _sink(out) as sink:
        assert len(sink.done) >= 4
        write_all(sink)
        sink.commit({}, _manifest)
    _assert_right(out)


def test_kills_at_random_moments_never_change_a_byte(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _make(tmp_path / "whole")
    out = tmp_path / "out"
    generator = np.random.default_rng(7)
    for _ in range(10):
        process = _start(out, "new", 0.02)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(timeout=generator.uniform(0, 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
    if not out.exists():
        _make(out)
    ours, whole = _snapshot(out), _snapshot(tmp_path / "whole")
    weights = {name for name in whole if name.endswith((".safetensors", "index.json"))}
    assert {name: ours[name] for name in weights} == {name: whole[name] for name in weights}
    # What a killed process had finished was intact: nothing was done twice.
    assert not caplog.records


def test_two_processes_cannot_write_one_output(
    tmp_path: Path, slow_process: subprocess.Popen[str]
) -> None:
    with pytest.raises(OutputError, match=rf"another run \(process {slow_process.pid}\)"):
        _sink(tmp_path / "out")
    assert slow_process.wait(timeout=30) == 0
    _assert_right(tmp_path / "out")


def test_two_sinks_in_one_process_cannot_either(tmp_path: Path) -> None:
    with _sink(tmp_path / "out") as sink:
        with pytest.raises(OutputError, match="another run"):
            _sink(tmp_path / "out")
        write_all(sink)
        sink.commit({}, _manifest)
    _assert_right(tmp_path / "out")


# -- existing outputs ----------------------------------------------------------------------


def test_an_existing_output_is_refused_and_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _make(out)
    before = _snapshot(tmp_path)
    with pytest.raises(OutputError, match="pass --overwrite"):
        _sink(out)
    assert _snapshot(tmp_path) == before


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    _make(tmp_path / "out")
    _assert_right(tmp_path / "out")


def test_overwriting_leaves_nothing_stale(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _make(out)
    (out / "stale.safetensors").write_bytes(b"x")
    (out / "t0").mkdir()
    _make(out, overwrite=True)
    assert "stale.safetensors" not in _snapshot(out)
    assert not (out / "t0").exists()
    _assert_right(out)


def test_what_forge_did_not_make_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="was not made by forge"):
        _sink(out, overwrite=True)
    assert _snapshot(tmp_path) == {"out/thesis.txt": b"years of work"}


def test_a_file_in_the_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="not a folder"):
        _sink(tmp_path / "out", overwrite=True)
    with pytest.raises(OutputError, match="not writable"):
        _sink(tmp_path / "out" / "below")


def test_the_old_output_is_there_until_the_new_one_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _make(out)
    before = _snapshot(out)
    with _sink(out, overwrite=True) as sink:
        write_all(sink)
        assert _snapshot(out) == before
        with pytest.raises(RuntimeError, match="manifest failed"):
            sink.commit({}, _fail)
    assert _snapshot(out) == before
    _make(out, overwrite=True)
    _assert_right(out)


def _fail(files: Mapping[str, FileRecord]) -> bytes:
    raise RuntimeError("manifest failed")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL])
def test_without_an_atomic_exchange_the_old_one_steps_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(replace, "_renameat2", lambda *arguments: code)
    _make(tmp_path / "out")
    (tmp_path / "out" / "stale").write_bytes(b"x")
    _make(tmp_path / "out", overwrite=True)
    _assert_right(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert not (tmp_path / "out" / "stale").exists()


@pytest.mark.parametrize("atomic", [True, False])
def test_a_failed_replacement_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool
) -> None:
    out = tmp_path / "out"
    _make(out)
    before = _snapshot(out)
    code = errno.EACCES if atomic else errno.ENOSYS
    monkeypatch.setattr(replace, "_renameat2", lambda *arguments: code)
    rename = Path.rename

    def fail_for_the_new_one(self: Path, target: Path) -> Path:
        if self.name == "output":
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(OutputError, match="cannot be put in place"):
        _make(out, overwrite=True)
    assert _snapshot(out) == before
    monkeypatch.undo()
    with _sink(out, overwrite=True) as sink:
        assert len(sink.done) == len(PLAN)
        sink.commit({}, _manifest)
    _assert_right(out)


def test_an_old_output_that_cannot_be_deleted_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    _make(out)

    def refuse(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", refuse)
    _make(out, overwrite=True)
    monkeypatch.undo()
    assert "delete it yourself" in caplog.text
    assert (_partial(out) / "output" / MANIFEST_FILE).exists()
    _make(out, overwrite=True)
    _assert_right(out)


def test_a_crash_right_after_the_exchange_leaves_no_trace_in_the_next_output(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    _make(out)
    (out / "stale").write_bytes(b"x")
    with _sink(out, overwrite=True) as sink:
        write_all(sink)
    # The state after the exchange: the journal is complete, but beside it lies the old output.
    output, aside = _partial(out) / "output", tmp_path / "aside"
    out.rename(aside)
    output.rename(out)
    aside.rename(output)
    (output / "model-00001-of-00005.safetensors").write_bytes(b"old")
    (out / MANIFEST_FILE).write_bytes(b"{}")
    _make(out, overwrite=True)
    assert not (out / "stale").exists()
    _assert_right(out)


# -- failures of the disk ------------------------------------------------------------------


def test_too_small_a_disk_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=5, f_frsize=10**6))
    with pytest.raises(OutputError, match=r"5.00 MB free; the output needs 16.\d\d MB|GB"):
        _sink(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_midway_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    out = tmp_path / "out"
    pwrite, calls = os.pwrite, []

    def fail_after_six(descriptor: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 6:
            raise OSError(code, os.strerror(code))
        # Also a short write, which must be continued.
        return pwrite(descriptor, data[: max(1, len(data) // 2)], offset)

    with _sink(out) as sink:
        write_all(sink, limit=2)
        monkeypatch.setattr(os, "pwrite", fail_after_six)
        with pytest.raises(OutputError) as caught:
            write_all(sink)
    assert os.strerror(code) in str(caught.value)
    assert "the same command resumes" in str(caught.value)
    assert "are free there" in str(caught.value)
    monkeypatch.undo()
    with _sink(out) as sink:
        assert len(sink.done) >= 2
        write_all(sink)
        sink.commit({}, _manifest)
    _assert_right(out)


def test_a_lost_page_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge.checkpoints.sink._FLUSH_SECONDS", 0.001)
    failed = threading.Event()

    def fail(descriptor: int) -> None:
        failed.set()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", fail)
    with _sink(tmp_path / "out") as sink:
        write_all(sink)
        assert failed.wait(timeout=10)
        with pytest.raises(OutputError, match=r"Input/output error.*the same command resumes"):
            sink.commit({}, _manifest)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    _make(tmp_path / "out")
    _assert_right(tmp_path / "out")


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    _make(tmp_path / "out")
    monkeypatch.undo()
    _assert_right(tmp_path / "out")


def test_a_limit_of_the_real_kernel_is_reported(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))
    try:
        with pytest.raises(OutputError, match=r"File too large.*the same command resumes"):
            _sink(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    _make(tmp_path / "out")
    _assert_right(tmp_path / "out")


# -- misuse --------------------------------------------------------------------------------


def test_an_unfinished_output_cannot_be_committed(tmp_path: Path) -> None:
    with _sink(tmp_path / "out") as sink:
        write_all(sink, limit=11)
        with pytest.raises(ValueError, match="1 tensors are not finished, such as 't0'"):
            sink.commit({}, _manifest)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../x", "", "a//b", MANIFEST_FILE, "model-00001-of-00005.safetensors"]
)
def test_a_sidecar_cannot_leave_the_output_or_replace_weights(tmp_path: Path, name: str) -> None:
    with _sink(tmp_path / "out") as sink:
        write_all(sink)
        with pytest.raises(ValueError, match="not a possible name"):
            sink.commit({name: b"x"}, _manifest)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("offset", "size"), [(-1, 4), (0, 29), (28, 1)])
def test_a_write_cannot_leave_its_tensor(tmp_path: Path, offset: int, size: int) -> None:
    with _sink(tmp_path / "out") as sink, pytest.raises(ValueError, match="leave tensor 't0'"):
        sink.write("t0", offset, memoryview(bytes(size)))


def test_more_shards_than_open_files(tmp_path: Path) -> None:
    plan = [PlannedTensor(f"t{number}", (1,), "F32") for number in range(300)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    try:
        with TensorSink(tmp_path / "out", plan, max_shard_bytes=4, fingerprint="f") as sink:
            for tensor in plan:
                sink.write(tensor.name, 0, np.zeros(1, np.float32))
                sink.finish(tensor.name, digest=checksum_of(memoryview(bytes(4))), statistics={})
            sink.commit({}, _manifest)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 300
