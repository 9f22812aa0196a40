"""Rows by layer against vectors that are put together for real."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.architectures.table import ARCHITECTURES
from forge.core.errors import CheckpointError
from forge.merge.contract import TensorStatistics
from forge.merge.diagnose import layer_rows, pairs, place_of, read_record

LLAMA = ARCHITECTURES["llama"]


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    num_models=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_norms_and_cosines_are_those_of_the_joined_vectors(
    sizes: list[int], num_models: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    tensors = [generator.standard_normal((num_models, size)) for size in sizes]
    records = []
    for number, vectors in enumerate(tensors):
        norms = np.linalg.norm(vectors, axis=1)
        cosines = [vectors[a] @ vectors[b] / norms[a] / norms[b] for a, b in pairs(num_models)]
        statistics = {"norms": list(map(float, norms)), "cosines": list(map(float, cosines))}
        name = f"model.layers.5.x{number}.weight"
        records.append(read_record(name, vectors.shape[1], statistics))
    (row,) = layer_rows(records, lambda name: place_of(LLAMA, name))
    joined = np.concatenate(tensors, axis=1)
    norms = np.linalg.norm(joined, axis=1)
    assert row.norms == pytest.approx(norms)
    expected = [joined[a] @ joined[b] / norms[a] / norms[b] for a, b in pairs(num_models)]
    assert row.cosines == pytest.approx(expected)
    assert (row.place.layer, row.num_tensors, row.num_elements) == (5, len(sizes), sum(sizes))


def test_shares_are_weighted_by_size_and_absent_ones_do_not_count() -> None:
    records = [
        read_record("model.layers.0.a", 10, {"conflict_share": 0.5, "kept_shares": [1.0, 0.0]}),
        read_record("model.layers.0.b", 30, {"conflict_share": 0.1, "kept_shares": [0.0, 0.4],
                                             "angle_degrees": 8.0, "fallback": "linear", "t": 0.5}),
        read_record("model.layers.0.c", 99, {}),
    ]  # fmt: skip
    (row,) = layer_rows(records, lambda name: place_of(LLAMA, name))
    assert row.conflict_share == pytest.approx(0.2)
    assert row.kept_shares == pytest.approx((0.25, 0.3))
    assert row.angle_degrees == 8.0
    assert (row.num_fallbacks, row.fallback) == (1, "linear")
    assert row.notes == {"t": 0.5}
    assert row.num_elements == 139


def test_places_come_in_the_order_of_computation() -> None:
    names = [
        "lm_head.weight", "model.layers.10.x", "model.layers.2.x", "visual.x",
        "model.norm.weight", "model.embed_tokens.weight",
    ]  # fmt: skip
    rows = layer_rows((read_record(n, 1, {}) for n in names), lambda n: place_of(LLAMA, n))
    assert [row.place.label for row in rows] == [
        "embedding", "layer 2", "layer 10", "final norm", "head", "other",
    ]  # fmt: skip
    assert place_of(None, "model.layers.2.x").label == "other"


def test_what_a_method_reports_can_be_read_back() -> None:
    statistics = TensorStatistics(
        (False, False), False, norms=(1.5, 2.5), cosines=(-0.25,), conflict_share=0.125,
        kept_shares=(0.5, 1.0), angle_degrees=3.5, fallback="why", notes={"t": 0.75},
    )  # fmt: skip
    record = read_record("x", 4, statistics.as_json())
    assert record.norms == (1.5, 2.5)
    assert record.cosines == (-0.25,)
    assert record.conflict_share == 0.125
    assert record.kept_shares == (0.5, 1.0)
    assert record.angle_degrees == 3.5
    assert record.fallback == "why"
    assert record.notes == {"t": 0.75}


def test_numbers_that_are_not_finite_are_left_out() -> None:
    record = read_record(
        "x", 4, {"norms": [1.0, math.nan], "angle_degrees": math.inf, "t": math.nan}
    )
    assert (record.norms, record.angle_degrees, record.notes) == ((), None, {})


@pytest.mark.parametrize(
    "statistics",
    [{"norms": "x"}, {"norms": [True]}, {"conflict_share": "x"}, {"t": []}, {"kept_shares": {}}],
)
def test_wrong_types_are_refused(statistics: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="of tensor 'x' is not a"):
        read_record("x", 1, statistics)


def test_a_zero_vector_has_cosine_zero() -> None:
    record = read_record("x", 1, {"norms": [0.0, 1.0], "cosines": [0.0]})
    assert layer_rows([record], lambda name: place_of(LLAMA, name))[0].cosines == (0.0,)
