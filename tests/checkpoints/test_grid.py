"""Models that were dequantized and saved are warned of, in every manifest that comes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from forge import api
from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.grid import grid_warning
from forge.recipes.reference import ModelReference
from tests.factory import read_values, tiny_checkpoint, to_bytes, write_safetensors

Floats = npt.NDArray[np.floating]
REAL = Path(__file__).resolve().parents[2] / "demo_output" / "models"


def _four_bits(values: Floats) -> Floats:
    groups = values.reshape(len(values), -1, 32)
    step = np.abs(groups).max(axis=-1, keepdims=True) / 7
    return (np.rint(groups / step) * step).reshape(values.shape)


def _ternary(values: Floats) -> Floats:
    return np.clip(np.rint(values / np.abs(values).mean()), -1, 1) * np.float32(0.04)


def _model(root: Path, change: Callable[[Floats], Floats] | None, *, tune: int | None) -> Path:
    """Write a model whose layers' matrices are changed, and nothing else."""
    tiny_checkpoint(root, hidden=128, tune=tune)
    values = read_values(root)
    if change is not None:
        values |= {
            name: change(value)
            for name, value in values.items()
            if value.ndim == 2 and ".layers." in name
        }
    write_safetensors(
        root / "model.safetensors",
        {name: ("BF16", value.shape, to_bytes(value, "BF16")) for name, value in values.items()},
    )
    return root


def _warning(root: Path | str) -> str | None:
    return grid_warning(open_checkpoint(ModelReference.parse(str(root))))


def test_what_was_dequantized_is_named(tmp_path: Path) -> None:
    root = _model(tmp_path / "m", _four_bits, tune=None)
    assert _warning(root) == (
        f"'{root}' is stored in bfloat16, but its weights lie on a grid of 4-bit codes (integers) "
        "(4 of 4 tensors that were looked at, such as 'model.layers.0.mlp.gate_proj.weight'): "
        "it was dequantized, and what quantization lost is not there. Take the original model, if "
        "you can get it."
    )


def test_ternary_weights_are_called_that(tmp_path: Path) -> None:
    warning = _warning(_model(tmp_path / "m", _ternary, tune=None))
    assert warning is not None
    assert "are ternary: one magnitude of either sign, or 0" in warning
    assert "BitNet" in warning


@pytest.mark.parametrize(
    "change", [None, np.zeros_like, lambda values: np.full_like(values, 0.25)],
    ids=["random", "zeros", "constant"],
)  # fmt: skip
def test_full_precision_says_nothing(
    tmp_path: Path, change: Callable[[Floats], Floats] | None
) -> None:
    assert _warning(_model(tmp_path / "m", change, tune=None)) is None


def test_one_odd_tensor_is_no_quantized_model(tmp_path: Path) -> None:
    def only_keys(values: Floats) -> Floats:
        return _four_bits(values) if values.shape[0] < 128 else values

    assert _warning(_model(tmp_path / "m", only_keys, tune=None)) is None


def test_the_warning_reaches_check_merge_and_quantize(tmp_path: Path) -> None:
    base = _model(tmp_path / "base", None, tune=None)
    tuned = _model(tmp_path / "tuned", _four_bits, tune=1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        json.dumps({
            "merge_method": "task_arithmetic", "base_model": str(base), "dtype": "bfloat16",
            "models": [{"model": str(tuned), "parameters": {"weight": 0.5}}],
        })
    )  # fmt: skip
    found = [row for row in api.check(recipe).warnings if row.code == "grid"]
    assert len(found) == 1
    assert str(tuned) in found[0].message
    api.merge(recipe, tmp_path / "merged")
    merged = json.loads((tmp_path / "merged" / "forge_manifest.json").read_text())
    assert found[0].message in merged["notices"]
    quantize = api.load_quantize_recipe(
        None, options={"model": str(tuned), "method": "rtn", "group_size": 64}
    )
    assert found[0].message in api.plan_quantize(quantize).notices
    api.quantize(quantize, tmp_path / "rtn", verification="quick")
    made = json.loads((tmp_path / "rtn" / "forge_manifest.json").read_text())
    assert found[0].message in made["notices"]


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the demo's models (make demo)")
def test_real_weights() -> None:
    """The demo's base comes from a GGUF of 4 bits; what its adapter changed lies on no grid."""
    from forge.checkpoints.grid import _grid_of, _is_fit
    from forge.checkpoints.source import open_safetensors

    base = open_safetensors(REAL / "SmolLM2-135M-Instruct", label="base")
    tuned = open_safetensors(REAL / "SmolLM2-135M-PubMedQA", label="tuned")
    names = [name for name in base.names() if _is_fit(base.info(name))]
    changed = [name for name in names if base.read(name) != tuned.read(name)]
    assert len(changed) > 50
    assert not [name for name in changed if _grid_of(tuned, name) is not None]
    found = [_grid_of(base, name) for name in names]
    assert {grid.name for grid in found if grid} == {"4-bit codes (integers)"}
    assert all(found)
