"""The formula of the cache against the caches of real models, family by family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from forge.profile.devices import CpuDevice
from forge.profile.kv_cache import (
    activation_bytes,
    kv_bytes_per_token,
    longest_context,
    vocabulary_size,
)
from forge.profile.probes import Probe
from tests.architectures.tiny_models import CASES, tiny_model


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_formula_is_what_the_model_keeps(case: str, tmp_path: Path) -> None:
    model = tiny_model(case)
    tokens_BL = torch.randint(3, 90, (2, 13), generator=torch.Generator().manual_seed(0))
    probe = Probe(model, CpuDevice(), tokens_BL=tokens_BL, prompt_tokens=11)
    assert probe.cache_bytes is None
    probe.measure(1)
    model.config.save_pretrained(tmp_path)
    # As it lies beside weights, with the family's own names for layers and heads.
    config = json.loads((tmp_path / "config.json").read_text())
    assert probe.cache_bytes == 2 * 11 * (kv_bytes_per_token(config, itemsize=4) or 0)


def test_grouped_heads_and_the_size_of_an_element_count() -> None:
    config: dict[str, object] = {
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "hidden_size": 576,
    }  # fmt: skip
    assert kv_bytes_per_token(config, itemsize=2) == 2 * 30 * 3 * 64 * 2
    assert kv_bytes_per_token({"text_config": config}, itemsize=4) == 2 * 30 * 3 * 64 * 4


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64, "kv_lora_rank": 16},
        {"num_hidden_layers": 2, "hidden_size": 64, "state_size": 16},
        {"num_hidden_layers": 2, "num_attention_heads": 4},
        {"num_hidden_layers": "2", "num_attention_heads": True, "hidden_size": 64},
        {},
    ],
)
def test_where_there_is_no_formula_there_is_no_number(config: dict[str, object]) -> None:
    assert kv_bytes_per_token(config, itemsize=2) is None


def test_a_prompts_layers_are_estimated_from_above() -> None:
    config: dict[str, object] = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 100}
    assert activation_bytes(config, batch=2, prompt_tokens=5) == 4 * 2 * (5 * (48 + 48) + 200)


def test_positions_and_vocabulary_are_read_by_any_familys_name() -> None:
    assert longest_context({"n_positions": 64}) == 64
    assert longest_context({"text_config": {"max_position_embeddings": 128}}) == 128
    assert longest_context({"model_type": "bloom"}) is None
    assert vocabulary_size({"vocab_size": 96}) == 96
