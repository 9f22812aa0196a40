"""United tokenizers: what libraries load, how they split text, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from forge.core.errors import CheckpointError, IncompatibleError
from forge.merge.vocabulary.tokens import read_tokenizers
from forge.recipes.reference import ModelReference
from tests.merge.test_vocabulary import (
    add_tokens,
    ids_in,
    ids_of,
    make,
    opened,
    planned,
    recipe_of,
    wrong,
)

ENGLISH = ["aspirin treats pain and fever in adults but not in children with flu"] * 4
GERMAN = ["Aspirin senkt Fieber bei Erwachsenen, aber nicht bei Kindern mit Grippe"] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]


def write_bpe(root: Path, texts: Sequence[str], *, size: int = 300) -> None:
    """Replace a model's tokenizer by a byte-level BPE trained on texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(root / "tokenizer.json"))


def write_unigram(root: Path, pieces: Sequence[tuple[str, float]]) -> None:
    """Replace a model's tokenizer by a Unigram of given pieces, in SentencePiece's spelling."""
    tokenizer = Tokenizer(models.Unigram([*((token, 0.0) for token in SPECIAL), *pieces], unk_id=0))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(root / "tokenizer.json"))


def write_sentencepiece(root: Path, pieces: Sequence[str]) -> None:
    """Write a SentencePiece model by hand, field by field, and no tokenizer.json."""
    content = b""
    for piece in pieces:
        text = piece.encode()
        inner = b"\x0a" + bytes([len(text)]) + text + b"\x15\x00\x00\x80\xbf" + b"\x18\x01"
        content += b"\x0a" + bytes([len(inner)]) + inner
    trainer = b"\x12\x05" + b"\x28\x80\x7d" + b"\x18\x02"  # 16,000 pieces, BPE
    (root / "tokenizer.model").write_bytes(content + trainer)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (root / name).unlink(missing_ok=True)


def write_out(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_transformers_loads_the_union_and_encodes_the_added_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base, other = make(tmp_path, 0), make(tmp_path, 1)
    add_tokens(other, ["<|im_start|>", "<|im_end|>"])
    add_tokens(other, ["plaintoken"], special=False)
    plan = planned(recipe_of([other], base=base, tokenizer={"source": "union"}))
    folder = write_out(tmp_path / "union", dict(plan.tokenizer_files))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "<|im_start|>pain and fever<|im_end|>plaintoken"
    ids = tokenizer(text)["input_ids"]
    words = ids_of(base)
    assert ids == [1, 16, words["pain"], words["and"], words["fever"], 17, 18]
    assert tokenizer.decode([16, words["pain"], 17, 18], skip_special_tokens=True) == (
        "pain plaintoken"
    )
    assert len(tokenizer) == 19
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template


def test_companion_files_hear_of_added_tokens(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1)
    add_tokens(other, ["<|x|>"])
    path = base / "tokenizer_config.json"
    listed = {"0": {"content": "<unk>", "special": True}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "added_tokens_decoder": listed}))
    (base / "added_tokens.json").write_text('{"<pad>": 3}')
    (base / "tokenizer.model").write_bytes(b"kept, since no ordinary piece is added")
    files = planned(recipe_of([other], base=base, tokenizer={"source": "union"})).tokenizer_files
    config = json.loads(files["tokenizer_config.json"])
    assert config["added_tokens_decoder"] == {
        **listed,
        "16": {
            "content": "<|x|>", "lstrip": False, "normalized": False, "rstrip": False,
            "single_word": False, "special": True,
        },
    }  # fmt: skip
    assert config["eos_token"] == "</s>"
    assert json.loads(files["added_tokens.json"]) == {"<pad>": 3, "<|x|>": 16}
    assert "tokenizer.model" in files


def test_a_union_of_byte_level_bpe(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0, vocab=320), make(tmp_path, 1, vocab=320)
    write_bpe(base, ENGLISH)
    write_bpe(other, GERMAN)
    add_tokens(base, ["<|base|>"])
    add_tokens(other, ["<|other|>"])
    (base / "merges.txt").write_text("stale")
    plan = planned(recipe_of([other], base=base, tokenizer={"source": "union"}))
    ids = ids_in(plan.tokenizer_files)
    before = ids_of(base)
    assert {token: ids[token] for token in before} == before
    assert set(ids) == set(before) | set(ids_of(other))
    assert sorted(ids.values()) == list(range(len(ids)))
    assert "merges.txt" not in plan.tokenizer_files
    united = Tokenizer.from_str(plan.tokenizer_files["tokenizer.json"].decode())
    assert united.encode("<|base|>").ids == [before["<|base|>"]]
    assert united.encode("<|other|>").ids == [ids["<|other|>"]]
    for text in (*ENGLISH[:1], *GERMAN[:1], "Ohrenschmerzen? 🩺\n"):
        assert united.decode(united.encode(text).ids) == text
    # Words that only the other knew are now as short as they were there.
    german = Tokenizer.from_file(str(other / "tokenizer.json"))
    english = Tokenizer.from_file(str(base / "tokenizer.json"))
    word = " Grippe"
    assert (
        len(united.encode(word).ids) <= len(german.encode(word).ids) < len(english.encode(word).ids)
    )
    assert any("Ordinary pieces among those" in text for text in plan.notices)


@pytest.mark.parametrize("is_text", [False, True])
def test_merges_keep_their_form(tmp_path: Path, is_text: bool) -> None:
    base, other = make(tmp_path, 0, vocab=320), make(tmp_path, 1, vocab=320)
    write_bpe(base, ENGLISH)
    write_bpe(other, GERMAN)
    path = base / "tokenizer.json"
    document = json.loads(path.read_text())
    pairs = document["model"]["merges"]
    if is_text:
        document["model"]["merges"] = [" ".join(pair) for pair in pairs]
        path.write_text(json.dumps(document))
    plan = planned(recipe_of([other], base=base, tokenizer={"source": "union"}))
    merges = json.loads(plan.tokenizer_files["tokenizer.json"])["model"]["merges"]
    assert merges[: len(pairs)] == document["model"]["merges"]
    assert {type(merge) for merge in merges} == {str if is_text else list}
    assert len(merges) > len(pairs)


def test_a_union_of_unigrams(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1)
    common = [("▁", -3.0), *((letter, -9.0) for letter in "paingrew")]
    write_unigram(base, [*common, ("▁pain", -2.0)])
    write_unigram(other, [*common, ("▁gain", -2.5)])
    add_tokens(base, ["<|base|>"])
    plan = planned(recipe_of([other], base=base, tokenizer={"source": "union"}))
    united = Tokenizer.from_str(plan.tokenizer_files["tokenizer.json"].decode())
    before = ids_of(base)
    assert {token: ids_in(plan.tokenizer_files)[token] for token in before} == before
    gain = len(before)
    assert united.encode(" pain gain<|base|>").ids == [
        before["▁pain"], gain, before["<|base|>"],
    ]  # fmt: skip
    vocab = json.loads(plan.tokenizer_files["tokenizer.json"])["model"]["vocab"]
    assert vocab[gain] == ["▁gain", -2.5]


def test_tokenizers_of_different_kinds_are_not_united(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0, vocab=320), make(tmp_path, 1)
    write_bpe(base, ENGLISH)
    text = wrong(recipe_of([other], base=base, tokenizer={"source": "union"}))
    assert "The tokenizers cannot be united: " in text
    assert "one is BPE, the other WordLevel" in text
    assert "source: base" in text
    # The base's vocabulary is always possible.
    planned(recipe_of([other], base=base, tokenizer={"source": "base"}))


def test_different_spellings_are_not_united(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0, vocab=320), make(tmp_path, 1, vocab=320)
    write_bpe(base, ENGLISH)
    write_bpe(other, GERMAN)
    path = other / "tokenizer.json"
    document = json.loads(path.read_text())
    document |= {"pre_tokenizer": {"type": "Metaspace"}, "decoder": {"type": "Metaspace"}}
    path.write_text(json.dumps(document))
    text = wrong(recipe_of([other], base=base, tokenizer={"source": "union"}))
    assert "one spells tokens as bytes, the other as metaspace" in text


def test_sentencepiece_alone_does_for_the_base_but_not_for_a_union(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", "▁pain", "▁flu"]
    base, other = make(tmp_path, 0), make(tmp_path, 1)
    write_sentencepiece(base, pieces)
    write_sentencepiece(other, [*pieces[:3], "▁flu", "▁pain", "▁gout"])
    (other / "added_tokens.json").write_text('{"<|x|>": 6}')
    plan = planned(recipe_of([other], base=base, tokenizer={"source": "base"}))
    assert plan.tokenizer_files == {}
    assert plan.rows[ModelReference(str(other))].own[:7] == (0, 1, 2, 4, 3, -1, -1)
    text = wrong(recipe_of([other], base=base, tokenizer={"source": "union"}))
    assert f"'{other}' has no tokenizer.json, and none can be derived" in text
    assert "it has tokenizer.model and no tokenizer_class" in text
    assert "save_pretrained writes tokenizer.json" in text


def test_a_vocab_json_is_read(tmp_path: Path) -> None:
    root = make(tmp_path, 0)
    (root / "tokenizer.json").unlink()
    (root / "vocab.json").write_text('{"a": 0, "b": 1}')
    (root / "added_tokens.json").write_text('{"<|x|>": 2}')
    reference = ModelReference(str(root))
    found = read_tokenizers({reference: root})[reference]
    assert found is not None
    assert found.ids == {"a": 0, "b": 1, "<|x|>": 2}
    assert found.kind == "vocab.json"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "not valid JSON"),
        ("tokenizer.json", b'{"model": {}}', "has no vocabulary"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": -1}}}', "the id -1, which is no possible"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 1e9}}}', "no possible id"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": true}}}', "no possible id"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": 9999999999}}}', "no possible id"),
        ("tokenizer.json", b'{"model": {"vocab": [[1, 2]]}}', "malformed vocabulary"),
        ("tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": 5}', "malformed added"),
        ("tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": [5]}', "malformed added"),
        ("tokenizer.model", b"", "holds no pieces"),
        ("tokenizer.model", b"\x0a\xff\xff\xff\xff\x0f", "not a SentencePiece model"),
        ("tokenizer.model", b"\x0a\x02\x12\x00", "not a SentencePiece model"),
        ("tokenizer.model", b"\xff" * 20, "not a SentencePiece model"),
        ("tokenizer.model", b"\x0a\x03\x0a\x01\xff", "not a SentencePiece model"),
        ("tokenizer.model", b"\x0b", "not a SentencePiece model"),
    ],
)
def test_hostile_tokenizer_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    root = make(tmp_path, 0)
    (root / "tokenizer.json").unlink()
    (root / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tokenizers({ModelReference(str(root)): root})


def test_a_union_that_the_library_does_not_load_is_refused(tmp_path: Path) -> None:
    base, other = make(tmp_path, 0), make(tmp_path, 1)
    add_tokens(other, ["<|x|>"])
    path = base / "tokenizer.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "decoder": {"type": "FromTheFuture"}}))
    recipe = recipe_of([other], base=base, tokenizer={"source": "union"})
    with pytest.raises(
        IncompatibleError, match="of 'the result' does not work in the tokenizers library"
    ):
        planned(recipe)
    assert opened(recipe)


def test_ids_with_a_hole_are_kept(tmp_path: Path) -> None:
    """Added tokens have ids by their order, so a hole before them needs the explicit form."""
    base, other = make(tmp_path, 0), make(tmp_path, 1)
    add_tokens(other, ["<|x|>"])
    path = base / "tokenizer.json"
    document = json.loads(path.read_text())
    document["model"]["vocab"]["flu"] = 20
    path.write_text(json.dumps(document))
    files = planned(recipe_of([other], base=base, tokenizer={"source": "union"})).tokenizer_files
    ids = ids_in(files)
    assert (ids["flu"], ids["<|x|>"]) == (20, 21)
