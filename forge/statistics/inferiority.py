"""A verdict on whether a variant is good enough, from the interval of its difference.

"No significant difference" is no proof of equality: ten items never show one. The question of
someone who wants to ship a smaller variant is whether it is *not worse by more than* what they can
bear, and the interval answers it:

             −margin          0
    ────────────┼─────────────┼────────────
                │             │  ├─────┤        superior        low > 0
                │   ├────┤    │                 non-inferior    low > −margin
                │     ├───────┼───┤             non-inferior
       ├─────┤  │             │                 inferior        high < −margin
          ├─────┼────┤        │                 inconclusive    anything else
          ├─────┼─────────────┼────┤            inconclusive
"""

from __future__ import annotations

from typing import Literal

from forge.statistics.paired import PairedDifference

Verdict = Literal["superior", "non-inferior", "inferior", "inconclusive"]


def non_inferiority(difference: PairedDifference, *, margin: float) -> Verdict:
    """Judge a variant by the interval of its difference from the baseline.

    Args:
        difference: The difference; its interval has the confidence that the verdict has. A
            two-sided 95 % interval is a one-sided test at 2.5 %, as guidelines ask for.
        margin: Loss that can be borne, in units of the score, such as 0.01 for one point of
            accuracy. Decide it before looking at the results.

    Returns:
        ``superior`` where the whole interval lies above 0; ``non-inferior`` where it lies above
        ``−margin``, also where it lies below 0 and the loss is real but small; ``inferior`` where
        it lies below ``−margin``; ``inconclusive`` where it has ``−margin`` in it, and more items
        are needed.

    Raises:
        ValueError: The margin is not positive.

    Reference:
        Piaggio et al., "Reporting of noninferiority and equivalence randomized trials: extension
        of the CONSORT 2010 statement", JAMA 308 (2012), figure 1.
    """
    if not margin > 0:
        raise ValueError(f"the margin must be positive, not {margin}")
    if difference.low > 0:
        return "superior"
    if difference.low > -margin:
        return "non-inferior"
    if difference.high < -margin:
        return "inferior"
    return "inconclusive"
