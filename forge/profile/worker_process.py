"""Start a worker, talk to it, and find out how it ended.

An answer that does not come means that the process is gone: its pipe ends, the kernel says how,
and the last line that it wrote to stderr says why. When a worker has ended, the kernel's account of
its memory (``wait4``) is kept beside the worker's own, as a reading that does not depend on it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import IO, Any, Final, Self

from forge.profile.worker import BROKEN, OUT_OF_MEMORY, Request

KILLED: Final = "killed"
_END_S: Final = 10.0
_SHOWN: Final = 300


class WorkerError(Exception):
    """A worker could not do what it was told; it has ended.

    Args:
        status: ``out of memory``, ``killed`` or ``failed``.
        message: What went wrong.
    """

    def __init__(self, status: str, message: str) -> None:
        self.status, self.message = status, message
        super().__init__(message)


class WorkerProcess:
    """A worker, seen from its parent.

    Args:
        request: What it is for. It starts at once and imports its libraries meanwhile.

    Attributes:
        peak_bytes: Highest resident memory since the worker reset its own reading, as the kernel
            reports it to the parent; ``None`` until it has ended, or where it was not asked.
    """

    def __init__(self, request: Request) -> None:
        self.peak_bytes: int | None = None
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        # The files are here; a library that asks the Hub anyway must fail instead of waiting.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "forge.profile.worker", request.dump()],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            text=True, encoding="utf-8",
            # Ctrl-C in a terminal goes to the whole group; the parent ends its workers itself.
            start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def await_ready(self) -> None:
        """Wait until its libraries are imported.

        Raises:
            WorkerError: It failed.
        """
        self._read()

    def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Have it do something, and wait for the answer.

        Args:
            command: A command of ``forge.profile.worker``.
            arguments: What belongs to it; plain JSON values.

        Returns:
            Its answer.

        Raises:
            WorkerError: It failed or ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": command, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # It is gone; reading says how.
            pass
        return self._read()

    def close(self) -> None:
        """End the process, if it has not ended, and take back what it used."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue
        if self._process.returncode is None:
            self._process.kill()
            self._reap()
        self._log.close()

    def end(self) -> None:
        """Wait for the end of a process that was told to finish."""
        if self._process.returncode is None:
            self._reap()

    def _reap(self) -> None:
        _, status, usage = os.wait4(self._process.pid, 0)
        # Popen must not wait for a process that wait4 has reaped.
        self._process.returncode = os.waitstatus_to_exitcode(status)
        scale = 1 if sys.platform == "darwin" else 1024
        self.peak_bytes = usage.ru_maxrss * scale

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            self._reap()
            raise WorkerError(*self._how_it_ended())
        answer = json.loads(line)
        failed = answer.get("failed")
        if failed is not None:
            raise WorkerError(failed["status"], failed["message"])
        found: dict[str, Any] = answer["ok"]
        return found

    def _how_it_ended(self) -> tuple[str, str]:
        code = self._process.returncode
        if code is not None and code < 0:
            name = signal.strsignal(-code) or f"signal {-code}"
            status = KILLED if -code == signal.SIGKILL else BROKEN
            why = ", as the kernel does when memory runs out" if status == KILLED else ""
            return status, f"Its process was ended from outside ({name}){why}."
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        said = lines[-1][:_SHOWN] if lines else "it said nothing"
        return BROKEN, f"Its process ended with exit code {code}: {said}"


def ends_a_sweep(status: str) -> bool:
    """Return whether larger settings of a model need not be tried after this."""
    return status in (OUT_OF_MEMORY, KILLED)
