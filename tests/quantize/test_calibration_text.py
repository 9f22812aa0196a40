"""Calibration text becomes sequences of one length, and what cannot is told with numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.core.errors import CheckpointError, IncompatibleError
from forge.quantize.calibration.documents import (
    Document,
    Message,
    chat_of,
    read_jsonl,
    read_parquet,
    read_text,
    text_of,
)
from forge.quantize.calibration.sequences import cut_text, pack_documents
from forge.quantize.calibration.stored import digest, dump_tokens, load_tokens
from forge.quantize.calibration.tokenizer import ModelTokenizer
from forge.recipes.quantize_types import CalibrationRecipe

BOS = 1


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def rendered(messages: Sequence[Message], answer: bool) -> str:
    return "".join(f"<{item.role[0]}>{item.content}" for item in messages) + "<a>" * answer


def tokenizer(*, bos: bool = False) -> ModelTokenizer:
    prefix = (BOS,) if bos else ()
    return ModelTokenizer(letters, prefix, BOS, frozenset({2}), rendered)


def jsonl(folder: Path, *records: object) -> Path:
    path = folder / "notes.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


TURNS = [{"role": "user", "content": "Fever?"}, {"role": "assistant", "content": "Rest."}]
CHAT = (Message("user", "Fever?"), Message("assistant", "Rest."))


@pytest.mark.parametrize(
    ("record", "field", "document"),
    [
        ({"id": 3, "text": "a b"}, None, "a b"),
        ({"content": "a", "title": "b"}, None, "a"),
        ({"title": "b", "note": "a"}, "note", "a"),
        ({"messages": TURNS}, None, CHAT),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Fever?"},
                    {"from": "gpt", "value": "Rest."},
                ]
            },
            None,
            CHAT,
        ),
        ({"contexts": ["a", "b"]}, "contexts", "a\nb"),
        ("just text", None, "just text"),
    ],
)  # fmt: skip
def test_a_record_is_a_document(
    record: object, field: str | None, document: Document, tmp_path: Path
) -> None:
    assert list(read_jsonl(jsonl(tmp_path, record), field)) == [document]


def test_empty_lines_and_empty_texts_are_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "  "}\n{"text": "b"}\n')
    assert list(read_jsonl(path, None)) == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ('{"text": "a"}\n{"text": \n', None, ["line 2", "not JSON"]),
        ('{"text": "a"}\n[1]\n', None, ["line 2", "record in braces"]),
        ('{"note": "a", "id": 1}\n', None, ["text, content", "note, id", "--calibration-field"]),
        ('{"note": "a"}\n', "nota", ["no field 'nota'", "mean 'note'"]),
        ('{"text": "a"}\n{"note": "b"}\n', None, ["record 2", "no field 'text'"]),
        ('{"text": 5}\n', None, ["record 1", "neither text nor a chat"]),
        ('{"text": [{"role": "user"}]}\n', None, ["neither text nor a chat"]),
        ("[" * 100_000, None, ["line 1", "not JSON"]),
        ("\xff\xfe", None, ["line 1", "not JSON"]),
    ],
)
def test_a_wrong_record_is_named(
    content: str, field: str | None, words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError) as caught:
        list(read_jsonl(path, field))
    assert all(word in str(caught.value) for word in words), caught.value


def test_text_files(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes("\ufeffFièvre".encode())
    assert read_text(path) == "Fièvre"
    path.write_bytes(b"ab\xff")
    with pytest.raises(CheckpointError, match="not text in UTF-8"):
        read_text(path)
    with pytest.raises(CheckpointError, match=r"no calibration file '.*gone\.txt'"):
        read_text(tmp_path / "gone.txt")


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "train.parquet"
    parquet.write_table(arrow.table({"id": [1, 2], "messages": [TURNS, TURNS]}), path)
    assert list(read_parquet(path, None)) == [CHAT, CHAT]
    with pytest.raises(CheckpointError, match="no field 'text'"):
        list(read_parquet(path, "text"))
    path.write_bytes(b"PAR1")
    with pytest.raises(CheckpointError, match="cannot be read as Parquet"):
        list(read_parquet(path, None))


def test_text_and_chat_turn_into_each_other() -> None:
    assert text_of(CHAT) == "Fever?\n\nRest."
    assert chat_of("Fever?") == (Message("user", "Fever?"),)


@given(
    text=st.text(st.characters(min_codepoint=97, max_codepoint=122), max_size=400),
    samples=st.integers(1, 6),
    tokens=st.integers(8, 60),
    bos=st.booleans(),
)
def test_sequences_are_pieces_of_the_text(text: str, samples: int, tokens: int, bos: bool) -> None:
    recipe = CalibrationRecipe("text", path="notes.txt", samples=samples, tokens=tokens)
    if len(text) < samples * tokens:
        with pytest.raises(IncompatibleError, match=r"holds no text|tokens, but"):
            cut_text(text, recipe, tokenizer(bos=bos))
        return
    rows_BT = cut_text(text, recipe, tokenizer(bos=bos))
    assert (rows_BT.shape, rows_BT.dtype) == ((samples, tokens), np.int64)
    for row in rows_BT.tolist():
        assert (row[0] == BOS) is bos
        assert "".join(map(chr, row[bos:])) in text


def test_sequences_are_spread_over_the_text() -> None:
    text = "".join(chr(1000 + index) for index in range(900))
    recipe = CalibrationRecipe("text", path="x", samples=4, tokens=100)
    starts = cut_text(text, recipe, tokenizer())[:, 0] - 1000
    assert starts.tolist() == [0, 266, 533, 800]
    # So are those of a text that is too long to be encoded as a whole.
    long = "".join(chr(1000 + index // 100) for index in range(900 * 100))
    encoded: list[int] = []

    def counting(piece: str) -> list[int]:
        encoded.append(len(piece))
        return letters(piece)

    frugal = ModelTokenizer(counting, (), None, frozenset(), None)
    starts = cut_text(long, recipe, frugal)[:, 0] - 1000
    assert starts.tolist() == [0, 278, 557, 836]
    assert sum(encoded) < len(long)


def test_documents_are_shuffled_by_the_seed_and_begin_with_bos() -> None:
    documents = [chr(97 + index) * 20 for index in range(20)]

    def rows(seed: int) -> list[list[int]]:
        recipe = CalibrationRecipe("jsonl", path="x", samples=6, tokens=40, seed=seed)
        return pack_documents(documents, recipe, tokenizer(bos=True)).tolist()

    assert rows(0) == rows(0) != rows(1)
    assert len({letter for row in rows(0) for letter in row} - {BOS}) > 10
    for row in rows(0):
        assert row[0] == BOS
        assert row[:2] != [BOS, BOS]
        # Twenty letters of a document stand between the tokens that begin one.
        marks = [index for index, token in enumerate(row) if token == BOS][1:]
        assert all(second - first == 21 for first, second in pairwise(marks))


def test_chats_are_rendered_when_asked() -> None:
    recipe = CalibrationRecipe("jsonl", path="x", samples=1, tokens=12, chat_template=True)
    row = pack_documents([CHAT, CHAT], recipe, tokenizer()).tolist()[0]
    assert "".join(map(chr, row)) == "<u>Fever?<a>"
    plain = CalibrationRecipe("jsonl", path="x", samples=1, tokens=12)
    assert (
        "".join(map(chr, pack_documents([CHAT, CHAT], plain, tokenizer())[0])) == "Fever?\n\nRest"
    )


@pytest.mark.parametrize(
    ("num_letters", "samples", "tokens", "words"),
    [
        (0, 2, 256, ["'notes.jsonl' holds no text"]),
        (200, 8, 64, ["200 tokens", "8 sequences of 64", "(512)", "256 tokens are the least"]),
        (300, 2, 256, ["300 tokens", "2 sequences of 256", "(512)", "--calibration-samples 1"]),
        (450, 8, 64, ["450 tokens", "--calibration-samples 7"]),
    ],
)
def test_too_little_text_is_told_with_numbers(
    num_letters: int, samples: int, tokens: int, words: list[str]
) -> None:
    recipe = CalibrationRecipe("jsonl", path="notes.jsonl", samples=samples, tokens=tokens)
    documents = ["a" * num_letters] if num_letters else []
    with pytest.raises(IncompatibleError) as caught:
        pack_documents(documents, recipe, tokenizer())
    assert all(word in str(caught.value) for word in words), caught.value


def test_stored_tokens_come_back(tmp_path: Path) -> None:
    tokens_BT = np.arange(12, dtype=np.int64).reshape(3, 4)
    path = tmp_path / "tokens.npy"
    path.write_bytes(dump_tokens(tokens_BT))
    back_BT = load_tokens(path)
    assert back_BT.dtype == np.int64
    assert back_BT.tolist() == tokens_BT.tolist()
    assert digest(back_BT) == digest(tokens_BT)
    assert digest(tokens_BT) != digest(tokens_BT.reshape(4, 3))
    assert dump_tokens(tokens_BT) == dump_tokens(np.asfortranarray(tokens_BT))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no .npy file"),
        (b"\x93NUMPY\x01\x00", "no .npy file"),
        (b"PK\x03\x04", "no .npy file"),
        (
            b"\x93NUMPY\x01\x00\x76\x00"
            + b"{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000, 9), }".ljust(117)
            + b"\n",
            "no .npy file",
        ),
        (np.zeros((2, 2)), "whole numbers"),
        (np.zeros(4, np.int32), "one row for each"),
        (np.array([["a"]]), "whole numbers"),
        (np.array([[{}]]), "no .npy file"),
    ],
)
def test_what_is_no_file_of_tokens(content: bytes | np.ndarray, words: str, tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(CheckpointError, match=words):
        load_tokens(path)
