"""What reading a model with an adapter takes does not grow with it, nor depend on threads."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.factory import header_bytes, tiny_config, tiny_shapes, write_safetensors

_WIDTH = 512
_TENSOR_BYTES = 2 * _WIDTH * _WIDTH * 2


def _model(root: Path, *, layers: int) -> Path:
    """Write a model of zeros that takes no room on the disk."""
    root.mkdir()
    config = tiny_config(layers=layers, hidden=_WIDTH)
    (root / "config.json").write_text(json.dumps(config))
    table: dict[str, object] = {}
    position = 0
    for name, shape in tiny_shapes(config).items():
        end = position + 2 * math.prod(shape)
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    header = header_bytes(table)
    with (root / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + position)
    return root


def _adapter(root: Path, *, layers: int) -> Path:
    root.mkdir()
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "use_dora": True}
    (root / "adapter_config.json").write_text(json.dumps(settings))
    rows, generator = {}, np.random.default_rng(0)
    for layer in range(layers):
        for name, out, inner in (("down_proj", 1, 2), ("gate_proj", 2, 1), ("up_proj", 2, 1)):
            stem = f"base_model.model.model.layers.{layer}.mlp.{name}"
            for part, shape in (
                ("lora_A.weight", (4, inner * _WIDTH)),
                ("lora_B.weight", (out * _WIDTH, 4)),
                ("lora_magnitude_vector", (out * _WIDTH,)),
            ):
                values = generator.standard_normal(shape, np.float32)
                rows[f"{stem}.{part}"] = ("F32", shape, values.tobytes())
    write_safetensors(root / "adapter_model.safetensors", rows)
    return root


def _read(folder: Path, *, layers: int, threads: int = 1) -> tuple[int, str]:
    """Return the peak, in bytes, and the digest that the process prints."""
    base, adapter = folder / f"m{layers}", folder / f"a{layers}"
    if not base.exists():
        _model(base, layers=layers)
        _adapter(adapter, layers=layers)
    script = Path(__file__).with_name("peak_process.py")
    done = subprocess.run(
        [sys.executable, str(script), f"{base}+{adapter}"],
        capture_output=True, text=True, check=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": str(threads)},
    )  # fmt: skip
    peak, digest = done.stdout.split()
    return int(peak), digest


def test_the_peak_is_that_of_one_tensor(tmp_path: Path) -> None:
    few, many = (_read(tmp_path, layers=layers)[0] for layers in (4, 24))
    # Twenty layers more are sixty tensors of a megabyte; they would stand out.
    assert many - few < 4 * _TENSOR_BYTES


def test_threads_of_the_matrix_library_do_not_change_a_byte(tmp_path: Path) -> None:
    digests = {_read(tmp_path, layers=1, threads=threads)[1] for threads in (1, 3)}
    assert len(digests) == 1
