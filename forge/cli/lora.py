"""``forge lora extract``: what a fine-tune added to its base, as a LoRA adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from forge import api
from forge.cli import console
from forge.cli.options import RESUMABLE_KEY, debug_option, json_option
from forge.cli.progress import open_progress
from forge.cli.tables import duration_text, plural, size_text, table

if TYPE_CHECKING:
    from forge.adapters.contract import ExtractResult, TensorEnergy
    from forge.adapters.plan import Embeddings

_OUTPUTS: Final = Path("adapters")
_UNSAFE: Final = re.compile(r"[^\w.-]+", re.ASCII)
_NUMBER: Final = re.compile(r"\.\d+(?=\.)")


@click.group("lora", no_args_is_help=True)
@debug_option
def command() -> None:
    """Work with LoRA adapters.

    To put one on a model, write 'model+adapter' wherever a verb takes a model.
    """


@command.command("extract")
@click.argument("model")
@click.option("--base", metavar="MODEL", required=True, help="What MODEL was tuned from.")
@click.option(
    "--rank", metavar="R", type=int, help="Rank of the factors; the largest, with --energy."
)
@click.option(
    "--energy", metavar="SHARE", type=float,
    help="Take for each tensor the smallest rank that keeps this share of its difference.",
)  # fmt: skip
@click.option(
    "--embeddings", type=click.Choice(["skip", "full", "lora"]), default="skip", show_default=True,
    help="What becomes of embedding and head.",
)  # fmt: skip
@click.option(
    "--dtype", metavar="TYPE", default="float32", show_default=True,
    help="Type of the factors: float32, bfloat16 or float16.",
)  # fmt: skip
@click.option(
    "--divergence/--no-divergence", default=True,
    help="Measure how far base and adapter predict from MODEL.  [default: yes]",
)  # fmt: skip
@click.option(
    "--text", metavar="FILE", type=click.Path(path_type=Path),
    help="UTF-8 text to measure it on.  [default: one that ships with forge]",
)  # fmt: skip
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path),
    help="Folder to make.  [default: adapters/MODEL-rR]",
)  # fmt: skip
@click.option(
    "--threads", metavar="N", type=click.IntRange(1, 1024),
    help="Tensors at work at once.  [default: cores]",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace an existing output of forge.")
@click.option("--tensors", "all_tensors", is_flag=True, help="List every tensor.")
@click.option("--quiet", "-q", is_flag=True, help="No progress and no notices.")
@json_option
@debug_option
@click.pass_context
def extract(
    ctx: click.Context,
    /,
    model: str,
    base: str,
    rank: int | None,
    energy: float | None,
    embeddings: Embeddings,
    dtype: str,
    divergence: bool,
    text: Path | None,
    out: Path | None,
    threads: int | None,
    overwrite: bool,
    all_tensors: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Extract a fine-tune as a LoRA adapter.

    The difference of MODEL and its base is decomposed, tensor by tensor, and the largest part of
    rank R is kept. The result loads with PEFT on the base, and in forge as 'base+adapter'. Norms
    and biases that differ are held whole; what an adapter cannot hold is named with its share.
    """
    target = out if out is not None else _OUTPUTS / _default_name(model, rank, energy)
    ctx.meta[RESUMABLE_KEY] = True
    progress = open_progress(quiet=quiet)
    try:
        result = api.lora_extract(
            model, base, target, rank=rank, energy=energy, embeddings=embeddings, dtype=dtype,
            threads=threads, overwrite=overwrite, divergence=divergence, text=text,
            progress=progress,
        )  # fmt: skip
    finally:
        progress.close()
    if as_json:
        console.result_json(_record(result))
    else:
        console.result(extraction_text(result, all_tensors=all_tensors, width=console.width()))


def _default_name(model: str, rank: int | None, energy: float | None) -> str:
    path = Path(model.partition("+")[0].partition("@")[0])
    name = path.name if path.name not in ("", "..") else path.resolve().name
    kind = f"r{rank}" if energy is None else f"e{energy:g}"
    plain = _UNSAFE.sub("-", name).strip("-.") or "model"
    return f"{plain}-{kind}"


def extraction_text(result: ExtractResult, *, all_tensors: bool, width: int | None) -> str:
    """Lay out what an extraction made and what it keeps.

    Args:
        result: The extraction.
        all_tensors: Whether to list every tensor, or one row for each kind.
        width: Columns of the terminal; ``None`` wraps nothing.
    """
    resumed = f", {result.resumed_tensors:,} resumed" if result.resumed_tensors else ""
    lines = [
        _tensor_table(result.tensors, width) if all_tensors else _kind_table(result.tensors, width),
        "",
        str(result.out),
        f"  keeps {result.kept:.2%} of the energy; "
        f"{plural(result.num_tensors, 'tensor')}{resumed}, "
        f"{size_text(result.output_bytes)}, {duration_text(result.seconds)}",
    ]
    measured = result.manifest.get("divergence")
    if isinstance(measured, Mapping) and "mean" in measured:
        lines.append(
            f"  KL from the fine-tune {measured['mean']:.6f} nats (mean), "
            f"{measured['same_top_share']:.2%} same top token, perplexity "
            f"{measured['perplexity_variant']:.4f} against {measured['perplexity_reference']:.4f}"
        )
    return "\n".join(lines)


def _kind_table(tensors: Sequence[TensorEnergy], width: int | None) -> str:
    kinds: dict[tuple[str, str], list[TensorEnergy]] = {}
    for tensor in tensors:
        kinds.setdefault((_NUMBER.sub(".*", tensor.name), tensor.fate), []).append(tensor)
    rows = []
    for (kind, fate), group in kinds.items():
        ranks = [tensor.rank for tensor in group if tensor.rank is not None]
        span = "–" if not ranks else f"{min(ranks)}" if len(set(ranks)) == 1 else (
            f"{min(ranks)}-{max(ranks)}"
        )  # fmt: skip
        total = sum((tensor.norm or 0.0) ** 2 for tensor in group)
        kept = sum((tensor.norm or 0.0) ** 2 * tensor.kept for tensor in group)
        least = min(tensor.kept for tensor in group)
        mean = kept / total if total else least
        rows.append((kind, str(len(group)), fate, span, f"{mean:.2%}", f"{least:.2%}"))
    heads = ("TENSOR", "COUNT", "HELD AS", "RANK", "KEPT", "LEAST")
    return table(heads, rows, right=("COUNT", "RANK", "KEPT", "LEAST"), width=width)


def _tensor_table(tensors: Sequence[TensorEnergy], width: int | None) -> str:
    rows = [
        (
            tensor.name,
            tensor.fate,
            "–" if tensor.rank is None else str(tensor.rank),
            "–" if tensor.norm is None else f"{tensor.norm:.4g}",
            f"{tensor.kept:.2%}",
        )
        for tensor in tensors
    ]
    heads = ("TENSOR", "HELD AS", "RANK", "NORM", "KEPT")
    return table(heads, rows, right=("RANK", "NORM", "KEPT"), width=width)


def _record(result: ExtractResult) -> dict[str, object]:
    return {
        "out": str(result.out),
        "seconds": round(result.seconds, 3),
        "kept": result.kept,
        "num_tensors": result.num_tensors,
        "resumed_tensors": result.resumed_tensors,
        "output_bytes": result.output_bytes,
        "content_digest": result.manifest["content_digest"],
        "notices": result.manifest["notices"],
        "divergence": result.manifest.get("divergence"),
        "tensors": [asdict(tensor) for tensor in result.tensors],
    }
