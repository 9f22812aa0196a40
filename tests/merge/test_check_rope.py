"""One rotation, however a configuration says it."""

from __future__ import annotations

import pytest

from forge.merge.check.rope import rope_of

LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"rope_theta": 10000.0}),
        ({"rope_theta": 10000}, {"rope_theta": 10000.0, "rope_scaling": None}),
        (
            {"rope_theta": 5e5},
            {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}},
        ),
        ({"rotary_pct": 0.25, "rotary_emb_base": 10000}, {"partial_rotary_factor": 0.25}),
        ({"partial_rotary_factor": 1.0}, {}),
        (
            {
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            {
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                }
            },
        ),
    ],
)
def test_the_same_rotation_in_other_words(one: dict[str, object], other: dict[str, object]) -> None:
    assert rope_of(one) == rope_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"rope_theta": 1e6}),
        ({}, {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_scaling": {"type": "linear", "factor": 4.0}},
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        ),
        ({}, {"partial_rotary_factor": 0.5}),
        ({"rope_theta": 1e6}, {"rope_theta": 1e6, "rope_local_base_freq": 1e4}),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            {"rope_parameters": {"full_attention": {"rope_theta": 1e5}}},
        ),
    ],
)
def test_another_rotation(one: dict[str, object], other: dict[str, object]) -> None:
    assert rope_of(one) != rope_of(other)


def test_the_rotation_as_text() -> None:
    config = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.5}}
    assert str(rope_of(config)) == "factor 2.5, rope_theta 500000, rope_type linear"
    assert str(rope_of({})) == "rope_theta 10000"
