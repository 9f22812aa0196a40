"""What adapters say and hold beside plain factors: read as meant, or refused before it is read."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.lora.experts import adapted_parameter
from forge.checkpoints.lora.names import part_of
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference
from tests.factory import (
    from_bytes,
    read_values,
    tiny_checkpoint,
    to_bytes,
    write_safetensors,
    write_tokenizer,
)

_Q = "model.layers.0.self_attn.q_proj"


def _adapter(root: Path, tensors: Mapping[str, np.ndarray], **config: object) -> Path:
    root.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2} | config
    (root / "adapter_config.json").write_text(json.dumps(settings))
    rows = {name: ("F32", one.shape, to_bytes(one, "F32")) for name, one in tensors.items()}
    write_safetensors(root / "adapter_model.safetensors", rows)
    return root


def _factors(stem: str = f"base_model.model.{_Q}", *, out: int = 16) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    return {
        f"{stem}.lora_A.weight": generator.standard_normal((2, 16)),
        f"{stem}.lora_B.weight": generator.standard_normal((out, 2)),
    }


def _open(base: Path, adapter: Path) -> Checkpoint:
    return open_checkpoint(ModelReference(str(base), lora=ModelReference(str(adapter))))


def _value(checkpoint: Checkpoint, name: str) -> np.ndarray:
    info = checkpoint.source.info(name)
    return from_bytes(checkpoint.source.read(name), info.dtype, info.shape)


@pytest.mark.parametrize(
    "stem", [_Q, f"base_model.model.{_Q}", f"base_model.model.{_Q.removeprefix('model.')}"]
)
def test_names_with_and_without_their_outer_parts(tmp_path: Path, stem: str) -> None:
    base = tiny_checkpoint(tmp_path / "base", dtype="F32")
    tensors = _factors(stem)
    a, b = tensors.values()
    checkpoint = _open(base, _adapter(tmp_path / "adapter", tensors))
    expected = read_values(base)[f"{_Q}.weight"] + b @ a
    assert np.allclose(_value(checkpoint, f"{_Q}.weight"), expected, atol=1e-5)


def test_names_that_keep_the_name_of_the_adapter() -> None:
    for name, role in (
        ("base_model.model.a.lora_A.default.weight", "A"),
        ("base_model.model.a.lora_embedding_B.default", "embedding_B"),
        ("base_model.model.a.lora_magnitude_vector.default.weight", "magnitude"),
        ("a.lora_magnitude_vector", "magnitude"),
        ("a.token_adapter.trainable_tokens_delta", "tokens"),
        ("base_model.model.a.original_module.weight", "untrained"),
    ):
        part = part_of(name)
        assert part is not None
        assert part.role == role
        assert part.place.startswith("a")
    for name in ("a.base_layer.bias", "a.modules_to_save.bias", "a.token_adapter.base_layer.bias"):
        part = part_of(f"base_model.model.{name}")
        assert part is not None
        assert (part.role, part.place) == ("whole", "a.bias")


def test_the_last_wrapper_of_experts_is_the_outermost() -> None:
    both = {"m.experts.gate_up_proj", "m.experts.down_proj"}.__contains__
    assert adapted_parameter("m.experts", both) == "m.experts.down_proj"
    assert adapted_parameter("m.experts.base_layer", both) == "m.experts.gate_up_proj"
    assert adapted_parameter("m.experts.base_layer.base_layer", both) is None
    one = {"m.experts.gate_up_proj"}.__contains__
    assert adapted_parameter("m.experts", one) == "m.experts.gate_up_proj"
    assert adapted_parameter("m.q_proj", both) is None


def test_stacks_that_are_stored_transposed(tmp_path: Path) -> None:
    base, name = tmp_path / "base", "model.layers.0.mlp.experts.down_proj"
    generator = np.random.default_rng(1)
    stack = generator.standard_normal((3, 4, 4)).astype(np.float32)
    base.mkdir()
    write_safetensors(base / "model.safetensors", {name: ("F32", stack.shape, stack.tobytes())})
    (base / "config.json").write_text(json.dumps({"model_type": "gpt_oss", "num_hidden_layers": 1}))
    a, b = generator.standard_normal((6, 4)), generator.standard_normal((4, 6))
    stem = "base_model.model.model.layers.0.mlp.experts"
    adapter = _adapter(
        tmp_path / "adapter",
        {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b},
        target_parameters=["mlp.experts.down_proj"],
    )
    # PEFT: einsum("o r e, e r i -> e i o", B, A) for stacks [E, in, out].
    b_ORE, a_ERI = b.reshape(4, 2, 3), a.reshape(3, 2, 4)
    expected = stack + np.einsum("ore,eri->eio", b_ORE, a_ERI)
    assert np.allclose(_value(_open(base, adapter), name), expected, atol=1e-5)


def test_the_tokenizer_of_the_adapter_is_taken_and_said(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    adapter = _adapter(tmp_path / "adapter", _factors())
    plain = _open(base, adapter)
    assert plain.tokenizer_root == base
    assert plain.notices == ()
    write_tokenizer(adapter, extra_tokens=["hospital"])
    checkpoint = _open(base, adapter)
    assert checkpoint.tokenizer_root == adapter
    assert "tokenizer is that of the adapter" in checkpoint.notices[0]
    assert checkpoint.warnings == ()


@pytest.mark.parametrize(
    ("stated", "warns"),
    [
        (None, False), ("", False), ("someone/BASE", False), ("./models/base/", False),
        ("unsloth/base-bnb-4bit", False), ("unsloth/base-unsloth-bnb-4bit", False),
        ("someone/another", True), ("someone/origin", False),
    ],
)  # fmt: skip
def test_doubts_an_adapter_of_another_model(
    tmp_path: Path, stated: str | None, warns: bool
) -> None:
    base = tiny_checkpoint(tmp_path / "base", config_overrides={"_name_or_path": "a/origin"})
    adapter = _adapter(tmp_path / "adapter", _factors(), base_model_name_or_path=stated)
    checkpoint = _open(base, adapter)
    assert bool(checkpoint.warnings) is warns
    assert checkpoint.notices == checkpoint.warnings
    assert not warns or "'someone/another'" in checkpoint.warnings[0]


def test_pickled_adapters_are_refused_with_the_way_out(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    adapter = _adapter(tmp_path / "adapter", _factors())
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled.*save_pretrained"):
        _open(base, adapter)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern.*not a rank"),
        ({"rank_pattern": {"q_proj": 2.0}}, "not a rank"),
        ({"rank_pattern": ["q_proj"]}, "must map"),
        ({"alpha_pattern": {"q_proj": "8"}}, "not a number"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "not a number"),
        ({"rank_pattern": {"(": 2}}, "not one"),
        ({"rank_pattern": {"(a+)+": 2}}, "take forever"),
        ({"rank_pattern": {"(a|b*)*": 2}}, "take forever"),
        ({"rank_pattern": {"((a*)b)*": 2}}, "take forever"),
        ({"rank_pattern": {".*" * 9: 2}}, "take forever"),
        ({"rank_pattern": {"a" * 600: 2}}, "take forever"),
        ({"modules_to_save": "lm_head"}, "list of names"),
        ({"modules_to_save": ["classifier"]}, "no tensor of such a module"),
        ({"trainable_token_indices": [1, 1]}, "listed twice"),
        ({"trainable_token_indices": [-1]}, "lists of rows"),
        ({"trainable_token_indices": {"embed_tokens": 3}}, "lists of rows"),
        ({"use_dora": True}, "no lora_magnitude_vector"),
        ({"r": 1 << 40}, "no valid r"),
    ],
)
def test_settings_are_checked(tmp_path: Path, config: dict[str, object], message: str) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    adapter = _adapter(tmp_path / "adapter", _factors(), **config)
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        _open(base, adapter)
    assert time.monotonic() - began < 5


_EMBED = "base_model.model.model.embed_tokens"


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        ({f"{_EMBED}.token_adapter.trainable_tokens_delta": np.ones((2, 16))},
         {"trainable_token_indices": [1, 99]}, "token 99"),
        ({f"{_EMBED}.token_adapter.trainable_tokens_delta": np.ones((3, 16))},
         {"trainable_token_indices": [1, 2]}, "for 2 tokens"),
        ({f"{_EMBED}.token_adapter.trainable_tokens_delta": np.ones((2, 16))}, {}, "no tokens"),
        ({f"base_model.model.{_Q}.ia3_l": np.ones((3, 1))}, {"peft_type": "IA3"}, "not a vector"),
        ({f"base_model.model.{_Q}.ia3_l": np.ones(16)}, {"peft_type": "IA3"}, "not a vector"),
        (_factors() | {f"base_model.model.{_Q}.lora_magnitude_vector": np.ones(3)},
         {"use_dora": True}, "for 16 outputs"),
        (_factors() | {f"base_model.model.{_Q}.weight": np.ones((16, 16))}, {}, "PEFT would not"),
        (_factors("base_model.model.model.layers.0.mlp.experts"),
         {"target_parameters": ["experts.down_proj"]}, "experts.down_proj', which"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit(
    tmp_path: Path, tensors: dict[str, np.ndarray], config: dict[str, object], message: str
) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    with pytest.raises(CheckpointError, match=message):
        _open(base, _adapter(tmp_path / "adapter", tensors, **config))


def test_tied_models_refuse_what_peft_merges_twice(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", tie=True)
    tensors = {
        f"{_EMBED}.lora_embedding_A": np.ones((2, 32)),
        f"{_EMBED}.lora_embedding_B": np.ones((16, 2)),
    }
    with pytest.raises(CheckpointError, match="adds twice"):
        _open(base, _adapter(tmp_path / "adapter", tensors, ensure_weight_tying=True))
    copies = {
        f"{_EMBED}.weight": np.ones((32, 16)),
        "base_model.model.lm_head.weight": np.zeros((32, 16)),
    }
    with pytest.raises(CheckpointError, match="different values"):
        _open(base, _adapter(tmp_path / "adapter", copies))


def test_codes_are_no_factors(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    adapter = _adapter(tmp_path / "adapter", {})
    rows = {
        f"base_model.model.{_Q}.lora_A.weight": ("I8", (2, 16), bytes(32)),
        f"base_model.model.{_Q}.lora_B.weight": ("I8", (16, 2), bytes(32)),
    }
    write_safetensors(adapter / "adapter_model.safetensors", rows)
    with pytest.raises(CheckpointError, match="of type I8"):
        _open(base, adapter)
