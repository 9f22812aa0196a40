"""What real merges measured is named and drawn, whatever the method measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge import api
from forge.checkpoints.checkpoint import open_checkpoint
from forge.recipes.reference import ModelReference
from forge.report.charts.selection import merge_panels
from forge.report.merge_diagnostics import merge_diagnostics
from forge.runtime.subject import describe
from tests.factory import tiny_checkpoint

RECIPES = {
    "slerp": "base_model: a\nmodels: [{model: a}, {model: b}]\nparameters: {t: 0.5}\n",
    "linear": "models: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n",
    "ties": "base_model: a\nmodels: [{model: b}, {model: c}]\n"
    "parameters: {weight: 0.5, density: 0.5}\n",
    "karcher": "models: [{model: a}, {model: b}, {model: c}]\n",
    "model_stock": "base_model: a\nmodels: [{model: b}, {model: c}]\n",
}
INPUTS = {
    "slerp": ("a", "b"),
    "ties": ("b", "c"),
    "karcher": ("a", "b", "c"),
    "model_stock": ("b", "c"),
}


@pytest.mark.parametrize("method", RECIPES)
def test_inputs_are_named_and_drawn(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, tune in (("a", None), ("b", 1), ("c", 2)):
        tiny_checkpoint(tmp_path / name, tune=tune)
    recipe = tmp_path / "merge.yaml"
    recipe.write_text(f"merge_method: {method}\ndtype: bfloat16\n{RECIPES[method]}")
    api.merge(str(recipe), tmp_path / "merged")
    checkpoint = open_checkpoint(ModelReference.parse("merged"))
    record = describe(checkpoint)
    checkpoint.source.close()
    found = merge_diagnostics("merged", method, record.manifest)
    if method not in INPUTS:
        # A mean measures nothing of how models meet.
        assert found is None
        return
    assert found is not None
    assert found.inputs == INPUTS[method]
    panels = merge_panels(found)
    norms = next(panel for panel in panels if panel.title == "Norm of each input")
    assert [line.label for line in norms.series] == list(INPUTS[method])
    assert all(value is not None and value > 0 for line in norms.series for value in line.values)
