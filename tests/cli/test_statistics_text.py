"""Which numbers stand for which models, and what their norms are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forge import api
from forge.cli.statistics_text import legend, picture, statistics_table
from forge.verify.inspection import Inspection
from tests.factory import tiny_checkpoint
from tests.verify.published import describe, write_manifest


def inspected(folder: Path, *, method: str, base: str | None, models: list[str],
              **statistics: object) -> Inspection:  # fmt: skip
    tiny_checkpoint(folder)
    manifest: dict[str, Any] = describe(folder)
    manifest["recipe"] = {"merge_method": method, "base_model": base}
    manifest["models"] = models
    for record in manifest["tensors"].values():
        for key in ("norms", "cosines", "conflict_share", "kept_shares"):
            del record[key]
        record.update(statistics)
    write_manifest(folder, manifest)
    return api.inspect(folder)


def test_norms_of_task_vectors(tmp_path: Path) -> None:
    inspection = inspected(
        tmp_path / "m", method="ties", base="base", models=["a", "b"], norms=[1, 2], cosines=[0]
    )
    assert legend(inspection) == ["1 = a", "2 = b"]
    assert "|δ| 1" in statistics_table(inspection, width=None)
    assert "norm of the task vectors" in picture(inspection)


@pytest.mark.parametrize(
    ("method", "base", "models", "expected"),
    [
        ("slerp", "base", ["a"], ["1 = base", "2 = a"]),
        ("linear", None, ["a", "b"], ["1 = a", "2 = b"]),
        ("linear", "a", ["a", "b"], ["1 = a", "2 = b"]),
        ("passthrough", None, ["a", "b", "c"],
         ["Numbers 1 to 2 are the models of each slice, in the recipe's order."]),
    ],
)  # fmt: skip
def test_norms_of_models(
    method: str, base: str | None, models: list[str], expected: list[str], tmp_path: Path
) -> None:
    inspection = inspected(
        tmp_path / "m", method=method, base=base, models=models, norms=[1, 2], cosines=[0.5]
    )
    assert legend(inspection) == expected
    text = statistics_table(inspection, width=None)
    assert "|x| 1" in text
    assert "|δ|" not in text
    assert "norm of the models" in picture(inspection)


def test_of_many_models_the_mean_cosine_is_shown(tmp_path: Path) -> None:
    cosines = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    inspection = inspected(
        tmp_path / "m", method="ties", base="base", models=["a", "b", "c", "d"],
        norms=[1, 1, 1, 1], cosines=cosines,
    )  # fmt: skip
    text = statistics_table(inspection, width=None)
    assert "MEAN COS" in text
    assert text.count(" 0.35 ") == 5
    assert "2·3" in picture(inspection)


def test_fallbacks_are_told_and_notes_are_columns(tmp_path: Path) -> None:
    inspection = inspected(
        tmp_path / "m", method="slerp", base="base", models=["a"], norms=[1, 1], cosines=[1],
        angle_degrees=0.5, t=0.25, fallback="linear: the models are parallel",
    )  # fmt: skip
    text = statistics_table(inspection, width=None)
    assert "9 of 9: linear: the models are parallel" in text
    assert "0.50°  0.25" in text


def test_the_bar_goes_where_the_terminal_is_narrow(tmp_path: Path) -> None:
    inspection = inspected(
        tmp_path / "m", method="ties", base="base", models=["a", "b"], norms=[1, 2], cosines=[0]
    )
    assert "█" in statistics_table(inspection, width=120)
    assert "█" not in statistics_table(inspection, width=50)
