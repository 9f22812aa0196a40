"""Parents without a fast tokenizer file: their forms are read, or one error says what to do."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers

from forge.cli.app import run
from forge.merge.vocabulary.hard_strings import HARD_STRINGS
from tests.end_to_end.test_vocabulary_cases import (
    TEXTS,
    by_hand,
    check_logits,
    ids_of,
    merge,
    model,
    notices,
    task,
)
from tests.factory import read_values

TURNS = ["<|im_start|>", "<|im_end|>"]
TURN = "<|im_start|>user fever<|im_end|>"
PLAIN = [text for text in HARD_STRINGS.values() if "<" not in text and "▁" not in text]
LLAMA = {
    "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
    "unk_token": "<unk>", "add_bos_token": True, "legacy": True,
}  # fmt: skip


def sentencepiece() -> bytes:
    """Train a model like Llama's."""
    library = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS * 4, *PLAIN]), model_writer=written, vocab_size=480,
        model_type="bpe", normalization_rule_name="identity", byte_fallback=True,
        remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
    )  # fmt: skip
    return written.getvalue()


def word_files() -> dict[str, bytes]:
    """Train a byte-level BPE like GPT-2's and return its two files."""
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator([*TEXTS] * 3, trainer)
    document = json.loads(library.to_str())["model"]
    merges = "".join(f"{left} {right}\n" for left, right in document["merges"])
    return {
        "vocab.json": json.dumps(document["vocab"]).encode(),
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
    }


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).write_bytes(content)
    return root


def test_a_fast_base_and_a_slow_model(tmp_path: Path) -> None:
    """The other's ids come from tokenizer.model, its added tokens from added_tokens.json."""
    from transformers import AutoTokenizer

    data = sentencepiece()
    base = model(tmp_path / "base", None, 480, config=LLAMA)
    write(base, {"tokenizer.model": data})
    fast = AutoTokenizer.from_pretrained(base)
    fast.backend_tokenizer.save(str(base / "tokenizer.json"))
    (base / "tokenizer.model").unlink()
    other = model(tmp_path / "other", None, 482, tune=1, config=LLAMA)
    added = {token: 480 + number for number, token in enumerate(TURNS)}
    write(other, {"tokenizer.model": data, "added_tokens.json": json.dumps(added).encode()})
    words = {"bos_token": "<s>", "eos_token": "</s>", "additional_special_tokens": TURNS}
    (other / "special_tokens_map.json").write_text(json.dumps(words))

    out = merge(tmp_path, task(base, other, tokenizer_source="union"))
    ids = ids_of(out)
    assert {token: ids[token] for token in TURNS} == added
    theirs = read_values(other)
    everything = {**ids_of(base), **added}
    expected = by_hand(theirs, ids, 482, [(everything, theirs)])
    tokenizer = check_logits(out, expected, [*TEXTS, TURN])
    parent = AutoTokenizer.from_pretrained(other)
    for text in [*PLAIN, *TEXTS, TURN]:
        assert tokenizer(text)["input_ids"] == parent(text)["input_ids"], text
    assert tokenizer.decode(tokenizer(TURN)["input_ids"]) == parent.decode(
        parent(TURN)["input_ids"]
    )


def test_a_base_of_two_word_files(tmp_path: Path) -> None:
    """A vocab.json with merges.txt becomes a tokenizer.json when tokens are added to it."""
    from transformers import AutoTokenizer

    config = {
        "tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "bos_token": None,
    }  # fmt: skip
    files = word_files()
    count = len(json.loads(files["vocab.json"]))
    base = write(model(tmp_path / "base", None, count + 4, config=config), files)
    parent = AutoTokenizer.from_pretrained(base)
    other = model(tmp_path / "other", None, count + 4, tune=1, config=config)
    library = parent.backend_tokenizer
    library.add_special_tokens([AddedToken(token, normalized=False) for token in TURNS])
    library.save(str(other / "tokenizer.json"))

    out = merge(tmp_path, task(base, other, tokenizer_source="union"))
    theirs = read_values(other)
    expected = by_hand(theirs, ids_of(out), count + 4, [(ids_of(other), theirs)])
    # Rows of padding are those of the fine-tune, too.
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        expected[name][count + 2 :] = theirs[name][count + 2 :]
    tokenizer = check_logits(out, expected, [*TEXTS, TURN])
    fresh = AutoTokenizer.from_pretrained(base)
    for text in HARD_STRINGS.values():
        if "<|im" not in text:
            assert tokenizer(text)["input_ids"] == fresh(text)["input_ids"], text
    assert tokenizer(TURN)["input_ids"][0] == count
    assert "tokenizer.json is derived from vocab.json" in notices(out)


def test_a_slow_base_is_kept_as_it_is(tmp_path: Path) -> None:
    data = sentencepiece()
    base, other = (
        write(model(tmp_path / name, None, 480, tune=tune, config=LLAMA), {"tokenizer.model": data})
        for name, tune in (("base", None), ("other", 1))
    )
    out = merge(tmp_path, task(base, other, tokenizer_source="base"))
    assert (out / "tokenizer.model").read_bytes() == data
    assert not (out / "tokenizer.json").exists()
    check_logits(out, read_values(other), TEXTS)


def test_a_form_that_does_not_say_how_it_splits_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"tokenizer_class": "BioTokenizer"}
    files = word_files()
    count = len(json.loads(files["vocab.json"]))
    base = write(model(tmp_path / "base", None, count, config=config), files)
    other = write(model(tmp_path / "other", None, count + 1, tune=1, config=config), files)
    (other / "added_tokens.json").write_text(json.dumps({"<|x|>": count}))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"dtype": "float32", **task(base, other, tokenizer_source="union")}))
    assert run(["merge", str(path), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.split("error: ")[1:]
    assert len(errors) == 1
    assert "has vocab.json and the tokenizer_class BioTokenizer" in errors[0]
    assert "save_pretrained writes tokenizer.json" in errors[0]
    assert not (tmp_path / "out").exists()
