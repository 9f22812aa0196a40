"""Table 1: ratios within a session, percentiles, the setting that it is in, and the noise gate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forge.report.compare import compare
from forge.report.comparison import Comparison
from forge.report.comparison.profiles import Profile
from forge.results.records import ModelRecord
from forge.results.store import ResultsStore, open_results
from tests.report import results_factory as world
from tests.report.results_factory import add_model, add_profile, quantize_manifest


def profile_of(found: Comparison, label: str) -> Profile:
    profile = dict(found.profiles.rows)[label]
    assert profile is not None
    return profile


def pair(store: ResultsStore) -> tuple[ModelRecord, ModelRecord]:
    manifest = quantize_manifest("a", method="rtn", format_name="gptq")
    return add_model(store, "a"), add_model(store, "b", format="gptq", manifest=manifest)


def test_ratios_are_those_of_the_planted_times(comparison: Comparison) -> None:
    profile = profile_of(comparison, world.SAME)
    assert profile.baseline == world.SOURCE
    for found, planted in ((profile.prefill_ratio, 2.0), (profile.decode_ratio, 0.5)):
        assert found is not None
        assert found.ratio == pytest.approx(planted, rel=0.02)
        assert found.interval.low <= found.ratio <= found.interval.high
        assert not found.covered
    assert profile.decode_tokens_per_s == pytest.approx(20.0, rel=0.02)
    assert profile.prefill_tokens_per_s == pytest.approx(128.0, rel=0.02)


def test_equal_times_name_no_winner(comparison: Comparison) -> None:
    ratio = profile_of(comparison, world.MERGE).decode_ratio
    assert ratio is not None
    assert ratio.covered
    assert ratio.why == "the interval holds 1"


def test_a_busy_machine_names_no_winner(tmp_path: Path) -> None:
    noise = {"other_cpu_cores": 1.2, "steal_share": 0.0}
    with open_results(tmp_path / "results.db") as store:
        a, b = pair(store)
        add_profile(store, a, decode_s=0.10, prefill_s=1.0, peak=9)
        add_profile(store, b, decode_s=0.08, prefill_s=0.3, peak=9, noise=noise)
    found = compare(tmp_path / "results.db")
    profile = profile_of(found, "b")
    assert profile.decode_ratio is not None
    assert profile.prefill_ratio is not None
    # Others had 60 % of two cores: a factor of 2.5 might be theirs, one of 3.3 is not.
    assert profile.decode_ratio.covered
    assert not profile.prefill_ratio.covered
    against = next(verdict for verdict in found.verdicts if verdict.model == "b").against
    assert any("decoding time is uncertain: others took up to 60%" in line for line in against)


def test_another_session_has_no_ratio(tmp_path: Path) -> None:
    with open_results(tmp_path / "results.db") as store:
        a, b = pair(store)
        add_profile(store, a, decode_s=0.1, prefill_s=1.0, peak=9, session="monday")
        add_profile(store, b, decode_s=0.1, prefill_s=1.0, peak=9, session="tuesday")
    profile = profile_of(compare(tmp_path / "results.db"), "b")
    assert profile.decode_tokens_per_s is not None
    assert (profile.baseline, profile.decode_ratio) == (None, None)


def test_table_1_is_in_the_setting_that_most_models_have(comparison: Comparison) -> None:
    assert comparison.profiles.setting == (
        "cpu, 2 threads, batch 1, 128 prompt tokens, 32 new tokens"
    )
    assert {profile.batch for _, profile in comparison.profiles.rows if profile} == {1}
    assert [(p.model, p.batch) for p in comparison.profiles.sweep if p.batch == 4] == [
        (world.SOURCE, 4), (world.SAME, 4),
    ]  # fmt: skip


def test_a_profile_without_figures_says_why(comparison: Comparison) -> None:
    profile = profile_of(comparison, world.FEW)
    assert profile.status == "it needs a CUDA device"
    assert (profile.decode, profile.decode_ratio) == (None, None)


def test_percentiles_and_memory_are_those_of_the_record(tmp_path: Path) -> None:
    with open_results(tmp_path / "results.db") as store:
        model = add_model(store, "a", weight_bytes=5)
        record = add_profile(store, model, decode_s=0.1, prefill_s=1.0, peak=9, jitter=0.5)
        memory = {**record.memory, "peak_allocated": 7}
        store.add_profile(replace(record, key="0" * 32, memory=memory, session="later"))
    profile = profile_of(compare(tmp_path / "results.db"), "a")
    samples = np.concatenate([np.array(row) for row in record.samples["decode_s"]])
    assert profile.decode is not None
    assert (profile.decode.median, profile.decode.p90, profile.decode.p99) == pytest.approx(
        tuple(np.quantile(samples, (0.5, 0.9, 0.99)))
    )
    assert profile.decode.num_samples == 20
    assert (profile.peak_is, profile.peak_bytes) == ("peak_allocated", 7)


def test_environments_are_named_and_flattened(comparison: Comparison) -> None:
    assert [(each.name, each.facts) for each in comparison.environments] == [
        ("A", (("cpu.cores", "2"), ("cpu.name", "Planted CPU"), ("torch", "2.13.0"))),
    ]


def test_speeds_of_different_days_dominate_nobody(tmp_path: Path) -> None:
    with open_results(tmp_path / "results.db") as store:
        a, b = pair(store)
        right = world.Asked(frozenset(range(10)), 20)
        for model, session, decode_s, peak in ((a, "1", 0.1, 90), (b, "2", 0.05, 50)):
            world.add_asked(store, model, right, tasks=["t"], seeds=[0])
            add_profile(store, model, decode_s=decode_s, prefill_s=1.0, peak=peak, session=session)
    found = compare(tmp_path / "results.db")
    assert found.pareto is not None
    assert all(point.on_front for point in found.pareto.points)
