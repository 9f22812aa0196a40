"""Environments of their own for peers that cannot live beside forge's dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def python_of(name: str, requirements: Sequence[Sequence[str]]) -> Path:
    """Return the interpreter of an environment, made when it is not there yet.

    Args:
        name: Names the environment; ``FORGE_PEER_<NAME>`` may point to a folder that has it, and
            ``FORGE_PEERS`` to the folder where new ones go (by default forge's cache).
        requirements: Arguments of ``pip install``, one call after the other.
    """
    given = os.environ.get(f"FORGE_PEER_{name.upper()}")
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(os.environ.get("FORGE_PEERS") or Path(cache) / "forge" / "peers")
    folder = Path(given) if given else root / name
    python = folder / "bin" / "python"
    stamp = folder / ".complete"
    wanted = "\n".join(" ".join(call) for call in requirements)
    if given or (stamp.is_file() and stamp.read_text() == wanted):
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    for call in requirements:
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *call], check=True)
    stamp.write_text(wanted)
    return python
