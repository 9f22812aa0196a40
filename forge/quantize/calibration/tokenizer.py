"""The model's own tokenizer, narrowed to what calibration asks of it.

The only file of calibration that imports transformers for text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forge.checkpoints.chat_templates import template_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import read_tokenizer_files
from forge.core.errors import CheckpointError, IncompatibleError, MissingExtraError
from forge.quantize.calibration.documents import Message

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json", "spiece.model")
_MARK = "\ue000"
"""A character of the private use area, which no template and no text contains."""


@dataclass(frozen=True, slots=True)
class ModelTokenizer:
    """A model's tokenizer.

    Attributes:
        encode: Turns text into tokens, without special ones of its own.
        prefix: What stands at the beginning of every sequence: the BOS token, or nothing.
        bos: Token that a document begins with when nothing else does.
        ends: Tokens that end a document or a turn.
        render: Turns a chat into text, or ``None`` without a chat template; the flag asks for
            the beginning of the assistant's answer.
    """

    encode: Callable[[str], list[int]]
    prefix: tuple[int, ...]
    bos: int | None
    ends: frozenset[int]
    render: Callable[[Sequence[Message], bool], str] | None

    def encode_document(self, text: str) -> list[int]:
        """Return a document's tokens, its beginning marked as the model is used to."""
        return [*self.prefix, *self.encode(text)]

    def encode_chat(self, messages: Sequence[Message], *, answer: bool = False) -> list[int]:
        """Return a chat's tokens, rendered; the template brings its own special tokens."""
        return self.encode(self._rendered(messages, answer))

    def turn_frame(self) -> tuple[list[int], list[int]]:
        """Return what stands before a user's words, and from behind them to the answer."""
        before, mark, after = self._rendered([Message("user", _MARK)], True).partition(_MARK)
        if not mark:
            raise IncompatibleError(
                "The model's chat template leaves out what the user says, so it cannot frame "
                "calibration text. Calibrate without --chat-template."
            )
        return self.encode(before), self.encode(after)

    def _rendered(self, messages: Sequence[Message], answer: bool) -> str:
        if self.render is None:
            raise IncompatibleError("The model has no chat template.")
        return self.render(messages, answer)


def check_tokenizer(checkpoint: Checkpoint, *, chat_template: bool) -> None:
    """Refuse a model without what calibration text needs, looking at file names alone.

    Args:
        checkpoint: The model.
        chat_template: Whether texts are to be rendered.

    Raises:
        CheckpointError: It has no tokenizer.
        IncompatibleError: It has no chat template, and one is asked for.
    """
    files = read_tokenizer_files(checkpoint.tokenizer_root)
    if not any(name in files for name in _VOCABULARIES):
        raise CheckpointError(
            f"'{checkpoint.reference}' has no tokenizer, so text cannot become tokens. Copy its "
            "tokenizer files into the folder, or calibrate on stored tokens (.npy)."
        )
    if chat_template and template_of(files) is None:
        raise IncompatibleError(
            f"'{checkpoint.reference}' has no chat template. Calibrate without --chat-template, or "
            "add a chat_template.jinja to the model."
        )


def open_tokenizer(checkpoint: Checkpoint) -> ModelTokenizer:
    """Load a model's tokenizer from its folder.

    Args:
        checkpoint: The model.

    Returns:
        The tokenizer.

    Raises:
        MissingExtraError: transformers is not installed.
        CheckpointError: It cannot be loaded.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            "Calibration text needs transformers: pip install 'forge[quantize]'."
        ) from error
    try:
        loaded = AutoTokenizer.from_pretrained(
            str(checkpoint.tokenizer_root), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"The tokenizer of '{checkpoint.reference}' cannot be loaded: {reason}"
        ) from error

    def encode(text: str) -> list[int]:
        # Warnings about length are about the model's context, which is checked elsewhere.
        return list(loaded(text, add_special_tokens=False, verbose=False).input_ids)

    def render(messages: Sequence[Message], answer: bool) -> str:
        turns = [{"role": item.role, "content": item.content} for item in messages]
        try:
            return str(
                loaded.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)
            )
        except Exception as error:
            # A template is a program of its author's; it raises what it likes.
            raise IncompatibleError(
                f"The chat template of '{checkpoint.reference}' refuses a chat of "
                f"{', '.join(item.role for item in messages)}: {error}"
            ) from error

    empty = list(loaded("").input_ids)
    bos = loaded.bos_token_id
    ends = {loaded.eos_token_id, *_configured_ends(checkpoint)} - {None}
    return ModelTokenizer(
        encode,
        prefix=tuple(empty[:1]) if bos is not None and empty[:1] == [bos] else (),
        bos=bos if bos is not None else loaded.eos_token_id,
        ends=frozenset(ends),
        render=render if loaded.chat_template else None,
    )


def _configured_ends(checkpoint: Checkpoint) -> list[int]:
    held = checkpoint.config.get("eos_token_id")
    listed = held if isinstance(held, list) else [held]
    return [token for token in listed if type(token) is int]
