"""``forge quantize`` on tiny models: what it plans, makes, names and refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from forge import api
from forge.checkpoints.sink import TensorSink
from forge.cli.app import run
from forge.cli.quantize import default_name
from forge.cli.quantize_progress import WithMemory, own_memory_bytes
from forge.core.errors import CheckpointError, IncompatibleError
from forge.quantize.estimate import expected_seconds
from tests.cli.golden import check_golden
from tests.cli.process import python
from tests.factory import tiny_checkpoint

Capture = pytest.CaptureFixture[str]
RECIPE = """\
model: model
method: rtn
version: [gemm, gemv]
group_size: 32
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers divide into groups of 32 and 64."""
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "model", hidden=64, layers=2)


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "both.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def merged(folder: Path, *, kind: str = "merge", age_s: int = 0) -> Path:
    """Write what looks like an output of forge."""
    tiny_checkpoint(folder, hidden=64)
    manifest = folder / "forge_manifest.json"
    manifest.write_text(json.dumps({"schema": 1, "kind": kind}))
    os.utime(manifest, (10**9 - age_s, 10**9 - age_s))
    return folder


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_dry_run_prints_the_plan_and_writes_nothing(place: Path, capsys: Capture) -> None:
    before = files(place)
    assert run(["quantize", "--config", "both.yaml", "--dry-run", "--threads", "2"]) == 0
    text = capsys.readouterr().out
    assert files(place) == before
    lines = [line for line in text.splitlines() if " of memory and" not in line]
    check_golden("quantize_plan", "\n".join(lines) + "\n")


def test_a_dry_run_plans_for_a_larger_disk(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    assert run(["quantize", "model", "--method", "bnb", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"  notice: '{place}' has 0.00 GB free; the output needs 0.00 GB." in text
    assert text.endswith("Nothing was written (dry run).\n")
    assert run(["quantize", "model", "--method", "bnb", "--out", "out"]) == 2
    assert "has 0.00 GB free" in capsys.readouterr().err


def test_the_plan_as_json(place: Path, capsys: Capture) -> None:
    command = ["quantize", "model", "--method", "bnb", "--type", "nf4,int8", "--dry-run", "--json"]
    assert run(command) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["out"] == "quantized/model-bnb"
    assert record["recipe"]["format"] == ["bnb-nf4", "bnb-int8"]
    assert record["num_linears"] == 14
    assert record["expected_seconds"] >= 1
    nf4, int8 = record["outputs"]
    assert 4 < nf4["bits_per_weight"] < int8["bits_per_weight"] < 16
    assert nf4["folder"] == "bnb-nf4"


def test_several_formats_are_made_of_one_recipe(place: Path, capsys: Capture) -> None:
    assert run(["quantize", "--config", "both.yaml", "--json", "--verify", "quick"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert "notice: Only CUDA kernels read AWQ GEMV" in captured.err
    assert [output["format"] for output in record["outputs"]] == ["awq-gemm", "awq-gemv"]
    for name in ("gemm", "gemv"):
        folder = place / "quantized" / "model-rtn" / f"awq-{name}"
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        assert (config["version"], config["group_size"]) == (name, 32)
        kept = api.load_quantize_recipe(folder / "quantize_recipe.yaml")
        assert [variant.format for variant in kept.variants] == [f"awq-{name}"]


def test_one_format_is_made_where_one_says(place: Path, capsys: Capture) -> None:
    command = ["quantize", "model", "--method", "bnb", "--out", "out", "--verify", "quick"]
    assert run([*command, "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("out\n  bnb-nf4, ")
    assert (place / "out" / "model.safetensors").is_file()
    assert run([*command, "--double-quant"]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert run([*command, "--double-quant", "--overwrite", "--quiet"]) == 0
    config = json.loads((place / "out" / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_use_double_quant"] is True


def test_without_a_model_the_newest_merge_is_taken(place: Path, capsys: Capture) -> None:
    merged(place / "merges" / "old", age_s=100)
    merged(place / "merges" / "new", age_s=10)
    merged(place / "elsewhere" / "older", age_s=200)
    merged(place / "quantized" / "x", kind="quantize")
    merged(place / "merges" / "x.forge-partial" / "output")
    (place / "merges" / "broken").mkdir()
    (place / "merges" / "broken" / "forge_manifest.json").write_text("{")
    assert run(["quantize", "--method", "rtn", "--group-size", "64", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "Taking merges/new, the newest checkpoint that forge wrote here.\n"
    assert captured.out.startswith("rtn → quantized/new-awq-gemm\n")


def test_without_a_model_and_without_a_merge(place: Path) -> None:
    with pytest.raises(CheckpointError, match="No model is named, and forge has written no merge"):
        api.newest_checkpoint(place)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"model": "org/Med-7B", "method": "awq"}, "Med-7B-awq-gemm"),
        ({"model": "org/Med-7B@v2", "method": "bnb"}, "Med-7B-bnb-nf4"),
        ({"model": "a/b c", "method": "bnb", "double_quant": True}, "b-c-bnb-nf4-dq"),
        ({"model": "./m+l", "method": "awq", "version": "gemm,gemv"}, "m-awq"),
        ({"model": "/", "method": "rtn"}, "model-awq-gemm"),
    ],
)
def test_the_default_output_is_named_after_the_model(options: dict[str, object], name: str) -> None:
    assert default_name(api.load_quantize_recipe(options=options)) == name


def test_a_model_named_by_a_dot_has_the_folders_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = api.load_quantize_recipe(options={"model": ".", "method": "rtn"})
    assert default_name(recipe) == "here-awq-gemm"


def test_all_findings_are_shown_at_once(place: Path) -> None:
    recipe = api.load_quantize_recipe(
        options={
            "model": "model", "method": "awq", "keep": "q_prj", "calibration": "gone.txt",
            "calibration_tokens": 999,
        }
    )  # fmt: skip
    with pytest.raises(IncompatibleError) as caught:
        api.plan_quantize(recipe)
    problems = str(caught.value).splitlines()
    assert len(problems) == 4
    for problem, words in zip(
        problems,
        ["Did you mean 'q_proj'?", "--group-size 64", "the 128 positions", "'gone.txt' does not"],
        strict=True,
    ):
        assert words in problem


def test_more_work_is_expected_to_take_longer(place: Path) -> None:
    def seconds(**options: object) -> float:
        options = {"model": "model", "group_size": 64, **options}
        recipe = api.load_quantize_recipe(options=options)
        return expected_seconds(recipe, api.plan_quantize(recipe), threads=2)

    rtn = seconds(method="rtn")
    small = seconds(method="awq", calibration_samples=8, calibration_tokens=64)
    large = seconds(method="awq", calibration_samples=64, calibration_tokens=64)
    assert (
        rtn
        < small
        < large
        < seconds(method="awq", calibration_samples=64, calibration_tokens=64, search="module")
    )
    assert rtn < seconds(method="rtn", version="gemm,gemv")


class Heard:
    """Progress that remembers."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []

    def stage(self, name: str) -> None:
        self.said.append(("stage", name))

    def start(self, total_bytes: int, done_bytes: int) -> None:
        self.said.append(("start", total_bytes, done_bytes))

    def advance(self, num_bytes: int) -> None:
        self.said.append(("advance", num_bytes))

    def status(self, text: str) -> None:
        self.said.append(("status", text))

    def notice(self, text: str) -> None:
        self.said.append(("notice", text))

    def close(self) -> None:
        self.said.append(("close",))


def test_the_status_says_how_much_memory_is_held() -> None:
    heard = Heard()
    shown = WithMemory(heard)
    shown.stage("quantizing")
    shown.start(10, 2)
    shown.status("block 1 of 2, error 0.5")
    shown.advance(3)
    shown.notice("x")
    assert heard.said[:2] == [("stage", "quantizing"), ("start", 10, 2)]
    assert heard.said[3:] == [("advance", 3), ("notice", "x")]
    status = str(heard.said[2][1])
    assert status.startswith("block 1 of 2, error 0.5, ")
    assert status.endswith("MB of memory")
    held = own_memory_bytes()
    assert held is not None
    assert held > 10**6


def test_a_plan_loads_no_torch(place: Path) -> None:
    code = (
        "import sys\nfrom forge.cli.app import run\n"
        "assert run(['quantize', 'model', '--method', 'awq', '--group-size', '64', '--dry-run', "
        "'--calibration-tokens', '64']) == 0\n"
        "assert not {'torch', 'transformers', 'bitsandbytes', 'numba'} & set(sys.modules), 'heavy'"
    )
    done = python(code, cwd=place)
    assert done.returncode == 0, done.stderr


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom forge.cli.app import run\n"
        "assert run(['quantize', '--help']) == 0\n"
        "assert not {'torch', 'numpy', 'pydantic', 'yaml', 'rich'} & set(sys.modules), 'heavy'"
    )
    done = python(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_same_command_resumes_several_variants(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["quantize", "--config", "both.yaml", "--verify", "off", "--threads", "1", "--out"]
    assert run([*command, "whole"]) == 0
    finish = TensorSink.finish
    finished = 0

    def stop(self: TensorSink, name: str, **rest: object) -> None:
        nonlocal finished
        if finished >= 9:
            raise KeyboardInterrupt
        finish(self, name, **rest)  # type: ignore[arg-type]
        finished += 1

    with monkeypatch.context() as patched:
        patched.setattr(TensorSink, "finish", stop)
        assert run([*command, "cut"]) == 130
    assert {path.suffix for path in (place / "cut").iterdir()} == {".forge-partial"}
    assert run([*command, "cut"]) == 0
    assert files(place / "cut") == files(place / "whole")
    for name in files(place / "whole"):
        if (place / "whole" / name).is_file():
            assert (place / "cut" / name).read_bytes() == (place / "whole" / name).read_bytes()
    capsys.readouterr()
    assert run([*command, "cut"]) == 0
    assert "already holds exactly this" in capsys.readouterr().err
