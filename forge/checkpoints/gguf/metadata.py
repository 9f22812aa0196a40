"""Ask a GGUF's metadata for values of the types that they should have.

Most keys begin with the architecture's name (``llama.block_count``). They are named here without
it, and with a leading dot: ``.block_count``.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Final, overload

from forge.checkpoints.gguf.header import GgufHeader, Value
from forge.core.errors import CheckpointError

_MAX_WHOLE: Final = 1 << 31


class Metadata:
    """The metadata of one file.

    Args:
        header: Its header. Of a model in several files, the first says what the model is.
    """

    def __init__(self, header: GgufHeader) -> None:
        self._values: Mapping[str, Value] = header.metadata
        self.path: Path = header.path
        named = self._values.get("general.architecture")
        self.architecture = named.decode("utf-8", "replace") if isinstance(named, bytes) else ""

    def __contains__(self, key: str) -> bool:
        return self._full(key) in self._values

    def keys_under(self, *prefixes: str) -> tuple[str, ...]:
        """Return the keys that begin with one of the prefixes, in file order."""
        return tuple(key for key in self._values if key.startswith(prefixes))

    def is_list(self, key: str) -> bool:
        """Tell whether a key holds a list."""
        return isinstance(self._values.get(self._full(key)), list | array)

    def is_text(self, key: str) -> bool:
        """Tell whether a key holds a string."""
        return isinstance(self._values.get(self._full(key)), bytes)

    def wrong(self, what: str) -> CheckpointError:
        """Return an error about this file."""
        return CheckpointError(f"'{self.path}' {what}.")

    @overload
    def whole(self, key: str, default: int | None = None) -> int: ...
    @overload
    def whole(self, key: str, default: int | None = None, *, optional: bool) -> int | None: ...

    def whole(self, key: str, default: int | None = None, *, optional: bool = False) -> int | None:
        """Return a whole number from 0 to 2³¹ - 1.

        Args:
            key: The key.
            default: What a missing key means.
            optional: Whether a missing key without a default is ``None`` and no error.

        Raises:
            CheckpointError: It is missing, or not such a number.
        """
        value = self._values.get(self._full(key), default)
        if value is None and optional:
            return None
        if type(value) is not int or not 0 <= value < _MAX_WHOLE:
            raise self._not(key, value, "a whole number below 2³¹")
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        """Return a whole number of at least 1, as ``whole`` does."""
        value = self.whole(key, default)
        if value < 1:
            raise self._not(key, value, "a positive number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """Return a finite number; a float32 as the shortest decimal that rounds to it.

        Args:
            key: The key.
            default: What a missing key means.

        Raises:
            CheckpointError: It is missing, or not such a number.
        """
        value = self._values.get(self._full(key), default)
        if type(value) not in (int, float) or not math.isfinite(value):  # type: ignore[arg-type]
            raise self._not(key, value, "a finite number")
        return shortest(float(value))  # type: ignore[arg-type]

    def flag(self, key: str, default: bool | None = None) -> bool | None:
        """Return true or false, or the default when the key is missing.

        Raises:
            CheckpointError: It is neither.
        """
        value = self._values.get(self._full(key), default)
        if value is not None and type(value) is not bool:
            raise self._not(key, value, "true or false")
        return value

    def text(self, key: str) -> str:
        """Return a string.

        Raises:
            CheckpointError: It is missing, or not UTF-8 text.
        """
        value = self._values.get(self._full(key))
        if isinstance(value, bytes):
            try:
                return value.decode("utf-8")
            except UnicodeDecodeError:
                pass
        raise self._not(key, value, "text")

    def optional_text(self, key: str) -> str | None:
        """Return a string, or ``None`` when the key is missing."""
        return self.text(key) if key in self else None

    def strings(self, key: str) -> list[bytes] | None:
        """Return a list of strings, or ``None`` when the key is missing.

        Raises:
            CheckpointError: It is another value.
        """
        value = self._values.get(self._full(key))
        if value is not None and not isinstance(value, list):
            raise self._not(key, value, "a list of strings")
        return value

    def numbers(self, key: str) -> list[int] | list[float] | None:
        """Return a list of numbers, or ``None`` when the key is missing.

        Raises:
            CheckpointError: It is another value.
        """
        value = self._values.get(self._full(key))
        if value is None:
            return None
        if not isinstance(value, array):
            raise self._not(key, value, "a list of numbers")
        return value.tolist()

    def _full(self, key: str) -> str:
        return self.architecture + key if key.startswith(".") else key

    def _not(self, key: str, value: object, kind: str) -> CheckpointError:
        if value is None:
            return self.wrong(f"lacks the metadata '{self._full(key)}'")
        shown = "an array" if isinstance(value, list | array) else repr(value)[:60]
        return self.wrong(f"states {shown} for '{self._full(key)}', which must be {kind}")


def shortest(value: float) -> float:
    """Return the shortest decimal that rounds to the same float32: 1e-05, not 9.9999997e-06.

    A number that is no float32 is returned as it is.
    """
    if array("f", [value])[0] != value:
        return value
    for digits in range(1, 10):
        candidate = float(f"{value:.{digits}g}")
        if array("f", [candidate])[0] == value:
            return candidate
    return value
