"""Quantization recipes: what they mean, what options change, and what every mistake is told."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.core.errors import RecipeError
from forge.formats.catalog import FORMATS
from forge.quantize.catalog import QUANT_METHODS
from forge.recipes.document import read_document
from forge.recipes.quantize_recipe import (
    CalibrationRecipe,
    Choices,
    QuantizeRecipe,
    Variant,
    load_quantize_recipe,
    parse_quantize_recipe,
)
from forge.recipes.quantize_types import DEFAULT_SAMPLES, DEFAULT_TOKENS
from forge.recipes.reference import ModelReference

CHOICES = Choices.of(QUANT_METHODS, FORMATS)
AWQ = """\
model: org/med
method: awq
version: [gemm, gemv]
bits: 4
group_size: 64
calibration:
  source: jsonl
  path: notes.jsonl
  field: note
  samples: 16
  tokens: 256
keep: [mlp.down_proj]
seed: 7
"""


def load(
    folder: Path, text: str | None, options: Mapping[str, object] | None = None
) -> QuantizeRecipe:
    path = None
    if text is not None:
        path = folder / "recipe.yaml"
        path.write_text(text)
    return load_quantize_recipe(path, CHOICES, options=options)


def refusal(
    folder: Path, text: str | None, options: Mapping[str, object] | None = None
) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, options)
    return caught.value


def test_a_whole_recipe(tmp_path: Path) -> None:
    assert load(tmp_path, AWQ) == QuantizeRecipe(
        "awq",
        (Variant("awq-gemm", 4, 64), Variant("awq-gemv", 4, 64)),
        model=ModelReference("org/med"),
        calibration=CalibrationRecipe(
            "jsonl", path="notes.jsonl", field="note", samples=16, tokens=256, seed=7
        ),
        keep=("mlp.down_proj",),
        seed=7,
    )


def test_defaults_are_those_of_the_method() -> None:
    assert parse_quantize_recipe({"method": "awq"}, CHOICES) == QuantizeRecipe(
        "awq", (Variant("awq-gemm", 4, 128),), calibration=CalibrationRecipe()
    )
    assert parse_quantize_recipe({"method": "rtn"}, CHOICES) == QuantizeRecipe(
        "rtn", (Variant("awq-gemm", 4, 128),)
    )
    assert parse_quantize_recipe({"method": "bnb"}, CHOICES) == QuantizeRecipe(
        "bnb", (Variant("bnb-nf4", 4, 64),)
    )


@pytest.mark.parametrize(
    ("keys", "formats"),
    [
        ({"method": "bnb", "bits": 8}, ["bnb-int8"]),
        ({"method": "bnb", "bits": 4}, ["bnb-nf4"]),
        ({"method": "bnb", "type": "fp4,int8"}, ["bnb-fp4", "bnb-int8"]),
        ({"method": "awq", "version": "gemm, gemv_fast"}, ["awq-gemm", "awq-gemv_fast"]),
        (
            {"method": "awq", "version": "gemv", "format": "compressed-tensors"},
            ["awq-gemv", "compressed-tensors"],
        ),
        ({"method": "rtn", "format": ["gptq"], "bits": 8}, ["gptq"]),
    ],
)
def test_formats_by_their_three_names(keys: dict[str, object], formats: list[str]) -> None:
    recipe = parse_quantize_recipe(keys, CHOICES)
    assert [variant.format for variant in recipe.variants] == formats


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("self", CalibrationRecipe("self")),
        ("self:prompts.txt", CalibrationRecipe("self", path="prompts.txt")),
        ("a/b.TXT", CalibrationRecipe("text", path="a/b.TXT")),
        ("notes.jsonl", CalibrationRecipe("jsonl", path="notes.jsonl")),
        ("hub:org/notes@v2", CalibrationRecipe("hub", path="org/notes@v2")),
        ("out/tokens.npy", CalibrationRecipe("tokens", path="out/tokens.npy")),
        ({"samples": 3, "tokens": 100}, CalibrationRecipe("self", samples=3, tokens=100)),
        (
            {"prompts": ["A fever"], "chat_template": True},
            CalibrationRecipe(prompts=("A fever",), chat_template=True),
        ),
    ],
)  # fmt: skip
def test_calibration_short_and_long(value: object, expected: CalibrationRecipe) -> None:
    recipe = parse_quantize_recipe({"method": "awq", "calibration": value}, CHOICES)
    assert recipe.calibration == expected


def test_options_replace_keys_and_keep_the_others(tmp_path: Path) -> None:
    options = {
        "model": "other", "version": None, "format": "compressed-tensors", "group_size": 32,
        "calibration": "more.txt", "calibration_tokens": 512, "keep": "q_proj,k_proj",
        "clip": False,
    }  # fmt: skip
    recipe = load(tmp_path, AWQ, options)
    assert recipe.model == ModelReference("other")
    assert recipe.variants == (Variant("compressed-tensors", 4, 32),)
    assert recipe.calibration == CalibrationRecipe(
        "text", path="more.txt", samples=16, tokens=512, seed=7
    )
    assert (recipe.keep, recipe.clip, recipe.seed) == (("q_proj", "k_proj"), False, 7)


def test_sizes_of_the_command_line_complete_a_short_form(tmp_path: Path) -> None:
    text = "method: awq\ncalibration: notes.txt\n"
    recipe = load(tmp_path, text, {"calibration_samples": 5})
    assert recipe.calibration == CalibrationRecipe("text", path="notes.txt", samples=5)
    plain = load(tmp_path, "method: awq\n", {"calibration_samples": 5, "chat_template": True})
    assert plain.calibration == CalibrationRecipe(samples=5, chat_template=True)


SIZES = st.integers(16, 4096)
CALIBRATIONS = st.one_of(
    st.none(),
    st.fixed_dictionaries({"source": st.just("self"), "samples": SIZES, "tokens": SIZES}),
    st.fixed_dictionaries({"prompts": st.lists(st.text(min_size=1), max_size=3)}),
    st.fixed_dictionaries(
        {"source": st.just("hub"), "path": st.just("a/b"), "split": st.text(min_size=1)}
    ),
    st.just("tokens.npy"),
)
CODES = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["awq", "rtn"]),
        "format": st.lists(
            st.sampled_from(QUANT_METHODS["rtn"].formats), min_size=1, unique=True
        ),
        "group_size": st.sampled_from([32, 64, 128]),
        "keep": st.lists(st.sampled_from(["q_proj", "layers.0", "mlp"]), unique=True),
        "seed": st.integers(0, 2**64 - 1),
        "device": st.sampled_from(["cpu", "cuda", "cuda:3"]),
    }
)  # fmt: skip
BNB = st.fixed_dictionaries(
    {
        "method": st.just("bnb"),
        "type": st.lists(st.sampled_from(["nf4", "fp4"]), min_size=1, unique=True),
        "double_quant": st.booleans(),
        "max_shard_size": st.sampled_from(["5GB", "100 MiB"]),
    }
)
SWITCHES = st.fixed_dictionaries(
    {
        "search": st.sampled_from(["sketch", "gram", "module"]),
        "clip": st.booleans(),
        "duo_scaling": st.booleans(),
        "error_feedback": st.booleans(),
    }
)


@given(keys=st.one_of(CODES, BNB), calibration=CALIBRATIONS, switches=SWITCHES)
def test_a_resolved_recipe_reads_as_itself(
    keys: dict[str, object],
    calibration: object,
    switches: dict[str, object],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if keys["method"] == "awq":
        keys = {**keys, **switches, "calibration": calibration}
    recipe = parse_quantize_recipe(keys, CHOICES)
    assert parse_quantize_recipe(recipe.resolved(), CHOICES) == recipe
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    path.write_text(recipe.to_yaml(), encoding="utf-8")
    assert read_document(path).value == recipe.resolved()


# (recipe, text to replace, replacement, line, key, part of the message)
WRONG = {
    "unknown key": (AWQ, "group_size", "grop_size", 5, "grop_size", "mean 'group_size'"),
    "key of AutoAWQ": (AWQ, "group_size", "q_group_size", 5, "q_group_size", "'group_size'"),
    "key of the command": (AWQ, "seed", "threads", 13, "threads", "option of the command"),
    "key of transformers": (AWQ, "bits", "load_in_4bit", 4, "load_in_4bit", "'type: nf4'"),
    "no method": (AWQ, "method: awq\n", "", 1, "method", "one of awq, rtn, bnb"),
    "misspelt method": (AWQ, "method: awq", "method: akw", 2, "method", "mean 'awq'"),
    "misspelt version": (AWQ, "gemm", "gemmm", 3, "version", "mean 'gemm'"),
    "full name as version": (AWQ, "gemm", "awq-gemm", 3, "version", "Write gemm."),
    "type as version": (AWQ, "gemm", "nf4", 3, "version", "under 'format', as bnb-nf4"),
    "version twice": (AWQ, "gemv", "gemm", 3, "version", "awq-gemm is listed twice"),
    "format of another method": (
        AWQ, "version: [gemm, gemv]", "type: nf4", 3, "type", "holds codes of bnb, not of awq",
    ),
    "bits of no format": (AWQ, "bits: 4", "bits: 3", 4, "bits", "codes of 4 bits, not of 3"),
    "bits of another format": (
        AWQ, "bits: 4", "bits: 8", 4, "bits", "or choose compressed-tensors or gptq",
    ),
    "bits as text": (AWQ, "bits: 4", "bits: four", 4, "bits", "must be a whole number"),
    "group size of no format": (
        AWQ, "group_size: 64", "group_size: 48", 5, "group_size", "32, 64 or 128, not of 48",
    ),
    "double quantization of codes": (
        AWQ, "seed: 7", "double_quant: true", 13, "double_quant", "belongs to bnb, not to awq",
    ),
    "misspelt search": (AWQ, "seed: 7", "search: skecth", 13, "search", "mean 'sketch'"),
    "switch as a word": (AWQ, "seed: 7", "clip: 'no'", 13, "clip", "true or false"),
    "unknown source": (
        AWQ, "source: jsonl", "source: json", 7, "calibration.source", "mean 'jsonl'",
    ),
    "source without a file": (
        AWQ, "  path: notes.jsonl\n", "", 6, "calibration.path", "needs the file",
    ),
    "key of another source": (
        AWQ, "source: jsonl", "source: text", 9, "calibration.field", "jsonl and hub",
    ),
    "misspelt key of calibration": (
        AWQ, "samples", "sampels", 10, "calibration.sampels", "mean 'samples'",
    ),
    "too few tokens": (AWQ, "tokens: 256", "tokens: 8", 6, "calibration", "128 tokens, too few"),
    "no tokens": (AWQ, "tokens: 256", "tokens: 0", 11, "calibration.tokens", "at least 8"),
    "no calibration set": (
        "method: awq\ncalibration: notes.docx\n", "", "", 2, "calibration", "'hub:org/name'",
    ),
    "prompts twice": (
        "method: awq\ncalibration: {source: self, path: p.txt, prompts: [a]}\n", "", "",
        2, "calibration.prompts", "exclude each other",
    ),
    "unknown device": (AWQ, "seed: 7", "device: gpu", 13, "device", "'cpu', 'cuda'"),
    "seed too large": (AWQ, "seed: 7", f"seed: {2**64}", 13, "seed", "2^64 - 1"),
    "shard size": (AWQ, "seed: 7", "max_shard_size: big", 13, "max_shard_size", "'5GB'"),
    "model without a name": (AWQ, "org/med", "'@main'", 1, "model", "names no model"),
    "calibration without a use": (
        "method: rtn\ncalibration: self\n", "", "", 2, "calibration", "needs no calibration",
    ),
    "search without a use": (
        "method: bnb\nsearch: gram\n", "", "", 2, "search", "belongs to awq, not to bnb",
    ),
    "groups of bitsandbytes": (
        "method: bnb\ngroup_size: 64\n", "", "", 2, "group_size", "of bitsandbytes are fixed",
    ),
    "type that contradicts bits": (
        "method: bnb\ntype: nf4\nbits: 8\n", "", "", 3, "bits", "one of them says it all",
    ),
    "bits that bitsandbytes lacks": (
        "method: bnb\nbits: 3\n", "", "", 2, "bits", "4 or 8 bits, not of 3",
    ),
    "double quantization of rows": (
        "method: bnb\ntype: [nf4, int8]\ndouble_quant: true\n", "", "",
        3, "double_quant", "bnb-int8 in a run of its own",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_placed_and_explained(name: str, tmp_path: Path) -> None:
    text, old, new, line, key, words = WRONG[name]
    assert old in text
    error = refusal(tmp_path, text.replace(old, new, 1) if old else text)
    found = [item for item in error.problems if (item.line, item.key) == (line, key)]
    assert found, error
    assert words in found[0].message


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    text = AWQ.replace("gemm", "gem").replace("bits: 4", "bits: 5").replace("samples", "sampels")
    assert [item.line for item in refusal(tmp_path, text).problems] == [3, 4, 10]


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (None, {}, "--method: No method is named."),
        (None, {"method": "awq", "bits": 3}, "--bits: awq-gemm has codes of 4 bits"),
        (AWQ, {"group_size": 48}, "--group-size: awq-gemm has groups of"),
        (AWQ, {"calibration": "notes.docx"}, "--calibration: 'notes.docx' is no calibration set"),
        (AWQ, {"calibration_samples": 0}, "--calibration-samples: 0 must be"),
        (None, {"method": "awq", "calibration_samples": 1, "calibration_tokens": 16},
         "--calibration-samples: 1 × 16 are 16 tokens"),
        (None, {"method": "bnb", "type": "int8", "double_quant": True}, "--double-quant: bnb-int8"),
        (None, {"method": "awq", "calibration": "t.npy", "chat_template": True},
         "--chat-template: 'chat_template' does not go with 'tokens'"),
    ],
)  # fmt: skip
def test_a_mistake_of_the_command_line_names_the_option(
    text: str | None, options: dict[str, object], words: str, tmp_path: Path
) -> None:
    assert str(refusal(tmp_path, text, options)).startswith(words)


def test_an_option_hides_no_mistake_of_the_file(tmp_path: Path) -> None:
    error = refusal(tmp_path, AWQ.replace("bits: 4", "bits: 3"), {"group_size": 48})
    assert "recipe.yaml:4 bits:" in str(error)
    assert "--group-size:" in str(error)
    # What an option replaces is not judged.
    assert load(tmp_path, AWQ.replace("bits: 4", "bits: 3"), {"bits": 4}).variants[0].bits == 4


def test_the_sizes_by_default_are_enough() -> None:
    assert CalibrationRecipe().num_tokens == DEFAULT_SAMPLES * DEFAULT_TOKENS >= 4096
