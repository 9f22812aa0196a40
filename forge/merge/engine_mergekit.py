"""Run a recipe through mergekit itself, with forge's guarantees around it.

mergekit runs as a process of its own: it loads torch and transformers, prints as it likes,
and can be stopped. It writes into the partial folder; only a complete result is hashed,
described by a manifest and put in place by one rename. What it computes is its own.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

from forge import __version__
from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.disk import sync_tree
from forge.checkpoints.hashing import checksum_of_range, content_digest, record_files
from forge.checkpoints.header import read_header
from forge.checkpoints.manifest import manifest_bytes
from forge.checkpoints.partial import PARTIAL_SUFFIX, PartialLock, discard
from forge.checkpoints.quantized import quantization_of
from forge.checkpoints.replace import MANIFEST_FILE, check_replaceable, publish
from forge.checkpoints.sidecars import model_card
from forge.core.dtypes import BY_TORCH_NAME
from forge.core.errors import (
    CheckpointError,
    IncompatibleError,
    MissingExtraError,
    OutputError,
)
from forge.merge.mergekit_recipe import differing_semantics, mergekit_recipe
from forge.recipes.document import dump_yaml
from forge.recipes.merge_types import MergeRecipe

if TYPE_CHECKING:
    from forge.checkpoints.progress import Progress
    from forge.merge.run import MergeResult

_LOG_LINES: Final = 12
_VERSIONS: Final = ("mergekit", "torch", "transformers", "safetensors", "numpy")


def run_with_mergekit(
    recipe: MergeRecipe,
    out: Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge by mergekit.

    Args:
        recipe: What to merge; its file is given to mergekit without forge's own keys.
        out: The folder to make.
        threads: Threads for mergekit's arithmetic.
        overwrite: Whether an existing output of forge may be replaced.
        progress: Hears how it goes.

    Returns:
        The folder and its manifest, which names the engine.

    Raises:
        MissingExtraError: mergekit is not installed.
        IncompatibleError: The recipe asks for something that mergekit does not have, or mergekit
            failed; the message ends with what it said.
        OutputError: The output exists or cannot be written. What existed is untouched.
    """
    from forge.checkpoints.progress import Silence
    from forge.merge.run import MergeResult

    if recipe.stages:
        raise IncompatibleError(
            "mergekit takes no stages. Merge them one after the other, or leave '--engine' out."
        )
    started = time.monotonic()
    progress = progress or Silence()
    if importlib.util.find_spec("mergekit") is None:
        raise MissingExtraError(
            "mergekit is not installed. Install it with: pip install 'forge[mergekit]'"
        )
    check_replaceable(out, overwrite=overwrite)
    content = mergekit_recipe(recipe)
    _refuse_misread(recipe)
    partial = out.resolve().with_name(out.resolve().name + PARTIAL_SUFFIX)
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        lock = PartialLock(partial, out)
    except OSError as error:
        raise OutputError(f"'{out.parent}' is not writable: {error.strerror}.") from error
    try:
        discard(partial, keep=frozenset({"lock"}))
        progress.stage("merging with mergekit")
        folder = partial / "output"
        _run(recipe, content, partial, folder, threads)
        progress.stage("hashing")
        inputs, notices = _inputs(recipe)
        notices = [*recipe.notices, *differing_semantics(recipe), *notices]
        for notice in notices:
            progress.notice(notice)
        _write_card(recipe, content, folder)
        manifest = _manifest(recipe, content, folder, inputs, notices)
        (folder / MANIFEST_FILE).write_bytes(manifest_bytes(manifest))
        _make_readable(folder)
        sync_tree(folder)
        check_replaceable(out, overwrite=overwrite)
        publish(folder, out, overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"'{partial}' cannot be written: {error.strerror}.") from error
    finally:
        # mergekit cannot resume, so nothing is kept for another run.
        discard(partial, keep=frozenset({"lock"}))
        lock.close(remove=True)
        _remove_if_empty(partial)
    tensors = manifest["tensors"]
    count = len(tensors) if isinstance(tensors, Mapping) else 0
    return MergeResult(out, manifest, time.monotonic() - started, count, 0)


def _run(
    recipe: MergeRecipe,
    content: Mapping[str, object],
    partial: Path,
    folder: Path,
    threads: int | None,
) -> None:
    recipe_file, log = partial / "recipe.yaml", partial / "mergekit.log"
    recipe_file.write_text(dump_yaml(dict(content)), encoding="utf-8")
    dtype = BY_TORCH_NAME.get(recipe.out_dtype or recipe.dtype or "float32")
    itemsize = dtype.itemsize if dtype is not None else 4
    # -P: a file of the working directory must not stand in for one of mergekit's modules.
    command = [
        sys.executable, "-P", "-m", "mergekit.scripts.run_yaml",
        str(recipe_file), str(folder),
        "--random-seed", str(recipe.seed),
        "--out-shard-size", str(max(1, recipe.max_shard_bytes // itemsize)),
        "--quiet",
        # mergekit's card asks the Hub about every local path, and fails without a network.
        "--no-write-model-card",
        *(["--clone-tensors"] if recipe.slices else []),
        *(["--num-threads", str(threads)] if threads else []),
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if code != 0 or not (folder / "config.json").is_file():
        lines = log.read_text("utf-8", "replace").strip().splitlines()[-_LOG_LINES:]
        said = "\n".join(lines) or "(nothing)"
        raise IncompatibleError(f"mergekit failed with exit code {code}. It said:\n{said}")


def _write_card(recipe: MergeRecipe, content: Mapping[str, object], folder: Path) -> None:
    models = recipe.references()
    parts = [part for model in models for part in (model, model.lora) if part is not None]
    card = model_card(
        title=recipe.name or "Merged model",
        models=models,
        method=recipe.merge_method,
        recipe=dump_yaml(dict(content)),
        local_paths={part.path for part in parts if Path(part.path).is_dir()},
    )
    for name, text in card.items():
        (folder / name).write_bytes(text)


def _refuse_misread(recipe: MergeRecipe) -> None:
    """Refuse what mergekit merges into something else than the models, without a word.

    It takes the codes of a quantized model for weights, and puts one model's config.json beside the
    head of another: read as tied, the head is ignored.
    """
    ties: dict[bool, list[str]] = {}
    for model in recipe.references():
        try:
            checkpoint = open_checkpoint(model, weights=False, stored=True)
        except CheckpointError:
            # mergekit reads formats that forge refuses.
            continue
        names = checkpoint.source.names()
        found = quantization_of(checkpoint.config, map(checkpoint.source.info, names))
        if found is not None:
            raise IncompatibleError(
                f"{model} is quantized ({found}), and mergekit would merge its codes as if they "
                "were weights: use forge's own engine, which decodes them."
            )
        is_tied = architecture_of(checkpoint.config, tensor_names=names).is_tied(checkpoint.config)
        ties.setdefault(is_tied, []).append(str(model))
        checkpoint.source.close()
    if len(ties) > 1:
        raise IncompatibleError(
            f"{ties[True][0]} is tied (the embedding is the head) but {ties[False][0]} is not, "
            "which mergekit merges into a checkpoint that loaders read as another model: use "
            "forge's own engine."
        )


def _inputs(recipe: MergeRecipe) -> tuple[list[dict[str, object]], list[str]]:
    inputs: list[dict[str, object]] = []
    notices: list[str] = []
    for model in recipe.references():
        files: list[dict[str, object]] = []
        revision = None
        try:
            checkpoint = open_checkpoint(model, stored=True)
            revision = checkpoint.revision
            records = record_files(checkpoint.source.files())
            files = [{"name": record.name, **record.as_json()} for record in records]
            checkpoint.source.close()
        except CheckpointError as error:
            # mergekit reads formats that forge refuses; the manifest then says what is missing.
            notices.append(f"The files of '{model}' are not recorded: {error}")
        role = "base" if model == recipe.base_model else "model"
        inputs.append({"model": str(model), "role": role, "revision": revision, "files": files})
    return inputs, notices


def _manifest(
    recipe: MergeRecipe,
    content: Mapping[str, object],
    folder: Path,
    inputs: list[dict[str, object]],
    notices: list[str],
) -> dict[str, object]:
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    records = record_files([folder / name for name in names])
    files = {name: record.as_json() for name, record in zip(names, records, strict=True)}
    infos = sorted(
        (
            info
            for name in names
            if name.endswith(".safetensors")
            for info in read_header(folder / name).tensors.values()
        ),
        key=lambda info: info.name,
    )
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        digests = list(
            pool.map(lambda info: checksum_of_range(info.file, info.offset, info.nbytes), infos)
        )
    tensors = {
        info.name: {
            "dtype": info.dtype,
            "shape": list(info.shape),
            "xxh3_128": digest,
            "method": recipe.merge_method,
        }
        for info, digest in zip(infos, digests, strict=True)
    }
    return {
        "schema": 1,
        "kind": "merge",
        "forge": __version__,
        "engine": {"name": "mergekit", "version": version("mergekit")},
        "recipe": {**content, "seed": recipe.seed},
        "recipe_file": None if recipe.file is None else Path(recipe.file).name,
        "inputs": inputs,
        "models": [],
        "notices": notices,
        "versions": _versions(),
        "content_digest": content_digest(
            (info.name, info.dtype, info.shape, digest)
            for info, digest in zip(infos, digests, strict=True)
        ),
        "tensors": tensors,
        "files": files,
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _make_readable(folder: Path) -> None:
    """Give files the usual mode, which safetensors does not."""
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        # Another merge has just moved in; the folder is now its own.
        return
