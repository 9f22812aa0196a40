"""Answers equal those of one plain forward pass for each prompt, in every family of models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from forge.core.errors import EvaluationError, IncompatibleError, NonFiniteError
from forge.evaluate.backends.batches import Row, batches, shared_length
from forge.evaluate.backends.encoding import Encoder
from forge.evaluate.backends.local import LocalBackend
from forge.evaluate.contract import ChoiceRequest, Prompt
from forge.results.answers import ChoiceAnswer
from forge.runtime.any_model import load_any
from tests.architectures.tiny_models import CASES, tiny_model
from tests.evaluate.backends.word_models import (
    letter_tokenizer,
    loaded,
    plain_log_probabilities,
    requests,
    saved,
)
from tests.runtime.folders import llama, quantized_pair


def choose(backend: LocalBackend, asked: list[ChoiceRequest]) -> list[ChoiceAnswer]:
    found: dict[int, ChoiceAnswer] = {}
    backend.choose(asked, lambda place, answer: found.update({place: answer}))
    assert sorted(found) == list(range(len(asked)))
    return [found[place] for place in range(len(asked))]


def assert_as_plain(backend: LocalBackend, asked: list[ChoiceRequest]) -> None:
    for request, answer in zip(asked, choose(backend, asked), strict=True):
        log_V = plain_log_probabilities(backend._loaded, request.prompt.text)
        tokens = backend._loaded.tokenizer.convert_tokens_to_ids(list(request.options))
        assert answer.log_probs == pytest.approx(log_V[tokens].tolist(), abs=1e-4)
        assert answer.top_log_prob == pytest.approx(float(log_V.max()), abs=1e-4)
        best = int(log_V.argmax())
        assert answer.top_text == backend._loaded.tokenizer.decode([best])
        assert answer.top == (tokens.index(best) if best in tokens else None)


def windowed(family: str, **settings: object) -> transformers.PreTrainedModel:
    """Return a model that sees fewer tokens than a prompt has."""
    sizes: dict[str, object] = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 3, "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }  # fmt: skip
    config = CONFIG_MAPPING[family](**(sizes | {"sliding_window": 7} | settings))
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)


WINDOWED = {
    "mistral v0.1": ("mistral", {}),
    "gemma2": ("gemma2", {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
    "gemma3": ("gemma3_text", {"sliding_window_pattern": 2}),
    "phi3": ("phi3", {}),
    "starcoder2": ("starcoder2", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_family(case: str, tmp_path: Path) -> None:
    backend = LocalBackend(loaded(tiny_model(case), tmp_path), batch_tokens=40)
    assert_as_plain(backend, requests())
    assert backend.trunk.keeps_past


@pytest.mark.parametrize("case", WINDOWED)
def test_a_sliding_window_shorter_than_the_prefix(case: str, tmp_path: Path) -> None:
    family, settings = WINDOWED[case]
    model = windowed(family, **settings)
    backend = LocalBackend(loaded(model, tmp_path), batch_tokens=40)
    assert_as_plain(backend, requests())
    assert backend.trunk.keeps_past
    # The window must matter for this to mean something.
    wide = loaded(windowed(family, **settings, sliding_window=64), tmp_path / "wide")
    wide.model.load_state_dict(model.state_dict())
    text = requests()[0].prompt.text
    change = plain_log_probabilities(wide, text) - plain_log_probabilities(backend._loaded, text)
    assert float(change.abs().max()) > 1e-2


@pytest.mark.parametrize("format_name", ["awq-gemm", "gptq", "bnb-nf4", "bnb-int8"])
def test_packed_weights(format_name: str, tmp_path: Path) -> None:
    pair = quantized_pair(llama(vocab_size=96), tmp_path, format_name)
    letter_tokenizer().save_pretrained(pair.quantized)
    backend = LocalBackend(load_any(str(pair.quantized), dtype="float32"), batch_tokens=40)
    assert_as_plain(backend, requests())
    assert backend.trunk.keeps_past


RECURRENT = {
    "mamba": {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2},
    "qwen3_next": {
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "head_dim": 16,
        "num_key_value_heads": 1, "num_experts": 2, "num_experts_per_tok": 1,
        "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
        "linear_num_value_heads": 2, "linear_num_key_heads": 1, "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
}  # fmt: skip


@pytest.mark.parametrize("family", RECURRENT)
def test_a_model_that_keeps_a_state_is_computed_in_full(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=96, **RECURRENT[family])
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    backend = LocalBackend(loaded(model, tmp_path), batch_tokens=400)
    assert_as_plain(backend, requests())
    assert backend.trunk.keeps_past is False


def test_a_model_that_forgets_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family that goes on wrongly from a cache is caught by trying, and computed in full."""
    model = tiny_model("llama")
    plain = model.model.forward

    def forgetful(*args: object, **kwargs: object) -> object:
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():  # type: ignore[attr-defined]
            kwargs["past_key_values"] = None
        return plain(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", forgetful)
    backend = LocalBackend(loaded(model, tmp_path), batch_tokens=40)
    assert_as_plain(backend, requests())
    assert backend.trunk.keeps_past is False


@pytest.mark.parametrize("budget", [1, 30, 5000])
@pytest.mark.parametrize("begin", [True, False])
def test_batches_change_nothing(budget: int, begin: bool, tmp_path: Path) -> None:
    backend = LocalBackend(loaded(tiny_model("qwen2"), tmp_path, begin=begin), batch_tokens=budget)
    asked = requests(3) + requests(1, prefix="x", seed=3) + requests(4, prefix="", seed=4)
    assert_as_plain(backend, asked + requests(2))


def test_the_prefix_is_computed_once(tmp_path: Path) -> None:
    backend = LocalBackend(loaded(tiny_model("llama"), tmp_path), batch_tokens=40)
    choose(backend, requests())
    read: list[int] = []
    hook = backend.trunk.model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].numel())
    )
    asked = requests(20)
    choose(backend, asked)
    hook.remove()
    prefix = len(asked[0].prompt.prefix) + 1
    suffixes = sum(len(request.prompt.suffix) for request in asked)
    assert read[0] == prefix
    assert suffixes <= sum(read[1:]) <= 1.2 * suffixes


def test_the_head_sees_one_position_a_row(tmp_path: Path) -> None:
    backend = LocalBackend(loaded(tiny_model("llama"), tmp_path), batch_tokens=1000)
    seen: list[int] = []
    backend.trunk.model.lm_head.register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].shape[-2])
    )
    choose(backend, requests(9))
    assert sum(seen) == 9


def test_answers_come_as_soon_as_they_are_known(tmp_path: Path) -> None:
    backend = LocalBackend(loaded(tiny_model("llama"), tmp_path), batch_tokens=20)
    heard: list[int] = []

    def stop(place: int, answer: ChoiceAnswer) -> None:
        heard.append(place)
        if len(heard) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backend.choose(requests(8), stop)
    assert len(heard) == 3


def test_a_prompt_that_is_too_long(tmp_path: Path) -> None:
    model = loaded(tiny_model("llama"), tmp_path)
    long = [ChoiceRequest(Prompt("p" * 60, f"{end}Z:("), ("A", "B")) for end in "qrs"]
    with pytest.raises(IncompatibleError, match=r"that ends with 'p+qZ:\(' has 65 tokens; the"):
        choose(LocalBackend(model), long)
    cut = LocalBackend(model, truncate=True)
    assert cut.name == "forge, truncating"
    log_V = plain_log_probabilities(model, "")  # The tokenizer's own first token is cut off too.
    ids = model.tokenizer(long[0].prompt.text).input_ids[-64:]
    with torch.no_grad():
        log_V = model.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    tokens = model.tokenizer.convert_tokens_to_ids(["A", "B"])
    assert choose(cut, long)[0].log_probs == pytest.approx(log_V[tokens].tolist(), abs=1e-4)


def test_numbers_that_are_none_name_the_question(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.norm.weight.data[3] = float("nan")
    with pytest.raises(NonFiniteError, match=r"NaN or infinity behind the prompt that ends with"):
        choose(LocalBackend(loaded(model, tmp_path)), requests())


def test_options_with_the_same_first_token(tmp_path: Path) -> None:
    backend = LocalBackend(loaded(tiny_model("llama"), tmp_path))
    asked = [ChoiceRequest(Prompt("Is it?", ":("), ("no", "yes", "not sure"))]
    with pytest.raises(EvaluationError, match=r"'no' and 'not sure' begin with the same token"):
        choose(backend, asked)


def bpe(merges: list[tuple[str, str]], alphabet: str) -> transformers.PreTrainedTokenizerFast:
    words = ["<s>", *alphabet, *("".join(pair) for pair in merges)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def test_an_option_that_joins_the_prompts_end_is_the_token_that_spells_it() -> None:
    encoder = Encoder(bpe([("(", "A")], "x(AB"))
    (tokens,) = encoder.prompts(["x("])
    assert encoder.encode("x(A") == [1, 5]
    assert encoder.option_tokens("x(", tokens, ["A", "B"]) == (3, 4)


def test_an_option_that_nothing_spells() -> None:
    encoder = Encoder(bpe([("(", "A"), ("A", "B")], "x(AB"))
    (tokens,) = encoder.prompts(["x("])
    with pytest.raises(EvaluationError, match="joins the option 'ABx' with the prompt's end 'x"):
        encoder.option_tokens("x(", tokens, ["ABx"])


def test_blanks_at_the_end_belong_to_the_option() -> None:
    encoder = Encoder(bpe([(" ", "A"), (" ", "B")], "x :AB"))
    (tokens,) = encoder.prompts(["x: "])
    assert tokens == tuple(encoder.encode("x:"))
    found = encoder.option_tokens("x: ", tokens, ["A", "B"])
    assert encoder.decode(found) == " A B"


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=9),
    st.integers(1, 30),
    st.integers(1, 4),
)
def test_batches_hold_every_row_once(tokens: list[list[int]], budget: int, most: int) -> None:
    rows = [Row(index, tuple(each)) for index, each in enumerate(tokens)]
    shared = shared_length(rows)
    assert all(row.tokens[:shared] == rows[0].tokens[:shared] for row in rows)
    assert shared < min(len(row.tokens) for row in rows)
    longer = {row.tokens[: shared + 1] for row in rows}
    assert len(longer) > 1 or shared == min(len(row.tokens) for row in rows) - 1
    found = batches(rows, shared=shared, budget=budget, most=most)
    assert sorted(row.index for batch in found for row in batch) == list(range(len(rows)))
    for batch in found:
        width = max(len(row.tokens) for row in batch) - shared
        assert len(batch) == 1 or (width * len(batch) <= budget and len(batch) <= most)


def test_a_saved_model_is_read_again(tmp_path: Path) -> None:
    """The helper that saves and the one that hands over the same model agree."""
    model = tiny_model("llama")
    again = load_any(str(saved(model, tmp_path)), dtype="float32")
    assert_as_plain(LocalBackend(again), requests(2))
