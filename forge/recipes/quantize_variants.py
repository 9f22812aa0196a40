"""Read what a quantization writes: formats under three keys, and the scheme they share.

``version`` abbreviates formats of the family ``awq``, ``type`` those of ``bnb``, and ``format``
takes full names. Every contradiction names the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from forge.core.catalog import did_you_mean
from forge.recipes.findings import Findings, shown
from forge.recipes.quantize_rows import Choices, FormatRow, MethodRow
from forge.recipes.quantize_shapes import QuantizeShape
from forge.recipes.quantize_types import DEFAULT_GROUP_SIZE, Variant

_FAMILIES: Final = {"version": "awq-", "type": "bnb-", "format": ""}
_DEFAULT_BITS: Final = 4


def words_of(value: str | list[str] | None) -> list[str]:
    """Return the names that a key holds: a list, or text with commas."""
    if value is None:
        return []
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else list(value)


def read_variants(
    method: MethodRow, shape: QuantizeShape, choices: Choices, findings: Findings
) -> tuple[Variant, ...]:
    """Read the outputs of a quantization.

    Args:
        method: The method.
        shape: The recipe's keys.
        choices: All methods and formats.
        findings: Receives every problem.

    Returns:
        The variants in the order written; of little use once a problem was found.
    """
    peers = choices.formats_of(method)
    rows = _read_formats(method, shape, choices, findings)
    if all(row.kind == "tensorwise" for row in peers):
        return _tensorwise(rows, shape, findings)
    bits = _DEFAULT_BITS if shape.bits is None else shape.bits
    size = DEFAULT_GROUP_SIZE if shape.group_size is None else shape.group_size
    for row in rows:
        _check_bits(row, bits, peers, findings)
        _check_group_size(row, size, peers, findings)
    return tuple(Variant(row.name, bits, size) for row in rows)


def _read_formats(
    method: MethodRow, shape: QuantizeShape, choices: Choices, findings: Findings
) -> list[FormatRow]:
    found: dict[str, FormatRow] = {}
    is_silent = True
    for key, prefix in _FAMILIES.items():
        for word in words_of(getattr(shape, key)):
            is_silent = False
            row = _find(word, key, prefix, choices, findings)
            if row is None:
                continue
            if row.name in found:
                findings.add((key,), f"{row.name} is listed twice. Each format is written once.")
            elif row.name not in method.formats:
                owners = [
                    peer.name for peer in choices.methods.values() if row.name in peer.formats
                ]
                findings.add(
                    (key,),
                    f"{row.name} holds codes of {' or '.join(owners)}, not of {method.name}. "
                    f"{method.name} writes {', '.join(method.formats)}.",
                )
            else:
                found[row.name] = row
    return list(found.values()) if not is_silent else _default(method, shape, choices, findings)


def _default(
    method: MethodRow, shape: QuantizeShape, choices: Choices, findings: Findings
) -> list[FormatRow]:
    """Return the first format of a method; where formats fix their bits, of those asked for."""
    peers = choices.formats_of(method)
    if peers[0].kind != "tensorwise" or shape.bits is None:
        return peers[:1]
    fitting = [row for row in peers if shape.bits in row.bits]
    if not fitting:
        held = sorted({number for row in peers for number in row.bits})
        findings.add(
            ("bits",), f"{method.name} has codes of {_listing(held)} bits, not of {shape.bits}."
        )
    return fitting[:1]


def _find(
    word: str, key: str, prefix: str, choices: Choices, findings: Findings
) -> FormatRow | None:
    formats = choices.formats.values()
    names = {row.name.removeprefix(prefix): row for row in formats if row.name.startswith(prefix)}
    if word in names:
        return names[word]
    full = next((row.name for row in formats if word in (row.name, row.name.partition("-")[2])), "")
    if full:
        guess = f" Write it under 'format', as {full}."
        if full.startswith(prefix):
            guess = f" Write {full.removeprefix(prefix)}."
    else:
        guess = did_you_mean(word, names)
    findings.add((key,), f"{shown(word)} is no {key}.{guess} Known: {', '.join(names)}.")
    return None


def _tensorwise(
    rows: Sequence[FormatRow], shape: QuantizeShape, findings: Findings
) -> tuple[Variant, ...]:
    if shape.group_size is not None:
        findings.add(
            ("group_size",),
            "The blocks of bitsandbytes are fixed: 64 elements (nf4, fp4) or a row (int8). Remove "
            "the group size, or choose awq or rtn.",
        )
    for row in rows:
        if shape.bits is not None and shape.bits not in row.bits:
            findings.add(
                ("bits",),
                f"{row.name} has codes of {_listing(row.bits)} bits, not of {shape.bits}. Remove "
                "the bits or the type; one of them says it all.",
            )
    wide = [row.name for row in rows if row.group_sizes == (0,)]
    if shape.double_quant and wide:
        findings.add(
            ("double_quant",),
            f"{wide[0]} has no blocks whose scales could be quantized. Remove it"
            + (f", or write {wide[0]} in a run of its own." if len(rows) > len(wide) else "."),
        )
    return tuple(
        Variant(row.name, row.bits[0], row.group_sizes[0], double_quant=bool(shape.double_quant))
        for row in rows
    )


def _check_bits(row: FormatRow, bits: int, peers: Sequence[FormatRow], findings: Findings) -> None:
    if bits in row.bits:
        return
    others = [peer.name for peer in peers if bits in peer.bits]
    findings.add(
        ("bits",),
        f"{row.name} has codes of {_listing(row.bits)} bits, not of {bits}. Write "
        + _listing(row.bits)
        + (f", or choose {' or '.join(others)}." if others else "."),
    )


def _check_group_size(
    row: FormatRow, size: int, peers: Sequence[FormatRow], findings: Findings
) -> None:
    if size in row.group_sizes:
        return
    others = [peer.name for peer in peers if size in peer.group_sizes]
    findings.add(
        ("group_size",),
        f"{row.name} has groups of {_listing(row.group_sizes)}, not of {size}."
        + (f" {' and '.join(others)} can have them." if others else ""),
    )


def _listing(numbers: Sequence[int]) -> str:
    texts = [str(number) for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
