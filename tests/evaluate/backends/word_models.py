"""Tiny models of every family with a tokenizer whose tokens are letters, for tests of backends."""

from __future__ import annotations

import random
import string
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from forge.checkpoints.checkpoint import open_checkpoint
from forge.evaluate.contract import ChoiceRequest, Prompt
from forge.recipes.reference import ModelReference
from forge.runtime.any_model import LoadedModel

CHARACTERS = string.ascii_letters + string.digits + " .,:;()*\n?-"
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def letter_tokenizer(*, begin: bool = True) -> transformers.PreTrainedTokenizerFast:
    """Return a tokenizer with one token a character; ``begin`` lets it add ``<s>`` by itself."""
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    tokenizer.add_special_tokens(list(SPECIAL))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def saved(model: transformers.PreTrainedModel, folder: Path, *, begin: bool = True) -> Path:
    """Save a model with that tokenizer."""
    model.save_pretrained(folder)
    letter_tokenizer(begin=begin).save_pretrained(folder)
    return folder


def loaded(model: transformers.PreTrainedModel, folder: Path, *, begin: bool = True) -> LoadedModel:
    """Return a model as ``load_any`` does, without loading it anew."""
    saved(model, folder, begin=begin)
    checkpoint = open_checkpoint(ModelReference(str(folder)))
    dtype = str(model.dtype).removeprefix("torch.")
    loaded = LoadedModel(model.eval(), "forge", dtype, checkpoint)
    vars(loaded)["tokenizer"] = letter_tokenizer(begin=begin)
    return loaded


def requests(
    count: int = 7, *, prefix: str = "Say A or B. Aspirin?:(", seed: int = 0, longest: int = 14
) -> list[ChoiceRequest]:
    """Return questions of unequal lengths behind one prefix."""
    draw = random.Random(seed)
    return [
        ChoiceRequest(
            Prompt(
                prefix,
                "".join(
                    draw.choice(string.ascii_lowercase) for _ in range(draw.randint(1, longest))
                )
                + ":(",
            ),
            ("A", "B", "C"),
        )
        for _ in range(count)
    ]


@torch.no_grad()
def plain_log_probabilities(loaded: LoadedModel, text: str) -> torch.Tensor:
    """Return the next token's log-probabilities from one plain forward pass, in float64."""
    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    logits: torch.Tensor = loaded.model(input_ids=ids, use_cache=False).logits
    return logits[0, -1].double().log_softmax(-1)
