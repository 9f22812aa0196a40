"""How a recipe names a model: ``path``, ``path@revision``, ``model+lora``.

The path is a folder or a Hub id; nothing here looks at the disk or the network, so the
same text always means the same reference.
"""

from __future__ import annotations

from dataclasses import dataclass

from forge.core.errors import Problem, RecipeError

_FORM = "Write a model as 'path', 'path@revision', 'model+lora' or 'model@revision+lora@revision'."


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model as a recipe names it.

    Attributes:
        path: A folder, or a Hub id such as ``BioMistral/BioMistral-7B``.
        revision: A branch, tag or commit of the Hub, or ``None``.
        lora: An adapter applied to the model before it is merged, or ``None``.
    """

    path: str
    revision: str | None = None
    lora: ModelReference | None = None

    def __lt__(self, other: ModelReference) -> bool:
        """Order by what the recipe says; a missing revision is no value to compare."""
        return str(self) < str(other)

    @classmethod
    def parse(cls, text: str) -> ModelReference:
        """Read a reference.

        Args:
            text: ``path``, ``path@revision``, ``model+lora`` or
                ``model@revision+lora@revision``. Blanks around it are ignored.

        Returns:
            The reference; ``str()`` of it parses to the same reference.

        Raises:
            RecipeError: A part is empty, or ``@`` or ``+`` occurs too often.
        """
        pieces = text.strip().split("+")
        if len(pieces) > 2:
            raise _refusal(text, "has more than one '+'")
        model = _parse_path(pieces[0], text)
        if len(pieces) == 1:
            return model
        return cls(model.path, model.revision, _parse_path(pieces[1], text))

    def __str__(self) -> str:
        text = self.path if self.revision is None else f"{self.path}@{self.revision}"
        return text if self.lora is None else f"{text}+{self.lora}"


def _parse_path(piece: str, text: str) -> ModelReference:
    path, separator, revision = (part.strip() for part in piece.partition("@"))
    if "@" in revision:
        raise _refusal(text, "has more than one '@'")
    if any(ord(character) < 32 for character in piece):
        raise _refusal(text, "holds a control character or a line break")
    if not path:
        raise _refusal(text, "names no model" if piece == text else "names no model in one part")
    if separator and not revision:
        raise _refusal(text, "has an '@' but no revision after it")
    return ModelReference(path, revision or None)


def _refusal(text: str, fault: str) -> RecipeError:
    return RecipeError([Problem(f"The model reference {text!r} {fault}. {_FORM}")])
