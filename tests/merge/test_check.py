"""Every finding of a check, provoked once; nothing is found where nothing is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.checkpoints.checkpoint import open_checkpoint
from forge.core.errors import CheckpointError, ForgeError
from forge.merge.catalog import METHODS
from forge.merge.check.preflight import CheckReport, Finding, check_merge
from forge.recipes.merge_recipe import MergeRecipe, parse_merge_recipe
from forge.recipes.settings import Setting
from tests.factory import read_values, tiny_checkpoint, tiny_config, to_bytes, write_safetensors

Values = dict[str, tuple[str, Sequence[int], bytes]]


def task(base: Path, *others: Path, **keys: object) -> dict[str, object]:
    """Return a recipe that adds whole models to a base."""
    models = [{"model": str(other), "parameters": {"weight": 0.5}} for other in others]
    return {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": models,
        "dtype": "bfloat16",
        **keys,
    }


def stack(*parts: tuple[Path, int, int], **keys: object) -> dict[str, object]:
    """Return a recipe that stacks runs of layers."""
    slices = [
        {"sources": [{"model": str(root), "layer_range": [start, end]}]}
        for root, start, end in parts
    ]
    return {"merge_method": "passthrough", "slices": slices, **keys}


def check(value: Mapping[str, object] | MergeRecipe, out: Path | None = None) -> CheckReport:
    recipe = value if isinstance(value, MergeRecipe) else parse_merge_recipe(value, METHODS)
    wanted = [*recipe.references()]
    wanted += recipe.tokenizer.references() if recipe.tokenizer else ()
    return check_merge(recipe, {m: open_checkpoint(m) for m in dict.fromkeys(wanted)}, out=out)


def only(report: CheckReport, code: str) -> Finding:
    """Return the one finding of a code."""
    found = [finding for finding in report.findings if finding.code == code]
    assert len(found) == 1, report.findings
    return found[0]


def alone(report: CheckReport, code: str, level: str = "error") -> str:
    """Return the message of the only finding of the report."""
    assert [(f.level, f.code) for f in report.findings] == [(level, code)], report.findings
    return report.findings[0].message


def rewrite(root: Path, change: Callable[[Values], None]) -> None:
    """Change the tensors of a model."""
    values: Values = {
        name: ("BF16", value.shape, to_bytes(value, "BF16"))
        for name, value in read_values(root).items()
    }
    change(values)
    write_safetensors(root / "model.safetensors", values)


def configure(root: Path, **changes: object) -> None:
    path = root / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny_checkpoint(tmp_path / "base"), tiny_checkpoint(tmp_path / "med", tune=1)


def test_nothing_is_found_where_nothing_is_wrong(pair: tuple[Path, Path], tmp_path: Path) -> None:
    report = check(task(*pair), tmp_path / "out")
    assert report.findings == ()
    assert report.as_json()["ok"] is True
    size = (pair[0] / "model.safetensors").stat().st_size
    header = int.from_bytes((pair[0] / "model.safetensors").read_bytes()[:8], "little") + 8
    assert report.input_bytes == 2 * (size - header)
    assert report.output_bytes == size - header
    assert report.free_disk_bytes is not None
    assert report.free_disk_bytes > 0
    assert 100e6 < report.memory_bytes < 400e6
    facts = report.models[0].as_json()
    assert facts == {
        "model": str(pair[1]), "revision": None, "architecture": "llama", "dtypes": ["BF16"],
        "num_layers": 2, "num_tensors": 21, "num_parameters": (size - header) // 2,
        "vocab_rows": 32, "tied": False,
    }  # fmt: skip
    assert [facts.model for facts in report.models] == [str(pair[1]), str(pair[0])]


def test_the_report_is_plain_json_with_errors_first(pair: tuple[Path, Path]) -> None:
    configure(pair[1], rms_norm_eps=1e-5, head_dim=8, attention_dropout=0.5)
    configure(pair[0], attention_dropout=0.0)
    report = check(task(*pair))
    levels = [finding.level for finding in report.findings]
    assert levels == ["error", "warning", "notice"]
    assert [f.level for f in report.errors + report.warnings + report.notices] == levels
    loaded = json.loads(json.dumps(report.as_json()))
    assert loaded["ok"] is False
    assert [finding["code"] for finding in loaded["findings"]] == [
        "structure", "norm-eps", "config-differs",
    ]  # fmt: skip
    assert loaded["output_bytes"] == 0
    assert loaded["free_disk_bytes"] is None


def test_architectures_must_agree(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "a")
    other = tiny_checkpoint(tmp_path / "b", model_type="mistral")
    message = alone(check(task(base, other)), "architecture")
    assert message == (
        f"{base} is a 'llama' model but {other} is a 'mistral' model: one config.json cannot "
        "describe both, so merge models of one architecture."
    )
    # Not even a stack: one config.json cannot describe both.
    assert alone(check(stack((base, 0, 1), (other, 1, 2))), "architecture")


def test_an_unknown_architecture_is_named(pair: tuple[Path, Path]) -> None:
    configure(pair[1], model_type=None)
    message = alone(check(task(*pair)), "architecture")
    assert message == f"{pair[1]}: config.json has no 'model_type'; the architecture is unknown."


def test_an_inferred_architecture_is_a_notice(pair: tuple[Path, Path]) -> None:
    for root in pair:
        configure(root, model_type="newfangled")
    report = check(task(*pair))
    assert {f.code for f in report.findings} == {"architecture-inferred"}
    assert len(report.notices) == 2
    assert "its layers were taken to be 'model.layers.<number>.'" in report.notices[0].message


def test_models_that_wrongly_say_that_they_are_quantized_are_refused(
    pair: tuple[Path, Path],
) -> None:
    configure(pair[1], quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="not one of its tensors is"):
        check(task(*pair))


def test_a_quantized_model_is_checked_like_any_other_and_said_to_be_one(
    pair: tuple[Path, Path],
) -> None:
    name = "model.layers.0.mlp.up_proj.weight"

    def to_fp8(values: Values) -> None:
        values[name] = ("F8_E4M3", values[name][1], bytes([0x38]) * (len(values[name][2]) // 2))
        values[f"{name}_scale_inv"] = ("F32", (1, 1), np.float32(0.5).tobytes())

    rewrite(pair[1], to_fp8)
    with pytest.raises(CheckpointError, match=r"F8_E4M3 tensors.* no quantization_config"):
        check(task(*pair))
    configure(pair[1], quantization_config={"quant_method": "fp8"})
    assert alone(check(task(*pair)), "source", "notice") == (
        f"'{pair[1]}' is not in full precision: 1 of {len(read_values(pair[0]))} tensors are FP8, "
        "and were read as bfloat16. What quantization lost is not there."
    )


def test_missing_tensors_are_one_finding(pair: tuple[Path, Path]) -> None:
    def drop(values: Values) -> None:
        for name in [name for name in values if "mlp" in name]:
            del values[name]

    rewrite(pair[1], drop)
    message = alone(check(task(*pair)), "tensors-missing")
    assert message == (
        f"{pair[1]} lacks 6 tensors that {pair[0]} has: 'model.layers.0.mlp.down_proj.weight', "
        "'model.layers.0.mlp.gate_proj.weight', 'model.layers.0.mlp.up_proj.weight' and 3 more. "
        "Merge models of one architecture, or restrict 'slices' to layers that both have."
    )


def test_tensors_that_only_another_model_has(pair: tuple[Path, Path]) -> None:
    def add(values: Values) -> None:
        values["model.layers.1.self_attn.q_norm.weight"] = ("BF16", (4,), bytes(8))

    rewrite(pair[1], add)
    message = alone(check(task(*pair)), "tensors-missing")
    assert message.startswith(
        f"{pair[0]} lacks a tensor that {pair[1]} has: 'model.layers.1.self_attn.q_norm.weight'."
    )


def test_an_outer_prefix_is_recognized(tmp_path: Path) -> None:
    options = {"model_type": "gpt2", "tie": True}
    base = tiny_checkpoint(tmp_path / "a", **options)  # type: ignore[arg-type]
    other = tiny_checkpoint(tmp_path / "b", **options)  # type: ignore[arg-type]

    def shorten(values: Values) -> None:
        renamed = {name.removeprefix("transformer."): row for name, row in values.items()}
        values.clear()
        values.update(renamed)

    rewrite(other, shorten)
    report = check(task(base, other))
    assert any("was saved with an outer module" in finding.message for finding in report.errors)


def test_missing_layers_are_reported_as_such(pair: tuple[Path, Path]) -> None:
    def drop(values: Values) -> None:
        for name in [name for name in values if ".layers.1." in name]:
            del values[name]

    rewrite(pair[1], drop)
    message = alone(check(task(*pair)), "layers-missing")
    assert message == (
        f"{pair[1]}: config.json states 2 layers, but its files hold no layer 1. The checkpoint "
        "is incomplete, or its config.json is that of another model."
    )


def test_a_model_without_any_layer(pair: tuple[Path, Path]) -> None:
    def rename(values: Values) -> None:
        for name in [name for name in values if ".layers." in name]:
            values[name.replace("model.layers", "model.blocks")] = values.pop(name)

    rewrite(pair[1], rename)
    finding = only(check(task(*pair)), "layers-missing")
    assert f"{pair[1]} has no tensors named 'model.layers.<number>.'" in finding.message


def test_layers_beyond_the_config_are_not_merged(tmp_path: Path) -> None:
    roots = [tiny_checkpoint(tmp_path / name, layers=3) for name in "ab"]
    for root in roots:
        configure(root, num_hidden_layers=2)
    report = check(task(*roots))
    assert [finding.code for finding in report.findings] == ["layers-extra"] * 2
    assert "also hold layer 2" in report.warnings[0].message


def test_different_numbers_of_layers(tmp_path: Path) -> None:
    base, other = tiny_checkpoint(tmp_path / "a"), tiny_checkpoint(tmp_path / "b", layers=3)
    message = alone(check(task(base, other)), "layer-count")
    assert f"{base} has 2" in message
    assert f"{other} has 3" in message


def test_a_layer_range_beyond_the_model(pair: tuple[Path, Path]) -> None:
    message = alone(check(stack((pair[0], 0, 2), (pair[1], 1, 4))), "layer-range")
    assert f"Layers [1, 4] are asked of {pair[1]}, which has 2" in message


def test_shapes_are_grouped(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "a")
    other = tiny_checkpoint(tmp_path / "b", hidden=24)
    report = check(task(base, other))
    # The sizes say it all; 21 tensors of other shapes are what follows from them.
    message = alone(report, "structure")
    assert f"hidden_size is 16 in {base} but 24 in {other}; " in message
    assert f"intermediate_size is 32 in {base} but 48 in {other}" in message
    for root in (base, other):
        configure(root, hidden_size=None, intermediate_size=None, head_dim=None)
    assert alone(check(task(base, other)), "shapes").startswith(
        f"'model.embed_tokens.weight' is [32, 16] in {base} but [32, 24] in {other}, and 20 more "
        "tensors differ."
    )


def test_heads_that_shapes_do_not_show(pair: tuple[Path, Path]) -> None:
    configure(pair[1], num_attention_heads=8, head_dim=2, num_key_value_heads=4)
    message = alone(check(task(*pair)), "structure")
    assert message.startswith(
        f"num_attention_heads is 4 in {pair[0]} but 8 in {pair[1]}; num_key_value_heads is 2 in "
    )


def test_an_absent_head_dim_means_the_usual_one(pair: tuple[Path, Path]) -> None:
    config = json.loads((pair[1] / "config.json").read_text())
    del config["head_dim"]
    (pair[1] / "config.json").write_text(json.dumps(config))
    assert check(task(*pair)).findings == ()


def test_activations(pair: tuple[Path, Path]) -> None:
    configure(pair[1], hidden_act="relu")
    assert "hidden_act is silu" in alone(check(task(*pair)), "activation")
    configure(pair[0], hidden_act="gelu")
    configure(pair[1], hidden_act="gelu_pytorch_tanh")
    assert "The result uses gelu" in alone(check(task(*pair)), "activation", "warning")


def test_norm_eps(pair: tuple[Path, Path]) -> None:
    configure(pair[1], rms_norm_eps=1e-5)
    message = alone(check(task(*pair)), "norm-eps", "warning")
    assert message == (
        f"rms_norm_eps is 1e-06 in {pair[0]} but 1e-05 in {pair[1]}. The result uses 1e-06."
    )


def test_rope(pair: tuple[Path, Path]) -> None:
    configure(pair[1], rope_theta=1e6)
    message = alone(check(task(*pair)), "rope", "warning")
    assert f"is rope_theta 10000 in {pair[0]} but rope_theta 1e+06 in {pair[1]}" in message
    assert f"The result uses that of {pair[0]}" in message


def test_attention_windows(pair: tuple[Path, Path]) -> None:
    configure(pair[0], sliding_window=4096)
    configure(pair[1], sliding_window=None)
    message = alone(check(task(*pair)), "attention-window", "warning")
    assert f"sliding_window is 4096 in {pair[0]} but null in {pair[1]}" in message


def test_special_ids_and_which_are_used(pair: tuple[Path, Path]) -> None:
    (pair[1] / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    message = alone(check(task(*pair)), "special-ids", "warning")
    assert f"eos_token_id 2 / [2, 3]. The result uses those of {pair[0]}" in message


def test_special_ids_of_another_vocabulary(pair: tuple[Path, Path]) -> None:
    (pair[1] / "generation_config.json").write_text('{"eos_token_id": [3, 2]}')
    assert check(task(*pair, tokenizer={"source": "union"})).warnings == ()
    report = check(task(*pair, tokenizer={"source": str(pair[1])}))
    assert only(report, "special-ids").message == (
        f"The result has the tokens of {pair[1]} and with them its ids of special tokens, not "
        f"those of {pair[0]}: eos_token_id [3, 2] / 2."
    )


def test_what_loaders_make_anew_is_no_difference(pair: tuple[Path, Path]) -> None:
    def add(values: Values) -> None:
        values["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("BF16", (2,), bytes(4))

    rewrite(pair[1], add)
    assert check(task(*pair)).findings == ()


def test_classes(pair: tuple[Path, Path]) -> None:
    configure(pair[1], architectures=["LlamaForSequenceClassification"])
    message = alone(check(task(*pair)), "architecture-class", "warning")
    assert f'{pair[1]} a ["LlamaForSequenceClassification"]' in message


def test_chat_templates(pair: tuple[Path, Path], tmp_path: Path) -> None:
    (pair[1] / "chat_template.jinja").write_text("{{ other }}")
    message = alone(check(task(*pair)), "chat-template", "warning")
    assert message == (
        f"The chat template of {pair[1]} differs from that of {pair[0]}. The result gets that of "
        f"{pair[0]}. Write 'chat_template: auto', a name or Jinja to choose another."
    )
    assert check(task(*pair, chat_template="auto")).findings == ()
    message = alone(check(task(*pair, chat_template="chatml")), "special-ids", "warning")
    assert "writes '<|im_start|>', '<|im_end|>', which are no tokens of the result" in message
    bare = [tiny_checkpoint(tmp_path / name, chat_template=None) for name in "xy"]
    message = alone(check(task(*bare, chat_template="auto")), "chat-template")
    assert "no model has a chat template" in message


def test_tied_and_untied(tmp_path: Path) -> None:
    base, other = tiny_checkpoint(tmp_path / "a", tie=True), tiny_checkpoint(tmp_path / "b")
    for recipe in (task(base, other), task(other, base)):
        assert alone(check(recipe), "tied-mismatch", "notice") == (
            f"{base} is tied (the embedding is the head) but {other} is not, so the result is "
            "untied: its head is merged of the tied embedding and the other heads, and "
            "tie_word_embeddings is written as false."
        )


def test_a_tied_stack_looks_at_its_ends_alone(tmp_path: Path) -> None:
    tied, other = tiny_checkpoint(tmp_path / "a", tie=True), tiny_checkpoint(tmp_path / "b")
    assert check(stack((tied, 0, 1), (other, 0, 1), (tied, 1, 2))).findings == ()
    message = alone(check(stack((tied, 0, 1), (other, 1, 2))), "tied-mismatch", "notice")
    assert "so the result is untied" in message
    message = alone(check(stack((other, 0, 1), (tied, 1, 2))), "tied-mismatch", "notice")
    assert "so the result is untied" in message


def test_a_tied_stack_says_whose_head_it_has(tmp_path: Path) -> None:
    first = tiny_checkpoint(tmp_path / "a", tie=True)
    last = tiny_checkpoint(tmp_path / "b", tie=True, tune=1)
    assert alone(check(stack((first, 0, 1), (last, 1, 2))), "tied-stack", "notice") == (
        f"The result is tied, so its head is the embedding of {first}, not that of {last}, whose "
        "layers come last."
    )


def test_a_config_that_is_tied_otherwise_than_the_ends(tmp_path: Path) -> None:
    tied, other = tiny_checkpoint(tmp_path / "a", tie=True), tiny_checkpoint(tmp_path / "b")
    # linear merges no base that is not listed, but takes its config.json.
    for base, model, word, flag in (
        (tied, other, "untied", "false"),
        (other, tied, "tied", "true"),
    ):
        recipe = {
            "merge_method": "passthrough",
            "base_model": str(base),
            "slices": [{"sources": [{"model": str(model), "layer_range": [0, 2]}]}],
        }
        assert alone(check(recipe), "tied-mismatch", "notice") == (
            f"The result is {word}, as {model} is, of which its embedding and head are made: "
            f"tie_word_embeddings is written as {flag}, not as in the config.json of {base}."
        )


def test_a_head_that_is_missing(pair: tuple[Path, Path]) -> None:
    for root in pair:
        rewrite(root, lambda values: values.pop("lm_head.weight") and None)
    report = check(task(*pair))
    assert [finding.code for finding in report.findings] == ["head-missing"] * 2
    assert "A loader would make up a random head" in report.errors[0].message
    for root in pair:
        configure(root, architectures=["LlamaModel"])
    assert check(task(*pair)).findings == ()


def test_vocabulary_sizes_need_a_tokenizer_key(tmp_path: Path) -> None:
    base, other = tiny_checkpoint(tmp_path / "a"), tiny_checkpoint(tmp_path / "b", vocab=40)
    message = alone(check(task(base, other)), "vocabulary-size")
    assert message.startswith(
        f"'model.embed_tokens.weight' has 32 rows in {base} but 40 in {other}: their vocabularies"
    )
    assert "Add 'tokenizer: {source: base}'" in message
    for source, rows in (("base", 32), ("union", 32), (str(other), 40)):
        report = check(task(base, other, tokenizer={"source": source}))
        assert not report.errors
        assert {finding.code for finding in report.findings} == {"vocabulary"}
        same = check(task(base, tiny_checkpoint(tmp_path / "c")))
        assert report.output_bytes == (rows - 32) * 2 * 16 * 2 + same.output_bytes


def test_ids_with_two_meanings(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "a", extra_tokens=["sepsis"])
    other = tiny_checkpoint(tmp_path / "b", extra_tokens=["zoster"])
    message = alone(check(task(base, other)), "tokenizer")
    assert "16 is 'sepsis' / 'zoster'. Rows of different tokens would be merged" in message
    assert check(task(base, other, tokenizer={"source": "union"})).errors == ()


def test_few_ids_with_two_meanings_are_a_warning(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(200)]
    base = tiny_checkpoint(tmp_path / "a", vocab=256, extra_tokens=[*words, "sepsis"])
    other = tiny_checkpoint(tmp_path / "b", vocab=256, extra_tokens=[*words, "zoster"])
    assert "216 is 'sepsis'" in alone(check(task(base, other)), "tokenizer", "warning")


def test_tokens_that_one_model_has_more(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "a")
    other = tiny_checkpoint(tmp_path / "b", extra_tokens=["zoster"])
    message = alone(check(task(base, other)), "tokenizer", "warning")
    assert message.startswith(f"Only the tokenizer of {other} has 'zoster'. They are not in the")
    message = alone(check(task(other, base)), "tokenizer", "warning")
    assert message.endswith("They stay in the tokenizer of the result.")


def test_absent_and_broken_tokenizers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    bare = tiny_checkpoint(tmp_path / "bare", with_tokenizer=False)
    findings = {f.code: f for f in check(task(pair[0], bare)).findings}
    assert findings["tokenizer-missing"].level == "notice"
    assert f"{bare} cannot be compared" in findings["tokenizer-missing"].message
    finding = only(check(task(bare, pair[0])), "tokenizer-missing")
    assert finding.level == "warning"
    assert "so the result will have none either" in finding.message
    message = only(check(task(pair[0], bare, tokenizer={"source": "union"})), "vocabulary").message
    assert message.startswith(f"'{bare}' has no tokenizer that forge can read")
    (pair[1] / "tokenizer.json").write_text("{")
    assert "not valid JSON" in alone(check(task(*pair)), "tokenizer-file")


def test_mixed_and_narrowed_types(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "a")
    other = tiny_checkpoint(tmp_path / "b", dtype="F32")
    report = check(task(base, other))
    assert [f.code for f in report.findings] == ["mixed-types", "narrowed"]
    assert "is done in float32" in only(report, "mixed-types").message
    assert "The sources hold F32, and the result is written as bfloat16" in (
        only(report, "narrowed").message
    )
    assert [f.code for f in check(task(base, other, out_dtype="float32")).findings] == [
        "mixed-types"
    ]
    report = check(task(base, tiny_checkpoint(tmp_path / "d"), dtype="float16"))
    assert "float16, which ends at 65504" in alone(report, "narrowed", "notice")
    wide = tiny_checkpoint(tmp_path / "c", dtype="F64")
    assert "is done in float64" in only(check(task(base, wide)), "mixed-types").message


def test_whole_numbers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    def with_counts(name: str, dtype: str, width: int) -> Path:
        def add(values: Values) -> None:
            values["model.layers.0.router.counts"] = (dtype, (4,), bytes(4 * width))

        root = tiny_checkpoint(tmp_path / name)
        rewrite(root, add)
        return root

    base, same = with_counts("a", "I32", 4), with_counts("b", "I32", 4)
    message = alone(check(task(base, same)), "whole-numbers", "notice")
    assert message.startswith("'model.layers.0.router.counts' hold whole numbers.")
    for dtype, width in (("I64", 8), ("BF16", 2)):
        other = with_counts(dtype, dtype, width)
        for recipe in (task(base, other), task(other, base)):
            message = alone(check(recipe), "types")
            assert "hold whole numbers in one model and another type in another" in message


def test_one_folder_twice(pair: tuple[Path, Path], tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(pair[1])
    message = alone(check(task(*pair, link)), "same-model", "warning")
    assert message.startswith(f"{pair[1]} and {link} are the same folder; that model counts twice.")
    value = {
        "merge_method": "slerp",
        "base_model": str(pair[1]),
        "models": [{"model": str(link)}],
        "parameters": {"t": 0.5},
    }
    message = alone(check(value), "same-model")
    assert f"{pair[1]} and {link} are the same folder, so slerp would return that" in message


def test_dead_filters_and_missing_values(pair: tuple[Path, Path]) -> None:
    value = task(*pair)
    rules = [{"filter": "self_atn", "value": 1.0}, {"filter": "mlp", "value": 0.5}]
    value["models"] = [{"model": str(pair[1]), "parameters": {"weight": rules}}]
    report = check(value)
    assert {f.code for f in report.errors} == {"dead-filter", "missing-value"}
    assert "The filter 'self_atn' matches none of the 21 tensors. Did you mean 'self_attn'?" in (
        only(report, "dead-filter").message
    )
    assert "No filter of 'weight' matches 'model.embed_tokens.weight'" in (
        only(report, "missing-value").message
    )


@pytest.mark.parametrize(
    ("method", "flag"),
    [("linear", "normalize"), ("multislerp", "normalize_weights"), ("nuslerp", None)],
)
def test_weights_that_sum_to_zero(pair: tuple[Path, Path], method: str, flag: str | None) -> None:
    weights = ([1.0, 0.5], [1.0, -0.5])
    models = [
        {"model": str(root), "parameters": {"weight": [{"filter": "mlp", "value": weight}, 1.0]}}
        for root, weight in zip(pair, weights, strict=True)
    ]
    for item in models:
        rules = item["parameters"]["weight"]  # type: ignore[index]
        rules[1] = {"value": 1.0}
    value: dict[str, object] = {"merge_method": method, "models": models}
    message = alone(check(value), "weights-sum-to-zero")
    assert message.startswith(
        "The weights of 'model.layers.1.mlp.down_proj.weight' and 2 more tensors are 0.5, -0.5 and "
        f"sum to zero, but {method} divides by their sum."
    )
    if flag is not None:
        assert f"set '{flag}: false'" in message
        assert check({**value, "parameters": {flag: False}}).findings == ()


def test_weights_that_cancel(tmp_path: Path) -> None:
    base, one, two = (tiny_checkpoint(tmp_path / name) for name in "abc")
    value = task(base, one, two, parameters={"normalize": True})
    value["models"] = [
        {"model": str(root), "parameters": {"weight": weight}}
        for root, weight in ((one, 0.5), (two, -0.5))
    ]
    message = alone(check(value), "weights-cancel", "warning")
    assert message.startswith("The weights of 'model.embed_tokens.weight' and 20 more tensors")
    assert check({**value, "parameters": {"normalize": False}}).findings == ()


def test_keep_probabilities(pair: tuple[Path, Path]) -> None:
    value = {**task(*pair), "merge_method": "della"}
    value["parameters"] = {"density": 0.5, "epsilon": 0.1}
    recipe = parse_merge_recipe(value, METHODS)
    assert check(recipe).findings == ()
    parameters = {**recipe.parameters, "epsilon": Setting.constant(0.5)}
    message = alone(check(replace(recipe, parameters=parameters)), "keep-probability")
    assert message.startswith(
        "density 0.5 ± epsilon 0.5 of 'model.embed_tokens.weight' and 20 more tensors leaves (0, 1)"
    )


def test_per_layer_lists(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"]
    base = tiny_checkpoint(
        tmp_path / "a", model_type="qwen3", config_overrides={"layer_types": kinds}
    )
    other = tiny_checkpoint(
        tmp_path / "b", model_type="qwen3", config_overrides={"layer_types": kinds[::-1]}
    )
    message = alone(check(task(base, other)), "layer-lists")
    assert message.startswith(
        f"The kind of layer 0 (and of 1 more) of the result is not the same in {base} and {other} "
        "(layer_types in config.json)."
    )
    # In a stack each layer brings its own entry.
    assert check(stack((base, 0, 2), (other, 0, 2))).findings == ()
    configure(other, layer_types=kinds[:1])
    message = alone(check(task(base, other)), "layer-lists")
    assert "has 1 entries in 'layer_types' for 2 layers" in message
    # Qwen's rule says what an absent list means; Llama has none.
    configure(other, layer_types=None)
    assert check(stack((base, 0, 2), (other, 0, 2))).findings == ()
    for root in (base, other):
        configure(root, model_type="llama")
    message = alone(check(stack((base, 0, 2), (other, 0, 2))), "layer-lists")
    assert "Some of the stacked models have 'layer_types'" in message


def test_layers_that_alternate_by_number(tmp_path: Path) -> None:
    roots = [
        tiny_checkpoint(tmp_path / name, layers=4, config_overrides={"sliding_window_pattern": 2})
        for name in "ab"
    ]
    assert check(stack((roots[0], 0, 2), (roots[1], 2, 4))).findings == ()
    message = alone(check(stack((roots[0], 0, 2), (roots[1], 1, 4))), "layer-lists")
    assert (
        "layer 1 would become layer 2, of another kind. Move layers by multiples of 2." in message
    )


def test_disk_space(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    out = tmp_path / "deep" / "out"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    report = check(task(*pair), out)
    assert report.free_disk_bytes == 1000
    message = alone(report, "disk-space")
    assert f"GB in '{tmp_path / 'deep'}', and 0.00 GB are free there" in message
    # What an unfinished merge has taken already is not needed again.
    partial = tmp_path / "deep" / "out.forge-partial" / "output"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(bytes(report.output_bytes))
    assert check(task(*pair), out).findings == ()


def test_memory(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from forge.merge.check import resources

    monkeypatch.setattr(resources, "available_memory", lambda: 1_000_000)
    assert "0.00 GB are available" in alone(check(task(*pair)), "memory", "warning")


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "a", extra_tokens=["sepsis"])
    other = tiny_checkpoint(
        tmp_path / "b", hidden=24, vocab=40, dtype="F32", tie=True,
        extra_tokens=["zoster"], config_overrides={"rope_theta": 5e5, "hidden_act": "relu"},
    )  # fmt: skip
    (other / "chat_template.jinja").write_text("{{ other }}")
    report = check(task(base, other, parameters={"normalize": [{"filter": "x_y", "value": True}]}))
    assert [finding.code for finding in report.findings] == [
        "structure", "activation", "dead-filter",
        "rope", "chat-template", "tied-mismatch", "mixed-types", "narrowed",
    ]  # fmt: skip
    assert np.all([len(finding.message) < 800 for finding in report.findings])


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("fuzzed")
    return tiny_checkpoint(folder / "a"), tiny_checkpoint(folder / "b", model_type="qwen3")


KEYS = [
    *("model_type", "architectures", "num_hidden_layers", "hidden_size", "num_attention_heads"),
    *("head_dim", "hidden_act", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
    *("layer_types", "sliding_window_pattern", "eos_token_id", "tie_word_embeddings"),
    *("quantization_config", "vocab_size", "sliding_window", "text_config", "other"),
]
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**13)
    | st.floats(allow_nan=False)
    | st.sampled_from(["llama", "qwen3", "linear", "x" * 200]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "rope_theta", "factor", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, min_size=1), st.booleans(), st.booleans())
def test_a_strangers_config_is_never_a_crash(
    fuzzed: tuple[Path, Path], changes: dict[str, object], is_stack: bool, has_vocabulary: bool
) -> None:
    base, other = fuzzed
    before = tiny_config("qwen3")
    (other / "config.json").write_text(json.dumps({**before, "model_type": "llama", **changes}))
    keys = {"tokenizer": {"source": "union"}} if has_vocabulary else {}
    value = stack((base, 0, 1), (other, 1, 2)) if is_stack else task(base, other)
    try:
        report = check({**value, **keys})
    except ForgeError:
        assert changes.keys() & {"quantization_config", "text_config"}
        return
    assert (report.output_bytes > 0) == (not report.errors)
    json.dumps(report.as_json(), allow_nan=False)


def test_a_config_of_a_trillion_layers(pair: tuple[Path, Path]) -> None:
    for root in pair:
        configure(root, num_hidden_layers=10**12)
    finding = check(task(*pair)).errors[0]
    assert finding.code == "layers-missing"
    assert "config.json states 1,000,000,000,000 layers, but its files hold 2" in finding.message
