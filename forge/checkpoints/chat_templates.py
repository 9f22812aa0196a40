"""Choose a chat template and put it where loaders look for it.

A template can be in three places: ``chat_template.jinja`` (wins in current loaders),
``tokenizer_config.json`` (a string, or a list of named ones), and, for some processors,
``chat_template.json``. Writing only one of them leaves another that says something else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from forge.checkpoints.folder import parse_json_object
from forge.core.catalog import did_you_mean
from forge.core.errors import IncompatibleError

_JINJA_FILE: Final = "chat_template.jinja"
_JSON_FILE: Final = "chat_template.json"
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"

NAMED_TEMPLATES: Final[Mapping[str, str]] = {
    "alpaca": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}"
        "{% else %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "exaone": (
        "{% for message in messages %}"
        "{% if loop.first and message['role'] != 'system' %}"
        "{{ '[|system|][|endofturn|]\n' }}{% endif %}"
        "{{ '[|' + message['role'] + '|]' + message['content'] }}"
        "{% if message['role'] != 'user' %}{{ '[|endofturn|]' }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
        "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('This template knows user and assistant only.') }}"
        "{% endif %}{% endfor %}"
    ),
}
"""Templates that a recipe can name. Tokens must exist in the vocabulary to be single tokens."""


def template_of(files: Mapping[str, bytes]) -> str | None:
    """Return the default chat template of a tokenizer.

    Args:
        files: The tokenizer's files by name.

    Returns:
        Jinja text, from the place that loaders prefer; ``None`` when there is none.

    Raises:
        CheckpointError: A file is not valid JSON.
    """
    if _JINJA_FILE in files:
        return files[_JINJA_FILE].decode("utf-8", "replace")
    for name in (_JSON_FILE, _TOKENIZER_CONFIG):
        if name in files:
            value = parse_json_object(files[name], Path(name)).get("chat_template")
            template = _default_of(value)
            if template is not None:
                return template
    return None


def choose_template(wish: str, templates: Sequence[str | None]) -> str:
    """Return the template that a recipe asks for.

    Args:
        wish: ``auto`` for the most common among the models (the earliest, when several are
            equally common), a name of ``NAMED_TEMPLATES``, or Jinja text.
        templates: The models' templates, in the recipe's order.

    Returns:
        Jinja text.

    Raises:
        IncompatibleError: ``auto``, and no model has a template; or an unknown name.
    """
    if wish == "auto":
        counts = Counter(template for template in templates if template is not None)
        if not counts:
            raise IncompatibleError(
                "chat_template is 'auto', but no model has a chat template. "
                f"Name one ({', '.join(NAMED_TEMPLATES)}), write Jinja, or remove the key."
            )
        return counts.most_common(1)[0][0]
    if wish in NAMED_TEMPLATES:
        return NAMED_TEMPLATES[wish]
    if "{{" in wish or "{%" in wish:
        return wish
    raise IncompatibleError(
        f"chat_template '{wish}' is neither a name nor Jinja.{did_you_mean(wish, NAMED_TEMPLATES)} "
        f"Known names: {', '.join(NAMED_TEMPLATES)}."
    )


def with_template(files: Mapping[str, bytes], template: str) -> dict[str, bytes]:
    """Return a tokenizer's files with another default template in every place that has one.

    Args:
        files: The tokenizer's files by name.
        template: Jinja text.

    Returns:
        The files; named templates other than the default stay.

    Raises:
        CheckpointError: ``tokenizer_config.json`` is not valid JSON.
    """
    changed = dict(files)
    config = dict(parse_json_object(files.get(_TOKENIZER_CONFIG, b"{}"), Path(_TOKENIZER_CONFIG)))
    declared = config.get("chat_template")
    if isinstance(declared, list):
        others = [entry for entry in declared if not _is_default(entry)]
        config["chat_template"] = [{"name": "default", "template": template}, *others]
        # A Jinja file would hide the list, and with it the other names.
        changed.pop(_JINJA_FILE, None)
    else:
        config["chat_template"] = template
        changed[_JINJA_FILE] = _encoded(template)
    if _JSON_FILE in changed:
        changed[_JSON_FILE] = dump_json({"chat_template": template})
    changed[_TOKENIZER_CONFIG] = dump_json(config)
    return changed


def dump_json(value: Mapping[str, object]) -> bytes:
    """Return JSON as checkpoints have it: indented, unescaped, with a final line feed.

    Args:
        value: The object.

    Returns:
        UTF-8 text.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:
        # JSON can hold half a character, escaped; UTF-8 cannot.
        return (json.dumps(value, indent=2) + "\n").encode()


def _encoded(template: str) -> bytes:
    try:
        return template.encode()
    except UnicodeEncodeError as error:
        raise IncompatibleError(
            "The chat template holds half a character (a lone surrogate), so it cannot be written "
            "to a file. Repair it in the model's tokenizer_config.json, or choose another."
        ) from error


def _default_of(value: object) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        for entry in value:
            if _is_default(entry) and isinstance(entry.get("template"), str):
                return str(entry["template"])
    return None


def _is_default(entry: object) -> bool:
    return isinstance(entry, dict) and entry.get("name") == "default"
