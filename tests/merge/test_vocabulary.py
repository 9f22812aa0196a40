"""Vocabularies in one order: every row of every model against a loop of plain numpy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.core.errors import CheckpointError, IncompatibleError, OutputError
from forge.merge.catalog import METHODS
from forge.merge.check import preflight
from forge.merge.run import run_merge
from forge.merge.vocabulary.planning import RemappedSource, VocabularyPlan, plan_vocabulary, remap
from forge.recipes.merge_recipe import MergeRecipe, parse_merge_recipe
from forge.recipes.reference import ModelReference
from tests.factory import from_bytes, read_values, tiny_checkpoint, write_safetensors

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BASE_WORDS = 16
Fill = Callable[[str, tuple[int, ...]], npt.ArrayLike]


def numbered(model: int) -> Fill:
    """Fill each row with a number that names model and row, so that a wrong row shows itself."""

    def fill(name: str, shape: tuple[int, ...]) -> npt.ArrayLike:
        if len(shape) == 1:
            return np.ones(shape, np.float32)
        rows = np.arange(shape[0], dtype=np.float32)[:, None]
        return rows + np.float32(1000 * model + (500 if name == HEAD else 0))

    return fill


def make(folder: Path, number: int, **options: object) -> Path:
    root = folder / f"m{number}"
    settings: dict[str, object] = {"dtype": "F32", "vocab": 32, "fill": numbered(number)}
    return tiny_checkpoint(root, **{**settings, **options})  # type: ignore[arg-type]


def add_tokens(root: Path, tokens: Sequence[str], *, special: bool = True) -> None:
    """Add tokens to a tokenizer as libraries do."""
    from tokenizers import AddedToken, Tokenizer

    tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
    added = [AddedToken(token, special=special, normalized=False) for token in tokens]
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    tokenizer.save(str(root / "tokenizer.json"))


def recipe_of(roots: Sequence[Path], *, base: Path | None = None, **keys: object) -> MergeRecipe:
    value: dict[str, object] = {
        "merge_method": "linear" if base is None else "task_arithmetic",
        "models": [{"model": str(root), "parameters": {"weight": 1.0}} for root in roots],
        **keys,
    }
    if base is not None:
        value["base_model"] = str(base)
    return parse_merge_recipe(value, METHODS)


def opened(recipe: MergeRecipe) -> dict[ModelReference, Checkpoint]:
    wanted = [*recipe.references()]
    wanted += recipe.tokenizer.references() if recipe.tokenizer else ()
    return {model: open_checkpoint(model) for model in dict.fromkeys(wanted)}


def planned(recipe: MergeRecipe) -> VocabularyPlan:
    plan = plan_vocabulary(recipe, opened(recipe))
    assert plan is not None
    return plan


def ids_of(root: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(root / "tokenizer.json")).get_vocab(with_added_tokens=True)


def ids_in(files: Mapping[str, bytes]) -> dict[str, int]:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(files["tokenizer.json"].decode()).get_vocab(with_added_tokens=True)


def rows_of(
    recipe: MergeRecipe, folder: Path, root: Path, name: str = EMBEDDING
) -> npt.NDArray[np.float32]:
    """Read a remapped tensor through forge."""
    checkpoints = opened(recipe)
    plan = plan_vocabulary(recipe, checkpoints)
    assert plan is not None
    source = remap(checkpoints, plan, folder)[ModelReference.parse(str(root))]
    info = source.info(name)
    assert info.nbytes == len(source.read(name))
    return from_bytes(source.read(name), info.dtype, info.shape)


def test_a_recipe_without_a_tokenizer_changes_nothing(tmp_path: Path) -> None:
    roots = [make(tmp_path, number) for number in (1, 2)]
    recipe = recipe_of(roots)
    assert plan_vocabulary(recipe, opened(recipe)) is None


def test_equal_tokenizers_need_no_rearranging(tmp_path: Path) -> None:
    roots = [make(tmp_path, number) for number in (1, 2)]
    plan = planned(recipe_of(roots, tokenizer={"source": "union"}))
    assert plan.rows == {}
    assert plan.tokenizer_files == {}
    assert plan.num_rows == 32
    assert plan.tokenizer_model == ModelReference(str(roots[0]))


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_a_union_row_by_row(tmp_path: Path, name: str) -> None:
    base = make(tmp_path, 0)
    one = make(tmp_path, 1, extra_tokens=["zoster", "fever2"], vocab=40)
    two = make(tmp_path, 2, extra_tokens=["fever2", "gout"], vocab=24)
    add_tokens(two, ["<|im_start|>"])
    recipe = recipe_of([one, two], base=base, tokenizer={"source": "union"})
    plan = planned(recipe)
    ids = ids_in(plan.tokenizer_files)
    assert {token: ids[token] for token in ids_of(base)} == ids_of(base)
    new = {"zoster": 16, "fever2": 17, "gout": 18, "<|im_start|>": 19}
    assert {token: ids[token] for token in new} == new
    assert len(ids) == BASE_WORDS + len(new)
    assert plan.num_rows == 32

    values = {root: read_values(root)[name] for root in (base, one, two)}
    rows = {"zoster": {one: 16}, "fever2": {one: 17, two: 16}, "gout": {two: 17}}
    rows["<|im_start|>"] = {two: 18}
    for root in (base, one, two):
        expected = np.zeros_like(values[base])
        for token, number in ids.items():
            own = ids_of(root).get(token)
            if own is not None:
                expected[number] = values[root][own]
            elif token in ids_of(base):
                expected[number] = values[base][ids_of(base)[token]]
            else:
                holders = [values[holder][row] for holder, row in rows[token].items()]
                expected[number] = np.mean(holders, axis=0, dtype=np.float32)
        for number in range(len(ids), 32):
            # Padding: the model's own where it has such a row, else the base's.
            has_own = len(ids_of(root)) <= number < len(values[root])
            expected[number] = values[root if has_own else base][number]
        np.testing.assert_array_equal(rows_of(recipe, tmp_path, root, name), expected)


def test_the_source_base_keeps_the_bases_tokens_alone(tmp_path: Path) -> None:
    base = make(tmp_path, 0, extra_tokens=["sepsis"])
    other = make(tmp_path, 1, extra_tokens=["zoster"], vocab=40)
    recipe = recipe_of([other], base=base, tokenizer={"source": "base"})
    plan = planned(recipe)
    assert plan.tokenizer_files == {}
    assert plan.num_rows == 32
    rows = rows_of(recipe, tmp_path, other)
    assert rows.shape == (32, 16)
    np.testing.assert_array_equal(rows[:16, 0], 1000 + np.arange(16))
    assert rows[16, 0] == 16  # 'sepsis' is the base's
    np.testing.assert_array_equal(rows[17:, 0], 1000 + np.arange(17, 32))
    assert any("no place for 1 token of it, such as 'zoster'" in text for text in plan.notices)


def test_the_source_can_be_a_model(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1, extra_tokens=["zoster"], vocab=40)
    recipe = recipe_of([other], base=base, tokenizer={"source": str(other)})
    plan = planned(recipe)
    assert plan.tokenizer_files["tokenizer.json"] == (other / "tokenizer.json").read_bytes()
    assert plan.tokenizer_model == ModelReference(str(other))
    assert plan.num_rows == 40
    rows = rows_of(recipe, tmp_path, base)[:, 0]
    np.testing.assert_array_equal(rows[:17], [*range(16), 1016])
    np.testing.assert_array_equal(rows[17:], [*range(17, 32), *[0] * 8])


def test_a_model_that_only_lends_its_tokenizer(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1)
    lender = make(tmp_path, 2, extra_tokens=["zoster"])
    recipe = recipe_of([other], base=base, tokenizer={"source": str(lender)})
    assert list(planned(recipe).rows) == [ModelReference(str(base)), ModelReference(str(other))]
    assert rows_of(recipe, tmp_path, other)[16, 0] == 2016


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_without_a_base_the_mean_is_rounded_once(tmp_path: Path, dtype: str) -> None:
    def fill(seed: int) -> Fill:
        generator = np.random.default_rng(seed)
        return lambda name, shape: generator.standard_normal(shape).astype(np.float32)

    roots = [
        make(tmp_path, number, dtype=dtype, fill=fill(number), extra_tokens=extra)
        for number, extra in enumerate([["zoster"], ["zoster"], ["zoster"], []])
    ]
    recipe = recipe_of(roots, tokenizer={"source": "union"})
    holders = [read_values(root)[EMBEDDING][16].astype(np.float64) for root in roots[:3]]
    exact = sum(holders) / 3
    found = rows_of(recipe, tmp_path, roots[3])[16].astype(np.float64)
    # Half a unit in the last place; for float64 the error of three operations.
    digits = {"BF16": 8, "F16": 11, "F32": 24, "F64": 50}[dtype]
    assert np.max(np.abs(found - exact) / np.abs(exact)) <= 2.0**-digits * 1.0001
    assert np.any(found != 0)


def test_the_mean_does_not_depend_on_the_order_of_the_models(tmp_path: Path) -> None:
    def fill(seed: int) -> Fill:
        generator = np.random.default_rng(seed)
        return lambda name, shape: generator.standard_normal(shape).astype(np.float32)

    roots = [make(tmp_path, n, fill=fill(n), extra_tokens=["gout"]) for n in range(5)]
    last = make(tmp_path, 9)
    rows = [
        rows_of(recipe_of([*order, last], tokenizer={"source": "union"}), tmp_path, last)
        for order in (roots, roots[::-1])
    ]
    np.testing.assert_array_equal(rows[0][16], rows[1][16])


def test_the_order_of_the_models_does_not_change_the_ids(tmp_path: Path) -> None:
    base = make(tmp_path, 0)
    one, two = (make(tmp_path, n, extra_tokens=[f"w{n}", "gout"]) for n in (1, 2))
    plans = [
        planned(recipe_of(order, base=base, tokenizer={"source": "union"}))
        for order in ([one, two], [two, one])
    ]
    assert plans[0].tokenizer_files == plans[1].tokenizer_files
    assert plans[0].rows == plans[1].rows
    assert plans[0].fills == plans[1].fills


def test_rows_of_another_type_are_converted(tmp_path: Path) -> None:
    base = make(tmp_path, 0, dtype="BF16", fill=lambda name, shape: np.full(shape, 1.5))
    other = make(tmp_path, 1, extra_tokens=["zoster"], fill=lambda n, s: np.full(s, 1 + 2**-8))
    recipe = recipe_of([other], base=base, tokenizer={"source": "union"})
    rows = rows_of(recipe, tmp_path, base)
    assert rows[3, 0] == 1.5
    assert rows[16, 0] == 1.0  # the tie goes to even


def test_listed_tokens(tmp_path: Path) -> None:
    base, one, two = make(tmp_path, 0), make(tmp_path, 1), make(tmp_path, 2)
    add_tokens(one, ["<|im_start|>", "<|eot|>"])
    add_tokens(two, ["<|im_start|>"])
    tokens = {
        "<|im_start|>": {"source": str(two)},
        "pain": {"source": str(one), "force": True},
        "<|new|>": {"source": {"kind": "model_token", "model": str(one), "token": "<|eot|>"}},
        "<|ten|>": {"source": {"kind": "model_token", "model": str(two), "token_id": 10}},
        "<|nil|>": {"source": {"kind": "zero"}},
        "fever": {"source": {"kind": "zero"}, "force": True},
    }
    recipe = recipe_of([one, two], base=base, tokenizer={"source": "base", "tokens": tokens})
    plan = planned(recipe)
    ids = ids_in(plan.tokenizer_files)
    assert {t: ids[t] for t in tokens if t.startswith("<|")} == {
        "<|im_start|>": 16, "<|new|>": 17, "<|ten|>": 18, "<|nil|>": 19,
    }  # fmt: skip
    for number, root in enumerate((base, one, two)):
        rows = rows_of(recipe, tmp_path, root)[:, 0]
        # One and two have the token themselves; it is not forced on them.
        assert rows[16] == (1016 if number == 1 else 2016)
        assert list(rows[17:20]) == [1017, 2010, 0]
        assert rows[ids["pain"]] == 1000 + ids["pain"]
        assert rows[ids["fever"]] == 0
        assert rows[ids["flu"]] == 1000 * number + ids["flu"]


def test_padding_is_never_cut(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0, vocab=40), make(tmp_path, 1, vocab=24)
    for source, rows in (("base", 40), ("union", 40), (str(other), 24)):
        recipe = recipe_of([other], base=base, tokenizer={"source": source})
        assert planned(recipe).num_rows == rows
    kept = rows_of(recipe_of([other], base=base, tokenizer={"source": "base"}), tmp_path, other)
    np.testing.assert_array_equal(kept[:, 0], [*range(1000, 1024), *range(24, 40)])


def test_padding_is_padding_in_every_model_or_in_none(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0, extra_tokens=["sepsis"]), make(tmp_path, 1)
    recipe = recipe_of([other], base=base, tokenizer={"source": str(other)})
    for number, root in enumerate((base, other)):
        rows = rows_of(recipe, tmp_path, root)[:, 0]
        assert rows[16] == 0  # a token to the base, so padding to neither
        np.testing.assert_array_equal(rows[17:], 1000 * number + np.arange(17, 32))


@pytest.mark.parametrize(("multiple", "rows"), [(1, 32), (8, 32), (24, 48), (64, 64)])
def test_rows_are_padded_to_a_multiple(tmp_path: Path, multiple: int, rows: int) -> None:
    roots = [make(tmp_path, number) for number in (1, 2)]
    wish = {"source": "base", "pad_to_multiple_of": multiple}
    recipe = recipe_of(roots, tokenizer=wish)
    assert planned(recipe).num_rows == rows
    if rows > 32:
        np.testing.assert_array_equal(rows_of(recipe, tmp_path, roots[0])[32:], 0)


def test_a_tokenizer_that_counts_beyond_its_embedding(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0, vocab=16), make(tmp_path, 1, vocab=16)
    add_tokens(base, ["<|pad|>"])
    recipe = recipe_of([other], base=base, tokenizer={"source": "base"})
    plan = planned(recipe)
    assert plan.num_rows == 17
    assert any("No model has an embedding of 1 token" in text for text in plan.notices)
    np.testing.assert_array_equal(rows_of(recipe, tmp_path, base)[16], 0)


def test_tied_models_lend_their_embedding_as_head(tmp_path: Path) -> None:
    base = make(tmp_path, 0)
    lender = make(tmp_path, 1, tie=True, extra_tokens=["zoster"])
    other = make(tmp_path, 2)
    recipe = recipe_of([other], base=base, tokenizer={"source": str(lender)})
    assert rows_of(recipe, tmp_path, other, HEAD)[16, 0] == 1016


def wrong(recipe: MergeRecipe) -> str:
    with pytest.raises(IncompatibleError) as caught:
        plan_vocabulary(recipe, opened(recipe))
    return str(caught.value)


def test_wrong_tokens_are_explained(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1)
    add_tokens(other, ["<|im_start|>"])

    def say(token: str, value: object) -> str:
        wish = {"source": "base", "tokens": {token: value}}
        return wrong(recipe_of([other], base=base, tokenizer=wish))

    assert "no model has an embedding of '<|new|>'. Give it a 'source'" in say("<|new|>", {})
    text = say("<|im_stat|>", {"source": str(other)})
    assert f"{other} has no embedding of the token '<|im_stat|>'." in text
    assert "Did you mean '<|im_start|>'?" in text
    source = {"kind": "model_token", "model": str(other), "token_id": 32}
    assert "has 32 embedding rows, so there is no token_id 32" in say("<|x|>", {"source": source})


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1, with_tokenizer=False)
    text = wrong(recipe_of([other], base=base, tokenizer={"source": "union"}))
    assert text.startswith(f"'{other}' has no tokenizer that forge can read")
    assert "Add its files to the model's folder, or" in text
    (other / "tekken.json").write_text("{}")
    text = wrong(recipe_of([other], base=base, tokenizer={"source": "union"}))
    assert "Its tekken.json is none of these: load it with transformers' AutoTokenizer" in text


def test_ids_far_beyond_the_embedding_are_refused(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1)
    path = base / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"]["flu"] = 1 << 20
    path.write_text(json.dumps(document))
    text = wrong(recipe_of([other], base=base, tokenizer={"source": "base"}))
    assert "counts to id 1,048,576, but its embedding has 32 rows" in text


def test_head_and_embedding_of_different_rows_are_refused(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1)
    values = {name: value for name, value in read_values(other).items() if name != HEAD}
    values[HEAD] = np.zeros((30, 16), np.float32)
    write_safetensors(
        other / "model.safetensors",
        {name: ("F32", value.shape, value.tobytes()) for name, value in values.items()},
    )
    text = wrong(recipe_of([other], base=base, tokenizer={"source": "base"}))
    assert f"'{EMBEDDING}' has 32" in text
    assert f"'{HEAD}' has 30" in text


@pytest.mark.parametrize("ties", [(True, False), (False, False), (True, True)], ids=str)
def test_the_disk_that_a_check_counts_is_what_is_rearranged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ties: tuple[bool, bool]
) -> None:
    """A tied model beside an untied one needs its rows twice: as embedding and as head."""
    roots = [
        make(tmp_path, number, tie=tie, extra_tokens=["zoster"] if number else [])
        for number, tie in enumerate(ties)
    ]
    counted: list[int] = []
    written: list[int] = []
    check, arrange = preflight.check_resources, RemappedSource._arrange

    def checked(*arguments: Any) -> object:
        counted.append(arguments[3])
        return check(*arguments)

    def arranged(self: RemappedSource, name: str) -> memoryview:
        view = arrange(self, name)
        written.append(view.nbytes)
        return view

    monkeypatch.setattr(preflight, "check_resources", checked)
    monkeypatch.setattr(RemappedSource, "_arrange", arranged)
    run_merge(recipe_of(roots, tokenizer={"source": "union"}), tmp_path / "out")
    assert counted == [sum(written)]
    # Only the first model lacks a token.
    assert len(written) == (1 if all(ties) else 2)


def test_rearranged_tensors_leave_no_file_and_are_made_once(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1, extra_tokens=["zoster"])
    recipe = recipe_of([other], base=base, tokenizer={"source": "union"})
    checkpoints = opened(recipe)
    plan = plan_vocabulary(recipe, checkpoints)
    assert plan is not None
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    source = remap(checkpoints, plan, scratch)[ModelReference(str(base))]
    assert isinstance(source, RemappedSource)
    assert source.scratch_bytes(source.names()) == 2 * 32 * 16 * 4
    assert source.scratch_bytes({EMBEDDING, "model.norm.weight"}) == 32 * 16 * 4
    views: list[memoryview] = []
    barrier = threading.Barrier(8)

    def read() -> None:
        barrier.wait()
        views.append(source.read(EMBEDDING))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(view.obj) for view in views}) == 1
    assert views[0].readonly
    assert list(scratch.iterdir()) == []
    norm = "model.norm.weight"
    assert source.read(norm) == checkpoints[ModelReference(str(base))].source.read(norm)
    assert source.info(norm) == checkpoints[ModelReference(str(base))].source.info(norm)
    assert source.names() == checkpoints[ModelReference(str(base))].source.names()
    assert source.info(EMBEDDING).file not in source.files()
    source.prefetch(EMBEDDING)
    source.close()
    assert views[0][:4] == np.float32(0).tobytes()
    with pytest.raises(CheckpointError, match="no tensor 'x'"):
        source.info("x")


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1, extra_tokens=["zoster"])
    recipe = recipe_of([other], base=base, tokenizer={"source": "union"})
    checkpoints = opened(recipe)
    plan = plan_vocabulary(recipe, checkpoints)
    assert plan is not None
    source = remap(checkpoints, plan, tmp_path / "absent")[ModelReference(str(base))]
    with pytest.raises(OutputError, match=r"cannot be rearranged in .*absent.*No such file"):
        source.read(EMBEDDING)


def test_only_the_ends_of_a_stack_need_a_tokenizer(tmp_path: Path) -> None:
    first, last = make(tmp_path, 0), make(tmp_path, 1, extra_tokens=["zoster"])
    middle = make(tmp_path, 2, with_tokenizer=False)
    slices = [
        {"sources": [{"model": str(root), "layer_range": [0, 2]}]} for root in (first, middle, last)
    ]
    value = {"merge_method": "passthrough", "slices": slices, "tokenizer": {"source": "union"}}
    plan = planned(parse_merge_recipe(value, METHODS))
    assert list(plan.rows) == [ModelReference(str(first))]
