"""Run ``forge`` as users do, in a process of its own, and see what it leaves on the disk."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PARTIAL_SUFFIX = ".forge-partial"
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The message behind ``error:``, to the end."""
        _, mark, message = f"\n{self.stderr}".partition("\nerror: ")
        return message if mark else ""


def start(
    arguments: Sequence[str | Path],
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.Popen[str]:
    """Start a forge process.

    Args:
        arguments: Behind the program's name.
        cwd: Where it runs.
        environment: Variables to set beside those of this process.
        before: Called in the new process before the program begins.
    """

    def prepare() -> None:
        # A shell starts what runs in the background with SIGINT ignored, and tests may run there.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if before is not None:
            before()

    return subprocess.Popen(
        [sys.executable, "-m", "forge", *map(str, arguments)],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "HF_HUB_OFFLINE": "1",
            **(environment or {}),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Wait for a process that ``start`` began."""
    stdout, stderr = process.communicate(timeout=_PATIENCE_S)
    return Outcome(process.returncode, stdout, stderr)


def forge(
    *arguments: str | Path,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Outcome:
    """Run forge to its end; see ``start``."""
    return finish(start(arguments, cwd=cwd, environment=environment, before=before))


def partial_of(out: Path) -> Path:
    """Return the folder in which an output grows."""
    return out.with_name(out.name + PARTIAL_SUFFIX)


def num_finished(out: Path) -> int:
    """Return how many tensors the journal of a growing output lists; -1 without a journal."""
    try:
        return (partial_of(out) / "journal.jsonl").read_bytes().count(b"\n") - 1
    except (FileNotFoundError, NotADirectoryError):
        return -1


def wait_for_tensors(process: subprocess.Popen[str], out: Path, count: int) -> bool:
    """Wait until a merge has finished so many tensors.

    Returns:
        False when the process ended before that was seen.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while num_finished(out) < count:
        if process.poll() is not None:
            return False
        if time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"no {count} tensors within {_PATIENCE_S:.0f} s")
        time.sleep(0.0005)
    return True


def tree(folder: Path, *, but: Sequence[str] = ()) -> dict[str, str]:
    """Describe everything below a folder: what it is, its permissions, and a hash of its bytes.

    Args:
        folder: The folder.
        but: Names of entries of the folder that do not count.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if relative.parts[0] in but:
            continue
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = os.readlink(path)  # noqa: PTH115
        elif stat.S_ISREG(mode):
            content = file_digest(path)
        else:
            content = ""
        found[str(relative)] = f"{stat.filemode(mode)} {content}"
    return found


def file_digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every weight file of an output, by name."""
    return {path.name: file_digest(path) for path in sorted(out.glob("*.safetensors"))}
