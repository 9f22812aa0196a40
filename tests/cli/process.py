"""Run the command line as its users do: as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Return an environment in which forge is importable from any working directory, offline."""
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }


def forge(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``forge`` and return what it printed and its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "forge", *arguments],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def python(code: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Python code with forge importable."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
