"""Block by block through tiny models of many families: right folds, better codes, same bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from forge.architectures import blocks as blocks_module
from forge.architectures.block_table import BLOCKS, BlockStructure, Feeder, Group
from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.core.catalog import Catalog
from forge.core.errors import IncompatibleError, NonFiniteError
from forge.formats.contract import Scheme
from forge.quantize.awq.plan import planned_changes
from forge.quantize.awq.run import quantize_blocks
from forge.quantize.awq.settings import AwqSettings
from forge.quantize.contract import BlockResult
from forge.quantize.methods.rtn import dequantize, quantize_rtn
from forge.recipes.reference import ModelReference
from tests.quantize.awq.models import SCHEME, TOKENS_BT, apply, save_with_outliers

FAMILIES = (
    "llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3", "gpt_neox", "gpt2", "phi3", "mixtral",
    "qwen2_moe", "falcon 7b", "opt", "olmo2",
)  # fmt: skip


def _run(checkpoint: Checkpoint, **settings: object) -> list[BlockResult]:
    return list(
        quantize_blocks(
            checkpoint, TOKENS_BT, SCHEME, dataclasses.replace(AwqSettings(threads=1), **settings)
        )
    )


def _model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.from_numpy(TOKENS_BT)).logits
    return logits


def _round_to_nearest(model: PreTrainedModel, modules: list[str]) -> None:
    with torch.no_grad():
        for module in modules:
            weight = model.get_parameter(f"{module}.weight")
            transposed = type(model.get_submodule(module)).__name__ == "Conv1D"
            values = (weight.T if transposed else weight).contiguous().numpy()
            rounded = torch.from_numpy(dequantize(quantize_rtn(values, SCHEME)))
            weight.copy_(rounded.T if transposed else rounded)


@pytest.mark.parametrize("case", FAMILIES)
def test_the_search_beats_round_to_nearest(case: str, tmp_path: Path) -> None:
    checkpoint = save_with_outliers(case, tmp_path)
    results = _run(checkpoint)
    linears, folded = planned_changes(checkpoint)
    modules = [linear.module for linear in linears]
    assert [module for result in results for module in result.weights] == modules
    assert {name for result in results for name in result.folded} == {
        name for name in folded if name in checkpoint.source.names()
    }
    for result in results:
        for name, plain in result.folded.items():
            info = checkpoint.source.info(name)
            assert (plain.dtype, plain.shape, plain.data.nbytes) == (
                info.dtype, info.shape, info.nbytes,
            )  # fmt: skip
        for module, measured in result.statistics.items():
            assert measured.get("loss_against_rtn", 1.0) <= 1.0, module
            if measured["tokens"]:
                assert 0 < measured["error"] < 0.25, module
    if case in {"mixtral", "qwen2_moe"}:
        return  # transformers holds their experts in stacks; see the test of experts.
    original, ours, plain_model = _model(tmp_path), _model(tmp_path), _model(tmp_path)
    apply(ours, results)
    _round_to_nearest(plain_model, modules)
    expected = _logits(original)
    ours_error = (_logits(ours) - expected).norm() / expected.norm()
    plain_error = (_logits(plain_model) - expected).norm() / expected.norm()
    assert ours_error < plain_error


def test_experts_are_quantized_one_by_one(tmp_path: Path) -> None:
    checkpoint = save_with_outliers("mixtral", tmp_path)
    results = _run(checkpoint)
    tensors = {name: tensor.float() for name, tensor in load_file(
        tmp_path / "model.safetensors").items()}  # fmt: skip
    names = [f"{p}{e}.w{w}" for p in ("model.layers.0.block_sparse_moe.experts.",)
             for e in range(4) for w in (1, 2, 3)]  # fmt: skip
    assert set(names) <= set(results[0].weights)
    router = "model.layers.0.block_sparse_moe.gate.weight"
    assert router in results[0].folded
    assert router.removesuffix(".weight") not in results[0].weights
    for result in results:
        for module, quantized in result.weights.items():
            tensors[f"{module}.weight"] = torch.from_numpy(dequantize(quantized))
        for name, stored in result.folded.items():
            values = torch.from_numpy(stored.data.copy()).view(torch.bfloat16).view(stored.shape)
            tensors[name] = values.float()
    expected = _logits(_model(tmp_path))
    plain = {name: tensor.float() for name, tensor in load_file(
        tmp_path / "model.safetensors").items()}  # fmt: skip
    for result in results:
        for module in result.weights:
            rounded = dequantize(quantize_rtn(plain[f"{module}.weight"].numpy(), SCHEME))
            plain[f"{module}.weight"] = torch.from_numpy(rounded)
    errors = []
    for quantized_tensors in (tensors, plain):
        save_file(quantized_tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        errors.append(float((_logits(_model(tmp_path)) - expected).norm()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("search", ["sketch", "gram", "module"])
def test_searches_agree_about_scales_that_matter(search: str, tmp_path: Path) -> None:
    checkpoint = save_with_outliers("llama", tmp_path)
    found = _run(checkpoint, search=search)
    gains = [
        float(str(each["loss_against_rtn"]))
        for result in found
        for module, each in result.statistics.items()
        if module.endswith(("q_proj", "up_proj"))
    ]
    assert len(gains) == 4
    assert max(gains) < 0.8


def test_error_feedback_lowers_the_error_further(tmp_path: Path) -> None:
    checkpoint = save_with_outliers("llama", tmp_path)

    def total(results: list[BlockResult]) -> float:
        return sum(float(str(m["error"])) for r in results for m in r.statistics.values())

    assert total(_run(checkpoint, error_feedback=True)) < 0.9 * total(_run(checkpoint))


def _equal(first: list[BlockResult], second: list[BlockResult]) -> bool:
    return len(first) == len(second) and all(
        a.weights.keys() == b.weights.keys()
        and a.folded.keys() == b.folded.keys()
        and all(
            np.array_equal(a.weights[m].codes_OI, b.weights[m].codes_OI)
            and np.array_equal(a.weights[m].scales_OG, b.weights[m].scales_OG)
            and np.array_equal(a.weights[m].zeros_OG, b.weights[m].zeros_OG)
            for m in a.weights
        )
        and all(np.array_equal(a.folded[n].data, b.folded[n].data) for n in a.folded)
        and a.statistics == b.statistics
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_neither_threads_nor_a_resumption_nor_spilling_change_a_bit(
    case: str, tmp_path: Path
) -> None:
    checkpoint = save_with_outliers(case, tmp_path)
    alone = _run(checkpoint, error_feedback=True)
    assert _equal(alone, _run(checkpoint, error_feedback=True, threads=3))
    settings = AwqSettings(
        threads=2, error_feedback=True, spill_above_bytes=1, spill_folder=tmp_path
    )
    resumed = quantize_blocks(
        checkpoint, TOKENS_BT, SCHEME, settings, finished=lambda index: index == 0
    )
    assert _equal(alone[1:], list(resumed))
    # The file of hidden states has no name.
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors",
    }  # fmt: skip


def _replace_row(monkeypatch: pytest.MonkeyPatch, row: BlockStructure) -> None:
    rows = [row if each.name == row.name else each for each in BLOCKS]
    monkeypatch.setattr(blocks_module, "BLOCKS", Catalog(rows))


def test_a_row_that_names_the_wrong_norm_is_caught_before_anything_is_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_with_outliers("llama", tmp_path)
    groups = list(BLOCKS["llama"].groups)
    groups[2] = dataclasses.replace(groups[2], norm="input_layernorm")
    _replace_row(monkeypatch, BlockStructure("llama", tuple(groups)))
    with pytest.raises(
        IncompatibleError,
        match=r"block 0: .*'model\.layers\.0\.input_layernorm' -> gate_proj, up_proj",
    ):
        _run(checkpoint)


def test_plain_norms_for_a_family_with_one_plus_norms_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_with_outliers("gemma", tmp_path)
    _replace_row(monkeypatch, dataclasses.replace(BLOCKS["gemma"], one_plus=False))
    with pytest.raises(IncompatibleError, match="or the wrong kind of norm"):
        _run(checkpoint)


def test_a_linear_feeder_across_an_activation_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_with_outliers("llama", tmp_path)
    groups = list(BLOCKS["llama"].groups)
    groups[3] = Group(("mlp.down_proj",), feeder=Feeder("mlp.gate_proj"))
    _replace_row(monkeypatch, BlockStructure("llama", tuple(groups)))
    with pytest.raises(IncompatibleError, match=r"'model\.layers\.0\.mlp\.gate_proj' -> down_proj"):
        _run(checkpoint)


def _change(checkpoint: Checkpoint, name: str, index: int, value: float) -> Checkpoint:
    path = checkpoint.root / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[index] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return open_checkpoint(ModelReference(str(checkpoint.root)))


def test_a_nan_names_the_block_that_makes_it(tmp_path: Path) -> None:
    checkpoint = save_with_outliers("llama", tmp_path)
    broken = _change(checkpoint, "model.layers.1.mlp.down_proj.weight", 5, float("nan"))
    results = quantize_blocks(broken, TOKENS_BT, SCHEME, AwqSettings(threads=1))
    assert next(results).index == 0
    with pytest.raises(NonFiniteError, match="Decoder block 1 gives NaN or infinite"):
        next(results)


def test_dead_channels_and_groups_of_zeros_stay_what_they_are(tmp_path: Path) -> None:
    save_with_outliers("llama", tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.input_layernorm.weight"][3] = 0.0
    tensors["model.layers.0.mlp.gate_proj.weight"][:, :16] = 0.0
    tensors["model.layers.0.mlp.up_proj.weight"][7] = 0.0
    save_file(tensors, path, metadata={"format": "pt"})
    results = _run(open_checkpoint(ModelReference(str(tmp_path))))
    gate = dequantize(results[0].weights["model.layers.0.mlp.gate_proj"])
    assert not gate[:, :16].any()
    assert gate[:, 16:].any()
    assert not dequantize(results[0].weights["model.layers.0.mlp.up_proj"])[7].any()
    norm = results[0].folded["model.layers.0.input_layernorm.weight"]
    values = torch.from_numpy(norm.data.copy()).view(torch.bfloat16)
    assert values[3] == 0
    assert torch.isfinite(values).all()
    for result in results:
        assert all(np.isfinite(weight.scales_OG).all() for weight in result.weights.values())


def test_kept_linears_are_not_quantized_and_share_the_fold(tmp_path: Path) -> None:
    checkpoint = save_with_outliers("llama", tmp_path)
    keep = ("k_proj", "layers.0.mlp.up_proj", "layers.1.mlp.down_proj")
    results = _run(checkpoint, keep=keep)
    assert "model.layers.0.self_attn.k_proj" not in results[0].weights
    assert "model.layers.0.mlp.up_proj" not in results[0].weights
    assert "model.layers.1.mlp.down_proj" not in results[1].weights
    folded = {name for result in results for name in result.folded}
    assert folded == set(planned_changes(checkpoint, keep=keep)[1])
    assert "model.layers.0.mlp.up_proj.weight" in folded
    assert "model.layers.1.mlp.down_proj.weight" not in folded
    original, ours = _model(tmp_path), _model(tmp_path)
    apply(ours, results)
    expected = _logits(original)
    plain = _model(tmp_path)
    _round_to_nearest(plain, [module for result in results for module in result.weights])
    assert (_logits(ours) - expected).norm() < (_logits(plain) - expected).norm()


def test_group_sizes_tokens_and_schemes_that_do_not_fit_are_refused_at_once(
    tmp_path: Path,
) -> None:
    checkpoint = save_with_outliers("llama", tmp_path)
    settings = AwqSettings()
    with pytest.raises(IncompatibleError, match=r"128 do not divide the 64 inputs.*Groups of 32"):
        quantize_blocks(checkpoint, TOKENS_BT, Scheme(4, 128), settings)
    with pytest.raises(IncompatibleError, match="token 96, but the model's vocabulary has 96"):
        quantize_blocks(checkpoint, np.full((1, 8), 96), SCHEME, settings)
    with pytest.raises(IncompatibleError, match="at least one sequence"):
        quantize_blocks(checkpoint, np.empty((0, 8), np.int64), SCHEME, settings)
    with pytest.raises(IncompatibleError, match="rtn"):
        quantize_blocks(checkpoint, TOKENS_BT, Scheme(4, 16, symmetric=True), settings)


def test_a_config_with_another_number_of_layers_is_refused(tmp_path: Path) -> None:
    save_with_outliers("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match="states 3 layers, but its files hold 2"):
        _run(open_checkpoint(ModelReference(str(tmp_path))))
