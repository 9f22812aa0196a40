"""Twice the layers take twice the time, through the whole of ``forge profile``."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.profile.run import profile_models
from forge.profile.setting import Effort
from tests.factory import tiny_checkpoint

LAYERS = 4


@pytest.mark.slow
def test_decode_of_twice_the_layers_takes_twice_as_long(tmp_path: Path) -> None:
    """Layers of 38 MB each, which no cache holds, between a small embedding and a small head."""
    for name, layers in (("one", LAYERS), ("two", 2 * LAYERS)):
        tiny_checkpoint(tmp_path / name, layers=layers, hidden=1024, vocab=64)
    found = profile_models(
        [str(tmp_path / "one"), str(tmp_path / "two")], results=tmp_path / "r.db",
        prompt_tokens=(32,), new_tokens=24, threads=1, effort=Effort(rounds=6, samples=1),
    )  # fmt: skip
    (session,) = found.sessions
    for quantity in ("decode", "prefill"):
        ratio = found.ratio(session, session.profiles[1], quantity)  # type: ignore[arg-type]
        assert ratio is not None
        # The model with twice the layers has half the baseline's speed. Its interval may be narrow
        # enough to see the few percent that are no layers; the machine's own noise is its measure.
        low, high = ratio.low / ratio.floor, ratio.high * ratio.floor
        assert low <= 0.5 <= high
        assert ratio.high < 0.75, "the interval says nothing"
        assert ratio.verdict == "slower", ratio.reason
    weights = [profile.memory["weights_in_memory"] or 0 for profile in session.profiles]
    peaks = [profile.memory["peak_resident_running"] or 0 for profile in session.profiles]
    assert peaks[1] - peaks[0] == pytest.approx(weights[1] - weights[0], rel=0.1)
