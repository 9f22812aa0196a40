"""A model behind an API answers as the same model here does; what is wrong there is one message."""

from __future__ import annotations

import json
import math

import pytest

from forge.core.errors import EvaluationError
from forge.evaluate.backends.api import ApiBackend, read_option
from forge.evaluate.backends.http_json import Server
from forge.evaluate.backends.local import LocalBackend
from forge.evaluate.contract import ChoiceRequest, TextRequest
from forge.results.answers import ChoiceAnswer, TextAnswer
from forge.runtime.any_model import LoadedModel
from tests.architectures.tiny_models import tiny_model
from tests.evaluate.api_server import Reply, Served, serving
from tests.evaluate.backends.word_models import loaded, requests


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return loaded(tiny_model("llama", seed=3), tmp_path_factory.mktemp("model"))


def backend(url: str, kind: str, **options: object) -> ApiBackend:
    server = Server(url, sleep=lambda seconds: None, **options)  # type: ignore[arg-type]
    return ApiBackend(server, "tiny", kind)  # type: ignore[arg-type]


def choose(backend: LocalBackend | ApiBackend, asked: list[ChoiceRequest]) -> list[ChoiceAnswer]:
    found: dict[int, ChoiceAnswer] = {}
    backend.choose(asked, lambda place, answer: found.update({place: answer}))
    return [found[place] for place in range(len(asked))]


def with_top_option(model: LoadedModel) -> list[ChoiceRequest]:
    """Return questions some of which have the likeliest token among their options."""
    asked = requests(8)
    local = choose(LocalBackend(model), asked)
    tops = sorted({answer.top_text for answer in local})
    options = (*tops[:2], *[letter for letter in "ABCDEF" if letter not in tops])[:4]
    return [ChoiceRequest(each.prompt, options) for each in asked]


def test_echoed_options_match_the_local_row(model: LoadedModel) -> None:
    asked = with_top_option(model)
    local = choose(LocalBackend(model), asked)
    assert {answer.top is None for answer in local} == {True, False}
    with serving(Served(model)) as url:
        remote = choose(backend(url, "completions"), asked)
    for here, there in zip(local, remote, strict=True):
        assert there.log_probs == pytest.approx(here.log_probs, abs=1e-4)
        assert (there.top, there.top_text) == (here.top, here.top_text)
        assert there.top_log_prob == pytest.approx(here.top_log_prob, abs=1e-4)


def test_listed_tokens_match_the_local_row(model: LoadedModel) -> None:
    asked = with_top_option(model)
    with serving(Served(model)) as url:
        remote = choose(backend(url, "chat"), asked)
    unlisted = 0
    for here, there in zip(choose(LocalBackend(model), asked), remote, strict=True):
        assert (there.top, there.top_text) == (here.top, here.top_text)
        for local, listed in zip(here.log_probs, there.log_probs, strict=True):
            unlisted += listed == -math.inf
            assert listed == -math.inf or listed == pytest.approx(local, abs=1e-4)
        assert there.option_mass <= here.option_mass + 1e-4
    # 20 of 96 tokens are listed, so some options are not; their mass is missing and nothing else.
    assert 0 < unlisted < len(asked) * 4


def test_a_text_is_read_strictly(model: LoadedModel) -> None:
    asked = with_top_option(model)
    with serving(Served(model)) as url:
        remote = choose(backend(url, "text"), asked)
    written: dict[int, TextAnswer] = {}
    LocalBackend(model).write(
        [TextRequest(each.prompt, 8) for each in asked],
        lambda place, answer: written.update({place: answer}),
    )
    for place, answer in enumerate(remote):
        assert answer.top_text == written[place].text
        assert answer.top == read_option(written[place].text, asked[place].options)
        assert answer.chosen("constrained") == answer.top


@pytest.mark.parametrize("kind", ["completions", "chat"])
def test_texts_match_the_local_row(kind: str, model: LoadedModel) -> None:
    asked = [TextRequest(each.prompt, 9, ("q", "no")) for each in requests(5)]
    rows: list[dict[int, TextAnswer]] = [{}, {}]
    LocalBackend(model).write(asked, lambda place, answer: rows[0].update({place: answer}))
    with serving(Served(model)) as url:
        backend(url, kind).write(asked, lambda place, answer: rows[1].update({place: answer}))
    assert {place: each.text for place, each in rows[0].items()} == {
        place: each.text for place, each in rows[1].items()
    }


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1), (" (B) because", 1), ("**B**", 1), ("B.", 1), ("\n B)", 1), ("'A' it is", 0),
        ("The answer is B", None), ("Because", None), ("AB", None), ("b", None), ("", None),
        ("A1", None), ("E", None),
    ],
)  # fmt: skip
def test_the_strict_rule(text: str, index: int | None) -> None:
    assert read_option(text, ("A", "B", "C")) == index


def test_longer_options_by_the_strict_rule() -> None:
    assert read_option("yes, it does", ("yes", "no")) == 0
    assert read_option("yesterday", ("yes", "no")) is None
    assert read_option("no - yes", ("yes", "no")) == 1


def test_a_busy_server_is_asked_again(model: LoadedModel) -> None:
    def busy(number: int, path: str) -> Reply | None:
        # Whoever asks: of five attempts of one question, at most three meet it.
        return (429, b"slow down") if number <= 3 else None

    asked = requests(3)
    served = Served(model, busy)
    with serving(served) as url:
        found = choose(backend(url, "chat"), asked)
    assert len(found) == 3
    assert len(served.requests) == 6


def test_a_broken_server_is_one_message_and_loses_nothing(model: LoadedModel) -> None:
    def broken(number: int, path: str) -> Reply | None:
        return (500, b"the <b>disk</b> is on fire " * 99) if number > 4 else None

    heard: list[int] = []
    served = Served(model, broken)
    with (
        serving(served) as url,
        pytest.raises(EvaluationError, match=r"chat/completions' answered 500 .* 5 times: the <b>"),
    ):
        backend(url, "chat").choose(requests(30), lambda place, answer: heard.append(place))
    assert len(heard) == 4
    # Four requests at a time, five attempts each, and none for the questions behind them.
    assert len(served.requests) <= 4 + 5 * 5


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_what_cannot_be_mended_is_not_tried_again(status: int, model: LoadedModel) -> None:
    served = Served(model, lambda number, path: (status, b'{"error": "no"}'))
    with serving(served) as url, pytest.raises(EvaluationError, match=rf"answered {status} "):
        choose(backend(url, "chat"), requests(1))
    assert len(served.requests) == 1


CHOICE = {"index": 0, "message": {"content": "A"}}
NONSENSE: list[tuple[str, bytes, str]] = [
    ("chat", b"<html>Welcome</html>", "did not answer with JSON, but: <html>Welcome"),
    ("chat", b"[1, 2]", "did not answer with a JSON object"),
    ("chat", b"[" * 100_000, "did not answer with JSON"),
    ("chat", b"{}", "answers without 'choices'"),
    ("chat", b'{"choices": [1]}', "answers without 'choices'"),
    ("chat", b'{"choices": []}', "gives 0 choices instead of 1"),
    ("chat", json.dumps({"choices": [CHOICE]}).encode(), "lists no log-probabilities"),
    ("text", b'{"choices": [{"message": {"content": 7}}]}', "answers without a text"),
    ("text", b'{"choices": [{"message": "A"}]}', "answers without a text"),
    ("completions", json.dumps({"choices": [{}] * 3}).encode(), "does not echo the prompt"),
    ("completions", json.dumps({"choices": [{"index": 1}] * 3}).encode(), "numbers its choices"),
    ("text", b'{"x": "' + b"y" * (9 << 20) + b'"}', "answered with more than 8 MiB"),
]


@pytest.mark.parametrize(("kind", "content", "message"), NONSENSE)
def test_nonsense(kind: str, content: bytes, message: str, model: LoadedModel) -> None:
    with (
        serving(Served(model, lambda number, path: (200, content))) as url,
        pytest.raises(EvaluationError, match=message) as problem,
    ):
        choose(backend(url, kind), requests(1))
    assert url in str(problem.value)
    assert len(str(problem.value)) < 500


@pytest.mark.parametrize("logprob", [float("nan"), 3.0, "x", None, True])
def test_log_probabilities_that_are_none(logprob: object, model: LoadedModel) -> None:
    listed = [{"token": "A", "logprob": logprob}]
    choice = {"index": 0, "logprobs": {"content": [{"top_logprobs": listed}]}}
    content = json.dumps({"choices": [choice]}).encode()
    with (
        serving(Served(model, lambda number, path: (200, content))) as url,
        pytest.raises(EvaluationError, match="lists something else than tokens"),
    ):
        choose(backend(url, "chat"), requests(1))


@pytest.mark.parametrize("shift", [1, -1])
def test_offsets_that_are_not_the_options(shift: int, model: LoadedModel) -> None:
    served = Served(model)
    plain = served.answer

    def shifted(path: str, body: dict[str, object]) -> dict[str, object]:
        found = plain(path, body)
        for choice in found["choices"]:  # type: ignore[attr-defined]
            logprobs = choice["logprobs"]
            logprobs["text_offset"] = [3 * (each + shift) for each in logprobs["text_offset"]]
        return found

    served.answer = shifted  # type: ignore[method-assign]
    with serving(served) as url, pytest.raises(EvaluationError, match="has no token that begins"):
        choose(backend(url, "completions"), requests(1, prefix="Is it so? "))


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(EvaluationError, match=r"cannot be reached 5 times: .*Is the server run"):
        choose(backend("http://127.0.0.1:9/v1", "chat"), requests(1))


def test_a_server_that_hangs(model: LoadedModel) -> None:
    def hang(number: int, path: str) -> Reply | None:
        import time

        time.sleep(0.4)
        return None

    with serving(Served(model, hang)) as url, pytest.raises(EvaluationError, match="timed out"):
        choose(backend(url, "chat", timeout_s=0.05, attempts=2), requests(1))


@pytest.mark.parametrize("url", ["localhost:8000", "file:///etc/passwd", "http://", "ftp://x/v1",
                                 "http://x:99999/v1"])  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(EvaluationError, match="is no URL of an API"):
        choose(backend(url, "chat"), requests(1))


def test_the_key_comes_from_the_environment_and_is_never_shown(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINY_KEY", "sk-secret")
    served = Served(model)
    with serving(served) as url:
        api = backend(url, "chat", key_variable="TINY_KEY")
        choose(api, requests(1))
        assert served.keys == ["Bearer sk-secret"]
        assert "sk-secret" not in repr(api)
        monkeypatch.delenv("TINY_KEY")
        with pytest.raises(EvaluationError, match="variable 'TINY_KEY' has no API key"):
            choose(api, requests(1))
