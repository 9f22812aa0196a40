"""One row's trial: what the table in ``docs/architectures.md`` says of it was done here.

Nothing is taken from forge that it could be wrong about in the same way: merges are compared with
the float64 references, packed weights are unpacked by a few lines of numpy (and by bitsandbytes),
and what they should compute is what transformers computes from the unpacked ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors.torch import load_file, save_file

from forge import runtime
from forge.cli.app import run
from forge.merge.plan import random_stream
from forge.runtime.generation import generate, load_tokenizer
from tests.architectures.rows import BASE, FIRST, ROWS, SECOND, Row, write_row
from tests.factory import bf16_values
from tests.merge.operands import encode, steps_apart
from tests.reference import methods as reference
from tests.reference.philox import uniforms

WEIGHTS = "model.safetensors"
_WEIGHTS, _DENSITY, _SEED, _T = (0.6, 0.4), 0.5, 7, 0.35
_DARE = f"""\
merge_method: dare_ties
base_model: ./{BASE}
seed: {_SEED}
models:
  - model: ./{FIRST}
    parameters: {{density: {_DENSITY}, weight: {_WEIGHTS[0]}}}
  - model: ./{SECOND}
    parameters: {{density: {_DENSITY}, weight: {_WEIGHTS[1]}}}
"""
_SLERP = f"""\
merge_method: slerp
base_model: ./{FIRST}
models:
  - model: ./{FIRST}
  - model: ./{SECOND}
parameters: {{t: {_T}}}
"""
_NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs each nibble of AWQ's words holds, from the lowest."""
_TRANSPOSED = ("gpt2",)

Bits = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Trial:
    """What was found out about a row, as the cells of its line."""

    merge: str
    quantize: str
    runs: str
    round_trips: str

    def line(self, row: Row) -> str:
        """Return the row's line of the table."""
        cells = (
            row.title, f"`{row.family}`", self.merge, self.quantize, self.runs, self.round_trips,
        )  # fmt: skip
        return f"| {' | '.join(cells)} |"


def trial_of(title: str, folder: Path) -> Trial:
    """Merge, quantize, run and convert a row's models; an assertion says what does not hold.

    Args:
        title: The row.
        folder: Where to; it is empty.
    """
    row = ROWS[title]
    write_row(title, folder)
    with contextlib.chdir(folder):
        return _trial(row, folder)


def _trial(row: Row, folder: Path) -> Trial:
    num_carried = _merges(folder)
    merged = "yes" if not num_carried else "the language model; its other parts are carried over"
    if row.refusal is not None:
        _is_refused(row.refusal, folder)
        reason = f"no: {row.reason}"
        return Trial(merged, reason, "yes, in full precision", "there is nothing to convert")
    _quantizes(row, folder)
    _runs(row, folder)
    _converts(folder)
    kept = " with the experts in full precision" if row.keep else ""
    return Trial(merged, f"AWQ; NF4{kept}", "yes", "yes")


def call(*arguments: str | Path) -> None:
    """Run a command of forge that must succeed."""
    assert run([str(argument) for argument in arguments]) == 0, arguments


def _merges(folder: Path) -> int:
    """Compare two merges with their references; return how many tensors were carried over."""
    models = {name: _bits(folder / name) for name in (BASE, FIRST, SECOND)}
    counts = []
    for name, text, expect in (("dare", _DARE, _expect_dare), ("slerp", _SLERP, _expect_slerp)):
        recipe = folder / f"{name}.yaml"
        recipe.write_text(text)
        call("merge", recipe, "--out", folder / name, "--threads", "1", "--quiet")
        manifest = json.loads((folder / name / "forge_manifest.json").read_text())["tensors"]
        merged = _bits(folder / name)
        assert merged.keys() == models[BASE].keys()
        carried = {key for key in merged if manifest[key]["method"] == "carried"}
        for key in carried:
            assert merged[key].tobytes() == models[BASE][key].tobytes()
        for key in _one_of_each_kind(set(merged) - carried):
            inputs = [bf16_values(models[each][key]).astype(np.float64) for each in models]
            expected = encode(expect(key, *inputs), "BF16")
            steps = steps_apart(merged[key], expected)
            # Where sums cancel, one float32 rounding is many small bfloat16 steps.
            near = np.abs(bf16_values(merged[key]) - bf16_values(expected)) < 1e-6
            assert ((steps <= 1) | near).all(), key
            assert (steps == 0).mean() > 0.99, key
        counts.append(len(carried))
        _runs_plain(folder / name)
    return counts[0]


def _expect_dare(
    name: str, base: npt.NDArray[np.float64], *tunes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    streams = [random_stream(_SEED, each, name) for each in (FIRST, SECOND)]
    draws = [
        uniforms(base.size, key=stream.key, stream=stream.stream).reshape(base.shape)
        for stream in streams
    ]
    return reference.dare_ties(
        base, tunes, weights=_WEIGHTS, densities=(_DENSITY, _DENSITY), uniforms=draws
    )


def _expect_slerp(
    name: str, base: npt.NDArray[np.float64], *tunes: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    return reference.slerp(*tunes, t=_T)


def _one_of_each_kind(names: set[str]) -> list[str]:
    """Return one tensor of each name but for numbers: the last layer's, the last expert's."""
    kinds = {".".join(p for p in name.split(".") if not p.isdecimal()): name for name in
             sorted(names)}  # fmt: skip
    return list(kinds.values())


def _bits(folder: Path) -> dict[str, Bits]:
    return {
        name: tensor.view(torch.uint16).numpy()
        for name, tensor in load_file(folder / WEIGHTS).items()
        if tensor.dtype == torch.bfloat16
    }


def _load(folder: Path) -> transformers.PreTrainedModel:
    """Load with transformers alone, which must miss nothing and find nothing unknown."""
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, report = getattr(transformers, kind).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def _logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    ids = torch.arange(5, 5 + 24)[None] % 80
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert torch.isfinite(logits).all()
    return logits


def _runs_plain(folder: Path) -> None:
    """Check that forge computes from a merge what transformers does."""
    expected = _logits(_load(folder))
    found = _logits(runtime.load(folder, dtype="float32", threads=1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def _is_refused(words: str, folder: Path) -> None:
    for method in ("awq", "rtn", "bnb"):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = run(["quantize", str(folder / "dare"), "--method", method, "--out", "refused"])
        assert code == 2
        assert words in said.getvalue()
        assert not (folder / "refused").exists()


def _quantizes(row: Row, folder: Path) -> None:
    common = ("--threads", "1", "--verify", "quick", "--quiet")
    call(
        "quantize", folder / "dare", "--method", "awq", "--version", "gemm", "--group-size", "32",
        "--calibration", "self", "--calibration-samples", "8", "--calibration-tokens", "32",
        "--out", folder / "awq", *common,
    )  # fmt: skip
    keep = ("--keep", ",".join(row.keep)) if row.keep else ()
    call(
        "quantize", folder / "dare", "--method", "bnb", "--type", "nf4", *keep,
        "--out", folder / "nf4", *common,
    )  # fmt: skip


def _runs(row: Row, folder: Path) -> None:
    original = _logits(_load(folder / "dare"))
    for name, unpack in (("awq", _unpack_awq), ("nf4", _unpack_nf4)):
        tensors = unpack(load_file(folder / name / WEIGHTS), row.family in _TRANSPOSED)
        dense = folder / f"{name}-dense"
        shutil.copytree(folder / name, dense)
        save_file(tensors, dense / WEIGHTS, {"format": "pt"})
        config = json.loads((dense / "config.json").read_text())
        assert config.pop("quantization_config")
        (dense / "config.json").write_text(json.dumps(config))
        expected = _logits(_load(dense))
        model = runtime.load(folder / name, dtype="float32", threads=1)
        error = torch.linalg.norm(_logits(model) - expected) / torch.linalg.norm(expected)
        assert error < 1e-4, (name, float(error))
        # Four bits of random weights are far from them, and not as far as any other model is.
        assert 0 < torch.linalg.norm(expected - original) / torch.linalg.norm(original) < 0.9, name
        reply = generate(model, load_tokenizer(model), "A dose", max_new_tokens=4)
        assert reply.tokens >= 1


def _unpack_awq(tensors: dict[str, torch.Tensor], transposed: bool) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors, float32, with AWQ's codes turned into weights."""
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            codes_IO, zeros_GO = _nibbles(tensor), _nibbles(tensors[f"{module}.qzeros"])
            scales_GO = tensors[f"{module}.scales"].float().numpy()
            group = codes_IO.shape[0] // scales_GO.shape[0]
            wide = np.repeat(np.stack([zeros_GO.astype(np.float32), scales_GO]), group, axis=1)
            weight_IO = torch.from_numpy((codes_IO - wide[0]) * wide[1])
            found[f"{module}.weight"] = (weight_IO if transposed else weight_IO.T).contiguous()
        elif part not in ("qzeros", "scales"):
            found[name] = tensor.float()
    return found


def _nibbles(words: torch.Tensor) -> npt.NDArray[np.int32]:
    packed = words.numpy()
    values = np.empty((packed.shape[0], packed.shape[1], 8), np.int32)
    for place, output in enumerate(_NIBBLES):
        values[:, :, output] = (packed >> (4 * place)) & 15
    return values.reshape(packed.shape[0], -1)


def _unpack_nf4(tensors: dict[str, torch.Tensor], transposed: bool) -> dict[str, torch.Tensor]:
    """Return a checkpoint's tensors, float32, with NF4's codes turned into weights."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    modules = {
        name.removesuffix(".weight.absmax") for name in tensors if name.endswith(".weight.absmax")
    }
    found: dict[str, torch.Tensor] = {}
    for module in modules:
        start = f"{module}.weight"
        parts = {name: row for name, row in tensors.items() if name.startswith(f"{start}.")}
        state = QuantState.from_dict({k.removeprefix(f"{start}."): v for k, v in parts.items()},
                                     device=torch.device("cpu"))  # fmt: skip
        state.dtype = torch.float32  # forge does not round the weights once more, to bfloat16
        weight_OI = dequantize_4bit(tensors[start], state)
        found[start] = (weight_OI.T if transposed else weight_OI).contiguous()
    for name, tensor in tensors.items():
        if not any(name.startswith(f"{module}.weight") for module in modules):
            found[name] = tensor.float()
    return found


def _converts(folder: Path) -> None:
    """Convert to another layout and back: every tensor must be the same bytes again."""
    call("convert", folder / "awq", "--to", "gemv", "--out", folder / "gemv", "--quiet")
    call("convert", folder / "gemv", "--to", "gemm", "--out", folder / "back", "--quiet")
    before, after = (load_file(folder / name / WEIGHTS) for name in ("awq", "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name
    between = load_file(folder / "gemv" / WEIGHTS)
    codes = next(name for name in before if name.endswith(".qweight"))
    assert between[codes].shape != before[codes].shape or not torch.equal(
        between[codes], before[codes]
    )
