"""Chat templates: the right one is chosen, and every place that holds one says the same."""

import json
from pathlib import Path

import jinja2
import pytest

from forge.checkpoints.chat_templates import (
    NAMED_TEMPLATES,
    choose_template,
    template_of,
    with_template,
)
from forge.checkpoints.companions import read_tokenizer_files
from forge.core.errors import CheckpointError, IncompatibleError
from forge.recipes.output_words import CHAT_TEMPLATES
from tests.factory import CHAT_TEMPLATE, tiny_checkpoint

_CHAT = [
    {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Pain?"},
]  # fmt: skip
_EXPECTED = {
    "alpaca": "<s>### Instruction:\nHi\n\n### Response:\nHello</s>\n\n"
              "### Instruction:\nPain?\n\n### Response:\n",
    "chatml": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
              "<|im_start|>user\nPain?<|im_end|>\n<|im_start|>assistant\n",
    "exaone": "[|system|][|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
              "[|user|]Pain?\n[|assistant|]",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
              "<|start_header_id|>user<|end_header_id|>\n\nPain?<|eot_id|>"
              "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Hi [/INST] Hello</s>[INST] Pain? [/INST]",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(_EXPECTED))
def test_named_templates_render(name: str) -> None:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(choose_template(name, []))
    text = template.render(
        messages=_CHAT, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
    )
    assert text == _EXPECTED[name]


def test_recipes_know_the_same_names() -> None:
    assert sorted(CHAT_TEMPLATES) == sorted(NAMED_TEMPLATES)


def test_auto_takes_the_most_common_and_then_the_first() -> None:
    assert choose_template("auto", ["a", "b", None, "b"]) == "b"
    assert choose_template("auto", [None, "b", "a"]) == "b"
    with pytest.raises(IncompatibleError, match="no model has a chat template"):
        choose_template("auto", [None, None])


def test_a_wish_is_a_name_or_jinja() -> None:
    assert choose_template("{{ messages }}", []) == "{{ messages }}"
    with pytest.raises(IncompatibleError, match="Did you mean 'chatml'"):
        choose_template("chat-ml", [])


def test_the_template_is_found_where_loaders_look_first() -> None:
    def config(value: object) -> bytes:
        return json.dumps({"chat_template": value}).encode()

    assert template_of({}) is None
    assert template_of({"tokenizer_config.json": b"{}"}) is None
    assert template_of({"tokenizer_config.json": config("c")}) == "c"
    named = config([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}])
    assert template_of({"tokenizer_config.json": named}) == "d"
    both = {"tokenizer_config.json": config("c"), "chat_template.json": config("j")}
    assert template_of(both) == "j"
    assert template_of({**both, "chat_template.jinja": b"f"}) == "f"
    with pytest.raises(CheckpointError, match="not valid JSON"):
        template_of({"tokenizer_config.json": b"{"})


def test_the_new_template_is_the_one_that_transformers_uses(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    root = tiny_checkpoint(tmp_path)
    files = read_tokenizer_files(root)
    assert template_of(files) == CHAT_TEMPLATE
    files = with_template(files, "{{ messages[0]['content'] }}!")
    for name, content in files.items():
        (root / name).write_bytes(content)
    tokenizer = AutoTokenizer.from_pretrained(root)
    assert tokenizer.apply_chat_template(_CHAT, tokenize=False) == "Hi!"
    # Loaders that do not know the Jinja file must find the same.
    (root / "chat_template.jinja").unlink()
    tokenizer = AutoTokenizer.from_pretrained(root)
    assert tokenizer.apply_chat_template(_CHAT, tokenize=False) == "Hi!"


def test_named_templates_beside_the_default_stay() -> None:
    declared = [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]
    files = {
        "tokenizer_config.json": json.dumps({"chat_template": declared, "x": 1}).encode(),
        "chat_template.json": b'{"chat_template": "d"}',
        "chat_templates/tool.jinja": b"t",
    }
    changed = with_template(files, "new")
    assert json.loads(changed["tokenizer_config.json"]) == {
        "chat_template": [
            {"name": "default", "template": "new"}, {"name": "rag", "template": "r"},
        ],
        "x": 1,
    }  # fmt: skip
    assert json.loads(changed["chat_template.json"]) == {"chat_template": "new"}
    assert changed["chat_templates/tool.jinja"] == b"t"
    assert template_of(changed) == "new"
    assert files["chat_template.json"] == b'{"chat_template": "d"}'
