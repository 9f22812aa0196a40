"""What a check finds: findings, facts about the models, and what the merge will need.

A finding has a code that stays the same, so that scripts can look for it, and a message
that says what, where, and what to do. Alike problems are one finding with the first three
names and a count, because three hundred lines hide the one that matters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from forge.merge.check.tokenizer_facts import TokenizerTable
from forge.merge.plan import MergePlan
from forge.merge.vocabulary.round_trip import Change

Level = Literal["error", "warning", "notice"]

_LEVELS: Final[tuple[Level, ...]] = ("error", "warning", "notice")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the user should know before the merge.

    Attributes:
        level: ``error`` forbids the merge; a ``warning`` is probably not what was meant; a
            ``notice`` says what will be done.
        code: Stable name in kebab case.
        message: What, where, what to do.
    """

    level: Level
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What one model is, from its headers and its configuration.

    Attributes:
        model: The reference as the recipe writes it.
        revision: Resolved commit of a model of the Hub, else ``None``.
        architecture: ``model_type``, or ``None`` when the configuration has none.
        dtypes: safetensors types of its tensors, the one with most elements first.
        num_layers: Layers that its configuration states, or ``None``.
        num_tensors: Tensors in its files.
        num_parameters: Elements of those tensors.
        vocab_rows: Rows of its embedding, or ``None`` when it was not found.
        tied: Whether its head shares the embedding's weights.
    """

    model: str
    revision: str | None
    architecture: str | None
    dtypes: tuple[str, ...]
    num_layers: int | None
    num_tensors: int
    num_parameters: int
    vocab_rows: int | None
    tied: bool

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "model": self.model,
            "revision": self.revision,
            "architecture": self.architecture,
            "dtypes": list(self.dtypes),
            "num_layers": self.num_layers,
            "num_tensors": self.num_tensors,
            "num_parameters": self.num_parameters,
            "vocab_rows": self.vocab_rows,
            "tied": self.tied,
        }


@dataclass(frozen=True, slots=True)
class CheckReport:
    """Everything that a check has to say.

    Attributes:
        findings: Errors first, then warnings, then notices.
        input_bytes: Bytes of the tensors that the merge will read.
        output_bytes: Bytes of the tensors that it will write; 0 while errors leave that open.
        memory_bytes: Estimate of the anonymous memory that it will need.
        free_disk_bytes: Free space where the output will be, or ``None`` when that is not known.
        models: Facts about each model, in the recipe's order.
        plan: What the merge will do, or ``None`` when errors leave that open.
        tokenizers: The models' tokenizers side by side, or ``None`` when they cannot be read.
        texts: For each model whose tokenizer is not the result's, the texts that both treat
            differently.
    """

    findings: tuple[Finding, ...]
    input_bytes: int
    output_bytes: int
    memory_bytes: int
    free_disk_bytes: int | None
    models: tuple[ModelFacts, ...]
    plan: MergePlan | None = None
    tokenizers: TokenizerTable | None = None
    texts: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What forbids the merge."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What is probably not what was meant."""
        return tuple(finding for finding in self.findings if finding.level == "warning")

    @property
    def notices(self) -> tuple[Finding, ...]:
        """What will be done."""
        return tuple(finding for finding in self.findings if finding.level == "notice")

    def as_json(self) -> dict[str, object]:
        """Return plain JSON values."""
        return {
            "ok": not self.errors,
            "findings": [
                {"level": finding.level, "code": finding.code, "message": finding.message}
                for finding in self.findings
            ],
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "memory_bytes": self.memory_bytes,
            "free_disk_bytes": self.free_disk_bytes,
            "models": [facts.as_json() for facts in self.models],
            "tokenizers": None if self.tokenizers is None else self.tokenizers.as_json(),
            "texts": {
                model: [change.as_json() for change in changes]
                for model, changes in self.texts.items()
            },
        }


class Notebook:
    """Collects findings; what is said twice is kept once."""

    def __init__(self) -> None:
        self._findings: dict[Finding, None] = {}

    def error(self, code: str, message: str) -> None:
        """Add an error."""
        self._findings[Finding("error", code, message)] = None

    def warning(self, code: str, message: str) -> None:
        """Add a warning."""
        self._findings[Finding("warning", code, message)] = None

    def notice(self, code: str, message: str) -> None:
        """Add a notice."""
        self._findings[Finding("notice", code, message)] = None

    def withdraw(self, code: str) -> None:
        """Take back errors of a code, because another one tells the cause."""
        told = {
            finding: None
            for finding in self._findings
            if (finding.level, finding.code) != ("error", code)
        }
        self._findings = told

    @property
    def has_errors(self) -> bool:
        """Whether an error was added."""
        return any(finding.level == "error" for finding in self._findings)

    def has(self, code: str) -> bool:
        """Return whether a finding of that code was added."""
        return any(finding.code == code for finding in self._findings)

    def sorted(self) -> tuple[Finding, ...]:
        """Return all findings, errors first, each level in the order of adding."""
        return tuple(
            finding for level in _LEVELS for finding in self._findings if finding.level == level
        )
