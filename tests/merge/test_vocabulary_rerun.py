"""A merge is not done, and not resumed, when a parent's tokenizer has changed since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forge.core.errors import ForgeError
from forge.merge.catalog import METHODS
from forge.merge.run import prepare, run_merge
from forge.recipes.merge_recipe import MergeRecipe, parse_merge_recipe
from tests.factory import read_values, tiny_checkpoint
from tests.merge.test_vocabulary import EMBEDDING, add_tokens


def recipe_of(base: Path, other: Path, **keys: object) -> MergeRecipe:
    value = {
        "merge_method": "task_arithmetic", "base_model": str(base), "dtype": "bfloat16",
        "models": [{"model": str(other), "parameters": {"weight": 1.0}}], **keys,
    }  # fmt: skip
    return parse_merge_recipe(value, METHODS)


def test_a_repaired_template_is_not_already_there(tmp_path: Path) -> None:
    base, other = tiny_checkpoint(tmp_path / "base"), tiny_checkpoint(tmp_path / "other", tune=1)
    recipe, out = recipe_of(base, other), tmp_path / "out"
    run_merge(recipe, out, threads=1)
    assert run_merge(recipe, out, threads=1).resumed_tensors == 21
    (base / "chat_template.jinja").write_text("{{ repaired }}")
    with pytest.raises(ForgeError, match="exists"):
        run_merge(recipe, out, threads=1)
    run_merge(recipe, out, threads=1, overwrite=True)
    assert (out / "chat_template.jinja").read_text() == "{{ repaired }}"
    assert run_merge(recipe, out, threads=1).resumed_tensors == 21


def test_rows_of_another_vocabulary_are_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are the same files, but the words of one parent are in another order."""
    base = tiny_checkpoint(tmp_path / "base")
    other = tiny_checkpoint(tmp_path / "other", tune=1)
    recipe, out = recipe_of(base, other, tokenizer={"source": "base"}), tmp_path / "out"

    def stop(*_: object) -> dict[str, bytes]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("forge.merge.run.sidecars_of", stop)
        with pytest.raises(KeyboardInterrupt):
            run_merge(recipe, out, threads=1)
    path = other / "tokenizer.json"
    document = json.loads(path.read_text())
    vocab = document["model"]["vocab"]
    vocab["pain"], vocab["fever"] = vocab["fever"], vocab["pain"]
    path.write_text(json.dumps(document))
    result = run_merge(recipe, out, threads=1)
    assert result.resumed_tensors == 0
    fresh = tmp_path / "fresh"
    run_merge(recipe, fresh, threads=1)
    assert (read_values(out)[EMBEDDING] == read_values(fresh)[EMBEDDING]).all()


def test_a_plan_of_equal_vocabularies_is_the_same_plan(tmp_path: Path) -> None:
    base, other = tiny_checkpoint(tmp_path / "base"), tiny_checkpoint(tmp_path / "other", tune=1)
    recipe = recipe_of(base, other, tokenizer={"source": "union"})
    plans = [prepare(recipe, None).vocabulary for _ in range(2)]
    add_tokens(other, ["<|x|>"])
    plans.append(prepare(recipe, None).vocabulary)
    digests = [plan.digest() for plan in plans if plan is not None]
    assert digests[0] == digests[1] != digests[2]
