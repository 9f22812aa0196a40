"""Recipes for mixtures of experts: what they mean, and a message for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.architectures.experts import EXPERT_FAMILIES
from forge.core.errors import Problem, RecipeError
from forge.recipes.moe_recipe import load_moe_recipe, parse_moe_recipe
from forge.recipes.moe_types import FAMILIES, ExpertEntry, MoeRecipe
from forge.recipes.reference import ModelReference
from tests.recipes.samples import DARE, problems

MOE = """\
base_model: org/base
gate_mode: hidden
dtype: bfloat16
experts:
  - source_model: org/med+org/adapter
    positive_prompts: [fever, cough]
    negative_prompts: [poems]
  - source_model: org/law@v2
    positive_prompts:
      - "a contract"
    residual_scale: 0.5
experts_per_token: 1
"""


def load(folder: Path, text: str) -> MoeRecipe:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return load_moe_recipe(path)


def faults(folder: Path, text: str) -> tuple[Problem, ...]:
    try:
        load(folder, text)
    except RecipeError as error:
        return error.problems
    return ()


def test_what_a_recipe_means(tmp_path: Path) -> None:
    recipe = load(tmp_path, MOE)
    assert recipe == MoeRecipe(
        ModelReference("org/base"),
        (
            ExpertEntry(
                ModelReference("org/med", None, ModelReference("org/adapter")),
                ("fever", "cough"),
                ("poems",),
            ),
            ExpertEntry(ModelReference("org/law", "v2"), ("a contract",), residual_scale=0.5),
        ),
        gate_mode="hidden",
        experts_per_token=1,
        dtype="bfloat16",
    )
    assert recipe.notices == ()
    assert [str(model) for model in recipe.references()] == [
        "org/base", "org/med+org/adapter", "org/law@v2",
    ]  # fmt: skip
    assert parse_moe_recipe(recipe.resolved()) == recipe
    assert load(tmp_path, recipe.to_yaml()) == recipe


def test_what_is_left_out_is_what_mergekit_takes(tmp_path: Path) -> None:
    text = MOE.replace("gate_mode: hidden\n", "").replace("experts_per_token: 1\n", "")
    recipe = load(tmp_path, text.replace("dtype: bfloat16\n", ""))
    assert (recipe.gate_mode, recipe.experts_per_token, recipe.dtype) == ("hidden", 2, None)
    assert recipe.shared_experts == ()


def test_prompts_without_an_effect_are_a_notice(tmp_path: Path) -> None:
    recipe = load(tmp_path, MOE.replace("hidden", "random"))
    assert recipe.notices == ("Prompts have no effect with gate_mode random.",)


# (text to replace, replacement, line, key, part of the message)
WRONG = {
    "unknown key": ("dtype:", "dtpye:", 3, "dtpye", "mean 'dtype'"),
    "unknown key of an expert": (
        "negative_prompts", "negativ_prompts", 7, "experts[0].negativ_prompts",
        "mean 'negative_prompts'",
    ),
    "a merge recipe's key": ("dtype:", "merge_method: ties\ndtype:", 3, "merge_method",
                             "'forge merge' reads those"),
    "noise": ("residual_scale: 0.5", "noise_scale: 0.5", 11, "experts[1].noise_scale",
              "forge adds no noise"),
    "unknown gate mode": ("mode: hidden", "mode: hiden", 2, "gate_mode", "Did you mean 'hidden'?"),
    "mergekit's other random": ("mode: hidden", "mode: uniform_random", 2, "gate_mode",
                                "Did you mean 'random'?"),
    "gate mode of a wrong type": ("mode: hidden", "mode: 3", 2, "gate_mode", "must be 'hidden'"),
    "no base": ("base_model: org/base\n", "", 1, "base_model", "names no base model"),
    "malformed base": ("org/base", "a@b@c", 1, "base_model", "more than one '@'"),
    "no model": ("  - source_model: org/law@v2\n    positive", "  - positive", 8,
                 "experts[1].source_model", "names no model"),
    "prompts missing": (
        '    positive_prompts:\n      - "a contract"\n', "", 8, "experts[1].positive_prompts",
        "gate_mode hidden needs prompts that this expert is good at",
    ),
    "prompts as text": ("[fever, cough]", "fever", 6, "experts[0].positive_prompts",
                        "must be a list of prompts"),
    "a prompt that is no text": ("[fever, cough]", "[fever, 3]", 6,
                                 "experts[0].positive_prompts[1]", "3 must be text"),
    "an empty prompt": ("[fever, cough]", "[fever, ' ']", 6, "experts[0].positive_prompts[1]",
                        "is empty"),
    "no prompts in the list": ("[poems]", "[]", 7, "experts[0].negative_prompts", "is empty"),
    "a scale that is no number": ("scale: 0.5", "scale: .nan", 11, "experts[1].residual_scale",
                                  "not finite"),
    "too many for a token": ("token: 1", "token: 3", 12, "experts_per_token",
                             "3 experts for each token are asked of 2"),
    "none for a token": ("token: 1", "token: 0", 12, "experts_per_token", "below 1"),
    "unknown family": ("dtype:", "architecture: mixtrel\ndtype:", 3, "architecture",
                       "mean 'mixtral'"),
    "dtype": ("bfloat16", "bf16", 3, "dtype", "mean 'bfloat16'"),
    "seed": ("dtype:", "seed: -1\ndtype:", 3, "seed", "0 to 2^64 - 1"),
    "an expert as text": ("  - source_model: org/law@v2\n    positive_prompts:\n"
                          '      - "a contract"\n    residual_scale: 0.5\n', "  - org/law\n", 8,
                          "experts[1]", "must be a mapping"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_says_what_and_where(tmp_path: Path, name: str) -> None:
    old, new, line, key, message = WRONG[name]
    assert old in MOE
    found = faults(tmp_path, MOE.replace(old, new, 1))
    assert [(p.line, p.key) for p in found] == [(line, key)], "\n".join(map(str, found))
    assert message in found[0].message


def test_every_family_has_a_row() -> None:
    assert [row.name for row in EXPERT_FAMILIES] == list(FAMILIES)


def test_one_expert_is_no_mixture(tmp_path: Path) -> None:
    text = MOE[: MOE.index("  - source_model: org/law")]
    (found,) = faults(tmp_path, text)
    assert (found.line, found.key) == (4, "experts")
    assert found.message == "A mixture needs at least 2 experts, but 1 is listed."


def test_no_experts(tmp_path: Path) -> None:
    (found,) = faults(tmp_path, "base_model: org/base\n")
    assert "lists no experts" in found.message


def test_everything_is_reported_at_once(tmp_path: Path) -> None:
    text = MOE.replace("hidden", "hiden").replace("token: 1", "token: 9").replace("[poems]", "[1]")
    assert [(p.line, p.key) for p in faults(tmp_path, text)] == [
        (2, "gate_mode"), (7, "experts[0].negative_prompts[0]"), (12, "experts_per_token"),
    ]  # fmt: skip


def test_each_verb_names_the_other(tmp_path: Path) -> None:
    found = problems(tmp_path, MOE)
    assert any("Recipes with experts are for 'forge moe'." in p.message for p in found)
    found = faults(tmp_path, DARE)
    assert any("'forge merge' reads those" in p.message for p in found)


@pytest.mark.slow
def test_mergekit_reads_the_same() -> None:
    config = pytest.importorskip("mergekit.moe.config")
    import yaml

    path = Path(__file__).resolve().parents[2] / "merge_configs" / "biomistral_moe.yaml"
    theirs = config.MoEMergeConfig.model_validate(yaml.safe_load(path.read_text()))
    ours = load_moe_recipe(path)
    assert str(theirs.base_model) == str(ours.base_model)
    assert theirs.gate_mode == ours.gate_mode
    assert theirs.experts_per_token == ours.experts_per_token
    assert [(str(e.source_model), e.positive_prompts) for e in theirs.experts] == [
        (str(e.source_model), list(e.positive_prompts)) for e in ours.experts
    ]
