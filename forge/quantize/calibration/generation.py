"""Let a model write its own calibration set.

Nothing needs to be downloaded, the text is in the model's own domain, and what it sees while it
is quantized is what it will see when it runs: its own words. Weights stay where they are, in the
mapped files; only the cache of keys and values needs memory.

Each token is drawn at temperature 1 from the model's whole distribution by inverting its
cumulative sum at a number that depends on (seed, row, position) alone. Batches have a size of
their own, whatever the memory and the number of threads, so the same model and seed give the
same tokens; across kinds of processors, whose last bits differ, only the stored tokens repeat.

Legend: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.progress import Progress
from forge.core.errors import IncompatibleError, NonFiniteError
from forge.quantize.calibration.mapped_model import load_mapped
from forge.quantize.calibration.openings import Openings, Row, first_quantiles, rows_of
from forge.quantize.calibration.stored import Tokens
from forge.quantize.calibration.tokenizer import ModelTokenizer
from forge.recipes.quantize_types import CalibrationRecipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Floats = npt.NDArray[np.float64]

_CACHE_BYTES: Final = 1 << 30
"""Most bytes of keys and values of one batch."""
_MOST_ROWS: Final = 64
_STAGE_SECONDS: Final = 10.0


def generate(
    checkpoint: Checkpoint,
    recipe: CalibrationRecipe,
    tokenizer: ModelTokenizer,
    prompts: tuple[tuple[int, ...], ...],
    *,
    device: str,
    progress: Progress,
) -> Tokens:
    """Let a model write text.

    Args:
        checkpoint: The model.
        recipe: How many sequences of which length, and the seed.
        tokenizer: Its tokenizer.
        prompts: Tokens of the user's openings; empty for openings of its own.
        device: Where to calculate.
        progress: Hears how it goes.

    Returns:
        int64 [B, T].

    Raises:
        MissingExtraError: torch or transformers is not installed.
        CheckpointError: The weights do not make the model that its configuration describes.
        IncompatibleError: Neither a beginning nor an end of a document is known.
        NonFiniteError: The model's own output is not finite.
    """
    openings = _openings(recipe, tokenizer, prompts)
    model = load_mapped(checkpoint, device=device)
    rng = [np.random.Generator(np.random.Philox(key=recipe.seed, counter=[0, 0, row, 0]))
           for row in range(recipe.samples)]  # fmt: skip
    uniforms_BT = np.stack([generator.random(recipe.tokens) for generator in rng])
    firsts_B = None if prompts else first_quantiles(recipe.samples, uniforms_BT[:, 0], recipe.seed)
    size = batch_rows(checkpoint, recipe)
    clock = _Clock(recipe, progress)
    batches = []
    for begin in range(0, recipe.samples, size):
        end = min(begin + size, recipe.samples)
        rows = rows_of(openings, end - begin, begin, recipe.seed)
        quantiles = uniforms_BT[begin:end]
        firsts = None if firsts_B is None else firsts_B[begin:end]
        _write(model, rows, quantiles, firsts, label=str(checkpoint.reference), clock=clock)
        batches += [row.tokens for row in rows]
    return np.array(batches, np.int64)


def batch_rows(checkpoint: Checkpoint, recipe: CalibrationRecipe) -> int:
    """Return how many rows are written side by side; the model and the recipe alone decide.

    Args:
        checkpoint: The model.
        recipe: How long the rows are.

    Returns:
        At least 1.
    """
    size = cache_bytes(checkpoint, recipe.tokens)
    return max(1, min(_MOST_ROWS, recipe.samples, _CACHE_BYTES // max(size, 1)))


def cache_bytes(checkpoint: Checkpoint, num_tokens: int) -> int:
    """Return the bytes of keys and values of one row.

    Args:
        checkpoint: The model.
        num_tokens: T.

    Returns:
        Bytes, for elements of two bytes.
    """
    config = checkpoint.config
    architecture = architecture_of(config, tensor_names=checkpoint.source.names())
    text = architecture.text_config(config)

    def number(*keys: str) -> int:
        found = (text.get(key) for key in keys)
        return next((value for value in found if type(value) is int and value > 0), 0)

    hidden = number("hidden_size", "n_embd", "d_model")
    heads = number("num_attention_heads", "n_head", "n_heads") or 1
    keys = number("num_key_value_heads") or heads
    width = number("head_dim") or hidden // heads
    return 2 * 2 * architecture.num_layers(config) * keys * width * num_tokens


def _openings(
    recipe: CalibrationRecipe, tokenizer: ModelTokenizer, prompts: tuple[tuple[int, ...], ...]
) -> Openings:
    if prompts:
        return Openings(prompts, (), tokenizer.ends)
    if recipe.chat_template:
        before, after = tokenizer.turn_frame()
        return Openings((tuple(before),), tuple(after), tokenizer.ends)
    if tokenizer.bos is None:
        raise IncompatibleError(
            "The model's tokenizer has neither a BOS nor an EOS token to begin a text with. Give "
            "prompts (--calibration self:FILE) or text (--calibration FILE)."
        )
    return Openings(((tokenizer.bos,),), (), tokenizer.ends)


def _write(
    model: PreTrainedModel,
    rows: list[Row],
    uniforms_BT: Floats,
    firsts_B: Floats | None,
    *,
    label: str,
    clock: _Clock,
) -> None:
    """Fill the rows."""
    import torch

    num_tokens = uniforms_BT.shape[1]
    # What every row must take anyway is read in one pass.
    num_given = min(num_tokens, *(len(row.must) for row in rows))
    given = [[row.take(-1) for _ in range(num_given)] for row in rows]
    are_first = firsts_B is not None
    with torch.inference_mode():
        ids_BT = torch.tensor(given, device=model.device)
        cache = None
        while len(rows[0].tokens) < num_tokens:
            position = len(rows[0].tokens)
            result = model(
                input_ids=ids_BT, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache = result.past_key_values
            quantiles = uniforms_BT[:, position]
            if are_first and firsts_B is not None:
                quantiles, are_first = firsts_B, False
            logits_BV = result.logits[:, -1].float()
            _forbid_ends(logits_BV, rows)
            choices = _choose(logits_BV, quantiles, label=label, position=position)
            taken = [row.take(choice) for row, choice in zip(rows, choices, strict=True)]
            ids_BT = torch.tensor(taken, device=model.device)[:, None]
            clock.tick(len(rows))


def _forbid_ends(logits_BV: torch.Tensor, rows: list[Row]) -> None:
    import torch

    ends = sorted(end for end in rows[0].openings.ends if end < logits_BV.shape[1])
    bound = [index for index, row in enumerate(rows) if not row.may_end]
    for end in ends:
        logits_BV[bound, end] = -torch.inf


def _choose(
    logits_BV: torch.Tensor, quantiles_B: Floats, *, label: str, position: int
) -> list[int]:
    import torch

    probabilities_BV = torch.softmax(logits_BV, dim=-1)
    if not bool(torch.isfinite(probabilities_BV).all()):
        raise NonFiniteError(
            f"'{label}' computes NaN or infinity for token {position} of its own text. Its weights "
            "are damaged, or its activations overflow float16; look at it with 'forge inspect'."
        )
    sums_BV = probabilities_BV.cumsum(dim=-1, dtype=torch.float64)
    wanted_B1 = torch.as_tensor(quantiles_B, device=sums_BV.device)[:, None] * sums_BV[:, -1:]
    found_B1 = torch.searchsorted(sums_BV, wanted_B1, right=True)
    return [int(token) for token in found_B1.clamp_(max=sums_BV.shape[-1] - 1)[:, 0].tolist()]


class _Clock:
    """Tells now and then how much has been written and how long the rest takes."""

    def __init__(self, recipe: CalibrationRecipe, progress: Progress) -> None:
        self._total = recipe.num_tokens
        self._progress = progress
        self._done = 0
        self._began = self._said = time.monotonic()

    def tick(self, num_tokens: int) -> None:
        """Count the tokens of one step."""
        self._done += num_tokens
        now = time.monotonic()
        if now - self._said < _STAGE_SECONDS:
            return
        self._said = now
        left = (now - self._began) * (self._total - self._done) / self._done
        self._progress.stage(
            f"letting the model write: {self._done:,} of {self._total:,} tokens, {left:.0f} s left"
        )
