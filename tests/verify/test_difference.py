"""How two checkpoints differ."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forge import api
from forge.core.errors import CheckpointError
from forge.verify.sidecars import ABSENT
from tests.factory import read_values, tiny_checkpoint, write_safetensors
from tests.verify.published import tensors_of


def test_equal_checkpoints_differ_in_nothing_whatever_their_shards(tmp_path: Path) -> None:
    a = tiny_checkpoint(tmp_path / "a")
    b = tiny_checkpoint(tmp_path / "b", shards=3)
    difference = api.diff(str(a), str(b))
    assert difference.is_identical
    assert difference.has_equal_tensors
    assert difference.most_changed(5) == ()
    assert len(difference.tensors) == 21
    assert all(row.sums is not None and row.sums.equal_share == 1.0 for row in difference.tensors)


def test_layers_are_compared_as_one_vector(tmp_path: Path) -> None:
    a = tiny_checkpoint(tmp_path / "a")
    b = tiny_checkpoint(tmp_path / "b", tune=1)
    difference = api.diff(str(a), str(b))
    assert [row.place.label for row in difference.layers] == [
        "embedding", "layer 0", "layer 1", "final norm", "head",
    ]  # fmt: skip
    values_a, values_b = read_values(a), read_values(b)
    names = [name for name in values_a if name.startswith("model.layers.1.")]
    x = np.concatenate([values_a[name].ravel() for name in names]).astype(np.float64)
    y = np.concatenate([values_b[name].ravel() for name in names]).astype(np.float64)
    row = difference.layers[2]
    assert (row.num_tensors, row.num_changed) == (9, 9)
    assert row.sums.norm_difference == pytest.approx(np.linalg.norm(x - y))
    assert row.sums.relative == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(x))
    assert row.sums.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert row.sums.max_abs == np.abs(x - y).max()
    assert row.sums.equal_share == pytest.approx((x == y).mean())


def test_everything_that_can_differ_is_named(tmp_path: Path) -> None:
    a = tiny_checkpoint(tmp_path / "a", config_overrides={"rope": {"theta": 1, "kind": "x"}})
    b = tiny_checkpoint(tmp_path / "b", config_overrides={"rope": {"theta": 1.0, "kind": "x"}})
    tensors = tensors_of(b / "model.safetensors")
    dtype, shape, data = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = ("F16", shape, data)
    dtype, shape, data = tensors["model.layers.0.mlp.up_proj.weight"]
    tensors["model.layers.0.mlp.up_proj.weight"] = (dtype, shape[::-1], data)
    tensors["only_b"] = tensors.pop("model.norm.weight")
    write_safetensors(b / "model.safetensors", tensors)
    (b / "generation_config.json").unlink()
    (b / "tokenizer.json").write_text("{}")
    config = json.loads((b / "config.json").read_text())
    del config["hidden_act"]
    (b / "config.json").write_text(json.dumps(config))
    difference = api.diff(str(a), str(b))
    assert difference.only_a == ("model.norm.weight",)
    assert difference.only_b == ("only_b",)
    assert [(row.key, row.a, row.b) for row in difference.config] == [
        ("hidden_act", "silu", ABSENT),
        ("rope.theta", 1, 1.0),
    ]
    assert {row.name: row.state for row in difference.files} == {
        "generation_config.json": "only in A",
        "tokenizer.json": "differs",
    }
    assert [row.name for row in difference.most_changed(2)] == [
        "model.layers.0.mlp.up_proj.weight", "lm_head.weight",
    ]  # fmt: skip
    by_name = {row.name: row for row in difference.tensors}
    assert by_name["lm_head.weight"].dtypes == ("BF16", "F16")
    assert by_name["model.layers.0.mlp.up_proj.weight"].sums is None
    assert json.loads(json.dumps(difference.as_json(), allow_nan=False))["identical"] is False


def test_whole_numbers_are_compared_without_arithmetic(tmp_path: Path) -> None:
    a, b = tiny_checkpoint(tmp_path / "a"), tiny_checkpoint(tmp_path / "b")
    for folder, last in ((a, 3), (b, 5)):
        tensors = tensors_of(folder / "model.safetensors")
        tensors["ids"] = ("I64", [4], np.array([0, 1, 2, last], np.int64).tobytes())
        write_safetensors(folder / "model.safetensors", tensors)
    difference = api.diff(str(a), str(b))
    row = next(row for row in difference.tensors if row.name == "ids")
    assert not row.is_equal
    assert row.as_json() == {
        "name": "ids", "place": "other", "dtypes": ["I64", "I64"], "shapes": [[4], [4]],
        "num_elements": 4, "equal_share": 0.75,
    }  # fmt: skip
    assert difference.layers[-1].sums.num_elements == 0


@pytest.mark.parametrize("wrong", ["", "a+b+c", "a@"])
def test_a_malformed_name_is_refused_without_a_recipe_to_point_to(wrong: str) -> None:
    with pytest.raises(CheckpointError, match=r"^The model reference '"):
        api.diff("a", wrong)
