"""Layouts are valid safetensors, aligned, deterministic, and split as promised."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.checkpoints.header import parse_header
from forge.checkpoints.layout import PlannedTensor, digest_layout, index_file, lay_out
from forge.core.dtypes import DTYPES

_PLANS = st.lists(
    st.tuples(st.lists(st.integers(0, 5), max_size=3).map(tuple), st.sampled_from(sorted(DTYPES))),
    max_size=12,
).map(lambda rows: [PlannedTensor(f"t{i}", shape, dtype) for i, (shape, dtype) in enumerate(rows)])


@given(_PLANS, st.integers(1, 400))
@settings(max_examples=150, deadline=None)
def test_every_layout_is_valid_aligned_and_complete(
    plan: list[PlannedTensor], max_shard_bytes: int
) -> None:
    layout = lay_out(plan, max_shard_bytes=max_shard_bytes)
    assert layout == lay_out(plan, max_shard_bytes=max_shard_bytes)
    placed: list[str] = []
    for shard in layout:
        header = parse_header(shard.header[8:], file=Path(shard.file), file_bytes=shard.file_bytes)
        assert tuple(header.tensors.values()) == shard.tensors
        assert header.metadata == {"format": "pt"}
        assert len(shard.header) % 8 == 0
        for tensor in shard.tensors:
            assert tensor.offset % DTYPES[tensor.dtype].itemsize == 0
        sizes = [tensor.nbytes for tensor in shard.tensors]
        assert sum(sizes) <= max_shard_bytes or sum(map(bool, sizes)) == 1
        placed += [tensor.name for tensor in shard.tensors]
    assert sorted(placed) == sorted(tensor.name for tensor in plan)
    index = index_file(layout)
    if len(layout) == 1:
        assert layout[0].file == "model.safetensors"
        assert index == {}
    else:
        table = json.loads(index["model.safetensors.index.json"])
        assert table["metadata"]["total_size"] == sum(tensor.nbytes for tensor in plan)
        assert {n: s.file for s in layout for n in (t.name for t in s.tensors)} == table[
            "weight_map"
        ]


def test_names_are_those_of_transformers() -> None:
    plan = [PlannedTensor(name, (4,), "F32") for name in "abc"]
    files = [shard.file for shard in lay_out(plan, max_shard_bytes=16)]
    assert files == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_a_header_equals_that_of_the_reference_implementation() -> None:
    from safetensors.numpy import save

    plan = [
        PlannedTensor("z", (3,), "F16"), PlannedTensor("é", (2, 2), "F64"),
        PlannedTensor("b", (), "F32"),
    ]  # fmt: skip
    arrays = {"z": np.zeros(3, "f2"), "é": np.zeros((2, 2)), "b": np.zeros((), "f4")}
    (shard,) = lay_out(plan, max_shard_bytes=1 << 20)
    raw = save(arrays, metadata={"format": "pt"})
    assert raw[: len(shard.header)] == shard.header
    assert len(raw) == shard.file_bytes


def test_the_digest_sees_every_change() -> None:
    def digest(*rows: tuple[str, tuple[int, ...], str], shard: int = 100) -> str:
        return digest_layout(lay_out([PlannedTensor(*row) for row in rows], max_shard_bytes=shard))

    digests = {
        digest(("a", (2, 3), "F32")), digest(("b", (2, 3), "F32")), digest(("a", (3, 2), "F32")),
        digest(("a", (2, 3), "I32")), digest(("a", (2,), "F32"), ("b", (2,), "F32")),
        digest(("b", (2,), "F32"), ("a", (2,), "F32")),
        digest(("a", (2,), "F32"), ("b", (2,), "F32"), shard=8),
    }  # fmt: skip
    assert len(digests) == 7


@pytest.mark.parametrize(
    "names", [["a", "a"], [""], ["__metadata__"]], ids=["twice", "empty", "reserved"]
)
def test_impossible_names_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="unique, not empty and not reserved"):
        lay_out([PlannedTensor(name, (1,), "F32") for name in names], max_shard_bytes=10)


def test_a_shard_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive"):
        lay_out([], max_shard_bytes=0)
