"""What may be named as a GGUF, how its files and its config are found, and what is refused."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.checkpoints.checkpoint import Checkpoint, open_checkpoint
from forge.checkpoints.gguf import sidecars
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference
from tests.checkpoints.gguf.writing import write_gguf

WIDTH = 64
LLAMA: dict[str, object] = {
    ".block_count": 1, ".context_length": 64, ".embedding_length": WIDTH,
    ".feed_forward_length": 96, ".attention.head_count": 4, ".attention.head_count_kv": 2,
    ".attention.layer_norm_rms_epsilon": 1e-5, ".rope.freq_base": 10000.0,
}  # fmt: skip
_SHAPES = {
    "token_embd.weight": (8, WIDTH), "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,), "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (WIDTH, WIDTH), "blk.0.attn_k.weight": (WIDTH // 2, WIDTH),
    "blk.0.attn_v.weight": (WIDTH // 2, WIDTH), "blk.0.attn_output.weight": (WIDTH, WIDTH),
    "blk.0.ffn_gate.weight": (96, WIDTH), "blk.0.ffn_up.weight": (96, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, 96),
}  # fmt: skip


def tensors(**more: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return random tensors of a tiny llama, and more by name with ``__`` for a dot."""
    generator = np.random.default_rng(0)
    shapes = _SHAPES | {name.replace("__", "."): shape for name, shape in more.items()}
    return {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }


def _open(place: Path) -> Checkpoint:
    return open_checkpoint(ModelReference(str(place)))


def test_a_file_and_its_folder_are_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "model-Q8_0.gguf"
    write_gguf(path, "llama", tensors(), LLAMA, kind="Q8_0")
    (tmp_path / "README.md").touch()
    by_file, by_folder = _open(path), _open(tmp_path)
    assert by_file.root == by_folder.root
    assert by_file.source.files() == by_folder.source.files() == (path,)
    assert by_file.config == by_folder.config == json.loads(
        (by_file.root / "config.json").read_bytes()
    )  # fmt: skip
    text = by_file.notices[0]
    assert "is a GGUF, not the model in full precision" in text
    assert "8 Q8_0, 3 F32 tensors" in text
    name = "model.layers.0.mlp.up_proj.weight"
    assert by_file.source.read(name) == by_folder.source.read(name)
    with pytest.raises(CheckpointError, match="has no tensor 'x'"):
        by_file.source.info("x")
    by_file.source.prefetch(name)
    by_file.source.close()
    with pytest.raises(CheckpointError, match="after it was closed"):
        by_file.source.read(name)


def test_full_precision_is_not_called_quantized(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tensors(), LLAMA, kind="BF16")
    checkpoint = _open(tmp_path)
    assert "its weights as they are stored: 8 BF16, 3 F32 tensors" in checkpoint.notices[0]
    assert checkpoint.config["torch_dtype"] == "bfloat16"
    assert checkpoint.source.info("model.embed_tokens.weight").dtype == "BF16"
    assert checkpoint.source.info("model.norm.weight").dtype == "F32"


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "F64", "Q8_0", "Q4_1"])
def test_every_type_is_read_through_a_permutation(kind: str, tmp_path: Path) -> None:
    given = tensors()
    if kind == "F64":
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
        for key, value in LLAMA.items():
            (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(
                "llama" + key, value
            )
        for name, values in given.items():
            writer.add_tensor(name, values.astype(np.float64))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    else:
        write_gguf(tmp_path / "m.gguf", "llama", given, LLAMA, kind=kind)
    source = _open(tmp_path).source
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    for theirs, heads, ours in (("attn_q", 4, "q_proj"), ("attn_k", 2, "k_proj")):
        stored = reader[f"blk.0.{theirs}.weight"]
        values = np.asarray(
            stored.data if kind == "F64" else gguf.dequantize(stored.data, stored.tensor_type)
        )
        expected = values.reshape(heads, -1, 2, WIDTH).swapaxes(1, 2).reshape(-1, WIDTH)
        info = source.info(f"model.layers.0.self_attn.{ours}.weight")
        data = source.read(info.name)
        assert data.readonly
        assert data.nbytes == info.nbytes
        if info.dtype == "BF16":
            found = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            found = np.frombuffer(data, {"F32": "f4", "F16": "f2", "F64": "f8"}[info.dtype])
        assert np.array_equal(found.reshape(info.shape), expected)


def test_pieces_of_a_split_model(tmp_path: Path) -> None:
    given = tensors()
    whole, split = tmp_path / "whole.gguf", tmp_path / "split"
    split.mkdir()
    write_gguf(whole, "llama", given, LLAMA, kind="Q8_0")
    write_gguf(split / "model.gguf", "llama", given, LLAMA, kind="Q8_0", split_max_tensors=4)
    pieces = sorted(split.iterdir())
    assert [piece.name for piece in pieces] == [
        f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3)
    ]
    expected = _open(whole).source
    for place in (split, *pieces):
        source = _open(place).source
        assert source.files() == tuple(pieces)
        assert sorted(source.names()) == sorted(expected.names())
        for name in source.names():
            assert source.read(name) == expected.read(name)
    content = pieces[1].read_bytes()
    pieces[1].unlink()
    with pytest.raises(CheckpointError, match=r"lacks piece 2 of 3, 'model-00002-of-00003\.gguf'"):
        _open(split)
    pieces[1].write_bytes(pieces[2].read_bytes())
    with pytest.raises(CheckpointError, match="says that it is piece 2 of 3"):
        _open(split)
    pieces[1].write_bytes(content)
    pieces[0].rename(split / "model-00001-of-00001.gguf")
    with pytest.raises(CheckpointError, match="holds 2 GGUF models"):
        _open(split)
    with pytest.raises(CheckpointError, match="it is piece 0 of 1"):
        _open(split / "model-00001-of-00001.gguf")


def test_safetensors_in_the_folder_count(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tensors(), LLAMA)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(CheckpointError, match="safetensors"):
        _open(tmp_path)


def _config(**changes: object) -> Callable[[Path], None]:
    derived = {
        "model_type": "llama", "hidden_size": WIDTH, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 8,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    }  # fmt: skip
    return lambda root: (root / "config.json").write_text(json.dumps(derived | changes))


def test_a_config_beside_the_file_is_used(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tensors(), LLAMA)
    _config(model_type="mistral", mine=1, quantization_config={"quant_method": "awq"})(tmp_path)
    checkpoint = _open(tmp_path)
    assert checkpoint.config["model_type"] == "mistral"
    assert checkpoint.config["mine"] == 1
    assert "quantization_config" not in checkpoint.config
    assert len([text for text in checkpoint.notices if "config.json" in text]) == 0
    _config(rope_theta=500000.0)(tmp_path)
    text = _open(tmp_path).notices[1]
    assert "config.json states rope_theta = 500000.0, and the GGUF 10000.0" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "qwen2"}, "model_type 'qwen2'"),
        ({"hidden_size": 128}, "hidden_size = 128, and the file 64"),
        ({"num_hidden_layers": 2}, "num_hidden_layers = 2, and the file 1"),
        ({"num_key_value_heads": 4}, "num_key_value_heads = 4, and the file 2"),
        ({"vocab_size": 9}, "vocab_size = 9, and the file has 8 tokens"),
        ({"tie_word_embeddings": False}, "holds no head of its own"),
    ],
)
def test_a_config_of_another_model_is_refused(
    changes: dict[str, object], words: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tensors(), LLAMA)
    _config(**changes)(tmp_path)
    with pytest.raises(CheckpointError, match=words) as caught:
        _open(tmp_path)
    assert "belongs to another model" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("general.name", "BioMistral 7B", "mistral"),
        ("general.base_model.0.repo_url", "https://x/mistralai/Mistral-7B-v0.1", "mistral"),
        ("general.name", "OpenBioLLM Llama3 8B", "llama"),
    ],
)
def test_llama_and_mistral_are_told_apart(
    key: str, value: str, expected: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tensors(), LLAMA | {key: value})
    checkpoint = _open(tmp_path)
    assert checkpoint.config["model_type"] == expected
    assert any(f"that of a {expected} model" in text for text in checkpoint.notices)


def test_generation_ends_where_a_turn_does(tmp_path: Path) -> None:
    ids = {
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.padding_token_id": 0,
    }  # fmt: skip
    write_gguf(tmp_path / "m.gguf", "llama", tensors(), LLAMA | ids)
    checkpoint = _open(tmp_path)
    found = json.loads((checkpoint.root / "generation_config.json").read_bytes())
    assert found == {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 0}
    assert checkpoint.config["eos_token_id"] == 2


_BAD_HEADS = {".attention.head_count": 3}
REFUSED: dict[str, tuple[str, dict[str, object], dict[str, tuple[int, ...]], str]] = {
    "an unknown architecture": ("mamba", {}, {}, "of the architecture 'mamba'.*original model"),
    "an eye": ("clip", {}, {}, "of the architecture 'clip'"),
    "an unknown tensor": ("llama", {}, {"blk__0__magic__weight": (4,)}, "'blk.0.magic.weight'"),
    "an unknown tensor outside": ("llama", {}, {"more__weight": (4,)}, "tensor 'more.weight'"),
    "a scale": ("llama", {}, {"blk__0__attn_q__scale": (1,)}, "tensor 'blk.0.attn_q.scale'"),
    "a layer beyond the last": (
        "llama", {}, {"blk__7__attn_norm__weight": (4,)}, "states 1 layers, counted from 0",
    ),
    "heads that do not fit": ("llama", _BAD_HEADS, {}, "does not fit 3 heads"),
    "heads by layer": (
        "llama", {".attention.head_count_kv": [2]}, {}, "another number of heads in each layer",
    ),
    "no layers": ("llama", {".block_count": 0}, {}, "must be a positive number"),
    "layers in words": ("llama", {".block_count": "one"}, {}, "must be a whole number"),
    "no width": ("llama", {".embedding_length": None}, {}, "lacks the metadata 'llama.embedding"),
    "half of the biases": (
        "llama", {}, {"blk__0__attn_q__bias": (WIDTH,)}, "no config of this family can say",
    ),
    "an unknown stretch": (
        "llama", {".rope.scaling.type": "dynamic"}, {}, "stretches .* by 'dynamic'",
    ),
    "factors of nobody": ("llama", {}, {"rope_freqs__weight": (8,)}, "impossible factors|factors"),
    "experts that are not there": (
        "llama", {".expert_count": 3, ".expert_used_count": 1},
        {"blk__0__ffn_up_exps__weight": (2, 4, WIDTH)}, "but states 3 experts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_said_is_refused(case: str, tmp_path: Path) -> None:
    architecture, changes, more, words = REFUSED[case]
    metadata = {key: value for key, value in (LLAMA | changes).items() if value is not None}
    path = tmp_path / "m.gguf"
    write_gguf(path, architecture, tensors(**more), metadata)
    with pytest.raises(CheckpointError, match=words) as caught:
        _open(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def _with_tokenizer(path: Path) -> bytes:
    words = [f"<0x{value:02X}>" for value in range(6)] + ["a", "b"]
    metadata = LLAMA | {
        "general.name": "Noise", "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": [6] * 6 + [1] * 2,
        "tokenizer.ggml.scores": [float(-n) for n in range(8)], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_bos_token": True, "tokenizer.chat_template": "{{ x }}",
        ".rope.scaling.type": "linear", ".rope.scaling.factor": 2.0,
    }  # fmt: skip
    write_gguf(path, "llama", tensors(), metadata, kind="Q8_0")
    return path.read_bytes()


@settings(max_examples=250, deadline=None)
@given(
    flips=st.lists(
        st.tuples(st.integers(0, 2000), st.sampled_from([0, 1, 2, 9, 32, 97, 127, 200, 255])),
        min_size=1, max_size=3,
    ),
)  # fmt: skip
def test_noise_ends_in_a_model_or_in_one_message(
    flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    raw = bytearray(_with_tokenizer(path))
    for place, value in flips:
        raw[place] = value
    path.write_bytes(raw)
    message = ""
    try:
        source = _open(path).source
        sizes = [(source.read(name).nbytes, source.info(name).nbytes) for name in source.names()]
        assert all(found == stated for found, stated in sizes)
    except CheckpointError as error:
        message = str(error)
    assert "\n" not in message


def test_absurd_counts_size_nothing(tmp_path: Path) -> None:
    for changes, words in (
        ({".block_count": 2**31 - 1}, "states 2147483647 layers; forge reads up to 10000"),
        ({".expert_count": 8192, ".expert_used_count": 2}, "8192 experts"),
    ):
        write_gguf(
            tmp_path / "m.gguf", "llama", tensors(blk__0__ffn_up_exps__weight=(8192, 1, 1)),
            LLAMA | changes,
        )  # fmt: skip
        with pytest.raises(CheckpointError, match=words):
            _open(tmp_path)


def test_types_that_are_not_decoded_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    kind = gguf.GGMLQuantizationType.IQ2_XS
    writer.add_tensor("token_embd.weight", np.zeros((4, 74), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"1 tensors.*IQ2_XS.*it reads F32.*llama-quantize"):
        _open(tmp_path)


def test_a_vocabulary_alone_is_no_model(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", {}, LLAMA)
    with pytest.raises(CheckpointError, match="holds no tensors, only a vocabulary"):
        _open(tmp_path)


def test_rotary_factors_become_words_again(tmp_path: Path) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    theirs = LlamaConfig(head_dim=64, rope_theta=500000.0, rope_scaling=dict(scaling))
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 1.0 / 500000.0 ** (np.arange(0, 64, 2) / 64)
    factors = (plain / stretched.numpy()).astype(np.float32)
    assert factors.min() == pytest.approx(1)
    assert factors.max() == pytest.approx(32)
    given = {name: values for name, values in tensors().items() if name == "token_embd.weight"}
    metadata = LLAMA | {".rope.freq_base": 500000.0, ".attention.key_length": 64}
    write_gguf(tmp_path / "m.gguf", "llama", given | {"rope_freqs.weight": factors}, metadata)
    checkpoint = _open(tmp_path)
    assert checkpoint.config["rope_scaling"] == scaling
    assert checkpoint.source.names() == ("model.embed_tokens.weight",)
    factors[20] *= 1.01
    write_gguf(tmp_path / "m.gguf", "llama", given | {"rope_freqs.weight": factors}, metadata)
    with pytest.raises(CheckpointError, match=r"not those of Llama 3\.1"):
        _open(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, None),
        ({".rope.scaling.type": "none"}, None),
        ({".rope.scaling.type": "linear", ".rope.scaling.factor": 4.0},
         {"rope_type": "linear", "factor": 4.0}),
        ({".rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({".rope.scaling.type": "yarn", ".rope.scaling.factor": 4.0,
          ".rope.scaling.original_context_length": 32768},
         {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    ],
)  # fmt: skip
def test_stretches_that_are_stated(
    metadata: dict[str, object], expected: object, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "m.gguf", "llama", tensors(), LLAMA | metadata)
    assert _open(tmp_path).config.get("rope_scaling") == expected


def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_gguf(tmp_path / "m.gguf", "llama", tensors(), LLAMA)
    assert open_checkpoint(ModelReference("m.gguf")).source.names()
    with pytest.raises(CheckpointError, match="has no revision 'main'"):
        open_checkpoint(ModelReference("m.gguf", "main"))
    with pytest.raises(CheckpointError, match="There is no"):
        open_checkpoint(ModelReference("models/absent.gguf"))
    with pytest.raises(CheckpointError, match="neither runs nor converts"):
        open_checkpoint(ModelReference("m.gguf"), stored=True)
    (tmp_path / "link.gguf").symlink_to("/etc/hostname")
    (tmp_path / "m.gguf").unlink()
    with pytest.raises(CheckpointError, match="link"):
        open_checkpoint(ModelReference("."))


def test_abandoned_folders_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecars.tempfile, "tempdir", str(tmp_path))
    old, young, alive = (
        tmp_path / f"forge-gguf-{owner}-abc" for owner in ("4194999", "4194998", str(os.getpid()))
    )
    for folder in (old, young, alive):
        folder.mkdir()
        (folder / "config.json").touch()
    past = time.time() - 2 * 86_400
    for folder in (old, alive):
        os.utime(folder, (past, past))
    made = sidecars.folder_of(("test",), {"sub/a.jinja": b"1", "b": b"2"})
    assert (made / "sub" / "a.jinja").read_bytes() == b"1"
    assert not old.exists()
    assert young.exists()
    assert alive.exists()
