"""A tokenizer that was rebuilt from a GGUF gives the numbers of the one that was put into it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.gguf import byte_level
from forge.recipes.reference import ModelReference
from tests.checkpoints.gguf.writing import write_gguf

CORPUS = [
    "The patient was given 500 mg of aspirin; it didn't help. She'll return in 2024-01!\n",
    "def f(x):\n\treturn x  **  2   # squared\n\n\n",
    "Привет, мир! 日本語のテキスト。مرحبا بالعالم  naïve café — “quotes”…\r\n",
    "aaaa bbbb 1234567 3.14159 HELLO World it's WE'LL I'M 'tis",
] * 8
HARD = [
    "", " ", "  ", "\n", "\n\n \n", "\t\t x", "Hello  world 123\n\n\tx", "a" * 70,
    "don't DON'T we'LL", "1234567890 12 345", "中文 日本 한국", "e\u0301 é ﬁ Ⅳ", "😀👩‍👩‍👧 🇩🇪",
    "<s>", "a<s>b </s> c", "<|end|>", "x<|end|>y <|end|> z", " <|tool|>\n", "▁▁ x ▁",
    "\u00a0\u2003x",
    "\x00\x01\x7f", "foo.bar(baz)[0] != null;", "¿Qué? — naïve…", "مرحبا بالعالم", "[PAD7] x",
]  # fmt: skip
BASE: Mapping[str, object] = {
    ".block_count": 1, ".context_length": 64, ".embedding_length": 32,
    ".feed_forward_length": 32, ".attention.head_count": 1,
    ".attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = _WORDS % "{1,3}", _WORDS % ""


def _rebuilt(
    folder: Path, tokens: list[str], metadata: Mapping[str, object], *, rows: int | None = None
) -> tuple[Tokenizer | None, Path, tuple[str, ...]]:
    """Return the tokenizer of a GGUF with these tokens, its folder, and the notices."""
    folder.mkdir(exist_ok=True)
    path = folder / "model.gguf"
    embedding = np.zeros((rows or len(tokens), 32), np.float32)
    write_gguf(
        path, "llama", {"token_embd.weight": embedding},
        {**BASE, "tokenizer.ggml.tokens": tokens, **metadata},
    )  # fmt: skip
    checkpoint = open_checkpoint(ModelReference(str(path)))
    file = checkpoint.root / "tokenizer.json"
    found = Tokenizer.from_file(str(file)) if file.exists() else None
    return found, checkpoint.root, checkpoint.notices


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
CUTS = {
    "gpt-2": _GPT2,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2]),
    "llama-bpe": _split(LLAMA3),
    "qwen2": _split(QWEN2),
}


def _original(pre: str, *, added_first: bool) -> Tokenizer:
    """Train a tokenizer as those that the rules are named after were trained."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = CUTS[pre]
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    special = [AddedToken("<|end|>", special=True, normalized=False)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special if added_first else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([AddedToken("<|tool|>", special=False, normalized=False)])
    return tokenizer


def _as_metadata(tokenizer: Tokenizer, pre: str) -> tuple[list[str], dict[str, object]]:
    """Say of a byte-level tokenizer what the converter says."""
    by_token = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(by_token, key=lambda token: by_token[token])
    kinds = {"<|end|>": 3, "<|tool|>": 4}
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return tokens, {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.token_type": [kinds.get(token, 1) for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": by_token["<|end|>"],
        "tokenizer.ggml.eos_token_id": by_token["<|end|>"],
    }


@pytest.mark.parametrize("added_first", [False, True])
@pytest.mark.parametrize("pre", CUTS)
def test_byte_level(pre: str, added_first: bool, tmp_path: Path) -> None:
    original = _original(pre, added_first=added_first)
    tokens, metadata = _as_metadata(original, pre)
    fillers = [f"[PAD{number}]" for number in range(len(tokens), len(tokens) + 8)]
    metadata["tokenizer.ggml.token_type"] += [5] * 8  # type: ignore[operator]
    ours, root, _ = _rebuilt(tmp_path / "m", tokens + fillers, metadata)
    assert ours is not None
    assert ours.get_vocab(with_added_tokens=True) == original.get_vocab(with_added_tokens=True)
    for string in [*HARD, *CORPUS[:4]]:
        expected = original.encode(string)
        first = [metadata["tokenizer.ggml.bos_token_id"]] if pre == "llama-bpe" else []
        assert ours.encode(string, add_special_tokens=False).ids == expected.ids, string
        assert ours.encode(string).ids == first + expected.ids
        assert ours.decode(expected.ids) == original.decode(expected.ids)
    config = json.loads((root / "tokenizer_config.json").read_bytes())
    assert config["bos_token"] == config["eos_token"] == "<|end|>"


@pytest.mark.parametrize("pre", [None, "default"])
def test_old_files_are_known_by_their_vocabulary(
    pre: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _original("llama-bpe", added_first=False)
    tokens, metadata = _as_metadata(original, "llama-bpe")
    end = tokens.index("<|end|>")
    del metadata["tokenizer.ggml.pre"]
    metadata |= {} if pre is None else {"tokenizer.ggml.pre": pre}
    ours, _, _ = _rebuilt(tmp_path / "before", tokens, metadata)
    assert ours is None
    monkeypatch.setitem(byte_level.SIGNATURES, (end, "<|end|>"), "llama-bpe")
    ours, _, _ = _rebuilt(tmp_path / "m", tokens, metadata)
    assert ours is not None
    for string in HARD:
        assert ours.encode(string).ids == [end, *original.encode(string).ids]


def test_the_rules_are_those_of_transformers() -> None:
    from transformers.integrations.gguf import gguf_tokenizer_mapping as theirs

    for pre in ("llama-bpe", "llama3", "llama-v3", "qwen2"):
        step = byte_level.CUTS[pre].steps[0]
        assert step["pattern"] == {"Regex": theirs.GGUF_PRE_TOKENIZER_SPLITS[pre]}


def test_a_word_that_is_a_token_stays_whole(tmp_path: Path) -> None:
    # Llama 3 has tokens that no merges lead to; other vocabularies never use such tokens.
    for pre, expected in (("llama-bpe", ["abc"]), ("qwen2", ["a", "b", "c"])):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        metadata = {
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.merges": ["x y"], "tokenizer.ggml.add_bos_token": False,
        }  # fmt: skip
        ours, _, _ = _rebuilt(tmp_path / pre, [*alphabet, "abc", "xy"], metadata)
        assert ours is not None
        assert ours.encode("abc").tokens == expected


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_equals_its_own_library(prefix: bool, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.strip("\r\n") for line in CORPUS), model_writer=trained,
        model_type="bpe", vocab_size=520, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, split_digits=True, minloglevel=2,
        add_dummy_prefix=prefix,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    tokens, metadata = _of_sentencepiece(processor)
    metadata["tokenizer.ggml.add_space_prefix"] = prefix
    ours, _, _ = _rebuilt(tmp_path / "m", tokens, metadata)
    assert ours is not None
    assert ours.get_vocab_size(with_added_tokens=True) == processor.get_piece_size()
    for string in [*HARD, *CORPUS[:4]]:
        # SentencePiece does not look for control tokens in text.
        if "<s>" not in string and string:
            expected = processor.encode(string)
            assert ours.encode(string).ids == [1, *expected], string
            assert ours.decode(expected) == processor.decode(expected)
    parts = [1, *processor.encode("a"), 1, *processor.encode("b")]
    assert ours.encode("a<s>b").ids == parts


def _of_sentencepiece(processor: object) -> tuple[list[str], dict[str, object]]:
    """Say of a SentencePiece model what the converter says."""
    count = processor.get_piece_size()  # type: ignore[attr-defined]
    tokens = [processor.id_to_piece(number) for number in range(count)]  # type: ignore[attr-defined]
    kinds = [
        2 if processor.is_unknown(n) else 3 if processor.is_control(n)  # type: ignore[attr-defined]
        else 6 if processor.is_byte(n) else 1  # type: ignore[attr-defined]
        for n in range(count)
    ]  # fmt: skip
    scores = [float(processor.get_score(number)) for number in range(count)]  # type: ignore[attr-defined]
    return tokens, {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_SPM = {"tokenizer.ggml.model": "llama"}
NOT_REBUILT: dict[str, tuple[list[str], dict[str, object], str]] = {
    "no model": (["a"], {}, "the file has none"),
    "another model": (["a"], {"tokenizer.ggml.model": "bert"}, "of the model 'bert'"),
    "unknown rules": (
        ["a"], {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "tekken"}, "rules 'tekken'",
    ),
    "no rules": (["a"], {"tokenizer.ggml.model": "gpt2"}, "does not say how it cuts"),
    "a broken merge": (
        ["a"],
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
         "tokenizer.ggml.merges": ["a b c"]},
        "does not have two parts",
    ),
    "a merge of what is no token": (
        ["a"],
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
         "tokenizer.ggml.merges": ["a zz"]},
        "the tokenizers library refuses it",
    ),
    "a token twice": (["a", "a"], _SPM, "spelled alike"),
    "types that are missing": (["a", "b"], _SPM | {"tokenizer.ggml.token_type": [1]}, "1 types"),
    "no bytes": (["a"], _SPM, "no tokens for bytes"),
    "no scores": (
        [*_BYTES, "a"], _SPM | {"tokenizer.ggml.token_type": [6] * 256 + [1]}, "no score",
    ),
    "one score for all": (
        [*_BYTES, "a", "b", "ab"],
        _SPM | {"tokenizer.ggml.token_type": [6] * 256 + [1] * 3,
                "tokenizer.ggml.scores": [-1000.0] * 259},
        "share a score",
    ),
    "a first token that is none": (
        [*_BYTES, "a", "b"],
        _SPM | {"tokenizer.ggml.token_type": [6] * 256 + [1] * 2,
                "tokenizer.ggml.scores": [float(-n) for n in range(258)],
                "tokenizer.ggml.bos_token_id": 9999},
        "refers to token 9999",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", NOT_REBUILT)
def test_what_is_not_known_is_not_rebuilt(case: str, tmp_path: Path) -> None:
    tokens, metadata, words = NOT_REBUILT[case]
    ours, root, notices = _rebuilt(tmp_path / "m", tokens, metadata)
    assert ours is None
    assert not list(root.glob("tokenizer*"))
    text = next(notice for notice in notices if "was not rebuilt" in notice)
    assert words in text
    assert "Put the original tokenizer files beside the GGUF" in text


def test_files_beside_the_gguf_count(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"mine": 1}')
    (folder / "chat_template.jinja").write_text("{{ x }}")
    (folder / "generation_config.json").write_text('{"temperature": 0.5}')
    _, metadata = _as_metadata(_original("gpt-2", added_first=False), "gpt-2")
    path = folder / "model.gguf"
    write_gguf(
        path, "llama", {"token_embd.weight": np.zeros((1, 32), np.float32)},
        {**BASE, "tokenizer.ggml.tokens": ["a"], **metadata},
    )  # fmt: skip
    root = open_checkpoint(ModelReference(str(folder))).root
    assert root != folder
    assert (root / "tokenizer.json").read_text() == '{"mine": 1}'
    assert (root / "chat_template.jinja").read_text() == "{{ x }}"
    assert json.loads((root / "generation_config.json").read_bytes()) == {"temperature": 0.5}
    assert not (root / "tokenizer_config.json").exists()
    assert open_checkpoint(ModelReference(str(path))).root == root, "one model, one folder"
