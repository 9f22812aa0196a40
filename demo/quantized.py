"""The demonstration's second half: the DARE merge in five quantized formats, proved and compared.

Each of two runs of ``forge quantize`` makes several formats of one merge: AWQ in its GEMM and GEMV
layouts from one calibration, and bitsandbytes' NF4, FP4 and int8. The last step of each run is the
verification: a fresh process loads every result with the program that users load it with, lets it
write, and compares its predictions with the merge's on held-out text. Its figures are read from
the manifests; nothing is measured here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.base_model import DemoError

WIDTH = 92
RECIPES = ("demo_awq", "demo_bnb")
NOTE = (
    "KL is the mean next-token divergence from the merge in bfloat16, in nats, over {count:,}",
    "tokens of held-out text; rounding to nearest with AWQ's bits and groups has {rtn:.4f}. GEMM",
    "and GEMV hold the same codes in two layouts. So small a model loses more than a large one.",
)


@dataclass(frozen=True, slots=True)
class Variant:
    """One quantized checkpoint, by what its manifest records.

    Attributes:
        folder: Where it is.
        num_bytes: Size of its weight files.
        consumer: The program that loaded it.
        num_positions: Predictions that were compared.
        kl: Mean next-token divergence from its source, nats.
        same_top: Share of positions at which both find the same token the likeliest.
        perplexity_ratio: Its perplexity relative to its source's.
        rtn_kl: Divergence of the source rounded to nearest in the same scheme, or ``None``.
    """

    folder: Path
    num_bytes: int
    consumer: str
    num_positions: int
    kl: float
    same_top: float
    perplexity_ratio: float
    rtn_kl: float | None


def read_variant(folder: Path) -> Variant:
    """Read what the verification recorded in a manifest.

    Raises:
        DemoError: A check failed, or was left out.
    """
    manifest = json.loads((folder / "forge_manifest.json").read_text("utf-8"))
    record = manifest["verification"]
    open_checks = [check for check in record["checks"] if check["state"] != "passed"]
    if open_checks:
        shown = "; ".join(f"{check['check']}: {check['summary']}" for check in open_checks)
        raise DemoError(f"{folder} is not proved: {shown}")
    figures, rounded = record["divergence"], record["rtn_divergence"]
    sizes = [f["bytes"] for name, f in manifest["files"].items() if name.endswith(".safetensors")]
    return Variant(
        folder=folder,
        num_bytes=sum(sizes),
        consumer=record["consumer"],
        num_positions=figures["num_positions"],
        kl=figures["mean"],
        same_top=figures["same_top_share"],
        perplexity_ratio=figures["perplexity_ratio"],
        rtn_kl=None if rounded is None else rounded["mean"],
    )


def replies_in_fresh_process(folders: Sequence[Path]) -> dict[str, str]:
    """Let ``demo.quantized_replies`` load each checkpoint and ask it.

    Raises:
        DemoError: A checkpoint could not be loaded; the reason is already on stderr.
    """
    command = [sys.executable, "-m", "demo.quantized_replies", *map(str, folders)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode != 0:
        raise DemoError("The quantized checkpoints could not be run.")
    replies: dict[str, str] = json.loads(finished.stdout)
    return replies


def summary(variants: Sequence[Variant], source_bytes: int, replies: dict[str, str]) -> str:
    """Return the table of the variants and their replies as text."""
    lines = [
        f"{'format':<10}{'size':>10}{'of bf16':>9}{'KL':>9}{'same top':>10}{'perplexity':>12}"
        "  loaded by",
        f"{'bf16':<10}{source_bytes / 1e6:>7.1f} MB{1:>9.0%}{0:>9.4f}{1:>10.1%}{'× 1.000':>12}",
    ]
    lines += [
        f"{row.folder.name:<10}{row.num_bytes / 1e6:>7.1f} MB"
        f"{row.num_bytes / source_bytes:>9.0%}{row.kl:>9.4f}{row.same_top:>10.1%}"
        f"{'× ' + format(row.perplexity_ratio, '.3f'):>12}  {row.consumer}"
        for row in variants
    ]
    rtn = next((row.rtn_kl for row in variants if row.rtn_kl is not None), None)
    if rtn is None:
        raise DemoError("No variant was compared with rounding to nearest.")
    lines += ["", *(line.format(rtn=rtn, count=variants[0].num_positions) for line in NOTE)]
    lines += ["", "Their replies to the same question, from packed weights, by forge.runtime:"]
    for row in variants:
        reply = textwrap.indent(textwrap.fill(replies[str(row.folder)], WIDTH), "    ")
        lines += ["", f"{row.folder.name}:", reply]
    return "\n".join(lines)
