"""Generate text from a checkpoint, piece by piece as it comes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.generation.streamers import TextStreamer

from forge.core.errors import CheckpointError, IncompatibleError, MissingExtraError
from forge.runtime.context import longest_context

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated.

    Attributes:
        text: All of it, special tokens left out.
        prompt_tokens: Length of the prompt.
        tokens: Number of tokens generated.
        prompt_s: Seconds until the first token.
        decode_s: Seconds for all others.
    """

    text: str
    prompt_tokens: int
    tokens: int
    prompt_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        """Tokens a second behind the first one; 0 when there was no other."""
        return (self.tokens - 1) / self.decode_s if self.tokens > 1 and self.decode_s > 0 else 0.0


def load_tokenizer(model: PreTrainedModel) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies beside a model's weights.

    Args:
        model: A model that ``forge.runtime.load`` returned.

    Raises:
        CheckpointError: There is none, or it is damaged.
    """
    root = model.name_or_path
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(root)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"'{root}' has no tokenizer that can be loaded. Copy tokenizer.json and "
            f"tokenizer_config.json from the original model beside the weights. ({error})"
        ) from error
    return tokenizer


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool | None = None,
    emit: Callable[[str], None] = lambda text: None,
) -> Generation:
    """Generate text behind a prompt.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompt: What to continue, or what to say to the model.
        max_new_tokens: Most tokens to generate; it also ends where the model ends.
        temperature: 0 always takes the likeliest token; above it, tokens are drawn.
        seed: Of the draws.
        chat: Whether the prompt is put into the model's chat template; ``None`` where there is
            one.
        emit: Receives the text in pieces.

    Returns:
        The text and how long it took.

    Raises:
        IncompatibleError: There is no chat template, the prompt is empty, or it is too long.
    """
    ids = _encode(tokenizer, prompt, chat=chat)
    _check_length(model, ids.shape[1], max_new_tokens)
    streamer = _Streamer(tokenizer, emit)
    torch.manual_seed(seed)
    logging.getLogger("transformers.generation.utils").setLevel(logging.ERROR)
    with torch.inference_mode():
        model.generate(  # type: ignore[operator]
            ids.to(model.device),
            attention_mask=torch.ones_like(ids).to(model.device),
            generation_config=_settings(model, tokenizer, max_new_tokens, temperature),
            streamer=streamer,
        )
    return Generation(
        "".join(streamer.pieces), ids.shape[1], streamer.tokens,
        streamer.first_s, streamer.last_s - streamer.first_s,
    )  # fmt: skip


class _Streamer(TextStreamer):
    """Hands text on, and looks at the clock."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, emit: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._emit = emit
        self._started = time.perf_counter()
        self.pieces: list[str] = []
        self.tokens = -1
        self.first_s = self.last_s = 0.0

    def put(self, value: torch.Tensor) -> None:
        """Take a token; the first call brings the prompt."""
        self.tokens += 1
        self.last_s = time.perf_counter() - self._started
        if self.tokens == 1:
            self.first_s = self.last_s
        super().put(value)  # type: ignore[no-untyped-call]

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on what no later token can change."""
        if text:
            self.pieces.append(text)
            self._emit(text)


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, *, chat: bool | None) -> torch.Tensor:
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if chat and not has_template:
        raise IncompatibleError(
            "The model has no chat template; leave --chat away to continue the prompt as text."
        )
    try:
        if has_template if chat is None else chat:
            found: Any = tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}],
                add_generation_prompt=True, return_tensors="pt", return_dict=True,
            )  # fmt: skip
        else:
            found = tokenizer(prompt, return_tensors="pt")
    except ImportError as error:
        raise MissingExtraError(
            "Chat templates need jinja2. Install it with pip install 'forge[quantize]', or add "
            "--no-chat."
        ) from error
    ids = found["input_ids"]
    assert isinstance(ids, torch.Tensor)
    if not ids.numel():
        raise IncompatibleError("The prompt is empty; the model needs a token to begin with.")
    return ids.long()


def _check_length(model: PreTrainedModel, prompt_tokens: int, max_new_tokens: int) -> None:
    longest = longest_context(model)
    if longest is not None and prompt_tokens + max_new_tokens > longest:
        raise IncompatibleError(
            f"The prompt has {prompt_tokens} tokens; with {max_new_tokens} more it is longer than "
            f"the {longest} that the model knows. Shorten it, or ask for fewer tokens."
        )


def _settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float,
) -> transformers.GenerationConfig:
    known = model.generation_config
    ends = getattr(known, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if isinstance(ends, list) else ends
    words: dict[str, object] = {"do_sample": False}
    if temperature > 0:
        words = {"do_sample": True, "temperature": temperature, "top_k": 0}
    return transformers.GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=pad, **words
    )
