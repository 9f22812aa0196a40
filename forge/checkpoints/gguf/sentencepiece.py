"""Rebuild a SentencePiece BPE tokenizer (``llama`` in GGUF) from tokens and scores.

SentencePiece joins the two neighbours whose union has the best score, again and again. BPE joins
the pair that comes first in a list. Listing all pairs by the scores of their unions makes BPE do
what SentencePiece does.
"""

from __future__ import annotations

from collections.abc import Mapping

from forge.checkpoints.gguf.metadata import Metadata
from forge.checkpoints.gguf.vocabulary import (
    BYTE,
    NORMAL,
    UNKNOWN,
    CannotRebuildError,
    Vocabulary,
)


def sentencepiece(metadata: Metadata, vocabulary: Vocabulary) -> dict[str, object]:
    """Return a tokenizer, but for its post-processor.

    Args:
        metadata: The file's metadata.
        vocabulary: Its tokens.

    Returns:
        Parts of ``tokenizer.json`` by key.

    Raises:
        CannotRebuildError: The file does not hold all that it takes.
        CheckpointError: The metadata are of other types than they should be.
    """
    if metadata.architecture != "llama":
        raise CannotRebuildError(
            "how blanks around its added tokens are treated is not in the file, and not the same "
            f"in all models of the architecture '{metadata.architecture}'"
        )
    if not vocabulary.of_type(BYTE):
        raise CannotRebuildError("it has no tokens for bytes, so unknown characters would be lost")
    scores = metadata.numbers("tokenizer.ggml.scores")
    if scores is None or len(scores) != len(vocabulary.tokens):
        raise CannotRebuildError("it has no score for each token, from which the merges follow")
    ranks = {
        vocabulary.spelled(number): (float(scores[number]), number)
        for number in vocabulary.of_type(NORMAL)
    }
    # Some converters write one score for all.
    if 2 * len({score for score, _ in ranks.values()}) < len(ranks):
        raise CannotRebuildError("its tokens share a score, so no order of merges follows")
    unknown = vocabulary.of_type(UNKNOWN)
    model = vocabulary.bpe(
        merges_of_scores(ranks),
        unknown=vocabulary.spelled(unknown[0]) if unknown else None,
        byte_fallback=True,
    )
    has_prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    prefix = [{"type": "Prepend", "prepend": "▁"}] if has_prefix else []
    unprefix = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [*prefix, _replace(" ", "▁")],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [_replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *unprefix],
        },
        "model": model,
    }


def _replace(pattern: str, content: str) -> dict[str, object]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def merges_of_scores(ranks: Mapping[str, tuple[float, int]]) -> list[tuple[str, str]]:
    """Return the pairs of tokens that make up a token, in the order in which they are joined.

    Of the pairs that make one token, the one with the longer left part goes first.

    Args:
        ranks: Score and number of each token that text can be cut into.

    Returns:
        The pairs.
    """
    found: list[tuple[float, int, int, int, int, int, str, str]] = []
    for token, (score, number) in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                order = (-score, -cut, -len(right), number, ranks[left][1], ranks[right][1])
                found.append((*order, left, right))
    found.sort()
    return [(pair[-2], pair[-1]) for pair in found]
