"""Put questions as a suite says: as one text, or through a model's chat template.

As a text, a prompt is instruction, examples and question, and ends with the cue that leads to the
answer. Through a chat template, each example is a turn of the user and a turn of the assistant, the
instruction opens the first turn of the user (some templates refuse a system turn), and the cue
begins the assistant's last turn. So the next token is the same letter in both, and a chat model
answers in the form that it was shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from forge.core.errors import EvaluationError
from forge.evaluate.contract import ChoiceRequest, Prompt, TextRequest
from forge.evaluate.task_items import LETTERS, TaskItem
from forge.evaluate.task_spec import PromptForm, TaskSpec

Messages = list[dict[str, str]]
Chat = Callable[[Messages], str]
"""Renders messages with a model's chat template, up to where its answer begins."""
RENDERING_VERSION: Final = 1
"""Version of what this file makes of a suite and its data."""
_SLOT: Final = re.compile(r"\{(\w+)\}")
_SENTINEL: Final = "\u2402question\u2403"


def render(
    task: TaskSpec, items: Sequence[TaskItem], shots: Sequence[TaskItem], *, chat: Chat | None
) -> tuple[ChoiceRequest | TextRequest, ...]:
    """Put the questions of a task.

    Args:
        task: The task.
        items: The questions.
        shots: The examples before each, in their order.
        chat: The model's chat template, or ``None`` for plain text.

    Returns:
        A request for each question. All have the same prefix.

    Raises:
        EvaluationError: The chat template leaves questions out.
    """
    form = task.prompt
    if chat is None:
        prefix = _plain_prefix(task, shots)
        prompts = [Prompt(prefix, question_text(form, item) + form.cue) for item in items]
    else:
        prompts = _chat_prompts(task, items, shots, chat)
    return tuple(_request(task, item, prompt) for item, prompt in zip(items, prompts, strict=True))


def question_text(form: PromptForm, item: TaskItem) -> str:
    """Return a question with its passage and options, without the cue."""
    passages = form.between_passages.join(item.passages)
    context = _fill(form.context, {"text": passages}) if passages else ""
    options = form.between_options.join(
        _fill(form.option, {"letter": letter, "text": text})
        for letter, text in zip(LETTERS, item.record.options, strict=False)
    )
    values = {"context": context, "question": item.question, "options": options}
    return _fill(form.question, values)


def answer_text(task: TaskSpec, item: TaskItem) -> str:
    """Return the right answer, as it stands behind the cue."""
    gold = item.record.gold
    if isinstance(gold, int):
        return _option_answer(task.prompt, gold, item.record.options[gold])
    values = {"reference": gold, "decision": item.decision or ""}
    return _fill(task.prompt.answer, values)


def _option_answer(form: PromptForm, index: int, text: str) -> str:
    return _fill(form.answer, {"letter": LETTERS[index], "text": text})


def _request(task: TaskSpec, item: TaskItem, prompt: Prompt) -> ChoiceRequest | TextRequest:
    if task.kind == "text":
        return TextRequest(prompt, task.max_new_tokens, task.stop)
    options = enumerate(item.record.options)
    return ChoiceRequest(
        prompt, tuple(_option_answer(task.prompt, index, text) for index, text in options)
    )


def _plain_prefix(task: TaskSpec, shots: Sequence[TaskItem]) -> str:
    form = task.prompt
    examples = (
        question_text(form, shot) + form.cue + answer_text(task, shot) + form.between_examples
        for shot in shots
    )
    return _instruction(task) + "".join(examples)


def _instruction(task: TaskSpec) -> str:
    return _fill(task.prompt.instruction, {"subject": task.subject})


def _chat_prompts(
    task: TaskSpec, items: Sequence[TaskItem], shots: Sequence[TaskItem], chat: Chat
) -> list[Prompt]:
    """Render each question's conversation, and part it where the questions begin.

    Templates strip, escape and wrap what they are given, so every conversation is rendered whole.
    What they have in common ends where a mark in the question's place would stand.
    """
    form = task.prompt
    before = _instruction(task).strip()
    messages: Messages = []
    for shot in shots:
        answer = (form.cue + answer_text(task, shot)).strip()
        messages.append({"role": "user", "content": question_text(form, shot)})
        messages.append({"role": "assistant", "content": answer})

    def rendered(question: str) -> str:
        turns = [*messages, {"role": "user", "content": question}]
        if before:
            turns[0] = {"role": "user", "content": f"{before}\n\n{turns[0]['content']}"}
        return chat(turns) + form.cue.lstrip()

    texts = [rendered(question_text(form, item)) for item in items]
    start = rendered(_SENTINEL).find(_SENTINEL)
    if start < 0:
        raise EvaluationError(
            "The chat template does not show what the user says. Run without chat templates."
        )
    shared = _common_beginning(texts)[:start]
    return [Prompt(shared, text[len(shared) :]) for text in texts]


def _common_beginning(texts: Sequence[str]) -> str:
    # What the first and the last in their order share, those between share too.
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((index for index, (a, b) in pairs if a != b), len(first))]


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Replace words in braces, once: what is put in their place is never looked at again."""
    return _SLOT.sub(lambda match: values.get(match[1], match[0]), template)
