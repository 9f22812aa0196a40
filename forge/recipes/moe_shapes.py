"""What each level of a recipe for a mixture of experts may say, as strict pydantic models."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from forge.recipes.shapes import Model, Shape, Text

Prompts = Annotated[list[object] | None, Field(description="a list of prompts, each a text")]


class MoeShape(Shape):
    """The top level."""

    base_model: Model = None
    gate_mode: Text | None = Field(None, description="'hidden', 'cheap_embed' or 'random'")
    dtype: Text | None = Field(None, description="an element type, such as 'bfloat16'")
    experts_per_token: int | None = Field(None, description="a whole number above 0")
    experts: list[object] | None = Field(None, description="a list of '- source_model: ...' items")
    shared_experts: list[object] | None = Field(
        None, description="a list of '- source_model: ...' items"
    )
    architecture: Text | None = Field(None, description="a family, such as 'mixtral'")
    name: Text | None = Field(None, description="text that names the result")
    seed: Annotated[int, Field(ge=0, lt=2**64)] = Field(
        0, description="a whole number from 0 to 2^64 - 1"
    )
    max_shard_size: Text | None = Field(None, description="a size, such as '5GB'")


class ExpertShape(Shape):
    """An item of ``experts`` or ``shared_experts``."""

    source_model: Model = None
    positive_prompts: Prompts = None
    negative_prompts: Prompts = None
    residual_scale: float | int | None = Field(None, description="a number")
