"""What each level of a merge recipe may say, as strict pydantic models.

Every level is a flat model: its inner levels stay plain values and are fitted on their own,
so that one wrong key hides nothing that stands beside or below it. A field's description
completes the sentence "... must be".
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from forge.recipes.findings import Findings, shown
from forge.recipes.place import KeyPath

_MODEL_FORM: Final = "a model, such as 'org/name', 'org/name@revision' or 'org/name+adapter'"
_HABITS: Final = {
    "base": "base_model",
    "method": "merge_method",
    "random_seed": "seed",
    "torch_dtype": "dtype",
    "shard_size": "max_shard_size",
    "range": "layer_range",
    "layers": "layer_range",
}

Text = Annotated[str, Field(min_length=1)]
Model = Annotated[Text | None, Field(description=_MODEL_FORM)]
Levels = Annotated[
    dict[str, object] | None, Field(description="a mapping from parameter names to values")
]


class Shape(BaseModel):
    """A level of a recipe: known keys, exact types, ``None`` for what is absent."""

    # Most recipes use two or three of the levels, and building one takes half a millisecond.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)


class RecipeShape(Shape):
    """The top level."""

    merge_method: Text | None = Field(None, description="the name of a method, such as 'ties'")
    base_model: Model = None
    models: list[object] | None = Field(None, description="a list of '- model: ...' items")
    slices: list[object] | None = Field(None, description="a list of '- sources: ...' items")
    modules: dict[str, object] | None = Field(None, description="a mapping with one module")
    parameters: Levels = None
    dtype: Text | None = Field(None, description="an element type, such as 'bfloat16'")
    out_dtype: Text | None = Field(None, description="an element type, such as 'bfloat16'")
    tokenizer_source: Text | None = Field(None, description="'union', 'base' or a model")
    tokenizer: dict[str, object] | None = Field(None, description="a mapping with a 'source'")
    chat_template: Text | None = Field(None, description="'auto', a name or a Jinja template")
    name: Text | None = Field(None, description="text that names the result")
    seed: Annotated[int, Field(ge=0, lt=2**64)] = Field(
        0, description="a whole number from 0 to 2^64 - 1"
    )
    allow_nonfinite: bool = Field(False, description="true or false")
    max_shard_size: Text | None = Field(None, description="a size, such as '5GB'")


class ModuleShape(Shape):
    """The one item of ``modules``."""

    models: list[object] | None = Field(None, description="a list of '- model: ...' items")
    slices: list[object] | None = Field(None, description="a list of '- sources: ...' items")
    parameters: Levels = None


class ModelShape(Shape):
    """An item of ``models``."""

    model: Model = None
    statistics: Text | None = Field(
        None, description="the folder that 'forge calibrate MODEL --statistics' made"
    )
    parameters: Levels = None


class SliceShape(Shape):
    """An item of ``slices``."""

    sources: list[object] | None = Field(None, description="a list of '- model: ...' items")
    merge_method: Text | None = Field(None, description="the name of a method, such as 'slerp'")
    base_model: Model = None
    residual_weight: float | int | None = Field(None, description="a number")
    parameters: Levels = None


class SourceShape(Shape):
    """An item of ``sources``."""

    model: Model = None
    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        None, description="two whole numbers, such as [0, 32]"
    )
    parameters: Levels = None


class ConditionShape(Shape):
    """A value for the tensors that a filter picks."""

    filter: Text | None = Field(None, description="text that occurs in names of tensors, or '*'")
    value: object = None


class TokenizerShape(Shape):
    """``tokenizer``."""

    source: Text | None = Field(None, description="'union', 'base' or a model")
    tokens: dict[str, object] | None = Field(None, description="a mapping from tokens to sources")
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = Field(
        None, description="a whole number above 0"
    )


class TokenShape(Shape):
    """An item of ``tokens``."""

    source: Text | dict[str, object] | None = Field(
        None, description="a model or a mapping with 'kind'"
    )
    force: bool = Field(False, description="true or false")


class TokenSourceShape(Shape):
    """``source`` of a token, written as a mapping."""

    kind: Literal["model_token", "zero"] | None = Field(None, description="'model_token' or 'zero'")
    model: Model = None
    token: Text | None = Field(None, description="the text of a token")
    token_id: Annotated[int, Field(ge=0)] | None = Field(None, description="a whole number")


ShapeT = TypeVar("ShapeT", bound=Shape)


def fit(
    shape: type[ShapeT],
    value: object,
    path: KeyPath,
    findings: Findings,
    *,
    hints: dict[str, str] | None = None,
) -> ShapeT:
    """Fit a value into a shape and report what does not fit.

    Args:
        shape: The level that the value should be.
        value: A plain value.
        path: Where it stands.
        findings: Receives a problem for each key that is unknown or of a wrong type.
        hints: What to do about certain unknown keys.

    Returns:
        The shape with all keys that do fit; the others are as if absent.
    """
    if not isinstance(value, dict):
        keys = ", ".join(shape.model_fields)
        findings.add(path, f"{shown(value)} must be a mapping with some of the keys {keys}.")
        return shape()
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        wrong = dict.fromkeys(str(part["loc"][0]) for part in error.errors())
    for key in wrong:
        findings.add((*path, key), _fault(shape, (*path, key), value[key], hints or {}, findings))
    return shape.model_validate({key: item for key, item in value.items() if key not in wrong})


def _fault(
    shape: type[Shape], path: KeyPath, value: object, hints: dict[str, str], findings: Findings
) -> str:
    key = str(path[-1])
    field = shape.model_fields.get(key)
    if field is None:
        known = ", ".join(shape.model_fields)
        if key in hints:
            return f"Unknown key. {hints[key]} Known here: {known}."
        meant = (*path[:-1], _HABITS.get(key, key))
        return f"Unknown key.{findings.guess(meant, shape.model_fields)} Known here: {known}."
    message = f"{shown(value)} must be {field.description}."
    if isinstance(value, (bool, int, float)) and "'" in (field.description or ""):
        message += " Put it in quotes if it is meant as text."
    return message
