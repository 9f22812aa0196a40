"""Every mistake gets a message that says where it is and what to do, and hides no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes.samples import DARE, SLERP, load, problems

LINEAR = "merge_method: linear\nmodels:\n  - model: a\n  - model: b\nparameters: {weight: 1}\n"
STACK = """\
merge_method: passthrough
slices:
  - sources:
      - {model: a, layer_range: [0, 4]}
  - sources:
      - {model: b, layer_range: [2, 6]}
"""

# (recipe, text to replace, replacement, line, key, part of the message)
WRONG = {
    "unknown key at the top": (DARE, "dtype:", "dtpye:", 11, "dtpye", "mean 'dtype'"),
    "parameter at the top": (DARE, "dtype:", "density: 1\ndtype:", 11, "density", "'parameters'"),
    "habit of another tool": (DARE, "dtype", "torch_dtype", 11, "torch_dtype", "mean 'dtype'"),
    "unknown key in a model": (
        DARE,
        "    parameters:",
        "    params:",
        4,
        "models[1].params",
        "mean 'parameters'",
    ),
    "unknown key in a slice": (
        SLERP,
        "  - sources:",
        "  - layers: 3\n    sources:",
        2,
        "slices[0].layers",
        "Known here: sources, merge_method",
    ),
    "unknown method of a slice": (
        SLERP,
        "  - sources:",
        "  - merge_method: sler\n    sources:",
        2,
        "slices[0].merge_method",
        "mean 'slerp'",
    ),
    "method of a slice without its parameter": (
        STACK,
        "  - sources:\n      - {model: b, layer_range: [2, 6]}",
        "  - merge_method: slerp\n    base_model: b\n    sources:\n"
        "      - {model: b, layer_range: [2, 6]}\n      - {model: a, layer_range: [2, 6]}",
        5,
        "slices[1].parameters.t",
        "Add it to this slice's 'parameters'",
    ),
    "method of a slice without a base": (
        STACK,
        "  - sources:\n      - {model: b, layer_range: [2, 6]}",
        "  - merge_method: slerp\n    parameters: {t: 0.5}\n    sources:\n"
        "      - {model: b, layer_range: [2, 6]}\n      - {model: a, layer_range: [2, 6]}",
        5,
        "base_model",
        "slerp needs a base model",
    ),
    "parameter of the recipe's method in a slice of another": (
        STACK,
        "  - sources:\n      - {model: b, layer_range: [2, 6]}",
        "  - merge_method: linear\n    parameters: {weight: 1, scale: 2}\n    sources:\n"
        "      - {model: b, layer_range: [2, 6]}",
        6,
        "slices[1].parameters.scale",
        "linear has no such parameter; it takes weight, normalize. 'scale' is for passthrough.",
    ),
    "unknown key in a source": (
        SLERP,
        "        layer_range: [0, 32]\n      - model: org/med",
        "        layer_range: [0, 32]\n        layers: 3\n      - model: org/med",
        5,
        "slices[0].sources[0].layers",
        "mean 'layer_range'",
    ),
    "unknown key beside a filter": (
        SLERP,
        "- filter: mlp",
        "- filtre: mlp",
        13,
        "parameters.t[1].filtre",
        "mean 'filter'",
    ),
    "unknown method": (DARE, "dare_ties", "dare_tise", 7, "merge_method", "mean 'dare_ties'"),
    "no method": (DARE, "merge_method: dare_ties\n", "", 1, "merge_method", "names no method"),
    "method of a wrong type": (DARE, "dare_ties", "5", 7, "merge_method", "must be the name"),
    "misspelt parameter": (
        DARE,
        "density:",
        "desnity:",
        5,
        "models[1].parameters.desnity",
        "Did you mean 'density'?",
    ),
    "parameter of another method": (
        DARE,
        "int8_mask: true",
        "t: 0.5",
        10,
        "parameters.t",
        "dare_ties has no such parameter; it takes weight, density, rescale, normalize, lambda, "
        "int8_mask. 't' is for slerp, nearswap.",
    ),
    "global parameter in a model": (
        DARE,
        "      weight: 0.5",
        "      weight: 0.5\n      lambda: 1",
        7,
        "models[1].parameters.lambda",
        "Move it to the top-level",
    ),
    "density above": (
        DARE,
        "density: 0.5",
        "density: 1.4",
        5,
        "models[1].parameters.density",
        "1.4 is outside [0, 1]. Density is the fraction of the task vector kept; try 0.5.",
    ),
    "density below": (
        DARE,
        "density: 0.5",
        "density: -1",
        5,
        "models[1].parameters.density",
        "-1 is outside [0, 1]",
    ),
    "density 7 within a gradient": (
        DARE,
        "density: 0.5",
        "density: [0.5,\n        7]",
        6,
        "models[1].parameters.density[1]",
        "7 is outside [0, 1]",
    ),
    "t behind a filter": (
        SLERP,
        "- value: 0.5",
        "- value: 1.5",
        15,
        "parameters.t[2].value",
        "1.5 is outside [0, 1]",
    ),
    "below the only bound": (
        LINEAR.replace("linear", "multislerp"),
        "{weight: 1}",
        "{weight: 1, eps: -1}",
        5,
        "parameters.eps",
        "-1 is below 0. eps: added to each norm, and the norm below which directions cancel.",
    ),
    "keep probability above 1": (
        DARE.replace("dare_ties", "della"),
        "density: 0.5",
        "density: 0.9",
        5,
        "models[1].parameters.density",
        "density 0.9 ± epsilon 0.15 of org/med leaves (0, 1)",
    ),
    "keep probability below 0 at the last layer, behind a filter": (
        DARE.replace("dare_ties", "della").replace("int8_mask: true", "epsilon: [0, 0.1, 0.3]"),
        "density: 0.5",
        "density:\n        - {filter: mlp, value: [0.5, 0.2]}\n        - value: 0.6",
        6,
        "models[1].parameters.density[0]",
        "density 0.2 ± epsilon 0.3",
    ),
    "boolean for a number": (
        DARE,
        "density: 0.5",
        "density: yes",
        5,
        "models[1].parameters.density",
        "true is a boolean, but 'density' is a number",
    ),
    "text for a number": (
        DARE,
        "density: 0.5",
        "density: '0.5'",
        5,
        "models[1].parameters.density",
        "'0.5' is text, but 'density' is a number. Remove the quotes.",
    ),
    "word for a number": (
        DARE,
        "density: 0.5",
        "density: half",
        5,
        "models[1].parameters.density",
        "'half' is text, but 'density' is a number. Write a number.",
    ),
    "NaN": (DARE, "weight: 0.5", "weight: .nan", 6, "models[1].parameters.weight", "not finite"),
    "infinity": (DARE, "weight: 0.5", "weight: 1e999", 6, "models[1].parameters.weight", "finite"),
    "nothing for a number": (
        DARE,
        "weight: 0.5",
        "weight:",
        6,
        "models[1].parameters.weight",
        "There is no value",
    ),
    "number for a boolean": (
        DARE,
        "int8_mask: true",
        "int8_mask: 1",
        10,
        "parameters.int8_mask",
        "1 is not a boolean. Write true or false.",
    ),
    "unknown choice": (
        DARE,
        "int8_mask: true",
        "rescale: densty",
        10,
        "parameters.rescale",
        "'densty' is none of density, l1, none. Did you mean 'density'?",
    ),
    "broken number of iterations": (
        LINEAR.replace("linear", "karcher"),
        "{weight: 1}",
        "{max_iter: 2.5}",
        5,
        "parameters.max_iter",
        "2.5 is not a whole number",
    ),
    "gradient where none is taken": (
        DARE,
        "int8_mask: true",
        "normalize: [true, false]",
        10,
        "parameters.normalize",
        "takes one value, not a list over the layers",
    ),
    "gradient behind a filter where none is taken": (
        DARE,
        "int8_mask: true",
        "normalize: {filter: mlp, value: [true]}",
        10,
        "parameters.normalize.value",
        "takes one value",
    ),
    "empty gradient": (
        DARE,
        "density: 0.5",
        "density: []",
        5,
        "models[1].parameters.density",
        "This list is empty",
    ),
    "list in a gradient": (
        DARE,
        "density: 0.5",
        "density: [0.5, [1]]",
        5,
        "models[1].parameters.density[1]",
        "A list stands where 'density' needs a number",
    ),
    "filter without value": (
        SLERP,
        "      value: [1, 0.5, 0.7, 0.3, 0]\n",
        "",
        13,
        "parameters.t[1].value",
        "has no 'value'",
    ),
    "filter in a filter": (
        SLERP,
        "value: 0.5",
        "value: {filter: x, value: 1}",
        15,
        "parameters.t[2].value",
        "A filter stands inside a filter",
    ),
    "bare value among filters": (
        SLERP,
        "- value: 0.5",
        "- 0.5",
        15,
        "parameters.t[2]",
        "Write it as '- value: 0.5'",
    ),
    "value behind a value for all": (
        SLERP,
        "- filter: mlp",
        "- filter: '*'",
        15,
        "parameters.t[2]",
        "never reached",
    ),
    "filter behind a wider one": (
        SLERP,
        "- filter: mlp",
        "- filter: self_attn.q_proj",
        13,
        "parameters.t[1]",
        "never reached",
    ),
    "filter that is a number": (
        SLERP,
        "- filter: mlp",
        "- filter: 3",
        13,
        "parameters.t[1].filter",
        "must be text that occurs",
    ),
    "required for each model": (
        DARE,
        "      weight: 0.5\n",
        "",
        4,
        "models[1].parameters.weight",
        "dare_ties needs it (weight: mixing coefficient of this model)",
    ),
    "required for the merge": (
        SLERP[: SLERP.index("parameters")],
        "x",
        "x",
        7,
        "parameters.t",
        "slerp needs it (t: 0 is the base model, 1 the other model)",
    ),
    "base missing": (
        DARE,
        "base_model: org/base\n",
        "",
        7,
        "base_model",
        "dare_ties needs a base model",
    ),
    "base malformed": (DARE, "base_model: org/base", "base_model: a@b@c", 8, "base_model", "'@'"),
    "base missing among the sources": (
        SLERP,
        "base_model: org/base",
        "base_model: org/other",
        2,
        "slices[0].sources",
        "The base model org/other is not among these sources, and slerp needs",
    ),
    "base not among the sources": (
        SLERP.replace("slerp", "ties").replace("  t:", "  weight: 1\n  density:"),
        "base_model: org/base",
        "base_model: org/other",
        2,
        "slices[0].sources",
        "The base model org/other is not among these sources",
    ),
    "too few models": (
        DARE.replace("dare_ties", "model_stock").replace("  int8_mask: true", "  {}"),
        "    parameters:\n      density: 0.5\n      weight: 0.5\n",
        "",
        1,
        "models",
        "model_stock takes at least 2 models beside the base model, but 1 is listed",
    ),
    "too many models": (
        LINEAR.replace("linear", "passthrough"),
        "parameters: {weight: 1}",
        "",
        2,
        "models",
        "passthrough takes exactly 1 model, but 2 are listed.",
    ),
    "base of nuslerp is no input": (
        LINEAR.replace("linear", "nuslerp"),
        "parameters",
        "base_model: a\nparameters",
        2,
        "models",
        "exactly 2 models beside the base model, but 1 is listed",
    ),
    "model listed twice": (
        LINEAR,
        "model: b",
        "model: a",
        4,
        "models[1].model",
        "a is listed already on line 3",
    ),
    "model written in two ways": (
        LINEAR,
        "model: b",
        "model: ./a/",
        4,
        "models[1].model",
        "./a/ is the same as a",
    ),
    "model twice in a slice": (
        SLERP,
        "model: org/med",
        "model: org/base",
        5,
        "slices[0].sources[1].model",
        "listed already on line 3",
    ),
    "model without a name": (LINEAR, "model: b", "parameters: {}", 4, "models[1].model", "Add"),
    "model of a wrong type": (LINEAR, "model: b", "model: 7", 4, "models[1].model", "in quotes"),
    "model as bare text": (LINEAR, "- model: b", "- b", 4, "models[1]", "must be a mapping"),
    "model as a mapping": (
        LINEAR,
        "model: b",
        "model: {path: b}",
        4,
        "models[1].model",
        "A mapping must be a model, such as 'org/name'",
    ),
    "models as a mapping": (
        LINEAR,
        "models:\n  - model: a\n  - model: b\n",
        "models: {a: b}\n",
        2,
        "models",
        "must be a list",
    ),
    "no models": (DARE, DARE[: DARE.index("merge")], "", 1, None, "lists no models"),
    "models and slices": (
        STACK,
        "slices:",
        "models: [{model: a}]\nslices:",
        3,
        "slices",
        "exclude each other",
    ),
    "range reversed": (
        STACK,
        "[2, 6]",
        "[6, 2]",
        6,
        "slices[1].sources[0].layer_range",
        "[6, 2] runs backwards. Write [2, 6].",
    ),
    "range negative": (
        STACK,
        "[0, 4]",
        "[-1, 4]",
        4,
        "slices[0].sources[0].layer_range",
        "counts from below 0",
    ),
    "range empty": (
        STACK,
        "[0, 4]",
        "[4, 4]",
        4,
        "slices[0].sources[0].layer_range",
        "holds no layer",
    ),
    "range of three": (
        STACK,
        "[0, 4]",
        "[0, 4, 5]",
        4,
        "slices[0].sources[0].layer_range",
        "two whole numbers",
    ),
    "range of fractions": (
        STACK,
        "[0, 4]",
        "[0, 4.5]",
        4,
        "slices[0].sources[0].layer_range",
        "two whole numbers",
    ),
    "range missing": (
        STACK,
        ", layer_range: [0, 4]",
        "",
        4,
        "slices[0].sources[0].layer_range",
        "has no layer_range",
    ),
    "lengths differ": (
        SLERP,
        "model: org/med\n        layer_range: [0, 32]",
        "model: org/med\n        layer_range: [0, 31]",
        6,
        "slices[0].sources[1].layer_range",
        "[0, 31] has 31 layers, but the first source of this slice has 32",
    ),
    "no slices": (STACK[: STACK.index("  - ")], "slices:", "slices: []", 2, "slices", "empty"),
    "no sources": (
        STACK,
        "  - sources:\n      - {model: b, layer_range: [2, 6]}",
        "  - sources: []",
        5,
        "slices[1].sources",
        "has no sources",
    ),
    "other modules": (
        "merge_method: passthrough\nmodules:\n  vision: {models: [{model: a}]}\n",
        "x",
        "x",
        2,
        "modules",
        "the recipe has 'vision'",
    ),
    "modules beside models": (
        LINEAR,
        "parameters",
        "modules: {default: {models: [{model: a}]}}\nparameters",
        5,
        "modules",
        "'modules' excludes",
    ),
    "dtype of another vocabulary": (DARE, "bfloat16", "bf16", 11, "dtype", "mean 'bfloat16'"),
    "dtype misspelt": (DARE, "bfloat16", "blfoat16", 11, "dtype", "mean 'bfloat16'"),
    "dtype that cannot be written": (DARE, "bfloat16", "int8", 11, "dtype", "written as int8"),
    "out_dtype": (DARE, "dtype:", "out_dtype: f\ndtype:", 11, "out_dtype", "no element type"),
    "seed below 0": (DARE, "dtype:", "seed: -1\ndtype:", 11, "seed", "0 to 2^64 - 1"),
    "seed too large": (DARE, "dtype:", f"seed: {2**64}\ndtype:", 11, "seed", "0 to 2^64 - 1"),
    "seed true": (DARE, "dtype:", "seed: true\ndtype:", 11, "seed", "0 to 2^64 - 1"),
    "shard size": (DARE, "dtype:", "max_shard_size: 5 apples\ndtype:", 11, "max_shard_size", "5GB"),
    "shard size number": (
        DARE,
        "dtype:",
        "max_shard_size: 5\ndtype:",
        11,
        "max_shard_size",
        "'5GB'",
    ),
    "allow_nonfinite": (
        DARE,
        "dtype:",
        "allow_nonfinite: 1\ndtype:",
        11,
        "allow_nonfinite",
        "false",
    ),
    "chat template name": (
        DARE,
        "dtype:",
        "chat_template: chatlm\ndtype:",
        11,
        "chat_template",
        "Did you mean 'chatml'?",
    ),
    "chat template unclosed": (
        DARE,
        "dtype:",
        "chat_template: '{% for m in messages'\ndtype:",
        11,
        "chat_template",
        "never closes",
    ),
    "both tokenizer keys": (
        DARE,
        "dtype:",
        "tokenizer: {source: base}\ntokenizer_source: base\ndtype:",
        12,
        "tokenizer_source",
        "Keep 'tokenizer' alone",
    ),
    "tokenizer key": (
        DARE,
        "dtype:",
        "tokenizer: {sorce: base}\ndtype:",
        11,
        "tokenizer.sorce",
        "mean 'source'",
    ),
    "padding": (
        DARE,
        "dtype:",
        "tokenizer: {pad_to_multiple_of: 0}\ndtype:",
        11,
        "tokenizer.pad_to_multiple_of",
        "above 0",
    ),
    "token of a stranger": (
        DARE,
        "dtype:",
        "tokenizer:\n  tokens:\n    <x>: {source: org/else}\ndtype:",
        13,
        "tokenizer.tokens.<x>.source",
        "org/else is not merged by this recipe",
    ),
    "token without the other token": (
        DARE,
        "dtype:",
        "tokenizer: {tokens: {x: {source: {kind: model_token, model: org/med}}}}\ndtype:",
        11,
        "tokenizer.tokens.x.source",
        "either 'token' or 'token_id'",
    ),
    "token of no model": (
        DARE,
        "dtype:",
        "tokenizer: {tokens: {x: {source: {kind: model_token, model: null, token: y}}}}\ndtype:",
        11,
        "tokenizer.tokens.x.source",
        "has no 'model'",
    ),
    "token of an unknown kind": (
        DARE,
        "dtype:",
        "tokenizer: {tokens: {x: {source: {kind: none, model: org/med, token: y}}}}\ndtype:",
        11,
        "tokenizer.tokens.x.source.kind",
        "'model_token' or 'zero'",
    ),
    "zero with more": (
        DARE,
        "dtype:",
        "tokenizer: {tokens: {x: {source: {kind: zero, token: y}}}}\ndtype:",
        11,
        "tokenizer.tokens.x.source",
        "Keep 'kind: zero' alone",
    ),
    "key twice": (DARE, "dtype:", "merge_method: ties\ndtype:", 11, "merge_method", "line 7"),
    "parameters of a wrong type": (
        DARE,
        "parameters:\n  int8_mask: true",
        "parameters: 5",
        9,
        "parameters",
        "5 must be a mapping",
    ),
    "a list instead of a recipe": ("- a\n", "a", "a", 1, None, "must be a mapping"),
}


@pytest.mark.parametrize("name", WRONG)
def test_says_what_and_where(tmp_path: Path, name: str) -> None:
    text, old, new, line, key, message = WRONG[name]
    assert old == new or old in text, "the sample does not hold what is to be replaced"
    found = problems(tmp_path, text.replace(old, new, 1))
    assert [(p.line, p.key) for p in found] == [(line, key)], "\n".join(map(str, found))
    assert message in found[0].message
    assert found[0].file == str(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("text", [DARE, SLERP, LINEAR, STACK])
def test_the_samples_themselves_are_right(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text).notices == ()


def test_everything_is_reported_at_once_in_the_order_of_the_lines(tmp_path: Path) -> None:
    text = """\
models:
  - model: org/base
  - model: org/med
    paramters: {}
    parameters:
      density: 7
      wieght: 1
  - model: org/chat
    parameters: {density: [], weight: "1"}
  - model: org/chat
    parameters: {weight: .inf}
merge_method: tis
base_model: org/base
parameters: {t: 1, normalize: 2}
dtype: bf16
seed: -3
dtype: float32
"""
    found = [(problem.line, problem.key) for problem in problems(tmp_path, text)]
    assert found == [
        (4, "models[1].paramters"),
        (6, "models[1].parameters.density"),
        (7, "models[1].parameters.wieght"),
        (9, "models[2].parameters.density"),
        (9, "models[2].parameters.weight"),
        (10, "models[3].model"),
        (11, "models[3].parameters.weight"),
        (12, "merge_method"),
        (14, "parameters.t"),
        (14, "parameters.normalize"),
        (15, "dtype"),
        (16, "seed"),
        (17, "dtype"),
    ]


def test_a_method_beyond_guessing_leaves_names_to_judge(tmp_path: Path) -> None:
    text = DARE.replace("dare_ties", "frobnicate").replace("density", "desnity")
    found = problems(tmp_path, text)
    assert [problem.key for problem in found] == ["models[1].parameters.desnity", "merge_method"]
    assert "Known: linear, slerp" in found[1].message


def test_linear_wants_a_weight_for_a_base_that_is_not_listed(tmp_path: Path) -> None:
    text = """\
merge_method: linear
base_model: c
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: 1}}
"""
    (problem,) = problems(tmp_path, text)
    assert (problem.line, problem.key) == (2, "base_model")
    assert "List c among 'models' with one, or remove 'base_model'" in problem.message


def test_the_printed_line(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, DARE.replace("density: 0.5", "density: 1.4"))
    assert str(problem) == (
        f"{tmp_path}/recipe.yaml:5 models[1].parameters.density: 1.4 is outside [0, 1]. "
        "Density is the fraction of the task vector kept; try 0.5."
    )


@pytest.mark.parametrize("density", ["0", "1", "0.5", "[0.4, 0.6]", "0.849"])
def test_keep_probabilities_that_are_right(tmp_path: Path, density: str) -> None:
    text = DARE.replace("dare_ties", "della").replace("density: 0.5", f"density: {density}")
    assert problems(tmp_path, text) == ()
