"""Texts equal those that transformers writes for each prompt alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from forge.core.errors import IncompatibleError, NonFiniteError
from forge.evaluate.backends.local import LocalBackend
from forge.evaluate.contract import Prompt, TextRequest
from forge.results.answers import TextAnswer
from tests.architectures.tiny_models import tiny_model
from tests.evaluate.backends.test_local_choice import RECURRENT
from tests.evaluate.backends.word_models import loaded, requests


def asked(count: int, limit: int, stop: tuple[str, ...] = ()) -> list[TextRequest]:
    return [
        TextRequest(request.prompt, limit, stop) for request in requests(count, longest=20, seed=2)
    ]


def write(backend: LocalBackend, questions: list[TextRequest]) -> list[TextAnswer]:
    found: dict[int, TextAnswer] = {}
    backend.write(questions, lambda place, answer: found.update({place: answer}))
    assert sorted(found) == list(range(len(questions)))
    return [found[place] for place in range(len(questions))]


def plain(backend: LocalBackend, request: TextRequest) -> TextAnswer:
    """Write one text with transformers' own loop, and cut it off afterwards."""
    model, tokenizer = backend._loaded.model, backend._loaded.tokenizer
    ids = tokenizer(request.prompt.text, return_tensors="pt").input_ids
    settings = transformers.GenerationConfig(
        max_new_tokens=request.max_new_tokens, do_sample=False, eos_token_id=2, pad_token_id=3
    )
    with torch.no_grad():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)[
            0, ids.shape[1] :
        ].tolist()
    if 2 in made:
        made = made[: made.index(2)]
    text = tokenizer.decode(made, skip_special_tokens=True)
    cuts = [text.index(stop) for stop in request.stop if stop in text]
    if not cuts:
        return TextAnswer(text, len(made))
    # As many tokens as it takes to spell the stop: one a character.
    first = min(cuts)
    (stop,) = [stop for stop in request.stop if text.startswith(stop, first)][:1]
    return TextAnswer(text[:first], first + len(stop))


@pytest.mark.parametrize("case", ["llama", "gemma2", "gpt2", "bloom", "mpt", "opt", "gptj"])
@pytest.mark.parametrize("budget", [1, 90, 4000])
def test_every_family(case: str, budget: int, tmp_path: Path) -> None:
    backend = LocalBackend(loaded(tiny_model(case, seed=3), tmp_path), batch_tokens=budget)
    questions = asked(9, 12)
    found = write(backend, questions)
    assert found == [plain(backend, request) for request in questions]
    # Tied embeddings let an untrained BLOOM repeat itself.
    assert len({answer.text for answer in found}) > 1 or case == "bloom"


def test_ends_and_stops(tmp_path: Path) -> None:
    model = tiny_model("llama", seed=3)
    with torch.no_grad():
        # Makes the end of text likely enough to come up here and there.
        model.lm_head.weight[2] += 0.1 * model.lm_head.weight.std(0)
    backend = LocalBackend(loaded(model, tmp_path), batch_tokens=4000)
    free = [plain(backend, request).text for request in asked(12, 16)]
    stop = next(text[5:7] for text in free if len(text) > 8)
    questions = asked(12, 16, (stop, "never"))
    found = write(backend, questions)
    assert found == [plain(backend, request) for request in questions]
    assert any(len(answer.text) < len(text) for answer, text in zip(found, free, strict=True))


@pytest.mark.parametrize("family", RECURRENT)
def test_a_model_that_keeps_a_state(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=96, eos_token_id=2, **RECURRENT[family])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    backend = LocalBackend(loaded(model, tmp_path), batch_tokens=4000)
    questions = asked(3, 5)
    assert write(backend, questions) == [plain(backend, request) for request in questions]


def test_one_question_alone(tmp_path: Path) -> None:
    for case in ("llama", "bloom"):
        backend = LocalBackend(loaded(tiny_model(case), tmp_path / case))
        (question,) = asked(1, 9)
        assert write(backend, [question]) == [plain(backend, question)]


def test_an_answer_that_does_not_fit(tmp_path: Path) -> None:
    backend = LocalBackend(loaded(tiny_model("llama"), tmp_path))
    with pytest.raises(IncompatibleError, match="has 71 tokens; the model knows 64"):
        write(backend, [TextRequest(Prompt("p" * 40, "q" * 10), 20)])


def test_numbers_that_are_none(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(NonFiniteError, match="while it writes"):
        write(LocalBackend(loaded(model, tmp_path)), asked(2, 4))
