"""Verdicts against planted truths, and figures against computations that share no code."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from scipy.stats import binomtest

from forge.core.errors import ResultsError
from forge.report.compare import compare
from forge.report.comparison import Comparison, Verdict
from forge.report.comparison.differences import Difference, Interval, Pair
from forge.report.verdicts import items_to_decide, verdict_kind
from forge.results.store import ResultsStore, open_results
from tests.report import results_factory as world
from tests.report.results_factory import (
    Asked,
    add_asked,
    add_choices,
    add_model,
    add_profile,
    answers_of,
    choice,
    item,
)


def verdict_of(found: Comparison, label: str) -> Verdict:
    return next(verdict for verdict in found.verdicts if verdict.model == label)


def pair_of(found: Comparison, label: str) -> Pair:
    return next(pair for pair in found.pairs if pair.variant == label)


def store_at(tmp_path: Path) -> ResultsStore:
    return open_results(tmp_path / "results.db")


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        (world.SOURCE, "source"),
        (world.SAME, "not worse"),
        (world.WORSE, "worse"),
        (world.FEW, "undecided"),
        (world.MERGE, "better"),
        (world.API, "better"),
    ],
)
def test_verdicts_are_the_planted_ones(comparison: Comparison, label: str, kind: str) -> None:
    assert verdict_of(comparison, label).kind == kind


def test_a_loss_of_ten_points_is_measured_as_such(comparison: Comparison) -> None:
    overall = pair_of(comparison, world.WORSE).overall
    assert overall.difference == pytest.approx(-0.1)
    assert overall.interval.high < -0.07
    assert (overall.lost, overall.gained, overall.num_items) == (96, 16, 800)
    assert overall.p_value == pytest.approx(binomtest(16, 112).pvalue)


def test_p_values_are_corrected_within_their_family_by_holm(comparison: Comparison) -> None:
    overall = [pair.overall for pair in comparison.pairs]
    tasks = [task for pair in comparison.pairs for task in pair.tasks]
    for family, tests in zip(comparison.settings.families, (overall, tasks), strict=True):
        assert family.num_tests == len(tests)
        reached = 0.0
        for rank, found in enumerate(sorted(tests, key=lambda one: one.p_value)):
            reached = max(reached, min(1.0, (len(tests) - rank) * found.p_value))
            assert found.p_holm == pytest.approx(reached)
            assert found.significant == (reached <= 0.05)


def test_an_undecided_verdict_says_how_many_items_would_decide(comparison: Comparison) -> None:
    verdict = verdict_of(comparison, world.FEW)
    overall = pair_of(comparison, world.FEW).overall
    half = overall.difference - overall.interval.low
    needed = overall.num_items * (half / 0.02) ** 2
    assert verdict.items_to_decide is not None
    assert needed <= verdict.items_to_decide <= 1.1 * needed
    assert f"About {verdict.items_to_decide:,} items would decide" in " ".join(verdict.reasons)


def _difference(value: float, low: float, high: float) -> Difference:
    return Difference(
        task=None, num_items=100, num_clusters=100, num_seeds=1, variant=0.5, baseline=0.5,
        difference=value, interval=Interval(low, high), p_value=1.0, p_holm=1.0,
        significant=False, gained=0, lost=0, verdict="inconclusive",
    )  # fmt: skip


def test_a_certain_loss_of_uncertain_size_is_worse() -> None:
    assert verdict_kind(_difference(-0.01, -0.03, -0.001), margin=0.02) == "worse"


@pytest.mark.parametrize(
    ("value", "low", "high", "items"),
    [(0.0, -0.04, 0.04, 400), (-0.04, -0.08, 0.0, 400), (0.02, -0.06, 0.09, 400)],
)
def test_items_to_decide_scale_with_the_square(
    value: float, low: float, high: float, items: int
) -> None:
    assert items_to_decide(_difference(value, low, high), margin=0.02) == items


def test_a_difference_at_the_margin_is_decided_by_no_number_of_items() -> None:
    assert items_to_decide(_difference(-0.02, -0.06, 0.02), margin=0.02) is None


def test_the_dominated_variant_names_who_dominates_it(comparison: Comparison) -> None:
    assert verdict_of(comparison, world.SLOW).dominated_by == (world.SAME,)
    assert not verdict_of(comparison, world.SAME).dominated_by
    assert comparison.pareto is not None
    points = {point.model: point for point in comparison.pareto.points}
    assert [name for name, point in points.items() if point.on_front] == [world.SAME, world.MERGE]
    assert comparison.pareto.missing == (world.FEW,)
    assert points[world.SAME].decode_tokens_per_s == pytest.approx(20.0)


def test_the_most_accurate_is_released_where_nothing_smaller_is_as_good(
    comparison: Comparison,
) -> None:
    assert comparison.recommendation.model == world.MERGE
    assert "Not asked all questions: source_7b-int8." in comparison.recommendation.reasons


def test_the_smallest_that_is_not_worse_is_released(planted: Path) -> None:
    found = compare(
        planted, models=[world.SOURCE, world.SAME, world.SLOW, world.WORSE], margin=0.02
    )
    assert found.recommendation.model == world.SAME
    assert [verdict.model for verdict in found.verdicts if verdict.recommended] == [world.SAME]
    assert "6.00 MB" in found.recommendation.reasons[-1]


def test_nothing_is_recommended_from_a_margin_that_the_items_cannot_show(planted: Path) -> None:
    found = compare(planted, models=[world.SOURCE, world.SAME], margin=0.005)
    assert found.recommendation.model == world.SOURCE
    assert verdict_of(found, world.SAME).kind == "undecided"


def test_a_variant_that_is_ahead_by_luck_is_not_recommended(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    with open_results(path) as store:
        source = world.add_model(store, "source")
        lucky = world.add_model(
            store,
            "lucky",
            manifest=world.quantize_manifest("source", method="awq", format_name="x"),
        )
        world.add_asked(store, source, world.Asked(frozenset(world.RIGHT)))
        # 40 gained and 36 lost of 400: ahead, and anything may be true.
        right = frozenset(world.RIGHT) - set(range(36)) | set(range(300, 340))
        world.add_asked(store, lucky, world.Asked(right))
    found = compare(path, margin=0.01)
    assert found.recommendation.leader == "lucky"
    assert found.recommendation.model is None
    assert found.recommendation.headline.startswith("No recommendation")
    assert not any(verdict.recommended for verdict in found.verdicts)


def test_daggers_stand_only_where_the_statistics_carry_them(comparison: Comparison) -> None:
    table = comparison.tables[0]
    for row in table.rows:
        pair = next((pair for pair in comparison.pairs if pair.variant == row.model), None)
        carried = {task.task: task.significant for task in pair.tasks} if pair else {}
        for task, score in zip(table.tasks, row.scores, strict=True):
            assert score is None or score.dagger == carried.get(task.name, False)
    assert any(score.dagger for row in table.rows for score in row.scores if score)
    assert not any(
        score.dagger for row in comparison.tables[1].rows for score in row.scores if score
    )


def test_seeds_do_not_multiply_items(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        source, variant = add_model(store, "a"), add_model(store, "b")
        add_asked(store, source, Asked(frozenset(range(60)), 100), tasks=["t"])
        for seed, right in enumerate((range(60), range(59), range(58))):
            answers = answers_of(Asked(frozenset(right), 100))
            add_choices(store, variant, "t", answers, seed=seed)
    overall = compare(tmp_path / "results.db").pairs[0].overall
    assert (overall.num_items, overall.num_seeds) == (100, 3)
    assert overall.difference == pytest.approx(-(0 + 1 + 2) / 300)
    # Item 59 is right with one seed of three and item 58 with two: a majority lost, one not.
    assert (overall.lost, overall.gained) == (1, 0)


def test_only_shared_seeds_are_compared(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        source, variant = add_model(store, "a"), add_model(store, "b")
        for seed in (0, 1):
            right = frozenset(range(50 if seed == 0 else 0))
            add_choices(store, source, "t", answers_of(Asked(right, 100)), seed=seed)
        add_choices(store, variant, "t", answers_of(Asked(frozenset(range(50)), 100)), seed=0)
    found = compare(tmp_path / "results.db")
    assert found.pairs[0].overall.difference == 0
    assert found.pairs[0].overall.num_seeds == 1


def test_items_of_a_passage_are_one_cluster(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        source, variant = add_model(store, "a"), add_model(store, "b")
        items = [item("t", number, cluster=f"p{number // 10}") for number in range(200)]
        for model, right in ((source, range(120)), (variant, range(100))):
            answers = answers_of(Asked(frozenset(right), 200))
            add_choices(store, model, "t", answers, items=items)
    clustered = compare(tmp_path / "results.db").pairs[0].overall
    assert (clustered.num_items, clustered.num_clusters) == (200, 20)
    # Two passages fell as wholes; twenty independent items would be beyond doubt.
    assert clustered.p_value == pytest.approx(binomtest(0, 2).pvalue)
    assert binomtest(0, 20).pvalue < 1e-5


def test_a_question_under_two_tasks_is_one_cluster(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        source, variant = add_model(store, "a"), add_model(store, "b")
        for model in (source, variant):
            for task in ("four", "five"):
                items = [item("shared", number) for number in range(50)]
                items = [
                    type(each).of(
                        task, each.item_id, question=each.question, options=each.options,
                        gold=each.gold, label=each.label,
                    )
                    for each in items
                ]  # fmt: skip
                answers = answers_of(Asked(frozenset(range(25)), 50))
                add_choices(store, model, task, answers, items=items)
    overall = compare(tmp_path / "results.db").pairs[0].overall
    assert (overall.num_items, overall.num_clusters) == (100, 50)


def test_flips_count_every_kind_and_show_the_largest_shifts(tmp_path: Path) -> None:
    # Question 0 to 4, gold 0, 1, 2, 3, 0.
    before = [choice(0), choice(1), choice(0), choice(0), choice(1)]
    after = [choice(0), choice(2, confidence=0.9), choice(2), choice(1), choice(1)]
    with store_at(tmp_path) as store:
        source, variant = add_model(store, "a"), add_model(store, "b")
        add_choices(store, source, "t", before)
        add_choices(store, variant, "t", after)
    flips = compare(tmp_path / "results.db").pairs[0].flips
    counts = (flips.both_right, flips.lost, flips.gained, flips.moved, flips.both_wrong)
    assert counts == (1, 1, 1, 1, 1)
    assert flips.changed_share == pytest.approx(3 / 5)
    assert [(shown.kind, shown.item_id) for shown in flips.items] == [
        ("lost", "q1"), ("gained", "q2"), ("moved", "q3"),
    ]  # fmt: skip
    lost = flips.items[0]
    assert (lost.gold, lost.baseline_answer, lost.variant_answer) == (1, 1, 2)
    assert lost.variant_probabilities == pytest.approx((1 / 30, 1 / 30, 0.9, 1 / 30))


def test_flips_show_a_limited_number_and_state_the_total(comparison: Comparison) -> None:
    flips = pair_of(comparison, world.WORSE).flips
    assert flips.lost == 2 * 3 * 48
    assert sum(shown.kind == "lost" for shown in flips.items) == flips.shown_of_each


def test_modes_are_never_mixed(tmp_path: Path) -> None:
    missing = choice(None)
    with store_at(tmp_path) as store:
        source, variant = add_model(store, "a"), add_model(store, "b")
        add_choices(store, source, "t", [choice(number % 4) for number in range(40)])
        # Half of its answers begin with another word, though the right letter is the likeliest.
        answers = [
            type(missing)(choice(number % 4).log_probs, None, "The", -0.1)
            if number % 2
            else choice(number % 4)
            for number in range(40)
        ]
        add_choices(store, variant, "t", answers)
    constrained = compare(tmp_path / "results.db")
    unconstrained = compare(tmp_path / "results.db", mode="unconstrained")
    assert constrained.pairs[0].overall.difference == 0
    assert unconstrained.pairs[0].overall.difference == pytest.approx(-0.5)
    assert [table.mode for table in constrained.tables] == ["constrained", "unconstrained"]
    assert [table.mode for table in unconstrained.tables] == ["unconstrained", "constrained"]
    score = unconstrained.tables[0].rows[1].scores[0]
    assert score is not None
    assert score.missing == pytest.approx(0.5)
    assert "Answers without choosing an option on t." in verdict_of(unconstrained, "b").against


def test_an_accuracy_below_the_majority_baseline_is_said(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        add_asked(store, add_model(store, "a"), Asked(frozenset(range(20)), 100), tasks=["t"])
        add_asked(store, add_model(store, "b"), Asked(frozenset(range(60)), 100), tasks=["t"])
    found = compare(tmp_path / "results.db")
    assert any("commonest answer on t" in line for line in verdict_of(found, "a").against)
    assert not any("commonest answer" in line for line in verdict_of(found, "b").against)


def test_profiles_alone_make_a_report(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        for label, decode_s in (("a", 0.1), ("b", 0.05)):
            model = add_model(store, label, weight_bytes=1000)
            add_profile(store, model, decode_s=decode_s, prefill_s=1.0, peak=2000)
    found = compare(tmp_path / "results.db")
    assert found.tables == ()
    assert found.recommendation.model is None
    assert verdict_of(found, "b").kind == "unmeasured"


def test_the_same_file_gives_the_same_comparison(planted: Path) -> None:
    assert compare(planted, margin=0.02) == compare(planted, margin=0.02)


def test_no_figure_is_infinite(comparison: Comparison) -> None:
    for pair in comparison.pairs:
        for found in (pair.overall, *pair.tasks):
            assert all(
                math.isfinite(value)
                for value in (found.difference, found.interval.low, found.interval.high)
            )


def test_there_is_no_results_file(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="There is no results file"):
        compare(tmp_path / "none.db")


def test_an_empty_results_file(tmp_path: Path) -> None:
    store_at(tmp_path).close()
    with pytest.raises(ResultsError, match="holds no model"):
        compare(tmp_path / "results.db")


def test_a_model_without_measurements(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        add_model(store, "a")
    with pytest.raises(ResultsError, match="has nothing about a: no evaluation, profile or"):
        compare(tmp_path / "results.db")


def test_models_that_share_no_task(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        for label in ("a", "b"):
            add_choices(store, add_model(store, label), f"task {label}", [choice(0)])
    with pytest.raises(ResultsError, match="share no question of suite 'planted', so"):
        compare(tmp_path / "results.db")


@pytest.mark.parametrize("margin", [0.0, -0.01, 0.51, math.nan])
def test_a_margin_out_of_range(planted: Path, margin: float) -> None:
    with pytest.raises(ResultsError, match="points is out of range"):
        compare(planted, margin=margin)


def test_a_source_that_was_not_asked_leaves_verdicts_open_and_tables_whole(tmp_path: Path) -> None:
    with store_at(tmp_path) as store:
        source = add_model(store, "a", weight_bytes=10)
        add_profile(store, source, decode_s=0.1, prefill_s=1.0, peak=9)
        for label in ("b", "c"):
            add_choices(store, add_model(store, label), "t", [choice(0)] * 8)
    found = compare(tmp_path / "results.db")
    assert found.pairs == ()
    assert [row.model for row in found.tables[0].rows] == ["b", "c"]
    assert verdict_of(found, "b").headline == "Not measured against a: they share no question"


def test_unknown_names_come_with_a_guess(planted: Path) -> None:
    with pytest.raises(ResultsError, match="Did you mean 'source_7b-awq'"):
        compare(planted, baseline="source_7b-aqw")
    with pytest.raises(ResultsError, match="Did you mean 'trio'"):
        compare(planted, models=["tiro"])
    with pytest.raises(ResultsError, match="Did you mean 'planted'"):
        compare(planted, suite="plantet")
