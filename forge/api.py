"""The Python API. The command line only calls it.

    from pathlib import Path
    from forge import api

    report = api.check("merge_configs/biomistral_dare.yaml")
    result = api.merge("merge_configs/biomistral_dare.yaml", Path("merges/biomistral"))
    assert api.verify(result.out).ok

Every function raises ``ForgeError`` for what is wrong with its input. Importing this module
loads nothing heavy; each function imports what it needs when it is called.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from forge.core.errors import ForgeError

if TYPE_CHECKING:
    from forge.adapters.contract import ExtractResult
    from forge.adapters.plan import Embeddings
    from forge.checkpoints.progress import Progress
    from forge.core.catalog import Catalog
    from forge.evaluate.divergence_run import measure_divergence as divergence
    from forge.evaluate.run import evaluate_models as evaluate
    from forge.merge.check.preflight import CheckReport
    from forge.merge.plan import MergePlan
    from forge.merge.run import MergeResult
    from forge.profile.run import profile_models as profile
    from forge.quantize.collecting.collect import CollectResult
    from forge.quantize.convert import ConvertResult
    from forge.quantize.plan import QuantizePlan
    from forge.quantize.run import QuantizeResult
    from forge.recipes.merge_recipe import MergeRecipe
    from forge.recipes.moe_types import MoeRecipe
    from forge.recipes.parameters import MethodRow
    from forge.recipes.quantize_recipe import QuantizeRecipe
    from forge.recipes.reference import ModelReference
    from forge.report.folder import write_report as report
    from forge.report.lint import lint_card as lint
    from forge.verify.difference import CheckpointDifference
    from forge.verify.inspection import Inspection
    from forge.verify.verification import Verification

__all__ = [
    "ForgeError",
    "calibrate",
    "check",
    "convert",
    "diff",
    "divergence",
    "evaluate",
    "inspect",
    "is_moe",
    "lint",
    "load_moe_recipe",
    "load_quantize_recipe",
    "load_recipe",
    "lora_extract",
    "merge",
    "methods",
    "moe",
    "newest_checkpoint",
    "plan",
    "plan_quantize",
    "profile",
    "quantize",
    "reference",
    "report",
    "verify",
]

_MEASURING: Final = {
    "divergence": ("forge.evaluate.divergence_run", "measure_divergence"),
    "evaluate": ("forge.evaluate.run", "evaluate_models"),
    "lint": ("forge.report.lint", "lint_card"),
    "profile": ("forge.profile.run", "profile_models"),
    "report": ("forge.report.folder", "write_report"),
}
"""Functions that stand in their rooms as a user wants them."""

Engine = Literal["forge", "mergekit"]
Verify = Literal["full", "quick", "off"]


def __getattr__(name: str) -> Any:
    if name not in _MEASURING:
        raise AttributeError(f"module 'forge.api' has no attribute '{name}'")
    module, function = _MEASURING[name]
    return getattr(importlib.import_module(module), function)


def load_recipe(
    config: str | Path, *, seed: int | None = None, max_shard_size: str | None = None
) -> MergeRecipe:
    """Find and load a merge recipe.

    Args:
        config: Path of a YAML file, or the name of one under ``merge_configs/``.
        seed: Replaces the recipe's seed; from 0 to 2^64 - 1.
        max_shard_size: Replaces the recipe's largest file, such as ``5GB``.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: There is no such recipe, or it is wrong; the message lists every problem.
    """
    from forge.merge.catalog import METHODS
    from forge.recipes.merge_recipe import find_recipe, load_merge_recipe

    recipe = load_merge_recipe(find_recipe(str(config)), METHODS)
    if seed is not None:
        recipe = recipe.with_seed(_checked_seed(seed))
    if max_shard_size is not None:
        recipe = dataclasses.replace(recipe, max_shard_size=_checked_size(max_shard_size))
    return recipe


def check(config: str | Path | MergeRecipe | MoeRecipe, *, out: Path | None = None) -> CheckReport:
    """Say what a merge, or a mixture of experts, would run into, from headers and configurations.

    Args:
        config: A recipe, or what ``load_recipe`` or ``load_moe_recipe`` takes.
        out: Where the result would go, to judge the space there.

    Returns:
        All findings, and what the models are. A problem of the models is a finding, not an
        exception.

    Raises:
        RecipeError: The recipe itself is wrong.
        CheckpointError: A model cannot be found or read.
    """
    from forge.merge.check.preflight import check_merge
    from forge.merge.moe.run import check_moe, open_moe
    from forge.merge.stages import open_models
    from forge.recipes.moe_types import MoeRecipe

    if isinstance(config, (str, Path)):
        config = load_moe_recipe(config) if is_moe(config) else load_recipe(config)
    if isinstance(config, MoeRecipe):
        checkpoints = open_moe(config, weights=False)
    else:
        checkpoints = open_models(config, weights=False)
    try:
        if isinstance(config, MoeRecipe):
            return check_moe(config, checkpoints, out=out)[0]
        return check_merge(config, checkpoints, out=out)
    finally:
        for checkpoint in checkpoints.values():
            checkpoint.source.close()


def plan(config: str | Path | MergeRecipe, *, out: Path | None = None) -> MergePlan:
    """Plan a merge without reading a weight.

    Args:
        config: A recipe, or what ``load_recipe`` takes.
        out: Where the result would go, to judge the space there.

    Returns:
        What would be computed, tensor by tensor.

    Raises:
        ForgeError: The merge cannot be done as asked; the message lists every reason.
    """
    from forge.merge.run import prepare

    prepared = prepare(_recipe(config), out, weights=False)
    for checkpoint in prepared.checkpoints.values():
        checkpoint.source.close()
    return prepared.plan


def merge(
    config: str | Path | MergeRecipe,
    out: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    seed: int | None = None,
    progress: Progress | None = None,
    engine: Engine = "forge",
) -> MergeResult:
    """Merge checkpoints.

    Args:
        config: A recipe, or what ``load_recipe`` takes.
        out: The folder to make. It appears at once, when everything in it is complete.
        threads: Worker threads; by default one for each core that this process may use.
        overwrite: Whether an existing output of forge may be replaced.
        seed: Replaces the recipe's seed; from 0 to 2^64 - 1.
        progress: Hears how it goes.
        engine: ``mergekit`` runs the recipe through mergekit instead (an extra).

    Returns:
        The folder, its manifest, and what it took.

    Raises:
        ForgeError: The input or the output is not as it should be. What existed is untouched, and
            the same call resumes what it can.
    """
    recipe = _recipe(config)
    if seed is not None:
        recipe = recipe.with_seed(_checked_seed(seed))
    if engine == "mergekit":
        from forge.merge.engine_mergekit import run_with_mergekit

        return run_with_mergekit(
            recipe, out, threads=threads, overwrite=overwrite, progress=progress
        )
    from forge.merge.run import run_merge

    return run_merge(recipe, out, threads=threads, overwrite=overwrite, progress=progress)


def load_moe_recipe(
    config: str | Path, *, seed: int | None = None, max_shard_size: str | None = None
) -> MoeRecipe:
    """Find and load a recipe for a mixture of experts.

    Args:
        config: Path of a YAML file, or the name of one under ``merge_configs/``.
        seed: Replaces the recipe's seed; from 0 to 2^64 - 1.
        max_shard_size: Replaces the recipe's largest file, such as ``5GB``.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: There is no such recipe, or it is wrong; the message lists every problem.
    """
    from forge.recipes.merge_recipe import find_recipe
    from forge.recipes.moe_recipe import load_moe_recipe as load

    recipe = load(find_recipe(str(config)))
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=_checked_seed(seed))
    if max_shard_size is not None:
        recipe = dataclasses.replace(recipe, max_shard_size=_checked_size(max_shard_size))
    return recipe


def is_moe(config: str | Path) -> bool:
    """Tell whether a recipe is one of ``moe`` and not of ``merge``.

    Args:
        config: Path of a YAML file, or the name of one under ``merge_configs/``.

    Returns:
        Whether it lists experts and names no merge method.

    Raises:
        RecipeError: There is no such recipe, or it is no YAML.
    """
    from forge.recipes.document import read_documents
    from forge.recipes.merge_recipe import find_recipe

    value = read_documents(find_recipe(str(config)))[-1].value
    return isinstance(value, dict) and "experts" in value and "merge_method" not in value


def moe(
    config: str | Path | MoeRecipe,
    out: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeResult:
    """Build a mixture of experts of dense models.

    Args:
        config: A recipe, or what ``load_moe_recipe`` takes.
        out: The folder to make. It appears at once, when everything in it is complete.
        threads: Worker threads; by default one for each core that this process may use.
        overwrite: Whether an existing output of forge may be replaced.
        progress: Hears how it goes.

    Returns:
        The folder, its manifest, and what it took.

    Raises:
        ForgeError: The input or the output is not as it should be. What existed is untouched, and
            the same call resumes what it can.
    """
    from forge.merge.moe.run import run_moe
    from forge.runtime.prompt_states import read_states

    return run_moe(
        _moe_recipe(config),
        out,
        read_states=read_states,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
    )


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
        _reference(model),
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
        _reference(model),
        to,
        out,
        threads=threads,
        max_shard_bytes=parse_size(_checked_size(max_shard_size)),
        overwrite=overwrite,
        progress=progress,
    )


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

    references = [str(_reference(one)) for one in (model, base)]
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


def methods() -> Catalog[MethodRow]:
    """Return all merge methods with their parameters, defaults, formulas and sources."""
    from forge.merge.catalog import METHODS

    return METHODS


def inspect(folder: Path) -> Inspection:
    """Say what a checkpoint is and, if forge made it, how.

    Args:
        folder: The checkpoint's folder.

    Returns:
        Shapes, types and sizes; and of a merge the recipe, the inputs and statistics by layer.

    Raises:
        CheckpointError: It is no checkpoint, or its manifest is malformed.
    """
    from forge.verify.inspection import inspect_folder

    return inspect_folder(folder)


def verify(
    folder: Path,
    *,
    against: str | None = None,
    quick: bool = False,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Check every byte of a checkpoint, and of a quantized one what its tensors mean.

    Args:
        folder: The checkpoint's folder.
        against: What a quantized checkpoint was made from, as recipes name models; without it,
            what compares with the source is skipped.
        quick: Whether to leave out what loads a quantized model.
        tokens: Most tokens of held-out text to compare predictions on.
        progress: Hears how it goes.

    Returns:
        Everything that is wrong.

    Raises:
        CheckpointError: There is no manifest, or something is malformed.
    """
    from forge.checkpoints.checkpoint import open_checkpoint
    from forge.verify.quantized import DEFAULT_TOKENS
    from forge.verify.verification import verify as verify_checkpoint

    limit = DEFAULT_TOKENS if tokens is None else tokens
    source = None if against is None else open_checkpoint(_reference(against))
    try:
        return verify_checkpoint(folder, source, quick=quick, tokens=limit, progress=progress)
    finally:
        if source is not None:
            source.source.close()


def diff(a: str, b: str, *, progress: Progress | None = None) -> CheckpointDifference:
    """Say how two checkpoints differ.

    Args:
        a: A model as recipes name it: a folder, a Hub id, ``path@revision``, ``model+lora``.
        b: The other one.
        progress: Hears how it goes.

    Returns:
        Differences of tensors, layers, configurations and tokenizer files.

    Raises:
        CheckpointError: A model cannot be found or read.
    """
    from forge.checkpoints.checkpoint import open_checkpoint
    from forge.verify.difference import compare

    references = _reference(a), _reference(b)
    first = open_checkpoint(references[0])
    try:
        second = open_checkpoint(references[1])
        try:
            return compare(first, second, progress=progress)
        finally:
            second.source.close()
    finally:
        first.source.close()


def reference(text: str) -> ModelReference:
    """Read how recipes name a model.

    Args:
        text: A folder, a Hub id, ``path@revision`` or ``model+lora``.

    Returns:
        The reference.

    Raises:
        CheckpointError: It is malformed.
    """
    return _reference(text)


def _quantize_recipe(config: str | Path | QuantizeRecipe) -> QuantizeRecipe:
    return load_quantize_recipe(config) if isinstance(config, (str, Path)) else config


def _moe_recipe(config: str | Path | MoeRecipe) -> MoeRecipe:
    return load_moe_recipe(config) if isinstance(config, (str, Path)) else config


def _recipe(config: str | Path | MergeRecipe) -> MergeRecipe:
    return load_recipe(config) if isinstance(config, (str, Path)) else config


def _reference(text: str) -> ModelReference:
    from forge.core.errors import CheckpointError, RecipeError
    from forge.recipes.reference import ModelReference

    try:
        return ModelReference.parse(text)
    except RecipeError as error:
        # There is no recipe here that the message could point to.
        raise CheckpointError(error.problems[0].message) from error


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


def _checked_seed(seed: int) -> int:
    from forge.core.errors import Problem, RecipeError

    if not 0 <= seed < 2**64:
        raise RecipeError([Problem(f"{seed} is not a whole number from 0 to 2^64 - 1.", "seed")])
    return seed


def _checked_size(text: str) -> str:
    from forge.core.errors import Problem, RecipeError
    from forge.recipes.merge_entries import parse_size

    try:
        parse_size(text)
    except ValueError as error:
        message = f"{text!r} is not a size. Write one such as 5GB or 500MB."
        raise RecipeError([Problem(message, "max_shard_size")]) from error
    return text
