"""How forge made a checkpoint, as text: by a merge, a quantization or a change of layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from forge.cli.tables import count_text, plural, size_text, table
from forge.merge.catalog import METHODS

if TYPE_CHECKING:
    from forge.checkpoints.manifest_reader import Manifest


def origin_text(manifest: Manifest, width: int | None) -> list[str]:
    """Return how forge made a checkpoint, and a table of what it was made from.

    Args:
        manifest: What forge recorded.
        width: Columns of the terminal; ``None`` wraps nothing.
    """
    lines = _KINDS.get(manifest.kind, _merge)(manifest)
    lines.append(f"  content     {manifest.content_digest}")
    return ["\n".join(lines), _inputs(manifest, width)]


def _merge(manifest: Manifest) -> list[str]:
    recipe, engine = manifest.table("recipe"), manifest.table("engine")
    method = str(recipe.get("merge_method", "?"))
    row = next((known for known in METHODS if known.name == method), None)
    maker = str(engine.get("name", "forge"))
    version = engine.get("version", manifest.content.get("forge", "?"))
    return [
        f"Merged by {method}{f' ({row.title})' if row else ''}, {maker} {version}",
        *([f"  formula     {row.formula}"] if row else []),
        f"  recipe      {manifest.content.get('recipe_file') or '(built in memory)'}"
        + (f", seed {recipe.get('seed')}" if row is not None and row.random else ""),
        *_parameter_lines(recipe),
    ]


def _quantization(manifest: Manifest) -> list[str]:
    content, recipe = manifest.content, manifest.table("recipe")
    variant, calibration = manifest.table("variant"), manifest.table("calibration")
    layers, quantized, total = (
        len(manifest.table("modules")), content.get("num_quantized"), content.get("num_parameters"),
    )  # fmt: skip
    lines = [
        f"Quantized by {recipe.get('method', '?')} to {variant.get('format', '?')}, "
        f"forge {content.get('forge', '?')}",
        f"  recipe      {content.get('recipe_file') or '(options of the command)'}",
        f"  scheme      {variant.get('bits', '?')} bits"
        + ("" if recipe.get("method") == "bnb" else f", groups of {variant.get('group_size', '?')}")
        + (", double quantization" if variant.get("double_quant") else ""),
    ]
    if isinstance(quantized, int) and isinstance(total, int):
        lines.append(
            f"  layers      {plural(layers, 'linear layer')}, "
            f"{count_text(quantized)} of {count_text(total)} parameters"
        )
    if calibration:
        lines.append(
            f"  calibration {calibration.get('source', '?')}, {calibration.get('samples', '?')} × "
            f"{calibration.get('tokens', '?')} tokens"
        )
    checks = manifest.table("verification").get("checks")
    for check in checks if isinstance(checks, list) else []:
        if isinstance(check, Mapping):
            name, state = str(check.get("check", "?")), check.get("state", "?")
            lines.append(f"  {name:<11} {state}: {check.get('summary', '')}")
    return lines


def _conversion(manifest: Manifest) -> list[str]:
    conversion = manifest.table("conversion")
    return [
        f"Converted from {conversion.get('from', '?')} to {conversion.get('to', '?')}, "
        f"forge {manifest.content.get('forge', '?')}"
    ]


def _mixture(manifest: Manifest) -> list[str]:
    content, recipe = manifest.content, manifest.table("recipe")
    experts, shared = (
        value if isinstance(value, list) else []
        for value in (recipe.get("experts"), recipe.get("shared_experts"))
    )
    also = f" and {plural(len(shared), 'shared expert')}" if shared else ""
    return [
        f"Built as {content.get('architecture', '?')} of {plural(len(experts), 'expert')}{also}, "
        f"forge {content.get('forge', '?')}",
        f"  recipe      {content.get('recipe_file') or '(built in memory)'}",
        f"  routers     gate_mode {recipe.get('gate_mode', '?')}, "
        f"{recipe.get('experts_per_token', '?')} experts for each token",
    ]


_KINDS: Final = {"quantize": _quantization, "convert": _conversion, "moe": _mixture}


def _inputs(manifest: Manifest, width: int | None) -> str:
    cells = []
    for item in manifest.items("inputs"):
        if not isinstance(item, Mapping):
            continue
        files = item.get("files")
        sizes = [file.get("bytes", 0) for file in files] if isinstance(files, list) else []
        cells.append(
            (
                str(item.get("role", "?")),
                str(item.get("revision") or "local"),
                size_text(sum(sizes)),
                str(item.get("model", "?")),
            )
        )
    if not cells:
        return ""
    return table(("ROLE", "REVISION", "BYTES", "MODEL"), cells, right=("BYTES",), width=width)


def _parameter_lines(recipe: Mapping[str, object]) -> list[str]:
    """List what holds for the whole merge, then what each model has of its own."""
    models = recipe.get("models")
    own = {
        str(entry.get("model")): entry["parameters"]
        for entry in (models if isinstance(models, list) else [])
        if isinstance(entry, Mapping) and isinstance(entry.get("parameters"), Mapping)
    }
    shared = recipe.get("parameters")
    shared = shared if isinstance(shared, Mapping) else {}
    # A default that every model replaces would only mislead.
    replaced = set.intersection(*(set(values) for values in own.values())) if own else set()
    kept = {name: value for name, value in shared.items() if name not in replaced}
    lines = [f"  parameters  {_parameters(kept) or 'none for the whole merge'}"]
    return lines + [
        f"              {model}: {_parameters(values)}" for model, values in own.items()
    ]


def _parameters(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={_value(value)}" for name, value in parameters.items())


def _value(value: object) -> str:
    """Write a parameter briefly: ``[0, 0.5] of self_attn | 0.5`` for one with filters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return f"{value:g}"
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return " | ".join(
            _value(item.get("value")) + (f" of {item['filter']}" if "filter" in item else "")
            for item in value
        )
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)
