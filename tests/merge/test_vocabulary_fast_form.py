"""A ``tokenizer.json`` that is derived splits text as the library of the original files does."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers, trainers

from forge.core.errors import IncompatibleError
from forge.merge.vocabulary.fast_form import with_document
from forge.merge.vocabulary.hard_strings import HARD_STRINGS
from forge.merge.vocabulary.tokens import Tokenizer, parse_tokenizer

ROOT = Path(__file__).parents[2]
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}


def corpus() -> Iterator[str]:
    for path in sorted((ROOT / "docs").glob("*.md")):
        yield from path.read_text(encoding="utf-8").split("\n")
    for text in HARD_STRINGS.values():
        yield from [text.replace("\x00", " ")] * 3


@pytest.fixture(scope="module")
def trained() -> Callable[..., bytes]:
    """Return what trains a SentencePiece model, each kind once."""
    library = pytest.importorskip("sentencepiece")
    known: dict[str, bytes] = {}

    def train(**options: object) -> bytes:
        key = json.dumps(options)
        if key not in known:
            model = io.BytesIO()
            library.SentencePieceTrainer.train(
                sentence_iterator=corpus(), model_writer=model, vocab_size=1200,
                minloglevel=2, num_threads=1, **options,
            )  # fmt: skip
            known[key] = model.getvalue()
        return known[key]

    return train


def tokenizer_of(files: Mapping[str, bytes], config: Mapping[str, object]) -> Tokenizer:
    written = {**files, "tokenizer_config.json": json.dumps(config).encode()}
    found = parse_tokenizer(written, Path("model"), label="model")
    assert found is not None
    return found


def library_of(files: Mapping[str, bytes], config: Mapping[str, object]) -> Library:
    derived = with_document(tokenizer_of(files, config), "model")
    return Library.from_str(json.dumps(derived.document))


LLAMA_LIKE = {
    "model_type": "bpe", "normalization_rule_name": "identity", "byte_fallback": True,
    "remove_extra_whitespaces": False, "split_digits": True,
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(LLAMA_LIKE, id="llama"),
        pytest.param({**LLAMA_LIKE, "add_dummy_prefix": False}, id="gemma"),
        pytest.param(
            {
                **LLAMA_LIKE,
                "add_dummy_prefix": False,
                "user_defined_symbols": ["<dose>", "HbA1c", "▁▁", "\n\n"],
            },
            id="symbols",
        ),
        pytest.param({"model_type": "bpe", "byte_fallback": True}, id="nfkc"),
        pytest.param({"model_type": "unigram"}, id="unigram"),
        pytest.param({**LLAMA_LIKE, "model_type": "unigram"}, id="unigram-bytes"),
    ],
)
def test_sentencepiece_models(trained: Callable[..., bytes], options: Mapping[str, object]) -> None:
    spm = pytest.importorskip("sentencepiece")
    data = trained(**options)
    processor = spm.SentencePieceProcessor(model_proto=data)
    library = library_of({"tokenizer.model": data}, LLAMA)
    # Among equally good ways to split a run of dashes, Unigrams of the two libraries choose
    # differently, so they are compared on texts without.
    more = [] if options["model_type"] == "unigram" else list(corpus())[:400]
    texts = [*HARD_STRINGS.values(), *more]
    for text in texts:
        if "▁" in text:
            continue  # SentencePiece's own sign for a blank; fast tokenizers keep it apart
        # A text between control tokens is split as a text of its own.
        if any(token in text for token in ("<s>", "</s>", "<unk>")):
            continue
        assert library.encode(text).ids == [1, *processor.encode(text)], text
        if options.get("normalization_rule_name") == "identity":
            assert library.decode(library.encode(text).ids) == text


def test_what_is_put_around_a_text(trained: Callable[..., bytes]) -> None:
    files = {"tokenizer.model": trained(**LLAMA_LIKE)}
    plain = library_of(files, {**LLAMA, "add_bos_token": False}).encode("a fever").ids
    assert library_of(files, LLAMA).encode("a fever").ids == [1, *plain]
    ends = {**LLAMA, "add_eos_token": True}
    assert library_of(files, ends).encode("a fever").ids == [1, *plain, 2]


def test_a_text_behind_a_token_gets_a_blank_unless_the_class_is_newer(
    trained: Callable[..., bytes],
) -> None:
    files = {"tokenizer.model": trained(**LLAMA_LIKE)}
    old = library_of(files, LLAMA).encode("dose</s>dose")
    new = library_of(files, {**LLAMA, "legacy": False}).encode("dose</s>dose")
    behind = [encoding.tokens[encoding.tokens.index("</s>") + 1] for encoding in (old, new)]
    assert [token.startswith("▁") for token in behind] == [True, False]


def byte_level_files(root: Path) -> dict[str, bytes]:
    """Train a byte-level BPE and return its ``vocab.json`` and ``merges.txt``."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(corpus(), trainer)
    library.model.save(str(root))
    return {name: (root / name).read_bytes() for name in ("vocab.json", "merges.txt")}


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2TokenizerFast"])
def test_vocab_json_and_merges_txt(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    files = byte_level_files(tmp_path)
    added = {"<|im_start|>": 900}
    files["added_tokens.json"] = json.dumps(added).encode()
    config = {
        "tokenizer_class": name, "eos_token": "<|endoftext|>", "unk_token": None,
        "additional_special_tokens": ["<|im_start|>"],
    }  # fmt: skip
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    expected = AutoTokenizer.from_pretrained(tmp_path)
    library = library_of(files, config)
    for text in [*HARD_STRINGS.values(), "a<|im_start|>b <|endoftext|> c"]:
        ids = expected(text)["input_ids"]
        assert library.encode(text).ids == ids, text
        assert library.decode(ids, skip_special_tokens=False) == expected.decode(ids), text


def test_what_does_not_say_how_it_splits_text_is_refused(
    tmp_path: Path, trained: Callable[..., bytes]
) -> None:
    files = byte_level_files(tmp_path)
    model = {"tokenizer.model": trained(**LLAMA_LIKE)}

    def say(files: Mapping[str, bytes], config: Mapping[str, object]) -> str:
        with pytest.raises(IncompatibleError) as caught:
            with_document(tokenizer_of(files, config), "org/model")
        text = str(caught.value)
        assert text.startswith("The tokenizer of 'org/model' has no tokenizer.json, and none can")
        assert "save_pretrained writes tokenizer.json" in text
        return text

    assert "the tokenizer_class BloomTokenizer" in say(files, {"tokenizer_class": "BloomTokenizer"})
    assert "no tokenizer_class" in say(model, {})
    alone = {"vocab.json": files["vocab.json"]}
    assert "no merges.txt" in say(alone, {"tokenizer_class": "GPT2Tokenizer"})
    broken = {**files, "merges.txt": b"#version: 0.2\na b\nc\n"}
    assert "has 'c' in merges.txt" in say(broken, {"tokenizer_class": "GPT2Tokenizer"})
    word = {"tokenizer.model": trained(model_type="word")}
    assert "of a rare kind" in say(word, LLAMA)
    symbols = trained(**LLAMA_LIKE, user_defined_symbols=["<dose>"])
    assert "that its user defined" in say({"tokenizer.model": symbols}, LLAMA)
    suffix = trained(**LLAMA_LIKE, treat_whitespace_as_suffix=True)
    assert "of a rare kind" in say({"tokenizer.model": suffix}, LLAMA)
