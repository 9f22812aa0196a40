"""Extraction: what it holds, what it says of the rest, what it refuses, and that it resumes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from forge import api
from forge.adapters.contract import ExtractResult, Request
from forge.adapters.extract import run_extract
from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.progress import Silence
from forge.core.errors import ForgeError, IncompatibleError, NonFiniteError, OutputError
from forge.recipes.reference import ModelReference
from tests.factory import from_bytes, random_values, read_values, tiny_checkpoint

FULL = Request(16, None, "full", "float32")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny_checkpoint(tmp_path / "base")
    tiny_checkpoint(tmp_path / "tuned", tune=1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _extract(request: Request = FULL, out: str = "out", **settings: object) -> ExtractResult:
    return run_extract("tuned", "base", Path(out), request, **settings)  # type: ignore[arg-type]


def _read(reference: str) -> dict[str, np.ndarray]:
    source = open_checkpoint(ModelReference.parse(reference)).source
    infos = {name: source.info(name) for name in source.names()}
    values = {
        name: from_bytes(source.read(name), info.dtype, info.shape) for name, info in infos.items()
    }
    source.close()
    return values


def test_base_and_adapter_are_the_fine_tune(place: Path) -> None:
    result = _extract()
    assert result.kept > 1 - 1e-6
    merged, expected = _read("base+out"), read_values(place / "tuned")
    for name, values in merged.items():
        # The sum is rounded to bfloat16 as the fine-tune was.
        assert np.allclose(values, expected[name], rtol=2**-8, atol=1e-6), name


def test_the_manifest_says_what_is_kept_by_tensor_and_overall(place: Path) -> None:
    result = _extract(Request(3, None, "skip", "float32"))
    manifest = json.loads((place / "out" / "forge_manifest.json").read_text())
    assert manifest["kind"] == "lora-extract"
    assert [entry["role"] for entry in manifest["inputs"]] == ["model", "base"]
    assert all(entry["files"] for entry in manifest["inputs"])
    base, tuned, merged = read_values(place / "base"), read_values(place / "tuned"), {}
    factors = read_values(place / "out")
    total = left = 0.0
    for row in result.tensors:
        delta = tuned[row.name].astype("f8") - base[row.name]
        merged[row.name] = np.zeros_like(delta) if row.fate == "lost" else delta
        if row.fate == "factors":
            stem = f"base_model.model.{row.name[: -len('.weight')]}"
            a, b = (factors[f"{stem}.lora_{x}.weight"].astype("f8") for x in "AB")
            merged[row.name] = b @ a
            recorded = manifest["tensors"][f"{stem}.lora_B.weight"]
            assert recorded["rank"] == a.shape[0] == 3
            assert recorded["kept"] == row.kept
        lost = float(np.sum((delta - merged[row.name]) ** 2))
        assert row.norm == pytest.approx(np.linalg.norm(delta), rel=1e-6)
        assert row.kept == pytest.approx(1 - lost / np.sum(delta**2), abs=1e-6)
        total, left = total + float(np.sum(delta**2)), left + lost
    assert manifest["energy"]["kept"] == result.kept == pytest.approx(1 - left / total, abs=1e-6)
    assert set(manifest["energy"]["lost"]) == {"model.embed_tokens.weight", "lm_head.weight"}
    (notice,) = manifest["notices"]
    assert "% of the energy" in notice
    assert "--embeddings" in notice


def test_verify_knows_adapters(place: Path) -> None:
    _extract()
    assert api.verify(Path("out")).ok
    weights = place / "out" / "adapter_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert not api.verify(Path("out")).ok


def test_threads_do_not_change_a_byte(place: Path) -> None:
    contents = []
    for threads in (1, 2, 5):
        _extract(Request(None, 0.8, "lora", "bfloat16"), f"t{threads}", threads=threads)
        files = sorted((place / f"t{threads}").iterdir())
        contents.append([(file.name, file.read_bytes()) for file in files])
    assert contents[0] == contents[1] == contents[2]


def test_a_share_picks_ranks_and_writes_them(place: Path) -> None:
    result = _extract(Request(None, 0.8, "skip", "float32"))
    held = [row for row in result.tensors if row.fate == "factors"]
    assert all(row.kept >= 0.8 - 1e-6 for row in held)
    ranks = {row.rank for row in held}
    assert len(ranks) > 1
    config = json.loads((place / "out" / "adapter_config.json").read_text())
    assert config["r"] == max(rank for rank in ranks if rank is not None)
    assert config["rank_pattern"] == config["alpha_pattern"]
    assert len(config["rank_pattern"]) == sum(row.rank != config["r"] for row in held)
    limited = _extract(Request(2, 0.8, "skip", "float32"), "limited")
    assert {row.rank for row in limited.tensors if row.fate == "factors"} == {2}


def test_small_matrices_get_their_full_rank_and_it_is_said(place: Path) -> None:
    result = _extract(Request(12, None, "skip", "float32"))
    ranks = {row.name.split(".")[-2]: row.rank for row in result.tensors if row.rank}
    assert ranks["k_proj"] == 8
    assert ranks["q_proj"] == 12
    assert any("fewer than 12 rows or columns" in str(n) for n in result.manifest["notices"])
    assert next(row.kept for row in result.tensors if "k_proj" in row.name) > 1 - 1e-6


def test_layers_that_do_not_differ_are_left_out(place: Path) -> None:
    base = read_values(place / "base")

    def only_one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = random_values(name, shape, seed=9) if "layers.1.mlp.up_proj" in name else 0
        return base[name] + noise

    tiny_checkpoint(place / "tuned", fill=only_one)
    result = _extract()
    assert [row.name for row in result.tensors] == ["model.layers.1.mlp.up_proj.weight"]
    config = json.loads((place / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.1.mlp.up_proj"]
    assert config["modules_to_save"] is None
    assert result.num_tensors == 2


@pytest.mark.parametrize("tie", [False, True])
def test_added_tokens_are_held_whole(place: Path, tie: bool) -> None:
    tiny_checkpoint(place / "base", tie=tie)
    tiny_checkpoint(place / "tuned", tune=1, vocab=40, extra_tokens=["hospital"], tie=tie)
    with pytest.raises(IncompatibleError, match="--embeddings full"):
        _extract(Request(16, None, "lora", "float32"))
    result = _extract()
    assert any("40 tokens" in str(notice) for notice in result.manifest["notices"])
    checkpoint = open_checkpoint(ModelReference.parse("base+out"))
    assert checkpoint.config["vocab_size"] == 40
    assert checkpoint.config["tie_word_embeddings"] is tie
    assert checkpoint.tokenizer_root == Path("out")
    assert b"hospital" in (place / "out" / "tokenizer.json").read_bytes()
    merged, expected = _read("base+out"), read_values(place / "tuned")
    assert set(merged) == set(expected)
    name = "model.embed_tokens.weight"
    assert np.array_equal(merged[name], expected[name])


def test_a_head_that_was_untied(place: Path) -> None:
    tiny_checkpoint(place / "base", tie=True)
    assert _extract().kept > 1 - 1e-6
    merged = open_checkpoint(ModelReference.parse("base+out"))
    assert merged.config["tie_word_embeddings"] is False
    assert np.array_equal(
        _read("base+out")["lm_head.weight"], read_values(place / "tuned")["lm_head.weight"]
    )


def test_an_adapter_comes_back_with_its_rank(place: Path) -> None:
    tiny_checkpoint(place / "base", dtype="F32")
    _extract(Request(2, None, "skip", "float32"), "first")
    again = run_extract(
        "base+first", "base", Path("again"), Request(None, 0.999999, "skip", "float32")
    )
    assert {row.rank for row in again.tensors if row.fate == "factors"} == {2}
    first, second = _read("base+first"), _read("base+again")
    assert all(np.allclose(first[name], second[name], atol=1e-6) for name in first)


class _Interrupting(Silence):
    """Stops the work after some tensors."""

    def __init__(self, stage: str, after: int) -> None:
        self._wanted, self._left, self._stage = stage, after, ""

    def stage(self, name: str) -> None:
        self._stage = name

    def advance(self, num_bytes: int) -> None:
        self._left -= self._stage == self._wanted
        if self._left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["comparing", "decomposing", "extracting"])
def test_the_same_command_goes_on_after_ctrl_c(place: Path, stage: str) -> None:
    request = Request(None, 0.7, "full", "float32")
    whole = _extract(request, "whole")
    with pytest.raises(KeyboardInterrupt):
        _extract(request, progress=_Interrupting(stage, 6), threads=2)
    assert not (place / "out").exists()
    result = _extract(request)
    assert (result.resumed_tensors > 0) == (stage == "extracting")
    assert result.tensors == whole.tensors
    for file in sorted((place / "whole").iterdir()):
        expected = file.read_bytes()
        if file.name == "forge_manifest.json" and result.resumed_tensors:
            expected = expected.replace(b'"notices": []', b'"notices": [\n    "Resumed')
            assert (place / "out" / file.name).read_bytes()[:200] == expected[:200]
            continue
        assert (place / "out" / file.name).read_bytes() == expected, file.name
    assert not list(place.glob("*.forge-partial"))


def test_an_adapter_that_is_there_is_not_made_again(place: Path) -> None:
    request = Request(3, None, "full", "float32")
    first = _extract(request)
    before = (place / "out" / "adapter_model.safetensors").stat()
    again = _extract(request)
    assert (again.tensors, again.kept, again.output_bytes, again.resumed_tensors) == (
        first.tensors, first.kept, first.output_bytes, first.num_tensors
    )  # fmt: skip
    assert (place / "out" / "adapter_model.safetensors").stat() == before
    with pytest.raises(OutputError, match="exists and is not empty"):
        _extract(Request(4, None, "full", "float32"))
    tiny_checkpoint(place / "tuned", tune=2)
    with pytest.raises(OutputError, match="exists and is not empty"):
        _extract(request)
    assert not _extract(request, overwrite=True).resumed_tensors


def test_a_run_that_was_stopped_while_it_measured_goes_on_with_that(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forge.evaluate import divergence_run

    calls: list[str] = []

    def measure(variant: str, reference: str, **_: object) -> SimpleNamespace:
        calls.append(variant)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return SimpleNamespace(text={"name": "text"}, figures={"mean": 0.5})

    monkeypatch.setattr(divergence_run, "measure_divergence", measure)
    with pytest.raises(KeyboardInterrupt):
        api.lora_extract("tuned", "base", Path("out"), rank=3)
    found = [api.lora_extract("tuned", "base", Path("out"), rank=3) for _ in range(2)]
    assert [one.resumed_tensors for one in found] == [found[0].num_tensors] * 2
    assert calls == ["base+out"] * 2
    for one in found:
        assert one.manifest["divergence"] == {"text": {"name": "text"}, "mean": 0.5}
    assert api.verify(Path("out")).ok


def _nothing_differs(place: Path) -> None:
    tiny_checkpoint(place / "tuned")


def _other_family(place: Path) -> None:
    tiny_checkpoint(place / "tuned", model_type="qwen3")


def _more_layers(place: Path) -> None:
    tiny_checkpoint(place / "tuned", layers=3)


def _fewer_layers(place: Path) -> None:
    tiny_checkpoint(place / "tuned", layers=1)


def _wider(place: Path) -> None:
    tiny_checkpoint(place / "tuned", hidden=24)


def _broken(place: Path) -> None:
    tiny_checkpoint(place / "tuned", fill=lambda name, _: np.nan if "up_proj" in name else 0)


def _as_it_is(place: Path) -> None:
    """Leave the models as they are."""


def _only_embeddings(place: Path) -> None:
    base = read_values(place / "base")
    tiny_checkpoint(
        place / "tuned", fill=lambda name, _: base[name] + (1 if "embed" in name else 0)
    )


@pytest.mark.parametrize(
    ("change", "request_", "error", "message"),
    [
        (_as_it_is, Request(0, None, "skip", "float32"), IncompatibleError, "rank of 0"),
        (_as_it_is, Request(17, None, "skip", "float32"), IncompatibleError, "the largest has 16"),
        (_as_it_is, Request(None, None, "skip", "float32"), IncompatibleError, "Give a rank"),
        (_as_it_is, Request(None, 1.5, "skip", "float32"), IncompatibleError, "at most 1, not 1.5"),
        (_as_it_is, Request(None, 0.0, "skip", "float32"), IncompatibleError, "above 0"),
        (_as_it_is, Request(4, None, "skip", "int8"), IncompatibleError, "not int8"),
        (_nothing_differs, FULL, IncompatibleError, "nothing to extract"),
        (_only_embeddings, Request(4, None, "skip", "float32"), IncompatibleError, "nothing of"),
        (_other_family, FULL, IncompatibleError, "qwen3 and llama"),
        (_more_layers, FULL, IncompatibleError, "'model.layers.2.* of 'tuned' is not in 'base'"),
        (_fewer_layers, FULL, IncompatibleError, "'model.layers.1.* of 'base' is not in 'tuned'"),
        (_wider, FULL, IncompatibleError, r"\[32, 24\] and BF16 \[32, 16\]"),
        (_broken, FULL, NonFiniteError, "NaN or an infinity"),
    ],
)
def test_refuses(
    place: Path, change: object, request_: Request, error: type[ForgeError], message: str
) -> None:
    assert callable(change)
    change(place)
    with pytest.raises(error, match=message):
        _extract(request_)
    assert not (place / "out").exists()
    assert not list(place.glob("*.forge-partial"))


def test_refuses_the_same_model_and_an_output_that_exists(place: Path) -> None:
    with pytest.raises(IncompatibleError, match="are the same model"):
        run_extract("base", "./base", Path("out"), FULL)
    _extract()
    before = (place / "out" / "adapter_model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="--overwrite"):
        _extract(Request(2, None, "skip", "float32"))
    assert (place / "out" / "adapter_model.safetensors").read_bytes() == before
    _extract(Request(2, None, "skip", "float32"), overwrite=True)
    assert (place / "out" / "adapter_model.safetensors").read_bytes() != before


def test_factors_of_tied_embeddings_are_refused(place: Path) -> None:
    for name, tune in (("base", None), ("tuned", 1)):
        tiny_checkpoint(place / name, tune=tune, tie=True)
    with pytest.raises(IncompatibleError, match="ties its head"):
        _extract(Request(4, None, "lora", "float32"))


def test_a_name_that_cannot_be_measured_is_refused_before_any_work(place: Path) -> None:
    with pytest.raises(OutputError, match="--no-divergence"):
        api.lora_extract("tuned", "base", Path("a+b"), rank=2)
    assert api.lora_extract("tuned", "base", Path("a+b"), rank=2, divergence=False).num_tensors
