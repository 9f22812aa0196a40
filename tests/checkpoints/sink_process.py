"""A process that writes an output slowly, for tests that kill it or start a second one.

python -m tests.checkpoints.sink_process OUT MODE [SECONDS_PER_TENSOR]
"""

import sys
import time
from pathlib import Path

import numpy as np

from forge.checkpoints.hashing import checksum_of
from forge.checkpoints.sink import PlannedTensor, TensorSink
from forge.core.errors import ForgeError

PLAN = [PlannedTensor(f"t{number}", (7, number + 1), "F32") for number in range(12)]


def values(tensor: PlannedTensor) -> np.ndarray:
    """Return what a tensor must hold."""
    generator = np.random.default_rng(int(tensor.name[1:]))
    return generator.standard_normal(tensor.shape, np.float32)


def write_all(sink: TensorSink, *, pause_s: float = 0.0, limit: int | None = None) -> int:
    """Write what is not done, in parts and in an order unlike the file's; return how many."""
    count = 0
    for tensor in reversed(PLAN):
        if tensor.name in sink.done:
            continue
        if count == limit:
            break
        array = values(tensor)
        half = array.nbytes // 2
        view = memoryview(array.tobytes())
        sink.write(tensor.name, half, view[half:])
        time.sleep(pause_s)
        sink.write(tensor.name, 0, view[:half])
        sink.finish(tensor.name, digest=checksum_of(view), statistics={"norm": 1.5})
        count += 1
    return count


def main() -> int:
    """Write the output; print a line once the sink is open."""
    out, mode = Path(sys.argv[1]), sys.argv[2]
    pause_s = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    try:
        with TensorSink(
            out, PLAN, max_shard_bytes=600, fingerprint="f", overwrite=mode == "overwrite"
        ) as sink:
            print("open", len(sink.done), flush=True)
            write_all(sink, pause_s=pause_s)
            sink.commit({"config.json": b"{}\n"}, lambda files: repr(sorted(files)).encode())
    except ForgeError as error:
        print(error, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
