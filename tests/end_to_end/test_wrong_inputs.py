"""Every wrong input ends in one clear message and exit code 2, and touches nothing.

Each case spoils the recipe, the command line, or one of three tiny models, runs
``forge merge`` and ``forge check``, and compares the whole folder with what it was. ``WRONG``
is a table; a new case is one line.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from forge.cli.app import run
from tests.end_to_end import damage
from tests.end_to_end.command import Outcome, partial_of, tree
from tests.end_to_end.damage import INDEX, NORM, UP, WEIGHTS, Damage
from tests.end_to_end.model_folders import RECIPE, write_small

SLERP = """\
merge_method: slerp
base_model: ./base
slices:
  - sources:
      - {model: ./base, layer_range: [0, 2]}
      - {model: ./med, layer_range: [0, 2]}
parameters: {t: 0.5}
"""
STACK = """\
merge_method: passthrough
slices:
  - sources: [{model: ./base, layer_range: [0, 2]}]
  - sources: [{model: ./med, layer_range: [1, 2]}]
"""


@dataclass(frozen=True, slots=True)
class Wrong:
    """One wrong input.

    Attributes:
        words: What the message must say.
        recipe: The recipe.
        swap: Text of the recipe to replace, and its replacement.
        spoil: Does something to the folder of the model ``med``.
        arguments: More arguments of ``forge merge``.
        late: Only the weights tell, so ``forge check`` finds nothing, and a merge may keep the
            tensors that it has finished.
    """

    words: tuple[str, ...]
    recipe: str = RECIPE
    swap: tuple[str, str] = ("", "")
    spoil: Damage | None = None
    arguments: tuple[str, ...] = ()
    late: bool = False


def _wrong(
    *words: str,
    recipe: str = RECIPE,
    swap: tuple[str, str] = ("", ""),
    spoil: Damage | None = None,
    arguments: tuple[str, ...] = (),
    late: bool = False,
) -> Wrong:
    return Wrong(words, recipe, swap, spoil, arguments, late)


RECIPES = {
    "broken YAML": _wrong("recipe.yaml:4", "YAML", swap=("models:", "models: [")),
    "a tab in YAML": _wrong("recipe.yaml:5", "tab", swap=("    parameters:", "\tparameters:")),
    "empty recipe": _wrong("recipe.yaml", recipe="\n"),
    "binary recipe": _wrong("recipe.yaml", recipe="\x00\x01\x02"),
    "Python object in YAML": _wrong("recipe.yaml:1", recipe="!!python/object/apply:os.abort []"),
    "billion laughs": _wrong(
        "recipe.yaml",
        recipe="".join(
            f"k{n}: &k{n} [{', '.join([f'*k{n - 1}'] * 9) if n else 'lol'}]\n" for n in range(30)
        ),
    ),
    "key twice": _wrong(":13 dtype", "line 12", swap=("dtype", "dtype: float32\ndtype")),
    "misspelt key": _wrong(":12 dtpye", "Did you mean 'dtype'?", swap=("dtype", "dtpye")),
    "misspelt method": _wrong(":1 merge_method", "mean 'dare_ties'", swap=("dare", "drae")),
    "misspelt parameter": _wrong(":6 models[0]", "mean 'density'", swap=("density", "desnity")),
    "density -1": _wrong(
        "recipe.yaml:6 models[0].parameters.density", "-1 is outside [0, 1]", "try 0.5",
        swap=("density: 0.5", "density: -1"),
    ),
    "density 7": _wrong("7 is outside [0, 1]", swap=("density: 0.5", "density: 7")),
    "weight NaN": _wrong("not finite", swap=("weight: 0.5", "weight: .nan")),
    "weight as text": _wrong("Remove the quotes", swap=("weight: 0.5", "weight: '0.5'")),
    "filter that matches nothing": _wrong(
        "recipe.yaml:6", "density", "'self_atn' matches none", "mean 'self_attn'",
        swap=("density: 0.5", "density: [{filter: self_atn, value: 1}, {value: 0.5}]"),
    ),
    "filter behind one for all": _wrong(
        "never reached", swap=("density: 0.5", "density: [{value: 1}, {filter: mlp, value: 0}]")
    ),
    "filters that leave tensors out": _wrong(
        "weight", swap=("weight: 0.5", "weight: [{filter: mlp, value: 1}]")
    ),
    "unknown parameter": _wrong(
        "dare_ties has no such parameter", "slerp", swap=("weight: 0.5", "weight: 0.5\n      t: 1")
    ),
    "gradient where none is taken": _wrong(
        "normalize", "not a list over the layers",
        swap=("dtype", "parameters: {normalize: [true, false]}\ndtype"),
    ),
    "no base": _wrong("base_model", "needs a base model", swap=("base_model: ./base\n", "")),
    "too many models": _wrong("exactly 1 model beside the base", swap=("dare_ties", "nearswap")),
    "range beyond the model": _wrong(
        "recipe.yaml:6", "[0, 3]", "./med", "has 2",
        recipe=SLERP.replace("[0, 2]", "[0, 3]"), swap=("[0, 3]", "[0, 3]"),
    ),
    "dtype misspelt": _wrong("mean 'bfloat16'", swap=("bfloat16", "bloat16")),
    "several at once": _wrong(
        ":6 ", ":7 ", ":12 ", swap=("density: 0.5\n      weight: 0.5", "density: 7\n      wait: 1"),
        recipe=RECIPE.replace("dtype", "dtpye"),
    ),
    "missing model folder": _wrong("./mde", "no folder", swap=("./med", "./mde")),
    "model of the Hub, offline": _wrong("org/nothing", swap=("./med", "org/nothing")),
    "model that is a file": _wrong("is a file", swap=("./med", "./med/config.json")),
    "revision of a folder": _wrong("no revision", swap=("./med", "./med@main")),
    "LoRA that is a model": _wrong("./chat", swap=("./med", "./med+./chat")),
}  # fmt: skip

COMMANDS = {
    "no such recipe": _wrong("recpie.yaml", arguments=("recpie.yaml",)),
    "recipe that is a folder": _wrong("med", arguments=("med",)),
    "misspelt option": _wrong("--overwirte", arguments=("recipe.yaml", "--overwirte")),
    "no threads": _wrong("--threads", arguments=("recipe.yaml", "--threads", "0")),
    "shard size": _wrong("5 apples", arguments=("recipe.yaml", "--max-shard-size", "5 apples")),
    "shards of nothing": _wrong("0GB", arguments=("recipe.yaml", "--max-shard-size", "0GB")),
    "negative seed": _wrong("--seed", arguments=("recipe.yaml", "--seed", "-1")),
    "unknown engine": _wrong("mergkit", arguments=("recipe.yaml", "--engine", "mergkit")),
}

FILES = {
    "no config": _wrong("./med", "config.json", spoil=damage.without("config.json")),
    "config that is no JSON": _wrong("config.json", spoil=damage.written("config.json", "{")),
    "config that is a list": _wrong("config.json", spoil=damage.written("config.json", "[]")),
    "config that links out": _wrong(
        "outside the model's folder",
        spoil=damage.replaced_by_link("config.json", "../base/config.json"),
    ),
    "no weights": _wrong("./med", WEIGHTS, spoil=damage.without(WEIGHTS)),
    "pickle only": _wrong(
        "pickled", "save_pretrained", spoil=damage.emptied_to("pytorch_model.bin")
    ),
    "GGUF only": _wrong("GGUF", spoil=damage.emptied_to("model-Q4_K_M.gguf")),
    "an adapter as a model": _wrong(
        "LoRA adapter", spoil=damage.emptied_to("adapter_config.json")
    ),
    "weights that are a folder": _wrong(
        WEIGHTS, "not a regular file",
        spoil=lambda m: (m / WEIGHTS).unlink() or (m / WEIGHTS).mkdir(),
    ),
    "weights that are a pipe": _wrong("not a regular file", spoil=damage.replaced_by_pipe),
    "weights that link out": _wrong(
        "outside the model's folder", spoil=damage.replaced_by_link(WEIGHTS, "../base/" + WEIGHTS)
    ),
    "weights that link nowhere": _wrong("med", spoil=damage.replaced_by_link(WEIGHTS, "gone")),
    "empty weight file": _wrong("0 bytes", spoil=damage.written(WEIGHTS, b"")),
    "truncated by one byte": _wrong("truncated", spoil=damage.cut(1)),
    "truncated in the header": _wrong("truncated", spoil=damage.raw_header(b"{", length=900000)),
    "header of 2^60 bytes": _wrong(str(1 << 60), spoil=damage.raw_header(b"{}", length=1 << 60)),
    "header that is no JSON": _wrong("not JSON", spoil=damage.raw_header(b"hello, world")),
    "header of nested lists": _wrong("nested", spoil=damage.raw_header(b'{"a":' + b"[" * 100_000)),
    "key twice in the header": _wrong(
        "'a'", "twice", spoil=damage.raw_header(b'{"a":{"dtype":"U8"},"a":{"dtype":"U8"}}')
    ),
    "tensors that overlap": _wrong("overlap", UP, spoil=damage.overlapping(UP)),
    "bytes of no tensor": _wrong("belong to no tensor", spoil=damage.header(lambda t: t.pop(UP))),
    "offsets beyond the file": _wrong(
        UP, "outside", spoil=damage.header(lambda t: t[UP].update(data_offsets=[0, 1 << 40]))
    ),
    "shape that contradicts its bytes": _wrong(
        UP, "needs", spoil=damage.header(lambda t: t[UP].update(shape=[3, 3]))
    ),
    "shape that overflows": _wrong(
        UP, spoil=damage.header(lambda t: t[UP].update(shape=[1 << 40, 1 << 40]))
    ),
    "negative dimension": _wrong(UP, spoil=damage.header(lambda t: t[UP].update(shape=[-32, -16]))),
    "dtype of the future": _wrong("'F3'", spoil=damage.header(lambda t: t[UP].update(dtype="F3"))),
    "name that steers a terminal": _wrong(
        "unprintable", spoil=damage.header(lambda t: t.update({"\x1b[2J": t.pop(UP)}))
    ),
    "missing shard": _wrong(
        "./med", "model-00002-of-00002.safetensors",
        spoil=damage.sharded(lambda index, m: (m / "model-00002-of-00002.safetensors").unlink()),
    ),
    "index that climbs": _wrong(
        INDEX, "../base", spoil=damage.sharded(damage.point_everything(f"../base/{WEIGHTS}"))
    ),
    "index of an absolute path": _wrong(
        INDEX, "/etc/passwd", spoil=damage.sharded(damage.point_everything("/etc/passwd"))
    ),
    "index whose file links out": _wrong(
        "outside the model's folder",
        spoil=damage.sharded(
            lambda index, m: damage.replaced_by_link(index[UP], f"../base/{WEIGHTS}")(m)
        ),
    ),
    "index of a tensor that is not there": _wrong(
        "'model.ghost'",
        spoil=damage.sharded(lambda index, m: index.update({"model.ghost": index[UP]})),
    ),
    "index that forgets a tensor": _wrong(UP, spoil=damage.sharded(lambda index, m: index.pop(UP))),
    "index that is no JSON": _wrong(INDEX, spoil=damage.written(INDEX, "{")),
    "index of a former model": _wrong(
        "med", "stale",
        spoil=damage.written(INDEX, '{"weight_map": {"a": "model-00001-of-00009.safetensors"}}'),
    ),
}  # fmt: skip

MODELS = {
    "another shape": _wrong(
        UP, "[8, 64]", "[32, 16]", "./med",
        spoil=damage.rewritten(lambda rows: rows.update({UP: ("BF16", [8, 64], rows[UP][2])})),
    ),
    "another width": _wrong("./med", spoil=damage.remade(hidden=32)),
    "missing tensor": _wrong(UP, "./med", spoil=damage.rewritten(lambda rows: rows.pop(UP))),
    "tensor that others lack": _wrong(
        "model.layers.1.extra.weight", "./base",
        spoil=damage.rewritten(lambda rows: rows.update({"model.layers.1.extra.weight": rows[UP]})),
    ),
    "another number of layers": _wrong("layers", "./med", spoil=damage.remade(layers=3)),
    "layers that the config hides": _wrong(
        "layers", "./med", spoil=damage.config({"num_hidden_layers": 7})
    ),
    "another architecture": _wrong("gpt2", "llama", spoil=damage.remade(model_type="gpt2")),
    "unknown architecture": _wrong("model_type", spoil=damage.config({"model_type": None})),
    "layer_types too short": _wrong(
        "layer_types", "1 entries", "2 layers", "./base", spoil=damage.everywhere(
            damage.remade(model_type="qwen3", config_overrides={"layer_types": ["full_attention"]})
        ),
    ),
    "layers that are in no file": _wrong(
        "7 layers", "no layer 2", spoil=damage.everywhere(damage.config({"num_hidden_layers": 7}))
    ),
    "another vocabulary": _wrong("32", "40", "./med", spoil=damage.remade(tune=1, vocab=40)),
    "union without a tokenizer": _wrong(
        "./med", "tokenizer", swap=("dtype", "tokenizer_source: union\ndtype"),
        spoil=damage.remade(tune=1, with_tokenizer=False),
    ),
    "FP8": _wrong("./med", "F8_E4M3", spoil=damage.retyped("_proj.weight", "F8_E4M3", 1)),
    "FP8 with scales": _wrong(
        "./med", "quantized",
        spoil=damage.packed({".weight": "F8_E4M3", ".weight_scale_inv": "F32"}, None),
    ),
    "GPTQ": _wrong(
        "./med", "1 bits", "states 4", spoil=damage.packed(
            {".qweight": "I32", ".qzeros": "I32", ".scales": "F16", ".g_idx": "I32"},
            {"quant_method": "gptq", "bits": 4, "group_size": 128},
        ),
    ),
    "AWQ that its config hides": _wrong(
        "./med", "GPTQ or AWQ",
        spoil=damage.packed({".qweight": "I32", ".qzeros": "I32", ".scales": "F16"}, None),
    ),
    "bitsandbytes": _wrong(
        "./med", "bitsandbytes",
        spoil=damage.packed(
            {".weight": "U8", ".weight.absmax": "F32", ".weight.quant_map": "F32"},
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
        ),
    ),
    "whole numbers that differ": _wrong(
        "model.ids", "whole numbers", late=True,
        spoil=damage.everywhere(damage.numbered("model.ids")),
    ),
    "NaN in a weight": _wrong(UP, "./med", "NaN", late=True, spoil=damage.value(UP, float("nan"))),
    "infinity in a weight": _wrong(
        NORM, "./med", "infinity", late=True, spoil=damage.value(NORM, float("-inf"))
    ),
    "overflow in float16": _wrong(
        "overflows", "F16", "bfloat16", late=True, swap=("dtype: bfloat16", "dtype: float16"),
        spoil=damage.scaled(1e6),
    ),
    "stack beyond a model": _wrong(
        "recipe.yaml:4", "[1, 3]", "./med", "has 2", recipe=STACK, swap=("[1, 2]", "[1, 3]")
    ),
}  # fmt: skip

WRONG = RECIPES | COMMANDS | FILES | MODELS


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three good models and a good recipe."""
    root = tmp_path_factory.mktemp("right")
    write_small(root)
    return root


@pytest.fixture
def place(right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with a copy of the good models, which is the current one."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    place = tmp_path / "place"
    shutil.copytree(right, place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
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
    assert len(outcome.error) < 1500


@pytest.mark.parametrize("name", WRONG)
def test_is_refused(place: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    wrong = WRONG[name]
    old, new = wrong.swap
    assert old in wrong.recipe, "the recipe does not hold what is to be replaced"
    Path("recipe.yaml").write_text(wrong.recipe.replace(old, new, 1) if old else wrong.recipe)
    if wrong.spoil is not None:
        wrong.spoil(Path("med"))
    before = tree(place)
    arguments = wrong.arguments or ("recipe.yaml",)
    outcome = _run(capsys, "merge", *arguments, "--out", "new/out")
    _assert_one_clear_message(outcome, wrong.words)
    if wrong.late:
        assert {path.name for path in Path("new").iterdir()} <= {partial_of(Path("out")).name}
        assert tree(place, but=["new"]) == before
        assert _run(capsys, "check", "recipe.yaml").code == 0
        return
    assert tree(place) == before
    if not wrong.arguments:
        check = _run(capsys, "check", "recipe.yaml")
        assert check.code == 2
        for word in wrong.words:
            assert word in check.stdout + check.stderr, (word, check)
        dry = _run(capsys, "merge", "recipe.yaml", "--dry-run")
        _assert_one_clear_message(dry, wrong.words)
        assert tree(place) == before


def test_the_good_models_merge(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for recipe in (RECIPE, SLERP, STACK):
        Path("recipe.yaml").write_text(recipe)
        assert _run(capsys, "check", "recipe.yaml").code == 0
        outcome = _run(capsys, "merge", "recipe.yaml", "--out", "out", "--overwrite")
        assert outcome.code == 0, outcome.stderr
        assert Path("out/model.safetensors").exists()


def test_a_misspelt_verb_is_guessed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = _run(capsys, "mrege", "recipe.yaml")
    _assert_one_clear_message(outcome, ("'mrege'", "merge"))


def test_nothing_to_do_is_explained(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = _run(capsys, "merge")
    _assert_one_clear_message(outcome, ("CONFIG",))


def test_a_repaired_model_merges_as_if_nothing_had_been(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(capsys, "merge", "recipe.yaml", "--out", "right").code == 0
    good = Path("med", WEIGHTS).read_bytes()
    damage.value(UP, float("nan"))(Path("med"))
    assert _run(capsys, "merge", "recipe.yaml", "--out", "out").code == 2
    Path("med", WEIGHTS).write_bytes(good)
    assert _run(capsys, "merge", "recipe.yaml", "--out", "out").code == 0
    assert Path("out", WEIGHTS).read_bytes() == Path("right", WEIGHTS).read_bytes()
    assert not partial_of(Path("out")).exists()
