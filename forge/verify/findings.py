"""What the checks of a quantized checkpoint report: values for tables and JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

CheckName = Literal["layout", "tensors", "error", "load", "divergence"]
State = Literal["passed", "failed", "skipped"]

TITLES: Final[dict[CheckName, str]] = {
    "layout": "layout and constants",
    "tensors": "every tensor accounted for",
    "error": "error of each layer",
    "load": "loads and generates",
    "divergence": "predictions",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        check: The check that found it.
        name: The tensor, module or file.
        message: What is wrong, in one sentence.
    """

    check: CheckName
    name: str
    message: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What one check came to.

    Attributes:
        name: The check.
        state: Whether it passed, failed, or was not made.
        summary: What was checked, or why it was not.
    """

    name: CheckName
    state: State
    summary: str

    @classmethod
    def of(cls, name: CheckName, findings: Iterable[Finding], summary: str) -> CheckResult:
        """Return ``failed`` when there is a finding of the check, else ``passed``."""
        failed = any(finding.check == name for finding in findings)
        return cls(name, "failed" if failed else "passed", summary)

    def as_json(self) -> dict[str, object]:
        """Return the result as plain JSON values."""
        return {"check": self.name, "state": self.state, "summary": self.summary}


@dataclass(frozen=True, slots=True)
class ModuleError:
    """How far a quantized layer is from its source.

    Both are compared as the layer computes: with scales that were folded into the columns, or
    out of the rows, applied to the source.

    Attributes:
        module: The layer.
        relative: Norm of the difference relative to the source's.
        worst_group: The same of the worst group of weights that share a scale.
    """

    module: str
    relative: float
    worst_group: float

    def as_json(self) -> dict[str, object]:
        """Return the error as plain JSON values, four digits each."""
        return {
            "module": self.module,
            "relative": float(f"{self.relative:.4g}"),
            "worst_group": float(f"{self.worst_group:.4g}"),
        }
