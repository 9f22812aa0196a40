"""A parent whose quantizer moved scales into its weights is named; others are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.dequantizing import source as dequantizing
from forge.merge.check import scales
from forge.merge.check.report import Notebook
from forge.recipes.reference import ModelReference
from tests.factory import read_values, tiny_checkpoint, to_bytes, write_safetensors


@pytest.mark.parametrize(("factor", "is_named"), [(1.0, False), (1.05, False), (1.5, True)])
def test_norms_tell(
    factor: float, is_named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, parent = tiny_checkpoint(tmp_path / "base"), tiny_checkpoint(tmp_path / "parent", tune=1)
    values = read_values(base)
    for name in values:
        if "norm" in name:
            values[name] = values[name] * np.float32(factor)
    write_safetensors(
        parent / "model.safetensors",
        {name: ("BF16", value.shape, to_bytes(value, "BF16")) for name, value in values.items()},
    )
    opened = {name: open_checkpoint(ModelReference(str(name))) for name in (base, parent)}
    checkpoints = {one.reference: one for one in opened.values()}
    # What makes it a quantized one is of no matter here: norms are stored in full.
    decoded = type("Decoded", (type(opened[parent].source),), {})
    opened[parent].source.__class__ = decoded
    monkeypatch.setattr(dequantizing, "DequantizingSource", decoded)
    notes = Notebook()
    scales.note_moved_scales(checkpoints, notes, read=checkpoints)
    found = [one for one in notes.sorted() if one.code == "moved-scales"]
    assert len(found) == is_named
    assert all(f"Norms of '{parent}'" in one.message and "50%" in one.message for one in found)
