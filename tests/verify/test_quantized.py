"""Damage that every hash agrees with is found by what the tensors mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from forge.verify.folder import verify_folder
from tests.factory import bf16_bits, bf16_values, tiny_checkpoint
from tests.verify.published import edit_manifest, tensors_of
from tests.verify.quantized_outputs import (
    Tensors,
    check,
    edit_array,
    make_source,
    quantize,
    quantize_folded,
    rehash,
    rewrite,
)

UP = "model.layers.1.mlp.up_proj"
FORMATS = (
    "awq-gemm", "awq-gemv", "compressed-tensors", "gptq", "bnb-nf4", "bnb-fp4", "bnb-int8",
)  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("verify") / "source")


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return an output by format, made once and not to be changed."""
    root = tmp_path_factory.mktemp("made")

    def make(name: str) -> Path:
        out = root / name
        if not out.exists():
            format_name, _, double = name.partition("+")
            quantize(source, out, format_name, double_quant=bool(double))
        return out

    return make


@pytest.fixture
def copied(made: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return an output by format that a test may change."""
    return lambda name: shutil.copytree(made(name), tmp_path / "out")


def messages(root: Path, source: Path | None) -> list[str]:
    """Return what the semantic checks say, after making sure that no hash says anything."""
    assert verify_folder(root).differences == ()
    return [f"{item.check}: {item.message}" for item in check(root, source).findings]


@pytest.mark.parametrize("name", [*FORMATS, "bnb-nf4+double", "bnb-fp4+double"])
@pytest.mark.parametrize("with_source", [True, False])
def test_what_forge_makes_is_right(
    name: str, with_source: bool, made: Callable[[str], Path], source: Path
) -> None:
    report = check(made(name), source if with_source else None)
    assert report.findings == ()
    assert report.ok
    assert report.format == name.partition("+")[0]
    states = [item.state for item in report.checks]
    assert states == ["passed", "passed", "passed" if with_source else "skipped", *["skipped"] * 2]
    if with_source:
        assert len(report.modules) == 14
        limit = 0.02 if name == "bnb-int8" else 0.2
        assert all(0 < error.relative < limit for error in report.modules)
        assert report.worst(1)[0].relative == max(error.relative for error in report.modules)


@pytest.mark.parametrize(
    "case",
    ["llama", "llama biases", "gemma", "mixtral", "qwen2_moe", "gpt_neox", "gpt2", "phi3", "opt"],
)
def test_folded_scales_are_found_and_allowed(case: str, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", case)
    out = quantize_folded(source, tmp_path, "awq-gemm", group_size=16)
    report = check(out, source)
    assert report.findings == ()
    assert all(error.relative < 0.15 for error in report.modules)


def test_a_fold_into_the_wrong_norm_is_found(source: Path, tmp_path: Path) -> None:
    out = quantize_folded(source, tmp_path, "awq-gemm")
    names = [f"model.layers.1.{name}_layernorm.weight" for name in ("input", "post_attention")]

    def swap(tensors: Tensors) -> None:
        tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]

    rewrite(out, swap)
    found = messages(out, source)
    assert any(
        "'model.layers.1.self_attn.q_proj' differs from its source" in text for text in found
    )
    assert any(f"'{UP}' differs from its source" in text for text in found)


def test_rows_that_were_not_divided_are_found(source: Path, tmp_path: Path) -> None:
    """A scale on the columns of down_proj that its feeder's rows do not take back."""
    out = quantize_folded(source, tmp_path, "awq-gemm")
    plain = quantize(source, tmp_path / "plain", "awq-gemm")
    unfolded = tensors_of(plain / "model.safetensors")

    def restore(tensors: Tensors) -> None:
        for part in ("qweight", "qzeros", "scales"):
            tensors[f"{UP}.{part}"] = unfolded[f"{UP}.{part}"]

    rewrite(out, restore)
    assert any(f"'{UP}' differs from its source" in text for text in messages(out, source))


def test_a_fold_where_the_method_folds_nothing_is_found(source: Path, tmp_path: Path) -> None:
    out = quantize_folded(source, tmp_path, "awq-gemm")

    def claim(manifest: dict[str, object]) -> None:
        recipe = manifest["recipe"]
        assert isinstance(recipe, dict)
        recipe["method"] = "rtn"

    edit_manifest(out, claim)
    found = messages(out, source)
    assert any(
        "input_layernorm.weight' differs from the source, although" in text for text in found
    )


def swap_nibbles_of_words(tensors: Tensors) -> None:
    """Pack in order 0…7 instead of AWQ's own."""

    def reorder(words: np.ndarray) -> np.ndarray:
        right = (0, 2, 4, 6, 1, 3, 5, 7)
        codes = {
            column: (words.view("<u4") >> np.uint32(4 * place)) & np.uint32(15)
            for place, column in enumerate(right)
        }
        total = np.zeros(words.shape, "<u4")
        for column, values in codes.items():
            total |= values << np.uint32(4 * column)
        return total.view("<i4")

    for name in [name for name in tensors if name.endswith("qweight")]:
        edit_array(tensors, name, reorder)


def swap_nibbles_of_bytes(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        edit_array(tensors, name, lambda codes: (codes << 4) | (codes >> 4))


@pytest.mark.parametrize(
    ("name", "edit"),
    [("awq-gemm", swap_nibbles_of_words), ("bnb-nf4", swap_nibbles_of_bytes),
     ("bnb-fp4+double", swap_nibbles_of_bytes)],
)  # fmt: skip
def test_a_swapped_nibble_order_is_found(
    name: str, edit: Callable[[Tensors], None], copied: Callable[[str], Path], source: Path
) -> None:
    out = copied(name)
    rewrite(out, edit)
    found = messages(out, source)
    assert sum("differs from its source by" in text for text in found) == 14


@pytest.mark.parametrize("cast_back", [False, True])
def test_absmax_of_a_4_bit_model_saved_after_it_ran_is_found(
    cast_back: bool, copied: Callable[[str], Path], source: Path
) -> None:
    """bitsandbytes leaves absmax in bfloat16 and transposed once a CPU has run the layer."""
    out = copied("bnb-nf4")

    def damage(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith(".absmax")]:
            _, shape, data = tensors[name]
            values = np.frombuffer(data, "<f4").reshape(-1, 2).T.reshape(-1)
            bits = bf16_bits(values)
            tensors[name] = (
                ("F32", shape, bf16_values(bits).tobytes()) if cast_back
                else ("BF16", shape, bits.tobytes())
            )  # fmt: skip

    rewrite(out, damage)
    found = messages(out, source)
    if cast_back:
        assert any("differs from its source by" in text for text in found)
    else:
        assert sum(".absmax' is BF16" in text for text in found) == 14
        assert sum(".absmax' is BF16" in text for text in messages(out, None)) == 14


def test_what_bitsandbytes_really_saves_after_it_ran_is_found(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    source = tiny_checkpoint(tmp_path / "source", hidden=64)
    out = quantize(source, tmp_path / "out", "bnb-nf4")
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.bfloat16
    )
    with torch.no_grad():
        model(torch.ones((1, 8), dtype=torch.long))
    model.save_pretrained(tmp_path / "saved")
    shutil.copyfile(tmp_path / "saved" / "model.safetensors", out / "model.safetensors")
    rehash(out)
    dtype, shape, _ = tensors_of(out / "model.safetensors")[f"{UP}.weight.absmax"]
    if (dtype, shape) == ("F32", [128]):
        pytest.skip("bitsandbytes leaves absmax alone on this CPU")
    name = f"{UP}.weight.absmax"
    assert (
        f"layout: '{name}' is BF16 [1, 128]; bnb-nf4 has F32 [128] for a layer of [128, 64]."
        in (messages(out, source))
    )


@pytest.mark.parametrize(
    ("name", "tensor", "with_source"),
    [
        ("awq-gemm", f"{UP}.qzeros", True),
        ("awq-gemm", f"{UP}.qzeros", False),
        ("awq-gemm", f"{UP}.scales", True),
        ("bnb-nf4", f"{UP}.weight.absmax", True),
        ("bnb-nf4", f"{UP}.weight.absmax", False),
        ("bnb-int8", f"{UP}.SCB", True),
        ("bnb-int8", f"{UP}.SCB", False),
        ("awq-gemm", "model.norm.weight", True),
        ("bnb-nf4", "lm_head.weight", True),
    ],
)
def test_a_missing_tensor_is_named(
    name: str, tensor: str, with_source: bool, copied: Callable[[str], Path], source: Path
) -> None:
    out = copied(name)

    def drop(tensors: Tensors) -> None:
        del tensors[tensor]

    rewrite(out, drop)
    assert f"tensors: '{tensor}' is missing." in messages(out, source if with_source else None)


def test_an_additional_tensor_is_named(copied: Callable[[str], Path], source: Path) -> None:
    out = copied("awq-gemm")
    rewrite(out, lambda tensors: tensors.update({"more.weight": ("F32", [1], bytes(4))}))
    assert messages(out, source) == ["tensors: 'more.weight' belongs to no tensor of the source."]


EXPERT = "model.layers.1.block_sparse_moe.experts.2.w2"


@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize("name", ["awq-gemm", "gptq"])
def test_a_skipped_expert_is_found(name: str, with_source: bool, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", "mixtral")
    out = quantize(source, tmp_path / "out", name)
    assert messages(out, source if with_source else None) == []
    plain = tensors_of(source / "model.safetensors")[f"{EXPERT}.weight"]

    def skip(tensors: Tensors) -> None:
        for tensor in [tensor for tensor in tensors if tensor.startswith(f"{EXPERT}.")]:
            del tensors[tensor]
        tensors[f"{EXPERT}.weight"] = plain

    rewrite(out, skip)
    (found,) = messages(out, source if with_source else None)
    assert found.startswith(f"tensors: '{EXPERT}' is in full precision")


def zero_one(values: np.ndarray) -> np.ndarray:
    values.reshape(-1)[1] = 0
    return values


@pytest.mark.parametrize(
    ("name", "part"),
    [("awq-gemm", "scales"), ("awq-gemv", "scales"), ("compressed-tensors", "weight_scale"),
     ("bnb-nf4", "weight.absmax"), ("bnb-int8", "SCB")],
)  # fmt: skip
def test_one_zeroed_scale_is_found(
    name: str, part: str, copied: Callable[[str], Path], source: Path
) -> None:
    out = copied(name)
    rewrite(out, lambda tensors: edit_array(tensors, f"{UP}.{part}", zero_one))
    found = messages(out, source)
    assert all(f"'{UP}'" in text for text in found)
    assert f"'{UP}' has 1 of" in found[-1]
    assert found[-1].endswith("the worst by 100%.")


def spoil_one(values: np.ndarray) -> np.ndarray:
    values.reshape(-1)[5] = 0x7FC0 if values.dtype == np.uint16 else np.nan
    return values


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("awq-gemm", f"{UP}.scales", "Scales are negative or not finite"),
        ("bnb-nf4", f"{UP}.weight.absmax", "absmax holds NaN"),
        ("bnb-int8", f"{UP}.SCB", "SCB holds NaN"),
        ("awq-gemm", "model.embed_tokens.weight", "holds 1 NaN or infinite values"),
    ],
)
@pytest.mark.parametrize("with_source", [True, False])
def test_a_nan_is_found(
    name: str, tensor: str, words: str, with_source: bool, copied: Callable[[str], Path],
    source: Path,
) -> None:  # fmt: skip
    out = copied(name)
    rewrite(out, lambda tensors: edit_array(tensors, tensor, spoil_one))
    found = messages(out, source if with_source else None)
    assert any(words in text for text in found), found


def test_a_changed_tensor_in_full_precision_is_found(
    copied: Callable[[str], Path], source: Path
) -> None:
    out = copied("awq-gemm")
    name = "model.embed_tokens.weight"
    rewrite(out, lambda tensors: edit_array(tensors, name, lambda bits: bits ^ 1))
    (found,) = messages(out, source)
    assert found == (
        f"tensors: '{name}' differs from the source, although nothing was folded into it."
    )


def edit_config(root: Path, edit: Callable[[dict[str, object], dict[str, object]], None]) -> None:
    config = json.loads((root / "config.json").read_text())
    edit(config, config["quantization_config"])
    (root / "config.json").write_text(json.dumps(config))
    rehash(root)


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("awq-gemm", "exllama", True, "'exllama' is true, not null"),
        ("awq-gemm", "group_size", 64, "96 input features do not divide into groups of 64"),
        ("awq-gemm", "version", "gemv", "config.json declares awq-gemv; the manifest says"),
        ("bnb-nf4", "bnb_4bit_quant_type", "fp4", "declares bnb-fp4; the manifest says bnb-nf4"),
        ("bnb-nf4", "bnb_4bit_quant_storage", "bfloat16", "'bnb_4bit_quant_storage' is"),
        ("bnb-nf4", "bnb_4bit_use_double_quant", True, "nested_absmax' is missing"),
        ("bnb-int8", "llm_int8_skip_modules", ["lm_head", "mlp"], "lists 'mlp' among the modules"),
        ("awq-gemm", "modules_to_not_convert", ["up_proj"], "lists 'up_proj' among the modules"),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_found(
    name: str, key: str, value: object, words: str, copied: Callable[[str], Path], source: Path
) -> None:
    out = copied(name)
    edit_config(out, lambda config, declared: declared.update({key: value}))
    found = messages(out, source)
    assert any(words in text for text in found), found


def test_a_path_of_this_machine_is_found(copied: Callable[[str], Path], source: Path) -> None:
    out = copied("awq-gemm")
    edit_config(out, lambda config, declared: config.update(_name_or_path="/home/me/model"))
    assert messages(out, source) == [
        "tensors: 'config.json' names a path of a machine: /home/me/model"
    ]


def test_layers_that_the_recipe_keeps_are_not_missed(source: Path, tmp_path: Path) -> None:
    out = quantize(source, tmp_path / "out", "awq-gemm", keep=("down_proj", "layers.0"))
    report = check(out, source)
    assert report.findings == ()
    assert len(report.modules) == 6


def test_another_source_is_refused(made: Callable[[str], Path], tmp_path: Path) -> None:
    other = make_source(tmp_path / "other", "llama grouped")
    found = messages(made("awq-gemm"), other)
    assert "is not what this was made from" in found[0]


def test_a_source_that_changed_since_is_refused(
    made: Callable[[str], Path], source: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "source"
    shutil.copytree(source, changed)
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    found = messages(made("awq-gemm"), changed)
    assert "is not what this was made from: the manifest names model.safetensors" in found[0]


def test_the_report_is_json_without_a_path(
    made: Callable[[str], Path], source: Path, tmp_path: Path
) -> None:
    text = json.dumps(check(made("awq-gemm"), source).as_json(), allow_nan=False)
    assert str(source.parent) not in text
