"""Take a sample that looks like the whole: stratified by label, seeded, whatever the file's order.

Files are sorted more often than not. The official test file of PubMedQA begins with its 276 "yes",
so its first hundred items score any model by how often it says yes. Here each label gets its share
of the sample by largest remainders, and which items of a label are taken is decided by a digest of
seed and item alone. So the same seed takes the same items from a file in any order, a larger
sample holds a smaller one nearly whole, and a row more or less changes nothing for the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

from forge.results.records import ItemRecord, digest_of
from forge.statistics.detectable import detectable_difference

_DISCORDANT: Final = 0.2
Key = TypeVar("Key")


def allocate(sizes: Mapping[Key, int], count: int) -> dict[Key, int]:
    """Share a sample among strata by largest remainders.

    Each stratum of size ``s`` of ``S`` gets ``floor(count · s / S)``, and those with the largest
    fractions one more, the first of equal ones, until ``count`` are shared. No share differs from
    the exact one by a whole item.

    Args:
        sizes: Items of each stratum, none negative.
        count: Items to take, from 0 to the sum of ``sizes``.

    Returns:
        Items to take of each stratum, in the order of ``sizes``.

    Raises:
        ValueError: ``count`` is out of range.
    """
    total = sum(sizes.values())
    if not 0 <= count <= total:
        raise ValueError(f"{count} items cannot be taken of {total}")
    shares = {key: count * size // total if total else 0 for key, size in sizes.items()}
    # Whole numbers, because a fraction in binary makes equal remainders differ.
    remainders = {key: count * size % total if total else 0 for key, size in sizes.items()}
    order = sorted(sizes, key=lambda key: -remainders[key])
    for key in order[: count - sum(shares.values())]:
        shares[key] += 1
    return shares


def stratified(items: Sequence[ItemRecord], count: int, *, seed: int) -> tuple[ItemRecord, ...]:
    """Take a sample that has the labels of the whole in their proportions.

    Args:
        items: Questions with names that are unique in their task.
        count: How many to take; all if there are no more.
        seed: Which sample.

    Returns:
        The sample, ordered by name.
    """
    strata: dict[str, list[ItemRecord]] = {}
    for item in sorted(items, key=lambda item: (item.label, rank(item, seed=seed))):
        strata.setdefault(item.label, []).append(item)
    shares = allocate({label: len(held) for label, held in strata.items()}, min(count, len(items)))
    taken = [item for label, held in strata.items() for item in held[: shares[label]]]
    return tuple(sorted(taken, key=lambda item: item.item_id))


def rank(item: ItemRecord, *, seed: int) -> str:
    """Return what items are ordered by when some of them are drawn."""
    return digest_of("rank", seed, item.task, item.item_id)


def labels_of(items: Sequence[ItemRecord]) -> dict[str, int]:
    """Return how many items each label has, by label."""
    counts: dict[str, int] = {}
    for item in sorted(items, key=lambda item: item.label):
        counts[item.label] = counts.get(item.label, 0) + 1
    return counts


def detectable(num_items: int) -> str:
    """Say which difference between two models a number of items can show.

    Args:
        num_items: Items that both models answer, at least 1.

    Returns:
        A sentence, for instance that 100 items show a difference from 12.4 points on.
    """
    found = detectable_difference(num_items, discordant_share=_DISCORDANT)
    items = f"{num_items:,} item{'s' if num_items != 1 else ''}"
    if math.isinf(found):
        return f"{items} cannot show any difference between two models."
    return (
        f"{items} can show a difference of {100 * found:.1f} points or more between two models "
        f"that disagree on {_DISCORDANT:.0%} of them (power 80 %, level 5 %)."
    )
