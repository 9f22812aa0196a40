"""A model's tensors as an adapter changes them, each computed when it is read.

No merged copy of the model ever exists: a tensor is read from the base's mapped file (or from the
adapter's, where that holds it whole), changed a block of rows at a time, and returned. What it
takes beside the result is a few blocks and the factors of that tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from forge.checkpoints.header import TensorInfo
from forge.checkpoints.lora.rows import Rows, Step, compute
from forge.checkpoints.source import SafetensorsSource, TensorSource


class Change(Protocol):
    """Something that an adapter does to one tensor."""

    @property
    def names(self) -> tuple[str, ...]:
        """The adapter's tensors that this reads."""

    def begin(self, original: Rows, adapter: SafetensorsSource) -> Step:
        """Return the step to take on each block; may read the whole tensor before."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a tensor of the result is made.

    Attributes:
        info: The result: its name, shape and type. Its place is that of ``origin``.
        origin: The base's tensor that it is made from.
        whole: The adapter's tensor that it is made from instead, or ``None``.
        changes: What is then done, in order.
    """

    info: TensorInfo
    origin: str
    whole: str | None = None
    changes: tuple[Change, ...] = ()


class AdapterSource:
    """A base's tensors with an adapter merged in on the fly. Safe to use from many threads.

    ``info`` says where the base holds a tensor; what ``read`` returns is not what lies there.

    Args:
        base: The model.
        adapter: The adapter's tensors.
        plans: Tensors that are not the base's own, by name.
        others: The adapter's further files that decide the result.
        label: What the user typed, for messages.
    """

    def __init__(
        self,
        base: TensorSource,
        adapter: SafetensorsSource,
        plans: Mapping[str, Plan],
        *,
        others: tuple[Path, ...],
        label: str,
    ) -> None:
        self._base = base
        self._adapter = adapter
        self._plans = dict(plans)
        self._others = others
        self._label = label
        known = base.names()
        self._names = (*known, *(name for name in plans if name not in set(known)))

    @property
    def label(self) -> str:
        """What the user typed, for messages."""
        return self._label

    def names(self) -> tuple[str, ...]:
        """Return all tensor names: the base's in file order, then a head that it had tied."""
        return self._names

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's metadata.

        Args:
            name: The tensor.

        Returns:
            Its type, and its shape, in which an embedding may have other rows than the base's.

        Raises:
            CheckpointError: There is no such tensor.
        """
        plan = self._plans.get(name)
        return self._base.info(name) if plan is None else plan.info

    def read(self, name: str) -> memoryview:
        """Return a tensor's bytes, the adapter merged in where it applies.

        Args:
            name: The tensor.

        Returns:
            A view of a file, or of newly computed bytes.

        Raises:
            CheckpointError: There is no such tensor, or it cannot be read.
        """
        plan = self._plans.get(name)
        if plan is None:
            return self._base.read(name)
        if plan.whole is None:
            info, data = self._base.info(plan.origin), self._base.read(plan.origin)
        else:
            info, data = self._adapter.info(plan.whole), self._adapter.read(plan.whole)
        if not plan.changes and info.dtype == plan.info.dtype:
            return data
        original = Rows(data, info.dtype, info.shape)
        steps = [change.begin(original, self._adapter) for change in plan.changes]
        return compute(original, steps, plan.info.dtype)

    def prefetch(self, name: str) -> None:
        """Tell the system that a tensor will be read soon.

        Args:
            name: The tensor.
        """
        plan = self._plans.get(name)
        if plan is None or plan.whole is None:
            self._base.prefetch(name if plan is None else plan.origin)
        else:
            self._adapter.prefetch(plan.whole)

    def files(self) -> tuple[Path, ...]:
        """Return the weight files of the base, then the adapter's weights and settings."""
        return (*self._base.files(), *self._adapter.files(), *self._others)

    def close(self) -> None:
        """Release the files of both."""
        self._base.close()
        self._adapter.close()
