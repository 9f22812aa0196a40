"""Read a model with a LoRA adapter on it as if the adapter had been merged into it.

    W' = W + s·B·A        s = alpha / r, or alpha / √r for rank-stabilized LoRA

W is [O, I], B [O, R], A [R, I] (O out, I in, R rank). For an embedding W is [V, D], and
the adapter, B [D, R] and A [R, V], is transposed, as are layers that store W as [I, O].
Each tensor is computed when it is read, so no merged copy of the model ever exists. The
product is summed in float64, so that it does not depend on how a matrix library splits
its work among threads; it is added in float32 and rounded once to the type of W.

An adapter can say far more than this. What it says and forge does not do is refused by
name; leaving it out would make a different model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeGuard

import numpy as np
import numpy.typing as npt

from forge.checkpoints.companions import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from forge.checkpoints.floats import decode, encode
from forge.checkpoints.folder import contained_file, read_json_object
from forge.checkpoints.header import TensorInfo, read_header
from forge.checkpoints.source import SafetensorsSource, TensorSource
from forge.core.catalog import did_you_mean
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError

_PREFIX: Final = "base_model.model."
_PARTS: Final = (
    (".lora_A.weight", "A", False),
    (".lora_B.weight", "B", False),
    (".lora_embedding_A", "A", True),
    (".lora_embedding_B", "B", True),
)
_BLOCK_ELEMENTS: Final = 1 << 20
_WITHOUT_EFFECT: Final = frozenset(
    {
        "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config",
        "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out",
        "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform",
        "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_config",
        "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
        "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
        "use_rslora",
    }
)  # fmt: skip
"""Keys that forge handles, or that do not change what a trained adapter means."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two factors that change one tensor."""

    a: str
    b: str
    transposed: bool


class LoraSource:
    """A base's tensors with an adapter merged in on the fly.

    ``info`` describes the base's tensor; its bytes in the file are not what ``read`` returns.

    Args:
        base: The model.
        adapter: The adapter's tensors.
        pairs: The factors by the base tensor that they change.
        scale: s of the formula.
        label: What the user typed, for messages.
    """

    def __init__(
        self,
        base: TensorSource,
        adapter: SafetensorsSource,
        pairs: Mapping[str, _Pair],
        *,
        scale: float,
        label: str,
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._pairs = dict(pairs)
        self._scale = scale
        self._label = label

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._label

    def names(self) -> tuple[str, ...]:
        """Return all tensor names of the base, in file order."""
        return self._base.names()

    def info(self, name: str) -> TensorInfo:
        """Return the metadata of the base's tensor.

        Args:
            name: The tensor.

        Returns:
            Its shape and type, which the adapter does not change.

        Raises:
            CheckpointError: There is no such tensor.
        """
        return self._base.info(name)

    def read(self, name: str) -> memoryview:
        """Return a tensor's bytes, the adapter merged in where it applies.

        Args:
            name: The tensor.

        Returns:
            A view of the base's file, or of newly computed bytes.

        Raises:
            CheckpointError: There is no such tensor, or it cannot be read.
        """
        data = self._base.read(name)
        pair = self._pairs.get(name)
        return data if pair is None else self._merge(data, self._base.info(name), pair)

    def prefetch(self, name: str) -> None:
        """Tell the system that the base's tensor will be read soon.

        Args:
            name: The tensor.
        """
        self._base.prefetch(name)

    def files(self) -> tuple[Path, ...]:
        """Return the weight files of the base, then the adapter's."""
        return self._base.files() + self._adapter.files()

    def close(self) -> None:
        """Release the files of both."""
        self._base.close()
        self._adapter.close()

    def _merge(self, data: memoryview, tensor: TensorInfo, pair: _Pair) -> memoryview:
        left_OR, right_RI = self._factor(pair.b), self._factor(pair.a)
        if pair.transposed:
            left_OR, right_RI = right_RI.T, left_OR.T
        rows, columns = tensor.shape
        base_OI = decode(data, tensor.dtype).reshape(rows, columns)
        merged_OI = np.empty(
            (rows, columns), encode(np.zeros(1, base_OI.dtype), tensor.dtype).dtype
        )
        step = max(1, _BLOCK_ELEMENTS // max(1, columns))
        for begin in range(0, rows, step):
            block = slice(begin, begin + step)
            delta_OI = self._scale * (left_OR[block] @ right_RI)
            total_OI = base_OI[block] + delta_OI.astype(base_OI.dtype)
            merged_OI[block] = encode(total_OI, tensor.dtype)
        return merged_OI.reshape(-1).view(np.uint8).data.toreadonly()

    def _factor(self, name: str) -> npt.NDArray[np.float64]:
        tensor = self._adapter.info(name)
        values = decode(self._adapter.read(name), tensor.dtype)
        return values.reshape(tensor.shape).astype(np.float64)


def open_lora(base: TensorSource, root: Path, *, label: str) -> LoraSource:
    """Put an adapter in PEFT's layout on a model.

    Args:
        base: The model.
        root: The adapter's folder, with ``adapter_config.json`` and ``adapter_model.safetensors``.
        label: What the user typed for both, for messages.

    Returns:
        The model as the adapter changes it.

    Raises:
        CheckpointError: The adapter is incomplete, uses something that forge does not do, or does
            not fit the model.
    """
    config = read_json_object(root, ADAPTER_CONFIG_FILE)
    weights = contained_file(root, ADAPTER_WEIGHTS_FILE)
    if config is None or weights is None:
        absent = ADAPTER_CONFIG_FILE if config is None else ADAPTER_WEIGHTS_FILE
        raise CheckpointError(f"The adapter of '{label}' has no {absent} in '{root}'.")
    _refuse_unsupported(config, root)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not _is_number(alpha):
        raise CheckpointError(f"'{root / ADAPTER_CONFIG_FILE}' has no valid r and lora_alpha.")
    adapter = SafetensorsSource(str(root), {weights: read_header(weights)})
    transposed = config.get("fan_in_fan_out") is True
    pairs = _pair_up(base, adapter, rank=rank, transposed=transposed)
    divisor = math.sqrt(rank) if config.get("use_rslora") is True else rank
    return LoraSource(base, adapter, pairs, scale=alpha / divisor, label=label)


def _is_number(value: object) -> TypeGuard[int | float]:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _refuse_unsupported(config: Mapping[str, object], root: Path) -> None:
    def refuse(what: str) -> CheckpointError:
        return CheckpointError(
            f"The adapter '{root}' uses {what}, which forge does not merge. "
            "Merge it with PEFT (merge_and_unload) and use the result as the model."
        )

    if config.get("peft_type") != "LORA":
        raise refuse(f"peft_type {config.get('peft_type')!r}")
    if config.get("bias", "none") != "none":
        raise refuse(f"bias {config.get('bias')!r}")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(("pissa", "olora", "corda", "loftq")):
        # These also change the base before training; its own weights are not what was trained on.
        raise refuse(f"init_lora_weights {start!r}")
    for pattern in ("rank_pattern", "alpha_pattern"):
        if config.get(pattern):
            raise refuse(f"a {pattern}")
    for key, value in config.items():
        if value and key not in _WITHOUT_EFFECT:
            raise refuse(f"{key} = {str(value)[:60]}")


def _pair_up(
    base: TensorSource, adapter: SafetensorsSource, *, rank: int, transposed: bool
) -> dict[str, _Pair]:
    factors: dict[str, dict[str, str]] = {}
    flipped: dict[str, bool] = {}
    for name in adapter.names():
        target, part, is_embedding = _target_of(name, adapter.label)
        if part in factors.setdefault(target, {}):
            raise CheckpointError(f"The adapter '{adapter.label}' changes '{target}' twice.")
        factors[target][part] = name
        flipped[target] = is_embedding or transposed
    if not factors:
        raise CheckpointError(f"The adapter '{adapter.label}' holds no tensors.")
    known = set(base.names())
    pairs: dict[str, _Pair] = {}
    for target, parts in factors.items():
        if target not in known:
            raise CheckpointError(
                f"The adapter '{adapter.label}' changes '{target}', which '{base.label}' does not "
                f"have.{did_you_mean(target, known)} Is it an adapter of another model?"
            )
        if len(parts) != 2:
            raise CheckpointError(
                f"The adapter '{adapter.label}' has only one of the two factors of '{target}'."
            )
        pairs[target] = _Pair(parts["A"], parts["B"], flipped[target])
        _check_shapes(base.info(target), adapter, pairs[target], rank=rank)
    return pairs


def _target_of(name: str, label: str) -> tuple[str, str, bool]:
    for suffix, part, is_embedding in _PARTS:
        if name.startswith(_PREFIX) and name.endswith(suffix):
            return name[len(_PREFIX) : -len(suffix)] + ".weight", part, is_embedding
    raise CheckpointError(
        f"The adapter '{label}' holds '{name}', which is not a factor of a LoRA on a weight."
    )


def _check_shapes(
    tensor: TensorInfo, adapter: SafetensorsSource, pair: _Pair, *, rank: int
) -> None:
    a, b = adapter.info(pair.a), adapter.info(pair.b)
    for factor in (tensor, a, b):
        if not DTYPES[factor.dtype].mergeable:
            raise CheckpointError(
                f"'{factor.name}' is {factor.dtype}; a LoRA needs ordinary floating-point weights."
            )
    if len(tensor.shape) != 2:
        raise CheckpointError(
            f"The adapter '{adapter.label}' changes '{tensor.name}' of shape "
            f"{list(tensor.shape)}; forge merges adapters of matrices only."
        )
    outer, inner = reversed(tensor.shape) if pair.transposed else tensor.shape
    if a.shape != (rank, inner) or b.shape != (outer, rank):
        raise CheckpointError(
            f"The adapter '{adapter.label}' does not fit '{tensor.name}' {list(tensor.shape)}: "
            f"A is {list(a.shape)} and B {list(b.shape)}, with r = {rank}."
        )
