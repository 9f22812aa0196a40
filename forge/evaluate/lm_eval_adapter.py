"""lm-eval's tasks on forge's models, and lm-eval's own model as the measure of forge's.

The one file that imports lm-eval. ``ForgeLM`` stands behind lm-eval's model interface, so a task of
lm-eval runs on any model that forge runs, with shared tokens computed once; ``Remembering`` puts
forge's store of answers before it. lm-eval's own caches are never used: the one for requests knows
neither seed nor data, the one for answers does not know the model, and both give wrong numbers in a
table of models. ``reference_scores`` asks lm-eval's ``HFLM`` instead, for tests and benchmarks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from forge.core.catalog import did_you_mean
from forge.core.errors import EvaluationError, MissingExtraError
from forge.evaluate.aggregation import aggregate
from forge.evaluate.answering import ANSWER_VERSION, AnswerWriter
from forge.evaluate.contract import ChoiceRequest, Prompt, TextRequest
from forge.evaluate.lm_eval_records import TaskResult
from forge.evaluate.run import EvaluationRun
from forge.evaluate.selection import Progress, Silence
from forge.evaluate.subjects import (
    LocalSettings,
    Subject,
    check_labels,
    local_subject,
    with_labels,
)
from forge.results.answers import Answer, ChoiceAnswer, TextAnswer
from forge.results.records import EvaluationRecord, digest_of
from forge.results.store import ResultsStore, open_results

try:
    import lm_eval
    from lm_eval import utils as lm_eval_utils
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM, TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise MissingExtraError(
        f"lm-eval's tasks need {error.name or 'lm_eval'}. Install it with "
        "pip install 'forge[eval]'."
    ) from error

if TYPE_CHECKING:
    from forge.evaluate.backends.local import LocalBackend
    from forge.runtime.any_model import LoadedModel

_MOST_NEW_TOKENS: Final = 256

Scored = tuple[float, bool]
TokenRequest = tuple[tuple[str, str] | None, list[int], list[int]]


class ForgeLM(TemplateLM):  # type: ignore[misc]
    """A model that forge runs, as lm-eval sees one.

    Args:
        loaded: The model.
        batch_tokens: Most tokens of a batch; ``None`` for what suits the device.
        truncate: Whether prompts longer than the model's context lose their beginning, which is
            lm-eval's habit; else they are refused.
    """

    def __init__(
        self, loaded: LoadedModel, *, batch_tokens: int | None = None, truncate: bool = False
    ) -> None:
        from forge.evaluate.backends.local import LocalBackend

        super().__init__()
        self._backend: LocalBackend = LocalBackend(
            loaded, batch_tokens=batch_tokens, truncate=truncate
        )
        self._loaded, self._truncate = loaded, truncate
        self.tokenizer = loaded.tokenizer

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return cast(int, self._loaded.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context, as ``HFLM`` chooses it."""
        begin = self._loaded.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else cast(int, begin)

    @property
    def max_length(self) -> int:
        """Most tokens of the model's context."""
        return self._backend.trunk.longest or 2048

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm-eval's records."""
        return str(self._loaded.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: object
    ) -> list[int]:
        """Return a text's tokens."""
        if add_special_tokens is None:
            return self._backend.encoder.encode(string)
        found = self._loaded.tokenizer(string, add_special_tokens=add_special_tokens)
        return list(cast("list[int]", found["input_ids"]))

    def _loglikelihood_tokens(
        self, requests: list[TokenRequest], **options: object
    ) -> list[Scored]:
        from forge.evaluate.backends.likelihood import score_tokens

        return score_tokens(
            self._backend,
            [(tuple(context), tuple(continuation)) for _, context, continuation in requests],
            truncate=self._truncate,
        )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of whole texts, in windows that do not overlap."""
        from forge.evaluate.backends.likelihood import score_tokens

        windows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        owners = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            rolling = lm_eval_utils.get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length, context_len=1,
            )  # fmt: skip
            for context, continuation in map(lm_eval_utils.make_disjoint_window, rolling):
                windows.append((tuple(context), tuple(continuation)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        scores = score_tokens(self._backend, windows, truncate=False)
        for owner, (value, _) in zip(owners, scores, strict=True):
            totals[owner] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts greedily, up to a stop."""
        asked = []
        for request in requests:
            limit, stop = _writing_limits(request.args[1])
            asked.append(TextRequest(Prompt("", request.args[0]), limit, stop))
        found: dict[int, str] = {}
        self._backend.write(asked, lambda place, answer: found.update({place: answer.text}))
        return [found[place] for place in range(len(requests))]


def _writing_limits(options: Mapping[str, object]) -> tuple[int, tuple[str, ...]]:
    known = dict(normalize_gen_kwargs(dict(options), _MOST_NEW_TOKENS))
    if known.get("do_sample") or known.get("temperature"):
        raise EvaluationError(
            "A task of lm-eval asks for random answers (do_sample or a temperature); forge "
            "evaluates greedily. Set do_sample: false in the task's generation_kwargs."
        )
    until = known.get("until") or ()
    return int(cast(int, known["max_gen_toks"])), tuple(str(each) for each in until)


class Remembering(LM):  # type: ignore[misc]
    """A model for lm-eval whose answers are stored, and read where they are.

    Args:
        subject: The model.
        store: The results file.
        open_model: Loads the model, when an answer is missing.
        progress: Hears of each answer.
    """

    def __init__(
        self,
        subject: Subject,
        store: ResultsStore,
        open_model: Callable[[], LM],
        progress: Progress,
    ) -> None:
        super().__init__()
        self._subject, self._store, self._progress = subject, store, progress
        self._open, self._model = open_model, cast("LM | None", None)
        self.computed = self.reused = 0

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Scored]:
        """Score continuations."""
        answers = self._answers("loglikelihood", requests)
        return [
            (answer.log_probs[0], answer.top == 0)
            for answer in answers
            if isinstance(answer, ChoiceAnswer)
        ]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts."""
        answers = self._answers("loglikelihood_rolling", requests)
        return [answer.log_probs[0] for answer in answers if isinstance(answer, ChoiceAnswer)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue texts."""
        answers = self._answers("generate_until", requests)
        return [answer.text for answer in answers if isinstance(answer, TextAnswer)]

    def key(self, kind: str, arguments: Sequence[object]) -> str:
        """Return the key of an answer."""
        subject = self._subject
        return digest_of(
            "lm-eval answer", ANSWER_VERSION, subject.record.fingerprint, subject.backend,
            subject.dtype, kind, [_plain(each) for each in arguments],
        )  # fmt: skip

    def _answers(self, kind: str, requests: Sequence[Instance]) -> list[Answer]:
        keys = [self.key(kind, request.args) for request in requests]
        known = self._store.answers(keys)
        missing = {
            key: request for key, request in zip(keys, requests, strict=True) if key not in known
        }
        self._progress.start(len(keys), len(keys) - len(missing))
        self.reused += len(keys) - len(missing)
        self.computed += len(missing)
        if missing:
            self._model = self._model or self._open()
            with AnswerWriter(self._store, self._subject.record.fingerprint) as writer:
                for part in _parts(list(missing.items())):
                    values = getattr(self._model, kind)(
                        [request for _, request in part], disable_tqdm=True
                    )
                    for (key, _), value in zip(part, values, strict=True):
                        known[key] = _as_answer(value)
                        writer.add(key, known[key])
                        self._progress.advance(1)
        return [known[key] for key in keys]


def _parts(asked: list[tuple[str, Instance]]) -> Iterator[list[tuple[str, Instance]]]:
    """Divide requests so that answers are stored now and then, and groups stay whole."""
    size = 2048
    for start in range(0, len(asked), size):
        yield asked[start : start + size]


def _as_answer(value: object) -> Answer:
    if isinstance(value, str):
        return TextAnswer(value)
    if isinstance(value, tuple):
        return ChoiceAnswer((float(value[0]),), 0 if value[1] else None, "", None)
    return ChoiceAnswer((float(cast(float, value)),), None, "", None)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def evaluate_lm_eval_tasks(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    results: Path,
    include_path: Path | None = None,
    quick: int | None = None,
    settings: LocalSettings | None = None,
    labels: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> EvaluationRun:
    """Run tasks of lm-eval on models, and store what comes out.

    Args:
        models: Folders or Hub ids.
        tasks: Names of tasks.
        results: The results file.
        include_path: A folder with task files; lm-eval's own tasks are not looked at then.
        quick: The first so many items of each task, as lm-eval's ``limit``.
        settings: How models are run.
        labels: References by the names that tables shall have.
        progress: Hears how far the run is.

    Returns:
        Evaluations of the suite ``lm-eval``; metrics have lm-eval's names behind ``lm-eval/``.

    Raises:
        EvaluationError: A task is unknown, cannot be loaded, or is of a kind that has no items.
    """
    settings, hear = settings or LocalSettings(), progress or Silence()
    if settings.chat:
        raise EvaluationError("Tasks of lm-eval are asked in plain text; leave --chat away.")
    manager = _task_manager(tasks, include_path)
    named = with_labels(models, labels or {})
    subjects = [local_subject(text, settings, label=label) for text, label in named]
    check_labels(subjects)
    evaluations: list[EvaluationRecord] = []
    computed = reused = 0
    with open_results(results) as store:
        store.add_models([subject.record for subject in subjects])
        for subject in subjects:
            hear.stage(subject.record.label)
            lm = Remembering(subject, store, _opener(subject, settings), hear)
            for task in tasks:
                hear.status(task)
                evaluations += _run_task(lm, subject, task, manager, quick, store)
            computed, reused = computed + lm.computed, reused + lm.reused
    return EvaluationRun(
        tuple(subject.record for subject in subjects), tuple(evaluations),
        aggregate(evaluations), computed, reused,
    )  # fmt: skip


def _opener(subject: Subject, settings: LocalSettings) -> Callable[[], LM]:
    def open_model() -> LM:
        from forge.runtime.any_model import load_any

        subject.check()
        loaded = load_any(
            subject.record.location, device=settings.device, dtype=subject.dtype,
            threads=settings.threads,
        )  # fmt: skip
        return ForgeLM(loaded, batch_tokens=settings.batch_tokens, truncate=settings.truncate)

    return open_model


def _task_manager(tasks: Sequence[str], include_path: Path | None) -> TaskManager:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if include_path is not None and not include_path.is_dir():
        raise EvaluationError(f"There is no folder '{include_path}' with lm-eval's task files.")
    manager = TaskManager(
        include_path=None if include_path is None else str(include_path),
        include_defaults=include_path is None,
    )
    for task in tasks:
        if task not in manager.all_tasks:
            raise EvaluationError(
                f"lm-eval has no task '{task}'.{did_you_mean(task, manager.all_tasks)} "
                "'lm-eval ls tasks' lists them; your own need --lm-eval-path."
            )
    return manager


def _run_task(
    lm: Remembering,
    subject: Subject,
    name: str,
    manager: TaskManager,
    quick: int | None,
    store: ResultsStore,
) -> list[EvaluationRecord]:
    try:
        found = lm_eval.simple_evaluate(
            model=lm, tasks=[name], task_manager=manager, limit=quick, bootstrap_iters=0,
            log_samples=True, cache_requests=False, use_cache=None,
        )  # fmt: skip
    except (ValueError, KeyError, OSError, ImportError, AttributeError, TypeError) as error:
        # What tasks and data sets raise when they cannot be loaded or read.
        raise EvaluationError(
            f"The task '{name}' of lm-eval cannot be run: {type(error).__name__}: {error}"
        ) from error
    assert found is not None
    records = []
    for task, samples in found["samples"].items():
        config = found["configs"][task]
        seed = int(cast(int, found["config"]["fewshot_seed"]))
        result = TaskResult(
            task, lm_eval.__version__, config, found["results"][task], samples, seed, quick
        )
        records.append(result.store(lm.key, subject, store))
    return records


def reference_scores(
    loaded: LoadedModel, requests: Sequence[ChoiceRequest], *, batch_size: int = 8
) -> list[tuple[float, ...]]:
    """Score options with lm-eval's own ``HFLM`` on the same model and the same prompts.

    Args:
        loaded: The model.
        requests: The questions.
        batch_size: Prompts of a batch.

    Returns:
        The log-likelihood of each option of each question.
    """
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch_size)
    instances = [
        Instance("loglikelihood", {}, (request.prompt.text, option), place)
        for place, request in enumerate(requests)
        for option in request.options
    ]
    scores = iter(model.loglikelihood(instances, disable_tqdm=True))
    return [tuple(float(next(scores)[0]) for _ in request.options) for request in requests]
