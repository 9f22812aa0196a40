"""One recipe, one result: whatever the threads, shards, hash seeds, orders, folders and kills.

The models hold float32 beside bfloat16, tensors of one element and tensors of many pieces, and
there are three of them beside the base, because sums of two hide the order in which they are
taken.
"""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from forge import api
from forge.checkpoints.header import read_header
from forge.merge.run import MergeResult
from tests.end_to_end.command import (
    finish,
    forge,
    num_finished,
    partial_of,
    start,
    wait_for_tensors,
    weight_digests,
)
from tests.end_to_end.model_folders import write_large
from tests.factory import tiny_config, tiny_shapes, to_bytes, write_safetensors

TUNES = ("alpha", "beta", "gamma")
METHODS = {
    "ties": "weight: 0.4, density: 0.3",
    "dare_ties": "weight: 0.4, density: 0.5",
    "della": "weight: 0.4, density: 0.5, epsilon: 0.2",
    "linear": "weight: 0.4",
    "sce": "",
}


def _write_model(folder: Path, *, seed: int) -> None:
    """Write a model of mixed types whose embedding is more than one piece long."""
    config = tiny_config(layers=2, hidden=64, vocab=6000)
    shapes = tiny_shapes(config) | {"model.layers.0.mlp.gain": (1,)}
    rows: dict[str, tuple[str, Sequence[int], bytes]] = {}
    for name, shape in shapes.items():
        common = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        own = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
        dtype = "F32" if "norm" in name or "gain" in name or "down_proj" in name else "BF16"
        rows[name] = (dtype, shape, to_bytes(0.05 * common + 0.003 * seed * own, dtype))
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", rows)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a base and three fine-tunes."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("base", *TUNES)):
        _write_model(root / name, seed=seed)
    return root


def _recipe(
    folder: Path, method: str, root: Path | Mapping[str, Path], order: Sequence[str] = ()
) -> Path:
    places = root if isinstance(root, Mapping) else dict.fromkeys(("base", *TUNES), root)
    order = order or (("base", "alpha") if method == "slerp" else TUNES)
    lines = [f"merge_method: {method}", "models:"]
    for name in order:
        lines.append(f"  - model: {places[name] / name}")
        if METHODS.get(method):
            lines.append(f"    parameters: {{{METHODS[method]}}}")
    if method != "linear":
        lines.append(f"base_model: {places['base'] / 'base'}")
    if method == "slerp":
        lines.append("parameters: {t: [0.2, 0.7]}")
    path = folder / f"{method}-{'-'.join(order)}.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _digests(result: MergeResult) -> tuple[object, dict[str, object]]:
    """Return the content digest, and the digest of each tensor."""
    tensors = cast("Mapping[str, Mapping[str, object]]", result.manifest["tensors"])
    return (
        result.manifest["content_digest"],
        {name: record["xxh3_128"] for name, record in tensors.items()},
    )


@pytest.mark.parametrize("method", [*METHODS, "slerp"])
def test_threads_orders_folders_and_shards(models: Path, tmp_path: Path, method: str) -> None:
    recipe = _recipe(tmp_path, method, models)
    once = api.merge(recipe, tmp_path / "once", threads=1)
    twice = api.merge(recipe, tmp_path / "twice", threads=2)
    many = api.merge(recipe, tmp_path / "many", threads=7)
    expected = _digests(once)
    files = weight_digests(once.out)
    assert len(files) == 1
    for result in (twice, many):
        assert _digests(result) == expected
        assert weight_digests(result.out) == files

    orders = [["alpha", "base"]] if method == "slerp" else list(itertools.permutations(TUNES))[1:]
    for order in orders:
        result = api.merge(_recipe(tmp_path, method, models, order), tmp_path / "-".join(order))
        assert _digests(result) == expected, order
        assert weight_digests(result.out) == files, order

    # Elsewhere, with parents whose names sort the other way round.
    elsewhere = {name: tmp_path / f"{9 - n}" for n, name in enumerate(("base", *TUNES))}
    for name, parent in elsewhere.items():
        shutil.copytree(models / name, parent / name)
    moved = api.merge(_recipe(tmp_path, method, elsewhere), tmp_path / "moved")
    assert _digests(moved) == expected
    assert weight_digests(moved.out) == files

    for size, least in (("1500KB", 2), ("100KB", 4), ("1KB", 20)):
        sized = api.load_recipe(recipe, max_shard_size=size)
        sharded = api.merge(sized, tmp_path / size, threads=2)
        assert len(weight_digests(sharded.out)) >= least
        assert _digests(sharded) == expected, size


def test_another_seed_gives_another_result(models: Path, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "dare_ties", models)
    first = api.merge(recipe, tmp_path / "first")
    second = api.merge(recipe, tmp_path / "second", seed=1)
    ties = api.merge(_recipe(tmp_path, "ties", models), tmp_path / "ties")
    ties_again = api.merge(_recipe(tmp_path, "ties", models), tmp_path / "ties2", seed=1)
    assert _digests(first)[0] != _digests(second)[0]
    assert _digests(ties)[0] == _digests(ties_again)[0]


def test_a_change_of_one_tensor_changes_no_other(models: Path, tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "dare_ties", models)
    text = recipe.read_text()
    other = tmp_path / "other.yaml"
    other.write_text(
        text.replace("density: 0.5", "density: [{filter: up_proj, value: 0.25}, {value: 0.5}]")
    )
    _, before = _digests(api.merge(recipe, tmp_path / "before"))
    _, after = _digests(api.merge(other, tmp_path / "after"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if "up_proj" in name}
    assert len(changed) == 2


@pytest.mark.parametrize("method", ["dare_ties", "ties", "della", "slerp"])
def test_hash_seeds(models: Path, tmp_path: Path, method: str) -> None:
    recipe = _recipe(tmp_path, method, models)
    found = []
    for seed in ("0", "1", "12345"):
        out = tmp_path / seed
        outcome = forge(
            "merge", recipe, "--out", out, "--json",
            cwd=tmp_path, environment={"PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert outcome.code == 0, outcome.stderr
        files = {
            path.name: path.read_bytes() for path in out.iterdir() if path.suffix != ".safetensors"
        }
        found.append((json.loads(outcome.stdout)["content_digest"], weight_digests(out), files))
    assert found[0] == found[1] == found[2]


def test_ten_kills(tmp_path: Path) -> None:
    write_large(tmp_path, layers=10)
    arguments = ["merge", "recipe.yaml", "--json", "--quiet", "--out"]
    began = time.monotonic()
    undisturbed = forge(*arguments, "undisturbed", cwd=tmp_path)
    seconds = time.monotonic() - began
    assert undisturbed.code == 0, undisturbed.stderr
    num_tensors = json.loads(undisturbed.stdout)["num_tensors"]
    expected = weight_digests(tmp_path / "undisturbed")
    seed = random.SystemRandom().getrandbits(32)
    chance = random.Random(seed)
    resumed = []
    for kill in range(10):
        out = tmp_path / f"killed-{kill}"
        process = start([*arguments, out], cwd=tmp_path)
        if kill % 5 == 0:
            # Any moment at all: before the first tensor, while hashing, while publishing.
            time.sleep(chance.uniform(0, seconds))
        else:
            wait_for_tensors(process, out, chance.randrange(num_tensors))
            time.sleep(chance.uniform(0, 0.003))
        process.kill()
        process.communicate()
        # A process may die when all is done, with its output in place.
        kept = num_tensors if out.exists() else max(num_finished(out), 0)
        again = finish(start([*arguments, out], cwd=tmp_path))
        assert again.code == 0, (seed, kill, again)
        report = json.loads(again.stdout)
        assert report["resumed_tensors"] <= kept, (seed, kill)
        if process.returncode:
            resumed.append(report["resumed_tensors"])
        assert weight_digests(out) == expected, (seed, kill)
        assert not partial_of(out).exists(), (seed, kill)
        assert {path.name for path in out.iterdir()} == {
            path.name for path in (tmp_path / "undisturbed").iterdir()
        }
        shutil.rmtree(out)
    assert sum(0 < count < num_tensors for count in resumed) >= 3, (seed, resumed)


def test_kills_while_an_output_is_replaced(tmp_path: Path) -> None:
    write_large(tmp_path, layers=4)
    arguments = ["merge", "recipe.yaml", "--json", "--quiet", "--overwrite", "--out"]
    first = json.loads(forge(*arguments, "old", cwd=tmp_path).stdout)
    forge(*arguments, "new", "--seed", "1", cwd=tmp_path)
    old, new = weight_digests(tmp_path / "old"), weight_digests(tmp_path / "new")
    assert old != new
    out = tmp_path / "out"
    seed = random.SystemRandom().getrandbits(32)
    chance = random.Random(seed)
    for kill in range(6):
        # Every other kill falls into the hashing, the renaming and the clean-up at the end.
        count = first["num_tensors"] if kill % 2 else chance.randrange(first["num_tensors"])
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "old", out)
        process = start([*arguments, out, "--seed", "1"], cwd=tmp_path)
        wait_for_tensors(process, out, count)
        time.sleep(chance.uniform(0, 0.1 if kill % 2 else 0.003))
        process.kill()
        process.communicate()
        found = weight_digests(out)
        assert found in (old, new), (seed, kill)
        assert api.verify(out).ok, (seed, kill)
        again = forge(*arguments, out, "--seed", "1", cwd=tmp_path)
        assert again.code == 0, (seed, kill, again)
        assert weight_digests(out) == new, (seed, kill)
        assert not partial_of(out).exists(), (seed, kill)


def _kill_in_the_middle(place: Path, out: Path) -> int:
    """Kill a merge that has finished a dozen tensors; return how many it had finished."""
    process = start(["merge", "recipe.yaml", "--quiet", "--threads", "1", "--out", out], cwd=place)
    assert wait_for_tensors(process, out, 12), "the merge was over before it could be killed"
    process.kill()
    process.communicate()
    return num_finished(out)


def test_bytes_that_were_lost_in_the_middle_are_made_again(tmp_path: Path) -> None:
    write_large(tmp_path, layers=8)
    arguments = ["merge", "recipe.yaml", "--json", "--quiet", "--out"]
    assert forge(*arguments, "undisturbed", cwd=tmp_path).code == 0
    out = tmp_path / "out"
    num_kept = _kill_in_the_middle(tmp_path, out)
    lines = (partial_of(out) / "journal.jsonl").read_text().splitlines()[1:13]
    names = {json.loads(line)["name"] for line in lines}
    for path in (partial_of(out) / "output").glob("*.safetensors"):
        header = read_header(path)
        for name in names & header.tensors.keys():
            with path.open("r+b") as file:
                file.seek(header.tensors[name].offset)
                file.write(b"\xff\xff")
    again = forge(*arguments, out, cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["resumed_tensors"] == num_kept - 12
    assert weight_digests(out) == weight_digests(tmp_path / "undisturbed")


def test_nothing_is_resumed_from_other_inputs_or_another_recipe(tmp_path: Path) -> None:
    write_large(tmp_path, layers=8)
    out = tmp_path / "out"
    _kill_in_the_middle(tmp_path, out)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("weight: 0.5", "weight: 0.75"))
    _kill_in_the_middle(tmp_path, out)
    (tmp_path / "med" / "model.safetensors").unlink()
    shutil.copy(tmp_path / "chat" / "model.safetensors", tmp_path / "med" / "model.safetensors")
    again = forge("merge", "recipe.yaml", "--json", "--out", out, cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert "An unfinished merge was discarded" in again.stderr
    assert json.loads(again.stdout)["resumed_tensors"] == 0
    assert forge("merge", "recipe.yaml", "--out", "fresh", cwd=tmp_path).code == 0
    assert weight_digests(out) == weight_digests(tmp_path / "fresh")
