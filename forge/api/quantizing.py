"""Quantizing: recipes, plans, statistics, the quantization, and changes of layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from forge.api.arguments import checked_size, reference

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress
    from forge.quantize.collecting.collect import CollectResult
    from forge.quantize.convert import ConvertResult
    from forge.quantize.plan import QuantizePlan
    from forge.quantize.run import QuantizeResult
    from forge.recipes.quantize_recipe import QuantizeRecipe

Verify = Literal["full", "quick", "off"]


def load_quantize_recipe(
    config: str | Path | None = None, *, options: Mapping[str, object] | None = None
) -> QuantizeRecipe:
    """Load a quantization recipe, or make one of options alone.

    Args:
        config: Path of a YAML file, or the name of one under ``quant_configs/``.
        options: Keys of the recipe that replace those of the file, named as the options of
            ``forge quantize``: ``method``, ``version``, ``calibration_samples`` and so on.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: There is no such recipe, or it is wrong; the message lists every problem.
    """
    from forge.formats.catalog import FORMATS
    from forge.quantize.catalog import QUANT_METHODS
    from forge.recipes.quantize_recipe import Choices, find_quantize_recipe, load_quantize_recipe

    path = None if config is None else find_quantize_recipe(str(config))
    return load_quantize_recipe(path, Choices.of(QUANT_METHODS, FORMATS), options=options)


def plan_quantize(config: str | Path | QuantizeRecipe, *, out: Path | None = None) -> QuantizePlan:
    """Check and plan a quantization without reading or downloading a weight.

    Args:
        config: A recipe that names a model, or what ``load_quantize_recipe`` takes.
        out: Where the result would go; a lack of space there is a notice of the plan.

    Returns:
        What becomes of every tensor.

    Raises:
        ForgeError: It cannot be done as asked; the message lists every reason.
    """
    from forge.quantize.check import check_recipe

    return check_recipe(_quantize_recipe(config), out=out, must_fit=False)


def quantize(
    config: str | Path | QuantizeRecipe,
    out: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    verification: Verify = "full",
    tokens: int | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Quantize a checkpoint, and prove the result right.

    Args:
        config: A recipe that names a model, or what ``load_quantize_recipe`` takes.
        out: The folder to make; with several formats, each has a folder of its name in it. It
            appears at once, when everything in it is complete.
        threads: Worker threads; by default one for each core that this process may use.
        overwrite: Whether an existing output of forge may be replaced.
        verification: The last step: ``full``, ``quick``, which loads no model, or ``off``.
        tokens: Most tokens of held-out text to compare predictions on.
        progress: Hears how it goes.

    Returns:
        The outputs, their manifests with what the verification found, and what it took.

    Raises:
        VerificationError: An output is not right; it is there, and its manifest says what is wrong.
        ForgeError: The input or the output is not as it should be. What existed is untouched, and
            the same call resumes what it can.
    """
    from forge.quantize.check import check_recipe
    from forge.quantize.run import run_quantize

    recipe = _quantize_recipe(config)
    # From headers alone, so that nothing is downloaded or calibrated in vain.
    check_recipe(recipe, out=out, overwrite=overwrite)
    result = run_quantize(recipe, out, threads=threads, overwrite=overwrite, progress=progress)
    if verification == "off":
        return result
    from forge.verify.proof import prove

    return prove(recipe, result, quick=verification == "quick", tokens=tokens, progress=progress)


def calibrate(
    model: str,
    statistics: Literal["regmean", "fisher"],
    out: Path,
    *,
    calibration: Mapping[str, object] | None = None,
    labels: Literal["sampled", "text"] = "sampled",
    device: str = "cpu",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CollectResult:
    """Collect statistics of a model for the merge methods that weight by them.

    Args:
        model: The model: a folder, a Hub id, ``path@revision``, ``model+lora``.
        statistics: ``regmean`` (second moments of what every linear reads, block by block) or
            ``fisher`` (mean squared gradients; the whole model in float32 in memory, twice).
        out: The folder to make. It appears at once, when everything in it is complete.
        calibration: Where the tokens come from, named as the options of ``forge quantize``:
            ``calibration``, ``calibration_samples``, ``calibration_tokens``,
            ``calibration_field``, ``chat_template`` and ``seed``; the model's own text by default.
        labels: For ``fisher``, labels drawn from the model, or the text's own.
        device: Where the model runs.
        threads: Worker threads; by default one for each core that this process may use.
        overwrite: Whether an existing output of forge may be replaced.
        progress: Hears how it goes.

    Returns:
        The folder, its manifest, and what it took.

    Raises:
        ForgeError: The model, the text or the output is not as it should be. What existed is
            untouched, and the same call resumes what it can.
    """
    from forge.quantize.collecting.collect import collect

    options = {"model": model, "method": "awq", **(calibration or {})}
    # The rules of a calibration set are those of a quantization.
    chosen = load_quantize_recipe(options=options).calibration
    assert chosen is not None
    return collect(
        reference(model),
        statistics,
        chosen,
        out,
        labels=labels,
        device=device,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
    )


def newest_checkpoint(place: Path | None = None) -> Path:
    """Find the newest checkpoint that a merge wrote.

    Args:
        place: Where to look, subfolders included; by default the working directory.

    Returns:
        Its folder.

    Raises:
        CheckpointError: There is none.
    """
    from forge.quantize.newest import newest_checkpoint as find

    return find(Path() if place is None else place)


def convert(
    model: str,
    to: str,
    out: Path,
    *,
    threads: int | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ConvertResult:
    """Change the layout of a quantized checkpoint, without loss.

    Args:
        model: The quantized model: a folder, a Hub id, ``path@revision``.
        to: ``gemm``, ``gemv``, ``gemv_fast``, ``compressed-tensors`` or ``gptq``.
        out: The folder to make. It appears at once, when everything in it is complete.
        threads: Worker threads; by default one for each core that this process may use.
        max_shard_size: Largest file to write.
        overwrite: Whether an existing output of forge may be replaced.
        progress: Hears how it goes.

    Returns:
        The folder, its manifest, and what it took.

    Raises:
        ForgeError: The input or the output is not as it should be. What existed is untouched, and
            the same call resumes what it can.
    """
    from forge.quantize.convert import run_convert
    from forge.recipes.merge_entries import parse_size

    return run_convert(
        reference(model),
        to,
        out,
        threads=threads,
        max_shard_bytes=parse_size(checked_size(max_shard_size)),
        overwrite=overwrite,
        progress=progress,
    )


def _quantize_recipe(config: str | Path | QuantizeRecipe) -> QuantizeRecipe:
    return load_quantize_recipe(config) if isinstance(config, (str, Path)) else config
