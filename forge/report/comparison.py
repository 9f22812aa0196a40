"""What a report shows: plain frozen values, decided once, written in many formats.

A comparison is built from a results file by ``forge.report.compare``; writers, charts and the page
only lay it out. It holds no time and no path of this machine, and every sequence has a fixed order,
so the same results file gives the same bytes.

Shares are in [0, 1]; differences of shares are in [-1, 1], and 0.01 is a point. Times are seconds,
sizes bytes. A model is named by its label, which is unique in a comparison. ``None`` always means
that there is no figure, never zero.

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

from forge.results.answers import Mode

VerdictKind = Literal["source", "better", "not worse", "worse", "undecided", "unmeasured"]
"""What the paired statistics say of a model against its baseline; see ``Verdict``."""
NonInferiority = Literal["superior", "non-inferior", "inferior", "inconclusive"]
"""Where a paired interval lies against zero and the margin."""
Standing = Literal["best", "second"]
"""Bold and underlined in table 2."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float


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
class Latency:
    """Times of one quantity over all raw samples.

    Attributes:
        median: Seconds.
        p90: Seconds.
        p99: Seconds.
        num_samples: How many.
    """

    median: float
    p90: float
    p99: float
    num_samples: int


@dataclass(frozen=True, slots=True)
class TimeRatio:
    """A model's time relative to its baseline's; below 1 is faster.

    Attributes:
        ratio: Of the medians.
        interval: Bootstrap interval over rounds.
        covered: Whether the machine's noise covers the difference, so that no winner is named.
        why: What covers it, or ``None``.
    """

    ratio: float
    interval: Interval
    covered: bool
    why: str | None


@dataclass(frozen=True, slots=True)
class Profile:
    """A model in one setting.

    Attributes:
        model: Its label.
        baseline: What the ratios are against, measured in turns with it; or ``None``.
        device: Such as ``cpu``.
        dtype: Type of the arithmetic; ``None`` for the one that each checkpoint gets.
        threads: Or ``None``.
        batch: Sequences at once.
        prompt_tokens: Of each sequence.
        new_tokens: Decoded for each.
        status: ``ok``, or why there are no figures.
        backend: The kernels that really ran.
        environment: Name of the environment.
        load: Loading, or ``None``.
        first_token: Prompt to first token, or ``None``.
        prefill: The prompt alone, or ``None``.
        decode: One step of all sequences, or ``None``.
        prefill_tokens_per_s: Of all sequences together, at the median.
        decode_tokens_per_s: Likewise.
        prefill_ratio: Against the baseline, or ``None``.
        decode_ratio: Likewise.
        energy_j_per_token: Energy of a round, prompt included, for each decoded token, or ``None``.
        memory: Bytes by name, ``None`` where the device does not say: ``weights_on_disk``,
            ``weights_in_memory``, ``peak_allocated``, ``peak_reserved``, ``driver``,
            ``peak_resident``, ``kv_per_token``.
        peak_bytes: The one that table 1 shows.
        peak_is: Its name in ``memory``, such as ``peak_allocated``; ``None`` if there is none.
        noise: What the machine did meanwhile, by name.
        notices: What the reader should know.
    """

    model: str
    baseline: str | None
    device: str
    dtype: str | None
    threads: int | None
    batch: int
    prompt_tokens: int
    new_tokens: int
    status: str
    backend: str
    environment: str
    load: Latency | None
    first_token: Latency | None
    prefill: Latency | None
    decode: Latency | None
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    prefill_ratio: TimeRatio | None
    decode_ratio: TimeRatio | None
    energy_j_per_token: float | None
    memory: tuple[tuple[str, int | None], ...]
    peak_bytes: int | None
    peak_is: str | None
    noise: tuple[tuple[str, float], ...]
    notices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProfileTable:
    """Table 1.

    Attributes:
        setting: What all rows share, in words; empty where nothing was profiled.
        rows: For each local model its profile in that setting, or ``None``.
        sweep: All profiles of all settings, by model, then batch and lengths.
    """

    setting: str
    rows: tuple[tuple[str, Profile | None], ...]
    sweep: tuple[Profile, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """A column of table 2.

    Attributes:
        name: Of the task.
        num_items: Items that most models of the table answered.
        majority: Accuracy of always giving the commonest answer, or ``None`` for text.
        seeds: Sets of examples that were used.
    """

    name: str
    num_items: int
    majority: float | None
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """A cell of table 2.

    Attributes:
        value: Mean over seeds of the table's metric, a share.
        deviation: Population standard deviation over seeds; ``None`` with one seed.
        num_seeds: How many seeds there are.
        num_items: Items of each seed.
        same_items: Whether they are the items and seeds of most models of the table; others are
            shown, and take no part in best, second and averages.
        standing: Best or second of its column, or ``None``.
        dagger: Whether it differs from its baseline after Holm's correction.
        option_mass: Mean probability of all options together, or ``None``.
        missing: Share of answers from which no option can be read, or ``None``.
        calibration_error: Expected calibration error, or ``None``.
    """

    value: float
    deviation: float | None
    num_seeds: int
    num_items: int
    same_items: bool
    standing: Standing | None
    dagger: bool
    option_mass: float | None
    missing: float | None
    calibration_error: float | None


@dataclass(frozen=True, slots=True)
class Average:
    """A mean over all tasks of a table.

    Attributes:
        value: Mean over seeds, a share.
        deviation: Population standard deviation over seeds, or ``None``.
        standing: Best or second of its column, or ``None``.
        dagger: For the micro average, whether the pooled difference from the baseline holds.
    """

    value: float
    deviation: float | None
    standing: Standing | None
    dagger: bool


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """A row of table 2.

    Attributes:
        model: Label.
        kind: Of the model.
        scores: One for each task of the table, or ``None``.
        macro: Mean over tasks, each counted once; ``None`` where a task is missing.
        micro: Mean over items, each counted once; likewise.
    """

    model: str
    kind: Literal["local", "api", "ensemble"]
    scores: tuple[Score | None, ...]
    macro: Average | None
    micro: Average | None


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Table 2: tasks × models of one suite, scored in one way.

    Attributes:
        suite: Name.
        metric: ``accuracy``, or the metric of a suite that is answered in words.
        mode: Scoring mode; ``None`` for answers in words.
        chat: Whether prompts went through chat templates.
        shots: Examples before each question, such as ``3``, or a range, such as ``0-3``.
        primary: Whether verdicts rest on this table.
        tasks: Columns.
        rows: In the order of the comparison's models.
        majority_macro: Mean of the tasks' majority baselines, or ``None``.
        sample: How items were drawn, in words.
        notes: What the reader should know, such as who has no average and why.
    """

    suite: str
    metric: str
    mode: Mode | None
    chat: bool
    shots: str
    primary: bool
    tasks: tuple[Task, ...]
    rows: tuple[ScoreRow, ...]
    majority_macro: float | None
    sample: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A variant minus its baseline on the same items.

    Over several seeds an item counts once, with the mean over seeds that both have.

    Attributes:
        task: Name, or ``None`` for all tasks together, where each item counts once.
        num_items: Items that both answered.
        num_clusters: Passages or items that are independent of one another.
        num_seeds: Seeds that both have.
        variant: Accuracy of the variant on them.
        baseline: Accuracy of the baseline on them.
        difference: Variant minus baseline.
        interval: Paired interval of it.
        p_value: Exact McNemar test.
        p_holm: Corrected for the family that it is of.
        significant: Whether ``p_holm`` is below the family's alpha.
        gained: Items that the variant answers better.
        lost: Items that it answers worse.
        verdict: Where the interval lies against the margin.
    """

    task: str | None
    num_items: int
    num_clusters: int
    num_seeds: int
    variant: float
    baseline: float
    difference: float
    interval: Interval
    p_value: float
    p_holm: float
    significant: bool
    gained: int
    lost: int
    verdict: NonInferiority


@dataclass(frozen=True, slots=True)
class FlippedItem:
    """A question whose answer changed.

    Attributes:
        kind: ``lost`` (right to wrong), ``gained`` (wrong to right), ``moved`` (wrong both times).
        task: Name.
        item_id: Its name there.
        seed: Which examples stood before it.
        question: As it was put; of a long one the end, behind ``…``.
        options: Texts.
        gold: Index of the right option.
        baseline_answer: Index, or ``None`` if missing.
        variant_answer: Likewise.
        baseline_probabilities: Of the options, scaled to a sum of 1.
        variant_probabilities: Likewise.
    """

    kind: Literal["lost", "gained", "moved"]
    task: str
    item_id: str
    seed: int
    question: str
    options: tuple[str, ...]
    gold: int
    baseline_answer: int | None
    variant_answer: int | None
    baseline_probabilities: tuple[float, ...]
    variant_probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Flips:
    """How answers changed from baseline to variant, counted by question and seed.

    Attributes:
        both_right: Right, and still right.
        lost: Right to wrong.
        gained: Wrong to right.
        moved: Wrong to another wrong answer.
        both_wrong: Wrong, with the same answer.
        items: Some of those that changed, those whose right option's probability changed most
            first, and at most so many of each kind.
        shown_of_each: At most how many of each kind are in ``items``.
    """

    both_right: int
    lost: int
    gained: int
    moved: int
    both_wrong: int
    items: tuple[FlippedItem, ...]
    shown_of_each: int

    @property
    def num_answers(self) -> int:
        """Questions times seeds."""
        return self.both_right + self.lost + self.gained + self.moved + self.both_wrong

    @property
    def changed_share(self) -> float:
        """Share of answers that changed."""
        changed = self.lost + self.gained + self.moved
        return changed / self.num_answers if self.num_answers else 0.0


@dataclass(frozen=True, slots=True)
class Pair:
    """A variant against its baseline.

    Attributes:
        variant: Label.
        baseline: Label.
        overall: All tasks together.
        tasks: Each task that both answered, in the order of the table.
        flips: How answers changed.
    """

    variant: str
    baseline: str
    overall: Difference
    tasks: tuple[Difference, ...]
    flips: Flips


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
class Divergence:
    """A variant's predictions against its source's, on the same tokens.

    Attributes:
        variant: Label.
        reference: Label.
        text: Name of the text.
        num_positions: Predictions compared.
        mean: KL divergence, nats.
        median: Nats.
        p90: Nats.
        p99: Nats.
        max: Nats.
        same_top_share: Share of positions with the same likeliest token.
        perplexity_ratio: Variant over reference.
        weight_bytes: Of the variant, or ``None``.
        layers: Number and relative error of each decoder block's output.
    """

    variant: str
    reference: str
    text: str
    num_positions: int
    mean: float
    median: float
    p90: float
    p99: float
    max: float
    same_top_share: float
    perplexity_ratio: float
    weight_bytes: int | None
    layers: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers of similar confidence.

    Attributes:
        low: Least confidence of the bin.
        high: Greatest.
        num_answers: How many.
        confidence: Their mean confidence.
        accuracy: Share of them that is right.
    """

    low: float
    high: float
    num_answers: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How a model's confidence agrees with its accuracy over the primary table.

    Attributes:
        model: Label.
        calibration_error: Expected calibration error over all answers.
        bins: Those that are not empty, in order of confidence.
    """

    model: str
    calibration_error: float
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class QuantizationErrors:
    """Error by layer and projection, as the quantization measured it.

    Attributes:
        model: Label.
        measure: What the numbers are, in words.
        layers: Numbers of the decoder blocks: rows.
        projections: Such as ``self_attn.q_proj``: columns, in the order of computation.
        values: A row for each layer; ``None`` where it was not measured.
        worst: Module with the largest error.
    """

    model: str
    measure: str
    layers: tuple[int, ...]
    projections: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    worst: str


@dataclass(frozen=True, slots=True)
class MergeLayer:
    """How models met in one place of a merge.

    Attributes:
        place: ``embedding``, ``layer 3``, ``final norm``, ``head`` or ``other``.
        layer: Number, or ``None``.
        norms: Of each task vector, or of each model where there is no base.
        cosines: Between them, in the order of ``Merge.pairs``.
        conflict_share: Share of positions where signs disagree, or ``None``.
        kept_shares: Share of each task vector that was kept.
        angle_degrees: Between the two interpolated vectors, or ``None``.
        fallback: Why a simpler formula was used, or ``None``.
    """

    place: str
    layer: int | None
    norms: tuple[float, ...]
    cosines: tuple[float, ...]
    conflict_share: float | None
    kept_shares: tuple[float, ...]
    angle_degrees: float | None
    fallback: str | None


@dataclass(frozen=True, slots=True)
class Merge:
    """What a merge measured, place by place.

    Attributes:
        model: Label.
        method: Name.
        inputs: Models that met, without the base where there is one.
        pairs: Indices into ``inputs`` of each cosine.
        layers: In the order of computation.
    """

    model: str
    method: str
    inputs: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    layers: tuple[MergeLayer, ...]


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that something was made from.

    Attributes:
        name: Without its folder.
        num_bytes: Size.
        digest: Algorithm and value, such as ``xxh3_128_tree:894a…``.
    """

    name: str
    num_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Parent:
    """A model that another was made from.

    Attributes:
        name: As the recipe names it, without folders of this machine.
        role: ``base``, ``model`` or ``source``.
        label: Its label where it is in this comparison, or ``None``.
        revision: Commit on the Hub, or ``None``.
        licence: Where it is known, or ``None``.
        files: Its weights.
    """

    name: str
    role: str
    label: str | None
    revision: str | None
    licence: str | None
    files: tuple[InputFile, ...]


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where a model comes from.

    Attributes:
        model: Label.
        made_by: ``merge``, ``quantize``, ``convert``; ``None`` where forge did not make it.
        recipe: Resolved recipe as YAML, or ``None``.
        recipe_file: Name under ``recipes/`` in the report's folder, or ``None``.
        parents: What it was made from.
        licence: Its own, or ``None``.
        content_digest: Over all tensors, or ``None``.
        versions: Of what computed, by name.
        notices: What was said when it was made.
        commands: That make it again from its parents, and measure it again.
    """

    model: str
    made_by: str | None
    recipe: str | None
    recipe_file: str | None
    parents: tuple[Parent, ...]
    licence: str | None
    content_digest: str | None
    versions: tuple[tuple[str, str], ...]
    notices: tuple[str, ...]
    commands: tuple[str, ...]


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
