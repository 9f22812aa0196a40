"""The table of tokenizers in ``forge check``, and what is said of texts and rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.cli.app import run
from forge.merge.catalog import METHODS
from forge.merge.check.preflight import CheckReport, check_merge
from forge.recipes.merge_recipe import parse_merge_recipe
from tests.factory import tiny_checkpoint
from tests.merge.test_vocabulary import add_tokens

CHAT = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"


def task(base: Path, other: Path, **keys: object) -> dict[str, object]:
    return {
        "merge_method": "task_arithmetic", "base_model": str(base), "dtype": "bfloat16",
        "models": [{"model": str(other), "parameters": {"weight": 1.0}}], **keys,
    }  # fmt: skip


def check(value: dict[str, object]) -> CheckReport:
    recipe = parse_merge_recipe(value, METHODS)
    return check_merge(recipe, {model: open_checkpoint(model) for model in recipe.references()})


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny_checkpoint(tmp_path / "base"), tiny_checkpoint(tmp_path / "med", tune=1)


def test_equal_tokenizers_have_no_table(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = check(task(*pair))
    assert report.tokenizers is not None
    assert report.tokenizers.differing == ()
    assert report.texts == {}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(task(*pair)))
    assert run(["check", str(path)]) == 0
    assert "TOKENIZERS" not in capsys.readouterr().out
    assert run(["check", str(path), "--tokenizers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if "TOKENIZERS" in line).split() == [
        "TOKENIZERS", "base", "med",
    ]  # fmt: skip
    assert any(line.split() == ["tokens", "16", "16"] for line in lines)


def test_what_differs_is_named(pair: tuple[Path, Path]) -> None:
    base, other = pair
    add_tokens(other, ["<|im_start|>", "<|im_end|>"])

    def rename(config: dict[str, Any]) -> None:
        config.update(
            tokenizer_class="LlamaTokenizer", eos_token="<|im_end|>", pad_token=None,
            chat_template=CHAT, add_bos_token=True, model_max_length=10**30,
        )  # fmt: skip

    edit(other / "tokenizer_config.json", rename)
    edit(other / "special_tokens_map.json", lambda words: words.pop("pad_token"))
    edit(other / "tokenizer.json", lambda document: document.update(normalizer={"type": "NFC"}))
    edit(other / "generation_config.json", lambda ids: ids.update(eos_token_id=[17, 2]))
    report = check(task(base, other, tokenizer={"source": "union"}))
    table = report.tokenizers
    assert table is not None
    ours, theirs = (facts.values for facts in table.models)
    assert {key: (ours[key], theirs[key]) for key in table.differing if key != "normalizer"} == {
        "class": ("PreTrainedTokenizerFast", "LlamaTokenizer"),
        "tokens": (16, 18),
        "highest_id": (15, 17),
        "padding_rows": (16, 14),
        "added_tokens": (4, 6),
        "special_tokens": (4, 6),
        "eos_token": ("</s> = 2", "<|im_end|> = 17"),
        "pad_token": ("<pad> = 3", None),
        "eos_token_id": ("2 </s>", "17 <|im_end|>, 2 </s>"),
        "add_bos_token": (None, True),
        "model_max_length": (128, "no limit"),
        "chat_template": (ours["chat_template"], theirs["chat_template"]),
    }
    assert str(theirs["normalizer"]).startswith("NFC ")
    assert table.models[1].only == ("<|im_start|>", "<|im_end|>")
    assert [facts.model for facts in table.models] == [str(base), str(other)]
    difference = table.templates[0]
    assert CHAT[difference.position :].startswith("content'] }}</s>")
    assert (difference.expected[:6], difference.found[:9]) == ("role']", "content']")
    found = json.loads(json.dumps(report.as_json()["tokenizers"]))
    assert found["models"][1]["eos_token"] == "<|im_end|> = 17"
    assert found["models"][1]["only_here"] == ["<|im_start|>", "<|im_end|>"]
    assert found["differing"] == list(table.differing)


def test_the_table_as_text(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, other = pair
    add_tokens(other, ["<|x|>"])
    edit(other / "tokenizer_config.json", lambda config: config.update(chat_template=CHAT))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(task(base, other, tokenizer={"source": "union"})))
    assert run(["check", str(path)]) == 0
    text = capsys.readouterr().out
    begin = text.index("TOKENIZERS")
    lines = text[begin:].split("\n\n")[0].splitlines()
    assert [line.split() for line in lines[2:8]] == [
        ["tokens", "16", "17"], ["highest", "id", "15", "16"], ["padding", "rows", "16", "15"],
        ["added", "tokens", "4", "5"], ["special", "tokens", "4", "5"],
        ["chat", "template", *lines[7].split()[2:]],
    ]  # fmt: skip
    assert lines[8].split() == ["added", "here", "alone", "'<|x|>'"]
    assert lines[9].startswith("chat template of med: as that of base for ")
    assert run(["check", str(path), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["tokenizers"]["differing"][0] == "tokens"
    assert list(value["texts"]) == [str(base)]


def test_models_without_a_tokenizer_have_empty_columns(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    bare = tiny_checkpoint(tmp_path / "bare", with_tokenizer=False, tune=2)
    table = check(task(pair[0], bare)).tokenizers
    assert table is not None
    assert table.models[1].values["tokens"] is None
    assert table.models[1].values["rows"] == 32
    assert "tokens" in table.differing


def test_texts_that_are_split_otherwise(pair: tuple[Path, Path]) -> None:
    """Same ids, but one splits words at blanks alone: a sentence's last word is another token."""
    base, other = pair

    def split(document: dict[str, Any]) -> None:
        document["pre_tokenizer"] = {"type": "WhitespaceSplit"}

    for root in pair:
        edit(root / "tokenizer.json", lambda document: document["model"]["vocab"].update({".": 16}))
        edit(root / "tokenizer.json", lambda document: document["model"]["vocab"].update({"c": 17}))
    edit(other / "tokenizer.json", split)
    report = check(task(base, other))
    found = [finding for finding in report.findings if finding.code == "round-trip"]
    assert [finding.level for finding in found] == ["warning"]
    assert f"otherwise than that of {other}, which was trained on its own: " in found[0].message
    changes = report.texts[str(other)]
    change = next(change for change in changes if change.name == "typography")
    # 'c…' is two words to the one and none to the other.
    assert "c" in change.after.tokens
    assert "c" not in change.before.tokens


def test_tokens_beyond_the_rows_are_warned_of(tmp_path: Path) -> None:
    base, other = (
        tiny_checkpoint(tmp_path / name, vocab=16, tune=tune)
        for name, tune in (("base", None), ("other", 1))
    )
    for root in (base, other):
        add_tokens(root, ["<|x|>"])
    found = [f for f in check(task(base, other)).findings if f.code == "tokenizer-rows"]
    assert [finding.level for finding in found] == ["warning"]
    assert "has tokens beyond the 16 rows of its embedding: '<|x|>'" in found[0].message
    report = check(task(base, other, tokenizer={"source": "base"}))
    assert "tokenizer-rows" not in {finding.code for finding in report.findings}


def test_a_count_that_is_not_the_rows_is_warned_of_and_repaired(pair: tuple[Path, Path]) -> None:
    edit(pair[0] / "config.json", lambda config: config.update(vocab_size=16))
    messages = [f.message for f in check(task(*pair)).findings if f.code == "tokenizer-rows"]
    assert len(messages) == 1
    assert "states vocab_size 16, but its embedding has 32 rows" in messages[0]
    report = check(task(*pair, tokenizer={"source": "base"}))
    assert {finding.code for finding in report.findings} == {"vocabulary"}


def test_a_tokenizer_that_does_not_run_is_a_notice(pair: tuple[Path, Path]) -> None:
    decoder = {"type": "FromTheFuture"}
    edit(pair[1] / "tokenizer.json", lambda document: document.update(decoder=decoder))
    report = check(task(*pair))
    assert report.errors == ()
    message = next(f.message for f in report.findings if f.code == "round-trip")
    assert message.startswith(f"{pair[1]} was not compared on texts. The tokenizer of '")
    assert "does not work in the tokenizers library" in message


def test_listed_tokens_of_the_configuration_are_read(pair: tuple[Path, Path]) -> None:
    """Loaders add what tokenizer_config.json lists, though tokenizer.json does not have it."""
    base, other = pair
    entry = {"content": "<|x|>", "special": True}

    def add(config: dict[str, Any]) -> None:
        config["added_tokens_decoder"] = {"16": entry, "2": {"content": "</s>"}}

    edit(other / "tokenizer_config.json", add)
    report = check(task(base, other))
    message = next(f.message for f in report.findings if f.code == "tokenizer")
    assert message.startswith(f"Only the tokenizer of {other} has '<|x|>'.")
    table = report.tokenizers
    assert table is not None
    assert table.models[1].values["tokens"] == 17


@pytest.mark.parametrize(
    ("entries", "say"),
    [
        ({"16": 5}, "malformed added tokens"),
        ({"16": {"content": 5}}, "malformed added tokens"),
        ({"x": {"content": "<|x|>"}}, "the id x, which is no possible id"),
        ({"99999999999999999999": {"content": "<|x|>"}}, "which is no possible id"),
    ],
)
def test_malformed_lists_are_errors(
    pair: tuple[Path, Path], entries: dict[str, object], say: str
) -> None:
    edit(
        pair[1] / "tokenizer_config.json",
        lambda config: config.update(added_tokens_decoder=entries),
    )
    report = check(task(*pair))
    assert [finding.code for finding in report.errors] == ["tokenizer-file"]
    assert say in report.errors[0].message


def test_a_tokenizer_that_ends_otherwise_than_generation(pair: tuple[Path, Path]) -> None:
    add_tokens(pair[0], ["<|end|>"])
    edit(pair[0] / "tokenizer_config.json", lambda config: config.update(eos_token="<|end|>"))
    messages = [f.message for f in check(task(*pair)).findings if f.code == "special-ids"]
    assert len(messages) == 1
    assert messages[0].startswith(
        "The result's tokenizer ends texts with '<|end|>' (16), but generation ends at "
        "eos_token_id 2."
    )
    (pair[0] / "generation_config.json").write_text("{")
    messages = [f.message for f in check(task(*pair)).findings if f.code == "special-ids"]
    assert "not valid JSON" in messages[0]
    assert messages[0].endswith("It is copied as it is, and loaders will refuse it.")


def test_a_model_that_only_lends_tokens_is_in_the_table(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    lender = tiny_checkpoint(tmp_path / "lender", extra_tokens=["zoster"], tune=3)
    recipe = parse_merge_recipe(task(*pair, tokenizer={"source": str(lender)}), METHODS)
    assert recipe.tokenizer is not None
    names = [*recipe.references(), *recipe.tokenizer.references()]
    table = check_merge(recipe, {model: open_checkpoint(model) for model in names}).tokenizers
    assert table is not None
    assert [facts.model for facts in table.models][-1] == str(lender)
    assert table.models[-1].values["tokens"] == 17


def test_half_a_character_is_no_traceback(pair: tuple[Path, Path]) -> None:
    """JSON can hold lone surrogates; nothing can write them."""
    edit(
        pair[1] / "tokenizer.json",
        lambda document: document["model"]["vocab"].update({"half \ud800": 16}),
    )
    report = check(task(*pair, tokenizer={"source": "union"}))
    assert [finding.code for finding in report.errors] == ["vocabulary"]
    assert "does not work in the tokenizers library" in report.errors[0].message
    edit(
        pair[1] / "tokenizer_config.json",
        lambda config: config.update(chat_template="{{ '\ud800' }}"),
    )
    assert check(task(*pair)).tokenizers is not None
