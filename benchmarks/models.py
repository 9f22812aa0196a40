"""Write Llama-shaped models of any size: a base and fine-tunes of it, or files of zeros.

    python -m benchmarks.models FOLDER [--small]

A base holds normal values of size 0.02, a fine-tune those of the base plus 0.002 times its own.
Values depend on (model, tensor name) alone, so every run of the generator gives the same bytes.
A sparse model has real headers and real sizes, but its values are holes in the file: it reads as
zeros and takes no room on the disk.

Needs numpy only. A model's folder holds what loaders ask for: ``config.json``, a generation
config, and a tokenizer with as many words as the embedding has rows.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

Bits = npt.NDArray[np.uint16]

BASE_SCALE: Final = np.float32(0.02)
TUNE_SCALE: Final = np.float32(0.002)
TUNES: Final = ("tune_a", "tune_b")
_SPECIAL: Final = ("<unk>", "<s>", "</s>", "<pad>")
_SPECIAL_IDS: Final = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_RECORD: Final = "generated.json"


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a Llama; the head is not tied to the embedding."""

    hidden: int
    layers: int
    intermediate: int
    vocab: int
    heads: int
    kv_heads: int
    model_type: str = "llama"

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor by name, in file order."""
        hidden, inner = self.hidden, self.intermediate
        keys = hidden // self.heads * self.kv_heads
        rows: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (hidden,),
            "mlp.down_proj.weight": (hidden, inner),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, hidden),
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
        }
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, hidden)}
        for layer in range(self.layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in rows.items()}
        return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocab, hidden)}

    @property
    def num_parameters(self) -> int:
        """Number of elements of all tensors."""
        return sum(int(np.prod(shape)) for shape in self.tensors().values())

    @property
    def num_bytes(self) -> int:
        """Size of the weights in bfloat16."""
        return 2 * self.num_parameters


LARGE: Final = ModelShape(1024, 16, 2816, 32000, 16, 16)
"""271 million parameters, 147 tensors."""
SMALL: Final = ModelShape(256, 4, 704, 2000, 4, 4)
"""4 million parameters, to try the benchmarks."""
SMALLEST: Final = ModelShape(16, 1, 32, 32, 4, 4)
"""So little work that a merge of it measures start-up."""
MANY_TENSORS: Final = ModelShape(16, 889, 32, 32, 4, 4)
"""8,004 tensors of at most a kilobyte."""
MISTRAL_7B: Final = ModelShape(4096, 32, 14336, 32000, 32, 8, "mistral")
"""7.24 billion parameters, the shapes of Mistral-7B."""
LLAMA_2_70B: Final = ModelShape(8192, 80, 28672, 32000, 64, 8)
"""69 billion parameters: Llama-2-70B, and Me-LLaMA-70B and Meditron-70B, which were made of it."""
LLAMA_3_70B: Final = ModelShape(8192, 80, 28672, 128256, 64, 8)
"""70.6 billion parameters: Llama-3-70B, and OpenBioLLM-70B and Med42-70B, which were made of it."""


@dataclass(frozen=True, slots=True)
class Family:
    """A base and its fine-tunes: folders of models."""

    base: Path
    tunes: tuple[Path, ...]

    @property
    def models(self) -> tuple[Path, ...]:
        """The base first."""
        return (self.base, *self.tunes)


def round_to_bf16(values: npt.NDArray[np.float32]) -> Bits:
    """Round finite float32 values to bfloat16, nearest even, and return the bits."""
    bits = values.view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)


def widen(bits: Bits) -> npt.NDArray[np.float32]:
    """Return the float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def tensor_values(name: str, shape: tuple[int, ...], *, tune: int | None) -> Bits:
    """Return one tensor of the base (``tune`` is None) or of a fine-tune, as bfloat16 bits."""
    key = zlib.crc32(name.encode())
    values = np.random.default_rng([0, key]).standard_normal(shape, np.float32) * BASE_SCALE
    if len(shape) == 1:
        values += np.float32(1)
    if tune is not None:
        noise = np.random.default_rng([tune, key]).standard_normal(shape, np.float32)
        noise *= TUNE_SCALE
        values += noise
    return round_to_bf16(values)


def write_family(root: Path, shape: ModelShape, *, num_tunes: int = len(TUNES)) -> Family:
    """Write a base and its fine-tunes below ``root``, or reuse those that an earlier run wrote."""
    names = TUNES[:num_tunes]
    for number, name in enumerate(("base", *names)):
        if not _is_written(root / name, shape, kind=name):
            _write_model(root / name, shape, tune=number or None)
            _mark_written(root / name, shape, kind=name)
    return Family(root / "base", tuple(root / name for name in names))


def write_sparse_family(root: Path, shape: ModelShape, *, num_shards: int = 1) -> Family:
    """Write a base and one fine-tune whose values are holes in sharded files.

    The file system must keep holes, as ext4, xfs, btrfs and tmpfs do.
    """
    for name in ("base", TUNES[0]):
        kind = f"sparse-{num_shards}"
        if not _is_written(root / name, shape, kind=kind):
            _write_sparse_model(root / name, shape, num_shards=num_shards)
            _mark_written(root / name, shape, kind=kind)
    return Family(root / "base", (root / TUNES[0],))


def read_tensor(folder: Path, name: str) -> Bits:
    """Return one bfloat16 tensor of a model's folder, flat.

    Raises:
        KeyError: No file of the folder holds it.
    """
    for path in sorted(folder.glob("*.safetensors")):
        table, start = read_table(path)
        if name in table:
            begin, end = table[name]["data_offsets"]
            return np.fromfile(path, np.uint16, (end - begin) // 2, offset=start + begin)
    raise KeyError(f"{folder} holds no {name}")


def read_table(path: Path) -> tuple[dict[str, dict[str, list[int]]], int]:
    """Return the tensors of a safetensors file that this generator or a merge of its models wrote.

    Returns:
        Shape and offsets by name, and where the data begin.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        table = json.loads(file.read(length))
    table.pop("__metadata__", None)
    return table, 8 + length


def _is_written(folder: Path, shape: ModelShape, *, kind: str) -> bool:
    record = folder / _RECORD
    return record.is_file() and json.loads(record.read_text()) == {"kind": kind, **asdict(shape)}


def _mark_written(folder: Path, shape: ModelShape, *, kind: str) -> None:
    (folder / _RECORD).write_text(json.dumps({"kind": kind, **asdict(shape)}) + "\n")


def config_of(shape: ModelShape) -> dict[str, object]:
    """Return a ``config.json``."""
    classes = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
    return {
        "architectures": [classes[shape.model_type]], "model_type": shape.model_type,
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "vocab_size": shape.vocab,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", **_SPECIAL_IDS,
    }  # fmt: skip


def _start_folder(folder: Path, shape: ModelShape) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    _write_json(folder / "config.json", config_of(shape))
    _write_json(folder / "generation_config.json", _SPECIAL_IDS)
    _write_tokenizer(folder, shape.vocab)


def _write_tokenizer(folder: Path, num_words: int) -> None:
    words = [*_SPECIAL, *(f"word{number}" for number in range(num_words - len(_SPECIAL)))]
    added = [
        {"id": number, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for number, word in enumerate(_SPECIAL)
    ]  # fmt: skip
    tokenizer: dict[str, object] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "<unk>",
                  "vocab": {word: number for number, word in enumerate(words)}},
    }  # fmt: skip
    special = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), _SPECIAL, strict=True))
    _write_json(folder / "tokenizer.json", tokenizer)
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048, **special},
    )
    _write_json(folder / "special_tokens_map.json", special)


def _write_model(folder: Path, shape: ModelShape, *, tune: int | None) -> None:
    _start_folder(folder, shape)
    tensors = shape.tensors()
    with (folder / "model.safetensors").open("wb") as file:
        _write_header(file, tensors)
        for name, dimensions in tensors.items():
            tensor_values(name, dimensions, tune=tune).tofile(file)


def _write_sparse_model(folder: Path, shape: ModelShape, *, num_shards: int) -> None:
    _start_folder(folder, shape)
    write_sparse_weights(folder, shape.tensors(), num_shards=num_shards)


def write_sparse_weights(
    folder: Path, tensors: Mapping[str, tuple[int, ...]], *, num_shards: int
) -> None:
    """Write weight files with an index whose values are holes: bfloat16 zeros of any size.

    Args:
        folder: It must exist.
        tensors: Shapes by name, in file order.
        num_shards: Files to write.
    """
    weight_map: dict[str, str] = {}
    for number, part in enumerate(_cut(tensors, num_shards), start=1):
        file_name = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        with (folder / file_name).open("wb") as file:
            _write_header(file, part)
            file.truncate(file.tell() + sum(map(_num_bytes, part.values())))
        weight_map |= dict.fromkeys(part, file_name)
    total = sum(map(_num_bytes, tensors.values()))
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": weight_map},
    )


def write_weights(folder: Path, tensors: Mapping[str, tuple[int, ...]], pattern: Bits) -> None:
    """Write one weight file that holds a run of bfloat16 values over and over.

    Args:
        folder: It must exist.
        tensors: Shapes by name, in file order.
        pattern: The values, as bits.
    """
    with (folder / "model.safetensors").open("wb") as file:
        _write_header(file, tensors)
        left = sum(map(math.prod, tensors.values()))
        while left:
            part = pattern[:left]
            part.tofile(file)
            left -= part.size


def _cut(
    tensors: Mapping[str, tuple[int, ...]], num_parts: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    names = list(tensors)
    for part in range(num_parts):
        begin, end = len(names) * part // num_parts, len(names) * (part + 1) // num_parts
        yield {name: tensors[name] for name in names[begin:end]}


def _write_header(file: BinaryIO, tensors: Mapping[str, tuple[int, ...]]) -> None:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors.items():
        end = position + _num_bytes(shape)
        table[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.flush()


def _num_bytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    """Write a base and two fine-tunes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="4 million parameters, not 271")
    arguments = parser.parse_args()
    shape = SMALL if arguments.small else LARGE
    family = write_family(arguments.folder, shape)
    print(
        f"{shape.num_parameters / 1e6:.2f} M parameters each: {', '.join(map(str, family.models))}"
    )


if __name__ == "__main__":
    main()
