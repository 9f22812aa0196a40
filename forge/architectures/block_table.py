"""One row a family: the linear layers of a decoder block, and what feeds each of them.

A linear layer's input columns may be multiplied by anything, as long as whatever feeds it divides
by the same: the norm before it, or the rows of the linear layer before it when nothing but linear
arithmetic (attention's weighted mean, a product with a gate) lies between. Calibrated
quantization lives on that freedom, and a wrong row corrupts a model silently, so a row says:

* ``groups``: linear layers that read one input, and what feeds them, if anything does alone;
* ``one_plus``: whether norms multiply by ``1 + weight``;
* ``companions``: what else reads the same input and stays in full precision (routers);
* ``transposed``: whether weights are stored ``[in, out]`` (GPT-2's ``Conv1D``).

Names are those of published checkpoints, relative to the block; ``{e}`` stands for an expert's
number. To add a family, add a row. ``blocks.py`` applies the rows to a checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from forge.core.catalog import Catalog


@dataclass(frozen=True, slots=True)
class Feeder:
    """What divides by a scale so that a linear layer can multiply by it.

    Attributes:
        module: The norm or linear layer, relative to the block.
        parts: Into how many matrices of equally many rows a fused linear layer divides.
        part: Which of them feeds.
        per_head: Whether the parts alternate head by head instead of lying one after another.
        needs_relu: Whether an activation lies between, which passes scales only if it is ReLU.
    """

    module: str
    parts: int = 1
    part: int = 0
    per_head: bool = False
    needs_relu: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Linear layers that read one input.

    Attributes:
        linears: Relative module names; a block has all of them or none.
        norm: The norm that feeds them, relative to the block.
        feeder: The linear layer that feeds them; at most one of ``norm`` and ``feeder``.
        companions: Modules that read the same input and are never quantized.
        unclipped: Those of ``linears`` whose largest weights must not be cut: queries and keys.
    """

    linears: tuple[str, ...]
    norm: str | None = None
    feeder: Feeder | None = None
    companions: tuple[str, ...] = ()
    unclipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockStructure:
    """A family's decoder block.

    Attributes:
        name: ``model_type`` of its ``config.json``.
        groups: All linear layers of a block.
        one_plus: Whether norms multiply by one plus their weight.
        transposed: Whether linear weights are stored ``[in, out]``.
        alternatives: Groups that count instead when a block has a module of that name; the first
            present counts.
        norms_feed_unless: Config values under which a norm's output goes elsewhere, too, so that
            no scale can be folded into it.
    """

    name: str
    groups: tuple[Group, ...]
    one_plus: bool = False
    transposed: bool = False
    alternatives: tuple[tuple[str, tuple[Group, ...]], ...] = ()
    norms_feed_unless: tuple[tuple[str, object], ...] = ()


def _mlp(norm: str | None, prefix: str = "mlp.") -> tuple[Group, ...]:
    gate, up, down = (f"{prefix}{name}" for name in ("gate_proj", "up_proj", "down_proj"))
    return Group((gate, up), norm), Group((down,), feeder=Feeder(up))


_Q, _K, _V = (f"self_attn.{name}_proj" for name in "qkv")
_QK: Final = (_Q, _K)
_FROM_V: Final = Feeder(_V)


def _attention(norm: str | None, out: str = "o_proj", also: tuple[str, ...] = ()) -> tuple[
    Group, ...
]:  # fmt: skip
    return (
        Group((_Q, _K, _V, *also), norm, unclipped=_QK),
        Group((f"self_attn.{out}",), feeder=_FROM_V),
    )


_INPUT: Final = "input_layernorm"
_SECOND: Final = "post_attention_layernorm"
_LLAMA: Final = (*_attention(_INPUT), *_mlp(_SECOND))
_SANDWICH: Final = (*_attention(_INPUT), *_mlp("pre_feedforward_layernorm"))
_PARALLEL: Final = (
    *_attention(_INPUT, also=("mlp.gate_proj", "mlp.up_proj")),
    _mlp(None)[1],
)


def _experts(shared: tuple[str, ...], routers: tuple[str, ...]) -> tuple[Group, ...]:
    prefixes = ("mlp.experts.{e}.", *shared)
    readers = tuple(f"{prefix}{name}" for prefix in prefixes for name in ("gate_proj", "up_proj"))
    down = tuple(_mlp(None, prefix)[1] for prefix in prefixes)
    # Some layers of these models are dense: the last two groups.
    return (Group(readers, _SECOND, companions=routers), *down, *_mlp(_SECOND))


def _latent_attention(*, low_rank_queries: bool) -> tuple[Group, ...]:
    """Multi-head latent attention: keys and values, and often queries, pass a low rank.

    Norms stand in the narrow middle and feed what widens it again. The widened keys and values
    alternate head by head; where both are equally wide, the values feed the output projection.
    """
    keys, widened = "self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj"
    queries = "self_attn.q_a_proj" if low_rank_queries else _Q
    groups = [Group((queries, keys), _INPUT, unclipped=(queries, keys))]
    if low_rank_queries:
        again = "self_attn.q_b_proj"
        groups.append(Group((again,), "self_attn.q_a_layernorm", unclipped=(again,)))
    return (
        *groups,
        Group((widened,), "self_attn.kv_a_layernorm", unclipped=(widened,)),
        Group(("self_attn.o_proj",), feeder=Feeder(widened, parts=2, part=1, per_head=True)),
    )


def _fused_heads(attention: str, norm: str) -> tuple[Group, ...]:
    fused, out = f"{attention}.query_key_value", f"{attention}.dense"
    return (
        Group((fused,), norm, unclipped=(fused,)),
        Group((out,), feeder=Feeder(fused, parts=3, part=2, per_head=True)),
    )


def _gelu(norm: str, first: str, second: str) -> tuple[Group, ...]:
    return Group((first,), norm), Group((second,), feeder=Feeder(first, needs_relu=True))


_EXPERTS: Final = "block_sparse_moe.experts.{e}."
_DEEPSEEK_EXPERTS: Final = _experts(("mlp.shared_experts.",), ("mlp.gate",))
_FALCON_MLP: Final = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_FALCON_FUSED: Final = "self_attention.query_key_value"

BLOCKS: Final = Catalog(
    (
        *(
            BlockStructure(name, _LLAMA)
            for name in (
                "llama", "mistral", "qwen2", "qwen3", "smollm3", "granite", "qwen2_vl",
                "qwen2_5_vl", "llava",
            )
        ),
        BlockStructure("gemma", _LLAMA, one_plus=True),
        *(
            BlockStructure(name, _SANDWICH, one_plus=True)
            for name in ("gemma2", "gemma3_text", "gemma3")
        ),
        # Its norms stand behind attention and MLP, so nothing feeds the first linears.
        BlockStructure("olmo2", (*_attention(None), *_mlp(None))),
        BlockStructure(
            "mixtral",
            (
                *_attention(_INPUT),
                Group(
                    (f"{_EXPERTS}w1", f"{_EXPERTS}w3"),
                    _SECOND,
                    companions=("block_sparse_moe.gate",),
                ),
                Group((f"{_EXPERTS}w2",), feeder=Feeder(f"{_EXPERTS}w3")),
            ),
        ),
        BlockStructure(
            "qwen2_moe",
            (
                *_attention(_INPUT),
                *_experts(("mlp.shared_expert.",), ("mlp.gate", "mlp.shared_expert_gate")),
            ),
        ),
        BlockStructure("qwen3_moe", (*_attention(_INPUT), *_experts((), ("mlp.gate",)))),
        *(
            BlockStructure(
                name,
                (*_latent_attention(low_rank_queries=True), *_DEEPSEEK_EXPERTS),
                alternatives=(
                    (_Q, (*_latent_attention(low_rank_queries=False), *_DEEPSEEK_EXPERTS)),
                ),
            )
            for name in ("deepseek_v2", "deepseek_v3")
        ),
        # Its experts are fused into one tensor a layer, which blocks.py refuses by name.
        BlockStructure("gpt_oss", _attention(_INPUT)),
        BlockStructure(
            "phi3",
            (
                Group(("self_attn.qkv_proj",), _INPUT, unclipped=("self_attn.qkv_proj",)),
                Group(("self_attn.o_proj",), feeder=Feeder("self_attn.qkv_proj", 3, 2)),
                Group(("mlp.gate_up_proj",), _SECOND),
                Group(("mlp.down_proj",), feeder=Feeder("mlp.gate_up_proj", 2, 1)),
            ),
        ),
        BlockStructure(
            "phi",
            (
                *_attention(_INPUT, "dense", also=("mlp.fc1",)),
                Group(("mlp.fc2",), feeder=Feeder("mlp.fc1", needs_relu=True)),
            ),
        ),
        BlockStructure(
            "gpt_neox",
            (*_fused_heads("attention", _INPUT), *_gelu(_SECOND, *_FALCON_MLP)),
        ),
        BlockStructure(
            "bloom",
            (*_fused_heads("self_attention", _INPUT), *_gelu(_SECOND, *_FALCON_MLP)),
            norms_feed_unless=(("apply_residual_connection_post_layernorm", True),),
        ),
        BlockStructure(
            "falcon",
            (
                Group((_FALCON_FUSED, _FALCON_MLP[0]), _INPUT, unclipped=(_FALCON_FUSED,)),
                _fused_heads("self_attention", _INPUT)[1],
                _gelu(_INPUT, *_FALCON_MLP)[1],
            ),
            alternatives=(
                (
                    "ln_attn",
                    (*_fused_heads("self_attention", "ln_attn"), *_gelu("ln_mlp", *_FALCON_MLP)),
                ),
                (
                    _SECOND,
                    (*_fused_heads("self_attention", _INPUT), *_gelu(_SECOND, *_FALCON_MLP)),
                ),
            ),
            norms_feed_unless=(("apply_residual_connection_post_layernorm", True),),
        ),
        BlockStructure(
            "gpt2",
            (
                Group(("attn.c_attn",), "ln_1", unclipped=("attn.c_attn",)),
                Group(("attn.c_proj",), feeder=Feeder("attn.c_attn", 3, 2)),
                *_gelu("ln_2", "mlp.c_fc", "mlp.c_proj"),
            ),
            transposed=True,
        ),
        BlockStructure(
            "gptj",
            (
                Group(
                    ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"),
                    "ln_1",
                    unclipped=("attn.q_proj", "attn.k_proj"),
                ),
                Group(("attn.out_proj",), feeder=Feeder("attn.v_proj")),
                Group(("mlp.fc_out",), feeder=Feeder("mlp.fc_in", needs_relu=True)),
            ),
        ),
        BlockStructure(
            "mpt",
            (
                Group(("attn.Wqkv",), "norm_1", unclipped=("attn.Wqkv",)),
                # Values may be clamped between (attn_config.clip_qkv), so they feed nothing alone.
                Group(("attn.out_proj",)),
                *_gelu("norm_2", "ffn.up_proj", "ffn.down_proj"),
            ),
        ),
        BlockStructure(
            "opt",
            (
                *_attention("self_attn_layer_norm", "out_proj"),
                *_gelu("final_layer_norm", "fc1", "fc2"),
            ),
            norms_feed_unless=(("do_layer_norm_before", False),),
        ),
        BlockStructure(
            "starcoder2", (*_attention(_INPUT), *_gelu(_SECOND, "mlp.c_fc", "mlp.c_proj"))
        ),
        BlockStructure("stablelm", _PARALLEL, alternatives=((_SECOND, _LLAMA),)),
        BlockStructure("cohere", _PARALLEL),
    )
)  # fmt: skip
