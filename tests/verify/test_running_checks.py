"""Loading in a fresh process, comparing predictions, and what becomes of the answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from forge import runtime
from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.manifest_reader import read_manifest
from forge.core.errors import CheckpointError, MissingExtraError
from forge.recipes.reference import ModelReference
from forge.verify import running_checks
from forge.verify.fresh_load import Answer, Loaded, Request, answer, load_in_fresh_process
from forge.verify.quantized import QuantizedReport, verify_quantized
from forge.verify.verification import verify, verify_made
from tests.architectures.rows import write_row
from tests.factory import tiny_checkpoint
from tests.verify.published import edit_manifest
from tests.verify.quantized_outputs import make_source, quantize


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("running")
    # 128 inputs, not 96: bitsandbytes' CPU kernels fail where blocks of 64 cross rows.
    tiny_checkpoint(root / "source", hidden=64)
    quantize(root / "source", root / "rtn", "awq-gemm")
    quantize(root / "source", root / "nf4", "bnb-nf4")
    shutil.copytree(root / "rtn", root / "awq")

    def claim(manifest: dict[str, object]) -> None:
        recipe = manifest["recipe"]
        assert isinstance(recipe, dict)
        recipe["method"] = "awq"

    edit_manifest(root / "awq", claim)
    return root


def open_source(place: Path) -> Checkpoint:
    return open_checkpoint(ModelReference.parse(str(place / "source")))


def figures(mean: float) -> dict[str, object]:
    return {"mean": mean, "same_top_share": 0.5, "perplexity_ratio": 1.5, "num_positions": 8}


def report_on(
    root: Path,
    source: Checkpoint | None,
    monkeypatch: pytest.MonkeyPatch,
    reply: Answer | Exception,
) -> tuple[QuantizedReport, list[Request]]:
    """Check a folder, with the process's answer given."""
    asked: list[Request] = []

    def pretend(request: Request) -> Answer:
        asked.append(request)
        if isinstance(reply, Exception):
            raise reply
        return reply

    monkeypatch.setattr(running_checks, "load_in_fresh_process", pretend)
    manifest = read_manifest(root)
    assert manifest is not None
    return verify_quantized({root: manifest}, source)[0], asked


def states(report: QuantizedReport) -> list[str]:
    return [check.state for check in report.checks[3:]]


@pytest.mark.parametrize(
    ("mean", "rounded", "fault"),
    [
        (0.1, 0.2, None),
        (0.2, 0.2, "the calibration did harm"),
        (0.3, 0.2, "rounding to nearest by 0.2000: the calibration did harm"),
        (1.6, 1.7, "no quantization that works exceeds 1.5"),
    ],
)
def test_a_calibrated_model_must_beat_rounding_to_nearest(
    mean: float, rounded: float, fault: str | None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = Answer((Loaded("x", None, (1, 2), figures(mean)),), figures(rounded))
    report, asked = report_on(place / "awq", open_source(place), monkeypatch, reply)
    assert states(report) == ["passed", "passed" if fault is None else "failed"]
    assert report.ok == (fault is None)
    assert fault is None or fault in report.findings[0].message
    assert "rounding to nearest has KL 0.2000" in report.checks[4].summary or rounded != 0.2
    assert len(asked[0].rtn) == 14
    assert (asked[0].bits, asked[0].group_size, asked[0].symmetric) == (4, 32, False)


@pytest.mark.parametrize(("name", "why"), [("rtn", "is rounding to nearest itself"),
                                           ("nf4", "bnb-nf4 fixes its own codes")])  # fmt: skip
def test_what_has_no_other_rounding_is_not_compared_with_it(
    name: str, why: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = Answer((Loaded("x", None, (1, 2), figures(0.1)),))
    report, asked = report_on(place / name, open_source(place), monkeypatch, reply)
    assert report.ok
    assert why in report.checks[4].summary
    assert asked[0].rtn == ()


def test_a_model_that_does_not_load_fails(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(place)
    reply = Answer((Loaded("x", "ValueError: no such layer"),))
    report, _ = report_on(place / "rtn", source, monkeypatch, reply)
    assert states(report) == ["failed", "skipped"]
    assert [finding.message for finding in report.findings] == ["ValueError: no such layer"]
    report, _ = report_on(place / "rtn", source, monkeypatch, CheckpointError("exit code -9"))
    assert states(report) == ["failed", "skipped"]
    assert not report.ok


def test_a_missing_package_is_said_and_is_no_fault(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = MissingExtraError("torch is not installed. Run: pip install 'forge[quantize]'")
    report, _ = report_on(place / "rtn", open_source(place), monkeypatch, error)
    assert states(report) == ["skipped", "skipped"]
    assert "pip install 'forge[quantize]'" in report.checks[3].summary
    assert report.ok


def test_without_a_source_it_is_loaded_only(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, asked = report_on(place / "rtn", None, monkeypatch, Answer((Loaded("x"),)))
    assert states(report) == ["passed", "skipped"]
    assert asked[0].source is None
    assert report.checks[4].summary == "needs the source: --against SOURCE"


def test_a_source_too_large_for_the_memory_is_not_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running_checks, "available_memory", lambda: 512_000_000)
    reply = Answer((Loaded("x"),))
    report, asked = report_on(place / "awq", open_source(place), monkeypatch, reply)
    assert asked[0].source is None
    assert report.checks[4].summary.startswith("needs 1.1 GB of memory for the source, and 0.5 GB")


@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral"])
def test_rounding_in_memory_is_what_a_rounded_checkpoint_predicts(
    case: str, tmp_path: Path
) -> None:
    """Two ways to the same model: packed by forge and run by it, rounded and run by transformers.

    gpt2 stores its weights transposed; of mixtral transformers makes one tensor of all experts.
    """
    source = make_source(tmp_path / "source", case, dtype=torch.float32)
    out = quantize(source, tmp_path / "out", "awq-gemm", group_size=16)
    manifest = json.loads((out / "forge_manifest.json").read_text())
    request = Request(
        (str(out),), str(source), 128, rtn=tuple(manifest["modules"]), group_size=16,
        transposed=case == "gpt2",
    )  # fmt: skip
    found = answer(request)
    packed, rounded = found.outputs[0].divergence, found.rtn_divergence
    assert found.outputs[0].problem is None
    assert packed is not None
    assert rounded is not None
    assert packed["num_positions"] == 2 * 63
    mean = packed["mean"]
    assert isinstance(mean, float)
    assert mean > 1e-4
    assert mean == pytest.approx(rounded["mean"], rel=0.02)


def test_a_fresh_process_loads_both_kinds_and_names_a_broken_one(
    place: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(place / "rtn", broken)
    (broken / "tokenizer.json").write_text("{")
    roots = tuple(str(path) for path in (place / "rtn", place / "nf4", broken))
    found = load_in_fresh_process(Request(roots, str(place / "source"), 128))
    first, second, third = found.outputs
    assert (first.consumer, second.consumer) == ("forge.runtime", "transformers with bitsandbytes")
    assert (first.problem, second.problem) == (None, None)
    for row in (first, second):
        assert len(row.reply) == 8
        assert isinstance(row.divergence, Mapping)
        assert row.divergence["num_positions"] == 127
    assert third.problem is not None
    assert third.divergence is None
    assert found.rtn_divergence is None


@pytest.mark.parametrize("case", ["outputs", "inputs"])
def test_widths_that_bitsandbytes_does_not_run_on_this_cpu_are_said_to_be_its_limit(
    tmp_path: Path, case: str
) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    if not functional.has_avx512bf16():
        pytest.skip("the kernel with this limit is for AVX512-BF16")
    if case == "inputs":
        quantize(tiny_checkpoint(tmp_path / "source", hidden=48), tmp_path / "nf4", "bnb-nf4")
    else:
        source = write_row("DeepSeek-V3", tmp_path) / "base"
        quantize(source, tmp_path / "nf4", "bnb-nf4", keep=("experts",))
    (found,) = answer(Request((str(tmp_path / "nf4"),), None, 128)).outputs
    assert found.problem is not None
    assert found.problem.startswith("bitsandbytes' kernels for CPUs take 4-bit layers whose")
    assert "(AssertionError: N must be divisible" in found.problem
    if case == "inputs":
        assert "14 layers are not, such as 'model.layers.0." in found.problem
        assert "on a GPU; or" in found.problem
        return
    assert "self_attn.kv_a_proj_with_mqa' with 72 outputs and 64 inputs" in found.problem
    assert "on a GPU, and here by 'forge generate'; or" in found.problem
    model = runtime.load(tmp_path / "nf4")
    assert model(torch.tensor([[1, 5]])).logits.isfinite().all()


def test_a_process_that_ends_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"exit code 1: FileNotFoundError: .*config\.json"):
        load_in_fresh_process(Request((str(tmp_path / "nothing"),), None, 128))


def test_what_was_found_goes_into_the_manifest_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(place / "rtn", out)
    before = json.loads((out / "forge_manifest.json").read_text())
    source = open_source(place)
    asked: list[Request] = []

    def pretend(request: Request) -> Answer:
        asked.append(request)
        return Answer((Loaded("x", None, (1,), figures(0.123456)),))

    monkeypatch.setattr(running_checks, "load_in_fresh_process", pretend)
    assert list(verify_made([out], source, quick=True)) == [out]
    assert asked == []
    reports = verify_made([out], source)
    assert len(asked) == 1
    record = json.loads((out / "forge_manifest.json").read_text())
    assert record.pop("verification") == reports[out].as_json()
    assert reports[out].as_json()["divergence"] == figures(0.1235)
    assert record == before
    assert str(place) not in (out / "forge_manifest.json").read_text()
    # Every byte is still as the manifest says, and a second run has nothing to do.
    assert verify(out, quick=True).ok
    assert verify_made([out], source) == {}
    assert verify_made([out], source, quick=True) == {}


def test_bytes_that_differ_are_not_looked_at_any_further(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(place / "rtn", out)
    (out / "config.json").write_text("{}")
    found = verify(out, open_source(place))
    assert not found.ok
    assert found.quantized is None
    assert ("hash", "config.json") in [(item.kind, item.name) for item in found.differences] or (
        "size", "config.json",
    ) in [(item.kind, item.name) for item in found.differences]  # fmt: skip
