"""The decoder of Llama and its kin in plain torch, without the library that most models come from.

What AWQ runs of a model are embeddings and decoder blocks on whole sequences: no cache, no
padding, no head. For the most common decoder that is a page, and importing transformers' models
for it would take more memory than quantizing a small model does (110 MB), and seconds. Modules
have the names of the published tensors, so all else treats them as it treats those of
transformers; the arithmetic is the same to the last bit, which the tests hold.

Legend: B sequences, T tokens, D hidden size, F features within the MLP, H heads of queries, K
heads of keys and values, h features of a head.

Reference: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", arXiv
2302.13971; Su et al., "RoFormer", arXiv 2104.09864; Ainslie et al., "GQA", arXiv 2305.13245.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import nn
from torch.nn import functional

from forge.quantize.awq.llama_shape import LlamaShape

_META: Final = torch.device("meta")


class LlamaDecoder(nn.Module):
    """Token embedding and decoder blocks, all parameters empty.

    Args:
        shape: Sizes and variants.

    Attributes:
        embed_tokens: The embedding.
        layers: The blocks.
    """

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        rows = _empty(shape.vocabulary, shape.width)
        # Without given rows it draws some, for which torch imports its compiler.
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width, _weight=rows)
        self.layers = nn.ModuleList([_Block(shape) for _ in range(shape.num_blocks)])
        self.register_buffer("frequencies", rotary_frequencies(shape), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Run the decoder.

        Args:
            input_ids: int64 [B, T], rows of the embedding.

        Returns:
            Hidden states behind the last block, float32 [B, T, D].
        """
        states_BTD: torch.Tensor = self.embed_tokens(input_ids)
        positions_T1 = torch.arange(input_ids.shape[1], device=input_ids.device)[:, None].float()
        half_Th = positions_T1 * self.get_buffer("frequencies")
        angles_Th = torch.cat((half_Th, half_Th), dim=-1)
        rotation = (angles_Th.cos(), angles_Th.sin())
        for block in self.layers:
            states_BTD = block(states_BTD, rotation=rotation)
        return states_BTD


def rotary_frequencies(shape: LlamaShape) -> torch.Tensor:
    """Return the rotary frequencies.

    Args:
        shape: Names their base, and how they are stretched.

    Returns:
        Radians a token, float32 [h / 2].
    """
    exponents = torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size
    frequencies = 1.0 / (shape.theta**exponents)
    scaling = shape.scaling
    if scaling is None:
        return frequencies
    lengths = 2 * math.pi / frequencies
    low, high = scaling.low_frequency, scaling.high_frequency
    share = (scaling.context / lengths - low) / (high - low)
    between = (1 - share) * frequencies / scaling.factor + share * frequencies
    stretched = torch.where(lengths > scaling.context / low, frequencies / scaling.factor, between)
    return torch.where(lengths < scaling.context / high, frequencies, stretched)


class _Norm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(_empty(width), requires_grad=False)
        self._epsilon = epsilon

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        squares = states.pow(2).mean(-1, keepdim=True)
        return self.weight * (states * torch.rsqrt(squares + self._epsilon))


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self._head_size = shape.head_size
        self._is_shared = shape.num_heads != shape.num_shared_heads
        queries = shape.num_heads * shape.head_size
        keys = shape.num_shared_heads * shape.head_size
        self.q_proj = _linear(shape.width, queries, bias=shape.bias_inputs)
        self.k_proj = _linear(shape.width, keys, bias=shape.bias_inputs)
        self.v_proj = _linear(shape.width, keys, bias=shape.bias_inputs)
        self.o_proj = _linear(queries, shape.width, bias=shape.bias_output)
        if shape.norm_heads:
            self.q_norm = _Norm(shape.head_size, shape.epsilon)
            self.k_norm = _Norm(shape.head_size, shape.epsilon)
        self._norms_heads = shape.norm_heads

    def forward(
        self, states_BTD: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        split = (*states_BTD.shape[:2], -1, self._head_size)
        queries_BTHh = self.q_proj(states_BTD).view(split)
        keys_BTKh = self.k_proj(states_BTD).view(split)
        if self._norms_heads:
            queries_BTHh, keys_BTKh = self.q_norm(queries_BTHh), self.k_norm(keys_BTKh)
        mixed_BHTh = functional.scaled_dot_product_attention(
            _rotate(queries_BTHh.transpose(1, 2), *rotation),
            _rotate(keys_BTKh.transpose(1, 2), *rotation),
            self.v_proj(states_BTD).view(split).transpose(1, 2),
            is_causal=states_BTD.shape[1] > 1,
            scale=self._head_size**-0.5,
            enable_gqa=self._is_shared,
        )
        output: torch.Tensor = self.o_proj(mixed_BHTh.transpose(1, 2).flatten(2))
        return output


class _Mlp(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.width, shape.inner_width, bias=shape.bias_mlp)
        self.up_proj = _linear(shape.width, shape.inner_width, bias=shape.bias_mlp)
        self.down_proj = _linear(shape.inner_width, shape.width, bias=shape.bias_mlp)

    def forward(self, states_BTD: torch.Tensor) -> torch.Tensor:
        inner_BTF = functional.silu(self.gate_proj(states_BTD), inplace=True)
        inner_BTF *= self.up_proj(states_BTD)
        output: torch.Tensor = self.down_proj(inner_BTF)
        return output


class _Block(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.self_attn = _Attention(shape)
        self.mlp = _Mlp(shape)
        self.input_layernorm = _Norm(shape.width, shape.epsilon)
        self.post_attention_layernorm = _Norm(shape.width, shape.epsilon)

    def forward(
        self, states_BTD: torch.Tensor, *, rotation: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        attended_BTD = states_BTD + self.self_attn(self.input_layernorm(states_BTD), rotation)
        output: torch.Tensor = self.mlp(self.post_attention_layernorm(attended_BTD))
        return output.add_(attended_BTD)


def _rotate(heads_BHTh: torch.Tensor, cos_Th: torch.Tensor, sin_Th: torch.Tensor) -> torch.Tensor:
    """Turn the two halves of each head's features, taken as pairs, by the angles of the token."""
    first, second = heads_BHTh.chunk(2, dim=-1)
    return (heads_BHTh * cos_Th) + (torch.cat((-second, first), dim=-1) * sin_Th)


def _linear(num_in: int, num_out: int, *, bias: bool) -> nn.Linear:
    return nn.Linear(num_in, num_out, bias=bias, device=_META)


def _empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device=_META)
