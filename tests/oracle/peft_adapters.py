"""Adapters that PEFT itself makes, saves and merges, for comparing ours with its."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.recipes.reference import ModelReference
from tests.architectures.tiny_models import tiny_model
from tests.factory import from_bytes, read_values


def write_base(folder: Path, case: str, *, tied: bool = False) -> Path:
    """Save a tiny model in bfloat16, as transformers does."""
    model = tiny_model(case)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def write_adapter(
    base: Path, folder: Path, config: PeftConfig, *, resized: int | None = None, **saving: object
) -> Path:
    """Put an adapter with random weights on a model, and save it as PEFT does."""
    model = _load(base, resized)
    torch.manual_seed(1)
    with _quiet():
        tuned = get_peft_model(model, config)
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad:
                is_factor = "lora_" in name and "magnitude" not in name
                torch.nn.init.normal_(parameter, mean=0.0 if is_factor else 0.5, std=0.2)
        if resized is not None:
            # Rows that a resize made up are random: a reader must take the adapter's.
            torch.nn.init.normal_(tuned.get_input_embeddings().weight, std=0.3)
        tuned.save_pretrained(folder, **saving)
    return folder


def merged_by_peft(
    base: Path, adapter: Path, folder: Path, *, resized: int | None = None
) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Let PEFT merge and transformers save, and return the tensors and the config of that."""
    with _quiet():
        merged = PeftModel.from_pretrained(_load(base, resized), adapter).merge_and_unload()
        merged.save_pretrained(folder)
    return read_values(folder), json.loads((folder / "config.json").read_text())


def merged_by_forge(base: Path, adapter: Path) -> tuple[dict[str, np.ndarray], Checkpoint]:
    """Return every tensor that forge reads of a model with an adapter."""
    checkpoint = open_checkpoint(ModelReference(str(base), lora=ModelReference(str(adapter))))
    source = checkpoint.source
    values = {}
    for name in source.names():
        info = source.info(name)
        assert info.dtype == "BF16"
        values[name] = from_bytes(source.read(name), info.dtype, info.shape)
    source.close()
    return values, checkpoint


def units_apart(ours: np.ndarray, theirs: np.ndarray, *scales: np.ndarray) -> float:
    """Return the largest distance in units of the last place in bfloat16.

    Args:
        ours: Values.
        theirs: Values.
        scales: Further values whose unit counts where it is larger: of what was summed, where the
            other side rounded a part of the sum by itself.
    """
    size = np.maximum.reduce([np.abs(ours), np.abs(theirs), *map(np.abs, scales)])
    unit = np.exp2(np.floor(np.log2(np.maximum(size, 2.0**-120))) - 7)
    return float(np.max(np.abs(ours - theirs) / unit, initial=0.0))


def _load(base: Path, resized: int | None) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    if resized is not None:
        model.resize_token_embeddings(resized, mean_resizing=False)
    return model


class _quiet(warnings.catch_warnings):  # noqa: N801
    """PEFT and transformers warn of each other's habits, and of what is tried here."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")


def lora(*targets: str, **settings: object) -> LoraConfig:
    """Return PEFT's settings of a small LoRA."""
    values: dict[str, object] = {"r": 4, "lora_alpha": 10, "task_type": "CAUSAL_LM"} | settings
    return LoraConfig(target_modules=list(targets), **values)
