"""The tokens of a GGUF, and what every tokenizer that is rebuilt from them has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forge.checkpoints.gguf.metadata import Metadata

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's types of tokens, which it has from SentencePiece."""
_SPECIAL: Final = (UNKNOWN, CONTROL)


class CannotRebuildError(Exception):
    """A tokenizer that gives the original's numbers cannot be made; says why, as a clause."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a file.

    Attributes:
        tokens: By number; rows without a token are ``None``.
        types: llama.cpp's type of each.
    """

    tokens: tuple[str | None, ...]
    types: tuple[int, ...]

    def of_type(self, *types: int) -> list[int]:
        """Return the numbers of the tokens of these types."""
        return [
            number
            for number, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if token is not None and kind in types
        ]

    def spelled(self, number: int) -> str:
        """Return a token.

        Raises:
            CannotRebuildError: There is none of that number.
        """
        token = self.tokens[number] if number < len(self.tokens) else None
        if token is None:
            raise CannotRebuildError(f"it refers to token {number}, which it does not have")
        return token

    def has(self, number: int, token: str) -> bool:
        """Tell whether a token has that number."""
        return number < len(self.tokens) and self.tokens[number] == token

    def added_tokens(self) -> list[dict[str, object]]:
        """Return the tokens that are found in text before it is cut, as ``tokenizer.json`` does."""
        return [
            {
                "id": number,
                "content": self.spelled(number),
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": self.types[number] in _SPECIAL,
            }
            for number in self.of_type(*_SPECIAL, USER_DEFINED)
        ]

    def bpe(
        self,
        merges: Sequence[tuple[str, str]],
        *,
        unknown: str | None = None,
        ignore_merges: bool = False,
        byte_fallback: bool = False,
    ) -> dict[str, object]:
        """Return a BPE model as ``tokenizer.json`` holds it.

        Added tokens are in its vocabulary where they lie between other tokens. Those that
        follow get their numbers in turn, so if there is a hole among them, they are in it, too.

        Args:
            merges: Pairs of tokens, in the order in which they are joined.
            unknown: The token for characters that no token covers.
            ignore_merges: Whether a word that is a token is not cut at all.
            byte_fallback: Whether such characters become bytes first.
        """
        added = set(self.of_type(CONTROL, USER_DEFINED))
        plain = [n for n, token in enumerate(self.tokens) if token is not None and n not in added]
        end = plain[-1] + 1 if plain else 0
        following = sorted(number for number in added if number >= end)
        if following != list(range(end, end + len(following))):
            end = len(self.tokens)
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": byte_fallback,
            "byte_fallback": byte_fallback,
            "ignore_merges": ignore_merges,
            "vocab": {token: n for n, token in enumerate(self.tokens[:end]) if token is not None},
            "merges": merges,
        }


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """Read the tokens of a file.

    Args:
        metadata: The file's metadata.

    Raises:
        CannotRebuildError: There are none, or they are not what a vocabulary is made of.
        CheckpointError: The metadata are of other types than they should be.
    """
    raw = metadata.strings("tokenizer.ggml.tokens")
    if not raw:
        raise CannotRebuildError("the file has no list of tokens")
    types = metadata.numbers("tokenizer.ggml.token_type") or [NORMAL] * len(raw)
    if len(types) != len(raw):
        raise CannotRebuildError(f"it has {len(raw)} tokens and {len(types)} types of tokens")
    tokens: list[str | None] = []
    try:
        for number, (token, kind) in enumerate(zip(raw, types, strict=True)):
            # What converters write for rows of the embedding that no token has.
            is_filler = kind == UNUSED and token == b"[PAD%d]" % number
            tokens.append(None if is_filler else token.decode("utf-8"))
    except UnicodeDecodeError:
        raise CannotRebuildError(f"token {len(tokens)} is not UTF-8") from None
    present = [token for token in tokens if token is not None]
    if len(set(present)) != len(present):
        raise CannotRebuildError("two of its tokens are spelled alike")
    return Vocabulary(tuple(tokens), tuple(int(kind) for kind in types))
