"""Experts that stay quantized, each a linear layer of its own.

transformers 5 stacks the experts of a block into one tensor and multiplies slices of it; packed
weights cannot be stacked that way. This module takes the stack's place and answers the same call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import torch

from forge.runtime.linear import QuantizedLinear

EXPERT_LINEARS: Final = (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj"))
"""What checkpoints call an expert's gate, up and down projections."""


class QuantizedExperts(torch.nn.Module):
    """The experts of a mixture, run one after another on the tokens that chose them.

    Args:
        experts: Gate, up and down projection of each.
        gate: Joins the outputs of gate and up projection, side by side, into the input of down.
    """

    def __init__(
        self,
        experts: Iterable[tuple[QuantizedLinear, QuantizedLinear, QuantizedLinear]],
        gate: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList(torch.nn.ModuleList(expert) for expert in experts)
        self.gate = gate

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Run every chosen expert on its tokens.

        Args:
            hidden_states: [tokens, width].
            top_k_index: Experts that each token chose, [tokens, k].
            top_k_weights: Their weights, [tokens, k].

        Returns:
            [tokens, width], the weighted sums.
        """
        total = torch.zeros_like(hidden_states)
        for number in torch.unique(top_k_index).tolist():
            if number >= len(self.experts):
                # Another process's expert, in expert parallelism.
                continue
            gate, up, down = self.experts[number]
            token, choice = torch.where(top_k_index == number)
            inputs = hidden_states[token]
            inner = self.gate(torch.cat([gate(inputs), up(inputs)], dim=-1))
            outputs = down(inner) * top_k_weights[token, choice, None]
            total.index_add_(0, token, outputs.to(total.dtype))
        return total
