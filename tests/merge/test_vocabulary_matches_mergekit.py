"""Rearranged embeddings, combined linearly, are those of mergekit token by token.

Ids may differ (forge keeps those of the base first and appends those of the others, sorted by the
models' names), and so may the number of rows (mergekit cuts padding).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

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
from tests.oracle.mergekit_runner import forbid_network

WEIGHTS = (0.5, 0.25, 0.25)


def run_mergekit(out: Path, roots: list[Path], tokenizer: dict[str, object]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        value = {
            "merge_method": "linear",
            "dtype": "float32",
            "base_model": str(roots[0]),
            "models": [
                {"model": str(root), "parameters": {"weight": weight}}
                for root, weight in zip(roots, WEIGHTS, strict=True)
            ],
            "tokenizer": tokenizer,
        }
        run_merge(
            MergeConfiguration.model_validate(value),
            str(out),
            options=MergeOptions(write_model_card=False, quiet=True),
        )


@pytest.mark.parametrize("kind", ["union", "base", "model", "listed"])
def test_every_token_has_the_row_that_mergekit_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pytest.importorskip("mergekit")
    forbid_network(monkeypatch)
    base = make(tmp_path, 0)
    one = make(tmp_path, 1, extra_tokens=["zoster", "fever2"], vocab=40)
    two = make(tmp_path, 2, extra_tokens=["fever2", "gout"])
    add_tokens(two, ["<|im_start|>"])
    roots = [base, one, two]
    ten = {"kind": "model_token", "model": str(two), "token_id": 10}
    tokens = {
        "<|im_start|>": {"source": str(two)},
        "pain": {"source": str(one), "force": True},
        "<|nil|>": {"source": {"kind": "zero"}},
        "<|ten|>": {"source": ten},
        "<|gout|>": {"source": {"kind": "model_token", "model": str(two), "token": "gout"}},
    }
    tokenizer: dict[str, object] = {"source": str(one) if kind == "model" else "union"}
    if kind == "base":
        tokenizer["source"] = "base"
    elif kind == "listed":
        tokenizer["tokens"] = tokens
    run_mergekit(tmp_path / "out", roots, tokenizer)
    expected_ids = ids_of(tmp_path / "out")

    recipe = recipe_of(
        roots, base_model=str(base), parameters={"normalize": True}, tokenizer=tokenizer
    )
    files = planned(recipe).tokenizer_files
    ids = ids_in(files) if files else ids_of(base)
    assert set(ids) == set(expected_ids)
    for name in (EMBEDDING, HEAD):
        expected = read_values(tmp_path / "out")[name]
        merged = sum(
            weight * rows_of(recipe, tmp_path, root, name)
            for weight, root in zip(WEIGHTS, roots, strict=True)
        )
        for token, number in ids.items():
            np.testing.assert_allclose(
                merged[number], expected[expected_ids[token]], rtol=1e-6, err_msg=token
            )
