"""Profile models: open and check them, measure what was not measured, compare with the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.progress import Progress, Silence
from forge.core.machine import default_threads
from forge.profile import comparison
from forge.profile.environment import describe_environment
from forge.profile.session import Session, Sessions
from forge.profile.setting import Effort, sweep
from forge.profile.subjects import (
    check_contexts,
    find_baseline,
    open_subjects,
)
from forge.results.records import EnvironmentRecord, ModelRecord, ProfileRecord
from forge.results.store import open_results

DEFAULT_RESULTS: Final = Path("reports/results.db")


@dataclass(frozen=True, slots=True)
class Profiles:
    """What was measured.

    Attributes:
        models: The models, in the order given.
        baseline: Fingerprint of the one that ratios are against.
        environment: Where it was measured.
        effort: How much was measured.
        sessions: One a setting.
    """

    models: tuple[ModelRecord, ...]
    baseline: str
    environment: EnvironmentRecord
    effort: Effort
    sessions: tuple[Session, ...]

    def ratio(
        self, session: Session, profile: ProfileRecord, quantity: comparison.Quantity
    ) -> comparison.SpeedRatio | None:
        """Return a model's ratio to the baseline in a session, or ``None`` where there is none.

        Args:
            session: The session.
            profile: One of its profiles.
            quantity: What is compared.
        """
        if profile.model == self.baseline:
            return None
        base = next(found for found in session.profiles if found.model == self.baseline)
        cores = comparison.cores_of(self.environment.body)
        return comparison.compare(base, profile, quantity, num_cores=cores)


def profile_models(
    models: Sequence[str],
    *,
    results: Path = DEFAULT_RESULTS,
    baseline: str | None = None,
    batches: Sequence[int] = (1,),
    prompt_tokens: Sequence[int] = (128,),
    new_tokens: int = 32,
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
    effort: Effort | None = None,
    again: bool = False,
    progress: Progress | None = None,
) -> Profiles:
    """Measure memory and speed of models, in turns, each in processes of its own.

    Args:
        models: Folders or Hub ids, as recipes name them.
        results: The results file; made where it does not exist.
        baseline: Label or reference of the model that ratios are against; the first by default.
        batches: Batch sizes to sweep.
        prompt_tokens: Lengths of prompts to sweep.
        new_tokens: Decoding steps behind each prompt.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: Type of the arithmetic; ``None`` for the one that each checkpoint gets by default.
        threads: Threads of torch; one for each usable core by default.
        effort: Rounds, samples, seed, control.
        again: Whether to measure what was measured before.
        progress: Hears how it goes; what it is told of as bytes are steps.

    Returns:
        What was measured, now or before.

    Raises:
        CheckpointError: A model cannot be found or read.
        EvaluationError: A setting is impossible, or the baseline is none of the models.
        IncompatibleError: There is no such device.
        ResultsError: The results file is foreign, damaged or of another version.
        OutputError: The results file cannot be written; nothing was measured then.
    """
    progress = Silence() if progress is None else progress
    effort = Effort() if effort is None else effort
    settings = sweep(
        batches=batches, prompt_tokens=prompt_tokens, new_tokens=new_tokens, device=device,
        dtype=dtype, threads=threads or default_threads(),
    )  # fmt: skip
    if device != "cpu":
        from forge.profile.devices import check_device

        check_device(device)
    progress.stage("reading models")
    subjects = open_subjects(models, progress=progress)
    try:
        base = find_baseline(subjects, baseline)
        check_contexts(subjects, settings)
        environment = EnvironmentRecord.of(describe_environment(device))
        with open_results(results) as store:
            # Written before anything is measured: a file that cannot be is found out now.
            store.add_models(subject.record for subject in subjects)
            store.add_environment(environment)
            work = Sessions(
                subjects, base, environment=environment, effort=effort, store=store,
                progress=progress,
            )  # fmt: skip
            sessions = work.run(settings, again=again)
    finally:
        for subject in subjects:
            subject.checkpoint.source.close()
    return Profiles(
        tuple(subject.record for subject in subjects), base.record.fingerprint, environment, effort,
        sessions,
    )  # fmt: skip
