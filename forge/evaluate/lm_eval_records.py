"""Store what lm-eval found for a task: questions, answers and figures. Imports no lm-eval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from forge.core.errors import EvaluationError
from forge.evaluate.scoring import SCORING_VERSION, choice_metrics
from forge.evaluate.subjects import Subject
from forge.results.answers import Answer, ChoiceAnswer, TextAnswer
from forge.results.records import AnswerRecord, EvaluationRecord, ItemRecord, digest_of
from forge.results.store import ResultsStore

SUITE: Final = "lm-eval"
_KINDS: Final = ("multiple_choice", "generate_until")
_CHOICE_METRICS: Final = ("constrained/accuracy", "constrained/accuracy_se", "majority_baseline")
"""Of options that are whole texts; their likelihoods are no probabilities of a choice."""

KeyOf = Callable[[str, Sequence[object]], str]
"""Returns the key of the answer to a request of a kind, from its arguments."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What lm-eval found for one task.

    Attributes:
        name: Its name.
        version: Version of lm-eval.
        config: The task as lm-eval understood it.
        results: Figures by ``name,filter``.
        samples: Each question with its requests and answers.
        seed: Of the examples.
        quick: The limit of questions, or ``None``.
    """

    name: str
    version: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]
    seed: int
    quick: int | None

    def store(self, key_of: KeyOf, subject: Subject, store: ResultsStore) -> EvaluationRecord:
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
            answers.append(self._answer(sample, key_of, subject, is_choice=is_choice))
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
                "lm-eval", self.version, subject.record.fingerprint, subject.backend,
                subject.dtype, self.name, [item.digest for item in items],
                [answer.key for answer in answers], metrics,
            ),
            model=subject.record.fingerprint, suite=SUITE, task=self.name,
            kind="choice" if is_choice else "text", seed=self.seed,
            shots=int(self.config.get("num_fewshot") or 0), backend=subject.backend,
            dtype=subject.dtype, chat=False, scoring_version=SCORING_VERSION,
            sample={
                "items": len(items), "quick": self.quick, "lm_eval": self.version,
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
        self, sample: Mapping[str, Any], key_of: KeyOf, subject: Subject, *, is_choice: bool
    ) -> AnswerRecord:
        kind = "loglikelihood" if is_choice else "generate_until"
        keys = [key_of(kind, each) for each in sample["arguments"]]
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


def _first_filter(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    first = samples[0].get("filter") if samples else None
    return [sample for sample in samples if sample.get("filter") == first]
