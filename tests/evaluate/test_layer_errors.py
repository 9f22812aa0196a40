"""Errors of decoder blocks against models built for the purpose, and a planted bad block."""

from __future__ import annotations

import copy
import errno
import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from forge.core.errors import IncompatibleError, NonFiniteError, OutputError
from forge.evaluate import divergence
from forge.evaluate.divergence import predict
from forge.evaluate.layer_errors import (
    chosen_windows,
    compared_states,
    decoder_blocks,
    recorded_states,
)
from forge.results.records import LayerError
from tests.architectures.tiny_models import CASES, tiny_model

NUM_BLOCKS = 4


def llama(seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=NUM_BLOCKS,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def tokens(count: int = 6, length: int = 8) -> npt.NDArray[np.int64]:
    return np.random.default_rng(3).integers(3, 50, (count, length))


def errors_of(
    variant: PreTrainedModel,
    reference: PreTrainedModel,
    tokens_BT: npt.NDArray[np.int64],
    rows: list[int] | None = None,
) -> tuple[LayerError, ...]:
    rows = list(range(len(tokens_BT))) if rows is None else rows
    with recorded_states(decoder_blocks(reference), rows) as states:
        predict(reference, tokens_BT)
    with compared_states(decoder_blocks(variant), states) as errors:
        predict(variant, tokens_BT)
    return errors.figures()


@torch.no_grad()
def states_after(model: PreTrainedModel, tokens_BT: npt.NDArray[np.int64]) -> list[torch.Tensor]:
    """Return what transformers itself records: before and after each block but the last."""
    found = model(torch.from_numpy(tokens_BT), output_hidden_states=True).hidden_states
    return [states.double() for states in found[:-1]]


def relative(difference: torch.Tensor, whole: torch.Tensor) -> float:
    return float(difference.norm() / whole.norm())


def test_both_errors_equal_an_independent_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    # Batches of two windows, so that positions go on from batch to batch.
    monkeypatch.setattr(divergence, "_BATCH_TOKENS", 16)
    reference, variant, tokens_BT = llama(1), llama(2), tokens()
    found = errors_of(variant, reference, tokens_BT)
    wanted, drifted = states_after(reference, tokens_BT), states_after(variant, tokens_BT)
    for index in range(NUM_BLOCKS - 1):
        after = wanted[index + 1]
        assert found[index].relative_error == pytest.approx(
            relative(drifted[index + 1] - after, after), rel=1e-5
        )
        # The reference with one block of the variant: up to it, everything is the reference's.
        swapped = copy.deepcopy(reference)
        swapped.model.layers[index] = copy.deepcopy(variant.model.layers[index])
        own = states_after(swapped, tokens_BT)[index + 1] - after
        assert found[index].own_error == pytest.approx(
            relative(own, after - wanted[index]), rel=1e-4
        )


@pytest.mark.parametrize("bad", range(NUM_BLOCKS))
def test_a_planted_bad_block_is_found(bad: int) -> None:
    reference, tokens_BT = llama(1), tokens()
    variant = copy.deepcopy(reference)
    with torch.no_grad():
        variant.model.layers[bad].mlp.down_proj.weight.mul_(1.5)
    found = errors_of(variant, reference, tokens_BT)
    own = [layer.own_error for layer in found]
    drift = [layer.relative_error for layer in found]
    assert own[bad] is not None
    assert own[bad] > 0.05
    assert [error for index, error in enumerate(own) if index != bad] == [0.0] * (NUM_BLOCKS - 1)
    assert drift[:bad] == [0.0] * bad
    assert all(error > 0 for error in drift[bad:])


@pytest.mark.parametrize("case", CASES)
def test_blocks_of_every_family_are_found_and_do_not_differ_from_themselves(case: str) -> None:
    model = tiny_model(case)
    tokens_BT = tokens(2, 6)
    found = errors_of(model, model, tokens_BT)
    assert [(layer.relative_error, layer.own_error) for layer in found] == [(0.0, 0.0)] * 2
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in decoder_blocks(other)[1].parameters():
            parameter.mul_(1.25)
    first, second = errors_of(other, model, tokens_BT)
    assert (first.relative_error, first.own_error) == (0.0, 0.0)
    assert second.own_error is not None
    assert second.own_error > 0.01


def test_chosen_windows_are_those_alone() -> None:
    reference, variant, tokens_BT = llama(1), llama(2), tokens(7)
    some = errors_of(variant, reference, tokens_BT, [0, 3, 5])
    alone = errors_of(variant, reference, tokens_BT[[0, 3, 5]])
    for one, other in zip(some, alone, strict=True):
        assert one.relative_error == pytest.approx(other.relative_error, rel=1e-5)
        assert one.own_error == pytest.approx(other.own_error, rel=1e-5)


@given(st.integers(1, 300), st.integers(1, 1000), st.integers(0, 10_000))
def test_windows_are_as_many_as_fit(num_windows: int, window_bytes: int, limit: int) -> None:
    chosen = chosen_windows(num_windows, window_bytes=window_bytes, limit=limit)
    assert chosen == sorted(set(chosen))
    assert chosen[0] >= 0
    assert chosen[-1] < num_windows
    assert len(chosen) == 1 or len(chosen) * window_bytes <= limit
    assert len(chosen) == num_windows or (len(chosen) + 1) * window_bytes > limit


def test_nothing_stays_on_the_models_or_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = llama(1)
    errors_of(model, model, tokens())
    assert not list(tmp_path.iterdir())
    assert not any(block._forward_hooks for block in decoder_blocks(model))


def test_a_full_disk_is_said_before_it_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutputError, match=re.escape("Set TMPDIR to a larger disk")):
        errors_of(llama(1), llama(1), tokens())


def test_states_that_are_not_finite_are_an_error() -> None:
    reference, variant = llama(1), llama(1)
    with torch.no_grad():
        variant.model.layers[1].mlp.down_proj.weight.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="decoder block 1 are NaN or infinite"):
        errors_of(variant, reference, tokens())


def test_blocks_are_never_guessed() -> None:
    model = llama(1)
    model.model.layers = nn.ModuleList(list(model.model.layers)[:-1])
    with pytest.raises(
        IncompatibleError, match="not where forge's table says in transformers' LlamaForCausalLM"
    ):
        decoder_blocks(model)
