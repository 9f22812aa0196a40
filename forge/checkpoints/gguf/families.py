"""One row a family: what GGUF calls its tensors, and what llama.cpp's converter did to them.

A row knows the names of Hugging Face's files for every tensor that a file of the family may hold,
and how to undo what was done on the way: reordered rows, transposed matrices, norms stored as
1 + w. A tensor that the row does not know makes the file unreadable, because leaving it out
would make another model. ``config`` in the row names the function of ``configs`` that derives
``config.json``.

Several families of Hugging Face share one of GGUF: ``llama`` is Llama, Mistral and Mixtral.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from forge.checkpoints.gguf.rows import Kind
from forge.core.catalog import Catalog

_OUTSIDE: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_ATTENTION: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
}
_DENSE: Final = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS: Final = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_FOUR_NORMS: Final = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_ROUTED: Final = {
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
}
_ROTARY: Final[Mapping[str, Kind]] = {"attn_q": "pairs", "attn_k": "pairs"}


@dataclass(frozen=True, slots=True)
class Family:
    """A family of GGUF.

    Attributes:
        name: ``general.architecture``.
        model_types: ``model_type`` that a ``config.json`` beside the file may state; the first
            is that of a derived one, unless the metadata tell otherwise.
        outside: Names of the tensors outside of the layers, without ``.weight`` and ``.bias``.
        layer_prefix: What stands before a layer's number in Hugging Face's names.
        layers: Names of the tensors of a layer.
        experts: Names of the stacked weights of experts; ``{}`` is the expert's number.
        orders: How the rows of a tensor are ordered.
        transposed: Matrices that Hugging Face's files hold as [in, out].
        vectors: Matrices of one row, which the file holds as vectors.
        norms_plus_one: Whether norms are stored as 1 + w.
        tied: Whether a model of this family always shares its embedding with its head.
        variants: Names of a layer's tensors that differ in models that have the tensor named.
    """

    name: str
    model_types: tuple[str, ...]
    layers: Mapping[str, str]
    outside: Mapping[str, str] = field(default_factory=lambda: _OUTSIDE)
    layer_prefix: str = "model.layers."
    experts: Mapping[str, str] = field(default_factory=dict)
    orders: Mapping[str, Kind] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    vectors: frozenset[str] = frozenset()
    norms_plus_one: bool = False
    tied: bool = False
    variants: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


FAMILIES: Final = Catalog(
    (
        Family(
            "llama",
            ("llama", "mistral", "mixtral"),
            _ATTENTION | _DENSE | {"ffn_gate_inp": "block_sparse_moe.gate"},
            experts={
                "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
                "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
                "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
            },
            orders=_ROTARY,
        ),
        Family("qwen2", ("qwen2",), _ATTENTION | _DENSE),
        Family("qwen3", ("qwen3",), _ATTENTION | _HEAD_NORMS | _DENSE),
        Family(
            "qwen2moe",
            ("qwen2_moe",),
            _ATTENTION
            | {
                "ffn_gate_inp": "mlp.gate",
                "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
                "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
                "ffn_up_shexp": "mlp.shared_expert.up_proj",
                "ffn_down_shexp": "mlp.shared_expert.down_proj",
            },
            experts=_ROUTED,
            vectors=frozenset({"ffn_gate_inp_shexp"}),
        ),
        Family(
            "qwen3moe",
            ("qwen3_moe",),
            _ATTENTION | _HEAD_NORMS | {"ffn_gate_inp": "mlp.gate"},
            experts=_ROUTED,
        ),
        Family("gemma", ("gemma",), _ATTENTION | _DENSE, norms_plus_one=True, tied=True),
        Family(
            "gemma2",
            ("gemma2",),
            _ATTENTION | _FOUR_NORMS | _DENSE,
            norms_plus_one=True,
            tied=True,
        ),
        Family(
            "gemma3",
            ("gemma3_text",),
            _ATTENTION | _FOUR_NORMS | _HEAD_NORMS | _DENSE,
            norms_plus_one=True,
            tied=True,
        ),
        Family(
            "olmo2",
            ("olmo2",),
            {key: name for key, name in (_ATTENTION | _HEAD_NORMS | _DENSE).items()
             if key not in ("attn_norm", "ffn_norm")}
            | {
                "post_attention_norm": "post_attention_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            },
        ),
        Family("granite", ("granite",), _ATTENTION | _DENSE, orders=_ROTARY),
        Family("smollm3", ("smollm3",), _ATTENTION | _DENSE, orders=_ROTARY),
        Family(
            "phi3",
            ("phi3",),
            {
                "attn_norm": "input_layernorm",
                "attn_qkv": "self_attn.qkv_proj",
                "attn_output": "self_attn.o_proj",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
        ),
        Family(
            "bloom",
            ("bloom",),
            {
                "attn_norm": "input_layernorm",
                "attn_qkv": "self_attention.query_key_value",
                "attn_output": "self_attention.dense",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.dense_h_to_4h",
                "ffn_down": "mlp.dense_4h_to_h",
            },
            outside={
                "token_embd": "transformer.word_embeddings",
                "token_embd_norm": "transformer.word_embeddings_layernorm",
                "output_norm": "transformer.ln_f",
                "output": "lm_head",
            },
            layer_prefix="transformer.h.",
            orders={"attn_qkv": "heads"},
        ),
        Family(
            "gptneox",
            ("gpt_neox",),
            {
                "attn_norm": "input_layernorm",
                "attn_qkv": "attention.query_key_value",
                "attn_output": "attention.dense",
                "ffn_norm": "post_attention_layernorm",
                "ffn_up": "mlp.dense_h_to_4h",
                "ffn_down": "mlp.dense_4h_to_h",
            },
            outside={
                "token_embd": "gpt_neox.embed_in",
                "output_norm": "gpt_neox.final_layer_norm",
                "output": "embed_out",
            },
            layer_prefix="gpt_neox.layers.",
            orders={"attn_qkv": "heads"},
        ),
        Family(
            "gpt2",
            ("gpt2",),
            {
                "attn_norm": "ln_1",
                "attn_qkv": "attn.c_attn",
                "attn_output": "attn.c_proj",
                "ffn_norm": "ln_2",
                "ffn_up": "mlp.c_fc",
                "ffn_down": "mlp.c_proj",
            },
            outside={
                "token_embd": "transformer.wte",
                "position_embd": "transformer.wpe",
                "output_norm": "transformer.ln_f",
                "output": "lm_head",
            },
            layer_prefix="transformer.h.",
            transposed=frozenset({"attn_qkv", "attn_output", "ffn_up", "ffn_down"}),
        ),
        Family(
            "falcon",
            ("falcon",),
            {
                "attn_norm": "input_layernorm",
                "attn_qkv": "self_attention.query_key_value",
                "attn_output": "self_attention.dense",
                "ffn_up": "mlp.dense_h_to_4h",
                "ffn_down": "mlp.dense_4h_to_h",
            },
            outside={
                "token_embd": "transformer.word_embeddings",
                "output_norm": "transformer.ln_f",
                "output": "lm_head",
            },
            layer_prefix="transformer.h.",
            orders={"attn_qkv": "groups"},
            # Falcon-40B normalizes attention and MLP apart.
            variants={"attn_norm_2": {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}},
        ),
    )
)  # fmt: skip
