"""Special tokens follow the tokenizer and the chat template, in every file that names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.merge.catalog import METHODS
from forge.merge.check.preflight import check_merge
from forge.merge.run import run_merge
from forge.recipes.merge_recipe import MergeRecipe, parse_merge_recipe
from tests.factory import tiny_checkpoint
from tests.merge.test_vocabulary import add_tokens

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}"
)
TURNS = ["<|im_start|>", "<|im_end|>"]


def configure(root: Path, name: str, **values: object) -> None:
    """Set keys of a JSON file; ``None`` removes one."""
    content = {**json.loads((root / name).read_text()), **values}
    kept = {key: value for key, value in content.items() if value is not None}
    (root / name).write_text(json.dumps(kept))


def chat_model(root: Path, **options: Any) -> Path:
    """Write a fine-tune that ends turns with <|im_end|>, which is token 17."""
    tiny_checkpoint(root, tune=1, chat_template=CHATML, **options)
    add_tokens(root, TURNS)
    configure(root, "tokenizer_config.json", eos_token="<|im_end|>")
    configure(root, "special_tokens_map.json", eos_token="<|im_end|>")
    configure(root, "generation_config.json", eos_token_id=[17, 2], temperature=0.5)
    return root


def recipe_of(base: Path, other: Path, **keys: object) -> MergeRecipe:
    value = {
        "merge_method": "task_arithmetic", "base_model": str(base), "dtype": "bfloat16",
        "models": [{"model": str(other), "parameters": {"weight": 1.0}}], **keys,
    }  # fmt: skip
    return parse_merge_recipe(value, METHODS)


def said(recipe: MergeRecipe) -> Mapping[str, list[str]]:
    """Return what a check says about special tokens, by level."""
    report = check_merge(recipe, {model: open_checkpoint(model) for model in recipe.references()})
    found: dict[str, list[str]] = {"error": [], "warning": [], "notice": []}
    for finding in report.findings:
        if finding.code in ("special-ids", "chat-template"):
            found[finding.level].append(finding.message)
    return found


def written(recipe: MergeRecipe, out: Path) -> dict[str, dict[str, Any]]:
    run_merge(recipe, out, threads=1)
    names = ("config", "generation_config", "tokenizer_config", "special_tokens_map")
    return {name: json.loads((out / f"{name}.json").read_text()) for name in names}


def test_a_chosen_template_brings_what_ends_its_turns(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", chat_template=None)
    chat = chat_model(tmp_path / "chat")
    recipe = recipe_of(base, chat, tokenizer={"source": "union"}, chat_template="auto")
    files = written(recipe, tmp_path / "out")
    assert files["generation_config"] == {
        "bos_token_id": 1, "eos_token_id": [17, 2], "pad_token_id": 3, "do_sample": False,
    }  # fmt: skip
    assert files["config"]["eos_token_id"] == [17, 2]
    assert files["tokenizer_config"]["eos_token"] == "<|im_end|>"
    assert files["tokenizer_config"]["chat_template"] == CHATML
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == CHATML
    assert files["special_tokens_map"]["eos_token"] == "<|im_end|>"
    notices = json.loads((tmp_path / "out" / "forge_manifest.json").read_text())["notices"]
    assert said(recipe)["warning"] == []
    for text in said(recipe)["notice"]:
        assert text in notices
    assert any("Generation ends at '<|im_end|>', '</s>'" in text for text in notices)


def test_ids_of_a_template_are_those_of_the_result(tmp_path: Path) -> None:
    """The base has two words more, so the same token has another id."""
    base = tiny_checkpoint(tmp_path / "base", chat_template=None, extra_tokens=["x", "y"])
    chat = chat_model(tmp_path / "chat")
    recipe = recipe_of(base, chat, tokenizer={"source": "union"}, chat_template="auto")
    files = written(recipe, tmp_path / "out")
    assert files["generation_config"]["eos_token_id"] == [19, 2]


def test_a_template_whose_tokens_the_result_lacks_is_warned_of(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", chat_template=None)
    chat = chat_model(tmp_path / "chat")
    warnings = said(recipe_of(base, chat, chat_template="auto"))["warning"]
    assert any("writes '<|im_start|>', '<|im_end|>', which are no tokens" in w for w in warnings)
    assert any("was written for the eos_token '<|im_end|>'" in text for text in warnings)
    # What ended a text before still does.
    files = written(recipe_of(base, chat, chat_template="auto"), tmp_path / "out")
    assert files["generation_config"]["eos_token_id"] == 2
    assert files["tokenizer_config"]["eos_token"] == "</s>"


@pytest.mark.parametrize("name", ["chatml", "llama3"])
def test_a_named_template_ends_turns_with_its_own_token(tmp_path: Path, name: str) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    chat = chat_model(tmp_path / "chat")
    recipe = recipe_of(base, chat, tokenizer={"source": "union"}, chat_template=name)
    files = written(recipe, tmp_path / "out")
    if name == "chatml":
        assert files["generation_config"]["eos_token_id"] == [17, 2]
        assert said(recipe)["warning"] == []
    else:
        assert files["generation_config"]["eos_token_id"] == 2
        assert "'<|start_header_id|>'" in said(recipe)["warning"][0]


def test_a_kept_template_changes_nothing(tmp_path: Path) -> None:
    base, chat = tiny_checkpoint(tmp_path / "base"), chat_model(tmp_path / "chat")
    files = written(recipe_of(base, chat, tokenizer={"source": "union"}), tmp_path / "out")
    assert files["generation_config"] == json.loads((base / "generation_config.json").read_text())
    assert files["config"]["eos_token_id"] == 2
    assert files["special_tokens_map"]["eos_token"] == "</s>"


def test_another_models_tokenizer_brings_its_ids(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", extra_tokens=["x", "<image>", "y"])
    configure(base, "config.json", image_token_id=17, boi_token_index=18, decoder_token_id=-1)
    chat = chat_model(tmp_path / "chat", extra_tokens=["<image>"])
    configure(chat, "config.json", eos_token_id=[18, 2], pad_token_id=None)
    configure(chat, "generation_config.json", eos_token_id=[18, 2])
    recipe = recipe_of(base, chat, tokenizer={"source": str(chat)})
    files = written(recipe, tmp_path / "out")
    config = files["config"]
    assert config["eos_token_id"] == [18, 2]
    assert config["pad_token_id"] == 3  # the base's, which is <pad> in both
    assert config["image_token_id"] == 16
    assert config["boi_token_index"] is None
    assert config["decoder_token_id"] == -1
    assert files["generation_config"] == json.loads((chat / "generation_config.json").read_text())
    found = said(recipe)
    assert any(
        "image_token_id in config.json of" in text and "is 17, which is 16" in text
        for text in found["notice"]
    )
    assert any("boi_token_index" in text and "('y')" in text for text in found["warning"])


def test_generation_settings_are_not_lost_with_the_tokenizer(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "base", extra_tokens=["x"])
    add_tokens(base, ["<|end|>"])
    settings = {"eos_token_id": [17, 2], "bos_token_id": 1, "temperature": 0.7, "pad_token_id": 16}
    (base / "generation_config.json").write_text(json.dumps(settings))
    other = tiny_checkpoint(tmp_path / "other", tune=1)
    add_tokens(other, ["<|end|>"])
    (other / "generation_config.json").unlink()
    recipe = recipe_of(base, other, tokenizer={"source": str(other)})
    files = written(recipe, tmp_path / "out")
    assert files["generation_config"] == {
        "eos_token_id": 2, "bos_token_id": 1, "temperature": 0.7, "pad_token_id": 3,
    }  # fmt: skip
    assert any("has no generation_config.json" in text for text in said(recipe)["notice"])


def test_a_nested_configuration_is_renumbered_where_it_stands(tmp_path: Path) -> None:
    from forge.architectures.table import Architecture
    from forge.merge.outputs import _with_ids

    family = Architecture("gemma3", text_section="text_config")
    config = {"text_config": {"eos_token_id": 1}, "image_token_id": 5, "eos_token_id": 1}
    ids = {"eos_token_id": [2, 3], "image_token_id": 7, "pad_token_id": 0}
    assert _with_ids(dict(config), family, ids) == {
        "text_config": {"eos_token_id": [2, 3], "pad_token_id": 0},
        "image_token_id": 7,
        "eos_token_id": [2, 3],
    }


@pytest.mark.parametrize("source", ["base", "union", None])
def test_all_files_of_a_tokenizer_are_carried(tmp_path: Path, source: str | None) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    extra = {
        "chat_template.jinja": "{{ one }}", "tokenizer.model": "pieces", "tekken.json": "{}",
        "tokenizer.model.v7": "pieces", "additional_chat_templates/tool.jinja": "{{ two }}",
        "chat_template.json": '{"chat_template": "{{ one }}"}', "processor_config.json": "{}",
    }  # fmt: skip
    (base / "additional_chat_templates").mkdir()
    for name, text in extra.items():
        (base / name).write_text(text)
    other = tiny_checkpoint(tmp_path / "other", tune=1, chat_template="{{ one }}")
    wish = {} if source is None else {"tokenizer": {"source": source}}
    out = tmp_path / "out"
    run_merge(recipe_of(base, other, **wish), out, threads=1)
    kept = [*extra, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    for name in [*kept, "generation_config.json"]:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name


def test_older_forms_hear_of_new_tokens_or_go(tmp_path: Path) -> None:
    base, chat = tiny_checkpoint(tmp_path / "base"), chat_model(tmp_path / "chat")
    for name in ("tokenizer.model", "tokenizer.model.v7", "tekken.json"):
        (base / name).write_text("pieces")
    out = tmp_path / "out"
    files = written(recipe_of(base, chat, tokenizer={"source": "union"}), out)
    assert (out / "tokenizer.model").exists()
    assert not (out / "tokenizer.model.v7").exists()
    assert not (out / "tekken.json").exists()
    decoder = files["tokenizer_config"]["added_tokens_decoder"]
    assert {number: entry["content"] for number, entry in decoder.items()} == {
        "0": "<unk>", "1": "<s>", "2": "</s>", "3": "<pad>", "16": TURNS[0], "17": TURNS[1],
    }  # fmt: skip
    assert all(entry["special"] for entry in decoder.values())
