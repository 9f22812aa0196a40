"""A model writes its own calibration set: the right tokens, and again the same, from its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.core.errors import CheckpointError, IncompatibleError, NonFiniteError
from forge.quantize.calibration import generation
from forge.quantize.calibration.calibrate import calibration_tokens
from forge.quantize.calibration.mapped_model import load_mapped
from forge.quantize.calibration.openings import Openings, Row, first_quantiles, rows_of
from forge.recipes.quantize_types import CalibrationRecipe
from forge.recipes.reference import ModelReference
from tests.factory import random_values, tiny_checkpoint, to_bytes, write_safetensors

pytest.importorskip("transformers")
Opener = Callable[..., Checkpoint]
BOS, EOS = 1, 2


@pytest.fixture
def opened(tmp_path: Path) -> Opener:
    def write(name: str = "model", **keywords: object) -> Checkpoint:
        root = tiny_checkpoint(tmp_path / name, **keywords)  # type: ignore[arg-type]
        return open_checkpoint(ModelReference(str(root)))

    return write


def loud(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Values that make a model decided, so that what it says depends on what it has read."""
    values = random_values(name, shape, seed=3)
    return values if "norm" in name else values * np.float32(8)


def rewritten(checkpoint: Checkpoint, recipe: CalibrationRecipe) -> list[list[int]]:
    """Write the same rows one by one, without a cache, from the definition."""
    import torch

    model = load_mapped(checkpoint, device="cpu")
    rows = []
    order = np.random.default_rng([recipe.seed, 2]).permutation(recipe.samples)
    for index in range(recipe.samples):
        generator = np.random.Generator(np.random.Philox(key=recipe.seed, counter=[0, 0, index, 0]))
        uniforms = generator.random(recipe.tokens)
        row = Row(Openings(((BOS,),), (), frozenset({EOS})), index)
        row.open()
        row.take(-1)
        while len(row.tokens) < recipe.tokens:
            position = len(row.tokens)
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([row.tokens])).logits[0, -1].double().numpy()
            if not row.may_end:
                logits[EOS] = -np.inf
            odds = np.exp(logits - logits.max())
            sums = np.cumsum(odds)
            point = uniforms[position]
            if position == 1:
                point = (order[index] + uniforms[0]) / recipe.samples
            row.take(int(np.searchsorted(sums, point * sums[-1], side="right")))
        rows.append(row.tokens)
    return rows


def test_what_is_written_follows_from_the_definition(opened: Opener) -> None:
    checkpoint = opened(dtype="F32", fill=loud)
    recipe = CalibrationRecipe(samples=4, tokens=50, seed=9)
    tokens_BT = calibration_tokens(checkpoint, recipe)
    assert (tokens_BT.shape, tokens_BT.dtype) == ((4, 50), np.int64)
    assert tokens_BT.tolist() == rewritten(checkpoint, recipe)


def test_the_same_again_with_any_number_of_threads(opened: Opener) -> None:
    import torch

    checkpoint = opened(fill=loud)
    recipe = CalibrationRecipe(samples=4, tokens=64)
    first = calibration_tokens(checkpoint, recipe).tolist()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert calibration_tokens(checkpoint, recipe).tolist() == first
    finally:
        torch.set_num_threads(threads)
    other = CalibrationRecipe(samples=4, tokens=64, seed=1)
    assert calibration_tokens(checkpoint, other).tolist() != first


def test_batches_of_any_size_write_the_same(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(dtype="F32", fill=loud)
    recipe = CalibrationRecipe(samples=5, tokens=60)
    whole = calibration_tokens(checkpoint, recipe).tolist()
    monkeypatch.setattr(generation, "_MOST_ROWS", 2)
    assert generation.batch_rows(checkpoint, recipe) == 2
    assert calibration_tokens(checkpoint, recipe).tolist() == whole


def test_no_two_rows_begin_alike(opened: Opener) -> None:
    # A head of zeros finds all 32 tokens equally likely, but a text does not end at once.
    checkpoint = opened(
        dtype="F32", fill=lambda name, shape: 0.0 if "lm_head" in name else loud(name, shape)
    )
    tokens_BT = calibration_tokens(checkpoint, CalibrationRecipe(samples=31, tokens=64))
    assert set(tokens_BT[:, 0].tolist()) == {BOS}
    assert sorted(tokens_BT[:, 1].tolist()) == sorted(set(range(32)) - {EOS})
    counts = np.bincount(tokens_BT[:, 2:30].flatten(), minlength=32)
    assert counts[EOS] == 0
    assert counts[counts > 0].min() > 10


def test_prompts_begin_the_rows(opened: Opener, tmp_path: Path) -> None:
    checkpoint = opened(fill=loud)
    file = tmp_path / "prompts.txt"
    file.write_text("aspirin treats\n\npain and fever in adults\n")
    recipe = CalibrationRecipe(samples=4, tokens=64, path=str(file))
    rows = calibration_tokens(checkpoint, recipe).tolist()
    vocabulary = json.loads((checkpoint.root / "tokenizer.json").read_text())["model"]["vocab"]
    prompts = [[BOS] + [vocabulary[word] for word in line.split()]
               for line in ("aspirin treats", "pain and fever in adults")]  # fmt: skip
    begun = [[row[: len(prompt)] for row in rows].count(prompt) for prompt in prompts]
    assert begun == [2, 2]
    listed = CalibrationRecipe(
        samples=4, tokens=64, prompts=("aspirin treats", "pain and fever in adults")
    )
    assert calibration_tokens(checkpoint, listed).tolist() == rows


def test_with_a_chat_template_the_model_asks_and_answers(opened: Opener) -> None:
    checkpoint = opened(fill=loud)
    recipe = CalibrationRecipe(samples=6, tokens=96, chat_template=True)
    rows = calibration_tokens(checkpoint, recipe).tolist()
    # "<s>user " is what stands before the user's words in this model's template.
    frame = rows[0][:2]
    assert frame[0] == BOS
    assert all(row[:2] == frame for row in rows)
    assert len({tuple(row) for row in rows}) == 6


def test_a_row_takes_what_it_must_and_then_chooses() -> None:
    row = Row(Openings(((1, 7),), (2, 8, 9), frozenset({2})), 0)
    row.open()
    assert [row.take(50), row.take(51), row.take(52)] == [1, 7, 52]
    assert not row.may_end
    for _ in range(3):
        row.take(53)
    assert row.may_end
    # The user's turn ends, and the rest of the frame leads to the answer.
    assert [row.take(2), row.take(60), row.take(61), row.take(62)] == [2, 8, 9, 62]
    assert not row.may_end
    assert row.take(2) == 2
    assert [row.take(70), row.take(71)] == [1, 7]


@pytest.mark.parametrize("period", [1, 3, 8])
def test_a_row_that_repeats_itself_begins_anew(period: int) -> None:
    row = Row(Openings(((1,),), (), frozenset({2})), 0)
    row.open()
    taken = [row.take(10 + index % period) for index in range(200)]
    assert 2 <= taken.count(1) <= 6
    calm = Row(Openings(((1,),), (), frozenset({2})), 0)
    calm.open()
    assert [calm.take(10 + index % 9) for index in range(200)].count(1) == 1


def test_rows_go_through_all_prompts() -> None:
    openings = Openings(tuple((number,) for number in range(10, 15)), (), frozenset())
    first = [row.must[0] for row in rows_of(openings, 5, 0, seed=4)]
    assert sorted(first) == [10, 11, 12, 13, 14]
    assert [row.must[0] for row in rows_of(openings, 3, 5, seed=4)] == first[:3]


def test_quantiles_are_spread() -> None:
    spread = first_quantiles(50, np.random.default_rng(0).random(50), seed=3)
    assert sorted((spread * 50).astype(int).tolist()) == list(range(50))


def test_weights_stay_in_their_files(opened: Opener) -> None:
    checkpoint = opened(shards=2, tie=True)
    model = load_mapped(checkpoint, device="cpu")
    views = {name: checkpoint.source.read(name) for name in checkpoint.source.names()}
    held = {name: value.data_ptr() for name, value in model.named_parameters()}
    assert set(views) <= set(held)
    for name, view in views.items():
        assert held[name] == np.frombuffer(view, np.uint8).ctypes.data, name


def test_a_lora_is_part_of_the_model(opened: Opener, tmp_path: Path) -> None:
    base = opened()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    target = "model.layers.0.self_attn.q_proj"
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    parts = {"lora_A": ((1, 16), 1.0), "lora_B": ((16, 1), 0.25)}
    write_safetensors(
        adapter / "adapter_model.safetensors",
        {
            f"base_model.model.{target}.{name}.weight": (
                "F32", shape, to_bytes(np.full(shape, value), "F32"),
            )
            for name, (shape, value) in parts.items()
        },
    )  # fmt: skip
    both = open_checkpoint(ModelReference(str(base.root), lora=ModelReference(str(adapter))))
    plain, tuned = (load_mapped(model, device="cpu") for model in (base, both))
    change = tuned.get_submodule(target).weight - plain.get_submodule(target).weight
    # alpha / r times B times A, in bfloat16.
    assert change.float().numpy() == pytest.approx(0.5, abs=0.01)


def test_what_no_file_holds_is_an_error_not_noise(opened: Opener) -> None:
    checkpoint = opened()
    config = json.loads((checkpoint.root / "config.json").read_text())
    config["num_hidden_layers"] = 3
    (checkpoint.root / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\..* and 8 more is missing"):
        load_mapped(open_checkpoint(checkpoint.reference), device="cpu")


def test_numbers_that_are_none_are_named(opened: Opener) -> None:
    checkpoint = opened(fill=lambda name, shape: np.nan if "down" in name else 0.1)
    with pytest.raises(NonFiniteError, match="computes NaN or infinity for token 1"):
        calibration_tokens(checkpoint, CalibrationRecipe(samples=2, tokens=16))


def test_a_model_without_a_tokenizer_cannot_write(opened: Opener) -> None:
    checkpoint = opened(with_tokenizer=False)
    with pytest.raises(CheckpointError, match="tokenizer"):
        calibration_tokens(checkpoint, CalibrationRecipe(samples=2, tokens=16))


def test_stored_tokens_must_be_of_this_model(opened: Opener, tmp_path: Path) -> None:
    from forge.quantize.calibration.stored import dump_tokens

    checkpoint = opened()
    path = tmp_path / "tokens.npy"
    path.write_bytes(dump_tokens(np.array([[1, 31], [3, 4]])))
    recipe = CalibrationRecipe("tokens", path=str(path))
    assert calibration_tokens(checkpoint, recipe).tolist() == [[1, 31], [3, 4]]
    path.write_bytes(dump_tokens(np.array([[1, 32]])))
    with pytest.raises(CheckpointError, match=r"token 32, but the vocabulary .* has 32"):
        calibration_tokens(checkpoint, recipe)
    path.write_bytes(dump_tokens(np.zeros((0, 5), np.int64)))
    with pytest.raises(IncompatibleError, match="no tokens"):
        calibration_tokens(checkpoint, recipe)


def test_text_of_the_user_becomes_tokens(opened: Opener, tmp_path: Path) -> None:
    checkpoint = opened()
    path = tmp_path / "notes.txt"
    path.write_text("aspirin treats pain and fever in adults " * 20)
    recipe = CalibrationRecipe("text", path=str(path), samples=3, tokens=40)
    tokens_BT = calibration_tokens(checkpoint, recipe)
    assert tokens_BT.shape == (3, 40)
    assert set(tokens_BT[:, 0].tolist()) == {BOS}
    assert len(set(tokens_BT.flatten().tolist())) == 8
