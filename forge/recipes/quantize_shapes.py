"""What a quantization recipe may say, as strict pydantic models, and what else people call it."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from forge.recipes.shapes import Model, Shape, Text

Words = Annotated[
    Text | list[Text] | None, Field(description="one name, or a list such as [gemm, gemv]")
]


class QuantizeShape(Shape):
    """The top level."""

    model: Model = None
    method: Text | None = Field(None, description="the name of a method, such as 'awq'")
    format: Words = None
    version: Words = None
    type: Words = None
    bits: int | None = Field(None, description="a whole number, such as 4")
    group_size: int | None = Field(None, description="a whole number, such as 128")
    double_quant: bool | None = Field(None, description="true or false")
    search: Text | None = Field(None, description="'sketch', 'gram' or 'module'")
    clip: bool | None = Field(None, description="true or false")
    duo_scaling: bool | None = Field(None, description="true or false")
    error_feedback: bool | None = Field(None, description="true or false")
    calibration: Text | dict[str, object] | None = Field(
        None, description="'self', a file, 'hub:org/name' or a mapping with 'source'"
    )
    keep: Text | list[Text] | None = Field(
        None, description="a list of modules, such as [mlp.down_proj]"
    )
    device: Text | None = Field(None, description="'cpu' or 'cuda'")
    seed: Annotated[int, Field(ge=0, lt=2**64)] = Field(
        0, description="a whole number from 0 to 2^64 - 1"
    )
    max_shard_size: Text | None = Field(None, description="a size, such as '5GB'")


class CalibrationShape(Shape):
    """``calibration``, written as a mapping."""

    source: Text | None = Field(None, description="'self', 'text', 'jsonl', 'tokens' or 'hub'")
    path: Text | None = Field(None, description="a file, or a data set such as 'org/name'")
    field: Text | None = Field(None, description="the name of a field")
    split: Text | None = Field(None, description="the name of a split, such as 'train'")
    samples: Annotated[int, Field(ge=1)] | None = Field(
        None, description="a whole number of at least 1"
    )
    tokens: Annotated[int, Field(ge=8)] | None = Field(
        None, description="a whole number of at least 8"
    )
    chat_template: bool = Field(False, description="true or false")
    prompts: list[Text] | None = Field(None, description="a list of texts")


HINTS: Final = {
    "w_bit": "Write 'bits'.",
    "wbits": "Write 'bits'.",
    "q_group_size": "Write 'group_size'.",
    "quant_method": "Write 'method'.",
    "zero_point": "Codes of awq and rtn always have zero points.",
    "sym": "Codes of awq and rtn always have zero points.",
    "load_in_4bit": "Write 'method: bnb' and 'type: nf4'.",
    "load_in_8bit": "Write 'method: bnb' and 'type: int8'.",
    "bnb_4bit_quant_type": "Write 'type'.",
    "bnb_4bit_use_double_quant": "Write 'double_quant'.",
    "modules_to_not_convert": "Write 'keep'.",
    "ignore": "Write 'keep'.",
    "base_model": "Write 'model'.",
    "calib_data": "Write 'calibration'.",
    "calibration_samples": "Write 'calibration: {samples: ...}'.",
    "calibration_tokens": "Write 'calibration: {tokens: ...}'.",
    "dataset": "Write 'calibration: hub:org/name'.",
    "n_samples": "Write 'calibration: {samples: ...}'.",
    "max_calib_samples": "Write 'calibration: {samples: ...}'.",
    "max_calib_seq_len": "Write 'calibration: {tokens: ...}'.",
    "chat_template": "Write 'calibration: {chat_template: true}'.",
    "threads": "That is an option of the command, not of a recipe.",
    "out": "That is an option of the command, not of a recipe.",
    "overwrite": "That is an option of the command, not of a recipe.",
}
"""What to do about keys of the command line and of other tools."""
