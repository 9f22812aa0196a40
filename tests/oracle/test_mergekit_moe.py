"""A build copies the same tensors to the same places as mergekit-moe; routers aside."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forge import api
from tests.factory import read_values
from tests.merge.test_moe import save

RECIPE = """\
base_model: {root}/base
gate_mode: random
dtype: float32
experts_per_token: 2
experts:
  - source_model: {root}/med
    positive_prompts: [fever]
  - source_model: {root}/law
    positive_prompts: [contracts]
    residual_scale: 0.5
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mergekit") is None, reason="needs forge[mergekit]")
@pytest.mark.parametrize("case", ["mistral", "qwen3"])
def test_the_same_tensors_in_the_same_places(tmp_path: Path, case: str) -> None:
    for seed, name in enumerate(("base", "med", "law")):
        save(case, tmp_path / name, seed=seed)
    path = tmp_path / "moe.yml"
    path.write_text(RECIPE.format(root=tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "mergekit.scripts.moe", str(path), str(tmp_path / "theirs")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    api.moe(path, tmp_path / "ours", threads=1)
    theirs, ours = read_values(tmp_path / "theirs"), read_values(tmp_path / "ours")
    seen = 0
    for name, values in ours.items():
        if name.endswith((".gate.weight",)):
            continue
        seen += 1
        if ".experts." not in name:
            np.testing.assert_array_equal(theirs[name], values, err_msg=name)
            continue
        # Saved as transformers holds them: all experts in one tensor, gate over up.
        layer, expert, matrix = (name.split(".")[n] for n in (2, 5, 6))
        stack = f"model.layers.{layer}.mlp.experts."
        if stack + "down_proj" not in theirs:
            np.testing.assert_array_equal(theirs[name], values, err_msg=name)
        elif matrix in ("w2", "down_proj"):
            np.testing.assert_array_equal(theirs[f"{stack}down_proj"][int(expert)], values)
        else:
            half = theirs[f"{stack}gate_up_proj"][int(expert)].reshape(2, *values.shape)
            which = 0 if matrix in ("w1", "gate_proj") else 1
            np.testing.assert_array_equal(half[which], values, err_msg=name)
    assert seen == len(ours) - 2
