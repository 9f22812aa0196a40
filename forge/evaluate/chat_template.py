"""Render messages with a model's chat template, from its files alone.

transformers renders them too, but needs torch to be asked; a run that finds all of its answers
should not have to load it. A template is a stranger's program, so it runs in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from forge.checkpoints.chat_templates import template_of
from forge.checkpoints.folder import parse_json_object, read_bytes
from forge.core.errors import EvaluationError, MissingExtraError
from forge.evaluate.prompts import Chat, Messages

_CONFIG: Final = "tokenizer_config.json"
_PLACES: Final = ("chat_template.jinja", "chat_template.json", _CONFIG)
_SPECIAL: Final = ("bos_token", "eos_token", "pad_token", "unk_token")
_MAX_BYTES: Final = 16 << 20
_MAX_RENDERED: Final = 8 << 20


def chat_of(root: Path, *, label: str) -> Chat:
    """Return what renders messages for a model, up to where its answer begins.

    Args:
        root: The model's folder.
        label: What the user typed, for messages.

    Raises:
        EvaluationError: The model has no chat template, or one that cannot be read.
        MissingExtraError: jinja2 is not installed.
    """
    found = {name: read_bytes(root, name, limit=_MAX_BYTES) for name in _PLACES}
    files = {name: data for name, data in found.items() if data is not None}
    template = template_of(files)
    if template is None:
        raise EvaluationError(
            f"'{label}' has no chat template. Leave --chat away to ask it in plain text."
        )
    config = parse_json_object(files.get(_CONFIG, b"{}"), root / _CONFIG)
    words = {name: word for name in _SPECIAL if (word := _word(config.get(name))) is not None}
    return _compiled(template, words, label)


def _word(value: object) -> str | None:
    """Return a special token, which files write as a text or as a record with its content."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _compiled(template: str, words: Mapping[str, str], label: str) -> Chat:
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise MissingExtraError(
            "Chat templates need jinja2. Install it with pip install 'forge[eval]', or add "
            "--no-chat."
        ) from error

    def fail(message: object) -> NoReturn:
        raise TemplateError(str(message))

    def to_json(value: object, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": fail,
        "strftime_now": lambda form: datetime.now().strftime(str(form)),  # noqa: DTZ005
    }

    def refuse(error: Exception) -> EvaluationError:
        return EvaluationError(
            f"The chat template of '{label}' cannot render the prompts: {error}. Add --no-chat to "
            "ask in plain text."
        )

    try:
        compiled = environment.from_string(template)
    except TemplateError as error:
        raise refuse(error) from error

    def chat(messages: Messages) -> str:
        try:
            text = compiled.render(messages=messages, add_generation_prompt=True, **words)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            # A template is a program; these are what its own mistakes raise.
            raise refuse(error) from error
        if len(text) > _MAX_RENDERED:
            raise EvaluationError(
                f"The chat template of '{label}' makes a prompt of {len(text):,} characters."
            )
        return text

    return chat
