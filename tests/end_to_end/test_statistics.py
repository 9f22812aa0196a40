"""From a model to its statistics to a merge that weights by them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from forge import api
from forge.checkpoints import statistics_file
from forge.core.errors import ForgeError, IncompatibleError, OutputError, RecipeError
from forge.merge.catalog import METHODS
from forge.recipes.merge_recipe import load_merge_recipe, parse_merge_recipe
from tests.end_to_end.command import forge
from tests.factory import read_values, tiny_checkpoint, write_safetensors
from tests.reference import methods as reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

QUERY, KEY = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
DOWN = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A tiny model's backward pass is not worth a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of one base, tokens, and both kinds of statistics of each."""
    root = tmp_path_factory.mktemp("statistics")
    draw = np.random.default_rng(0)
    for number, name in enumerate(("one", "two"), start=1):
        tiny_checkpoint(root / name, tune=number, tune_scale=1.0, dtype="F32")
        tokens = draw.integers(4, 30, (10, 26)).astype("<i4")
        np.save(root / f"{name}.npy", tokens)
        chosen = {"calibration": str(root / f"{name}.npy")}
        for kind in ("regmean", "fisher"):
            api.calibrate(
                str(root / name), kind, root / f"{name}-{kind}",  # type: ignore[arg-type]
                calibration=chosen, labels="text", threads=2,
            )  # fmt: skip
    return root


def model_of(folder: Path):  # type: ignore[no-untyped-def]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def tokens_of(room: Path, name: str):  # type: ignore[no-untyped-def]
    return torch.from_numpy(np.load(room / f"{name}.npy").astype(np.int64))


def recipe_of(room: Path, kind: str, **more: object) -> dict[str, object]:
    return {
        "merge_method": kind,
        "models": [
            {
                "model": str(room / name),
                "statistics": str(room / f"{name}-{kind}"),
                "parameters": {"weight": weight},
            }
            for name, weight in (("one", 1.0), ("two", 0.5))
        ],
        **more,
    }


def merge(value: dict[str, object], out: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    api.merge(parse_merge_recipe(value, METHODS), out)
    return read_values(out)


def test_second_moments_are_those_of_hooks_on_the_whole_model(room: Path) -> None:
    model = model_of(room / "one")
    sums: dict[str, np.ndarray] = {}  # type: ignore[type-arg]

    def hook(name: str):  # type: ignore[no-untyped-def]
        def add(_module: object, arguments: tuple) -> None:  # type: ignore[type-arg]
            rows = arguments[0].reshape(-1, arguments[0].shape[-1])
            sums[name] = (rows.T @ rows / len(rows)).numpy()

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            module.register_forward_pre_hook(hook(f"{name}.weight"))
    with torch.no_grad():
        model(tokens_of(room, "one"))
    held = read_values(room / "one-regmean")
    manifest = json.loads((room / "one-regmean" / "forge_manifest.json").read_text())
    shared = manifest["statistics"]["shared"]
    assert set(shared) == set(sums)
    assert shared[KEY] == QUERY
    for name, expected in sums.items():
        found = held[shared[name]]
        assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max(), name


def test_regmean_of_checkpoints_equals_the_normal_equations(room: Path, tmp_path: Path) -> None:
    values = merge(recipe_of(room, "regmean"), tmp_path / "out")
    models = [read_values(room / name) for name in ("one", "two")]
    held = [read_values(room / f"{name}-regmean") for name in ("one", "two")]
    for name, holder in ((QUERY, QUERY), (KEY, QUERY), (DOWN, DOWN)):
        expected = reference.regmean(
            [model[name].astype(np.float64) for model in models],
            grams=[each[holder].astype(np.float64) for each in held],
            weights=[1.0, 0.5],
        )
        assert np.abs(values[name] - expected).max() <= 1e-6 * np.abs(expected).max()
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        mean = (models[0][name].astype(np.float64) + 0.5 * models[1][name]) / 1.5
        np.testing.assert_allclose(values[name], mean, atol=1e-7)
    entries = json.loads((tmp_path / "out" / "forge_manifest.json").read_text())["inputs"]
    assert entries[0]["statistics"]["num_tokens"] == 260
    assert entries[0]["statistics"]["files"][0]["name"] == "model.safetensors"


def test_weights_stored_in_by_out_are_solved_for_as_such(tmp_path: Path) -> None:
    """GPT-2: a square matrix does not tell which of its sides reads."""
    np.save(tmp_path / "t.npy", np.random.default_rng(2).integers(4, 30, (10, 26)).astype("<i4"))
    for number, name in enumerate(("one", "two"), start=1):
        tiny_checkpoint(
            tmp_path / name, model_type="gpt2", tune=number, tune_scale=1.0, dtype="F32", tie=True
        )
        api.calibrate(
            str(tmp_path / name), "regmean", tmp_path / f"{name}-regmean",
            calibration={"calibration": str(tmp_path / "t.npy")},
        )  # fmt: skip
    values = merge(recipe_of(tmp_path, "regmean"), tmp_path / "out")
    models = [read_values(tmp_path / name) for name in ("one", "two")]
    held = [read_values(tmp_path / f"{name}-regmean") for name in ("one", "two")]
    square = [name for name in held[0] if "attn.c_proj" in name]
    assert square
    for name in held[0]:
        expected = reference.regmean(
            [model[name].astype(np.float64).T for model in models],
            grams=[each[name].astype(np.float64) for each in held],
            weights=[1.0, 0.5],
        ).T
        assert np.abs(values[name] - expected).max() <= 1e-6 * np.abs(expected).max(), name


def test_rearranged_embeddings_have_no_statistics(room: Path, tmp_path: Path) -> None:
    """Rows of a new vocabulary are not those whose gradients were squared."""
    tiny_checkpoint(
        tmp_path / "two", tune=2, dtype="F32", vocab=40, extra_tokens=["yak"], tune_scale=1.0
    )
    chosen = {"calibration": str(room / "two.npy")}
    api.calibrate(
        str(tmp_path / "two"), "fisher", tmp_path / "two-fisher", calibration=chosen, labels="text"
    )
    value = recipe_of(room, "fisher", tokenizer_source="union")
    value["models"][1] |= {  # type: ignore[index]
        "model": str(tmp_path / "two"),
        "statistics": str(tmp_path / "two-fisher"),
    }
    merge(value, tmp_path / "out")
    tensors = json.loads((tmp_path / "out" / "forge_manifest.json").read_text())["tensors"]
    assert tensors["model.embed_tokens.weight"]["fallback"] == "mean: no statistics"
    assert "fallback" not in tensors[QUERY]


def test_regmean_is_nearer_to_both_models_than_their_mean(room: Path, tmp_path: Path) -> None:
    """On the inputs that were seen, which is what it promises."""
    near = merge(recipe_of(room, "regmean", parameters={"alpha": 1.0}), tmp_path / "near")
    value = recipe_of(room, "linear")
    for entry in value["models"]:  # type: ignore[attr-defined]
        del entry["statistics"]
    mean = merge(value, tmp_path / "mean")

    def error(merged: dict[str, np.ndarray], name: str) -> float:  # type: ignore[type-arg]
        total = 0.0
        for label, weight in (("one", 1.0), ("two", 0.5)):
            gram = read_values(room / f"{label}-regmean")[name].astype(np.float64)
            moved = merged[name].astype(np.float64) - read_values(room / label)[name]
            total += weight * float(np.trace(moved @ gram @ moved.T))
        return total

    for name in (QUERY, DOWN):
        assert error(near, name) < 0.9 * error(mean, name)


def test_fisher_is_the_mean_square_of_autograds_gradients(room: Path) -> None:
    model = model_of(room / "one")
    tokens = tokens_of(room, "one")
    names = [name for name, _ in model.named_parameters()]
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for row in tokens:
        logs = torch.log_softmax(model(row[None]).logits[0], dim=-1)
        score = sum(logs[t, row[t + 1]] for t in range(len(row) - 1))
        for total, gradient in zip(
            sums, torch.autograd.grad(score, list(model.parameters())), strict=True
        ):
            total += gradient**2
    held = read_values(room / "one-fisher")
    assert set(held) == set(names)
    count = len(tokens) * (tokens.shape[1] - 1)
    for name, total in zip(names, sums, strict=True):
        expected = (total / count).numpy()
        assert np.abs(held[name] - expected).max() <= 1e-4 * np.abs(expected).max(), name


def test_drawn_labels_give_the_fisher_information(room: Path, tmp_path: Path) -> None:
    """One position, many draws: near Σ_y p(y) (∂ log p(y))².

    The text's own label would put nearly all of it into that label's row of the head.
    """
    row = np.array([[5, 9]], "<i4")
    np.save(tmp_path / "many.npy", np.repeat(row, 130, axis=0))
    chosen = {"calibration": str(tmp_path / "many.npy"), "seed": 3}
    api.calibrate(str(room / "one"), "fisher", tmp_path / "first", calibration=chosen)
    held = read_values(tmp_path / "first")["lm_head.weight"]
    model = model_of(room / "one")
    logs = torch.log_softmax(model(torch.tensor([[5]])).logits[0, 0], dim=-1)
    head = model.lm_head.weight
    exact = torch.zeros_like(head)
    for label in range(len(logs)):
        (gradient,) = torch.autograd.grad(logs[label], head, retain_graph=True)
        exact += logs[label].exp().detach() * gradient**2
    assert abs(held.sum() / float(exact.sum()) - 1) < 0.05
    assert held[9].sum() < 0.2 * held.sum()
    assert float(exact[9].sum()) < 0.1 * float(exact.sum())


def test_fisher_merges_by_its_statistics(room: Path, tmp_path: Path) -> None:
    values = merge(recipe_of(room, "fisher"), tmp_path / "out")
    models = [read_values(room / name) for name in ("one", "two")]
    held = [read_values(room / f"{name}-fisher") for name in ("one", "two")]
    for name, value in values.items():
        expected = reference.fisher(
            [model[name].astype(np.float64) for model in models],
            fishers=[each[name].astype(np.float64) for each in held],
            weights=[1.0, 0.5],
        )
        np.testing.assert_allclose(value, expected, atol=1e-7)


def test_the_command_collects_and_a_recipe_file_merges(room: Path, tmp_path: Path) -> None:
    done = forge(
        "calibrate", str(room / "one"), "--statistics", "regmean", "--out", "stats",
        "--calibration", str(room / "one.npy"), "--json", "-q", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["num_tokens"] == 260
    assert read_values(tmp_path / "stats").keys() == read_values(room / "one-regmean").keys()
    assert forge("verify", "stats", cwd=tmp_path).code == 0
    again = forge(
        "calibrate", str(room / "one"), "--statistics", "regmean", "--out", "stats",
        "--calibration", str(room / "two.npy"), "-q", cwd=tmp_path,
    )  # fmt: skip
    assert again.code == 2
    assert "--overwrite" in again.error


def test_an_interrupted_collection_goes_on(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from forge.quantize.collecting import moments

    run, calls = moments.run_block, []

    def once(*arguments, **named):  # type: ignore[no-untyped-def]
        calls.append(named["places"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*arguments, **named)

    monkeypatch.setattr(moments, "run_block", once)
    chosen = {"calibration": str(room / "one.npy")}
    with pytest.raises(KeyboardInterrupt):
        api.calibrate(str(room / "one"), "regmean", tmp_path / "out", calibration=chosen)
    assert not (tmp_path / "out").exists()
    result = api.calibrate(str(room / "one"), "regmean", tmp_path / "out", calibration=chosen)
    assert result.resumed_tensors == 4
    assert calls[2] == ()
    for name, values in read_values(room / "one-regmean").items():
        np.testing.assert_array_equal(read_values(tmp_path / "out")[name], values)


@pytest.mark.parametrize("kind", ["regmean", "fisher"])
def test_statistics_that_are_there_are_not_collected_again(
    room: Path, tmp_path: Path, kind: Literal["regmean", "fisher"]
) -> None:
    def again(model: str = "one", calibration: str = "one", **settings: Any) -> Any:
        chosen = {"calibration": str(room / f"{calibration}.npy")}
        return api.calibrate(
            str(tmp_path / model), kind, tmp_path / "out", calibration=chosen, labels="text",
            **settings,
        )  # fmt: skip

    shutil.copytree(room / "one", tmp_path / "one")
    shutil.copytree(room / "two", tmp_path / "two")
    first = again()
    before = (tmp_path / "out" / "model.safetensors").stat()
    second = again()
    assert (second.resumed_tensors, second.manifest) == (first.num_tensors, first.manifest)
    assert (tmp_path / "out" / "model.safetensors").stat() == before
    for other in ({"model": "two"}, {"calibration": "two"}):
        with pytest.raises(OutputError, match="exists and is not empty"):
            again(**other)
    assert not again(overwrite=True).resumed_tensors


def test_statistics_of_another_model_are_refused(
    room: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = recipe_of(room, "regmean")
    first, second = value["models"]  # type: ignore[misc, has-type]
    first["statistics"], second["statistics"] = second["statistics"], first["statistics"]
    with pytest.raises(IncompatibleError, match="two-regmean' was collected from other weights"):
        merge(value, tmp_path / "out")
    with pytest.raises(IncompatibleError, match="was collected from other weights"):
        api.check(parse_merge_recipe(value, METHODS))
    # Where a glance does not tell, the hashes of what was read do, before anything is published.
    monkeypatch.setattr(statistics_file, "probe", lambda files: None)
    monkeypatch.setattr(statistics_file, "_check_shapes", lambda *arguments: None)
    original = statistics_file.read_manifest

    def unprobed(root: Path):  # type: ignore[no-untyped-def]
        manifest = original(root)
        assert manifest is not None
        manifest.content["statistics"]["probe"] = None  # type: ignore[index]
        return manifest

    monkeypatch.setattr(statistics_file, "read_manifest", unprobed)
    with pytest.raises(IncompatibleError, match="was collected from other weights"):
        merge(value, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"statistics": None}, r"models\[0\].statistics: regmean needs statistics of .*calibrate"),
        ({"statistics": "one-fisher"}, "holds statistics for fisher, but regmean is asked for"),
        ({"statistics": "one"}, "'.*one' holds no statistics. Collect them: forge calibrate"),
        ({"statistics": "nowhere"}, "holds no statistics"),
    ],
)
def test_wrong_statistics_are_refused(
    room: Path, tmp_path: Path, change: dict[str, str | None], said: str
) -> None:
    value = recipe_of(room, "regmean")
    entry = value["models"][0]  # type: ignore[index]
    for key, text in change.items():
        if text is None:
            del entry[key]
        else:
            entry[key] = str(room / text)
    with pytest.raises(ForgeError, match=said):
        merge(value, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shared": {"model.norm.weight": "gone"}}, "'statistics.shared' names no tensors of it"),
        ({"shared": [1]}, "'statistics.shared' names no tensors of it"),
        ({"shared": {"lm_head.weight": DOWN}}, r"'lm_head.weight' that are F32 \[\d+, \d+\]"),
        ({"shared": {"nothing": DOWN}}, "statistics of 'nothing'"),
        ({"transposed": True}, "does not fit"),
        ({"probe": "0" * 64}, "was collected from other weights"),
        ({"kind": ["regmean"]}, "but regmean is asked for"),
    ],
    ids=str,
)
def test_damaged_statistics_are_refused(
    room: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    shutil.copytree(room / "one-regmean", tmp_path / "stats")
    manifest = json.loads((tmp_path / "stats" / "forge_manifest.json").read_text())
    manifest["statistics"] |= change
    (tmp_path / "stats" / "forge_manifest.json").write_text(json.dumps(manifest))
    value = recipe_of(room, "regmean")
    value["models"][0]["statistics"] = str(tmp_path / "stats")  # type: ignore[index]
    with pytest.raises(ForgeError, match=said):
        merge(value, tmp_path / "out")


def test_a_path_that_is_none_is_an_error(room: Path, tmp_path: Path) -> None:
    value = recipe_of(room, "regmean")
    for path in ("x" * 300, str(room / "one.npy")):
        value["models"][0]["statistics"] = path  # type: ignore[index]
        with pytest.raises(ForgeError, match=r"cannot be read|holds no statistics"):
            merge(value, tmp_path / "out")


def test_recipes_say_where_statistics_have_no_place(room: Path) -> None:
    value = recipe_of(room, "regmean") | {"merge_method": "linear"}
    with pytest.raises(RecipeError, match="linear reads no statistics"):
        parse_merge_recipe(value, METHODS)
    value = recipe_of(room, "fisher", base_model="base")
    with pytest.raises(RecipeError, match="List base among 'models'"):
        parse_merge_recipe(value, METHODS)
    sources = [
        {"model": entry["model"], "layer_range": [0, 2]}
        for entry in value["models"]  # type: ignore[attr-defined]
    ]
    value = {"merge_method": "fisher", "slices": [{"sources": sources}]}
    with pytest.raises(RecipeError, match="fisher merges whole models"):
        parse_merge_recipe(value, METHODS)


def test_the_resolved_recipe_keeps_statistics(room: Path, tmp_path: Path) -> None:
    recipe = parse_merge_recipe(recipe_of(room, "regmean"), METHODS)
    assert parse_merge_recipe(recipe.resolved(), METHODS) == recipe
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert load_merge_recipe(tmp_path / "r.yaml", METHODS) == recipe


def test_a_stage_may_merge_by_statistics(room: Path, tmp_path: Path) -> None:
    inner = recipe_of(room, "regmean")
    outer = {
        "stages": {"near": inner},
        "merge_method": "passthrough",
        "models": [{"model": "near"}],
    }
    staged = merge(outer, tmp_path / "staged")
    written = merge(inner, tmp_path / "written")
    for name, value in written.items():
        np.testing.assert_array_equal(staged[name], value)


def test_a_nan_in_statistics_is_refused(room: Path, tmp_path: Path) -> None:
    held = read_values(room / "one-fisher")
    held[DOWN][0, 0] = np.nan
    folder = tmp_path / "broken"
    folder.mkdir()
    write_safetensors(
        folder / "model.safetensors",
        {name: ("F32", value.shape, value.astype("<f4").tobytes()) for name, value in held.items()},
    )
    manifest = (room / "one-fisher" / "forge_manifest.json").read_text()
    (folder / "forge_manifest.json").write_text(manifest)
    value = recipe_of(room, "fisher")
    value["models"][0]["statistics"] = str(folder)  # type: ignore[index]
    with pytest.raises(ForgeError, match=r"down_proj.*statistics of model 1 hold a NaN"):
        merge(value, tmp_path / "out")
