"""Read every tensor of a model with an adapter in a process of its own.

Prints the peak of its anonymous memory in bytes, and a digest of what was read.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from forge.checkpoints.checkpoint import open_checkpoint
from forge.recipes.reference import ModelReference


def _anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


source = open_checkpoint(ModelReference.parse(sys.argv[1])).source
peak = 0
digest = hashlib.sha256()
for name in source.names():
    data = source.read(name)
    peak = max(peak, _anonymous_bytes())
    digest.update(data)
    del data
print(peak, digest.hexdigest())
