"""Adapters: what a fine-tune added to its base as a LoRA adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from forge.api.arguments import reference
from forge.core.errors import ForgeError

if TYPE_CHECKING:
    from forge.adapters.contract import ExtractResult
    from forge.adapters.plan import Embeddings
    from forge.checkpoints.progress import Progress


def lora_extract(
    model: str,
    base: str,
    out: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    embeddings: Embeddings = "skip",
    dtype: str = "float32",
    threads: int | None = None,
    overwrite: bool = False,
    divergence: bool = True,
    text: Path | None = None,
    progress: Progress | None = None,
) -> ExtractResult:
    """Extract what a fine-tune added to its base as a LoRA adapter that PEFT loads.

    Args:
        model: The fine-tune: a folder, a Hub id, ``path@revision``, ``model+lora``.
        base: The model that it was tuned from.
        out: The adapter's folder. It appears at once, when everything in it is complete.
        rank: Rank of every layer's factors; with ``energy``, the largest allowed.
        energy: Take for each layer the smallest rank that keeps this share of the sum of squares
            of its difference, above 0 and at most 1.
        embeddings: ``lora`` gives embedding and head factors, ``full`` holds them whole, ``skip``
            leaves them out and says what is lost.
        dtype: Type of the factors: ``float32``, ``bfloat16`` or ``float16``.
        threads: Tensors at work at once; by default one for each core.
        overwrite: Whether an existing output of forge may be replaced.
        divergence: Whether to measure how far base and adapter predict from the fine-tune; needs
            torch and transformers.
        text: UTF-8 text to measure it on; ``None`` for the text that ships with forge.
        progress: Hears how it goes.

    Returns:
        The adapter, the energy that it keeps by tensor and overall, and what it took. The manifest
        has under ``divergence`` what was measured, or why not.

    Raises:
        ForgeError: The input or the output is not as it should be. What existed is untouched, and
            the same call resumes what it can.
    """
    from forge.adapters.contract import Request
    from forge.adapters.extract import run_extract
    from forge.adapters.outputs import add_to_manifest

    references = [str(reference(one)) for one in (model, base)]
    if divergence:
        _check_measurable(references[1], out)
    request = Request(rank, energy, embeddings, dtype)
    result = run_extract(
        references[0],
        references[1],
        out,
        request,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
    )
    # Of an adapter that was there already, it is known; unless that run was stopped before.
    known = result.manifest.get("divergence")
    is_known = isinstance(known, dict) and "skipped" not in known and text is None
    if divergence and not is_known:
        from forge.evaluate.divergence_run import measure_divergence

        try:
            found = measure_divergence(
                f"{references[1]}+{out}", references[0], text=text, progress=progress
            )
            measured: dict[str, object] = {"text": found.text, **found.figures}
        except ForgeError as error:
            # The adapter is made; that it could not be tried is said, and is in its manifest.
            measured = {"skipped": str(error)}
            if progress is not None:
                progress.notice(f"The divergence was not measured: {error}")
        add_to_manifest(out, result.manifest, "divergence", measured)
    return result


def _check_measurable(base: str, out: Path) -> None:
    """Refuse, before any work, a comparison that cannot be made at its end."""
    from importlib.util import find_spec

    from forge.core.errors import MissingExtraError, OutputError

    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise MissingExtraError(
                f"Measuring the divergence needs {package}: pip install 'forge[quantize]'. "
                "Or leave it out with --no-divergence."
            )
    if set(str(out)) & set("+@") or "+" in base:
        raise OutputError(
            f"'{base}+{out}' cannot be named as a model with an adapter, because of a '+' or '@' "
            "in it. Choose another output, or leave the divergence out with --no-divergence."
        )
