"""Measure a variant against the model that it was made from, and remember it.

Both read the same windows of the same text, one model after the other, in the same type of
arithmetic. What is already in the results file for these models, tokens and type is not computed
again; a change of one byte of either model is another key.
"""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from forge.architectures.names import architecture_of
from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.progress import Progress, Silence
from forge.core.errors import CheckpointError, EvaluationError, IncompatibleError, MissingExtraError
from forge.evaluate.held_out import WINDOW, held_out_text, windows
from forge.recipes.reference import ModelReference
from forge.results.records import DivergenceRecord, LayerError, ModelRecord, digest_of
from forge.results.store import open_results
from forge.runtime.any_model import default_dtype, load_checkpoint
from forge.runtime.subject import describe

if TYPE_CHECKING:
    from forge.evaluate.divergence import Divergence

TOKENS: Final = 4096
"""Tokens that are compared unless the user says how many."""
_VERSION: Final = 1
"""Of what is computed; part of every key."""
_MAX_TEXT_BYTES: Final = 64 << 20
_HELD_OUT: Final = "held-out"


@dataclass(frozen=True, slots=True)
class _Subject:
    checkpoint: Checkpoint
    record: ModelRecord


def measure_divergence(
    variant: str,
    against: str,
    *,
    text: Path | None = None,
    tokens: int = TOKENS,
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
    results: Path | None = None,
    progress: Progress | None = None,
) -> DivergenceRecord:
    """Compare a variant's next-token predictions, and its blocks, with its source's.

    Args:
        variant: Folder or Hub id of the variant.
        against: Folder or Hub id of the model that it was made from.
        text: UTF-8 text to compare on; ``None`` for the text that ships with forge.
        tokens: Most tokens of it to use, in windows spread over the whole text.
        device: ``cpu``, or a CUDA device.
        dtype: Type of the arithmetic of both; ``None`` for what the source is measured in.
        threads: Threads of torch; ``None`` leaves them.
        results: Results file to keep the record in, and to find it in; ``None`` for neither.
        progress: Hears what is at work.

    Returns:
        The record. ``layers`` is empty where the two have different blocks, which ``progress``
        is told.

    Raises:
        CheckpointError: A model cannot be found, is damaged, or has no tokenizer.
        IncompatibleError: The two make different tokens of the text, predict over different
            vocabularies, or do not fit into memory.
        EvaluationError: The text cannot be read, or is too short.
        NonFiniteError: A model predicts NaN or infinite logits.
        ResultsError: The results file is foreign, damaged or of another version.
        MissingExtraError: torch or transformers is not installed.
    """
    hears = progress or Silence()
    name, content = _read_text(text)
    hears.stage("Reading both models")
    pair = (_open(variant), _open(against))
    tokens_BT = _common_windows(pair, content, tokens)
    chosen = dtype or default_dtype(pair[1].checkpoint, device=device)
    tokens_digest = digest_of(
        list(tokens_BT.shape), hashlib.sha256(tokens_BT.astype("<i8").tobytes()).hexdigest()
    )
    fingerprints = [subject.record.fingerprint for subject in pair]
    key = digest_of("divergence", _VERSION, *fingerprints, tokens_digest, chosen)
    if results is not None:
        with open_results(results) as store:
            store.add_models(subject.record for subject in pair)
            known = next((found for found in store.divergences() if found.key == key), None)
        if known is not None:
            hears.notice(f"'{results}' has this comparison already; nothing is computed.")
            return known
    found, layers, num_windows = _compare(
        pair, tokens_BT, device=device, dtype=chosen, threads=threads, progress=hears
    )
    record = DivergenceRecord(
        key=key,
        variant=fingerprints[0],
        reference=fingerprints[1],
        text=name,
        tokens_digest=tokens_digest,
        dtype=chosen,
        figures=_figures(found, num_windows * tokens_BT.shape[1]),
        layers=layers,
    )
    if results is not None:
        with open_results(results) as store:
            store.add_divergence(record)
    return record


def _compare(
    pair: tuple[_Subject, _Subject],
    tokens_BT: npt.NDArray[np.int64],
    *,
    device: str,
    dtype: str,
    threads: int | None,
    progress: Progress,
) -> tuple[Divergence, tuple[LayerError, ...], int]:
    """Return predictions compared, blocks compared, and on how many windows the blocks were."""
    try:
        from forge.evaluate import layer_errors
        from forge.evaluate.divergence import compare, predict
    except ImportError as error:
        raise MissingExtraError(
            f"Running a model needs {error.name or 'torch'}. Install it with "
            "pip install 'forge[quantize]'."
        ) from error
    variant, reference = pair
    progress.stage(f"Running {reference.record.label}")
    loaded = load_checkpoint(reference.checkpoint, device=device, dtype=dtype, threads=threads)
    blocks = layer_errors.decoder_blocks(loaded.model)
    num_blocks, width = len(blocks), _width(loaded.model)
    rows = layer_errors.chosen_windows(
        len(tokens_BT),
        window_bytes=(num_blocks + 1) * tokens_BT.shape[1] * width * loaded.model.dtype.itemsize,
    )
    with layer_errors.recorded_states(blocks, rows) as states:
        expected = predict(loaded.model, tokens_BT)
    del loaded, blocks
    gc.collect()
    progress.stage(f"Running {variant.record.label}")
    loaded = load_checkpoint(variant.checkpoint, device=device, dtype=dtype, threads=threads)
    blocks = layer_errors.decoder_blocks(loaded.model)
    if (len(blocks), _width(loaded.model)) != (num_blocks, width):
        progress.notice(
            f"Blocks are not compared: {variant.record.label} has {len(blocks)} of width "
            f"{_width(loaded.model)}, {reference.record.label} {num_blocks} of width {width}."
        )
        return compare(expected, predict(loaded.model, tokens_BT), tokens_BT), (), 0
    with layer_errors.compared_states(blocks, states) as errors:
        predicted = predict(loaded.model, tokens_BT)
    return compare(expected, predicted, tokens_BT), errors.figures(), len(rows)


def _open(reference: str) -> _Subject:
    checkpoint = open_checkpoint(ModelReference.parse(reference), stored=True)
    return _Subject(checkpoint, describe(checkpoint))


def _read_text(path: Path | None) -> tuple[str, str]:
    if path is None:
        return _HELD_OUT, held_out_text()
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise EvaluationError(
                f"'{path}' is larger than {_MAX_TEXT_BYTES >> 20} MiB. A divergence needs some "
                "thousand tokens of varied text; cut a part out."
            )
        return path.name, path.read_text("utf-8")
    except OSError as error:
        raise EvaluationError(f"'{path}' cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"'{path}' is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}."
        ) from error


def _common_windows(
    pair: tuple[_Subject, _Subject], text: str, limit: int
) -> npt.NDArray[np.int64]:
    """Cut the text into windows of tokens that both models' tokenizers make of it."""
    variant, reference = pair
    made, expected = (_tokenize(subject.checkpoint, text) for subject in pair)
    if made != expected:
        at = next(
            (index for index, both in enumerate(zip(made, expected, strict=False))
             if both[0] != both[1]),
            min(len(made), len(expected)),
        )  # fmt: skip
        raise IncompatibleError(
            f"'{variant.record.label}' and '{reference.record.label}' make different tokens of "
            f"the text, first at token {at} ({_at(made, at)} and {_at(expected, at)}), so their "
            "predictions cannot be compared token by token. Compare models of one tokenizer."
        )
    sizes = [_text_config(subject.checkpoint).get("vocab_size") for subject in pair]
    if sizes[0] != sizes[1]:
        raise IncompatibleError(
            f"'{variant.record.label}' predicts over {sizes[0]} tokens and "
            f"'{reference.record.label}' over {sizes[1]}, so their distributions cannot be "
            "compared. Compare models of one vocabulary."
        )
    if len(expected) < 2:
        raise EvaluationError("The text has fewer than 2 tokens, so there is nothing to predict.")
    return windows(expected, limit=limit, length=min(WINDOW, limit, *map(_longest, pair)))


def _tokenize(checkpoint: Checkpoint, text: str) -> list[int]:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            "Running a model needs transformers. Install it with pip install 'forge[quantize]'."
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.tokenizer_root, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            f"'{checkpoint.source.label}' has no tokenizer that can be loaded. Copy tokenizer.json "
            f"and tokenizer_config.json from the original model beside the weights. ({error})"
        ) from error
    ids: list[int] = tokenizer(text, verbose=False).input_ids
    return ids


def _at(tokens: list[int], index: int) -> str:
    return str(tokens[index]) if index < len(tokens) else "nothing"


def _text_config(checkpoint: Checkpoint) -> Mapping[str, object]:
    architecture = architecture_of(checkpoint.config, tensor_names=checkpoint.source.names())
    return architecture.text_config(checkpoint.config)


def _longest(subject: _Subject) -> int:
    config, source = subject.checkpoint.config, subject.checkpoint.source
    longest = architecture_of(config, tensor_names=source.names()).num_positions(config)
    return longest if longest is not None and longest > 1 else WINDOW


def _width(model: object) -> int:
    config = model.config.get_text_config()  # type: ignore[attr-defined]
    return int(config.hidden_size)


def _figures(found: Divergence, layer_tokens: int) -> dict[str, float]:
    return {
        **{key: float(value) for key, value in found.as_json().items()},  # type: ignore[arg-type]
        "layer_tokens": float(layer_tokens),
    }
