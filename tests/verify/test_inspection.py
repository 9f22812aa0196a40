"""What inspection says of a checkpoint, with and without a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forge import api
from forge.core.errors import CheckpointError
from tests.factory import tiny_checkpoint
from tests.verify.published import edit_manifest, publish


def test_a_plain_checkpoint(tmp_path: Path) -> None:
    inspection = api.inspect(tiny_checkpoint(tmp_path / "m", layers=3, shards=2))
    assert inspection.architecture == "llama"
    assert (inspection.num_layers, inspection.num_tensors, inspection.num_files) == (3, 30, 2)
    assert inspection.num_parameters == 2 * 512 + 16 + 3 * 2336
    assert inspection.num_bytes == 2 * inspection.num_parameters
    assert inspection.dtypes == {"BF16": inspection.num_parameters}
    assert inspection.manifest is None
    assert inspection.statistics == ()
    assert [layer.place.label for layer in inspection.layers] == [
        "embedding", "layer 0", "layer 1", "layer 2", "final norm", "head",
    ]  # fmt: skip


def test_a_merge_shows_its_statistics_by_layer(tmp_path: Path) -> None:
    inspection = api.inspect(publish(tmp_path / "m"))
    assert inspection.manifest is not None
    row = inspection.statistics[1]
    assert row.place.label == "layer 0"
    assert row.norms == pytest.approx((9.0, 12.0))  # 9 tensors of norms 3 and 4
    assert row.cosines == pytest.approx((0.5,))
    assert row.conflict_share == pytest.approx(0.25)
    assert row.kept_shares == pytest.approx((0.5, 0.75))
    assert inspection.notices == ("The models differ in something.",)
    record = json.loads(json.dumps(inspection.as_json(), allow_nan=False))
    assert record["merge"]["recipe"]["merge_method"] == "ties"
    assert len(record["merge"]["statistics"]) == 5


def test_an_unknown_architecture_is_said_and_still_shown(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path / "m", config_overrides={"model_type": None})
    inspection = api.inspect(root)
    assert inspection.architecture is None
    assert [layer.place.label for layer in inspection.layers] == ["other"]
    assert "no 'model_type'" in inspection.notices[0]


def test_statistics_of_a_wrong_type_are_refused(tmp_path: Path) -> None:
    root = publish(tmp_path / "m")

    def edit(manifest: dict[str, object]) -> None:
        tensors = manifest["tensors"]
        assert isinstance(tensors, dict)
        tensors["lm_head.weight"]["norms"] = ["x"]

    edit_manifest(root, edit)
    with pytest.raises(CheckpointError, match=r"'norms' of tensor 'lm_head\.weight' is not"):
        api.inspect(root)


def test_no_folder_and_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        api.inspect(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        api.inspect(tmp_path)
