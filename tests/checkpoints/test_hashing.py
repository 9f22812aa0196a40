"""Running hashes equal hashes of the whole, whoever advances them."""

import hashlib
import threading
from pathlib import Path

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.checkpoints.hashing import (
    RunningHash,
    blake3_of,
    blake3_of_range,
    hash_file,
    hash_files,
)
from forge.core.errors import CheckpointError


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hash") / "big"
    path.write_bytes(hashlib.shake_256(b"seed").digest(3_500_001))
    return path


@given(st.lists(st.integers(0, 3_500_001), max_size=6))
@settings(max_examples=25, deadline=None)
def test_any_advances_give_the_hash_of_the_file(big: Path, steps: list[int]) -> None:
    running = RunningHash(big, algorithm="sha256", name="a/b")
    for step in steps:
        running.advance(step)
    assert running.position == max(steps, default=0)
    record = running.finish()
    assert record.digest == hashlib.sha256(big.read_bytes()).hexdigest()
    assert (record.name, record.bytes, record.algorithm) == ("a/b", 3_500_001, "sha256")


def test_both_algorithms_and_ranges(big: Path, tmp_path: Path) -> None:
    content = big.read_bytes()
    assert hash_file(big, algorithm="blake3").digest == blake3.blake3(content).hexdigest()
    assert blake3_of(memoryview(content)) == blake3.blake3(content).hexdigest()
    for offset, nbytes in ((0, 0), (5, 1), (1_000_000, 2_500_001)):
        part = content[offset : offset + nbytes]
        assert blake3_of_range(big, offset, nbytes) == blake3.blake3(part).hexdigest()
    (tmp_path / "empty").touch()
    records = hash_files([big, tmp_path / "empty"], algorithm="sha256")
    assert [record.name for record in records] == ["big", "empty"]
    assert records[1].digest == hashlib.sha256(b"").hexdigest()


def test_threads_that_race_lose_no_byte(big: Path) -> None:
    content = big.read_bytes()
    for _ in range(5):
        running = RunningHash(big, algorithm="blake3")
        start = threading.Barrier(6)

        def advance(
            worker: int, running: RunningHash = running, start: threading.Barrier = start
        ) -> None:
            start.wait()
            for step in range(worker, 36, 6):
                running.advance(step * 100_000)

        threads = [threading.Thread(target=advance, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Whoever was turned away handed its target to the thread that was hashing.
        assert running.position == 3_500_000
        assert running.finish().digest == blake3.blake3(content).hexdigest()


def test_a_short_or_missing_file_is_an_error_and_not_a_wrong_hash(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"abc")
    running = RunningHash(path, algorithm="sha256")
    with pytest.raises(CheckpointError, match="shorter than expected"):
        running.advance(10)
    assert running.finish().digest == hashlib.sha256(b"abc").hexdigest()
    with pytest.raises(CheckpointError, match="cannot be read"):
        hash_file(tmp_path / "absent", algorithm="sha256")
