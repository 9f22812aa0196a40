"""Turn prompts into the tokens that a model reads, as lm-eval's ``HFLM`` does.

A prompt is tokenized as one text, with the special tokens that its tokenizer adds by itself, unless
the text begins with the token of the beginning already, as a chat template writes it. Blanks at a
prompt's end belong to what follows, because tokenizers join a blank with the word behind it. An
option's token is the first one behind the prompt's in the tokens of both together. Where a
tokenizer would join the prompt's last sign with a letter, which lm-eval cannot score, it is the
token that spells the option behind the prompt's own tokens: what the model would have to write.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from forge.core.errors import EvaluationError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEEN_CHARACTERS: Final = 32
_SEEN_TOKENS: Final = 4


class Encoder:
    """Tokenizes prompts and what follows them.

    Args:
        tokenizer: The model's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        begin = tokenizer.bos_token_id
        begin = tokenizer.eos_token_id if begin is None else begin
        self._begin = None if begin is None else str(tokenizer.decode([begin]))
        self._known: dict[tuple[str, tuple[int, ...], str], int] = {}

    def encode(self, text: str) -> list[int]:
        """Return a text's tokens."""
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text."""
        found: list[list[int]] = [[] for _ in texts]
        for has_begin in (False, True):
            part = [place for place, text in enumerate(texts) if self._begins(text) == has_begin]
            if not part:
                continue
            options: dict[str, bool] = {"add_special_tokens": False} if has_begin else {}
            encoded = self._tokenizer([texts[place] for place in part], **options)["input_ids"]
            for place, tokens in zip(part, encoded, strict=True):
                found[place] = list(tokens)
        return found

    def _begins(self, text: str) -> bool:
        return bool(self._begin) and text.startswith(str(self._begin))

    def prompts(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the tokens of prompts, without the blanks at their ends."""
        return [tuple(tokens) for tokens in self.encode_all([text.rstrip() for text in texts])]

    def option_tokens(
        self, text: str, tokens: tuple[int, ...], options: Sequence[str]
    ) -> tuple[int, ...]:
        """Return the token that each option begins with behind a prompt.

        Args:
            text: The prompt.
            tokens: Its tokens, as ``prompts`` returns them.
            options: What follows.

        Returns:
            A token for each option.

        Raises:
            EvaluationError: Two options begin with the same token, or no token spells an option.
        """
        found = tuple(self._option_token(text, tokens, option) for option in options)
        for place, token in enumerate(found):
            first = found.index(token)
            if first != place:
                raise EvaluationError(
                    f"The options {options[first]!r} and {options[place]!r} begin with the same "
                    f"token behind the prompt's end {text[-20:]!r}: "
                    f"{self._tokenizer.decode([token])!r}. Give them labels that differ at once, "
                    "such as letters."
                )
        return found

    def _option_token(self, text: str, tokens: tuple[int, ...], option: str) -> int:
        # A long prompt's beginning does not change how its end is joined with a letter.
        key = (text[-_SEEN_CHARACTERS:], tokens[-_SEEN_TOKENS:], option)
        known = self._known.get(key)
        if known is not None:
            return known
        whole = self.encode(text + option)
        if tuple(whole[: len(tokens)]) == tokens and len(whole) > len(tokens):
            token = whole[len(tokens)]
        else:
            token = self._spelling_token(text, tokens, option)
        self._known[key] = token
        return token

    def _spelling_token(self, text: str, tokens: tuple[int, ...], option: str) -> int:
        found = self._tokenizer.convert_tokens_to_ids(option)
        end = tokens[-_SEEN_TOKENS:]
        if isinstance(found, int) and self.decode((*end, found)) == self.decode(end) + option:
            return found
        raise EvaluationError(
            f"The tokenizer joins the option {option!r} with the prompt's end {text[-20:]!r}, and "
            "has no token that spells it alone. Let the prompt end otherwise, as with a line feed."
        )

    def decode(self, tokens: Sequence[int]) -> str:
        """Return tokens as text, special tokens included."""
        return str(self._tokenizer.decode(list(tokens)))
