"""Which tensors a result has."""

from __future__ import annotations

import pytest

from forge.architectures.table import ARCHITECTURES
from forge.architectures.written import is_written

LLAMA = ARCHITECTURES["llama"]


@pytest.mark.parametrize(
    ("name", "tied", "expected"),
    [
        ("model.embed_tokens.weight", True, True),
        ("model.layers.0.self_attn.q_proj.bias", False, True),
        ("transformer.h.0.attn.c_attn.bias", False, True),
        ("lm_head.weight", False, True),
        ("lm_head.weight", True, False),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False, False),
        ("rotary_emb.inv_freq", False, False),
        ("transformer.h.0.attn.bias", False, False),
        ("transformer.h.0.attn.masked_bias", False, False),
        ("gpt_neox.layers.0.attention.bias", False, False),
        ("gpt_neox.layers.0.attention.dense.bias", False, True),
        ("model.embeddings.position_ids", False, False),
    ],
)
def test_buffers_and_tied_heads_are_not_written(name: str, tied: bool, expected: bool) -> None:
    assert is_written(name, LLAMA, tied=tied) is expected
