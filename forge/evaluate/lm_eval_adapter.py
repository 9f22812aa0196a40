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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from forge.core.errors import EvaluationError, MissingExtraError
from forge.evaluate.aggregation import aggregate
from forge.evaluate.answering import ANSWER_VERSION, AnswerWriter
from forge.evaluate.contract import ChoiceRequest
from forge.evaluate.run import EvaluationRun, Progress, Silence
from forge.evaluate.scoring import SCORING_VERSION, choice_metrics
from forge.evaluate.subjects import (
    LocalSettings,
    Subject,
    check_labels,
    local_subject,
    with_labels,
)
from forge.results.answers import Answer, ChoiceAnswer, TextAnswer
from forge.results.records import AnswerRecord, EvaluationRecord, ItemRecord, digest_of
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

SUITE: Final = "lm-eval"
_KINDS: Final = {"multiple_choice": "choice", "generate_until": "text"}
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
        return score_tokens(
            self._backend,
            [(tuple(context), tuple(continuation)) for _, context, continuation in requests],
            truncate=self._truncate,
        )

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Return the log-likelihood of whole texts, in windows that do not overlap."""
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
        from forge.evaluate.contract import Prompt, TextRequest

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


def score_tokens(
    backend: LocalBackend,
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
    *,
    truncate: bool,
) -> list[Scored]:
    """Return the log-likelihood of tokens behind others, and whether each is the likeliest.

    Args:
        backend: The model.
        pairs: Context and continuation, both at least one token.
        truncate: Whether contexts that are too long lose their beginning.

    Returns:
        For each pair the sum of the continuation's log-probabilities.

    Raises:
        IncompatibleError: A pair is longer than the model's context.
        NonFiniteError: The model predicts NaN or infinity.
    """
    import torch

    from forge.evaluate.backends.batches import Row
    from forge.evaluate.backends.local import check_finite, log_probabilities
    from forge.evaluate.backends.trunk import check_length

    trunk = backend.trunk
    owners: dict[tuple[int, ...], list[int]] = {}
    for place, (context, continuation) in enumerate(pairs):
        read = (*context, *continuation)[:-1]
        if truncate and trunk.longest is not None:
            read = read[-trunk.longest :]
        check_length(trunk.model, len(read), "A prompt of lm-eval with its answer")
        owners.setdefault(read, []).append(place)
    found: list[Scored | None] = [None] * len(pairs)
    rows = [
        Row(number, read, max(len(pairs[place][1]) for place in places))
        for number, (read, places) in enumerate(owners.items())
    ]
    by_row = list(owners.values())
    for group in _cheapest_groups(rows, [pairs[places[0]][0] for places in by_row]):
        for hidden in trunk.run(group):
            logs = log_probabilities(trunk, hidden.states_PD)
            for row in hidden.rows:
                log_TV = torch.stack([next(logs) for _ in range(row.tail)])
                top_T, likeliest_T = log_TV.max(-1)
                for place in by_row[row.index]:
                    tokens_T = torch.tensor(pairs[place][1])
                    part = slice(row.tail - len(tokens_T), row.tail)
                    check_finite(float(top_T[part].sum()), f"of {len(row.tokens)} tokens")
                    value = log_TV[part].gather(-1, tokens_T[:, None]).sum()
                    is_greedy = bool((likeliest_T[part] == tokens_T).all())
                    found[place] = (float(value), is_greedy)
    return [cast(Scored, each) for each in found]


def _cheapest_groups(rows: Sequence[Any], contexts: Sequence[tuple[int, ...]]) -> list[list[Any]]:
    """Group rows by what they share: all of them, or those with one context, which costs less."""
    from forge.evaluate.backends.batches import shared_length

    def cost(group: Sequence[Any]) -> int:
        shared = shared_length(group) if len(group) > 1 else 0
        return shared + sum(len(row.tokens) - shared for row in group)

    if not rows:
        return []
    by_context: dict[tuple[int, ...], list[Any]] = {}
    for row, context in zip(rows, contexts, strict=True):
        by_context.setdefault(context, []).append(row)
    apart = list(by_context.values())
    return apart if sum(map(cost, apart)) < cost(rows) else [list(rows)]


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
            from forge.core.catalog import did_you_mean

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
        record = _Task(task, config, found["results"][task], samples, seed, quick)
        records.append(record.store(lm, subject, store))
    return records


@dataclass(frozen=True, slots=True)
class _Task:
    """What lm-eval found for one task."""

    name: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    seed: int
    quick: int | None

    def store(self, lm: Remembering, subject: Subject, store: ResultsStore) -> EvaluationRecord:
        """Store questions, answers and figures, and return the evaluation."""
        output = self.config["output_type"]
        if output not in _KINDS:
            raise EvaluationError(
                f"The task '{self.name}' of lm-eval is of the kind '{output}', which has no "
                f"questions to compare models on. Supported: {', '.join(_KINDS)}."
            )
        is_choice = output == "multiple_choice"
        samples = sorted(_first_filter(self.samples), key=lambda sample: int(sample["doc_id"]))
        items, answers = [], []
        for sample in samples:
            items.append(self._item(sample, is_choice=is_choice))
            answers.append(self._answer(sample, lm, subject, is_choice=is_choice))
        store.add_answers(answers)
        metrics: dict[str, float | None] = {
            f"lm-eval/{name}": float(value)
            for name, value in self.results.items()
            if isinstance(value, int | float) and "," in name and "stderr" not in name
        }
        if is_choice:
            chosen = [each.answer for each in answers if isinstance(each.answer, ChoiceAnswer)]
            kept = choice_metrics(items, chosen, modes=("constrained",))
            metrics |= {key: kept[key] for key in _CHOICE_METRICS}
        record = EvaluationRecord(
            key=digest_of(
                "lm-eval", lm_eval.__version__, subject.record.fingerprint, subject.backend,
                subject.dtype, self.name, [item.digest for item in items],
                [answer.key for answer in answers], metrics,
            ),
            model=subject.record.fingerprint, suite=SUITE, task=self.name,
            kind="choice" if is_choice else "text", seed=self.seed,
            shots=int(self.config.get("num_fewshot") or 0), backend=subject.backend,
            dtype=subject.dtype, chat=False, scoring_version=SCORING_VERSION,
            sample={
                "items": len(items), "quick": self.quick, "lm_eval": lm_eval.__version__,
                "drawn": "the first" if self.quick else "all",
                "task_version": str(self.config.get("metadata", {}).get("version", "")),
            },
            metrics=metrics,
            items=tuple(
                (item.digest, answer.key) for item, answer in zip(items, answers, strict=True)
            ),
            suite_digest=digest_of(self.name, [item.digest for item in items]),
        )  # fmt: skip
        store.add_evaluation(record, items)
        return record

    def _item(self, sample: Mapping[str, Any], *, is_choice: bool) -> ItemRecord:
        arguments = sample["arguments"]
        target = sample["target"]
        options = [str(each[1]) for each in arguments] if is_choice else []
        is_index = is_choice and isinstance(target, int) and 0 <= target < len(options)
        if is_choice and not is_index:
            raise EvaluationError(
                f"The task '{self.name}' of lm-eval has the right answer {target!r}, which is no "
                "number of an option; forge stores questions with one right option."
            )
        return ItemRecord.of(
            f"lm-eval/{self.name}", str(sample["doc_id"]), question=str(arguments[0][0]),
            options=options, gold=int(target) if is_choice else str(target),
            label=options[int(target)].strip() if is_choice else "",
        )  # fmt: skip

    def _answer(
        self, sample: Mapping[str, Any], lm: Remembering, subject: Subject, *, is_choice: bool
    ) -> AnswerRecord:
        kind = "loglikelihood" if is_choice else "generate_until"
        keys = [lm.key(kind, each) for each in sample["arguments"]]
        answer: Answer
        if is_choice:
            scores = [each[0] for each in sample["resps"]]
            greedy = [place for place, (_, is_greedy) in enumerate(scores) if is_greedy]
            answer = ChoiceAnswer(
                tuple(float(value) for value, _ in scores), greedy[0] if greedy else None, "", None
            )
        else:
            answer = TextAnswer(str(sample["resps"][0][0]))
        return AnswerRecord(digest_of("lm-eval item", keys), subject.record.fingerprint, answer)


_CHOICE_METRICS: Final = ("constrained/accuracy", "constrained/accuracy_se", "majority_baseline")
"""Of options that are whole texts; their likelihoods are no probabilities of a choice."""


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    first = samples[0].get("filter") if samples else None
    return [sample for sample in samples if sample.get("filter") == first]


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
