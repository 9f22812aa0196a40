"""Every wrong input of ``forge quantize`` ends in one clear message and exit code 2.

Each case spoils the command line, the recipe, the calibration text or a tiny model. Unless only
the weights can tell, it is refused before any weight is read, and nothing is left on the disk.
``WRONG`` is a table; a new case is one line.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from forge.cli.app import run
from tests.end_to_end import damage
from tests.end_to_end.command import Outcome, partial_of, tree
from tests.end_to_end.damage import UP, WEIGHTS, Damage
from tests.factory import tiny_checkpoint, to_bytes

AWQ = ("--method", "awq", "--group-size", "64")
RTN = ("--method", "rtn", "--group-size", "64")
BNB = ("--method", "bnb")
SMALL = ("--calibration-samples", "4", "--calibration-tokens", "64")
RECIPE = "method: awq\ngroup_size: 64\ncalibration: {samples: 4, tokens: 64}\n"


@dataclass(frozen=True, slots=True)
class Wrong:
    """One wrong input.

    Attributes:
        words: What the message must say.
        arguments: Of ``forge quantize``, before the output.
        files: Files to write beside the model, by name; a number is a file of stored tokens, all
            of them this one.
        spoil: Does something to the model's folder.
        late: Only the weights tell, and a run may keep what it has finished.
    """

    words: tuple[str, ...]
    arguments: tuple[str, ...]
    files: Mapping[str, str | bytes | int]
    spoil: Damage | None
    late: bool


def _wrong(
    words: str | tuple[str, ...],
    *arguments: str,
    files: Mapping[str, str | bytes | int] | None = None,
    spoil: Damage | None = None,
    late: bool = False,
) -> Wrong:
    listed = (words,) if isinstance(words, str) else words
    return Wrong(listed, arguments, files or {}, spoil, late)


def _calibrated(source: str, *more: str) -> tuple[str, ...]:
    return ("model", *AWQ, "--calibration", source, *(more or SMALL))


COMMANDS = {
    "no method": _wrong(("--method", "awq, rtn, bnb"), "model"),
    "misspelt method": _wrong(("--method", "'agw'", "mean 'awq'"), "model", "--method", "agw"),
    "misspelt version": _wrong("mean 'gemv_fast'", "model", *AWQ, "--version", "gemv_fats"),
    "type of another method": _wrong("holds codes of bnb", "model", *AWQ, "--type", "nf4"),
    "version of another method": _wrong("holds codes of awq", "model", *BNB, "--version", "gemm"),
    "bits that no format has": _wrong(("--bits", "not of 3"), "model", *AWQ, "--bits", "3"),
    "bits of another format": _wrong(
        ("--bits", "of 4 bits", "compressed-tensors or gptq"), "model", *AWQ, "--bits", "8"
    ),
    "bits as text": _wrong("--bits", "model", *AWQ, "--bits", "four"),
    "bits against the type": _wrong("--bits", "model", *BNB, "--type", "nf4", "--bits", "8"),
    "group size of no format": _wrong(
        ("--group-size", "32, 64 or 128, not of 48"), "model", "--method", "rtn",
        "--group-size", "48",
    ),
    "group size that does not divide": _wrong(
        ("model.layers.0.self_attn.q_proj", "64 input features", "groups of 128",
         "Groups of 32 or 64 divide every layer: --group-size 64"),
        "model", "--method", "awq",
    ),
    "group size that one format cannot hold": _wrong(
        ("every layer", "--group-size 64"), "model", "--method", "rtn", "--group-size", "128",
        "--version", "gemm,gemv_fast",
    ),
    "groups of bitsandbytes": _wrong("fixed", "model", *BNB, "--group-size", "64"),
    "double quantization of int8": _wrong(
        ("--double-quant", "bnb-int8"), "model", *BNB, "--type", "int8", "--double-quant"
    ),
    "double quantization of awq": _wrong("belongs to bnb", "model", *AWQ, "--double-quant"),
    "clip without a search": _wrong("belongs to awq, not to rtn", "model", *RTN, "--clip"),
    "calibration without a use": _wrong(
        "needs no calibration", "model", *BNB, "--calibration", "self"
    ),
    "misspelt search": _wrong("mean 'sketch'", "model", *AWQ, "--search", "skecth"),
    "format twice": _wrong("listed twice", "model", *RTN, "--version", "gemm,gemm"),
    "misspelt option": _wrong("--goup-size", "model", "--goup-size", "64"),
    "negative seed": _wrong(("--seed", "2^64 - 1"), "model", *AWQ, "--seed", "-1"),
    "no threads": _wrong("--threads", "model", *RTN, "--threads", "0"),
    "shard size": _wrong("--max-shard-size", "model", *RTN, "--max-shard-size", "5 apples"),
    "unknown device": _wrong(("--device", "'gpu'"), "model", *AWQ, "--device", "gpu"),
    "a device that is not there": _wrong(
        ("cuda:99", "--device cpu"), "model", *AWQ, *SMALL, "--device", "cuda:99"
    ),
    "keep that matches nothing": _wrong(
        ("'keep: dwon_proj'", "mean 'down_proj'"), "model", *RTN, "--keep", "dwon_proj"
    ),
    "keep that covers everything": _wrong(
        "'keep' covers every linear layer", "model", *RTN, "--keep", "layers"
    ),
    "no model and no merge": _wrong("forge has written no merge", *RTN),
    "no such recipe": _wrong("mean 'awq_both'", "model", "--config", "awq_bot"),
    "broken recipe": _wrong(
        ("bad.yaml:2", "YAML"), "model", "--config", "bad.yaml", files={"bad.yaml": "a: 1\nb: ["}
    ),
    "several at once": _wrong(
        ("bad.yaml:1 metod", "bad.yaml:2 bits", "--group-size"), "model", "--config", "bad.yaml",
        "--group-size", "5", "--method", "awq", files={"bad.yaml": "metod: awq\nbits: 3\n"},
    ),
}  # fmt: skip

TEXTS = {
    "no such file": _wrong("'gone.txt' does not exist", *_calibrated("gone.txt")),
    "a folder as text": _wrong("is not a file", *_calibrated("x.txt"), files={"x.txt/y": ""}),
    "empty text": _wrong("'x.txt' is empty", *_calibrated("x.txt"), files={"x.txt": ""}),
    "blank text": _wrong("holds no text", *_calibrated("x.txt"), files={"x.txt": " \n" * 400}),
    "fewer bytes than tokens": _wrong(
        ("100 bytes", "4 sequences of 64 tokens (256)"), *_calibrated("x.txt"),
        files={"x.txt": "a b " * 25},
    ),
    "too few tokens": _wrong(
        ("120 tokens", "4 sequences of 64", "(256)", "256 tokens are the least"),
        *_calibrated("x.txt"), files={"x.txt": "aspirin treats pain " * 40},
    ),
    "fewer sequences than asked for": _wrong(
        ("600 tokens", "--calibration-samples 9"),
        *_calibrated("x.txt", "--calibration-samples", "40", "--calibration-tokens", "64"),
        files={"x.txt": "aspirin treats pain " * 200},
    ),
    "text that is binary": _wrong(
        "not text in UTF-8", *_calibrated("x.txt"), files={"x.txt": b"\xff\xfe\x00" * 200}
    ),
    "no records": _wrong("holds no text", *_calibrated("x.jsonl"), files={"x.jsonl": "\n" * 300}),
    "a broken record": _wrong(
        ("line 2", "not JSON"), *_calibrated("x.jsonl"),
        files={"x.jsonl": '{"text": "a"}\n{"text"\n' + " " * 300},
    ),
    "no field of text": _wrong(
        ("--calibration-field", "note"), *_calibrated("x.jsonl"),
        files={"x.jsonl": json.dumps({"note": "a " * 300}) + "\n"},
    ),
    "another field": _wrong(
        ("no field 'txt'", "mean 'text'"),
        *_calibrated("x.jsonl", *SMALL, "--calibration-field", "txt"),
        files={"x.jsonl": json.dumps({"text": "a " * 300}) + "\n"},
    ),
    "no prompts": _wrong("holds no prompt", *_calibrated("self:x.txt"), files={"x.txt": "\n\n"}),
    "unknown kind of file": _wrong("'x.docx' is no calibration set", *_calibrated("x.docx")),
    "tokens that are none": _wrong(
        "no .npy file", "model", *AWQ, "--calibration", "x.npy", files={"x.npy": "hello"}
    ),
    "tokens of another model": _wrong(
        ("token 900", "has 32"), "model", *AWQ, "--calibration", "x.npy",
        files={"x.npy": 900},
    ),
    "too few tokens to be asked for": _wrong(
        ("8 tokens", "too few"),
        *_calibrated("self", "--calibration-samples", "1", "--calibration-tokens", "8"),
    ),
    "sequences longer than the model": _wrong(
        ("999 tokens", "the 128 positions", "--calibration-tokens 128"),
        *_calibrated("self", "--calibration-tokens", "999"),
    ),
    "a data set, offline": _wrong(
        ("org/nothing", "HF_HUB_OFFLINE"), *_calibrated("hub:org/nothing")
    ),
    "no tokenizer": _wrong(
        "has no tokenizer", *_calibrated("self"), spoil=damage.without("tokenizer.json")
    ),
    "no chat template": _wrong(
        "has no chat template", *_calibrated("self", *SMALL, "--chat-template"),
        spoil=lambda model: (model / "tokenizer_config.json").write_text("{}"),
    ),
}  # fmt: skip


def _overflowing(rows: damage.Rows) -> None:
    """Let the second block's activations exceed what float32 holds."""
    for name in ("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"):
        dtype, shape, _ = rows[name]
        rows[name] = (dtype, shape, to_bytes(np.full(shape, 3e38), dtype))


def _fused(rows: damage.Rows) -> None:
    """Replace a layer's MLP by experts in one tensor."""
    dtype, shape, data = rows.pop(UP)
    rows["model.layers.1.mlp.experts.gate_up_proj"] = (dtype, [1, *shape], data)


MODELS = {
    "no such folder": _wrong(("'./modle'", "'model'"), "./modle", *RTN),
    "a file": _wrong("is a file", "model/config.json", *RTN),
    "the Hub, offline": _wrong("org/nothing", "org/nothing", *RTN),
    "no weights": _wrong(WEIGHTS, "model", *RTN, spoil=damage.without(WEIGHTS)),
    "truncated weights": _wrong("truncated", "model", *RTN, spoil=damage.cut(1)),
    "damaged AWQ": _wrong(
        ("layer 'model.layers.", "groups of 128", "damaged"), "model", *RTN,
        spoil=damage.packed(
            {".qweight": "I32", ".qzeros": "I32", ".scales": "F16"},
            {"quant_method": "awq", "bits": 4, "group_size": 128},
        ),
    ),
    "quantized to AWQ, and silent about it": _wrong(
        ("GPTQ or AWQ", "no quantization_config"), "model", *AWQ, *SMALL,
        spoil=damage.packed({".qweight": "I32", ".qzeros": "I32", ".scales": "F16"}, None),
    ),
    "bitsandbytes without its states": _wrong(
        ("bitsandbytes FP4", "not one of its tensors is"), "model", *BNB,
        spoil=damage.packed(
            {".weight": "U8", ".weight.absmax": "F32", ".weight.quant_map": "F32"},
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
        ),
    ),
    "FP8": _wrong(
        ("F8_E4M3",), "model", *RTN, spoil=damage.retyped("_proj.weight", "F8_E4M3", 1)
    ),
    "unknown architecture": _wrong(
        ("'mamba9'", "not in forge's table", "A row", "norm"), "model", *AWQ, *SMALL,
        spoil=damage.config({"model_type": "mamba9"}),
    ),
    "an architecture without a name": _wrong(
        "model_type", "model", *RTN, spoil=damage.config({"model_type": None})
    ),
    "a matrix that its row does not know": _wrong(
        "model.layers.1.mlp", "model", *RTN, spoil=damage.rewritten(_fused)
    ),
    "layers that are in no file": _wrong(
        ("7 layers",), "model", *AWQ, *SMALL, spoil=damage.config({"num_hidden_layers": 7})
    ),
    "NaN in a weight": _wrong(
        (UP, "NaN"), "model", *RTN, spoil=damage.value(UP, float("nan")), late=True
    ),
    "NaN in a weight of bitsandbytes": _wrong(
        (UP, "NaN"), "model", *BNB, spoil=damage.value(UP, float("nan")), late=True
    ),
    "infinity in a block that is calibrated": _wrong(
        ("block 1",), *_calibrated("x.npy", "--seed", "0"), files={"x.npy": 30},
        spoil=damage.rewritten(_overflowing), late=True,
    ),
}  # fmt: skip


def _block_out(place: Path) -> None:
    (place / "new").mkdir()
    (place / "new" / "out").write_text("mine")


def _keep_mine(place: Path) -> None:
    (place / "new" / "out").mkdir(parents=True)
    (place / "new" / "out" / "mine.txt").write_text("mine")


PLACES: Mapping[str, tuple[tuple[str, ...], Callable[[Path], None], tuple[str, ...]]] = {
    "a file in the way": (RTN, _block_out, ("new/out", "not a folder")),
    "a folder in the way": (RTN, _keep_mine, ("new/out", "--overwrite")),
    "a stranger's folder in the way": (
        (*RTN, "--overwrite"), _keep_mine, ("not made by forge",),
    ),
}  # fmt: skip

WRONG = COMMANDS | TEXTS | MODELS


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model."""
    root = tmp_path_factory.mktemp("right")
    tiny_checkpoint(root / "model", hidden=64)
    return root


@pytest.fixture
def place(right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with a copy of the good model, which is the current one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    place = tmp_path / "place"
    shutil.copytree(right, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # Read when the library is imported, which another test may have done.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    yield place
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    code = run(arguments)
    return Outcome(code, *capsys.readouterr())


def _assert_one_clear_message(outcome: Outcome, words: tuple[str, ...]) -> None:
    assert outcome.code == 2, outcome
    assert outcome.stderr.count("error: ") == 1, outcome.stderr
    assert outcome.stdout == ""
    for word in words:
        assert word in outcome.error, outcome.error
    assert "Traceback" not in outcome.stderr
    assert "defect" not in outcome.stderr
    assert len(outcome.error) < 1800


def _write(name: str, content: str | bytes | int) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):
        np.save(path, np.full((4, 64), content, np.int32))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)


@pytest.mark.parametrize("name", WRONG)
def test_is_refused(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    wrong = WRONG[name]
    for file, content in wrong.files.items():
        _write(file, content)
    if wrong.spoil is not None:
        wrong.spoil(Path("model"))
    before = tree(place)
    outcome = _run(capsys, "quantize", *wrong.arguments, "--out", "new/out", "--verify", "off")
    _assert_one_clear_message(outcome, wrong.words)
    if wrong.late:
        left = {path.name for path in Path("new").iterdir()} if Path("new").exists() else set()
        assert left <= {partial_of(Path("out")).name}
        assert tree(place, but=["new"]) == before
        return
    assert tree(place) == before
    # What headers and recipe tell, a dry run tells, too.
    if name not in TEXTS:
        dry = _run(capsys, "quantize", *wrong.arguments, "--out", "new/out", "--dry-run")
        _assert_one_clear_message(dry, wrong.words)
        assert tree(place) == before


@pytest.mark.parametrize("name", PLACES)
def test_an_output_that_cannot_be_made_is_left_alone(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments, prepare, words = PLACES[name]
    prepare(place)
    before = tree(place)
    outcome = _run(capsys, "quantize", "model", *arguments, "--out", "new/out")
    _assert_one_clear_message(outcome, words)
    assert tree(place) == before


def test_a_disk_that_is_too_small_is_known_before_the_calibration(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: object) -> object:
        return shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", full)
    before = tree(place)
    arguments = ("model", *AWQ, *SMALL, "--out", "new/out")
    outcome = _run(capsys, "quantize", *arguments)
    _assert_one_clear_message(outcome, ("0.00 GB free", "Free some space"))
    assert "calibrating" not in outcome.stderr
    assert tree(place) == before


def test_the_good_model_is_quantized(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(RECIPE)
    for out, arguments in {
        "awq": ("--config", "recipe.yaml"), "rtn": RTN, "bnb": BNB,
        "int8": (*BNB, "--bits", "8"),
    }.items():  # fmt: skip
        outcome = _run(capsys, "quantize", "model", *arguments, "--out", out, "--verify", "off")
        assert outcome.code == 0, outcome.stderr
        assert Path(out, "model.safetensors").exists()


def test_a_repaired_model_is_quantized_as_if_nothing_had_been(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("quantize", "model", *RTN, "--verify", "off", "--out")
    assert _run(capsys, *command, "right").code == 0
    good = Path("model", WEIGHTS).read_bytes()
    damage.value(UP, float("nan"))(Path("model"))
    assert _run(capsys, *command, "out").code == 2
    Path("model", WEIGHTS).write_bytes(good)
    assert _run(capsys, *command, "out").code == 0
    assert Path("out", WEIGHTS).read_bytes() == Path("right", WEIGHTS).read_bytes()
    assert not partial_of(Path("out")).exists()
