"""A quantization gives the same bytes whatever the threads, the kills and the disks."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from forge import api
from forge.checkpoints.partial import PARTIAL_SUFFIX
from forge.checkpoints.sink import TensorSink
from forge.checkpoints.source import open_safetensors
from forge.core.errors import IncompatibleError, NonFiniteError, OutputError, RecipeError
from forge.formats.contract import Scheme
from forge.formats.raw_weight import RawWeight
from forge.quantize import workers
from forge.quantize.run import QuantizeResult, run_quantize
from forge.recipes.quantize_types import QuantizeRecipe, Variant
from tests.factory import Floats
from tests.quantize.models import Change, llama_config, neox_config, shapes_of, write_model
from tests.quantize.quantize_process import GROUP_SIZE, recipe_of

REPOSITORY = Path(__file__).parents[2]
BNB = ["bnb-nf4:double", "bnb-fp4", "bnb-int8"]
CODES = ["awq-gemm", "awq-gemv", "compressed-tensors", "gptq"]


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """Return a tiny Llama in several files."""
    return write_model(tmp_path / "llama", llama_config(layers=3), shards=3)


def tree(folder: Path) -> dict[str, str]:
    """Return a digest of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def num_finished(out: Path) -> int:
    """Return how many tensors unfinished outputs hold."""
    journals = [*out.parent.glob(f"{out.name}{PARTIAL_SUFFIX}/journal.jsonl")]
    journals += [*out.glob(f"*{PARTIAL_SUFFIX}/journal.jsonl")]
    return sum(max(0, path.read_bytes().count(b"\n") - 1) for path in journals)


def quantize(
    model: Path, out: Path, *, method: str = "bnb", formats: list[str] = BNB, threads: int = 2
) -> QuantizeResult:
    """Quantize a model."""
    return run_quantize(recipe_of(model, method, formats), out, threads=threads)


@pytest.mark.parametrize(("method", "formats"), [("bnb", BNB), ("rtn", CODES)])
def test_threads_change_no_byte(
    llama: Path, tmp_path: Path, method: str, formats: list[str]
) -> None:
    trees = []
    for threads in (1, 2, 7):
        out = tmp_path / f"threads-{threads}"
        quantize(llama, out, method=method, formats=formats, threads=threads)
        trees.append(tree(out))
    assert trees[0] == trees[1] == trees[2]
    assert {path.split("/")[0] for path in trees[0]} == {name.split(":")[0] for name in formats}


@pytest.mark.parametrize(("method", "formats"), [("bnb", BNB), ("rtn", CODES)])
def test_outputs_verify_and_can_be_inspected(
    llama: Path, tmp_path: Path, method: str, formats: list[str]
) -> None:
    result = quantize(llama, tmp_path / "out", method=method, formats=formats)
    for output in result.outputs:
        assert api.verify(output.out, quick=True).ok
        inspection = api.inspect(output.out)
        assert inspection.num_layers == 3
        assert inspection.manifest is not None
        assert inspection.manifest.content["kind"] == "quantize"
        manifest = json.loads((output.out / "forge_manifest.json").read_text())
        assert manifest == output.manifest
        assert manifest["variant"]["format"] == output.format
        assert manifest["num_quantized"] == sum(
            np.prod(shape) for name, shape in shapes_of(llama_config(layers=3)).items()
            if "proj" in name
        )  # fmt: skip
        names = [file["name"] for file in manifest["inputs"][0]["files"]]
        assert names == sorted(path.name for path in llama.glob("*.safetensors"))


def test_one_variant_is_the_output_itself(llama: Path, tmp_path: Path) -> None:
    result = quantize(llama, tmp_path / "out", formats=["bnb-int8"])
    assert [output.out for output in result.outputs] == [tmp_path / "out"]
    three = quantize(llama, tmp_path / "three")
    alone, together = tree(tmp_path / "out"), tree(three.outputs[2].out)
    assert alone == together


def _bytes(folder: Path) -> dict[str, bytes]:
    source = open_safetensors(folder, label=str(folder))
    return {name: bytes(source.read(name)) for name in source.names()}


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_what_is_kept_is_copied_bit_for_bit(tmp_path: Path, family: str) -> None:
    config = llama_config(tie=True) if family == "llama" else neox_config()
    model = write_model(tmp_path / "model", config)
    quantize(model, tmp_path / "out", formats=["bnb-nf4"])
    source, made = _bytes(model), _bytes(tmp_path / "out")
    linears = {name for name in made if name.endswith(".absmax")}
    assert len(linears) == (14 if family == "llama" else 8)
    changed = {name.removesuffix(".absmax") for name in linears}
    parts = {name for name in made if any(name.startswith(linear) for linear in changed)}
    left_out = {name for name in source if "inv_freq" in name}
    left_out |= {"lm_head.weight"} if family == "llama" else set()
    assert source.keys() - changed - left_out == made.keys() - parts
    for name in made.keys() - parts:
        assert made[name] == source[name], name


def test_the_small_files(llama: Path, tmp_path: Path) -> None:
    out = quantize(llama, tmp_path / "out", formats=["bnb-nf4"]).outputs[0].out
    config = json.loads((out / "config.json").read_text())
    source = json.loads((llama / "config.json").read_text())
    assert config.pop("quantization_config")["bnb_4bit_quant_type"] == "nf4"
    assert config == {key: source[key] for key in source if key != "_name_or_path"}
    for name in ("generation_config.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (llama / name).read_bytes()
    for path in out.rglob("*"):
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path
        assert b"/home/" not in content, path
    recipe = (out / "quantize_recipe.yaml").read_text()
    assert "method: bnb" in recipe
    assert "model: llama\n" in recipe


@pytest.mark.parametrize(("method", "formats"), [("bnb", BNB), ("rtn", CODES)])
def test_the_same_again_is_done_already(
    llama: Path, tmp_path: Path, method: str, formats: list[str]
) -> None:
    first = quantize(llama, tmp_path / "out", method=method, formats=formats)
    before = tree(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    again = quantize(llama, tmp_path / "out", method=method, formats=formats)
    assert again.resumed_tensors == again.num_tensors == first.num_tensors
    assert tree(tmp_path / "out") == before
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    # One output that is lost is made again, and the others stay.
    shutil.rmtree(first.outputs[1].out)
    third = quantize(llama, tmp_path / "out", method=method, formats=formats)
    assert [output.resumed_tensors for output in third.outputs].count(0) == 1
    assert tree(tmp_path / "out") == before


def test_another_model_does_not_count_as_done(llama: Path, tmp_path: Path) -> None:
    quantize(llama, tmp_path / "out", formats=["bnb-nf4"])
    shutil.rmtree(llama)
    write_model(llama, llama_config(layers=3), shards=3, change=lambda _, values: values * 2)
    with pytest.raises(OutputError, match="not empty"):
        quantize(llama, tmp_path / "out", formats=["bnb-nf4"])
    old = tree(tmp_path / "out")
    run_quantize(recipe_of(llama, "bnb", ["bnb-nf4"]), tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") != old


def test_a_strangers_folder_is_not_touched(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            run_quantize(
                recipe_of(llama, "bnb", ["bnb-nf4"]), tmp_path / "out", overwrite=overwrite
            )
    assert tree(tmp_path / "out").keys() == {"thesis.txt"}
    assert not (tmp_path / f"out{PARTIAL_SUFFIX}").exists()


def _spoil(name: str, value: float) -> Change:
    def change(tensor: str, values: Floats) -> Floats:
        if tensor == name:
            values.reshape(-1)[-1] = value
        return values

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight",
             "lm_head.weight"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "formats"),
    [("bnb", ["bnb-nf4"]), ("bnb", ["bnb-nf4:double"]), ("bnb", ["bnb-int8"]), ("rtn", ["gptq"])],
)  # fmt: skip
def test_what_is_not_finite_is_named(
    tmp_path: Path, method: str, formats: list[str], name: str, value: float
) -> None:
    change = _spoil(name, value)
    model = write_model(tmp_path / "model", llama_config(), dtype="F32", change=change)
    path = model / "config.json"
    path.write_text(path.read_text().replace("bfloat16", "float32"))
    with pytest.raises(NonFiniteError, match=re.escape(f"'{name}'")):
        quantize(model, tmp_path / "out", method=method, formats=formats)
    assert not (tmp_path / "out").exists()


def test_int8_names_what_float16_cannot_hold(tmp_path: Path) -> None:
    name = "model.layers.1.self_attn.q_proj.weight"
    model = write_model(tmp_path / "model", llama_config(), change=_spoil(name, 1e5))
    with pytest.raises(NonFiniteError, match=rf"'{re.escape(name)}'.*65504"):
        quantize(model, tmp_path / "out", formats=["bnb-int8"])
    quantize(model, tmp_path / "nf4", formats=["bnb-nf4"])


def test_a_recipe_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="names no model"):
        run_quantize(QuantizeRecipe("bnb", (Variant("bnb-nf4", 4, 64),)), tmp_path / "out")


def test_a_full_disk_keeps_what_is_finished(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tree(quantize(llama, tmp_path / "whole", formats=["bnb-nf4"]).out)
    write = os.pwrite
    count = 0

    def full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal count
        count += 1
        if count > 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="make room, and the same command resumes"):
            quantize(llama, tmp_path / "out", formats=["bnb-nf4"], threads=3)
    assert not (tmp_path / "out").exists()
    assert num_finished(tmp_path / "out") > 0
    result = quantize(llama, tmp_path / "out", formats=["bnb-nf4"])
    assert 0 < result.resumed_tensors < result.num_tensors
    assert tree(tmp_path / "out") == expected


def test_too_small_a_disk_is_found_before_any_work(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(OutputError, match="free"):
        quantize(llama, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_place_is_refused(llama: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir(mode=0o500)
    with pytest.raises(OutputError, match="not writable"):
        quantize(llama, place / "out")


def test_a_second_run_to_the_same_place_is_refused(llama: Path, tmp_path: Path) -> None:
    recipe = recipe_of(llama, "bnb", ["bnb-nf4"])
    with (
        TensorSink(tmp_path / "out", (), max_shard_bytes=1, fingerprint="other"),
        pytest.raises(OutputError, match="being written by another"),
    ):
        run_quantize(recipe, tmp_path / "out")


def test_a_failure_in_one_thread_ends_the_others(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = []

    def quantize_rtn(weight: RawWeight, scheme: Scheme) -> None:
        began.append(weight)
        raise IncompatibleError("no")

    monkeypatch.setattr(workers, "quantize_rtn", quantize_rtn)
    with pytest.raises(IncompatibleError, match="no"):
        quantize(llama, tmp_path / "out", method="rtn", formats=["gptq"], threads=2)
    assert len(began) <= 6
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("method", "formats"), [("bnb", BNB), ("rtn", ["awq-gemm", "compressed-tensors"])]
)
def test_kills_at_random_moments_change_no_byte(
    tmp_path: Path, method: str, formats: list[str]
) -> None:
    model = write_model(
        tmp_path / "model", llama_config(layers=8, hidden=128, inner=8 * GROUP_SIZE), shards=2
    )
    whole = quantize(model, tmp_path / "whole", method=method, formats=formats)
    expected = tree(tmp_path / "whole")
    seed = random.SystemRandom().getrandbits(32)
    chance = random.Random(seed)
    resumed = []
    for kill in range(5):
        out = tmp_path / f"killed-{kill}"
        command = [sys.executable, "-m", "tests.quantize.quantize_process", model, out, method]
        command += [str(chance.randrange(1, 4)), *formats]
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        target = chance.randrange(whole.num_tensors)
        while process.poll() is None and num_finished(out) <= target:
            time.sleep(0.0005)
        process.kill()
        process.communicate()
        result = quantize(model, out, method=method, formats=formats)
        resumed.append(result.resumed_tensors)
        assert tree(out) == expected, (seed, kill)
        shutil.rmtree(out)
    assert any(0 < count < whole.num_tensors for count in resumed), (seed, resumed)
