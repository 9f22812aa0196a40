"""What comes before the first weight of a model of 70 or 671 billion parameters, measured.

The models have headers, configurations and tokenizers of their true sizes, and holes for weights
(``benchmarks/large_models.py``). Whole processes are measured. Limits of time are limits of CPU
time: all of this runs on one core, so on an idle machine that is the time a user waits, and on a
busy one it stays the same.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.large_models import BLOCK_OF_70B, LARGE_MODELS, write_block_family
from benchmarks.models import Family
from benchmarks.process import Measurement, child_environment, run_measured
from benchmarks.programs import CONTESTS
from tests.end_to_end.command import REPOSITORY

GB = 10**9


def forge(place: Path, *arguments: str) -> tuple[Measurement, str]:
    """Run forge to its end; return what it cost and what it said."""
    log = place / "log.txt"
    cost = run_measured(
        (sys.executable, "-m", "forge", *arguments),
        folder=place, log=log, environment=child_environment(PYTHONPATH=str(REPOSITORY)),
    )  # fmt: skip
    return cost, log.read_text()


def assert_cheap(cost: Measurement, *, seconds: float, num_bytes: int) -> None:
    assert cost.cpu_s < seconds
    assert cost.peak_resident_bytes is not None
    # Less than 10 MB would mean that nobody looked.
    assert 10**7 < cost.peak_resident_bytes < num_bytes


@pytest.fixture(scope="module")
def llama_3_70b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("llama-3-70b", tmp_path_factory.mktemp("llama-3-70b"))


@pytest.fixture(scope="module")
def deepseek_v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write("deepseek-v3", tmp_path_factory.mktemp("deepseek-v3"))


@pytest.fixture(scope="module")
def block_of_70b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Family]:
    place = tmp_path_factory.mktemp("block")
    yield write_block_family(place / "models")
    shutil.rmtree(place)


def write(name: str, place: Path) -> Path:
    family = LARGE_MODELS[name].write_family(place / "models")
    CONTESTS["dare_ties"].write_recipe(place / "dare.yaml", family)
    return place


def test_a_check_of_three_models_of_70b(llama_3_70b: Path) -> None:
    cost, text = forge(llama_3_70b, "check", "dare.yaml")
    assert len(re.findall(r"80 +723 +70\.6 B +BF16 +128,256", text)) == 3
    # 70,553,706,496 parameters of two bytes, three models.
    assert "reads 423.32 GB, writes 141.11 GB" in text
    assert "ready to merge" in text
    assert_cheap(cost, seconds=5, num_bytes=GB)


def test_a_dry_run_of_three_models_of_70b(llama_3_70b: Path) -> None:
    cost, text = forge(llama_3_70b, "merge", "dare.yaml", "--dry-run", "--json")
    plan = json.loads(text)
    assert plan["num_parameters"] == 70_553_706_496
    assert plan["output_bytes"] == 2 * 70_553_706_496
    assert plan["input_bytes"] == 3 * plan["output_bytes"]
    assert plan["num_tensors"] == len(plan["jobs"]) == 723
    assert plan["memory_bytes"] < GB
    assert_cheap(cost, seconds=5, num_bytes=GB)


def test_a_dry_run_says_what_70b_takes(llama_3_70b: Path) -> None:
    _, text = forge(llama_3_70b, "merge", "dare.yaml", "--dry-run", "--out", "new/out")
    assert re.search(r"needs about \d+\.\d\d MB of memory, and 9 min 24 s where a disk", text)
    assert re.search(r"layers 0-79 +80 × 9 ", text)
    assert text.endswith("Nothing was written (dry run).\n")
    assert not (llama_3_70b / "new").exists()


def test_a_dry_run_of_three_mixtures_of_45_000_tensors(deepseek_v3: Path) -> None:
    """A dry run is a check whose plan is printed, so this covers both."""
    cost, text = forge(deepseek_v3, "merge", "dare.yaml", "--dry-run")
    assert "61 layers, 45,395 tensors, 671 B parameters" in text
    assert "reads 4.03 TB, writes 1.34 TB" in text
    assert_cheap(cost, seconds=10, num_bytes=GB)


def test_a_dry_run_knows_methods_that_hold_whole_matrices(llama_3_70b: Path) -> None:
    """TSV-M works on inner products of 8,192 columns: 12 squares were measured, at 2,048, beside
    the result."""
    recipe = json.loads((llama_3_70b / "dare.yaml").read_text())
    for entry in recipe["models"]:
        entry.pop("parameters", None)
    (llama_3_70b / "tsv_m.yaml").write_text(json.dumps(recipe | {"merge_method": "tsv_m"}))
    _, text = forge(llama_3_70b, "merge", "tsv_m.yaml", "--dry-run", "--json")
    measured = len(os.sched_getaffinity(0)) * 8 * (12 * 8192**2 + 8192 * 28672)
    assert measured < json.loads(text)["memory_bytes"] < 1.5 * measured


def test_a_dry_run_knows_that_calibration_holds_a_block(llama_3_70b: Path) -> None:
    """A block of 856 million weights in float32, and 235 million of a layer for each thread."""
    (llama_3_70b / "text.txt").write_text("aspirin treats pain and fever " * 1000)
    arguments = ("models/base", "--method", "awq", "--calibration", "text.txt", "--dry-run")
    _, text = forge(llama_3_70b, "quantize", *arguments, "--json")
    threads = len(os.sched_getaffinity(0))
    expected = 4 * 855_638_016 + 8 * threads * 8192 * 28672
    assert json.loads(text)["memory_bytes"] == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("options", "output"),
    [(("bnb", "--type", "nf4"), "42.71 GB"), (("rtn", "--group-size", "128"), "39.77 GB")],
)
def test_a_dry_run_of_quantizing_70b(
    llama_3_70b: Path, options: tuple[str, ...], output: str
) -> None:
    method, *rest = options
    cost, text = forge(
        llama_3_70b, "quantize", "models/base", "--method", method, *rest, "--dry-run"
    )
    assert f"reads 141.11 GB, writes {output}" in text
    assert_cheap(cost, seconds=5, num_bytes=GB)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["slerp", "dare_ties", "ties"])
def test_memory_follows_no_tensor(method: str, block_of_70b: Family, tmp_path: Path) -> None:
    """One block of 70B, whose widest tensors have 235 million elements, in 400 MB.

    What a merge holds beside mapped files is pieces of a tensor for each thread, and a sample of
    bounded size; so what holds for one block holds for all 80.
    """
    CONTESTS[method].write_recipe(tmp_path / "recipe.yaml", block_of_70b)
    cost, _ = forge(tmp_path, "merge", "recipe.yaml", "--out", "out", "--quiet")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert size == pytest.approx(BLOCK_OF_70B.num_bytes, rel=1e-4)
    assert cost.peak_anonymous_bytes is not None
    assert 10**7 < cost.peak_anonymous_bytes < 400 * 10**6
    shutil.rmtree(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize(("method", "most"), [("bnb", 400), ("rtn", 1700)])
def test_quantizing_takes_what_its_plan_says(
    method: str, most: int, block_of_70b: Family, tmp_path: Path
) -> None:
    """In MB, of two threads: those of bnb hold blocks, those of rtn the codes of a layer."""
    options = ("quantize", str(block_of_70b.base), "--method", method, "--threads", "2")
    _, text = forge(tmp_path, *options, "--dry-run", "--json")
    planned = json.loads(text)["memory_bytes"]
    cost, _ = forge(tmp_path, *options, "--out", "out", "--verify", "off", "--quiet")
    assert cost.peak_anonymous_bytes is not None
    assert 10**7 < cost.peak_anonymous_bytes < planned < most * 10**6
    shutil.rmtree(tmp_path / "out")
