"""Check quantized checkpoints by running them, each in the program that users run it with.

What the static checks have found wrong is not run. Where memory is too small for the source, its
predictions are not compared, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.source import SafetensorsSource
from forge.core.errors import CheckpointError, MissingExtraError
from forge.core.machine import available_memory
from forge.formats.contract import Scheme
from forge.verify.codes_layout import GroupsOfCodes
from forge.verify.findings import CheckName, CheckResult, Finding
from forge.verify.fresh_load import Answer, Loaded, Request, load_in_fresh_process
from forge.verify.static_checks import Case, StaticResult

MAX_DIVERGENCE: Final = 1.5
"""Nats. Round-to-nearest in 4 bits costs a model of 135 million parameters 0.3 and larger ones
less; what is this far away says something else than its source."""
_WORK_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Running:
    """What running a checkpoint showed.

    Attributes:
        checks: Results of the two checks.
        findings: What is wrong.
        consumer: The program that loaded it, or ``None``.
        divergence: Predictions against the source's, or ``None``.
        rtn_divergence: The same of the source rounded to nearest, or ``None``.
    """

    checks: tuple[CheckResult, ...]
    findings: tuple[Finding, ...] = ()
    consumer: str | None = None
    divergence: Mapping[str, object] | None = None
    rtn_divergence: Mapping[str, object] | None = None


def check_running(
    cases: Sequence[Case], found: Sequence[StaticResult], *, quick: bool, tokens: int
) -> tuple[Running, ...]:
    """Load checkpoints of one source in one fresh process and compare their predictions.

    Args:
        cases: What to check.
        found: What the static checks found of each.
        quick: Whether to skip all of it.
        tokens: Most tokens of held-out text to compare on.

    Returns:
        A result for each case. Where a package is missing, nothing is loaded, and it says so.
    """
    if quick:
        return tuple(_skipped("left out by --quick") for _ in cases)
    sound = [number for number, result in enumerate(found) if not result.findings]
    results = [_skipped("left out, because what would be loaded is wrong") for _ in cases]
    # Rounding to nearest is computed for one scheme; outputs of another are compared by themselves.
    groups: dict[Scheme | None, list[int]] = {}
    for number in sound:
        groups.setdefault(_scheme(cases[number]), []).append(number)
    for scheme, numbers in groups.items():
        chosen = [cases[number] for number in numbers]
        reason = _no_comparison(chosen, scheme)
        request = _request(chosen, found[numbers[0]], scheme, None if reason else tokens)
        try:
            answer = load_in_fresh_process(request)
        except MissingExtraError as error:
            for number in numbers:
                results[number] = _skipped(str(error))
            continue
        except CheckpointError as error:
            for number in numbers:
                results[number] = _failed(cases[number], str(error))
            continue
        for number, loaded in zip(numbers, answer.outputs, strict=True):
            results[number] = _result(cases[number], loaded, answer, reason)
    return tuple(results)


def _skipped(reason: str) -> Running:
    names: tuple[CheckName, ...] = ("load", "divergence")
    return Running(tuple(CheckResult(name, "skipped", reason) for name in names))


def _failed(case: Case, problem: str, consumer: str | None = None) -> Running:
    checks = (
        CheckResult("load", "failed", problem),
        CheckResult("divergence", "skipped", "left out, because the model does not run"),
    )
    return Running(checks, (Finding("load", case.root.name, problem),), consumer)


def _scheme(case: Case) -> Scheme | None:
    """Return the scheme to round to for comparison, ``None`` where there is no other rounding."""
    if case.method == "rtn" or not isinstance(case.layout, GroupsOfCodes):
        return None
    return case.layout.scheme


def _no_comparison(cases: Sequence[Case], scheme: Scheme | None) -> str | None:
    """Return why predictions cannot be compared with the source's, or ``None``."""
    source = cases[0].source
    if source is None:
        return "needs the source: --against SOURCE"
    if source.reference.lora is not None:
        return "the source is a model with an adapter; merge them first"
    needed = _needed_bytes(cases, source, scheme)
    available = available_memory()
    if available is not None and needed > available:
        return (
            f"needs {needed / 1e9:.1f} GB of memory for the source, and {available / 1e9:.1f} GB "
            "are available"
        )
    return None


def _needed_bytes(cases: Sequence[Case], source: Checkpoint, scheme: Scheme | None) -> int:
    variant = max(sum(case.variant.info(n).nbytes for n in case.variant.names()) for case in cases)
    plain = sum(source.source.info(name).nbytes for name in source.source.names())
    # Rounded and decoded weights are handed to the model in a table that lives while it is built.
    is_stored = isinstance(source.source, SafetensorsSource)
    return max(variant, plain * (1 if scheme is None and is_stored else 2)) + _WORK_BYTES


def _request(
    cases: Sequence[Case], found: StaticResult, scheme: Scheme | None, tokens: int | None
) -> Request:
    roots = tuple(str(case.root.resolve()) for case in cases)
    source = cases[0].source
    if source is None or tokens is None:
        return Request(roots, None, 0)
    # What is on the Hub has a folder here; what is local may be a file, which has none.
    place = source.root if source.revision else Path(source.reference.path).expanduser()
    folder = str(place.resolve())
    if scheme is None:
        return Request(roots, folder, tokens)
    linears = found.account.linears
    return Request(
        roots, folder, tokens,
        rtn=tuple(linear.module for linear in linears),
        bits=scheme.bits,
        group_size=scheme.group_size,
        symmetric=scheme.symmetric,
        transposed=any(linear.transposed for linear in linears),
    )  # fmt: skip


def _result(case: Case, loaded: Loaded, answer: Answer, reason: str | None) -> Running:
    if loaded.problem is not None:
        return _failed(case, loaded.problem, loaded.consumer)
    load = CheckResult("load", "passed", f"by {loaded.consumer}, {len(loaded.reply)} tokens")
    if loaded.divergence is None:
        skipped = CheckResult("divergence", "skipped", reason or "no source to compare with")
        return Running((load, skipped), (), loaded.consumer)
    text, problems = _judge(case, loaded.divergence, answer.rtn_divergence)
    findings = tuple(Finding("divergence", case.root.name, problem) for problem in problems)
    return Running(
        (load, CheckResult.of("divergence", findings, text)), findings, loaded.consumer,
        loaded.divergence, answer.rtn_divergence,
    )  # fmt: skip


def _judge(
    case: Case, found: Mapping[str, object], rounded: Mapping[str, object] | None
) -> tuple[str, list[str]]:
    mean = _number(found, "mean")
    text = (
        f"KL {mean:.4f} nats, same top {_number(found, 'same_top_share'):.1%}, "
        f"perplexity × {_number(found, 'perplexity_ratio'):.3f}"
    )
    problems = []
    if not mean <= MAX_DIVERGENCE:
        problems.append(
            f"The model diverges from its source by {mean:.3f} nats a token; no quantization that "
            f"works exceeds {MAX_DIVERGENCE}."
        )
    if rounded is not None:
        nearest = _number(rounded, "mean")
        text += f"; rounding to nearest has KL {nearest:.4f}"
        if not mean < nearest:
            problems.append(
                f"The model diverges from its source by {mean:.4f} nats a token, rounding to "
                f"nearest by {nearest:.4f}: the calibration did harm, or its text does not fit."
            )
    elif case.method == "rtn":
        text += "; it is rounding to nearest itself"
    else:
        text += f"; {case.layout.name} fixes its own codes, so there is no other rounding"
    return text, problems


def _number(figures: Mapping[str, object], key: str) -> float:
    value = figures[key]
    assert isinstance(value, int | float)
    return float(value)
