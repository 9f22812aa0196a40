"""A comparison as a release engineer meets it, made of invented but consistent figures.

Ten models: a source, its domain model, three merges, four quantized variants of one merge, a model
behind an API and an ensemble. Everything is drawn from one seeded generator, so it is always the
same. ``hostile`` puts markup, control characters and very long names wherever text comes from
results.
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from typing import Any

from forge.report.comparison import (
    Comparison,
    Environment,
    Family,
    Model,
    Pareto,
    ParetoPoint,
    Recommendation,
    Settings,
    Verdict,
)
from forge.report.comparison.differences import (
    Difference,
    Divergence,
    FlippedItem,
    Flips,
    Interval,
    Pair,
)
from forge.report.comparison.origin import (
    InputFile,
    Lineage,
    Merge,
    MergeLayer,
    Parent,
    QuantizationErrors,
)
from forge.report.comparison.profiles import Latency, Profile, ProfileTable, TimeRatio
from forge.report.comparison.scores import (
    Average,
    Reliability,
    ReliabilityBin,
    Score,
    ScoreRow,
    ScoreTable,
    Task,
)

SOURCE = "SmolLM2-135M-Instruct"
DOMAIN = "SmolLM2-135M-PubMedQA"
DARE = "demo-dare"
API = "gpt-4o-mini"
ENSEMBLE = "dare + ties + slerp"
QUANTIZED = ("demo-dare-awq-gemm", "demo-dare-awq-gemv", "demo-dare-nf4", "demo-dare-int8")
LOCAL = (SOURCE, DOMAIN, DARE, "demo-ties", "demo-slerp", *QUANTIZED)
TASKS = (
    ("PubMedQA", 500, 0.552), ("MedQA", 1273, 0.277), ("MedMCQA", 4183, 0.322),
    ("Anatomy", 135, 0.311), ("Clinical knowledge", 265, 0.302), ("College medicine", 173, 0.289),
)  # fmt: skip
_LEVEL = {
    SOURCE: 0.382, DOMAIN: 0.437, DARE: 0.452, "demo-ties": 0.446, "demo-slerp": 0.441,
    QUANTIZED[0]: 0.449, QUANTIZED[1]: 0.4485, QUANTIZED[2]: 0.424, QUANTIZED[3]: 0.4515,
    API: 0.71, ENSEMBLE: 0.461,
}  # fmt: skip
_BYTES = {
    SOURCE: 269, DOMAIN: 269, DARE: 269, "demo-ties": 269, "demo-slerp": 269,
    QUANTIZED[0]: 112, QUANTIZED[1]: 113, QUANTIZED[2]: 109, QUANTIZED[3]: 165,
}  # fmt: skip
_SPEED = {
    SOURCE: 31.0, DOMAIN: 31.2, DARE: 30.9, "demo-ties": 31.1, "demo-slerp": 30.8,
    QUANTIZED[0]: 47.4, QUANTIZED[1]: 58.9, QUANTIZED[2]: 22.3, QUANTIZED[3]: 14.2,
}  # fmt: skip
_NUM_LAYERS = 30
_PROJECTIONS = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


def comparison() -> Comparison:
    """Return the comparison."""
    chance = random.Random(20)
    pairs = tuple(_pair(label, chance) for label in LOCAL[1:])
    return Comparison(
        title="SmolLM2 135M, medical: merges and their quantized variants",
        forge_version="0.1.0",
        results_file="results.db",
        models=tuple(_model(label) for label in (*LOCAL, API, ENSEMBLE)),
        settings=Settings(
            "medical", "constrained", 0.01, 0.95,
            (Family("overall", len(pairs), 0.05), Family("tasks", len(pairs) * len(TASKS), 0.05)),
            None,
        ),
        recommendation=Recommendation(
            QUANTIZED[1],
            "Release demo-dare-awq-gemv: as accurate as the best within 1 point, in 42 % of its "
            "memory, and decoding 1.9 times as fast",
            (
                "demo-dare is the most accurate local model (45.2 %).",
                "demo-dare-awq-gemm, demo-dare-awq-gemv and demo-dare-int8 are not worse than it "
                "by more than 1 point.",
                "demo-dare-awq-gemv needs the least memory of these and decodes fastest.",
            ),
            DARE,
        ),
        verdicts=tuple(_verdict(label) for label in (*LOCAL, API, ENSEMBLE)),
        profiles=_profiles(),
        tables=(_table(chance, primary=True), _table(chance, primary=False)),
        pairs=pairs,
        pareto=Pareto("peak_resident", tuple(_point(label) for label in LOCAL), ()),
        divergences=tuple(_divergence(label, chance) for label in QUANTIZED),
        reliability=tuple(_reliability(label, chance) for label in (*LOCAL, API)),
        quantization_errors=(
            _errors(QUANTIZED[0], chance, 1.0), _errors(QUANTIZED[2], chance, 1.7),
        ),
        merges=tuple(_merge(label, chance) for label in (DARE, "demo-ties", "demo-slerp")),
        lineage=tuple(_lineage(label) for label in LOCAL),
        environments=(
            Environment("A", (
                ("cpu", "AMD EPYC 7B13, 2 of 64 cores"), ("memory", "24 GiB"),
                ("os", "Linux 6.1"), ("python", "3.11.2"), ("torch", "2.13.0"),
                ("threads", "2"), ("clocks", "2.45 to 3.5 GHz, governor performance"),
            )),
        ),
        commands=(
            "forge profile models/* --batch 1 --prompt-tokens 512",
            "forge eval models/* --suite medical",
            "forge report --out reports/demo",
        ),
        notices=("Energy was not measured: this machine's hardware does not report it.",),
    )  # fmt: skip


def hostile() -> Comparison:
    """Return the comparison with hostile text in place of every text that comes from results."""
    return _poison(comparison())


POISON = (
    '<script>window.hacked=1</script></svg></title></style></textarea>'
    '<img src=x onerror="window.hacked=1">"\'`&lt;\x00\x1b[31m\u202e\ud800\ufffe'
    "javascript:window.hacked=1 https://example.org/x.png ${hacked} {{hacked}}"
)  # fmt: skip
_KEPT = frozenset({
    "kind", "verdict", "standing", "mode", "status", "peak_is", "memory_is", "made_by", "name",
    "recipe_file",
})  # fmt: skip


def _poison(value: Any, field: str = "", owner: str = "") -> Any:
    """Return a value with each text made hostile; closed sets of words and keys stay."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = type(value).__name__
        changes = {
            item.name: _poison(getattr(value, item.name), item.name, own)
            for item in dataclasses.fields(value)
        }
        return dataclasses.replace(value, **changes)
    if isinstance(value, tuple):
        return tuple(_poison(item, field, owner) for item in value)
    if not isinstance(value, str) or (field, owner) in {
        ("memory", "Profile"),
        ("noise", "Profile"),
    }:
        return value
    if field in _KEPT and not (field == "name" and owner in {"Task", "Parent", "InputFile"}):
        return value
    # The same text everywhere keeps labels that refer to one another equal.
    return f"{value} {POISON}"


def _baseline(label: str) -> str | None:
    if label in QUANTIZED:
        return DARE
    return None if label in {SOURCE, API, ENSEMBLE} else SOURCE


def _method(label: str) -> str | None:
    for name in ("gemm", "gemv"):
        if label.endswith(name):
            return "awq"
    if label.endswith(("nf4", "int8")):
        return "bitsandbytes"
    return {DARE: "dare_ties", "demo-ties": "ties", "demo-slerp": "slerp"}.get(label)


def _model(label: str) -> Model:
    kind = {API: "api", ENSEMBLE: "ensemble"}.get(label, "local")
    quantized = label in QUANTIZED
    bits = None if not quantized else 8 if label.endswith("int8") else 4
    formats = dict(zip(QUANTIZED, ("awq-gemm", "awq-gemv", "bnb-nf4", "bnb-int8"), strict=True))
    versions = dict(zip(QUANTIZED, ("GEMM", "GEMV", "NF4", "LLM.int8()"), strict=True))
    size = _BYTES[label] * 10**6 if label in _BYTES else None
    return Model(
        label=label, fingerprint=hashlib.sha256(label.encode()).hexdigest()[:32], kind=kind,  # type: ignore[arg-type]
        baseline=_baseline(label), architecture="llama" if kind == "local" else None,
        method=_method(label), format=formats.get(label), version=versions.get(label), bits=bits,
        group_size=64 if quantized and bits == 4 else None,
        dtype="bfloat16" if kind == "local" else None,
        num_parameters=134_515_008 if kind == "local" else None, weight_bytes=size,
        bits_per_weight=None if size is None else 8 * size / 134_515_008,
        licence="apache-2.0" if kind == "local" else None,
        members=(DARE, "demo-ties", "demo-slerp") if kind == "ensemble" else (),
    )  # fmt: skip


def _verdict(label: str) -> Verdict:
    kind: Any = "not worse"
    headline = f"Not worse than {_baseline(label)} within 1 point"
    reasons: tuple[str, ...] = ("The interval of the difference lies above the margin.",)
    against: tuple[str, ...] = ()
    dominated: tuple[str, ...] = ()
    if label == SOURCE:
        kind, headline, reasons = "source", "The source; nothing to compare it with", ()
    elif label in {DOMAIN, DARE, "demo-ties", "demo-slerp"}:
        kind, headline = "better", f"Better than {SOURCE}"
        reasons = ("+5.5 points [+4.1, +6.9] over 6,529 items, p < 0.001 after Holm.",)
    elif label.endswith("nf4"):
        kind, headline = "worse", f"Worse than {DARE}: −2.8 points [−3.9, −1.7]"
        against = ("6.1 % of answers changed, twice as many lost as gained.",
                   "Its decoding is slower than that of its source.")  # fmt: skip
        dominated = (QUANTIZED[0],)
    elif label.endswith("gemm"):
        kind, headline = "undecided", "Undecided: the interval reaches beyond the margin"
        against = ("Table 1: slower to decode than demo-dare-awq-gemv.",)
    elif label in {API, ENSEMBLE}:
        kind, headline, reasons = (
            "unmeasured",
            "Shown for reference; not paired with a baseline",
            (),
        )
    return Verdict(label, kind, headline, reasons, against, dominated, label == QUANTIZED[1],
                   9_800 if kind == "undecided" else None)  # fmt: skip


def _latency(median: float) -> Latency:
    return Latency(median, median * 1.08, median * 1.21, 60)


def _profile(label: str, *, batch: int = 1, prompt: int = 512) -> Profile:
    speed = _SPEED[label] * batch**0.8 * (512 / prompt) ** 0.05
    ratio = _SPEED[SOURCE] / _SPEED[label]
    prefill = {QUANTIZED[0]: 1.34, QUANTIZED[1]: 6.9, QUANTIZED[2]: 1.72, QUANTIZED[3]: 2.6}
    near = label in {DOMAIN, DARE, "demo-ties", "demo-slerp"}
    compared = label != SOURCE
    slow = prefill.get(label, 1.003)
    peak = int((_BYTES[label] * 1.04 + 412) * 10**6)
    covered = "the machine's noise, 1.8 %" if near else None
    return Profile(
        model=label, baseline=SOURCE if compared else None, device="cpu", dtype="float32",
        threads=2, batch=batch, prompt_tokens=prompt, new_tokens=64, status="ok",
        backend="forge int4 matrix-vector" if label in QUANTIZED[:2] else "torch",
        environment="A", load=_latency(0.41), first_token=_latency(0.62 * slow * prompt / 512),
        prefill=_latency(0.6 * slow * prompt / 512), decode=_latency(batch / speed),
        prefill_tokens_per_s=prompt * batch / (0.6 * slow), decode_tokens_per_s=speed,
        prefill_ratio=TimeRatio(slow, Interval(slow * 0.975, slow * 1.03), near, covered)
        if compared else None,
        decode_ratio=TimeRatio(ratio, Interval(ratio * 0.98, ratio * 1.02), near, covered)
        if compared else None,
        energy_j_per_token=None,
        memory=(
            ("weights_on_disk", _BYTES[label] * 10**6),
            ("weights_in_memory", _BYTES[label] * 10**6),
            ("peak_allocated", None), ("peak_reserved", None), ("driver", None),
            ("peak_resident", peak), ("kv_per_token", 46_080),
        ),
        peak_bytes=peak, peak_is="peak_resident",
        noise=(("other_cpu_cores", 0.04), ("steal_share", 0.0), ("load_before", 0.21)),
        notices=(),
    )  # fmt: skip


def _profiles() -> ProfileTable:
    sweep = [
        _profile(label, batch=batch, prompt=prompt)
        for label in (SOURCE, *QUANTIZED) for batch, prompt in ((1, 512), (4, 512), (1, 2048))
    ]  # fmt: skip
    failed = dataclasses.replace(
        sweep[-1], batch=64, status="out of memory: 31.2 GB needed, 24.0 GB there", load=None,
        first_token=None, prefill=None, decode=None, prefill_tokens_per_s=None,
        decode_tokens_per_s=None, prefill_ratio=None, decode_ratio=None,
    )  # fmt: skip
    return ProfileTable(
        "cpu, float32, 2 threads, batch 1, 512 prompt tokens, 64 new tokens",
        tuple((label, _profile(label)) for label in LOCAL), (*sweep, failed),
    )  # fmt: skip


def _table(chance: random.Random, *, primary: bool) -> ScoreTable:
    labels = (*LOCAL, API, ENSEMBLE)
    values = {
        label: [min(0.99, _LEVEL[label] + offset + chance.gauss(0, 0.002)) for offset in
                (0.16, -0.06, -0.02, -0.05, 0.01, -0.04)]
        for label in labels
    }  # fmt: skip
    if not primary:
        values = {label: [value - 0.03 for value in row] for label, row in values.items()}
    rows = []
    macros = {label: sum(values[label]) / len(TASKS) for label in labels}
    total = sum(count for _, count, _ in TASKS)
    micros = {
        label: sum(v * t[1] for v, t in zip(values[label], TASKS, strict=True)) / total
        for label in labels
    }
    for label in labels:
        scores = []
        for column, (_, count, _) in enumerate(TASKS):
            ranked = sorted(labels, key=lambda other, column=column: -values[other][column])
            standing: Any = {0: "best", 1: "second"}.get(ranked.index(label))
            scores.append(
                Score(values[label][column], abs(chance.gauss(0.008, 0.003)) if label != API
                      else None, 3 if label != API else 1, count, True, standing,
                      label not in {SOURCE, API, ENSEMBLE} and chance.random() < 0.3,
                      0.97, 0.004, 0.061)
            )  # fmt: skip
        if label == API:
            scores[2:4] = [None, None]  # type: ignore[list-item]
        averaged = None not in scores
        order = sorted((other for other in labels if other != API), key=lambda o: -macros[o])
        place: Any = {0: "best", 1: "second"}.get(order.index(label)) if averaged else None
        rows.append(
            ScoreRow(
                label, {API: "api", ENSEMBLE: "ensemble"}.get(label, "local"),  # type: ignore[arg-type]
                tuple(scores),
                Average(macros[label], 0.006, place, False) if averaged else None,
                Average(micros[label], 0.004, place, label == DARE) if averaged else None,
            )
        )  # fmt: skip
    return ScoreTable(
        "medical", "accuracy", "constrained" if primary else "unconstrained", False, "3", primary,
        tuple(Task(name, count, base, (0, 1, 2)) for name, count, base in TASKS), tuple(rows),
        sum(base for _, _, base in TASKS) / len(TASKS), "all items",
        ("gpt-4o-mini has no average: it did not answer MedMCQA and Anatomy.",),
    )  # fmt: skip


def _difference(task: str | None, count: int, value: float, half: float) -> Difference:
    low, high = value - half, value + half
    verdict: Any = (
        "superior" if low > 0 else "non-inferior" if low > -0.01
        else "inferior" if high < -0.01 or (high < 0 and low < -0.01) else "inconclusive"
    )  # fmt: skip
    lost = max(0, int(count * (0.03 - value / 2)))
    gained = max(0, lost + int(count * value))
    p_value = 0.0004 if low > 0 or high < 0 else 0.31
    return Difference(task, count, count, 3, 0.45 + value, 0.45, value, Interval(low, high),
                      p_value, min(1.0, p_value * 8), p_value < 0.005, gained, lost,
                      verdict)  # fmt: skip


def _pair(label: str, chance: random.Random) -> Pair:
    baseline = _baseline(label) or SOURCE
    value = _LEVEL[label] - _LEVEL[baseline]
    half = 0.014 if baseline == SOURCE else 0.0055 if not label.endswith("gemm") else 0.0105
    total = sum(count for _, count, _ in TASKS)
    overall = _difference(None, total, value, half)
    tasks = tuple(
        _difference(name, count, value + chance.gauss(0, 0.012), 1.1 / count**0.5)
        for name, count, _ in TASKS
    )
    items = tuple(_item(number, chance) for number in range(14))
    right = int(total * 3 * _LEVEL[baseline])
    lost, gained = overall.lost * 3, overall.gained * 3
    wrong = total * 3 - right
    return Pair(label, baseline, overall, tasks,
                Flips(right - lost, lost, gained, 402, wrong - gained - 402, items, 6))  # fmt: skip


def _item(number: int, chance: random.Random) -> FlippedItem:
    kind: Any = ("lost", "gained", "moved")[number % 3]
    gold = chance.randrange(4)
    before = gold if kind == "lost" else (gold + 1) % 4
    after = gold if kind == "gained" else (gold + 2) % 4
    shares = [0.1, 0.15, 0.2, 0.55]
    question = (
        "A 54-year-old woman comes to the physician because of a 3-month history of progressive "
        "shortness of breath on exertion and a dry cough. Which of the following is the most "
        "likely cause of her symptoms?"
    )
    return FlippedItem(
        kind, TASKS[number % len(TASKS)][0], f"item-{number}", number % 3, question,
        ("Idiopathic pulmonary fibrosis", "Chronic bronchitis", "Left ventricular failure",
         "Pulmonary embolism"),
        gold, before, after if number != 5 else None,
        tuple(0.55 if place == before else shares[place % 3] for place in range(4)),
        tuple(0.55 if place == after else shares[place % 3] for place in range(4)),
    )  # fmt: skip


def _point(label: str) -> ParetoPoint:
    front = label in {QUANTIZED[0], QUANTIZED[1], QUANTIZED[2], DARE, QUANTIZED[3]}
    return ParetoPoint(label, _LEVEL[label], int((_BYTES[label] * 1.04 + 412) * 10**6),
                       _SPEED[label], front, () if front else (DARE,))  # fmt: skip


def _divergence(label: str, chance: random.Random) -> Divergence:
    mean = {QUANTIZED[0]: 0.021, QUANTIZED[1]: 0.022, QUANTIZED[2]: 0.061, QUANTIZED[3]: 0.0019}[
        label
    ]
    layers = tuple(
        (layer, mean**0.5 * (0.2 + 0.8 * layer / _NUM_LAYERS) * chance.uniform(0.9, 1.1))
        for layer in range(_NUM_LAYERS)
    )
    return Divergence(label, DARE, "forge's held-out text", 8190, mean, mean * 0.3, mean * 2.6,
                      mean * 11, mean * 60, 1 - mean**0.5 * 0.4, 1 + mean * 0.9,
                      _BYTES[label] * 10**6, layers)  # fmt: skip


def _reliability(label: str, chance: random.Random) -> Reliability:
    bins = []
    for number in range(3, 10):
        confidence = (number + 0.5) / 10
        bins.append(
            ReliabilityBin(number / 10, (number + 1) / 10, int(2400 / (1 + abs(number - 4) ** 1.6)),
                           confidence, max(0.0, confidence * 0.82 + chance.gauss(0, 0.02)))
        )  # fmt: skip
    return Reliability(label, 0.06 + chance.random() / 20, tuple(bins))


def _errors(label: str, chance: random.Random, size: float) -> QuantizationErrors:
    values = tuple(
        tuple(
            None if (layer, place) == (0, 2) else
            size * (0.03 + 0.05 * (place in {3, 6}) + 0.0015 * layer) * chance.uniform(0.8, 1.25)
            for place in range(len(_PROJECTIONS))
        )
        for layer in range(_NUM_LAYERS)
    )  # fmt: skip
    return QuantizationErrors(
        label, "Relative error of each projection's output", tuple(range(_NUM_LAYERS)),
        _PROJECTIONS, values, "model.layers.29.mlp.down_proj",
    )  # fmt: skip


def _merge(label: str, chance: random.Random) -> Merge:
    slerp = label.endswith("slerp")
    layers = [
        MergeLayer(
            f"layer {layer}", layer,
            (8.2 + 0.1 * layer + chance.random(), 2.1 + 0.04 * layer + chance.random() / 3),
            (0.62 - 0.008 * layer + chance.gauss(0, 0.01),),
            None if slerp else 0.31 + 0.003 * layer + chance.gauss(0, 0.008),
            () if slerp else (0.5, 0.5), 52 + 0.4 * layer if slerp else None, None,
        )
        for layer in range(_NUM_LAYERS)
    ]  # fmt: skip
    edge = dataclasses.replace(layers[0], place="embedding", layer=None)
    return Merge(label, _method(label) or "", (SOURCE, DOMAIN), ((0, 1),), (edge, *layers))


def _lineage(label: str) -> Lineage:
    method = _method(label)
    recipe = None if method is None else (
        f"merge_method: {method}\nbase_model: models/{SOURCE}\nmodels:\n"
        f"  - model: models/{DOMAIN}\n    parameters:\n      density: 0.5\n      weight: 1.0\n"
        "dtype: bfloat16\nseed: 42\n"
    )  # fmt: skip
    files = (InputFile("model.safetensors", 269_060_552, "xxh3_128_tree:" + "894a3f0c" * 4),)
    base = _baseline(label)
    parents = () if base is None else (Parent(base, "base", base, None, "apache-2.0", files),)
    return Lineage(
        label, None if method is None else "quantize" if label in QUANTIZED else "merge", recipe,
        None if recipe is None else f"{label}.yaml", parents, "apache-2.0",
        "xxh3_128_tree:" + "5be1d20f" * 4, (("forge", "0.1.0"), ("numpy", "2.4.6")), (),
        () if recipe is None else (
            f"forge {'quantize' if label in QUANTIZED else 'merge'} recipes/{label}.yaml "
            f"--out models/{label}",
            f"forge eval models/{label} --suite medical",
        ),
    )  # fmt: skip
