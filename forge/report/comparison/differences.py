"""What a comparison holds of a variant against its baseline, on the same items or tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NonInferiority = Literal["superior", "non-inferior", "inferior", "inconclusive"]
"""Where a paired interval lies against zero and the margin."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A variant minus its baseline on the same items.

    Over several seeds an item counts once, with the mean over seeds that both have.

    Attributes:
        task: Name, or ``None`` for all tasks together, where each item counts once.
        num_items: Items that both answered.
        num_clusters: Passages or items that are independent of one another.
        num_seeds: Seeds that both have.
        variant: Accuracy of the variant on them.
        baseline: Accuracy of the baseline on them.
        difference: Variant minus baseline.
        interval: Paired interval of it.
        p_value: Exact McNemar test.
        p_holm: Corrected for the family that it is of.
        significant: Whether ``p_holm`` is below the family's alpha.
        gained: Items that the variant answers better.
        lost: Items that it answers worse.
        verdict: Where the interval lies against the margin.
    """

    task: str | None
    num_items: int
    num_clusters: int
    num_seeds: int
    variant: float
    baseline: float
    difference: float
    interval: Interval
    p_value: float
    p_holm: float
    significant: bool
    gained: int
    lost: int
    verdict: NonInferiority


@dataclass(frozen=True, slots=True)
class FlippedItem:
    """A question whose answer changed.

    Attributes:
        kind: ``lost`` (right to wrong), ``gained`` (wrong to right), ``moved`` (wrong both times).
        task: Name.
        item_id: Its name there.
        seed: Which examples stood before it.
        question: As it was put; of a long one the end, behind ``…``.
        options: Texts.
        gold: Index of the right option.
        baseline_answer: Index, or ``None`` if missing.
        variant_answer: Likewise.
        baseline_probabilities: Of the options, scaled to a sum of 1.
        variant_probabilities: Likewise.
    """

    kind: Literal["lost", "gained", "moved"]
    task: str
    item_id: str
    seed: int
    question: str
    options: tuple[str, ...]
    gold: int
    baseline_answer: int | None
    variant_answer: int | None
    baseline_probabilities: tuple[float, ...]
    variant_probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Flips:
    """How answers changed from baseline to variant, counted by question and seed.

    Attributes:
        both_right: Right, and still right.
        lost: Right to wrong.
        gained: Wrong to right.
        moved: Wrong to another wrong answer.
        both_wrong: Wrong, with the same answer.
        items: Some of those that changed, those whose right option's probability changed most
            first, and at most so many of each kind.
        shown_of_each: At most how many of each kind are in ``items``.
    """

    both_right: int
    lost: int
    gained: int
    moved: int
    both_wrong: int
    items: tuple[FlippedItem, ...]
    shown_of_each: int

    @property
    def num_answers(self) -> int:
        """Questions times seeds."""
        return self.both_right + self.lost + self.gained + self.moved + self.both_wrong

    @property
    def changed_share(self) -> float:
        """Share of answers that changed."""
        changed = self.lost + self.gained + self.moved
        return changed / self.num_answers if self.num_answers else 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """A variant against its baseline.

    Attributes:
        variant: Label.
        baseline: Label.
        overall: All tasks together.
        tasks: Each task that both answered, in the order of the table.
        flips: How answers changed.
    """

    variant: str
    baseline: str
    overall: Difference
    tasks: tuple[Difference, ...]
    flips: Flips


@dataclass(frozen=True, slots=True)
class Divergence:
    """A variant's predictions against its source's, on the same tokens.

    Attributes:
        variant: Label.
        reference: Label.
        text: Name of the text.
        num_positions: Predictions compared.
        mean: KL divergence, nats.
        median: Nats.
        p90: Nats.
        p99: Nats.
        max: Nats.
        same_top_share: Share of positions with the same likeliest token.
        perplexity_ratio: Variant over reference.
        weight_bytes: Of the variant, or ``None``.
        layers: Number and relative error of each decoder block's output.
    """

    variant: str
    reference: str
    text: str
    num_positions: int
    mean: float
    median: float
    p90: float
    p99: float
    max: float
    same_top_share: float
    perplexity_ratio: float
    weight_bytes: int | None
    layers: tuple[tuple[int, float], ...]
