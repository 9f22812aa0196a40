"""Load tokenizers with the ``tokenizers`` library, and turn what it raises into forge's errors.

It raises plain ``Exception`` for what it checks. For what it does not check it panics, and a
panic reaches Python as a ``BaseException`` that passes every ordinary handler. A stranger's
tokenizer can cause one while it is loaded, and also when it splits its first text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from forge.core.errors import IncompatibleError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

_PANIC: Final = "PanicException"
_SHOWN: Final = 200


def load_library(document: bytes, label: str) -> Library:
    """Return a tokenizer that runs.

    Args:
        document: A ``tokenizer.json``.
        label: Its model, for messages.

    Raises:
        IncompatibleError: The library does not load it.
    """
    from tokenizers import Tokenizer as Library

    with refusing(label):
        return Library.from_buffer(document)


@contextmanager
def refusing(label: str) -> Iterator[None]:
    """Turn what the library raises into one error.

    Args:
        label: The tokenizer's model, for messages.

    Raises:
        IncompatibleError: The library raised, or panicked.
    """
    try:
        yield
    except IncompatibleError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        raise IncompatibleError(
            f"The tokenizer of '{label}' does not work in the tokenizers library: "
            f"{str(error)[:_SHOWN]}. Repair its tokenizer.json, or take it from the model that it "
            "was made of."
        ) from error
