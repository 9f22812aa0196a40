"""The last step of a quantization: what was made is proved, or the command fails loudly."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final

from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.manifest_reader import read_manifest
from forge.core.errors import VerificationError
from forge.quantize.run import QuantizeResult
from forge.recipes.quantize_recipe import QuantizeRecipe
from forge.verify.quantized import DEFAULT_TOKENS
from forge.verify.verification import verify_made

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress

_MOST_PROBLEMS: Final = 20


def prove(
    recipe: QuantizeRecipe,
    result: QuantizeResult,
    *,
    quick: bool,
    tokens: int | None,
    progress: Progress | None,
) -> QuantizeResult:
    """Verify what a quantization made, as its last step.

    Args:
        recipe: What was asked for; its model is what the outputs were made from.
        result: What was made.
        quick: Whether to load no model.
        tokens: Most tokens of held-out text to compare predictions on.
        progress: Hears how it goes.

    Returns:
        The result, with manifests that say what the verification found.

    Raises:
        VerificationError: An output is not right; it is there, and its manifest says what is wrong.
    """
    assert recipe.model is not None
    folders = [output.out for output in result.outputs]
    limit = DEFAULT_TOKENS if tokens is None else tokens
    source = open_checkpoint(recipe.model)
    try:
        reports = verify_made(folders, source, quick=quick, tokens=limit, progress=progress)
    finally:
        source.source.close()
    problems = [
        f"'{folder}' is not right: {finding.message}"
        for folder, report in reports.items()
        for finding in report.findings
    ]
    if problems:
        shown = problems[:_MOST_PROBLEMS]
        if len(problems) > len(shown):
            shown.append(f"... and {len(problems) - len(shown):,} more; the manifest lists them.")
        raise VerificationError("\n".join(shown))
    manifests = {folder: read_manifest(folder) for folder in folders}
    outputs = tuple(
        output if (manifest := manifests[output.out]) is None
        else dataclasses.replace(output, manifest=manifest.content)
        for output in result.outputs
    )  # fmt: skip
    return dataclasses.replace(result, outputs=outputs)
