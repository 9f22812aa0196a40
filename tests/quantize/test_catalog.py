"""The catalog: instant, complete, and true to the modules it names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from forge.core.errors import IncompatibleError
from forge.formats.catalog import FORMATS, format_row, identify, load_format
from forge.formats.contract import Scheme
from forge.quantize.catalog import QUANT_METHODS, method_row

_CODES = tuple(row for row in FORMATS if row.kind == "codes")


def test_looking_up_imports_no_numpy_and_no_torch() -> None:
    code = (
        "import sys, forge.formats.catalog as catalog; catalog.format_row('gemv');"
        "print([name for name in ('numpy', 'torch', 'bitsandbytes') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_methods_name_formats_that_exist() -> None:
    for method in QUANT_METHODS:
        assert method.formats
        assert all(name in FORMATS for name in method.formats)
    fed = {name for method in QUANT_METHODS for name in method.formats}
    assert fed == set(FORMATS.names())


@pytest.mark.parametrize("row", _CODES, ids=lambda row: row.name)
def test_rows_of_codes_are_true_to_their_modules(row: object) -> None:
    known = format_row(getattr(row, "name", ""))
    layout = load_format(known.name)
    for bits in known.bits:
        for group_size in known.group_sizes:
            scheme = Scheme(bits, group_size)
            assert layout.parts((64, 256), scheme)
            assert identify(layout.quantization_config(scheme, ["lm_head"])) is known
    with pytest.raises(IncompatibleError):
        layout.parts((64, 256), Scheme(3, 32))


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: row.name)
def test_a_format_that_no_cpu_and_no_server_reads_says_so(row: object) -> None:
    known = format_row(getattr(row, "name", ""))
    is_served = any(reader.name in ("vLLM", "SGLang") for reader in known.readers)
    assert known.runs_on_cpu == is_served
    assert (known.notice is not None) == (not known.runs_on_cpu)
    if known.notice is not None:
        assert "forge convert --to gemm" in known.notice


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quant_method": "awq", "bits": 4}, "awq-gemm"),
        ({"quant_method": "awq", "version": "GEMV"}, "awq-gemv"),
        ({"quant_method": "awq", "version": "gemv_fast"}, "awq-gemv_fast"),
        ({"quant_method": "awq", "version": "marlin"}, None),
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, None),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bnb-int8"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "bnb-nf4",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bnb-fp4"),
        ({"quant_method": "bitsandbytes"}, None),
        ({"quant_method": "fp8"}, None),
        ({}, None),
    ],
)
def test_identifies_checkpoints(config: dict[str, object], name: str | None) -> None:
    row = identify(config)
    assert (None if row is None else row.name) == name


def test_misspelt_names_are_answered_with_a_guess() -> None:
    with pytest.raises(IncompatibleError, match=r"no format 'awq-gemn'\. Did you mean 'awq-gem"):
        format_row("awq-gemn")
    with pytest.raises(IncompatibleError, match=r"no format 'xyz'\. Choose from: awq-gemm, "):
        format_row("xyz")
    with pytest.raises(IncompatibleError, match=r"method 'rnt'\. Did you mean 'rtn'"):
        method_row("rnt")
    with pytest.raises(IncompatibleError, match="fixes its own codes"):
        load_format("bnb-nf4")
    assert method_row("awq").needs_calibration
