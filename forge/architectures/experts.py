"""One row a family of mixtures of experts: which dense models it can be built of, and its names.

A decoder layer of a mixture is that of its dense relative with another MLP: several experts, each
of the dense MLP's three matrices, and a router, a matrix whose product with the MLP's input says
how much each expert counts. Attention, norms, embeddings and head are those of the dense model,
tensor for tensor, so a mixture can be put together of one model's frame and several models' MLPs.

What a config leaves out, each family fills in otherwise (Llama's rotary base is 10,000, Mixtral's a
million), so everything that the two could read differently is written out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MATRICES: Final = ("gate_proj", "up_proj", "down_proj")
"""A dense MLP's matrices; ``mlp.`` stands before them."""


@dataclass(frozen=True, slots=True)
class ExpertFamily:
    """A family of mixtures of experts.

    Attributes:
        name: ``model_type`` of its ``config.json``.
        model_class: What its ``architectures`` says.
        dense: ``model_type`` of the dense models of whose tensors it is made.
        router: Name of the router's weight, relative to the layer; [experts, hidden size].
        expert: Name of an expert's matrix, with ``{e}`` for its number.
        matrices: What the family calls each of ``MATRICES``.
        num_experts_key: Config key that holds the number of experts.
        size_key: Config key that holds the width of an expert.
        attention: Tensors of a dense layer that it takes over, relative to the layer.
        shared: Name of the shared expert's matrix, or ``None`` where there is none.
        shared_gate: Name of the shared expert's gate; [1, hidden size].
        shared_size_key: Config key that holds the width of the shared expert.
        settings: Config values that every model of the family gets here.
        dropped: Config keys of the dense families that mean nothing in it.
    """

    name: str
    model_class: str
    dense: tuple[str, ...]
    router: str
    expert: str
    matrices: Mapping[str, str]
    num_experts_key: str
    size_key: str
    attention: tuple[str, ...]
    shared: str | None = None
    shared_gate: str | None = None
    shared_size_key: str | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()


_NORMS: Final = ("input_layernorm.weight", "post_attention_layernorm.weight")
_PROJECTIONS: Final = tuple(f"self_attn.{name}_proj.weight" for name in "qkvo")
_BIASES: Final = tuple(f"self_attn.{name}_proj.bias" for name in "qkv")
_SAME: Final = {name: name for name in MATRICES}
# Every layer has experts, and the weights of those that are chosen sum to one: only then is a
# mixture of equal experts the dense model.
_EVERY_LAYER: Final[Mapping[str, object]] = {
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}

EXPERT_FAMILIES: Final = (
    ExpertFamily(
        "mixtral",
        "MixtralForCausalLM",
        dense=("llama", "mistral"),
        router="block_sparse_moe.gate.weight",
        expert="block_sparse_moe.experts.{e}.{matrix}.weight",
        matrices={"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        num_experts_key="num_local_experts",
        size_key="intermediate_size",
        attention=(*_NORMS, *_PROJECTIONS),
        dropped=("attention_bias", "mlp_bias", "pretraining_tp", "layer_types"),
    ),
    ExpertFamily(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        dense=("qwen2",),
        router="mlp.gate.weight",
        expert="mlp.experts.{e}.{matrix}.weight",
        matrices=_SAME,
        num_experts_key="num_experts",
        size_key="moe_intermediate_size",
        attention=(*_NORMS, *_PROJECTIONS, *_BIASES),
        shared="mlp.shared_expert.{matrix}.weight",
        shared_gate="mlp.shared_expert_gate.weight",
        shared_size_key="shared_expert_intermediate_size",
        settings={**_EVERY_LAYER, "qkv_bias": True},
    ),
    ExpertFamily(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        dense=("qwen3",),
        router="mlp.gate.weight",
        expert="mlp.experts.{e}.{matrix}.weight",
        matrices=_SAME,
        num_experts_key="num_experts",
        size_key="moe_intermediate_size",
        attention=(
            *_NORMS, *_PROJECTIONS, "self_attn.q_norm.weight", "self_attn.k_norm.weight",
        ),
        settings=_EVERY_LAYER,
        dropped=("layer_types", "max_window_layers"),
    ),
)  # fmt: skip
"""Every family that ``forge moe`` builds."""


def expert_family_of(model_type: object) -> ExpertFamily | None:
    """Return the family of mixtures that dense models of a type can be built into.

    Args:
        model_type: ``model_type`` of a dense model.
    """
    return next((row for row in EXPERT_FAMILIES if model_type in row.dense), None)
