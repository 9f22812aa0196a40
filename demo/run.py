"""The demonstration: real models, merged with the recipes of BioMistral, quantized, compared.

    python -m demo.run

Prepares two checkpoints (see ``demo.prepare``), merges them with ``forge merge`` after three
recipes, inspects and verifies each result, and lets a fresh process load all five checkpoints and
compare them (see ``demo.compare``). Then ``forge quantize`` makes five formats of the DARE merge
and proves each (see ``demo.quantized``). Last, all ten models are profiled, evaluated and compared,
and a report to decide from is written (see ``demo.measured``). Needs no network. Results go to
stdout, progress to stderr.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

from demo import measured, quantized
from demo.base_model import DemoError
from demo.observation import ABSTRACT, QUESTION, Observation
from demo.prepare import prepare

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = Path("demo_output")
METHODS = ("dare", "ties", "slerp")
WIDTH = 92

USE_YOUR_OWN = """\
Now with your own models:

    forge methods                                    what can be merged, and how
    cp merge_configs/demo_dare.yaml my_merge.yaml    then name your two models in it: a folder,
                                                     or a model of the Hub such as
                                                     BioMistral/BioMistral-7B@main
    forge check my_merge.yaml                        reads headers only, finds mistakes in seconds
    forge merge my_merge.yaml --out my_model         the merge
    forge inspect my_model                           what changed, tensor by tensor
    forge verify my_model                            every byte is what its manifest says
    forge quantize my_model --method awq             a fraction of the size, proved at once
    forge generate quantized/my_model-awq-gemm "What is a fever?"
    forge profile my_model quantized/my_model-awq-gemm
    forge eval my_model quantized/my_model-awq-gemm --suite medical
    forge report                                     the page to decide from

The published 7B recipes are in merge_configs/ and quant_configs/, such as biomistral_dare.yaml
and biomistral_awq_gemm.yaml.
"""

TIES_NOTE = (
    "TIES lands on the PubMedQA model, and is right to: rounding to bfloat16 leaves 45 % of the",
    "adapted weights changed, so a density of 0.5 keeps nearly all, and 'normalize' divides the",
    "weight of the only task vector out again. DARE and SLERP land between the parents.",
)


@dataclass(frozen=True, slots=True)
class Merge:
    """A finished merge: its folder, the wall time of ``forge merge`` and the inspection."""

    folder: Path
    seconds: float
    inspection: str


def forge(*arguments: str) -> str:
    """Run the ``forge`` command in a process of its own and return its stdout.

    Its progress goes on to our stderr.

    Raises:
        DemoError: It failed; its own message is already on stderr.
    """
    command = [sys.executable, "-m", "forge", *arguments]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode != 0:
        raise DemoError(f"'forge {' '.join(arguments)}' ended with {finished.returncode}.")
    return finished.stdout


def merge_all() -> list[Merge]:
    """Merge after each recipe, check the bytes and inspect the result."""
    merges = []
    for method in METHODS:
        folder = OUTPUT / f"SmolLM2-135M-{method}"
        progress(f"forge merge merge_configs/demo_{method}.yaml")
        started = time.perf_counter()
        forge("merge", f"merge_configs/demo_{method}.yaml", "--out", str(folder), "--overwrite")
        seconds = time.perf_counter() - started
        forge("verify", str(folder))
        merges.append(Merge(folder, seconds, forge("inspect", str(folder))))
    return merges


def compare_in_fresh_process(parents: tuple[Path, ...], merges: list[Merge]) -> list[Observation]:
    """Let ``demo.compare`` load and compare the checkpoints.

    Raises:
        DemoError: A checkpoint could not be loaded; the reason is already on stderr.
    """
    command = [sys.executable, "-m", "demo.compare", "--parents", *map(str, parents)]
    command += ["--merges", *(str(merge.folder) for merge in merges)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode != 0:
        raise DemoError("The checkpoints could not be compared.")
    return [Observation(**row) for row in json.loads(finished.stdout)]


def quantize_all(source: Path) -> list[quantized.Variant]:
    """Quantize the DARE merge after each recipe and return all variants, proved."""
    variants = []
    for recipe in quantized.RECIPES:
        out = source.with_name(f"{source.name}-{recipe.removeprefix('demo_')}")
        progress(f"forge quantize --config quant_configs/{recipe}.yaml")
        made = forge(
            "quantize", "--config", f"quant_configs/{recipe}.yaml", "--out", str(out),
            "--overwrite", "--json",
        )  # fmt: skip
        folders = [Path(output["out"]) for output in json.loads(made)["outputs"]]
        variants += [quantized.read_variant(folder) for folder in folders]
    return variants


def summary(observations: list[Observation], merges: list[Merge]) -> str:
    """Return the table and the replies as text."""
    seconds = {str(merge.folder): f"{merge.seconds:.1f} s" for merge in merges}
    lines = [
        "Next-token KL divergence from each parent (nats; mean over five short chats), and how",
        "likely each model is to begin its reply with Yes, No or Maybe:",
        "",
        f"{'checkpoint':<24}{'from instruct':>14}{'from PubMedQA':>14}"
        f"{'Yes':>8}{'No':>8}{'Maybe':>8}{'forge merge':>13}",
    ]
    for row in observations:
        shares = "".join(f"{row.decisions[label]:>8.1%}" for label in ("yes", "no", "maybe"))
        divergences = "".join(f"{value:>14.4f}" for value in row.divergences)
        name = Path(row.checkpoint).name
        lines.append(f"{name:<24}{divergences}{shares}{seconds.get(row.checkpoint, '-'):>13}")
    lines += ["", *TIES_NOTE, "", "The question, about an invented study:", ""]
    lines += [textwrap.indent(textwrap.fill(text, WIDTH), "    ") for text in (ABSTRACT, QUESTION)]
    lines += ["", "The replies, greedy, as loaded by transformers in a fresh process:"]
    for row in observations:
        reply = textwrap.indent(textwrap.fill(row.reply, WIDTH), "    ")
        lines += ["", f"{Path(row.checkpoint).name}:", reply]
    return "\n".join(lines)


def progress(message: str) -> None:
    """Say on stderr what is being done."""
    print(f"[demo] {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Run the demonstration from the repository's root."""
    logging.basicConfig(level=logging.WARNING, format="[demo] %(message)s")
    logging.getLogger("demo").setLevel(logging.INFO)
    os.chdir(ROOT)
    # Nothing here needs the Hub; a library that asks it anyway must fail, not wait.
    os.environ["HF_HUB_OFFLINE"] = "1"
    started = time.perf_counter()
    try:
        parents = prepare(OUTPUT / "models")
        merges = merge_all()
        progress("loading both parents and the three merges in a fresh process")
        observations = compare_in_fresh_process(parents, merges)
        source = merges[METHODS.index("dare")].folder
        variants = quantize_all(source)
        progress("asking the five variants in a fresh process")
        replies = quantized.replies_in_fresh_process([row.folder for row in variants])
        source_bytes = (source / "model.safetensors").stat().st_size
        table = quantized.summary(variants, source_bytes, replies)
        verdicts = measured.measure(
            forge, progress, parents=parents, merges=[merge.folder for merge in merges],
            variants=[row.folder for row in variants], source=source,
        )  # fmt: skip
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for merge in merges:
        print(f"forge inspect {merge.folder}\n\n{merge.inspection.rstrip()}\n")
    print(summary(observations, merges))
    print(f"\nThe DARE merge, quantized by 'forge quantize':\n\n{table}")
    print(f"\nAll of them, measured and compared:\n\n{measured.summary(verdicts)}")
    print(f"\n{USE_YOUR_OWN}")
    progress(
        f"done in {time.perf_counter() - started:.0f} s; the models are in {OUTPUT}/, "
        f"the report is {measured.REPORT}/index.html"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
