"""Hard strings through tokenizers: narrowed ones split as whole ones do, and changes are found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from forge.core.errors import IncompatibleError
from forge.merge.vocabulary.hard_strings import HARD_STRINGS, strings_of
from forge.merge.vocabulary.round_trip import are_same, compare, narrowed, read_texts
from forge.merge.vocabulary.tokens import Tokenizer, parse_tokenizer

ROOT = Path(__file__).parents[2]
ADDED = (
    AddedToken("<|x|>", normalized=False, rstrip=True),
    AddedToken("fever", normalized=True, single_word=True, lstrip=True),
    AddedToken("  ", normalized=True),
)


def corpus() -> Iterator[str]:
    for path in sorted((ROOT / "docs").glob("*.md"))[:6]:
        yield path.read_text(encoding="utf-8")
    yield from [*HARD_STRINGS.values()] * 3


def byte_level(*, prefix: bool = False) -> tuple[Any, Any, Any]:
    return None, pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel()


def metaspace(scheme: str) -> tuple[Any, Any, Any]:
    before = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return normalizers.NFKC(), before, decoders.Metaspace(prepend_scheme=scheme)


def llama() -> tuple[Any, Any, Any]:
    steps = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return steps, None, decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])


def digits() -> tuple[Any, Any, Any]:
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+|\p{L}+"), "isolated")
    after = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    both = pre_tokenizers.Sequence([split, after])
    return normalizers.Lowercase(), both, decoders.ByteLevel()


KINDS: Mapping[str, Callable[[], tuple[Any, Any, Any]]] = {
    "bytes": byte_level,
    "bytes, prefixed": lambda: byte_level(prefix=True),
    "metaspace": lambda: metaspace("always"),
    "metaspace, first": lambda: metaspace("first"),
    "llama": llama,
    "digits": digits,
}


def train(kind: str, *, size: int = 1500, added: tuple[AddedToken, ...] = ()) -> dict[str, Any]:
    library = Library(models.BPE(unk_token="<unk>"))
    library.normalizer, words, library.decoder = KINDS[kind]()
    # Without words, pieces would be found in whole documents, which takes long.
    library.pre_tokenizer = words or pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=12,
        show_progress=False,
    )
    library.train_from_iterator(corpus(), trainer)
    library.add_tokens(list(added))
    document: dict[str, Any] = json.loads(library.to_str())
    return document if words else {**document, "pre_tokenizer": None}


def tokenizer_of(document: Mapping[str, object]) -> Tokenizer:
    files = {"tokenizer.json": json.dumps(document).encode()}
    found = parse_tokenizer(files, Path("model"), label="model")
    assert found is not None
    return found


@pytest.mark.parametrize("is_text", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_narrowed_tokenizer_splits_as_the_whole(kind: str, is_text: bool) -> None:
    document = train(kind, added=ADDED)
    if is_text:
        merges = document["model"]["merges"]
        document["model"]["merges"] = [" ".join(pair) for pair in merges]
        document["model"]["ignore_merges"] = True
    tokenizer = tokenizer_of(document)
    texts = strings_of([tokenizer])
    library = Library.from_str(json.dumps({**document, "post_processor": None}))
    found = read_texts(tokenizer, texts, "model")
    for name, text in texts.items():
        encoding = library.encode(text)
        assert list(found[name].tokens) == encoding.tokens, name
        assert found[name].back == library.decode(encoding.ids, skip_special_tokens=False), name
    few = narrowed(tokenizer, ["a fever"])["model"]
    assert isinstance(few, dict)
    assert len(few["vocab"]) < 40 < len(document["model"]["vocab"])


@pytest.fixture(scope="module")
def llama_tokenizer() -> tuple[Tokenizer, Library]:
    document = train("llama", added=ADDED)
    return tokenizer_of(document), Library.from_str(json.dumps(document))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.sampled_from([*HARD_STRINGS.values(), "<|x|>", "fever", "a", " "]), max_size=4))
def test_any_text_is_split_as_by_the_whole(
    llama_tokenizer: tuple[Tokenizer, Library], parts: list[str]
) -> None:
    tokenizer, library = llama_tokenizer
    text = "".join(parts)
    assert (
        list(read_texts(tokenizer, {"": text}, "model")[""].tokens) == library.encode(text).tokens
    )


def test_other_models_are_run_whole() -> None:
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁fever", -3.0), ("f", -4.0), ("ever", -4.0)]
    library = Library(models.Unigram(pieces, unk_id=0))
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = tokenizer_of(json.loads(library.to_str()))
    found = read_texts(tokenizer, {"one": "fever never"}, "model")
    assert list(found["one"].tokens) == library.encode("fever never").tokens


def test_changes_are_told_apart() -> None:
    whole = train("bytes")
    other = json.loads(json.dumps(whole))
    other["pre_tokenizer"]["add_prefix_space"] = True
    other["normalizer"] = {"type": "NFC"}
    before, after = tokenizer_of(whole), tokenizer_of(other)
    assert are_same(before, tokenizer_of({**whole, "version": "2"}))
    assert not are_same(before, after)
    texts = {name: HARD_STRINGS[name] for name in ("nothing", "a blank before", "combining marks")}
    changes = compare(
        read_texts(before, texts, "a"), read_texts(after, texts, "b"), texts
    )  # fmt: skip
    assert [change.name for change in changes] == ["combining marks"]
    assert changes[0].is_split
    assert changes[0].is_lost
    assert changes[0].after.back == " naïve façade"
    assert changes[0].as_json()["text"] == "nai\u0308ve fac\u0327ade"
    same = read_texts(before, texts, "a")
    assert compare(same, same, texts) == ()


def test_a_tokenizer_that_makes_the_library_panic_is_an_error() -> None:
    document = train("bytes", size=300)
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "////////"}
    with pytest.raises(IncompatibleError, match=r"of 'org/model' does not work in the tokenizers"):
        read_texts(tokenizer_of({**document, "normalizer": charsmap}), HARD_STRINGS, "org/model")


def test_strings_have_what_they_are_named_after() -> None:
    assert HARD_STRINGS["nothing"] == ""
    assert "\r\n" in HARD_STRINGS["Windows line breaks"]
    assert "\u200d" in HARD_STRINGS["joined emoji"]
    assert "\x00" in HARD_STRINGS["a null"]
    assert "\u0308" in HARD_STRINGS["combining marks"]
    assert max(map(len, HARD_STRINGS.values())) <= 80
    tokenizer = tokenizer_of(train("bytes", added=ADDED))
    texts = strings_of([tokenizer])
    assert texts["the token '<|x|>'"] == "a<|x|>b <|x|> c\n<|x|>"
    assert len(texts) == len(HARD_STRINGS) + len(tokenizer.added())
