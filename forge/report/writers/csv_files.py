"""A comparison's tables as CSV: one file a table, plain numbers, units in the names of columns.

Shares and differences of shares end in ``_share``, sizes in ``_bytes``, times in ``_s``. A cell
without a figure is empty. Text that a spreadsheet would run as a formula begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from forge.report.comparison import Comparison
from forge.report.comparison.profiles import Latency, Profile, TimeRatio

Value = str | int | float | bool | None
Row = Mapping[str, Value]

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


def render_csv(comparison: Comparison) -> dict[str, str]:
    """Return the tables.

    Args:
        comparison: What to show.

    Returns:
        Text by file name; tables without rows are left out.
    """
    tables = {
        "models.csv": _models(comparison),
        "profiles.csv": _profiles(comparison),
        "scores.csv": _scores(comparison),
        "averages.csv": _averages(comparison),
        "differences.csv": _differences(comparison),
        "flips.csv": _flips(comparison),
        "flipped_items.csv": _flipped_items(comparison),
        "divergences.csv": _divergences(comparison),
        "layer_errors.csv": _layer_errors(comparison),
        "quantization_errors.csv": _quantization_errors(comparison),
        "merge_layers.csv": _merge_layers(comparison),
        "reliability.csv": _reliability(comparison),
    }
    texts = {name: _text(list(rows)) for name, rows in tables.items()}
    return {name: text for name, text in texts.items() if text}


def _text(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    heads = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_cell(row.get(name)) for name in heads] for row in rows)
    return out.getvalue()


def _cell(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A lone surrogate, which a file name can bring, has no UTF-8.
        text = value.encode("utf-8", "backslashreplace").decode()
        return f"'{text}" if text.startswith(_FORMULA) else text
    return repr(value)


def _models(comparison: Comparison) -> Iterator[Row]:
    verdicts = {verdict.model: verdict for verdict in comparison.verdicts}
    for model in comparison.models:
        verdict = verdicts[model.label]
        yield {
            "model": model.label, "kind": model.kind, "baseline": model.baseline,
            "method": model.method, "format": model.format, "version": model.version,
            "bits": model.bits, "group_size": model.group_size, "dtype": model.dtype,
            "num_parameters": model.num_parameters, "weight_bytes": model.weight_bytes,
            "bits_per_weight": model.bits_per_weight, "licence": model.licence,
            "fingerprint": model.fingerprint, "verdict": verdict.kind,
            "recommended": verdict.recommended, "dominated_by": "; ".join(verdict.dominated_by),
            "items_to_decide": verdict.items_to_decide, "in_words": verdict.headline,
        }  # fmt: skip


def _profiles(comparison: Comparison) -> Iterator[Row]:
    for profile in comparison.profiles.sweep:
        yield {
            "model": profile.model, "baseline": profile.baseline, "device": profile.device,
            "dtype": profile.dtype, "threads": profile.threads, "batch": profile.batch,
            "prompt_tokens": profile.prompt_tokens, "new_tokens": profile.new_tokens,
            "status": profile.status, "backend": profile.backend,
            "environment": profile.environment,
            **_latencies(profile),
            "prefill_tokens_per_s": profile.prefill_tokens_per_s,
            "decode_tokens_per_s": profile.decode_tokens_per_s,
            **_ratio("prefill", profile.prefill_ratio), **_ratio("decode", profile.decode_ratio),
            "energy_j_per_token": profile.energy_j_per_token,
            **{f"{name}_bytes": value for name, value in profile.memory},
        }  # fmt: skip


def _latencies(profile: Profile) -> dict[str, Value]:
    found: dict[str, Value] = {}
    times: Iterable[tuple[str, Latency | None]] = (
        ("load", profile.load), ("first_token", profile.first_token),
        ("prefill", profile.prefill), ("decode", profile.decode),
    )  # fmt: skip
    for name, latency in times:
        found[f"{name}_median_s"] = None if latency is None else latency.median
        found[f"{name}_p90_s"] = None if latency is None else latency.p90
        found[f"{name}_p99_s"] = None if latency is None else latency.p99
    return found


def _ratio(name: str, found: TimeRatio | None) -> dict[str, Value]:
    return {
        f"{name}_time_ratio": None if found is None else found.ratio,
        f"{name}_time_ratio_low": None if found is None else found.interval.low,
        f"{name}_time_ratio_high": None if found is None else found.interval.high,
        f"{name}_covered_by_noise": None if found is None else found.covered,
    }


def _scores(comparison: Comparison) -> Iterator[Row]:
    for table in comparison.tables:
        for row in table.rows:
            for task, score in zip(table.tasks, row.scores, strict=True):
                if score is not None:
                    yield {
                        "suite": table.suite, "metric": table.metric, "mode": table.mode,
                        "chat": table.chat, "task": task.name, "model": row.model,
                        "value_share": score.value, "deviation_share": score.deviation,
                        "num_seeds": score.num_seeds, "num_items": score.num_items,
                        "same_items": score.same_items, "standing": score.standing,
                        "differs_from_baseline": score.dagger,
                        "majority_share": task.majority, "option_mass_share": score.option_mass,
                        "missing_share": score.missing,
                        "calibration_error_share": score.calibration_error,
                    }  # fmt: skip


def _averages(comparison: Comparison) -> Iterator[Row]:
    for table in comparison.tables:
        for row in table.rows:
            for name, average in (("macro", row.macro), ("micro", row.micro)):
                if average is not None:
                    yield {
                        "suite": table.suite, "metric": table.metric, "mode": table.mode,
                        "chat": table.chat, "average": name, "model": row.model,
                        "value_share": average.value, "deviation_share": average.deviation,
                        "standing": average.standing,
                        "tasks": "; ".join(task.name for task in table.tasks),
                    }  # fmt: skip


def _differences(comparison: Comparison) -> Iterator[Row]:
    for pair in comparison.pairs:
        for found in (pair.overall, *pair.tasks):
            yield {
                "variant": pair.variant, "baseline": pair.baseline, "task": found.task or "all",
                "num_items": found.num_items, "num_clusters": found.num_clusters,
                "num_seeds": found.num_seeds, "variant_share": found.variant,
                "baseline_share": found.baseline, "difference_share": found.difference,
                "low_share": found.interval.low, "high_share": found.interval.high,
                "gained_items": found.gained, "lost_items": found.lost,
                "mcnemar_p": found.p_value, "holm_p": found.p_holm,
                "significant": found.significant, "verdict": found.verdict,
            }  # fmt: skip


def _flips(comparison: Comparison) -> Iterator[Row]:
    for pair in comparison.pairs:
        flips = pair.flips
        yield {
            "variant": pair.variant, "baseline": pair.baseline,
            "both_right_answers": flips.both_right, "lost_answers": flips.lost,
            "gained_answers": flips.gained, "moved_answers": flips.moved,
            "both_wrong_answers": flips.both_wrong, "changed_share": flips.changed_share,
        }  # fmt: skip


def _flipped_items(comparison: Comparison) -> Iterator[Row]:
    for pair in comparison.pairs:
        for item in pair.flips.items:
            yield {
                "variant": pair.variant, "baseline": pair.baseline, "kind": item.kind,
                "task": item.task, "item": item.item_id, "seed": item.seed,
                "question": item.question, "options": " | ".join(item.options),
                "gold": item.gold, "baseline_answer": item.baseline_answer,
                "variant_answer": item.variant_answer,
                "baseline_gold_probability": item.baseline_probabilities[item.gold],
                "variant_gold_probability": item.variant_probabilities[item.gold],
            }  # fmt: skip


def _divergences(comparison: Comparison) -> Iterator[Row]:
    for each in comparison.divergences:
        yield {
            "variant": each.variant, "reference": each.reference, "text": each.text,
            "num_positions": each.num_positions, "kl_mean_nats": each.mean,
            "kl_median_nats": each.median, "kl_p90_nats": each.p90, "kl_p99_nats": each.p99,
            "kl_max_nats": each.max, "same_top_share": each.same_top_share,
            "perplexity_ratio": each.perplexity_ratio, "weight_bytes": each.weight_bytes,
        }  # fmt: skip


def _layer_errors(comparison: Comparison) -> Iterator[Row]:
    for each in comparison.divergences:
        for layer, error in each.layers:
            yield {
                "variant": each.variant, "reference": each.reference, "layer": layer,
                "relative_error": error,
            }  # fmt: skip


def _quantization_errors(comparison: Comparison) -> Iterator[Row]:
    for each in comparison.quantization_errors:
        for layer, values in zip(each.layers, each.values, strict=True):
            for projection, value in zip(each.projections, values, strict=True):
                yield {
                    "model": each.model, "layer": layer, "projection": projection,
                    "relative_error": value,
                }  # fmt: skip


def _merge_layers(comparison: Comparison) -> Iterator[Row]:
    for merge in comparison.merges:
        for row in merge.layers:
            yield {
                "model": merge.model, "place": row.place, "layer": row.layer,
                "conflict_share": row.conflict_share, "angle_degrees": row.angle_degrees,
                **{f"norm_{n}": value for n, value in enumerate(row.norms, start=1)},
                **{f"kept_{n}_share": value for n, value in enumerate(row.kept_shares, start=1)},
                **{
                    f"cosine_{a + 1}_{b + 1}": value
                    for (a, b), value in zip(merge.pairs, row.cosines, strict=False)
                },
            }  # fmt: skip


def _reliability(comparison: Comparison) -> Iterator[Row]:
    for each in comparison.reliability:
        for held in each.bins:
            yield {
                "model": each.model, "above_share": held.low, "at_most_share": held.high,
                "num_answers": held.num_answers, "confidence_share": held.confidence,
                "accuracy_share": held.accuracy,
            }  # fmt: skip
