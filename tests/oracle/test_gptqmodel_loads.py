"""transformers reads our AWQ GEMM and GPTQ checkpoints through gptqmodel, on a CPU.

gptqmodel holds numpy down, so it runs in an environment of its own, which the first run makes;
see ``environments.py``.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from forge.formats.contract import QuantizedWeight, Scheme
from tests.oracle.environments import python_of
from tests.quantize.packed_folder import PROJECTIONS, dequantized_folder, packed_folder

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")

GPTQMODEL_REQUIREMENTS = (("torch==2.13.0",), ("gptqmodel==7.6.0", "optimum==2.3.0"))
_NUM_NEW = 24


def _peer(folder: Path, tokens: NDArray[np.int64], out: Path) -> dict[str, NDArray[np.generic]]:
    python = python_of("gptqmodel", GPTQMODEL_REQUIREMENTS)
    script = Path(__file__).with_name("gptqmodel_runner.py")
    np.save(out.with_suffix(".npy"), tokens)
    command = [python, "-W", "ignore", script, folder, out.with_suffix(".npy"), _NUM_NEW, out]
    subprocess.run([str(word) for word in command], check=True)
    with np.load(out) as content:
        return dict(content)


@pytest.mark.parametrize("layout", ["awq-gemm", "gptq"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_transformers_and_gptqmodel_read_what_we_packed(
    tmp_path: Path, layout: str, group_size: int
) -> None:
    from transformers import AutoModelForCausalLM

    from forge import runtime

    # transformers does not read GPTQ's word for single layers that stay as they are.
    kept = ("model.layers.1.mlp.gate_proj",) if layout == "awq-gemm" else ()
    weights: dict[str, QuantizedWeight] = {}
    folder = packed_folder(
        tmp_path / "packed",
        layout,
        scheme=Scheme(4, group_size),
        kept=kept,
        dtype="F16",
        hidden=128,
        change=weights.__setitem__,
    )
    assert len(weights) == 2 * len(PROJECTIONS) - len(kept)
    tokens = np.random.default_rng(group_size).integers(4, 32, (1, 12))
    theirs = _peer(folder, tokens, tmp_path / "peer.npz")
    kinds = set(theirs["classes"].tolist())
    # Codes ran as codes, and were not multiplied out while the model was loaded.
    assert kinds & {"TorchAtenAwqLinear", "TorchAtenLinear"}

    plain = AutoModelForCausalLM.from_pretrained(
        dequantized_folder(folder, weights), dtype=torch.float32
    )
    with torch.no_grad():
        expected = plain(torch.from_numpy(tokens)).logits.numpy()
    spread = expected.std()
    assert spread > 0.1
    # Their kernel rounds scales and activations to bfloat16.
    assert np.abs(theirs["logits"] - expected).max() < 0.05 * spread

    ours = runtime.load(folder, dtype=torch.float32)
    length = {"max_new_tokens": _NUM_NEW, "min_new_tokens": _NUM_NEW}
    texts = ours.generate(torch.from_numpy(tokens), do_sample=False, **length)
    assert theirs["texts"].tolist() == texts.tolist()
    assert theirs["texts"].shape == (1, tokens.shape[1] + _NUM_NEW)
