"""Let several models answer together: the option with the largest sum of their probabilities.

    p(option) = (1/n) · Σ_m p_m(option)

p_m is what model m gives to the option's letter among all tokens of its vocabulary, so a model that
does not want to name a letter has less to say. The mean has the sum's largest option, and is a
probability. Other tokens are not added up: an ensemble has no unconstrained mode. Nothing is
computed but this; the members' answers are those that are stored.

Reference: the ensemble row of Labrak et al., BioMistral, arXiv:2402.10373.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from forge.core.errors import EvaluationError
from forge.evaluate.subjects import Subject
from forge.results.answers import ChoiceAnswer
from forge.results.records import ModelRecord, digest_of

BACKEND = "ensemble"


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Models that answer together.

    Attributes:
        label: Their name in tables.
        members: Names of the models, as tables or the user call them, at least two.
    """

    label: str
    members: tuple[str, ...]


def find_members(ensemble: Ensemble, subjects: Sequence[Subject]) -> list[Subject]:
    """Return the models of an ensemble.

    Raises:
        EvaluationError: One is not evaluated in this run, or is named twice, or there is only one.
    """
    found = []
    for name in ensemble.members:
        named = [each for each in subjects if name in (each.record.label, each.record.location)]
        if len(named) != 1:
            known = ", ".join(subject.record.label for subject in subjects)
            raise EvaluationError(
                f"The ensemble '{ensemble.label}' has a member '{name}' that is no model of this "
                f"run. Name it as MODEL too; answers that are stored cost nothing. Models: {known}."
            )
        found.append(named[0])
    if len({each.record.fingerprint for each in found}) != len(found) or len(found) < 2:
        raise EvaluationError(
            f"The ensemble '{ensemble.label}' needs two or more different models."
        )
    return found


def ensemble_subject(ensemble: Ensemble, members: Sequence[Subject]) -> ModelRecord:
    """Return the record of an ensemble; the order of its members does not matter."""
    fingerprints = sorted(member.record.fingerprint for member in members)
    return ModelRecord(
        fingerprint=digest_of("ensemble", fingerprints),
        label=ensemble.label,
        kind="ensemble",
        location=" + ".join(member.record.label for member in members),
        members=tuple(member.record.fingerprint for member in members),
    )


def combine(answers: Sequence[ChoiceAnswer]) -> ChoiceAnswer:
    """Return the answer of models together.

    Args:
        answers: Their answers to one question, with the same options.

    Returns:
        The logarithm of the mean probability of each option; no top token.
    """
    log_probs = []
    for values in zip(*(answer.log_probs for answer in answers), strict=True):
        total = math.fsum(math.exp(value) for value in values)
        log_probs.append(math.log(total / len(answers)) if total > 0 else -math.inf)
    return ChoiceAnswer(tuple(log_probs), None, "", None)


def combined_key(ensemble: ModelRecord, keys: Sequence[str]) -> str:
    """Return the key of an ensemble's answer, from those of its members' answers."""
    return digest_of("ensemble answer", ensemble.fingerprint, sorted(keys))
