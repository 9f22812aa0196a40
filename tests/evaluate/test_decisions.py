"""What counts as a decision in an answer in words, and what does not."""

from __future__ import annotations

import pytest

from forge.evaluate.decisions import read_decision, without_decision

OPTIONS = ("yes", "no", "maybe")


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        (" The risk fell.\nAnswer: yes", "yes"),
        ("Answer: **No**", "no"),
        ("**Answer:** (maybe)", "maybe"),
        ("The answer is no.", "no"),
        ("So the answer is: Yes!", "yes"),
        ("Answer: no. On reflection, answer: yes", "yes"),
        ("answer - maybe", "maybe"),
        ("Yes, because it fell.", "yes"),
        ("  'No'", "no"),
        ("MAYBE", "maybe"),
        ("There was no difference between the groups.", None),
        ("It may be so, yes.", None),
        ("Nobody knows.", None),
        ("no-one benefits", None),
        ("The answer depends on no factor.", None),
        ("Answer: I cannot say yes", None),
        ("Answer: notable", None),
        ("", None),
    ],
)
def test_a_decision_is_read_only_where_it_is_plain(text: str, decision: str | None) -> None:
    found = read_decision(text, OPTIONS)
    assert (None if found is None else OPTIONS[found]) == decision


def test_a_longer_option_is_not_hidden_by_a_shorter_one() -> None:
    options = ("no", "no effect", "C. difficile (toxin)")
    assert read_decision("Answer: no effect", options) == 1
    assert read_decision("Answer: C. difficile (toxin)", options) == 2


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("The risk fell.\nAnswer: yes", "The risk fell."),
        ("The risk fell.\n**Answer: yes.**\n", "The risk fell."),
        ("The risk fell. Answer: yes", "The risk fell. Answer: yes"),
        ("The risk fell.\nThe answer is yes because of this.",
         "The risk fell.\nThe answer is yes because of this."),
        ("Answer: yes", ""),
        ("The risk fell.", "The risk fell."),
    ],
)  # fmt: skip
def test_only_a_line_that_is_nothing_but_the_decision_is_taken_off(text: str, left: str) -> None:
    assert without_decision(text, OPTIONS) == left
    assert without_decision(text, ()) == text
