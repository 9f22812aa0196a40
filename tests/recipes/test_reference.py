"""References to models read, print and refuse as recipes write them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.core.errors import RecipeError
from forge.recipes.reference import ModelReference

part = st.text(
    st.characters(categories=("L", "N", "P", "S"), exclude_characters="@+"), min_size=1, max_size=12
)
plain = st.builds(ModelReference, part, st.none() | part)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/a", ModelReference("org/a")),
        ("  org/a ", ModelReference("org/a")),
        ("org/a@main", ModelReference("org/a", "main")),
        ("org/a@refs/pr/1", ModelReference("org/a", "refs/pr/1")),
        ("a+l", ModelReference("a", None, ModelReference("l"))),
        ("a@v1+l@v2", ModelReference("a", "v1", ModelReference("l", "v2"))),
        ("/data/models/x y", ModelReference("/data/models/x y")),
    ],
)
def test_reads(text: str, expected: ModelReference) -> None:
    assert ModelReference.parse(text) == expected


@settings(deadline=None)
@given(plain, st.none() | plain)
def test_text_round_trips(model: ModelReference, lora: ModelReference | None) -> None:
    reference = ModelReference(model.path, model.revision, lora)
    assert ModelReference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "names no model"),
        ("  ", "names no model"),
        ("@main", "names no model"),
        ("a+", "names no model"),
        ("+l", "names no model"),
        ("a@", "no revision"),
        ("a@b@c", "more than one '@'"),
        ("a+b+c", "more than one '+'"),
        ("a\nb", "control character"),
        ("a\x00", "control character"),
    ],
)
def test_refuses(text: str, fault: str) -> None:
    with pytest.raises(RecipeError, match=r"path@revision") as caught:
        ModelReference.parse(text)
    assert fault in str(caught.value)


def test_order_is_by_text_of_the_path() -> None:
    assert sorted([ModelReference("b"), ModelReference("a")])[0].path == "a"
