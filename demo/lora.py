"""Low-rank adapters (LoRA) in PEFT's layout: train them, write them, fold them into weights.

An adapter adds ``(alpha / rank) · B · A`` to a linear layer's weight.

On disk it is two files, as PEFT writes them and as PEFT, mergekit and forge read them:

    adapter_config.json         rank, alpha, target modules
    adapter_model.safetensors   base_model.model.<module>.lora_A.weight   [rank, in]
                                base_model.model.<module>.lora_B.weight   [out, rank]

Reference: LoRA, arXiv 2106.09685.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from demo.base_model import DemoError

PREFIX = "base_model.model."
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA as read from disk.

    Attributes:
        rank: Inner dimension of every pair.
        alpha: Scale numerator; a weight gains ``alpha / rank`` times its product.
        pairs: Module name, such as ``model.layers.0.self_attn.q_proj``, to ``(A, B)`` with
            A ``[rank, in]`` and B ``[out, rank]``.
    """

    rank: int
    alpha: float
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class LoraLinear(nn.Module):
    """A frozen linear layer plus a trainable low-rank term, kept in float32.

    The products run in the base's dtype; only the factors and their optimizer state need the
    precision, because a step is much smaller than a bfloat16 ulp of the factor.
    """

    def __init__(self, base: nn.Linear, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``base(x) + scale · B · A · x``."""
        inner = functional.linear(inputs, self.lora_A.to(inputs.dtype)) * self.scale
        outputs: torch.Tensor = self.base(inputs)
        return outputs + functional.linear(inner, self.lora_B.to(inputs.dtype))


def attach(
    model: nn.Module, *, rank: int, alpha: float, first_layer: int = 0
) -> dict[str, LoraLinear]:
    """Freeze ``model`` and put a LoRA on each target module from ``first_layer`` up, in place.

    Args:
        model: A decoder whose blocks are named ``model.layers.<index>``.
        rank: Inner dimension of every pair.
        alpha: Scale numerator; the product is multiplied by ``alpha / rank``.
        first_layer: Index of the lowest block that is adapted.

    Returns:
        The new layers by module name, in the model's order.
    """
    model.requires_grad_(False)
    found = [
        (name, module)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in TARGETS
        and isinstance(module, nn.Linear)
        and int(name.split(".")[2]) >= first_layer
    ]
    layers = {}
    for name, module in found:
        parent_name, _, attribute = name.rpartition(".")
        layers[name] = LoraLinear(module, rank=rank, alpha=alpha)
        setattr(model.get_submodule(parent_name), attribute, layers[name])
    return layers


def write_adapter(
    layers: Mapping[str, LoraLinear], folder: Path, *, rank: int, alpha: float, base_name: str
) -> None:
    """Write the adapter in PEFT's layout, its factors rounded to bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, layer in layers.items():
        for factor in ("lora_A", "lora_B"):
            values = getattr(layer, factor).detach().to(torch.bfloat16).contiguous()
            tensors[f"{PREFIX}{name}.{factor}.weight"] = values
    config = {
        "layers_to_transform": sorted({int(name.split(".")[2]) for name in layers}),
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": list(TARGETS),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    weights = folder / "adapter_model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors 0.8 leaves its files readable by their owner only


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter and check that its tensors are what its configuration says.

    Raises:
        DemoError: A factor lacks its partner, has another rank, or sits on an unnamed module.
    """
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    rank = config["r"]
    tensors = load_file(folder / "adapter_model.safetensors")
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    names = {key.removeprefix(PREFIX).rpartition(".lora_")[0]: None for key in tensors}
    for name in names:
        try:
            A, B = (tensors.pop(f"{PREFIX}{name}.lora_{factor}.weight") for factor in "AB")
        except KeyError as error:
            raise DemoError(f"{folder}: '{name}' lacks {error.args[0]}") from error
        if name.rpartition(".")[2] not in config["target_modules"]:
            raise DemoError(f"{folder}: '{name}' is not among the target modules")
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != rank or B.shape[1] != rank:
            raise DemoError(
                f"{folder}: '{name}' has A {list(A.shape)} and B {list(B.shape)}, not rank {rank}"
            )
        pairs[name] = (A, B)
    return Adapter(rank=rank, alpha=config["lora_alpha"], pairs=pairs)


def fold(weights: Mapping[str, torch.Tensor], adapter: Adapter) -> dict[str, torch.Tensor]:
    """Return ``weights`` with the adapter added: ``W + (alpha / rank) · B · A``.

    The sum is formed in float32 and rounded once to the weight's dtype. Tensors without a pair
    are returned as they are.

    Args:
        weights: Tensors by checkpoint name; the linear weights are ``[out, in]``.
        adapter: Its modules must all exist in ``weights``.

    Raises:
        DemoError: A module of the adapter is missing, or its shape is not the product's.
    """
    folded = dict(weights)
    for name, (A, B) in adapter.pairs.items():
        key = f"{name}.weight"
        if key not in weights:
            raise DemoError(f"The adapter changes '{key}', which the model does not have.")
        weight = weights[key]
        if weight.shape != (B.shape[0], A.shape[1]):
            raise DemoError(
                f"'{key}' is {list(weight.shape)}; the adapter was made for "
                f"{[B.shape[0], A.shape[1]]}."
            )
        delta = (B.float() @ A.float()) * (adapter.alpha / adapter.rank)
        folded[key] = (weight.float() + delta).to(weight.dtype)
    return folded
