"""What a report shows: plain frozen values, decided once, written in many formats.

A comparison is built from a results file by ``forge.report.compare``; writers, charts and the page
only lay it out. It holds no time and no path of this machine, and every sequence has a fixed order,
so the same results file gives the same bytes.

Shares are in [0, 1]; differences of shares are in [-1, 1], and 0.01 is a point. Times are seconds,
sizes bytes. A model is named by its label, which is unique in a comparison. ``None`` always means
that there is no figure, never zero.

What was measured stands by kind in ``scores``, ``differences``, ``profiles`` and ``origin``; the
models, the decision between them and the whole stand here.

    Comparison ── models, settings, environments, notices
               ├─ recommendation, verdicts          which one to release, and why
               ├─ profiles                          table 1, and the sweep behind it
               ├─ tables                            table 2: one for each suite and scoring mode
               ├─ pairs ── differences, flips       each variant against its baseline
               ├─ pareto, divergences, reliability  what the charts draw
               └─ quantization_errors, merges, lineage
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forge.report.comparison.differences import Divergence, Pair
from forge.report.comparison.origin import Lineage, Merge, QuantizationErrors
from forge.report.comparison.profiles import ProfileTable
from forge.report.comparison.scores import Reliability, ScoreTable
from forge.results.answers import Mode

VerdictKind = Literal["source", "better", "not worse", "worse", "undecided", "unmeasured"]
"""What the paired statistics say of a model against its baseline; see ``Verdict``."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the comparison.

    Attributes:
        label: Its name in tables, unique.
        fingerprint: Digest of what decides its predictions.
        kind: Where it runs.
        baseline: Label of the model that it is compared with, or ``None`` for a source.
        architecture: Name of its family, or ``None``.
        method: What made it, such as ``dare_ties`` or ``awq``, or ``None``.
        format: Name of its quantized format, such as ``awq-gemm``, or ``None``.
        version: The format's layout in the words of model cards, such as ``GEMM`` or ``NF4``.
        bits: Bits of a code, or ``None``.
        group_size: Weights that share a scale, or ``None``.
        dtype: Type of the weights that are not quantized, or ``None``.
        num_parameters: Or ``None``.
        weight_bytes: Size of its weight files, or ``None``.
        bits_per_weight: ``8 · weight_bytes / num_parameters``, or ``None``.
        licence: What its card says, or ``None``.
        members: Labels of an ensemble's models.
    """

    label: str
    fingerprint: str
    kind: Literal["local", "api", "ensemble"]
    baseline: str | None
    architecture: str | None
    method: str | None
    format: str | None
    version: str | None
    bits: int | None
    group_size: int | None
    dtype: str | None
    num_parameters: int | None
    weight_bytes: int | None
    bits_per_weight: float | None
    licence: str | None
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Family:
    """Tests that are corrected together after Holm.

    Attributes:
        name: ``overall`` (one test for each pair) or ``tasks`` (one for each pair and task).
        num_tests: How many there are.
        alpha: The chance of one false dagger or more in the family.
    """

    name: str
    num_tests: int
    alpha: float


@dataclass(frozen=True, slots=True)
class Settings:
    """How the comparison was made.

    Attributes:
        suite: Suite that verdicts rest on, or ``None`` where nothing was evaluated.
        mode: Scoring mode that verdicts rest on.
        margin: Loss of accuracy that does not matter, a share: 0.01 is a point.
        confidence: Of every interval, such as 0.95.
        families: What is corrected together.
        baseline: Label that the user set for all, or ``None`` where each has its own.
    """

    suite: str | None
    mode: Mode
    margin: float
    confidence: float
    families: tuple[Family, ...]
    baseline: str | None


@dataclass(frozen=True, slots=True)
class Environment:
    """Where something was measured.

    Attributes:
        name: ``A``, ``B`` … in the order of measuring.
        facts: Names and values as text, such as ``("cpu", "AMD EPYC 7B13")``.
    """

    name: str
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to think of a model.

    Attributes:
        model: Its label.
        kind: ``source``: nothing to compare it with. ``better``: the interval of its difference
            lies above zero. ``not worse``: it lies above the margin. ``worse``: it lies below zero,
            and reaches beyond the margin. ``undecided``: the items do not suffice.
            ``unmeasured``: no item was answered by it and by its baseline.
        headline: One sentence without its last full stop.
        reasons: Why, one sentence each.
        against: What speaks against releasing it, one sentence each.
        dominated_by: Labels of models that are at least as good in accuracy, memory and speed,
            and better in one.
        recommended: Whether this is the one to release.
        items_to_decide: For ``undecided``, about how many items would decide if the difference
            stays what it is; ``None`` where it lies at the margin itself, or for other kinds.
    """

    model: str
    kind: VerdictKind
    headline: str
    reasons: tuple[str, ...]
    against: tuple[str, ...]
    dominated_by: tuple[str, ...]
    recommended: bool
    items_to_decide: int | None


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Which model to release.

    Attributes:
        model: Its label, or ``None`` where the measurements do not say.
        headline: One sentence without its last full stop.
        reasons: How it was found, step by step.
        leader: Label of the most accurate model, which it was held against, or ``None``.
    """

    model: str | None
    headline: str
    reasons: tuple[str, ...]
    leader: str | None


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """A local model in the plane of accuracy and memory.

    Attributes:
        model: Label.
        accuracy: Micro average of the primary table.
        memory_bytes: See ``Pareto.memory_is``.
        decode_tokens_per_s: Or ``None``.
        on_front: Whether no other model dominates it.
        dominated_by: Labels of those that do.
    """

    model: str
    accuracy: float
    memory_bytes: int
    decode_tokens_per_s: float | None
    on_front: bool
    dominated_by: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pareto:
    """Accuracy against memory, with decoding speed.

    Attributes:
        memory_is: ``peak_allocated``, ``peak_resident`` … where all points have it, else
            ``weight_bytes``.
        points: In the order of the comparison's models.
        missing: Labels of local models that lack accuracy or memory.
    """

    memory_is: str
    points: tuple[ParetoPoint, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that a report shows.

    Attributes:
        title: Of the report.
        forge_version: That wrote it.
        results_file: Name of the results file, without its folder.
        models: All, sources before their variants; their order is that of tables and colours.
        settings: How it was made.
        recommendation: Which model to release.
        verdicts: One for each model, in the order of ``models``.
        profiles: Table 1.
        tables: Table 2, the primary one first.
        pairs: Variants against baselines, in the order of ``models``.
        pareto: Accuracy against memory; ``None`` with fewer than two points.
        divergences: In the order of ``models``.
        reliability: One for each model with answers, in the order of ``models``.
        quantization_errors: Of the variants whose method measures them.
        merges: Of the merges with statistics.
        lineage: One for each local model.
        environments: That profiles refer to.
        commands: That measure all models again and write this report.
        notices: What the reader should know about the whole.
    """

    title: str
    forge_version: str
    results_file: str
    models: tuple[Model, ...]
    settings: Settings
    recommendation: Recommendation
    verdicts: tuple[Verdict, ...]
    profiles: ProfileTable
    tables: tuple[ScoreTable, ...]
    pairs: tuple[Pair, ...]
    pareto: Pareto | None
    divergences: tuple[Divergence, ...]
    reliability: tuple[Reliability, ...]
    quantization_errors: tuple[QuantizationErrors, ...]
    merges: tuple[Merge, ...]
    lineage: tuple[Lineage, ...]
    environments: tuple[Environment, ...]
    commands: tuple[str, ...]
    notices: tuple[str, ...]
