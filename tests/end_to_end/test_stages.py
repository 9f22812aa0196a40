"""A recipe of several stages gives what writing each stage and merging the folders gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from forge import api
from forge.checkpoints.source import open_safetensors
from forge.core.errors import ForgeError, IncompatibleError, NonFiniteError, RecipeError
from forge.merge.catalog import METHODS
from forge.merge.stages import open_models
from forge.recipes.merge_recipe import load_merge_recipe, parse_merge_recipe
from forge.report import lineage
from tests.end_to_end.command import forge
from tests.factory import read_values, tiny_checkpoint, to_bytes, write_safetensors

INNER = """\
name: med
merge_method: dare_ties
base_model: ./base
models:
  - model: ./one
    parameters: {density: 0.5, weight: 0.6}
  - model: ./two
    parameters: {density: 0.7, weight: 0.5}
dtype: bfloat16
seed: 7
"""
OUTER = """\
merge_method: slerp
base_model: med
models:
  - model: ./chat
parameters: {t: 0.3}
dtype: bfloat16
"""
CHAIN = """\
name: half
merge_method: linear
models:
  - model: ./one
    parameters: {weight: 1}
  - model: med
    parameters: {weight: 1}
dtype: float32
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for number, name in enumerate(("base", "one", "two", "chat")):
        tiny_checkpoint(tmp_path / name, tune=number or None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def same_files(first: Path, second: Path) -> None:
    """All but the manifest and the card, which say how it was made."""
    names = {path.name for path in first.iterdir()} - {"forge_manifest.json", "README.md"}
    assert names == {path.name for path in second.iterdir()} - {"forge_manifest.json", "README.md"}
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def write(text: str, name: str = "recipe.yaml") -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_stage_is_the_folder_it_would_be(here: Path) -> None:
    staged = api.merge(write(f"{INNER}---\n{OUTER}"), Path("staged"), threads=2)
    api.merge(write(INNER, "inner.yaml"), Path("med"))
    api.merge(write(OUTER.replace("base_model: med", "base_model: ./med")), Path("written"))
    same_files(Path("staged"), Path("written"))
    manifest = staged.manifest
    recipe = manifest["recipe"]
    assert isinstance(recipe, dict)
    assert recipe["stages"]["med"]["seed"] == 7
    inputs = manifest["inputs"]
    assert isinstance(inputs, list)
    assert [entry["model"] for entry in inputs] == ["./chat", "med"]
    assert [entry["model"] for entry in inputs[1]["inputs"]] == ["./one", "./two", "./base"]
    (file,) = inputs[1]["inputs"][0]["files"]
    assert file["name"] == "model.safetensors"
    assert not list(Path().glob("*.partial"))


def test_all_three_spellings_mean_the_same(here: Path) -> None:
    documents = load_merge_recipe(write(f"{INNER}---\n{OUTER}"), METHODS)
    write(INNER, "sub/med.yaml")
    # From the folder of the file that says so; models from the working directory, as always.
    named = write(
        OUTER.replace("base_model: med", "base_model: {recipe: med.yaml}"), "sub/out.yaml"
    )
    assert load_merge_recipe(named, METHODS) == documents
    assert parse_merge_recipe(documents.resolved(), METHODS) == documents
    value = json.loads(json.dumps(documents.resolved()))
    assert list(value["stages"]) == ["med"]
    assert [str(model) for model in documents.origins()] == ["./one", "./two", "./base", "./chat"]


def test_stages_of_stages_and_shared_ones(here: Path) -> None:
    """``med`` enters twice: as the base, and through ``half``."""
    outer = OUTER.replace("slerp", "task_arithmetic").replace("./chat", "half")
    outer = outer.replace("{t: 0.3}", "{weight: 0.5}")
    api.merge(write(f"{INNER}---\n{CHAIN}---\n{outer}"), Path("staged"), threads=3)
    api.merge(write(INNER, "inner.yaml"), Path("med"))
    api.merge(write(CHAIN.replace("model: med", "model: ./med"), "chain.yaml"), Path("half"))
    outer = outer.replace("model: half", "model: ./half").replace("model: med", "model: ./med")
    api.merge(write(outer, "outer.yaml"), Path("written"))
    same_files(Path("staged"), Path("written"))


def test_every_tensor_of_a_stage_is_computed_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages that use all those before them, the last first: 2^n without a memory."""
    from forge.merge import stage_source

    texts, names = [], ["./one"]
    for number in range(12):
        models = "".join(
            f"  - model: {name}\n    parameters: {{weight: 1}}\n" for name in reversed(names)
        )
        texts.append(f"name: s{number}\nmerge_method: linear\nmodels:\n{models}")
        names.append(f"s{number}")
    recipe = load_merge_recipe(write("---\n".join(texts)), METHODS)
    counts: dict[str, int] = {}
    compute = stage_source.compute

    def counted(job, *rest, **named):  # type: ignore[no-untyped-def]
        counts[job.output] = counts.get(job.output, 0) + 1
        return compute(job, *rest, **named)

    monkeypatch.setattr(stage_source, "compute", counted)
    api.merge(recipe, Path("out"), threads=1)
    assert set(counts.values()) == {11}


def test_a_stage_may_make_a_vocabulary(here: Path) -> None:
    tiny_checkpoint(here / "more", tune=9, vocab=40, extra_tokens=["zebra", "yak"])
    inner = (
        "name: wide\nmerge_method: linear\ntokenizer_source: union\nmodels:\n"
        "  - model: ./one\n    parameters: {weight: 1}\n"
        "  - model: ./more\n    parameters: {weight: 1}\n"
    )
    outer = (
        "merge_method: linear\nmodels:\n  - model: wide\n    parameters: {weight: 2}\n"
        "  - model: ./more\n    parameters: {weight: 1}\ntokenizer_source: wide\n"
    )
    api.merge(write(f"{inner}---\n{outer}"), Path("staged"))
    api.merge(write(inner, "inner.yaml"), Path("wide"))
    api.merge(write(outer.replace("wide", "./wide"), "outer.yaml"), Path("written"))
    same_files(Path("staged"), Path("written"))


def test_check_and_dry_run_look_into_stages(here: Path) -> None:
    path = write(f"{INNER}---\n{OUTER}")
    report = api.check(path)
    assert not report.errors
    shown = forge("merge", str(path), "--dry-run", cwd=here)
    assert shown.code == 0, shown.stderr
    assert "med, a stage that is computed while it is read: dare_ties of ./one" in shown.stdout
    tiny_checkpoint(here / "two", hidden=8)
    with pytest.raises(IncompatibleError, match=r"Stage 'med': .*two"):
        api.check(path)
    failed = forge("check", str(path), cwd=here)
    assert failed.code == 2
    assert "Traceback" not in failed.stderr


def test_a_warning_of_a_stage_is_a_warning_of_the_recipe(here: Path) -> None:
    """A grid in ``one`` is as probably not meant there as in a recipe of one stage."""
    for name in ("base", "one", "two", "chat"):
        tiny_checkpoint(here / name, hidden=128)
    values = read_values(here / "one")
    for name, value in values.items():
        if value.ndim == 2 and ".layers." in name:
            groups = value.reshape(len(value), -1, 32)
            step = np.abs(groups).max(axis=-1, keepdims=True) / 7
            values[name] = (np.rint(groups / step) * step).reshape(value.shape)
    write_safetensors(
        here / "one" / "model.safetensors",
        {name: ("BF16", value.shape, to_bytes(value, "BF16")) for name, value in values.items()},
    )
    plain = api.check(write(INNER, "inner.yaml")).warnings
    staged = api.check(write(f"{INNER}---\n{OUTER}")).warnings
    assert [(one.code, one.message) for one in staged] == [
        ("stage", f"Stage 'med': {one.message}") for one in plain
    ]
    assert "lie on a grid" in staged[0].message


def test_a_repeated_run_has_nothing_to_do_and_a_changed_leaf_has(here: Path) -> None:
    path = write(f"{INNER}---\n{OUTER}")
    first = api.merge(path, Path("out"))
    again = api.merge(path, Path("out"))
    assert again.resumed_tensors == first.num_tensors
    tiny_checkpoint(here / "two", tune=5)
    with pytest.raises(ForgeError, match="out"):
        api.merge(path, Path("out"))
    changed = api.merge(path, Path("out"), overwrite=True)
    assert changed.manifest["content_digest"] != first.manifest["content_digest"]
    assert forge("verify", "out", cwd=here).code == 0


def test_a_nan_in_a_stage_is_named(here: Path) -> None:
    def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:  # type: ignore[type-arg]
        return np.full(shape, np.nan if "up_proj" in name else 0.1)

    tiny_checkpoint(here / "two", fill=fill)
    with pytest.raises(NonFiniteError, match=r"up_proj.*'\./two' holds a NaN"):
        api.merge(write(f"{INNER}---\n{OUTER}"), Path("out"))
    assert not Path("out").exists()


def test_the_card_names_what_stages_are_made_of(here: Path) -> None:
    api.merge(write(f"{INNER}---\n{OUTER}".replace("./one", str(here / "one"))), Path("out"))
    card = Path("out/README.md").read_text()
    assert "- `one`" in card
    assert str(here) not in card


def test_a_report_lists_the_models_of_stages_and_not_the_stages(here: Path) -> None:
    manifest = api.merge(write(f"{INNER}---\n{OUTER}"), Path("out")).manifest
    parents = [entry["model"] for entry in lineage._inputs(manifest, 16)]
    assert parents == ["./chat", "./one", "./two", "./base"]


def test_reading_is_that_of_the_folder_whoever_asks(here: Path) -> None:
    recipe = load_merge_recipe(write(f"{INNER}---\n{OUTER}"), METHODS)
    api.merge(write(INNER, "inner.yaml"), Path("med"))
    written = open_safetensors(Path("med"), label="med")
    models = open_models(recipe, weights=True)
    stage = next(model.source for model in models.values() if model.parts)
    assert stage.names() == tuple(written.names())
    for name in stage.names():
        one, other = stage.read(name), stage.read(name)
        assert one == written.read(name)
        assert one.obj is other.obj
        assert one.readonly
    root = next(model.root for model in models.values() if model.parts)
    assert (root / "config.json").is_file()
    stage.close()
    assert not root.exists()
    with pytest.raises(ForgeError, match="closed"):
        stage.read(stage.names()[0])


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"recipe.yaml": f"{INNER.replace('name: med', '')}---\n{OUTER}"}, "without a name"),
        (
            {"recipe.yaml": f"{INNER.replace('./two', 'med')}---\n{OUTER}"},
            r"recipe.yaml:7 models\[1\].model: 'med' is this stage itself, or stands behind it",
        ),
        (
            {"recipe.yaml": f"{CHAIN}---\n{INNER}---\n{OUTER.replace('./chat', 'half')}"},
            "'med' is this stage itself, or stands behind it",
        ),
        (
            {
                "recipe.yaml": OUTER.replace("med", "{recipe: a.yaml}"),
                "a.yaml": INNER.replace("./two", "{recipe: b.yaml}"),
                "b.yaml": CHAIN.replace("model: med", "model: {recipe: a.yaml}"),
            },
            "circle: a.yaml → b.yaml → a.yaml",
        ),
        ({"recipe.yaml": OUTER.replace("med", "{recipe: gone.yaml}")}, "gone.yaml.*does not exist"),
        ({"recipe.yaml": OUTER.replace("med", '{recipe: "a\\0b"}')}, "a control character"),
        ({"recipe.yaml": OUTER.replace("med", f"{{recipe: {'x' * 300}}}")}, "name too long"),
        ({"recipe.yaml": OUTER.replace("med", "{recipe: /}")}, "is not a file"),
        ({"recipe.yaml": OUTER.replace("med", "{recipe: [1]}")}, "written {recipe: file.yaml}"),
        ({"recipe.yaml": OUTER.replace("med", "{recipe: a.yaml, x: 1}")}, "and nothing else"),
        (
            {"recipe.yaml": f"{INNER}---\n{OUTER.replace('model: med', 'model: med@main')}"},
            "A stage has no revisions",
        ),
        (
            {"recipe.yaml": f"{INNER}---\n{INNER.replace('seed: 7', 'seed: 8')}---\n{OUTER}"},
            "Two stages are called 'med'",
        ),
        (
            {"recipe.yaml": f"{INNER.replace('name: med', 'name: ../med')}---\n{OUTER}"},
            "cannot name a stage",
        ),
        (
            {"recipe.yaml": f"{INNER.replace('density: 0.5', 'density: 5')}---\n{OUTER}"},
            r"recipe.yaml:6 models\[0\].parameters.density: 5 is outside",
        ),
        ({"recipe.yaml": f"{INNER}---\n" * 40 + OUTER}, "More than 32 documents"),
        ({"recipe.yaml": f"stages: 3\n{OUTER}"}, "must be a mapping from names to recipes"),
        ({"recipe.yaml": f"stages: {{a: {{stages: {{}}}}}}\n{OUTER}"}, "Stages do not nest"),
        ({"recipe.yaml": f"--- 3\n---\n{OUTER}"}, "must be a mapping"),
    ],
)
def test_wrong_stages_are_refused(here: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        write(text, name)
    with pytest.raises(RecipeError, match=said):
        api.load_recipe("recipe.yaml")


def test_a_chain_of_files_has_an_end(here: Path) -> None:
    for number in range(10):
        write(OUTER.replace("med", f"{{recipe: f{number + 1}.yaml}}"), f"f{number}.yaml")
    write(INNER, "f10.yaml")
    with pytest.raises(RecipeError, match="More than 8 recipes name each other"):
        api.load_recipe("f0.yaml")


def test_an_unused_stage_is_noticed_and_not_opened(here: Path) -> None:
    unused = INNER.replace("name: med", "name: other").replace("./two", "./nowhere")
    recipe = load_merge_recipe(write(f"{unused}---\n{INNER}---\n{OUTER}"), METHODS)
    assert recipe.notices == ("The stage 'other' is used by nothing, and not computed.",)
    assert read_values(api.merge(recipe, Path("out")).out)


def test_a_seed_holds_for_all_stages(here: Path) -> None:
    recipe = api.load_recipe(str(write(f"{INNER}---\n{OUTER}")), seed=3)
    assert recipe.seed == 3
    assert [stage.seed for _, stage in recipe.stages] == [3]
