"""Report texts that the result's tokenizer treats otherwise than those of the models did."""

from __future__ import annotations

from collections.abc import Mapping

from forge.core.errors import ForgeError
from forge.merge.check.report import Notebook
from forge.merge.vocabulary.hard_strings import strings_of
from forge.merge.vocabulary.round_trip import Change, Passage, are_same, compare, read_texts, shown
from forge.merge.vocabulary.tokens import Tokenizer
from forge.recipes.reference import ModelReference

_SHOWN = 3


def check_round_trips(
    result: Tokenizer,
    models: Mapping[ModelReference, Tokenizer | None],
    notes: Notebook,
    *,
    says_success: bool,
) -> dict[str, tuple[Change, ...]]:
    """Let the result's tokenizer and that of each model split hard strings, and compare.

    A tokenizer that says the same as the result's splits all text alike and is not run.

    Args:
        result: The tokenizer of the result.
        models: Those of the models whose embedding or head enters the result.
        notes: Receives the findings.
        says_success: Whether to report a tokenizer that was run and treats all alike, too.

    Returns:
        For each model whose tokenizer was run, the texts that differ.
    """
    others = {
        model: tokenizer
        for model, tokenizer in models.items()
        if tokenizer is not None and tokenizer is not result and not are_same(tokenizer, result)
    }
    if not others:
        return {}
    try:
        after = read_texts(result, strings_of(others.values()), "the result")
    except ForgeError as error:
        notes.notice("round-trip", f"Tokenizers were not compared on texts. {error}")
        return {}
    found: dict[str, tuple[Change, ...]] = {}
    read: list[tuple[Tokenizer, dict[str, Passage]]] = []
    for model, tokenizer in others.items():
        texts = strings_of([tokenizer])
        before = next((known for other, known in read if are_same(other, tokenizer)), None)
        try:
            before = before or read_texts(tokenizer, texts, str(model))
        except ForgeError as error:
            notes.notice("round-trip", f"{model} was not compared on texts. {error}")
            continue
        read.append((tokenizer, before))
        found[str(model)] = compare(before, after, texts)
        if found[str(model)]:
            _report(str(model), found[str(model)], _unshared(tokenizer, result), len(texts), notes)
        elif says_success:
            notes.notice(
                "round-trip",
                f"The tokenizer of the result treats all {len(texts)} hard strings as that of "
                f"{model} does.",
            )
    return found


def _unshared(one: Tokenizer, other: Tokenizer) -> frozenset[str]:
    """Return the tokens that one tokenizer matches whole and the other does not."""
    return frozenset(one.added()).symmetric_difference(other.added())


def _report(
    model: str,
    changes: tuple[Change, ...],
    unshared: frozenset[str],
    total: int,
    notes: Notebook,
) -> None:
    about_tokens = [
        change
        for change in changes
        if not unshared.isdisjoint((*change.before.tokens, *change.after.tokens))
    ]
    ordinary = [change for change in changes if change not in about_tokens]
    if about_tokens:
        # Which tokens the result lacks or gets is a finding of its own; this says what it does.
        notes.notice(
            "round-trip",
            f"The result and {model} do not match the same tokens in a text: "
            f"{_example(about_tokens[0])}.",
        )
    if not ordinary:
        return
    lost = [change for change in ordinary if change.is_lost]
    listing = "; ".join(_example(change) for change in ordinary[:_SHOWN])
    more = f"; and {len(ordinary) - _SHOWN} more" if len(ordinary) > _SHOWN else ""
    damage = ""
    if lost:
        damage = (
            f" It does not give back {len(lost)} of them, such as {lost[0].text[:40]!r}, which "
            f"comes back as {lost[0].after.back[:40]!r}."
        )
    notes.warning(
        "round-trip",
        f"The tokenizer of the result treats {len(ordinary)} of {total} hard strings otherwise "
        f"than that of {model}, which was trained on its own: {listing}{more}.{damage} Name "
        f"{model} as the tokenizer's source, if its texts matter most.",
    )


def _example(change: Change) -> str:
    text = change.text if len(change.text) <= 40 else f"{change.text[:37]}..."
    if not change.is_split:
        return f"{text!r} comes back as {change.after.back[:40]!r}, there as " + (
            f"{change.before.back[:40]!r}"
        )
    begin = next(
        (
            number
            for number, (one, other) in enumerate(
                zip(change.before.tokens, change.after.tokens, strict=False)
            )
            if one != other
        ),
        0,
    )
    after, before = change.after.tokens[begin:], change.before.tokens[begin:]
    place = f" (from token {begin})" if begin else ""
    return f"{text!r}{place} is {shown(after, 4)}; there {shown(before, 4)}"
