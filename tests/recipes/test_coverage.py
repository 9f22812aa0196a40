"""Filters against the tensors that there are."""

from __future__ import annotations

from pathlib import Path

from forge.recipes.coverage import dead_filters, missing_values
from tests.recipes.samples import DARE, SLERP, load

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


def test_filters_that_match_are_fine(tmp_path: Path) -> None:
    recipe = load(tmp_path, SLERP)
    assert dead_filters(recipe, NAMES) == []
    assert missing_values(recipe, NAMES) == []


def test_a_dead_filter_names_its_line_and_what_comes_near(tmp_path: Path) -> None:
    recipe = load(tmp_path, SLERP.replace("filter: self_attn", "filter: self_atn"))
    (problem,) = dead_filters(recipe, NAMES)
    assert (problem.line, problem.key) == (11, "parameters.t[0]")
    assert "'self_atn' matches none of the 5 tensors. Did you mean 'self_attn'?" in problem.message
    assert problem.file == str(tmp_path / "recipe.yaml")


def test_dead_filters_of_models_and_slices_are_found(tmp_path: Path) -> None:
    text = DARE.replace("density: 0.5", "density: {filter: zzz, value: 1}")
    assert [p.key for p in dead_filters(load(tmp_path, text), NAMES)] == [
        "models[1].parameters.density"
    ]
    text = SLERP.replace(
        "merge_method", "    parameters: {t: {filter: zzz, value: 1}}\nmerge_method"
    )
    assert [(p.line, p.key) for p in dead_filters(load(tmp_path, text), NAMES)] == [
        (7, "slices[0].parameters.t")
    ]


def test_filters_are_matched_as_text_with_their_case(tmp_path: Path) -> None:
    recipe = load(tmp_path, SLERP.replace("filter: mlp", "filter: MLP"))
    assert [problem.key for problem in dead_filters(recipe, NAMES)] == ["parameters.t[1]"]


def test_a_required_value_behind_filters_only(tmp_path: Path) -> None:
    text = DARE.replace("weight: 0.5", "weight: {filter: mlp, value: 1}")
    (problem,) = missing_values(load(tmp_path, text), NAMES)
    assert (problem.line, problem.key) == (6, "models[1].parameters.weight")
    assert "No filter of 'weight' matches 'model.embed_tokens.weight'" in problem.message
    text = SLERP.replace("    - value: 0.5\n", "")
    (problem,) = missing_values(load(tmp_path, text), NAMES)
    assert (problem.line, problem.key) == (13, "parameters.t[1]")
    assert "End the list with a '- value: ...'" in problem.message


def test_filters_that_cover_all_tensors_need_no_rest(tmp_path: Path) -> None:
    text = DARE.replace("weight: 0.5", "weight: [{filter: weight, value: 1}]")
    assert missing_values(load(tmp_path, text), NAMES) == []
