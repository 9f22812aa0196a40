"""What each level of a suite's YAML may say, as strict pydantic models."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from forge.recipes.shapes import Shape, Text

_FILE: Final = "the name of a file, such as 'anatomy.test.jsonl'"
_COLUMN: Final = "the name of a column"

Column = Annotated[Text | None, Field(description=_COLUMN)]
File = Annotated[Text | None, Field(description=_FILE)]
Piece = Annotated[str | None, Field(description="text")]


class SuiteShape(Shape):
    """The top level."""

    title: Text | None = Field(None, description="text that names the suite")
    description: Text | None = Field(None, description="text")
    reference: Text | None = Field(None, description="text, such as 'arXiv:2402.10373'")
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(
        None, description="a list of whole numbers, such as [1, 2, 3]"
    )
    sample_seed: Annotated[int, Field(ge=0)] = Field(0, description="a whole number from 0")
    examples: File = None
    prompts: dict[str, object] | None = Field(None, description="a mapping from names to prompts")
    columns: dict[str, object] | None = Field(None, description="a mapping from names to columns")
    tasks: list[object] | None = Field(None, description="a list of '- name: ...' items")


class PromptShape(Shape):
    """A value of ``prompts``."""

    instruction: Piece = None
    question: Piece = None
    context: Piece = None
    between_passages: Piece = None
    option: Piece = None
    between_options: Piece = None
    cue: Piece = None
    answer: Piece = None
    between_examples: Piece = None


class ColumnsShape(Shape):
    """A value of ``columns``."""

    question: Column = None
    context: Column = None
    options: Text | list[Text] | None = Field(
        None, description="the name of a column, or a list with one an option"
    )
    fixed_options: list[Text] | None = Field(
        None, description="a list of texts in quotes, such as ['yes', 'no', 'maybe']"
    )
    answer: Column = None
    answer_is: Literal["index", "index_from_1", "letter", "text"] = Field(
        "index", description="'index', 'index_from_1', 'letter' or 'text'"
    )
    right: Column = None
    wrong: Column = None
    reference: Column = None
    id: Column = None
    label: Column = None
    cluster: Column = None


class TaskShape(Shape):
    """An item of ``tasks``."""

    name: Text | None = Field(None, description="text, such as 'mmlu_anatomy'")
    title: Text | None = Field(None, description="text")
    kind: Literal["choice", "text"] = Field("choice", description="'choice' or 'text'")
    shots: Annotated[int, Field(ge=0, le=64)] = Field(0, description="a whole number from 0 to 64")
    group: Text | None = Field(None, description="text")
    subject: Text | None = Field(None, description="text, such as 'anatomy'")
    prompt: Text | None = Field(None, description="a name under 'prompts'")
    columns: Text | None = Field(None, description="a name under 'columns'")
    data: dict[str, object] | None = Field(None, description="a mapping with 'hub' or 'beside'")
    pool: dict[str, object] | None = Field(None, description="a mapping with 'hub' or 'beside'")
    pool_columns: Text | None = Field(None, description="a name under 'columns'")
    examples_of: Text | None = Field(None, description="a task in the file of 'examples'")
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = Field(
        256, description="a whole number from 1 to 4096"
    )
    stop: list[Text] | None = Field(None, description="a list of texts")
    licence: Text | None = Field(None, description="text, such as 'MIT'")


class SourceShape(Shape):
    """``data`` or ``pool``."""

    hub: Text | None = Field(None, description="a data set, such as 'cais/mmlu'")
    config: Text | None = Field(None, description="a subset of the data set, such as 'anatomy'")
    split: Text = Field("test", description="the name of a split, such as 'test'")
    archive: File = None
    member: File = None
    file: File = None
    beside: File = None
    where: dict[str, object] | None = Field(
        None, description="a mapping from columns to the text, or list of texts, that they hold"
    )
    only_ids: File = None
    except_ids: File = None
