"""Methods that watch the model at work: their tokens, and their way through the blocks.

Tokens are kept in forge's cache folder while a quantization is unfinished, so that the same
command after a crash calibrates on the same ones, even where the model itself wrote them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge import __version__
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.partial import PARTIAL_SUFFIX
from forge.checkpoints.progress import Progress
from forge.core.errors import CheckpointError, IncompatibleError
from forge.kernels.cpu.native import cache_root
from forge.quantize.calibration.calibrate import calibration_tokens
from forge.quantize.calibration.stored import Tokens, digest, dump_tokens, load_tokens
from forge.quantize.contract import BlockResult
from forge.quantize.layouts import scheme_of
from forge.quantize.plan import QuantizePlan
from forge.quantize.workers import Workers, run_all
from forge.recipes.quantize_types import QuantizeRecipe

if TYPE_CHECKING:
    import threading

log = logging.getLogger(__name__)

_FOLDER: Final = "calibration"


def tokens_of(
    recipe: QuantizeRecipe, checkpoint: Checkpoint, outs: Sequence[Path], progress: Progress
) -> Tokens:
    """Return the tokens to calibrate on: those of the unfinished run, or new ones.

    Args:
        recipe: The recipe; it has a calibration.
        checkpoint: The model.
        outs: Folders to make; beside one of them an unfinished run may lie.
        progress: Hears how it goes.

    Returns:
        int64 [B, T]: sequences, tokens.

    Raises:
        ForgeError: They cannot be made.
    """
    if recipe.calibration is None:
        raise IncompatibleError(
            f"Method '{recipe.method}' needs calibration, and the recipe has none. "
            "Add 'calibration', or choose method 'rtn'."
        )
    kept = cache_root() / _FOLDER / f"{_key(recipe, checkpoint)}.npy"
    if any((out.with_name(out.name + PARTIAL_SUFFIX) / "journal.jsonl").is_file() for out in outs):
        try:
            return load_tokens(kept)
        except CheckpointError as error:
            log.debug("no tokens of the unfinished run: %s", error)
    progress.stage("calibrating")
    tokens_BT = calibration_tokens(
        checkpoint, recipe.calibration, device=recipe.device, progress=progress
    )
    _keep(kept, dump_tokens(tokens_BT))
    return tokens_BT


def forget_tokens(recipe: QuantizeRecipe, checkpoint: Checkpoint) -> None:
    """Delete the kept tokens once the outputs hold them.

    Args:
        recipe: The recipe.
        checkpoint: The model.
    """
    (cache_root() / _FOLDER / f"{_key(recipe, checkpoint)}.npy").unlink(missing_ok=True)


def calibration_entry(recipe: QuantizeRecipe, tokens_BT: Tokens) -> dict[str, object]:
    """Return what the manifest says of the calibration set.

    Args:
        recipe: The recipe.
        tokens_BT: The tokens.
    """
    return {
        "source": None if recipe.calibration is None else recipe.calibration.source,
        "samples": tokens_BT.shape[0],
        "tokens": tokens_BT.shape[1],
        "sha256": digest(tokens_BT),
    }


def _key(recipe: QuantizeRecipe, checkpoint: Checkpoint) -> str:
    files = list(checkpoint.source.files())
    if recipe.calibration is not None and recipe.calibration.path is not None:
        files += [Path(recipe.calibration.path)]
    marks = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue  # The id of a data set is no file.
        marks.append([file.name, status.st_size, status.st_mtime_ns, status.st_ino])
    calibration = None if recipe.calibration is None else recipe.calibration.resolved()
    content = [__version__, calibration, recipe.seed, recipe.device, marks]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _keep(path: Path, content: bytes) -> None:
    growing = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        growing.write_bytes(content)
        growing.replace(path)
    except OSError as error:
        # A later run then calibrates anew, and starts over if it gets other tokens.
        log.warning("calibration tokens cannot be kept for a later run: %s", error)


def quantize_calibrated(
    recipe: QuantizeRecipe,
    checkpoint: Checkpoint,
    plan: QuantizePlan,
    workers: Workers,
    tokens_BT: Tokens,
    *,
    num_threads: int,
    stop: threading.Event,
    progress: Progress,
) -> None:
    """Search block by block, and write each block to all outputs as soon as it is done.

    Args:
        recipe: The recipe.
        checkpoint: The model.
        plan: What is written.
        workers: Write it.
        tokens_BT: What the model reads meanwhile.
        num_threads: How many threads search and write.
        stop: Set on an error or an interruption.
        progress: Hears how it goes.

    Raises:
        ForgeError: The model cannot be quantized so.
    """
    # torch is loaded only now.
    from forge.quantize.awq.run import quantize_blocks
    from forge.quantize.awq.settings import AwqSettings

    outside = [partial(workers.copy, name) for name in workers.kept_of(None)]
    run_all(outside, num_threads=num_threads, stop=stop)
    settings = AwqSettings(
        search=recipe.search,
        clip=recipe.clip,
        duo_scaling=recipe.duo_scaling,
        error_feedback=recipe.error_feedback,
        keep=recipe.keep,
        device=recipe.device,
        seed=recipe.seed,
        threads=num_threads,
    )
    results = quantize_blocks(
        checkpoint,
        tokens_BT,
        scheme_of(recipe.variants[0]),
        settings,
        finished=workers.block_is_finished,
        progress=progress,
    )
    for result in results:
        run_all(_jobs(plan, workers, result), num_threads=num_threads, stop=stop)


def _jobs(plan: QuantizePlan, workers: Workers, result: BlockResult) -> list[Callable[[], None]]:
    jobs: list[Callable[[], None]] = []
    linears = [linear for linear in plan.linears if linear.block == result.index]
    for linear in linears:
        statistics: Mapping[str, object] = result.statistics.get(linear.module, {})
        jobs.append(partial(workers.write_codes, linear, result.weights[linear.module], statistics))
    for name in workers.kept_of(result.index):
        folded = result.folded.get(name)
        if folded is None:
            jobs.append(partial(workers.copy, name))
        else:
            jobs.append(partial(workers.write_folded, name, folded))
    return jobs
