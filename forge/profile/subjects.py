"""The models of a profile, opened and checked before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.progress import Progress
from forge.core.catalog import did_you_mean
from forge.core.errors import CheckpointError, EvaluationError, RecipeError
from forge.profile.kv_cache import longest_context, vocabulary_size
from forge.profile.setting import Setting
from forge.recipes.reference import ModelReference
from forge.results.records import ModelRecord

_LEAST_VOCABULARY: Final = 32_000
"""Token ids are below this where a configuration does not say how many its model knows."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be measured.

    Attributes:
        record: What it is.
        checkpoint: Its files.
    """

    record: ModelRecord
    checkpoint: Checkpoint

    @property
    def reference(self) -> str:
        """How recipes name it."""
        return str(self.checkpoint.reference)


def open_subjects(models: Sequence[str], *, progress: Progress) -> tuple[Subject, ...]:
    """Open models and take their fingerprints.

    Args:
        models: As recipes name them.
        progress: Hears which one is read.

    Returns:
        The models, in the order given. Equal labels are told apart by what the user typed.

    Raises:
        CheckpointError: One cannot be found or read.
        EvaluationError: Two of them are the same model, or there is none.
    """
    from forge.runtime.subject import describe

    if not models:
        raise EvaluationError("No model is named; name one or several to profile.")
    found: list[Subject] = []
    for model in models:
        progress.status(f"reading {Path(model).name}")
        try:
            checkpoint = open_checkpoint(ModelReference.parse(model), stored=True)
        except RecipeError as error:
            # There is no recipe here that the message could point to.
            raise CheckpointError(error.problems[0].message) from error
        record = describe(checkpoint)
        same = next((s for s in found if s.record.fingerprint == record.fingerprint), None)
        if same is not None:
            raise EvaluationError(
                f"'{same.reference}' and '{model}' are the same model, byte by byte. Name it once; "
                "the baseline is measured against itself in any case."
            )
        found.append(Subject(record, checkpoint))
    return tuple(found)


def find_baseline(subjects: Sequence[Subject], name: str | None) -> Subject:
    """Return the model that ratios are against.

    Args:
        subjects: All models.
        name: Its label, or what the user typed for it; ``None`` for the first one.

    Raises:
        EvaluationError: There is no such model among them, or there are several.
    """
    if name is None:
        return subjects[0]
    wanted = name.rstrip("/")
    found = [
        subject for subject in subjects
        if wanted in (subject.record.label, subject.reference.rstrip("/"))
    ]  # fmt: skip
    if len(found) == 1:
        return found[0]
    labels = [subject.record.label for subject in subjects]
    if found:
        raise EvaluationError(f"--baseline {name} fits several models; write its whole path.")
    raise EvaluationError(
        f"--baseline {name} is none of the models that are profiled: {', '.join(labels)}."
        f"{did_you_mean(name, labels)}"
    )


def check_contexts(subjects: Sequence[Subject], settings: Sequence[Setting]) -> None:
    """Refuse settings that are longer than a model knows.

    Args:
        subjects: The models.
        settings: How they are to run.

    Raises:
        EvaluationError: A sequence would be longer than a model's last position.
    """
    for subject in subjects:
        longest = longest_context(subject.checkpoint.config)
        for setting in settings:
            if longest is not None and setting.length > longest:
                raise EvaluationError(
                    f"'{subject.record.label}' knows {longest:,} positions, and prompts of "
                    f"{setting.prompt_tokens:,} tokens with {setting.new_tokens:,} new ones need "
                    f"{setting.length:,}. Lower --prompt-tokens or --new-tokens, or leave the model"
                    " out."
                )


def common_vocabulary(subjects: Sequence[Subject]) -> int:
    """Return a number of token ids that every model knows."""
    sizes = (vocabulary_size(subject.checkpoint.config) for subject in subjects)
    return min((size for size in sizes if size is not None), default=_LEAST_VOCABULARY)
