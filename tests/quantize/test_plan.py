"""What becomes of each tensor is decided from headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.source import SafetensorsSource
from forge.core.errors import IncompatibleError
from forge.quantize.plan import QuantizePlan, build_plan
from forge.quantize.run import plan_quantize, run_quantize
from forge.recipes.quantize_types import QuantizeRecipe, Variant
from forge.recipes.reference import ModelReference
from tests.factory import write_safetensors
from tests.quantize.models import llama_config, neox_config, shapes_of, write_model

NF4 = Variant("bnb-nf4", 4, 64)
DOUBLE = Variant("bnb-nf4", 4, 64, double_quant=True)
INT8 = Variant("bnb-int8", 8, 0)
GEMM = Variant("awq-gemm", 4, 16)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Return a tiny Llama."""
    return write_model(tmp_path / "llama", llama_config())


def plan_of(
    model: Path, *variants: Variant, method: str = "bnb", keep: tuple[str, ...] = ()
) -> QuantizePlan:
    """Plan a quantization."""
    return plan_quantize(QuantizeRecipe(method, variants, ModelReference(str(model)), keep=keep))


def test_linears_of_blocks_and_nothing_else(llama: Path) -> None:
    plan = plan_of(llama, NF4)
    names = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj",
             "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj")  # fmt: skip
    assert [linear.module for linear in plan.linears] == [
        f"model.layers.{layer}.{name}" for layer in range(2) for name in names
    ]
    kept = set(shapes_of(llama_config())) - {linear.tensor for linear in plan.linears}
    assert set(plan.kept) == kept
    assert "lm_head.weight" in kept
    assert plan.kept_linears == ()


def test_no_weight_is_read(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: SafetensorsSource, name: str) -> memoryview:
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(SafetensorsSource, "read", read)
    assert plan_of(llama, DOUBLE, INT8).output_bytes > 0


def test_sizes_are_those_of_the_outcome(llama: Path, tmp_path: Path) -> None:
    recipe = QuantizeRecipe("bnb", (NF4, INT8), ModelReference(str(llama)))
    plan = plan_quantize(recipe)
    result = run_quantize(recipe, tmp_path / "out")
    assert plan.input_bytes == result.input_bytes
    assert plan.input_bytes == 2 * plan.num_parameters
    for planned, made in zip(plan.outputs, result.outputs, strict=True):
        assert planned.output_bytes == made.output_bytes
        assert len(planned.tensors) == made.num_tensors
        header = int.from_bytes((made.out / "model.safetensors").read_bytes()[:8], "little")
        size = (made.out / "model.safetensors").stat().st_size
        assert size == 8 + header + planned.output_bytes


def test_double_quantization_is_planned_within_a_few_bytes(llama: Path, tmp_path: Path) -> None:
    recipe = QuantizeRecipe("bnb", (DOUBLE,), ModelReference(str(llama)))
    plan = plan_quantize(recipe)
    made = run_quantize(recipe, tmp_path / "out").outputs[0]
    assert abs(plan.output_bytes - made.output_bytes) <= 6 * len(plan.linears)


def test_the_summary_is_json(llama: Path) -> None:
    summary = json.loads(json.dumps(plan_of(llama, NF4, INT8).summary()))
    assert [row["format"] for row in summary["outputs"]] == ["bnb-nf4", "bnb-int8"]
    assert [row["folder"] for row in summary["outputs"]] == ["bnb-nf4", "bnb-int8"]
    assert summary["num_linears"] == 14
    assert summary["memory_bytes"] > 100_000_000
    assert 4 < summary["outputs"][0]["bits_per_weight"] < 16


def test_what_is_kept_is_named_in_the_config(llama: Path) -> None:
    plan = plan_of(llama, NF4, INT8, keep=("layers.0", "down_proj"))
    assert len(plan.linears) == 6
    assert len(plan.kept_linears) == 8
    for output in plan.outputs:
        skipped = output.quantization_config["llm_int8_skip_modules"]
        assert skipped == ["lm_head", *plan.kept_linears]
    codes = plan_of(llama, GEMM, method="rtn", keep=("down_proj",))
    assert codes.outputs[0].quantization_config["modules_to_not_convert"] == [
        "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj",
    ]  # fmt: skip


def test_compressed_tensors_leaves_the_head(llama: Path) -> None:
    plan = plan_of(llama, Variant("compressed-tensors", 4, 16), method="rtn")
    assert plan.outputs[0].quantization_config["ignore"] == ["lm_head"]


def test_keeping_everything_is_refused(llama: Path) -> None:
    with pytest.raises(IncompatibleError, match="'keep' covers every linear layer"):
        plan_of(llama, NF4, keep=("self_attn", "mlp"))


def test_a_tied_head_and_buffers_are_left_out(tmp_path: Path) -> None:
    tied = write_model(tmp_path / "tied", llama_config(tie=True))
    assert "lm_head.weight" not in plan_of(tied, NF4).sources
    neox = write_model(tmp_path / "neox", neox_config())
    plan = plan_of(neox, NF4)
    assert not any("inv_freq" in name for name in plan.sources)
    assert "embed_out.weight" in plan.kept
    assert len(plan.linears) == 8


@pytest.mark.parametrize("variant", [NF4, INT8, DOUBLE], ids=lambda row: row.format)
def test_what_is_quantized_already_is_planned_like_any_model(
    llama: Path, tmp_path: Path, variant: Variant
) -> None:
    run_quantize(QuantizeRecipe("bnb", (variant,), ModelReference(str(llama))), tmp_path / "once")
    again, first = plan_of(tmp_path / "once", NF4), plan_of(llama, NF4)
    tensors = [{tensor.name: tensor for tensor in plan.outputs[0].tensors}
               for plan in (again, first)]  # fmt: skip
    assert tensors[0] == tensors[1]
    assert {linear.tensor for linear in again.linears} == {row.tensor for row in first.linears}


def _mixtral(folder: Path, *, fused: bool) -> Path:
    config = llama_config() | {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 2,
        "num_experts_per_tok": 1,
    }  # fmt: skip
    moe = "model.layers.{}.block_sparse_moe"
    shapes = {name: shape for name, shape in shapes_of(config).items() if "mlp" not in name}
    for layer in range(2):
        prefix = moe.format(layer)
        shapes[f"{prefix}.gate.weight"] = (2, 32)
        if fused:
            shapes[f"{prefix}.experts.gate_up_proj"] = (2, 192, 32)
            shapes[f"{prefix}.experts.down_proj"] = (2, 32, 96)
            continue
        for expert in range(2):
            shapes[f"{prefix}.experts.{expert}.w1.weight"] = (96, 32)
            shapes[f"{prefix}.experts.{expert}.w2.weight"] = (32, 96)
            shapes[f"{prefix}.experts.{expert}.w3.weight"] = (96, 32)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: ("BF16", shape, b"\0" * (2 * _count(shape))) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def test_experts_are_quantized_or_refused_and_routers_never(tmp_path: Path) -> None:
    single = _mixtral(tmp_path / "single", fused=False)
    plan = plan_of(single, GEMM, method="rtn")
    assert len(plan.linears) == 2 * (4 + 6)
    gates = [f"model.layers.{layer}.block_sparse_moe.gate" for layer in range(2)]
    assert plan.outputs[0].quantization_config["modules_to_not_convert"] == gates
    with pytest.raises(IncompatibleError, match=r"12 layers of experts.*--keep experts"):
        plan_of(single, NF4)
    assert len(plan_of(single, NF4, keep=("experts",)).linears) == 8
    for method, variant in (("rtn", GEMM), ("bnb", NF4)):
        with pytest.raises(IncompatibleError, match="fused into one tensor"):
            plan_of(_mixtral(tmp_path / method, fused=True), variant, method=method)


def test_a_type_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", llama_config())
    shapes = shapes_of(llama_config())
    tensors = {name: ("F64", shape, b"\0" * (8 * _count(shape))) for name, shape in shapes.items()}
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(IncompatibleError, match="stored as F64"):
        plan_of(folder, NF4)


def test_groups_that_do_not_divide_name_layer_and_sizes(llama: Path) -> None:
    checkpoint = open_checkpoint(ModelReference(str(llama)))
    recipe = QuantizeRecipe("rtn", (Variant("awq-gemm", 4, 128),), ModelReference(str(llama)))
    with pytest.raises(IncompatibleError, match=r"down_proj.weight.*96.*128.*32"):
        build_plan(recipe, checkpoint)


def test_another_type_in_the_config_is_told_of(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", llama_config(dtype="BF16"), dtype="F32")
    plan = plan_of(folder, NF4)
    assert plan.dtypes["model.norm.weight"] == "BF16"
    assert "rounded to bfloat16" in plan.notices[0]
    # Codes of other methods are chosen from the weights as they are.
    assert plan_of(folder, GEMM, method="rtn").dtypes["model.norm.weight"] == "F32"
