"""Evaluate models on a suite: models × tasks × sets of examples, resumable at every answer.

Everything that can be wrong is found first, from files alone: the suite, its data, every model and
every member of an ensemble. Then models are evaluated one after another, each only as far as
answers are missing, and no weights are loaded where none are. What an evaluation is made of is
stored before the next begins, so stopping loses nothing that was finished.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.core.errors import EvaluationError
from forge.evaluate.aggregation import SuiteSummary, aggregate
from forge.evaluate.answering import AnswerWriter, Request, answer_key, compute
from forge.evaluate.ensemble import (
    BACKEND,
    Ensemble,
    combine,
    combined_key,
    ensemble_subject,
    find_members,
)
from forge.evaluate.prepare import PreparedTask
from forge.evaluate.scoring import SCORING_VERSION, choice_metrics, text_metrics
from forge.evaluate.selection import Progress, Selection, Silence
from forge.evaluate.subjects import (
    ApiModel,
    LocalSettings,
    Subject,
    api_subject,
    check_labels,
    local_subject,
    with_labels,
)
from forge.evaluate.suite import load_suite
from forge.evaluate.task_spec import Suite
from forge.results.answers import MODES, Answer, ChoiceAnswer, Mode, TextAnswer
from forge.results.records import AnswerRecord, EvaluationRecord, ModelRecord, digest_of
from forge.results.store import ResultsStore, open_results

Prepared = Sequence[PreparedTask]
_OF_PROBABILITIES: Final = ("constrained/ece", "constrained/ece_scaled", "option_mass")

RESULTS: Final = Path("reports/results.db")
"""Where results are kept, unless the user says otherwise."""


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """What a run found.

    Attributes:
        models: The models, in the order asked for, ensembles last.
        evaluations: Of each model, task and set of examples, in the order of the suite.
        summaries: Over tasks and sets of examples, one for each model.
        computed: Answers that were computed.
        reused: Answers that were stored already.
    """

    models: tuple[ModelRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]
    summaries: tuple[SuiteSummary, ...]
    computed: int
    reused: int


def evaluate_models(
    models: Sequence[str | Path],
    *,
    suite: str | Suite,
    data_dir: Path | str | None = None,
    tasks: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    quick: int | None = None,
    skip_missing: bool = False,
    results: Path | str = RESULTS,
    settings: LocalSettings | None = None,
    apis: Sequence[ApiModel] = (),
    ensembles: Sequence[Ensemble] = (),
    labels: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> EvaluationRun:
    """Evaluate models on a suite.

    Args:
        models: Folders or Hub ids.
        suite: Name of a suite of forge, a YAML file, or a suite.
        data_dir: Folder with files that replace the suite's data sets on the Hub.
        tasks: Names of tasks; ``None`` for all.
        seeds: Sets of examples; ``None`` for all.
        quick: Questions of each task; ``None`` for all.
        skip_missing: Whether tasks whose file is not in ``data_dir`` are left out, which
            ``progress`` is told.
        results: The results file; made where it does not exist.
        settings: How models on this machine are run.
        apis: Models behind an API.
        ensembles: Models of this run that answer together.
        labels: Models by the names that tables shall have.
        progress: Hears how far the run is.

    Returns:
        What was found. All of it is in the results file.

    Raises:
        EvaluationError: The suite, its data, an ensemble or an API is not as it should be.
        CheckpointError: A model cannot be read.
        IncompatibleError: A model does not fit into memory, or a prompt into a model.
        ResultsError: The results file is not one of this version.
    """
    settings, hear = settings or LocalSettings(), progress or Silence()
    selection = Selection(
        load_suite(suite) if isinstance(suite, str) else suite,
        None if tasks is None else tuple(tasks),
        None if seeds is None else tuple(seeds),
        quick,
        None if data_dir is None else Path(data_dir),
        skip_missing,
    )
    if (notice := selection.available().notice) is not None:
        hear.notice(notice)
    with open_results(Path(results)) as store:
        named = with_labels([str(model) for model in models], labels or {})
        subjects = [local_subject(text, settings, label=label) for text, label in named]
        return evaluate_subjects(
            [*subjects, *map(api_subject, apis)],
            selection=selection,
            store=store,
            ensembles=ensembles,
            progress=hear,
        )


def evaluate_subjects(
    subjects: Sequence[Subject],
    *,
    selection: Selection,
    store: ResultsStore,
    ensembles: Sequence[Ensemble] = (),
    progress: Progress,
) -> EvaluationRun:
    """Evaluate models that are described already; see ``evaluate_models``."""
    if not subjects:
        raise EvaluationError("There is no model to evaluate. Name a folder, a Hub id or an API.")
    check_labels(subjects)
    joined = [(each, find_members(each, subjects)) for each in ensembles]
    plain = selection.prepare(None) if any(each.chat is None for each in subjects) else ()
    prepared = [selection.prepare(each.chat) if each.chat else plain for each in subjects]
    plans = [_Plan.of(*pair, store) for pair in zip(subjects, prepared, strict=True)]
    for plan in plans:
        if plan.missing:
            plan.subject.check()
    store.add_models([subject.record for subject in subjects])
    total = sum(len(plan.keys) for plan in plans)
    computed = sum(len(plan.missing) for plan in plans)
    progress.start(total, total - computed)
    evaluations = [
        record for plan in plans for record in _evaluate(plan, selection, store, progress)
    ]
    records = [subject.record for subject in subjects]
    for ensemble, members in joined:
        held = [plans[subjects.index(member)] for member in members]
        record = ensemble_subject(ensemble, members)
        records.append(record)
        evaluations += _evaluate_ensemble(record, held, selection, store, progress)
    names = [task.name for task in selection.chosen_tasks()]
    summaries = aggregate(evaluations, tasks=names)
    return EvaluationRun(tuple(records), tuple(evaluations), summaries, computed, total - computed)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a model is asked, and what it has answered.

    Attributes:
        subject: The model.
        prepared: The tasks.
        keys: Keys of all its answers, without repetition.
        missing: Keys of those that are not stored.
        answers: Those that are known, filled as the run goes on.
    """

    subject: Subject
    prepared: Prepared
    keys: tuple[str, ...]
    missing: frozenset[str]
    answers: dict[str, Answer]

    @classmethod
    def of(cls, subject: Subject, prepared: Prepared, store: ResultsStore) -> _Plan:
        """Compare what is asked with what is stored."""
        keys = tuple(
            dict.fromkeys(
                answer_key(subject, request) for each in prepared for request in each.requests
            )
        )
        answers = store.answers(keys)
        return cls(subject, prepared, keys, frozenset(keys) - answers.keys(), answers)

    def asked(self, prepared: PreparedTask) -> dict[str, Request]:
        """Return a task's requests by the keys of their answers."""
        return {answer_key(self.subject, request): request for request in prepared.requests}


def _evaluate(
    plan: _Plan, selection: Selection, store: ResultsStore, progress: Progress
) -> list[EvaluationRecord]:
    subject = plan.subject
    backend = None
    found = []
    if plan.missing:
        progress.stage(subject.record.label)
    for prepared in plan.prepared:
        asked = plan.asked(prepared)
        wanted = {key: request for key, request in asked.items() if key not in plan.answers}
        if wanted:
            backend = backend or subject.open()
            progress.status(f"{prepared.task.name}, examples {prepared.seed}")

            def hear(key: str, answer: Answer) -> None:
                plan.answers[key] = answer
                progress.advance(1)

            with AnswerWriter(store, subject.record.fingerprint) as writer:
                compute(backend, wanted, writer, hear)
        keys = [answer_key(subject, request) for request in prepared.requests]
        record = _record(
            subject.record, prepared, selection, [plan.answers[key] for key in keys], keys,
            backend=subject.backend, dtype=subject.dtype, is_chat=subject.is_chat,
        )  # fmt: skip
        store.add_evaluation(record, prepared.items)
        found.append(record)
    if backend is not None:
        # Before the next model comes, this one's memory is wanted back.
        del backend
        gc.collect()
    return found


def _evaluate_ensemble(
    record: ModelRecord,
    members: Sequence[_Plan],
    selection: Selection,
    store: ResultsStore,
    progress: Progress,
) -> list[EvaluationRecord]:
    store.add_models([record])
    dtypes = {plan.subject.dtype for plan in members}
    dtype = dtypes.pop() if len(dtypes) == 1 else None
    for task in dict.fromkeys(p.task.name for p in members[0].prepared if p.task.kind != "choice"):
        progress.notice(
            f"'{record.label}' has no row for '{task}': answers in words cannot be added up."
        )
    found = []
    for number, prepared in enumerate(members[0].prepared):
        if prepared.task.kind != "choice":
            continue
        # The same items in the same order for every model; only prompts may differ.
        each = [plan.prepared[number].requests for plan in members]
        keys, answers = [], []
        for requests in zip(*each, strict=True):
            of_members = [
                answer_key(plan.subject, request)
                for plan, request in zip(members, requests, strict=True)
            ]
            known = [plan.answers[key] for plan, key in zip(members, of_members, strict=True)]
            keys.append(combined_key(record, of_members))
            answers.append(combine([each for each in known if isinstance(each, ChoiceAnswer)]))
        store.add_answers(
            AnswerRecord(key, record.fingerprint, answer)
            for key, answer in zip(keys, answers, strict=True)
        )
        evaluation = _record(
            record, prepared, selection, answers, keys,
            backend=BACKEND, dtype=dtype,
            is_chat=all(plan.subject.is_chat for plan in members),
        )  # fmt: skip
        store.add_evaluation(evaluation, prepared.items)
        found.append(evaluation)
    return found


def _record(
    model: ModelRecord,
    prepared: PreparedTask,
    selection: Selection,
    answers: Sequence[Answer],
    keys: Sequence[str],
    *,
    backend: str,
    dtype: str | None,
    is_chat: bool,
) -> EvaluationRecord:
    task = prepared.task
    if task.kind == "choice":
        chosen = [each for each in answers if isinstance(each, ChoiceAnswer)]
        modes: tuple[Mode, ...] = ("constrained",) if model.kind == "ensemble" else MODES
        metrics = choice_metrics(prepared.items, chosen, modes=modes)
        if backend == "api-text":
            # A letter that was read from a text has no probability.
            metrics |= dict.fromkeys(_OF_PROBABILITIES)
    else:
        metrics = text_metrics(
            prepared.items, [each for each in answers if isinstance(each, TextAnswer)]
        )
    return EvaluationRecord(
        key=digest_of(
            "evaluation", SCORING_VERSION, model.fingerprint, selection.suite.name, task.name,
            prepared.digest, backend, dtype, is_chat, list(keys),
        ),
        model=model.fingerprint,
        suite=selection.suite.name,
        task=task.name,
        kind=task.kind,
        seed=prepared.seed,
        shots=task.shots,
        backend=backend,
        dtype=dtype,
        chat=is_chat,
        scoring_version=SCORING_VERSION,
        sample=prepared.sample,
        metrics=metrics,
        items=tuple(
            (item.digest, key) for item, key in zip(prepared.items, keys, strict=True)
        ),
        suite_digest=digest_of(task.digest, prepared.digest),
    )  # fmt: skip
