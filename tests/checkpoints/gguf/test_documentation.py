"""docs/gguf.md lists the types, families and tokenizers that the tables hold."""

import re
from pathlib import Path

from forge.checkpoints.gguf.byte_level import CUTS
from forge.checkpoints.gguf.families import FAMILIES
from forge.checkpoints.gguf.types import GGML_TYPES

_PAGE = (Path(__file__).parents[3] / "docs" / "gguf.md").read_text()


def _rows(heading: str) -> list[list[str]]:
    section = _PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_types() -> None:
    read: dict[str, str] = {}
    refused: set[str] = set()
    for names, bits, how in _rows("Types"):
        if how.startswith("refused"):
            refused |= set(names.split(", "))
        else:
            read |= dict(zip(names.split(", "), bits.split(", "), strict=True))
    kinds = {kind.name: kind for kind in GGML_TYPES.values()}
    assert refused == {name for name, kind in kinds.items() if kind.dtype is None}
    assert set(read) == set(kinds) - refused
    for name, bits in read.items():
        assert abs(float(bits) - kinds[name].bits_per_weight) < 0.01, name


def test_families() -> None:
    rows = {row[0].strip("`"): tuple(re.findall("`([^`]+)`", row[1])) for row in _rows("Families")}
    assert rows == {family.name: family.model_types for family in FAMILIES}


def test_tokenizers() -> None:
    assert set(re.findall("`([^`]+)`", _rows("Tokenizer")[0][1])) == set(CUTS)
