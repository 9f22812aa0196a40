"""Models of the largest published shapes, as far as a plan looks at them.

Headers, index, configuration and tokenizer have their true sizes; the weights are holes in the
files, which read as zeros and take no room on the disk. So a folder of 141 GB, or of 1.3 TB, is
written in a second, and everything that comes before the first weight is read can be measured.

The tokenizer counts in a check: a vocabulary of 128,256 tokens is 7 MB of JSON, far more than all
headers of a dense model together. It is a byte-level BPE that ``tokenizers`` loads.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from benchmarks.models import (
    BASE_SCALE,
    LLAMA_2_70B,
    LLAMA_3_70B,
    TUNE_SCALE,
    TUNES,
    Family,
    ModelShape,
    config_of,
    round_to_bf16,
    write_sparse_weights,
    write_weights,
)

Shapes = Mapping[str, tuple[int, ...]]

BLOCK_OF_70B: Final = replace(LLAMA_3_70B, layers=1, vocab=512)
"""856 million parameters: one decoder block of Llama-3-70B, and next to no vocabulary."""
_NUM_SPECIAL: Final = 256
_PATTERN: Final = 8_000_009
"""A prime number of values, so that no row of a matrix repeats another one."""


@dataclass(frozen=True, slots=True)
class LargeModel:
    """What is published of a model, its weights apart.

    Attributes:
        config: Its ``config.json``.
        tensors: Shapes by name, in file order; bfloat16.
        num_shards: Weight files.
        num_tokens: Size of its vocabulary.
    """

    config: Mapping[str, object]
    tensors: Shapes
    num_shards: int
    num_tokens: int

    @property
    def num_parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(map(math.prod, self.tensors.values()))

    def write_family(self, root: Path) -> Family:
        """Write a base and two fine-tunes of it below a folder that does not exist yet.

        Their files are one file with three names: a plan reads each header three times anyway.
        """
        base = root / "base"
        base.mkdir(parents=True)
        write_sparse_weights(base, self.tensors, num_shards=self.num_shards)
        (base / "config.json").write_text(json.dumps(self.config))
        write_tokenizer(base, self.num_tokens)
        for tune in TUNES:
            shutil.copytree(base, root / tune, copy_function=os.link)
        return Family(base, tuple(root / tune for tune in TUNES))


def write_block_family(root: Path, shape: ModelShape = BLOCK_OF_70B) -> Family:
    """Write a base and two fine-tunes of one decoder block of Llama-3-70B, 1.7 GB each.

    Their values are those of ``benchmarks.models``, a few million of them over and over: at every
    place the three models differ as a base and its fine-tunes do, and writing takes seconds.
    """
    pattern = _noise(0, BASE_SCALE)
    models = [pattern, *(pattern + _noise(seed, TUNE_SCALE) for seed in (1, 2))]
    for name, values in zip(("base", *TUNES), models, strict=True):
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config_of(shape)))
        write_tokenizer(folder, shape.vocab)
        write_weights(folder, shape.tensors(), round_to_bf16(values))
    return Family(root / "base", tuple(root / tune for tune in TUNES))


def _noise(seed: int, scale: np.float32) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(_PATTERN, np.float32) * scale


def write_tokenizer(folder: Path, num_tokens: int) -> None:
    """Write a byte-level BPE of a given size: bytes, then words that merges make, then 256 others.

    Args:
        folder: Receives ``tokenizer.json`` and ``tokenizer_config.json``.
        num_tokens: From 512 to 17 million.
    """
    num_merges = num_tokens - 256 - _NUM_SPECIAL
    pairs = list(itertools.islice(_pairs(), num_merges))
    vocab = [*_alphabet(), *(left + right for left, right in pairs)]
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    names += [f"<|reserved_special_token_{number}|>" for number in range(_NUM_SPECIAL - 3)]
    added = [
        {"id": number, "content": name, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for number, name in enumerate(names, start=len(vocab))
    ]  # fmt: skip
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}  # fmt: skip
    document = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": True, "vocab": {token: number for number, token in enumerate(vocab)},
            "merges": pairs,
        },
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document, indent=1))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": names[0],
              "eos_token": names[1]}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _alphabet() -> list[str]:
    """Return the characters that stand for the 256 bytes: printable ones for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]


def _pairs() -> Iterator[tuple[str, str]]:
    """Yield merges: all words of two bytes, then all of three, each made of a shorter one."""
    alphabet = _alphabet()
    words = alphabet
    while True:
        yield from itertools.product(words, alphabet)
        words = [left + right for left, right in itertools.product(words, alphabet)]


def _dense(shape: ModelShape, *, num_shards: int) -> LargeModel:
    return LargeModel(config_of(shape), shape.tensors(), num_shards, shape.vocab)


def _deepseek_v3() -> LargeModel:
    hidden, heads, experts, layers = 7168, 128, 256, 61
    attention: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_a_proj.weight": (1536, hidden),
        "self_attn.q_a_layernorm.weight": (1536,),
        "self_attn.q_b_proj.weight": (heads * 192, 1536),
        "self_attn.kv_a_proj_with_mqa.weight": (576, hidden),
        "self_attn.kv_a_layernorm.weight": (512,),
        "self_attn.kv_b_proj.weight": (heads * 256, 512),
        "self_attn.o_proj.weight": (hidden, heads * 128),
        "post_attention_layernorm.weight": (hidden,),
    }
    sparse: dict[str, tuple[int, ...]] = {
        "mlp.gate.weight": (experts, hidden),
        "mlp.gate.e_score_correction_bias": (experts,),
        **_feed_forward("mlp.shared_experts", hidden, 2048),
    }
    for expert in range(experts):
        sparse |= _feed_forward(f"mlp.experts.{expert}", hidden, 2048)
    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (129280, hidden)}
    for layer in range(layers):
        block = sparse if layer >= 3 else _feed_forward("mlp", hidden, 18432)
        rows = attention | block
        tensors |= {f"model.layers.{layer}.{name}": shape for name, shape in rows.items()}
    tensors |= {"model.norm.weight": (hidden,), "lm_head.weight": (129280, hidden)}
    config = {
        "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
        "hidden_size": hidden, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads,
        "n_routed_experts": experts, "n_shared_experts": 1, "num_experts_per_tok": 8,
        "first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "max_position_embeddings": 163840, "rope_theta": 10000,
        "vocab_size": 129280, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return LargeModel(config, tensors, 163, 128815)


def _feed_forward(prefix: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (inner, hidden),
        f"{prefix}.up_proj.weight": (inner, hidden),
        f"{prefix}.down_proj.weight": (hidden, inner),
    }


LARGE_MODELS: Final = {
    "llama-2-70b": _dense(LLAMA_2_70B, num_shards=15),
    "llama-3-70b": _dense(LLAMA_3_70B, num_shards=30),
    "deepseek-v3": _deepseek_v3(),
}
"""Llama-2-70B (Me-LLaMA, Meditron), Llama-3-70B (OpenBioLLM, Med42), and DeepSeek-V3 in bfloat16,
671 billion parameters in 45,395 tensors."""
