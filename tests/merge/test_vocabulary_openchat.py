"""The chat template of OpenBioLLM-7B gives the ids that its card states, also after a merge.

The card says that the model's template is that of OpenChat 3.5 (0106), over the vocabulary of
Mistral-7B with ``<|end_of_turn|>`` as 32000, and states the ids of three conversations. Its files
cannot be had here, so the test writes the part of that vocabulary that these conversations can
meet: every piece that is a part of their texts, 182 of 32,000, at its own id. A merge of two pieces
makes a part of the text, so no other piece can be met. (The card's ids were checked against the
whole vocabulary, too, as the package mistral-common carries it.)
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer

from forge.evaluate.chat_template import chat_of
from forge.merge.catalog import METHODS
from forge.merge.run import run_merge
from forge.merge.vocabulary.fast_form import with_document
from forge.merge.vocabulary.tokens import parse_tokenizer
from forge.recipes.merge_recipe import parse_merge_recipe
from tests.factory import read_values, tiny_checkpoint

PIECES = json.loads(Path(__file__).with_name("openchat_pieces.json").read_text())
SIZE = 32000
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"
)
USER = [420, 6316, 28781, 3198, 3123, 1247, 28747]
ASSISTANT = [420, 6316, 28781, 3198, 3123, 21631, 28747]
SINGLE = [1, *USER, 22557, SIZE, *ASSISTANT]
MULTI = [
    *SINGLE, 15359, SIZE, *USER, 1602, 460, 368, 3154, 28804, SIZE, *ASSISTANT,
]  # fmt: skip
CODING_TEXT = "Code User: Implement quicksort using C++<|end_of_turn|>Code Assistant:"
CODING = [1, 7596, 1247, 28747, 26256, 2936, 7653, 1413, 334, 1680, SIZE, 7596, 21631, 28747]
"""What the card states."""

HELLO = {"role": "user", "content": "Hello"}
TALK = [
    HELLO,
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "How are you today?"},
]


def field(number: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes."""
    size, length = b"", len(content)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def mistral_model() -> bytes:
    """Write Mistral's ``tokenizer.model``, unused fillers in the place of other pieces."""
    texts = {number: text for text, number in PIECES.items()}
    content = b""
    for number in range(SIZE):
        text, kind = texts.get(number, f"unused {number}"), 1 if number in texts else 5
        if number < 3:
            text, kind = ("<unk>", "<s>", "</s>")[number], 2 if number == 0 else 3
        elif number < 259:
            text, kind = f"<0x{number - 3:02X}>", 6
        # Pieces have scores by their order; single characters come last and are never merged.
        score = struct.pack("<f", -(number - 259.0) if number >= 259 else 0.0)
        row = field(1, text.encode()) + b"\x15" + score + b"\x18" + bytes([kind])
        content += field(1, row)
    trainer = b"\x18\x02" + b"\x98\x02\x01"  # BPE, with byte fallback
    normalizer = field(1, b"identity") + b"\x18\x01\x20\x00\x28\x01"
    return content + field(2, trainer) + field(3, normalizer)


def write_config(root: Path, **more: object) -> None:
    config = {
        "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False, "legacy": True, **more,
    }  # fmt: skip
    (root / "tokenizer_config.json").write_text(json.dumps(config))


def mistral(root: Path) -> Path:
    """Write a model like Mistral-7B: 32,000 rows, a SentencePiece model, no chat template."""
    tiny_checkpoint(root, model_type="mistral", hidden=8, vocab=SIZE, layers=1, dtype="F32",
                    with_tokenizer=False)  # fmt: skip
    (root / "tokenizer.model").write_bytes(mistral_model())
    write_config(root)
    return root


def openchat(root: Path) -> Path:
    """Write a model like OpenBioLLM-7B: two rows more, a ``tokenizer.json``, a chat template."""
    tiny_checkpoint(root, model_type="mistral", hidden=8, vocab=SIZE + 2, layers=1, dtype="F32",
                    tune=1, with_tokenizer=False)  # fmt: skip
    (root / "tokenizer.model").write_bytes(mistral_model())
    write_config(root)
    files = {path.name: path.read_bytes() for path in root.glob("tokenizer*")}
    slow = parse_tokenizer(files, root, label="mistral")
    assert slow is not None
    library = Tokenizer.from_str(json.dumps(with_document(slow, "mistral").document))
    for token in ("<|end_of_turn|>", "<|pad_0|>"):
        library.add_special_tokens([AddedToken(token, normalized=False, special=True)])
    library.save(str(root / "tokenizer.json"))
    write_config(root, eos_token="<|end_of_turn|>", chat_template=TEMPLATE)
    generation = {"bos_token_id": 1, "eos_token_id": SIZE, "pad_token_id": SIZE + 1}
    (root / "generation_config.json").write_text(json.dumps(generation))
    return root


def check_card(root: Path) -> None:
    """Encode the card's conversations with a model's files."""
    library = Tokenizer.from_file(str(root / "tokenizer.json"))
    chat = chat_of(root, label="openbio")
    # The template writes <s> itself, as transformers' apply_chat_template expects.
    assert library.encode(chat([HELLO]), add_special_tokens=False).ids == SINGLE
    assert library.encode(chat(TALK), add_special_tokens=False).ids == MULTI
    text = chat(TALK).removeprefix("<s>")
    assert library.encode(text).ids == MULTI
    assert library.encode(CODING_TEXT).ids == CODING


def test_the_template_renders_to_the_ids_of_the_card(tmp_path: Path) -> None:
    check_card(openchat(tmp_path / "openbio"))


def test_sentencepiece_itself_splits_the_card_so(tmp_path: Path) -> None:
    library = pytest.importorskip("sentencepiece")
    processor = library.SentencePieceProcessor(model_proto=mistral_model())
    assert [1, *processor.encode("GPT4 Correct User: Hello")] == SINGLE[:9]
    turns = CODING_TEXT.split("<|end_of_turn|>")
    assert [1, *processor.encode(turns[0]), SIZE, *processor.encode(turns[1])] == CODING


def test_a_merge_with_the_base_keeps_the_ids_of_the_card(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base, chat = mistral(tmp_path / "mistral"), openchat(tmp_path / "openbio")
    value = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "models": [{"model": str(chat), "parameters": {"weight": 1.0}}],
        "tokenizer_source": "union",
        "chat_template": "auto",
        "dtype": "float32",
    }
    out = tmp_path / "out"
    result = run_merge(parse_merge_recipe(value, METHODS), out, threads=1)
    check_card(out)
    # And so they are to transformers.
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("GPT4 Correct User: Hello<|end_of_turn|>GPT4 Correct Assistant:")[
        "input_ids"
    ] == SINGLE  # fmt: skip
    templated = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    assert templated == MULTI

    merged, theirs = read_values(out), read_values(chat)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        assert merged[name].shape == (SIZE + 2, 8)
        np.testing.assert_array_equal(merged[name][SIZE:], theirs[name][SIZE:])
        np.testing.assert_allclose(merged[name], theirs[name], rtol=1e-5, atol=1e-7)
    config = json.loads((out / "config.json").read_text())
    assert (config["vocab_size"], config["eos_token_id"]) == (SIZE + 2, [SIZE, 2])
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [SIZE, 2]
    assert tokenizer.eos_token_id == SIZE
    notices = result.manifest["notices"]
    assert any("tokenizer.json is derived from tokenizer.model of" in text for text in notices)
    assert any("Generation ends at '<|end_of_turn|>'" in text for text in notices)
