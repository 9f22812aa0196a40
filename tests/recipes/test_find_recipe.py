"""CONFIG on the command line finds its file as people type it."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.core.errors import RecipeError
from forge.recipes.merge_recipe import find_recipe

SHIPPED = Path(__file__).resolve().parents[2] / "merge_configs"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "biomistral_dare",
        "biomistral_dare.yaml",
        "configs/biomistral_dare.yaml",
        "configs/biomistral_dare",
        "merge_configs/biomistral_dare.yaml",
        "./configs/biomistral_dare.yaml",
    ],
)
def test_shipped_recipes_are_found_from_anywhere(here: Path, text: str) -> None:
    assert find_recipe(text).resolve() == SHIPPED / "biomistral_dare.yaml"


@pytest.mark.parametrize("text", ["biomistral_dare", "configs/biomistral_dare.yaml"])
def test_the_folder_of_the_user_comes_first(here: Path, text: str) -> None:
    mine = here / "merge_configs" / "biomistral_dare.yaml"
    mine.parent.mkdir()
    mine.write_text("a: 1")
    assert find_recipe(text).resolve() == mine


def test_a_file_that_exists_is_taken_as_typed(here: Path) -> None:
    (here / "configs").mkdir()
    (here / "configs" / "biomistral_dare.yaml").write_text("a: 1")
    typed = "configs/biomistral_dare.yaml"
    assert find_recipe(typed) == Path(typed)
    assert find_recipe(str(here / typed)) == here / typed
    assert find_recipe(str(here / "configs" / "biomistral_dare")) == here / typed


def test_both_suffixes(here: Path) -> None:
    (here / "x.yml").write_text("a: 1")
    assert find_recipe("x") == Path("x.yml")


def test_a_folder_is_no_recipe(here: Path) -> None:
    (here / "biomistral_dare").mkdir()
    assert find_recipe("biomistral_dare").resolve() == SHIPPED / "biomistral_dare.yaml"


def test_what_is_not_there_gets_the_nearest_name(here: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        find_recipe("configs/biomistral_tis.yaml")
    (problem,) = caught.value.problems
    assert problem.file == "configs/biomistral_tis.yaml"
    assert "Did you mean 'biomistral_ties'?" in problem.message
    assert "biomistral_slerp" in problem.message


def test_another_folder_that_is_empty(here: Path) -> None:
    with pytest.raises(RecipeError, match="There is no other_configs/ here"):
        find_recipe("x", "other_configs")
