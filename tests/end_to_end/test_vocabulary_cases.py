"""Vocabularies that other merge tools got wrong, from ``forge merge`` to logits.

Each case is one that users of mergekit reported (by number: arcee-ai/mergekit). The result is
loaded by transformers, and its logits are those of a reference that is put together by hand: the
weights of one parent, its embedding and head rearranged in plain numpy by the text of each token.
Where there is no right result, there is one error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from forge.cli.app import run
from tests.factory import read_values, tiny_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEXTS = (
    "aspirin treats pain and fever in adults but not in children with flu",
    "The dose is 5 mg/kg, every 4-6 hours; not more than 4 doses a day.",
    "Fieber, Schmerzen und Übelkeit",
)
Values = npt.NDArray[np.float32]


def library(size: int, added: Sequence[str], texts: Sequence[str] = TEXTS) -> Tokenizer:
    """Return a byte-level BPE with added tokens behind its pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in added])
    return tokenizer


def model(
    root: Path, tokenizer: Tokenizer | None, rows: int, *, config: Mapping[str, object] = {},
    **options: Any,
) -> Path:  # fmt: skip
    """Write a tiny model in float32 with that tokenizer."""
    settings: dict[str, Any] = {"dtype": "F32", "vocab": rows, "with_tokenizer": False}
    tiny_checkpoint(root, **{**settings, **options})
    if tokenizer is not None:
        tokenizer.save(str(root / "tokenizer.json"))
    words: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
    }  # fmt: skip
    (root / "tokenizer_config.json").write_text(json.dumps({**words, **config}))
    return root


def merge(tmp_path: Path, recipe: Mapping[str, object]) -> Path:
    """Run ``forge merge`` and return the folder."""
    path, out = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(json.dumps({"dtype": "float32", **recipe}))
    assert run(["merge", str(path), "--out", str(out)]) == 0
    return out


def task(base: Path, other: Path, **keys: object) -> dict[str, object]:
    """Return a recipe whose result is the other model, in the vocabulary that keys choose."""
    return {
        "merge_method": "task_arithmetic", "base_model": str(base),
        "models": [{"model": str(other), "parameters": {"weight": 1.0}}], **keys,
    }  # fmt: skip


def ids_of(root: Path) -> dict[str, int]:
    return Tokenizer.from_file(str(root / "tokenizer.json")).get_vocab(with_added_tokens=True)


def by_hand(
    body: Mapping[str, Values],
    ids: Mapping[str, int],
    rows: int,
    holders: Sequence[tuple[Mapping[str, int], Mapping[str, Values]]],
) -> dict[str, Values]:
    """Return one model's weights with embeddings put together row by row, the first holder's first.

    Args:
        body: The weights.
        ids: Tokens of the result.
        rows: Its rows; those of no token are zeros.
        holders: Tokens and weights of models, by preference.
    """
    values = dict(body)
    for name in (EMBEDDING, HEAD):
        if name not in body:
            continue
        table = np.zeros((rows, body[name].shape[1]), np.float32)
        for token, number in ids.items():
            for own, weights in holders:
                tensor = weights.get(name, weights[EMBEDDING])
                if token in own and own[token] < len(tensor):
                    table[number] = tensor[own[token]]
                    break
        values[name] = table
    return values


def check_logits(out: Path, values: Mapping[str, Values], texts: Sequence[str]) -> Any:
    """Compare a model's logits with those of weights; both run in transformers.

    Returns:
        The model's tokenizer.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(out)
    found = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    rows = values[EMBEDDING].shape[0]
    assert found.config.vocab_size == rows
    config = AutoConfig.from_pretrained(out)
    expected = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in values.items()}
    missing = expected.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        assert int(ids.max()) < rows
        with torch.no_grad():
            logits = [model.eval()(input_ids=ids).logits for model in (found, expected)]
        assert logits[0].shape[-1] == rows
        torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    return tokenizer


def check_round_trip(out: Path, parent: Path, texts: Sequence[str]) -> None:
    """Check that a model's tokenizer splits texts into the tokens of a parent's."""
    ours, theirs = (
        Tokenizer.from_file(str(root / "tokenizer.json")) for root in (out, parent)
    )  # fmt: skip
    for text in texts:
        found, expected = ours.encode(text), theirs.encode(text)
        assert found.tokens == expected.tokens, text
        assert ours.decode(found.ids, skip_special_tokens=False) == text


def notices(out: Path) -> str:
    manifest = json.loads((out / "forge_manifest.json").read_text())
    return "\n".join(manifest["notices"])


def large_tokenizer(root: Path, tokens: int, added: Sequence[str]) -> None:
    """Write a tokenizer of so many tokens; most of its pieces no text is split into."""
    document = json.loads(library(400, []).to_str())
    vocab = document["model"]["vocab"]
    fillers = range(len(vocab), tokens - len(added))
    vocab |= {f"filler{number}": number for number in fillers}
    document["added_tokens"] += [
        {
            "id": tokens - len(added) + number, "content": text, "single_word": False,
            "lstrip": False, "rstrip": False, "normalized": False, "special": True,
        }
        for number, text in enumerate(added)
    ]  # fmt: skip
    (root / "tokenizer.json").write_text(json.dumps(document))


@pytest.mark.parametrize("source", ["base", "union"])
def test_padded_rows_are_kept(tmp_path: Path, source: str) -> None:
    """Issue 425: Qwen2.5 has 151,665 tokens and 152,064 rows, which other tools cut."""
    rows, tokens = 152_064, 151_665
    common = [f"<|special {number}|>" for number in range(22)]
    base, other = (
        model(tmp_path / name, None, rows, hidden=8, layers=1, model_type="qwen2", tune=tune)
        for name, tune in (("base", None), ("other", 1))
    )
    large_tokenizer(base, tokens, common)
    large_tokenizer(other, tokens + 1, [*common, "<think>"])
    out = merge(tmp_path, task(base, other, tokenizer_source=source))
    config = json.loads((out / "config.json").read_text())
    values = read_values(out)
    assert config["vocab_size"] == len(values[EMBEDDING]) == len(values[HEAD]) == rows
    ids = ids_of(out)
    assert len(ids) == (tokens if source == "base" else tokens + 1)
    theirs = read_values(other)
    for name in (EMBEDDING, HEAD):
        # The token of the other alone takes the place of a padding row, where it is kept.
        own = slice(0, tokens if source == "base" else tokens + 1)
        np.testing.assert_allclose(values[name][own], theirs[name][own], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            values[name][tokens + 1 :], theirs[name][tokens + 1 :], rtol=1e-4, atol=1e-6
        )
    padding = rows - len(ids)
    assert f"rows for {len(ids):,} tokens; the other {padding:,} are padding" in notices(out)
    text = "fever<|special 3|>" + ("<think>pain" if source == "union" else "")
    check_logits(out, {**theirs, EMBEDDING: values[EMBEDDING], HEAD: values[HEAD]}, [text])


TOWER = [f"<extra {number}>" for number in range(7)]


@pytest.mark.parametrize("is_larger", [True, False])
def test_added_tokens_of_one_parent(tmp_path: Path, is_larger: bool) -> None:
    """Issue 139: seven special tokens in one parent alone, merged by slerp in either order."""
    plain, tower = library(320, []), library(320, TOWER)
    count = len(plain.get_vocab())
    one = model(tmp_path / "one", tower, count + 7, seed=1)
    two = model(tmp_path / "two", plain, count, seed=1, tune=2, tune_scale=1.0)
    base, other = (one, two) if is_larger else (two, one)
    recipe = {
        "merge_method": "slerp", "base_model": str(base),
        "models": [{"model": str(base)}, {"model": str(other)}], "parameters": {"t": 1.0},
        "tokenizer_source": "union",
    }  # fmt: skip
    out = merge(tmp_path, recipe)
    ids, values = ids_of(out), read_values(out)
    assert ids == ids_of(one)
    holders = [(ids_of(root), read_values(root)) for root in (other, base)]
    expected = by_hand(read_values(other), ids, count + 7, holders)
    # At t = 1 slerp returns the other model, in the result's vocabulary.
    np.testing.assert_allclose(values[EMBEDDING], expected[EMBEDDING], rtol=1e-4, atol=1e-6)
    texts = [*TEXTS, f"fever{TOWER[0]} pain {TOWER[6]}"]
    check_logits(out, expected, texts)
    check_round_trip(out, one, texts)


def test_two_sets_of_special_tokens(tmp_path: Path) -> None:
    """Issue 342: the same ids mean ChatML's tokens in one parent and OpenChat's in the other."""
    chatml, openchat = ["<|im_start|>", "<|im_end|>"], ["<|end_of_turn|>", "<|pad_0|>"]
    count = len(library(320, []).get_vocab())
    base = model(tmp_path / "base", library(320, []), count)
    one = model(tmp_path / "one", library(320, chatml), count + 2, tune=1)
    two = model(tmp_path / "two", library(320, openchat), count + 2, tune=2)
    recipe = {
        "merge_method": "task_arithmetic", "base_model": str(base),
        "models": [
            {"model": str(root), "parameters": {"weight": weight}}
            for root, weight in ((one, 1.0), (two, 0.0))
        ],
    }  # fmt: skip
    # Without a tokenizer key both would be one row; that is an error, not a merge.
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"dtype": "float32", **recipe}))
    assert run(["merge", str(path), "--out", str(tmp_path / "none")]) == 2
    assert not (tmp_path / "none").exists()

    out = merge(tmp_path, {**recipe, "tokenizer_source": "union"})
    ids = ids_of(out)
    assert [ids[token] for token in (*chatml, *openchat)] == [*range(count, count + 4)]
    parents = [(ids_of(root), read_values(root)) for root in (one, two, base)]
    expected = by_hand(read_values(one), ids, count + 4, parents)
    turn = "<|im_start|>user\nfever<|im_end|>"
    check_logits(out, expected, [*TEXTS, turn, "pain<|end_of_turn|>"])
    check_round_trip(out, one, [*TEXTS, turn])
    check_round_trip(out, two, [*TEXTS, "pain<|end_of_turn|>fever<|pad_0|>"])


def test_a_tokenizer_that_counts_beyond_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issues 342 and 428: ids 64,000 and 64,001 with 64,000 rows."""
    tokenizer = library(320, ["<|pad|>", "<|x|>"])
    count = len(tokenizer.get_vocab())
    base, other = (
        model(tmp_path / name, tokenizer, count - 2, tune=tune)
        for name, tune in (("base", None), ("other", 1))
    )
    path = tmp_path / "plain.yaml"
    path.write_text(json.dumps({"dtype": "float32", **task(base, other)}))
    assert run(["check", str(path)]) == 0
    assert f"has tokens beyond the {count - 2:,} rows" in capsys.readouterr().out
    out = merge(tmp_path, task(base, other, tokenizer_source="base"))
    theirs = (ids_of(other), read_values(other))
    expected = by_hand(theirs[1], ids_of(out), count, [theirs])
    assert not expected[EMBEDDING][count - 2 :].any()
    check_logits(out, expected, [*TEXTS, "fever<|pad|>pain<|x|>"])
    assert "No model has an embedding of 2 tokens of the tokenizer" in notices(out)


@pytest.mark.parametrize("is_tied", [False, True])
def test_many_more_pieces_in_one_parent(tmp_path: Path, is_tied: bool) -> None:
    """Issue 47: a vocabulary that was grown for another language, merged with what it grew from."""
    small = library(300, [])
    grown = json.loads(small.to_str())
    german = json.loads(library(420, [], ["Fieber, Schmerzen und Übelkeit"]).to_str())
    vocab = grown["model"]["vocab"]
    for piece in german["model"]["vocab"]:
        vocab.setdefault(piece, len(vocab))
    known = {tuple(pair) for pair in grown["model"]["merges"]}
    grown["model"]["merges"] += [p for p in german["model"]["merges"] if tuple(p) not in known]
    large = Tokenizer.from_str(json.dumps(grown))
    base = model(tmp_path / "base", small, 300, tie=is_tied)
    other = model(tmp_path / "other", large, len(vocab) + 3, tie=is_tied, tune=1)
    out = merge(tmp_path, task(base, other, tokenizer_source="union"))
    ids = ids_of(out)
    assert {token: ids[token] for token in ids_of(base)} == ids_of(base)
    assert set(ids) == set(vocab)
    holders = [(ids_of(root), read_values(root)) for root in (other, base)]
    expected = by_hand(read_values(other), ids, len(vocab), holders)
    check_logits(out, expected, TEXTS)
    check_round_trip(out, other, TEXTS)
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is is_tied
    assert (HEAD in read_values(out)) is not is_tied


@pytest.mark.parametrize(
    "method", ["dare_ties", "ties", "della", "dare_linear", "breadcrumbs_ties"]
)
@pytest.mark.parametrize("is_tied", [False, True])
def test_a_token_of_one_parent_has_no_task_vector(
    tmp_path: Path, method: str, is_tied: bool
) -> None:
    """Its row is that parent's, whatever is dropped, elected and rescaled elsewhere."""
    count = len(library(320, []).get_vocab())
    base = model(tmp_path / "base", library(320, []), count, tie=is_tied)
    one = model(tmp_path / "one", library(320, ["<|one|>"]), count + 1, tune=1, tie=is_tied)
    two = model(tmp_path / "two", library(320, ["<|two|>"]), count + 1, tune=2, tie=is_tied)
    recipe = {
        "merge_method": method, "base_model": str(base), "tokenizer_source": "union",
        "models": [
            {"model": str(root), "parameters": {"weight": 0.5, "density": 0.5}}
            for root in (one, two)
        ],
    }  # fmt: skip
    out = merge(tmp_path, recipe)
    ids, values = ids_of(out), read_values(out)
    for name in (EMBEDDING,) if is_tied else (EMBEDDING, HEAD):
        for token, root in (("<|one|>", one), ("<|two|>", two)):
            np.testing.assert_array_equal(values[name][ids[token]], read_values(root)[name][count])
        assert np.any(values[name][:count] != read_values(base)[name])


def test_a_parent_of_another_tokenizer_altogether(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 169: byte-level pieces and a word list have next to nothing in common."""
    tokenizer = library(320, [])
    base = model(tmp_path / "bytes", tokenizer, len(tokenizer.get_vocab()))
    other = tiny_checkpoint(tmp_path / "words", dtype="F32", tune=1)
    path = tmp_path / "recipe.yaml"
    for source, code, say in (
        ("union", 2, "error: The tokenizers cannot be united"),
        ("base", 0, "are in the vocabulary of the result"),
    ):
        path.write_text(
            json.dumps({"dtype": "float32", **task(base, other, tokenizer_source=source)})
        )
        assert run(["merge", str(path), "--out", str(tmp_path / source)]) == code
        assert say in capsys.readouterr().err


def test_a_quantized_model_keeps_every_file_of_its_tokenizer(tmp_path: Path) -> None:
    root = model(tmp_path / "model", library(320, TOWER), 384, model_type="llama", hidden=64)
    (root / "chat_template.jinja").write_text("{{ one }}")
    (root / "additional_chat_templates").mkdir()
    (root / "additional_chat_templates" / "tool.jinja").write_text("{{ two }}")
    (root / "added_tokens.json").write_text(json.dumps({TOWER[0]: 320}))
    out = tmp_path / "quantized"
    options = [
        "--method",
        "rtn",
        "--format",
        "compressed-tensors",
        "--group-size",
        "32",
        "--verify",
        "off",
    ]
    assert run(["quantize", str(root), *options, "--out", str(out)]) == 0
    kept = ("tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.jinja")
    for name in (*kept, "additional_chat_templates/tool.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (root / name).read_bytes(), name
