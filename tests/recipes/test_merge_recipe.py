"""What a recipe means: values by level, slices, and the resolved form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.core.errors import IncompatibleError, RecipeError
from forge.merge.catalog import METHODS
from forge.recipes.document import dump_yaml
from forge.recipes.merge_recipe import (
    MergeRecipe,
    TokenEntry,
    TokenizerEntry,
    load_merge_recipe,
    parse_merge_recipe,
)
from forge.recipes.parameters import MethodRow, ParameterRow
from forge.recipes.reference import ModelReference
from forge.recipes.settings import layer_position
from tests.recipes.samples import DARE, SLERP, load, problems

BASE, MED = ModelReference("org/base"), ModelReference("org/med")
MLP, NORM = "model.layers.3.mlp.up_proj.weight", "model.norm.weight"


def test_the_published_dare_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, DARE)
    assert recipe.merge_method == "dare_ties"
    assert recipe.base_model == BASE
    assert [entry.model for entry in recipe.models] == [BASE, MED]
    assert (recipe.dtype, recipe.out_dtype, recipe.seed) == ("bfloat16", None, 0)

    def value(name: str, model: ModelReference | None) -> object:
        return recipe.value(name, tensor=MLP, position=0.3, model=model)

    assert value("weight", MED) == 0.5
    assert value("density", MED) == 0.5
    assert value("weight", BASE) is None
    assert value("density", BASE) == 1.0
    assert value("int8_mask", None) is True
    assert value("rescale", None) == "density"
    assert value("lambda", None) == 1.0
    assert value("normalize", None) is False


def test_the_published_slerp_recipe(tmp_path: Path) -> None:
    recipe = load(tmp_path, SLERP)

    def t(tensor: str, position: float) -> object:
        return recipe.value("t", tensor=tensor, position=position, slice_index=0)

    attention = "model.layers.8.self_attn.q_proj.weight"
    assert [t(attention, p) for p in (0, 0.25, 1)] == [0, 0.5, 1]
    assert [t(MLP, p) for p in (0, 0.25, 1)] == [1, 0.5, 0]
    assert t(MLP, layer_position(3, 32)) == pytest.approx(1 - 0.5 * (3 / 31) * 4)
    assert t(NORM, 0) == 0.5


LEVELS = """\
merge_method: ties
base_model: org/base
parameters:
  weight: [{filter: norm, value: 1}, {value: 2}]
slices:
  - sources:
      - {model: org/base, layer_range: [0, 2]}
      - model: org/med
        layer_range: [2, 4]
        parameters: {weight: {filter: mlp, value: 3}}
    parameters:
      weight: {filter: up_proj, value: 4}
      density: 0.25
  - sources:
      - {model: org/base, layer_range: [4, 5]}
      - {model: org/med, layer_range: [5, 6], parameters: {weight: [5, 7]}}
    parameters: {lambda: 0.5}
"""


@pytest.mark.parametrize(
    ("tensor", "index", "expected"),
    [
        ("layers.0.mlp.up_proj", 0, 3),  # the source
        ("layers.0.attn.up_proj", 0, 4),  # the slice
        ("layers.0.norm", 0, 1),  # the recipe, by its filter
        ("layers.0.attn", 0, 2),  # the recipe, for the rest
        ("layers.0.norm", 1, 6),  # a gradient of the source hides the recipe's filter
        ("layers.0.norm", None, 1),
    ],
)
def test_values_fall_through_from_source_to_slice_to_recipe(
    tmp_path: Path, tensor: str, index: int | None, expected: float
) -> None:
    recipe = load(tmp_path, LEVELS)
    found = recipe.value("weight", tensor=tensor, position=0.5, model=MED, slice_index=index)
    assert found == expected


def test_slices_have_global_parameters_of_their_own(tmp_path: Path) -> None:
    recipe = load(tmp_path, LEVELS)
    values = [
        (
            recipe.value("density", tensor=MLP, position=0, model=MED, slice_index=index),
            recipe.value("lambda", tensor=MLP, position=0, slice_index=index),
        )
        for index in (0, 1)
    ]
    assert values == [(0.25, 1.0), (1.0, 0.5)]


def test_a_parameter_that_the_method_lacks_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="dare_ties has no parameter 't'"):
        load(tmp_path, DARE).value("t", tensor=MLP, position=0)


def test_a_module_stands_between_slice_and_recipe(tmp_path: Path) -> None:
    text = """\
merge_method: linear
parameters: {weight: [{filter: mlp, value: 1}, {value: 2}]}
modules:
  default:
    parameters: {weight: {filter: norm, value: 3}}
    models:
      - model: a
      - {model: b, parameters: {weight: {filter: head, value: 4}}}
"""
    recipe = load(tmp_path, text)
    b = ModelReference("b")
    found = [
        recipe.value("weight", tensor=name, position=0, model=b)
        for name in ("head", "norm", "mlp", "x")
    ]
    assert found == [4, 3, 1, 2]
    assert parse_merge_recipe(recipe.resolved(), METHODS) == recipe
    (problem,) = problems(tmp_path, text.replace("value: 4", "value: x"))
    assert (problem.line, problem.key) == (
        8,
        "modules.default.models[1].parameters.weight.value",
    )


def test_rescale_takes_the_booleans_of_other_tools(tmp_path: Path) -> None:
    for written, expected in (("true", "density"), ("false", "none"), ("l1", "l1")):
        recipe = load(tmp_path, DARE.replace("int8_mask: true", f"rescale: {written}"))
        assert recipe.value("rescale", tensor=MLP, position=0) == expected


def test_whole_models_are_one_slice_with_the_base_added(tmp_path: Path) -> None:
    recipe = load(tmp_path, DARE.replace("  - model: org/base\n", "", 1))
    assert recipe.references() == (MED, BASE)
    (part,) = recipe.effective_slices({BASE: 4, MED: 4})
    assert [(s.model, s.start, s.end) for s in part.sources] == [(MED, 0, 4), (BASE, 0, 4)]
    assert (part.index, part.base_model, part.num_layers) == (0, BASE, 4)
    with pytest.raises(
        IncompatibleError, match=r"^org/med has 4 layers but org/base has 5: [^.]*\.$"
    ):
        recipe.effective_slices({BASE: 5, MED: 4})


def test_slices_stay_as_written(tmp_path: Path) -> None:
    text = LEVELS.replace("    parameters: {lambda: 0.5}", "    base_model: org/med")
    recipe = load(tmp_path, text)
    first, second = recipe.effective_slices({BASE: 6, MED: 6})
    assert [(s.model, s.start, s.end) for s in first.sources] == [(BASE, 0, 2), (MED, 2, 4)]
    assert (first.num_layers, second.num_layers) == (2, 1)
    assert (first.base_model, second.base_model, second.index) == (BASE, MED, 1)
    assert recipe.references() == (BASE, MED)


def test_a_range_beyond_the_model_names_its_line(tmp_path: Path) -> None:
    recipe = load(tmp_path, LEVELS)
    with pytest.raises(RecipeError) as caught:
        recipe.effective_slices({BASE: 4, MED: 5})
    found = [(problem.line, problem.key) for problem in caught.value.problems]
    assert found == [(15, "slices[1].sources[0]"), (16, "slices[1].sources[1]")]
    assert "Layers [4, 5] are asked of org/base, which has 4" in caught.value.problems[0].message


def test_a_base_with_parameters_is_noticed(tmp_path: Path) -> None:
    text = DARE.replace("model: org/base", "{model: org/base, parameters: {weight: 1}}", 1)
    (notice,) = load(tmp_path, text).notices
    assert notice.startswith("'weight' of org/base is not used")


def test_residual_weight_is_noticed(tmp_path: Path) -> None:
    text = SLERP.replace("  - sources:", "  - residual_weight: 0.1\n    sources:")
    (notice,) = load(tmp_path, text).notices
    assert "'residual_weight' has no effect" in notice


def test_tokenizers(tmp_path: Path) -> None:
    text = (
        DARE
        + """\
tokenizer:
  source: org/med@v1
  pad_to_multiple_of: 64
  tokens:
    <|a|>: {source: org/med, force: true}
    <|b|>: {source: {kind: zero}}
    <|c|>: {source: {kind: model_token, model: org/base, token: </s>}}
    <|d|>: {source: {kind: model_token, model: org/base, token_id: 7}}
    <|e|>: {}
"""
    )
    recipe = load(tmp_path, text)
    revised = ModelReference("org/med", "v1")
    assert recipe.tokenizer == TokenizerEntry(
        revised,
        (
            TokenEntry("<|a|>", "model", MED, force=True),
            TokenEntry("<|b|>", "zero"),
            TokenEntry("<|c|>", "model_token", BASE, "</s>"),
            TokenEntry("<|d|>", "model_token", BASE, None, 7),
            TokenEntry("<|e|>"),
        ),
        64,
    )
    assert recipe.tokenizer.references() == (revised, MED, BASE)
    assert parse_merge_recipe(recipe.resolved(), METHODS) == recipe
    short = load(tmp_path, DARE + "tokenizer_source: union\n")
    assert short.tokenizer == TokenizerEntry("union")
    assert load(tmp_path, DARE).tokenizer is None


@pytest.mark.parametrize("template", ["auto", "chatml", "{{ messages }}", "{% if x %}y{% endif %}"])
def test_chat_templates(tmp_path: Path, template: str) -> None:
    assert load(tmp_path, f"{DARE}chat_template: '{template}'\n").chat_template == template


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("1.5 GiB", 3 * 2**29), ("200kb", 200_000), ("64 B", 64), ("1TiB", 2**40)],
)
def test_shard_sizes(tmp_path: Path, text: str, size: int) -> None:
    assert load(tmp_path, f"{DARE}max_shard_size: {text}\n").max_shard_bytes == size


@pytest.mark.parametrize("text", ["0GB", "GB", "1.2.3GB", "-1GB", "5", "1e400GB", "infGB", "0.1B"])
def test_no_shard_sizes(tmp_path: Path, text: str) -> None:
    (problem,) = problems(tmp_path, f"{DARE}max_shard_size: '{text}'\n")
    assert problem.key == "max_shard_size"


def test_dtypes_drop_the_prefix_of_torch(tmp_path: Path) -> None:
    assert load(tmp_path, DARE.replace("bfloat16", "torch.float32")).dtype == "float32"


def test_the_resolved_form_says_everything(tmp_path: Path) -> None:
    resolved = load(tmp_path, DARE).resolved()
    assert resolved["parameters"] == {
        "density": 1.0,
        "rescale": "density",
        "normalize": False,
        "lambda": 1.0,
        "int8_mask": True,
    }
    assert resolved["seed"] == 0
    assert resolved["max_shard_size"] == "5GB"
    assert resolved["allow_nonfinite"] is False
    assert json.loads(json.dumps(resolved)) == resolved


def scalar(row: ParameterRow) -> st.SearchStrategy[object]:
    """Return values that a parameter permits."""
    if row.kind == "boolean":
        return st.booleans()
    if row.kind == "choice":
        return st.sampled_from(row.choices)
    low = -3.0 if row.low is None else row.low
    high = 3.0 if row.high is None else row.high
    if row.kind == "integer":
        return st.integers(math.ceil(low), math.floor(high))
    if row.name in ("density", "epsilon"):  # any two of them are right together
        low, high = (0.3, 0.7) if row.name == "density" else (0.0, 0.2)
    return st.floats(low, high)


def setting(row: ParameterRow) -> st.SearchStrategy[object]:
    one = scalar(row)
    value = one | st.lists(one, min_size=1, max_size=4) if row.gradient else one
    words = st.lists(st.sampled_from(["mlp", "norm", "q_proj"]), unique=True, max_size=2)
    behind = st.builds(
        lambda names, values, rest: [
            *({"filter": name, "value": item} for name, item in zip(names, values, strict=False)),
            {"value": rest},
        ],
        words,
        st.lists(value, min_size=2, max_size=2),
        value,
    )
    return value | behind


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, object]:
    """Draw a right recipe of any method."""
    method: MethodRow = draw(st.sampled_from([row for row in METHODS if not row.statistics]))
    count = max(method.min_models, 1)
    models: list[dict[str, object]] = [{"model": f"org/m{i}@r"} for i in range(count)]
    parameters: dict[str, object] = {}
    for row in method.parameters:
        if row.required or draw(st.booleans()):
            parameters[row.name] = draw(setting(row))
        if row.scope == "model" and draw(st.booleans()):
            models[0].setdefault("parameters", {})[row.name] = draw(setting(row))  # type: ignore[attr-defined]
    recipe: dict[str, object] = {"merge_method": method.name, "parameters": parameters}
    if method.base == "required":
        recipe["base_model"] = "org/base"
    recipe["seed"] = draw(st.integers(0, 2**64 - 1))
    if draw(st.booleans()):
        recipe["models"] = models
        return recipe
    sources = models + ([{"model": "org/base"}] if method.base == "required" else [])
    start = draw(st.integers(0, 5))
    recipe["slices"] = [
        {"sources": [{**source, "layer_range": [start, start + 3]} for source in sources]}
        for _ in range(draw(st.integers(1, 2)))
    ]
    return recipe


@settings(max_examples=60, deadline=None)
@given(recipes(), st.sampled_from([MLP, NORM, "q_proj"]), st.floats(0, 1))
def test_the_resolved_form_and_its_yaml_mean_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    value: dict[str, object],
    tensor: str,
    position: float,
) -> None:
    recipe = parse_merge_recipe(value, METHODS)
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    again: list[MergeRecipe] = [parse_merge_recipe(recipe.resolved(), METHODS)]
    for text in (recipe.to_yaml(), dump_yaml(value)):
        path.write_text(text)
        again.append(load_merge_recipe(path, METHODS))
    for copy in again:
        assert copy == recipe
        for row in recipe.method.parameters:
            for model in (None, *recipe.references()):
                found = [
                    one.value(
                        row.name, tensor=tensor, position=position, model=model, slice_index=0
                    )
                    for one in (recipe, copy)
                ]
                assert found[0] == found[1]
                assert found[0] is not None or row.required or row.default is None
