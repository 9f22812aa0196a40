"""Load quantized checkpoints in a process of its own, let them write, compare their predictions.

    python -m forge.verify.fresh_load '{"roots": [...], "source": ..., "tokens": ..., "rtn": [...]}'

Nothing of the quantization is left in that process: what it loads are the files, by the program
that users load them with. The result is one line of JSON. One model is in memory at a time: of the
others the last hidden states are kept, which are small (see ``forge.evaluate.divergence``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.source import SafetensorsSource
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError, ForgeError, MissingExtraError, NonFiniteError
from forge.recipes.reference import ModelReference
from forge.verify.consumers import consumer_of, load_plain, load_state, problem_of, require

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from transformers import PreTrainedModel

    from forge.evaluate.divergence import Predictions
    from forge.formats.contract import Scheme

_PROMPT_TOKENS: Final = 12
_REPLY_TOKENS: Final = 8
_FAILED: Final = 3
"""Exit code of the process when it can say itself what went wrong."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the process is to do.

    Attributes:
        roots: Folders of quantized checkpoints of one source.
        source: Folder or file of what they were made from; ``None`` to load and generate only.
        tokens: Most tokens of held-out text to compare on.
        rtn: Linear layers to round to nearest for comparison; empty for none.
        bits: Bits of their codes.
        group_size: Size of their groups.
        symmetric: Whether their zero points are fixed.
        transposed: Whether the source holds their weights as ``[in, out]``.
    """

    roots: tuple[str, ...]
    source: str | None
    tokens: int
    rtn: tuple[str, ...] = ()
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Loaded:
    """What became of one checkpoint.

    Attributes:
        consumer: The program that loaded it.
        problem: Why it does not load, generate or predict; ``None`` when it does.
        reply: Tokens that the model wrote after the beginning of the held-out text.
        divergence: Its predictions against the source's, plain JSON values, or ``None``.
    """

    consumer: str
    problem: str | None = None
    reply: tuple[int, ...] = ()
    divergence: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the process found.

    Attributes:
        outputs: One for each folder, in their order.
        rtn_divergence: Predictions of the source rounded to nearest, or ``None``.
    """

    outputs: tuple[Loaded, ...]
    rtn_divergence: dict[str, object] | None = None


def load_in_fresh_process(request: Request) -> Answer:
    """Run this module in a process of its own.

    Args:
        request: What to do.

    Returns:
        What it found; a checkpoint that does not load is a finding.

    Raises:
        MissingExtraError: A package is not installed that loading needs.
        CheckpointError: The process was ended, or the source does not load.
    """
    require("torch", "transformers", "safetensors")
    command = [sys.executable, "-m", "forge.verify.fresh_load", json.dumps(asdict(request))]
    # The files are here; a library that asks the Hub anyway must fail instead of waiting.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        found = json.loads(lines[-1])
        outputs = tuple(
            Loaded(**{**output, "reply": tuple(output["reply"])}) for output in found["outputs"]
        )
        return Answer(outputs, found["rtn_divergence"])
    if done.returncode == _FAILED and lines:
        problem = json.loads(lines[-1])
        kind = MissingExtraError if problem["missing"] else CheckpointError
        raise kind(problem["message"])
    end = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    raise CheckpointError(
        f"The process that loads the result ended with exit code {done.returncode}: {end[0]}"
    )


def answer(request: Request) -> Answer:
    """Do what a request asks, in this process.

    Args:
        request: The request.

    Returns:
        What was found.

    Raises:
        ForgeError: A package is missing, or the source does not load cleanly.
    """
    from forge.evaluate.divergence import compare, predict

    outputs: list[Loaded] = []
    variants: dict[int, Predictions] = {}
    tokens_BT = None
    for number, folder in enumerate(request.roots):
        root = Path(folder)
        consumer, load = consumer_of(root)
        try:
            model = load(root)
            reply = _write(model, _prompt(root))
            if request.source is not None:
                tokens_BT = (
                    _windows(root, model, request.tokens) if tokens_BT is None else tokens_BT
                )
                variants[number] = predict(model, tokens_BT)
            outputs.append(Loaded(consumer, reply=tuple(reply)))
            del model
        except MissingExtraError:
            raise
        except Exception as error:
            # Whatever a loader raises at a checkpoint is what was to be found out.
            outputs.append(Loaded(consumer, problem=problem_of(root, consumer, error)))
    if request.source is None or tokens_BT is None or not variants:
        return Answer(tuple(outputs))
    source = open_checkpoint(ModelReference(request.source))
    plain = _load_source(source)
    reference, family = predict(plain, tokens_BT), type(plain)
    del plain
    for number in list(variants):
        try:
            found = compare(reference, variants.pop(number), tokens_BT).as_json()
            outputs[number] = replace(outputs[number], divergence=found)
        except NonFiniteError as error:
            outputs[number] = replace(outputs[number], problem=str(error))
    if not request.rtn:
        return Answer(tuple(outputs))
    rounded = load_state(family, source.root, dict(_rounded(source, request)))
    return Answer(
        tuple(outputs), compare(reference, predict(rounded, tokens_BT), tokens_BT).as_json()
    )


def _load_source(source: Checkpoint) -> PreTrainedModel:
    """Load what the results were made from: by transformers, once it is in full precision."""
    from forge.quantize.model_class import generating_class, plain_config

    if isinstance(source.source, SafetensorsSource):
        return load_plain(source.root)
    family = generating_class(plain_config(source.root))
    return load_state(family, source.root, dict(_tensors(source)))


def _tensors(source: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors of a source, decoded where it must be; copies."""
    import torch

    for name in source.source.names():
        info = source.source.info(name)
        dtype = getattr(torch, DTYPES[info.dtype].torch_name)
        data = bytearray(source.source.read(name))
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        yield name, flat.view(info.shape)


def _prompt(root: Path) -> list[int]:
    from forge.evaluate.held_out import held_out_text

    return _tokenize(root, held_out_text()[:400])[:_PROMPT_TOKENS]


def _windows(root: Path, model: PreTrainedModel, limit: int) -> npt.NDArray[np.int64]:
    from forge.evaluate.held_out import WINDOW, held_out_text, windows
    from forge.runtime.context import longest_context

    length = min(WINDOW, longest_context(model) or WINDOW)
    return windows(_tokenize(root, held_out_text()), limit=limit, length=length)


def _tokenize(root: Path, text: str) -> list[int]:
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(root)(text, verbose=False).input_ids
    return ids


def _write(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    import torch

    prompt_BT = torch.tensor([prompt], device=model.device)
    generate: Any = model.generate
    output_BT = generate(
        prompt_BT,
        attention_mask=torch.ones_like(prompt_BT),
        max_new_tokens=_REPLY_TOKENS,
        min_new_tokens=_REPLY_TOKENS,
        do_sample=False,
    )
    reply: list[int] = output_BT[0, len(prompt) :].tolist()
    if len(reply) != _REPLY_TOKENS:
        raise CheckpointError(f"The model stopped after {len(reply)} of {_REPLY_TOKENS} tokens.")
    return reply


def _rounded(source: Checkpoint, request: Request) -> Iterator[tuple[str, torch.Tensor]]:
    from forge.formats.contract import Scheme

    scheme = Scheme(request.bits, request.group_size, request.symmetric)
    linears = {f"{module}.weight" for module in request.rtn}
    for name, weight in _tensors(source):
        if name in linears:
            yield name, _round(weight, scheme, transposed=request.transposed)
        else:
            yield name, weight


def _round(weight: torch.Tensor, scheme: Scheme, *, transposed: bool) -> torch.Tensor:
    import torch

    from forge.quantize.methods.rtn import dequantize, quantize_rtn

    values = weight.float().numpy()
    values_OI = np.ascontiguousarray(values.T) if transposed else values
    rounded_OI = dequantize(quantize_rtn(values_OI, scheme))
    rounded = rounded_OI.T if transposed else rounded_OI
    return torch.from_numpy(rounded.copy()).to(weight.dtype)


def main() -> int:
    """Answer the request on the command line."""
    content = json.loads(sys.argv[1])
    request = Request(**{**content, "roots": tuple(content["roots"]), "rtn": tuple(content["rtn"])})
    try:
        found = answer(request)
    except ForgeError as error:
        missing = isinstance(error, MissingExtraError)
        sys.stdout.write(json.dumps({"message": str(error), "missing": missing}) + "\n")
        return _FAILED
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
