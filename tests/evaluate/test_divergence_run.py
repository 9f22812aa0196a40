"""Divergences of whole checkpoints: of a model from itself, of packed ones, stored and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from safetensors.torch import load_file, save_file

from forge.checkpoints.progress import Silence
from forge.cli.app import run
from forge.core.errors import CheckpointError, EvaluationError, IncompatibleError
from forge.evaluate import divergence_run
from forge.evaluate.divergence import divergence
from forge.evaluate.divergence_run import measure_divergence
from forge.evaluate.held_out import windows
from forge.results.store import open_results
from tests.factory import TEXT, write_tokenizer
from tests.runtime.folders import FORMATS, Pair, llama, quantized_pair

WORDS = " ".join(np.random.default_rng(1).choice(TEXT.split(), 200).tolist())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return quantized_pair(llama(), tmp_path_factory.mktemp("pair"), "awq-gemm")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that ``pair`` was quantized from."""
    folder = tmp_path_factory.mktemp("source")
    llama().save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text(WORDS)
    return tmp_path / "words.txt"


class Heard(Silence):
    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_model_does_not_diverge_from_itself(format_name: str, tmp_path: Path, text: Path) -> None:
    folder = str(quantized_pair(llama(), tmp_path, format_name).quantized)
    found = measure_divergence(folder, folder, text=text)
    assert (found.figures["mean"], found.figures["max"]) == (0.0, 0.0)
    assert (found.figures["same_top_share"], found.figures["perplexity_ratio"]) == (1.0, 1.0)
    assert [(layer.relative_error, layer.own_error) for layer in found.layers] == [(0.0, 0.0)] * 2
    assert found.variant == found.reference


def test_figures_are_those_of_the_models_themselves(pair: Pair, source: Path, text: Path) -> None:
    found = measure_divergence(str(pair.quantized), str(source), text=text)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokens_BT = windows(tokenizer(WORDS).input_ids, limit=4096)
    dense, plain = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
        for folder in (pair.dense, source)
    )
    expected = divergence(plain, dense, tokens_BT)
    assert found.dtype == "float32"
    assert found.text == "words.txt"
    assert found.figures["num_positions"] == expected.num_positions == tokens_BT.size - 1
    assert found.figures["mean"] == pytest.approx(expected.mean, rel=1e-3)
    assert found.figures["perplexity_ratio"] == pytest.approx(expected.perplexity_ratio, rel=1e-4)
    assert found.figures["layer_tokens"] == tokens_BT.size
    assert all(layer.own_error and layer.own_error > 1e-3 for layer in found.layers)


def test_a_bad_block_of_a_checkpoint_is_named(
    source: Path, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(source, tmp_path / "bad")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1.5
    save_file(weights, tmp_path / "bad" / "model.safetensors", {"format": "pt"})
    command = ["divergence", str(tmp_path / "bad"), "--against", str(source), "--text", str(text)]
    assert run(command) == 0
    assert "Furthest off on its own: block 1, " in capsys.readouterr().out
    assert run([*command, "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert layers[0] == {"layer": 0, "relative_error": 0.0, "own_error": 0.0}
    assert layers[1]["own_error"] > 0.01


def test_what_is_stored_is_not_computed_again(
    pair: Pair, source: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, variant = tmp_path / "results.db", tmp_path / "variant"
    shutil.copytree(pair.quantized, variant)
    first = measure_divergence(str(variant), str(source), text=text, results=results)
    computed: list[object] = []

    def load(checkpoint: object, **options: object) -> object:
        computed.append(checkpoint)
        raise CheckpointError("it is computed")

    monkeypatch.setattr(divergence_run, "load_checkpoint", load)
    heard = Heard()
    again = measure_divergence(
        str(variant), str(source), text=text, results=results, progress=heard
    )
    assert again == first
    assert heard.notices == [f"'{results}' has this comparison already; nothing is computed."]
    with open_results(results) as store:
        assert store.divergences() == (first,)
        assert {model.fingerprint for model in store.models()} == {first.variant, first.reference}
    # One byte of the variant, the tokens, and the type are each another comparison.
    for change in ("byte", "tokens", "dtype"):
        options: dict[str, object] = {}
        if change == "byte":
            with (variant / "config.json").open("a") as file:
                file.write(" ")
        elif change == "tokens":
            options = {"tokens": 64}
        else:
            options = {"dtype": "float64"}
        with pytest.raises(CheckpointError, match="it is computed"):
            measure_divergence(
                str(variant if change == "byte" else pair.quantized), str(source),
                text=text, results=results, **options,  # type: ignore[arg-type]
            )  # fmt: skip
    assert len(computed) == 3


def test_the_text_that_ships_is_used_without_another(source: Path) -> None:
    found = measure_divergence(str(source), str(source), tokens=100)
    assert found.text == "held-out"
    assert found.figures["num_positions"] > 0


def test_blocks_of_another_depth_are_not_compared(source: Path, tmp_path: Path, text: Path) -> None:
    deeper = tmp_path / "deeper"
    llama(num_hidden_layers=3).save_pretrained(deeper)
    write_tokenizer(deeper)
    heard = Heard()
    found = measure_divergence(str(deeper), str(source), text=text, progress=heard)
    assert found.layers == ()
    assert found.figures["mean"] > 0
    assert found.figures["layer_tokens"] == 0
    assert heard.notices == [
        f"Blocks are not compared: deeper has 3 of width 128, {source.name} 2 of width 128."
    ]


def test_other_tokens_are_refused(source: Path, tmp_path: Path, text: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(source, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = TEXT.split()[:2]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(IncompatibleError, match="make different tokens of the text, first at"):
        measure_divergence(str(other), str(source), text=text)


def test_another_vocabulary_is_refused(source: Path, tmp_path: Path, text: Path) -> None:
    padded = tmp_path / "padded"
    llama(vocab_size=72).save_pretrained(padded)
    write_tokenizer(padded)
    with pytest.raises(IncompatibleError, match=r"'padded' predicts over 72 tokens and .* over 64"):
        measure_divergence(str(padded), str(source), text=text)


def test_a_model_without_a_tokenizer_is_refused(source: Path, tmp_path: Path, text: Path) -> None:
    bare = tmp_path / "bare"
    llama().save_pretrained(bare)
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        measure_divergence(str(bare), str(source), text=text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is not UTF-8 text: byte 0 is 0xff"),
        (b"", "has fewer than 2 tokens"),
    ],
)
def test_texts_that_cannot_be_used(
    content: bytes | None, message: str, source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        measure_divergence(str(source), str(source), text=path)


def test_a_text_that_is_a_data_set_is_refused(
    source: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence_run, "_MAX_TEXT_BYTES", 100)
    with pytest.raises(EvaluationError, match="cut a part out"):
        measure_divergence(str(source), str(source), text=text)
