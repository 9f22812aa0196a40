"""Tiny checkpoints of several families for quantization, written without torch.

Values depend on the tensor's name alone. Matrices have odd sizes where a family allows it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from tests.factory import Floats, to_bytes, write_safetensors

TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
Change = Callable[[str, Floats], Floats]


def neox_config(*, layers: int = 2, hidden: int = 32, dtype: str = "BF16") -> dict[str, object]:
    """Return the config of a GPT-NeoX whose head is called ``embed_out``."""
    return {
        "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "hidden_size": hidden,
        "intermediate_size": 2 * hidden, "num_hidden_layers": layers, "num_attention_heads": 4,
        "vocab_size": 40, "max_position_embeddings": 64, "tie_word_embeddings": False,
        "bos_token_id": 1, "eos_token_id": 2, "dtype": TORCH_NAMES[dtype],
    }  # fmt: skip


def llama_config(
    *, layers: int = 2, hidden: int = 32, inner: int = 96, tie: bool = False, dtype: str = "BF16"
) -> dict[str, object]:
    """Return the config of a Llama."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": hidden // 4, "vocab_size": 40,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "tie_word_embeddings": tie,
        "bos_token_id": 1, "eos_token_id": 2, "dtype": TORCH_NAMES[dtype],
        "_name_or_path": "/home/me/llama",
    }  # fmt: skip


def shapes_of(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a config's model, in file order."""
    hidden, inner = _number(config, "hidden_size"), _number(config, "intermediate_size")
    vocab, layers = _number(config, "vocab_size"), _number(config, "num_hidden_layers")
    if config["model_type"] == "gpt_neox":
        found: dict[str, tuple[int, ...]] = {"gpt_neox.embed_in.weight": (vocab, hidden)}
        rows: dict[str, tuple[int, ...]] = {
            "attention.query_key_value.weight": (3 * hidden, hidden),
            "attention.query_key_value.bias": (3 * hidden,),
            "attention.dense.weight": (hidden, hidden), "attention.dense.bias": (hidden,),
            "mlp.dense_h_to_4h.weight": (inner, hidden), "mlp.dense_h_to_4h.bias": (inner,),
            "mlp.dense_4h_to_h.weight": (hidden, inner), "mlp.dense_4h_to_h.bias": (hidden,),
            "input_layernorm.weight": (hidden,), "input_layernorm.bias": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            "post_attention_layernorm.bias": (hidden,),
            "attention.rotary_emb.inv_freq": (2,),
        }  # fmt: skip
        for layer in range(layers):
            found |= {f"gpt_neox.layers.{layer}.{name}": shape for name, shape in rows.items()}
        return found | {
            "gpt_neox.final_layer_norm.weight": (hidden,),
            "gpt_neox.final_layer_norm.bias": (hidden,),
            "embed_out.weight": (vocab, hidden),
        }
    head = _number(config, "head_dim")
    queries = _number(config, "num_attention_heads") * head
    keys = _number(config, "num_key_value_heads") * head
    found = {"model.embed_tokens.weight": (vocab, hidden)}
    rows = {
        "input_layernorm.weight": (hidden,), "mlp.down_proj.weight": (hidden, inner),
        "mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden),
        "post_attention_layernorm.weight": (hidden,), "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries), "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
    }  # fmt: skip
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{name}": shape for name, shape in rows.items()}
    # A tied model often carries its head all the same.
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def _number(config: Mapping[str, object], key: str) -> int:
    value = config[key]
    assert isinstance(value, int)
    return value


def values_of(name: str, shape: tuple[int, ...]) -> Floats:
    """Return a tensor's values."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    values = generator.standard_normal(shape, np.float32) * np.float32(0.05)
    return values + np.float32("norm" in name and name.endswith("weight"))


def write_model(
    folder: Path,
    config: Mapping[str, object],
    *,
    dtype: str = "BF16",
    shards: int = 1,
    change: Change = lambda _, values: values,
) -> Path:
    """Write a model, in one file or in several with an index, and a tokenizer's files."""
    folder.mkdir(parents=True)
    tensors = {
        name: (dtype, shape, to_bytes(change(name, values_of(name, shape)), dtype))
        for name, shape in shapes_of(config).items()
    }
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
    else:
        weight_map: dict[str, str] = {}
        for number in range(shards):
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            names = list(tensors)[number::shards]
            write_safetensors(folder / file, {name: tensors[name] for name in names})
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 2}\n')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}\n')
    return folder
