"""When a winner is named, and when the noise forbids it."""

from __future__ import annotations

import numpy as np
import pytest

from forge.profile.comparison import compare, cores_of, spread, tokens_per_s
from tests.profile.records import noisy_rounds, profile


def pair(
    factor: float,
    *,
    control: float | None = 1.0,
    spread: float = 0.01,
    rounds: int = 6,
    noise: dict[str, float] | None = None,
):  # type: ignore[no-untyped-def]
    """A baseline and a model that takes ``factor`` times as long."""
    samples = {"decode_s": noisy_rounds(1.0, spread=spread, rounds=rounds, seed=1)}
    if control is not None:
        samples["control_decode_s"] = noisy_rounds(control, spread=spread, rounds=rounds, seed=2)
    other = noisy_rounds(factor, spread=spread, rounds=rounds, seed=3)
    return profile("a", samples), profile("b", {"decode_s": other}, noise=noise)


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.5, "faster"), (2.0, "slower"), (0.9, "faster"), (1.0, "≈")]
)
def test_a_quiet_machine_names_the_winner(factor: float, verdict: str) -> None:
    found = compare(*pair(factor), "decode", num_cores=2)
    assert found is not None
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(1 / factor, rel=0.02)
    assert found.low <= found.ratio <= found.high
    assert bool(found.reason) == (verdict == "≈")


def test_twice_the_time_is_inside_the_interval_and_three_times_is_not() -> None:
    found = compare(*pair(2.0, spread=0.03), "decode", num_cores=2)
    assert found is not None
    assert found.low < 0.5 < found.high
    assert not found.low < 1 / 3 < found.high


def test_a_control_that_differs_from_itself_covers_the_difference() -> None:
    # The intervals are narrow: only the second process of the baseline shows the problem.
    found = compare(*pair(0.9, control=1.2), "decode", num_cores=2)
    assert found is not None
    assert found.low > 1
    assert found.verdict == "≈"
    assert "the baseline differs from itself by up to" in found.reason
    assert found.floor == pytest.approx(1.2, rel=0.03)
    big = compare(*pair(0.5, control=1.2), "decode", num_cores=2)
    assert big is not None
    assert big.verdict == "faster"


def test_others_that_took_half_the_machine_cover_a_difference_below_two() -> None:
    busy = {"other_cpu_cores": 1.0, "steal_share": 0.0, "queue_wait_share": 0.1}
    found = compare(*pair(0.6, noise=busy), "decode", num_cores=2)
    assert found is not None
    assert found.floor == pytest.approx(2.0)
    assert (found.verdict, found.reason) == ("≈", "others took up to 50% of the machine meanwhile")
    assert compare(*pair(0.4, noise=busy), "decode", num_cores=2).verdict == "faster"  # type: ignore[union-attr]
    # The same processes are a sixteenth of a larger machine.
    assert compare(*pair(0.6, noise=busy), "decode", num_cores=16).verdict == "faster"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("noise", "floor"),
    [
        ({"steal_share": 0.2}, 1 / 0.8),
        ({"queue_wait_share": 0.25}, 1 / 0.75),
        ({"queue_wait_share": 0.25, "steal_share": 0.25}, 2.0),
        ({"other_cpu_cores": 9.0}, 20.0),
    ],
)
def test_every_witness_raises_the_floor(noise: dict[str, float], floor: float) -> None:
    found = compare(*pair(0.9, noise=noise), "decode", num_cores=2)
    assert found is not None
    assert found.floor == pytest.approx(floor)


def test_without_a_control_halves_are_compared() -> None:
    drifting = tuple((1.0 + 0.1 * number,) * 3 for number in range(6))
    base = profile("a", {"decode_s": drifting})
    other = profile("b", {"decode_s": tuple((0.9 * x for x in row) for row in drifting)})  # type: ignore[misc]
    found = compare(base, other, "decode", num_cores=2)
    assert found is not None
    # The second half takes 1.4 / 1.1 of the first one's time.
    assert found.floor >= 1.4 / 1.1 - 1e-9
    assert found.verdict == "≈"


@pytest.mark.parametrize(("rounds", "control"), [(1, 1.0), (1, None), (3, None)])
def test_too_few_rounds_name_no_winner(rounds: int, control: float | None) -> None:
    found = compare(*pair(0.5, control=control, rounds=rounds), "decode", num_cores=2)
    assert found is not None
    assert found.verdict == "≈"
    assert "too few rounds" in found.reason


def test_what_was_not_measured_has_no_ratio() -> None:
    base, other = pair(0.5)
    assert compare(base, profile("b", {}, status="out of memory"), "decode", num_cores=2) is None
    assert compare(base, other, "ttft", num_cores=2) is None


def test_two_sessions_have_no_ratio() -> None:
    base, _ = pair(0.5)
    other = profile("b", {"decode_s": noisy_rounds(1.0)}, session="t")
    with pytest.raises(ValueError, match="two sessions"):
        compare(base, other, "decode", num_cores=2)


def test_spread_agrees_with_numpy() -> None:
    rounds = noisy_rounds(1.0, rounds=5, samples=7, spread=0.5)
    found = spread(rounds)
    assert found is not None
    values = np.concatenate(rounds)
    assert found.count == 35
    expected = np.quantile(values, (0.5, 0.9, 0.99))
    np.testing.assert_allclose((found.median, found.p90, found.p99), expected, rtol=1e-12)
    assert spread(()) is None


def test_tokens_of_all_sequences_count() -> None:
    found = profile(
        "a", {"prefill_s": ((2.0,),), "decode_s": ((0.5, 0.5),)}, batch=4, prompt_tokens=100
    )
    assert tokens_per_s(found, "prefill") == 200
    assert tokens_per_s(found, "decode") == 8
    assert tokens_per_s(found, "ttft") is None


def test_cores_come_from_the_environment() -> None:
    assert cores_of({"cpu": {"cores": 8}}) == 8
    assert cores_of({}) == 1
