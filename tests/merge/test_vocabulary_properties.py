"""Whatever tokens models have: ids are kept, every token has one, and every row is its model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.factory import read_values
from tests.merge.test_vocabulary import (
    EMBEDDING,
    HEAD,
    add_tokens,
    ids_in,
    ids_of,
    make,
    planned,
    recipe_of,
    rows_of,
)

WORDS = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=5)
MODEL = st.fixed_dictionaries(
    {
        "words": WORDS,
        "added": st.lists(st.sampled_from(["<|a|>", "<|b|>", "<|c|>"]), unique=True),
        "padding": st.integers(0, 6),
    }
)


def write(folder: Path, number: int, model: Mapping[str, object]) -> Path:
    words, added, padding = model["words"], model["added"], model["padding"]
    assert isinstance(words, list)
    assert isinstance(added, list)
    assert isinstance(padding, int)
    rows = 16 + len(words) + len(added) + padding
    root = make(folder, number, extra_tokens=words, vocab=rows)
    if added:
        add_tokens(root, added)
    return root


@settings(deadline=None, max_examples=40)
@given(st.lists(MODEL, min_size=2, max_size=4), st.sampled_from([EMBEDDING, HEAD]))
def test_a_union(models: list[Mapping[str, object]], name: str) -> None:
    with TemporaryDirectory() as place:
        folder = Path(place)
        roots = [write(folder, number, model) for number, model in enumerate(models)]
        recipe = recipe_of(roots[1:], base=roots[0], tokenizer={"source": "union"})
        plan = planned(recipe)
        ids = ids_in(plan.tokenizer_files) if plan.tokenizer_files else ids_of(roots[0])
        own = {root: ids_of(root) for root in roots}
        values = {root: read_values(root)[name] for root in roots}

        assert set(ids) == set().union(*own.values())
        assert {token: ids[token] for token in own[roots[0]]} == own[roots[0]]
        assert len(set(ids.values())) == len(ids)
        # New tokens take the base's padding first, and nothing is cut.
        assert plan.num_rows == max(len(values[roots[0]]), max(ids.values()) + 1)
        for root in roots:
            rows = rows_of(recipe, folder, root, name)
            assert rows.shape == (plan.num_rows, 16)
            for token, number in ids.items():
                holders = [other for other in roots[1:] if token in own[other]]
                if token in own[root]:
                    expected = values[root][own[root][token]]
                elif token in own[roots[0]]:
                    expected = values[roots[0]][own[roots[0]][token]]
                else:
                    held = [values[other][own[other][token]] for other in holders]
                    expected = np.mean(held, axis=0, dtype=np.float64).astype(np.float32)
                np.testing.assert_array_equal(rows[number], expected, err_msg=token)
