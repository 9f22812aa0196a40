"""Tiny checkpoints for tests: valid, deterministic, written without torch or forge's own writer.

``tiny_checkpoint`` writes a whole model folder that transformers loads. ``write_safetensors``
writes any tensors, well-formed or not. Values depend on (seed, tensor name) alone, so
two models of one seed are equal, and ``tune`` makes a fine-tune of the model of that seed.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

CHAT_TEMPLATE = (
    "{% for message in messages %}<s>{{ message['role'] }} {{ message['content'] }}</s>{% endfor %}"
)
TEXT = "aspirin treats pain and fever in adults but not in children with flu"
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")

_NUMPY = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def bf16_bits(values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
    """Round finite values to bfloat16, nearest even, and return the bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def bf16_values(bits: npt.ArrayLike) -> Floats:
    """Return the float32 values of bfloat16 bits."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << 16).view(np.float32)


def to_bytes(values: npt.ArrayLike, dtype: str) -> bytes:
    """Return the bytes of values in a safetensors dtype."""
    if dtype == "BF16":
        return bf16_bits(values).tobytes()
    return np.asarray(values).astype(_NUMPY[dtype]).tobytes()


def from_bytes(data: bytes | memoryview, dtype: str, shape: Sequence[int]) -> Floats:
    """Return the values of a tensor's bytes; float64 stays float64."""
    if dtype == "BF16":
        return bf16_values(np.frombuffer(data, np.uint16)).reshape(shape)
    values = np.frombuffer(data, _NUMPY[dtype]).reshape(shape)
    return values if dtype == "F64" else values.astype(np.float32)


def header_bytes(table: Mapping[str, object]) -> bytes:
    """Return a safetensors header, its length included, of whatever the table says."""
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> None:
    """Write a safetensors file of (dtype, shape, bytes) by name, in the order given."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        offsets = [position, position + len(data)]
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": offsets}
        position += len(data)
    path.write_bytes(header_bytes(table) + b"".join(row[2] for row in tensors.values()))


def read_values(folder: Path) -> dict[str, Floats]:
    """Read all tensors of a model's folder with the reference implementation, as float32 or 64."""
    from safetensors import safe_open

    values: dict[str, Floats] = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        table = json.loads(raw[8 : 8 + length])
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
        for name in names:
            begin, end = (8 + length + offset for offset in table[name]["data_offsets"])
            values[name] = from_bytes(raw[begin:end], table[name]["dtype"], table[name]["shape"])
    return values


def tiny_config(
    model_type: str = "llama",
    *,
    layers: int = 2,
    hidden: int = 16,
    vocab: int = 32,
    tie: bool = False,
    dtype: str = "BF16",
) -> dict[str, object]:
    """Return a ``config.json`` for a tiny model."""
    names = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
    if model_type == "gpt2":
        return {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": hidden,
            "n_head": 2, "n_layer": layers, "n_positions": 64, "vocab_size": vocab,
            "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": tie,
            "dtype": names[dtype],
        }  # fmt: skip
    classes = {
        "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    }  # fmt: skip
    config: dict[str, object] = {
        "architectures": [classes[model_type]], "model_type": model_type,
        "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden // 4,
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "max_position_embeddings": 128,
        "rope_theta": 10000.0, "vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 3, "tie_word_embeddings": tie, "dtype": names[dtype],
    }  # fmt: skip
    if model_type in ("qwen2", "qwen3"):
        config["layer_types"] = ["full_attention"] * layers
    return config


def tiny_shapes(config: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    """Return the tensors that transformers expects of a tiny config, in its own order."""

    def number(key: str) -> int:
        value = config[key]
        assert isinstance(value, int)
        return value

    vocab, tied = number("vocab_size"), config["tie_word_embeddings"]
    if config["model_type"] == "gpt2":
        return _gpt2_shapes(number("n_embd"), number("n_layer"), number("n_positions"), vocab)
    hidden, inner = number("hidden_size"), number("intermediate_size")
    head = number("head_dim")
    queries, keys = number("num_attention_heads") * head, number("num_key_value_heads") * head
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(number("num_hidden_layers")):
        rows: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "mlp.down_proj.weight": (hidden, inner),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, queries),
            "self_attn.q_proj.weight": (queries, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
        }
        if config["model_type"] == "qwen2":
            rows |= {f"self_attn.{x}_proj.bias": (keys,) for x in "kv"}
            rows |= {"self_attn.q_proj.bias": (queries,)}
        if config["model_type"] == "qwen3":
            rows |= {f"self_attn.{x}_norm.weight": (head,) for x in "qk"}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in rows.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not tied:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def _gpt2_shapes(
    hidden: int, layers: int, positions: int, vocab: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab, hidden),
        "transformer.wpe.weight": (positions, hidden),
    }
    for layer in range(layers):
        for name, inputs, outputs in (
            ("attn.c_attn", hidden, 3 * hidden), ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden), ("mlp.c_proj", 4 * hidden, hidden),
        ):  # fmt: skip
            shapes[f"transformer.h.{layer}.{name}.weight"] = (inputs, outputs)
            shapes[f"transformer.h.{layer}.{name}.bias"] = (outputs,)
        for name in ("ln_1", "ln_2"):
            shapes[f"transformer.h.{layer}.{name}.weight"] = (hidden,)
            shapes[f"transformer.h.{layer}.{name}.bias"] = (hidden,)
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (hidden,)
    return shapes


def random_values(name: str, shape: tuple[int, ...], *, seed: int) -> Floats:
    """Return normal values of a usual scale; norms are near one."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = generator.standard_normal(shape, np.float32) * np.float32(0.05)
    return values + np.float32(1) if "norm" in name or ".ln_" in name else values


def tiny_checkpoint(
    root: Path,
    *,
    model_type: str = "llama",
    seed: int = 0,
    tune: int | None = None,
    tune_scale: float = 0.1,
    dtype: str = "BF16",
    layers: int = 2,
    hidden: int = 16,
    vocab: int = 32,
    shards: int = 1,
    tie: bool = False,
    with_tokenizer: bool = True,
    extra_tokens: Sequence[str] = (),
    chat_template: str | None = CHAT_TEMPLATE,
    config_overrides: Mapping[str, object] | None = None,
    fill: Callable[[str, tuple[int, ...]], npt.ArrayLike] | None = None,
) -> Path:
    """Write a tiny model and return its folder.

    Args:
        root: The folder; made when absent.
        model_type: ``llama``, ``mistral``, ``qwen2``, ``qwen3`` or ``gpt2``.
        seed: Of the values.
        tune: Seed of a fine-tune: values of ``seed`` plus ``tune_scale`` times those of ``tune``.
        tune_scale: Size of the task vector relative to the weights.
        dtype: Of all tensors.
        layers: Number of layers.
        hidden: Width, a multiple of 8.
        vocab: Rows of the embedding; at least the tokenizer's size where there is one.
        shards: Number of weight files.
        tie: Whether the head is the embedding.
        with_tokenizer: Whether to write tokenizer files.
        extra_tokens: Words to add to the tokenizer's vocabulary.
        chat_template: Written to ``tokenizer_config.json``.
        config_overrides: Keys to set in ``config.json`` after the shapes are fixed; ``None``
            as a value removes the key.
        fill: Returns a tensor's values by name and shape, instead of random ones.
    """
    root.mkdir(parents=True, exist_ok=True)
    config = tiny_config(
        model_type, layers=layers, hidden=hidden, vocab=vocab, tie=tie, dtype=dtype
    )
    rows: dict[str, tuple[str, Sequence[int], bytes]] = {}
    for name, shape in tiny_shapes(config).items():
        values: npt.ArrayLike
        if fill is not None:
            values = np.broadcast_to(np.asarray(fill(name, shape)), shape)
        else:
            values = random_values(name, shape, seed=seed)
            if tune is not None:
                noise = np.random.default_rng([tune, zlib.crc32(name.encode())])
                step = noise.standard_normal(shape, np.float32) * np.float32(0.05 * tune_scale)
                values = values + step
        rows[name] = (dtype, shape, to_bytes(values, dtype))
    _write_weights(root, rows, shards=shards)
    for key, value in (config_overrides or {}).items():
        if value is None:
            config.pop(key, None)
        else:
            config[key] = value
    (root / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "do_sample": False}
    (root / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    if with_tokenizer:
        write_tokenizer(root, extra_tokens=extra_tokens, chat_template=chat_template)
    return root


def _write_weights(
    root: Path, rows: Mapping[str, tuple[str, Sequence[int], bytes]], *, shards: int
) -> None:
    if shards == 1:
        write_safetensors(root / "model.safetensors", rows)
        return
    weight_map: dict[str, str] = {}
    names = list(rows)
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        write_safetensors(root / file, {name: rows[name] for name in part})
        weight_map |= dict.fromkeys(part, file)
    total = sum(len(row[2]) for row in rows.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_tokenizer(
    root: Path, *, extra_tokens: Sequence[str] = (), chat_template: str | None = CHAT_TEMPLATE
) -> int:
    """Write a real word-level tokenizer, and return the size of its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = [*SPECIAL_TOKENS, *dict.fromkeys(TEXT.split()), *extra_tokens]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(root / "tokenizer.json"))
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>",
        "eos_token": "</s>", "pad_token": "<pad>", "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    if chat_template is not None:
        config["chat_template"] = chat_template
    (root / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {key: config[key] for key in ("unk_token", "bos_token", "eos_token", "pad_token")}
    (root / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    return len(words)
