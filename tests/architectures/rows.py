"""Every row of the table as tiny checkpoints with the real structure, saved by transformers.

A row has a base and two fine-tunes of it in bfloat16, each with a tokenizer of letters. Widths are
multiples of 64, so that every format takes every layer. ``test_the_table.py`` and
``end_to_end/test_every_verb.py`` run on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel

from tests.architectures.tiny_models import tiny_model
from tests.evaluate.backends.word_models import letter_tokenizer

BASE, FIRST, SECOND = "base", "first", "second"
_EYES = ("visual", "vision", "multi_modal")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: What people call the family.
        family: ``model_type``.
        case: Its tiny model; see ``tiny_models``.
        sizes: What its configuration says otherwise, for widths that divide by 64.
        keep: What bitsandbytes must leave in full precision.
        refusal: A word of the message that quantizing ends in, where it cannot be done.
        reason: Why not, for the table.
        is_quick: Whether the default test run includes it.
    """

    title: str
    family: str
    case: str
    sizes: Mapping[str, object] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    refusal: str | None = None
    reason: str = ""
    is_quick: bool = False

    @property
    def has_experts(self) -> bool:
        """Whether its layers choose between experts."""
        return bool(self.keep) or "experts" in self.reason


_INNER = {"intermediate_size": 128}
_EXPERTS = {"intermediate_size": 128, "moe_intermediate_size": 64}
_SHARED = _EXPERTS | {"shared_expert_intermediate_size": 64}
_LATENT = _EXPERTS | {"q_lora_rank": 64, "kv_lora_rank": 64}
_WIDE = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 128}
_KEEP = ("experts",)

ROWS = {
    row.title: row
    for row in (
        Row("Llama 2", "llama", "llama", _INNER, is_quick=True),
        Row("Llama 3 8B", "llama", "llama 3 8b", _INNER),
        Row("Llama 3 70B", "llama", "llama 3 70b", {"intermediate_size": 192}),
        Row("Mistral", "mistral", "mistral", _INNER),
        Row("Mixtral", "mixtral", "mixtral", _INNER, _KEEP),
        Row("Qwen2", "qwen2", "qwen2", _INNER),
        Row("Qwen2-MoE", "qwen2_moe", "qwen2_moe", _SHARED, _KEEP),
        Row("Qwen3", "qwen3", "qwen3", _INNER),
        Row("Qwen3-MoE", "qwen3_moe", "qwen3_moe", _EXPERTS, _KEEP),
        Row("Qwen2-VL", "qwen2_vl", "qwen2_vl", _INNER, is_quick=True),
        Row("Qwen2.5-VL", "qwen2_5_vl", "qwen2_5_vl", _INNER),
        Row("LLaVA", "llava", "llava", _INNER),
        Row("Gemma", "gemma", "gemma", _INNER),
        Row("Gemma 2", "gemma2", "gemma2", _INNER),
        Row("Gemma 3, text", "gemma3_text", "gemma3_text", _INNER),
        Row("Gemma 3", "gemma3", "gemma3", _INNER),
        Row("DeepSeek-V2", "deepseek_v2", "deepseek_v2", _LATENT, _KEEP),
        Row(
            "DeepSeek-V2-Lite", "deepseek_v2", "deepseek_v2 lite", _LATENT | {"q_lora_rank": None},
            _KEEP,
        ),
        Row("DeepSeek-V3", "deepseek_v3", "deepseek_v3", _LATENT, _KEEP, is_quick=True),
        Row(
            "GPT-OSS", "gpt_oss", "gpt_oss", refusal="experts fused into one tensor",
            reason="the experts of a layer are one tensor, which no format has a layout for",
        ),
        Row("Phi", "phi", "phi", _INNER),
        Row("Phi-3", "phi3", "phi3", _INNER),
        Row("BLOOM", "bloom", "bloom"),
        Row("GPT-2", "gpt2", "gpt2"),
        Row("GPT-NeoX", "gpt_neox", "gpt_neox", _INNER),
        Row("GPT-J", "gptj", "gptj"),
        Row("MPT", "mpt", "mpt"),
        Row("Falcon 7B", "falcon", "falcon 7b"),
        Row("Falcon 40B", "falcon", "falcon 40b"),
        Row("StableLM", "stablelm", "stablelm", _INNER),
        Row("StarCoder2", "starcoder2", "starcoder2", _INNER),
        Row("OLMo 2", "olmo2", "olmo2", _INNER),
        Row("Cohere", "cohere", "cohere", _INNER),
        Row("SmolLM3", "smollm3", "smollm3", _INNER),
        Row("Granite", "granite", "granite", _INNER),
        # Scales that went into a bias are checked by a fit over the rows of the layer that it
        # feeds; 64 are too few for that.
        Row("OPT", "opt", "opt", _WIDE),
    )
}  # fmt: skip


def write_row(title: str, folder: Path) -> Path:
    """Write a row's three models, and return the folder that they lie in.

    The fine-tunes are the base with small steps; what a vision-language model sees with is that
    of the base in all three.
    """
    row = ROWS[title]
    torch.manual_seed(1)
    model = tiny_model(row.case, sizes=row.sizes).to(torch.bfloat16)
    _save(model, folder / BASE)
    start = {name: values.clone() for name, values in model.named_parameters()}
    for name in (FIRST, SECOND):
        with torch.no_grad():
            for key, values in model.named_parameters():
                if not any(word in key for word in _EYES):
                    values.copy_(start[key] + 0.02 * torch.randn(values.shape))
        _save(model, folder / name)
    return folder


def _save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
