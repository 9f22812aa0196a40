"""What forge reads from a GGUF is what transformers' own loader reads from it."""

import warnings
from pathlib import Path

import gguf
import numpy as np
import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.gguf.types import BY_NAME
from forge.recipes.reference import ModelReference
from tests.checkpoints.gguf.models import as_values, metadata_of, tiny_gguf
from tests.checkpoints.gguf.writing import add_value

_MIXED = {
    "attn_q": "Q4_K", "attn_k": "Q5_K", "attn_v": "Q6_K", "attn_output": "Q3_K",
    "ffn_gate": "Q2_K", "ffn_up": "IQ4_XS", "ffn_down": "IQ4_NL", "token_embd": "Q6_K",
    "output": "Q8_0",
}  # fmt: skip


def _loaded(file: Path) -> dict[str, np.ndarray]:
    """Return the weights as transformers loads them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    return {name: tensor.float().numpy() for name, tensor in model.state_dict().items()}


def _compare(file: Path, *, slack: float = 0.0) -> None:
    source, theirs = open_checkpoint(ModelReference(str(file))).source, _loaded(file)
    assert len(source.names()) > 10
    for name in source.names():
        info = source.info(name)
        ours = as_values(source.read(name), info.dtype, info.shape)
        # Loaders know heads by both names.
        expected = theirs[name if name in theirs else f"transformer.{name}"]
        np.testing.assert_allclose(ours, expected, rtol=0, atol=slack, err_msg=name)
    source.close()


# Of others, it does not read the head size (qwen3), the number of positions (gpt2) or that there is
# no padding (phi3), so that it cannot load a tiny one.
@pytest.mark.parametrize("case", ["llama grouped", "qwen2", "gemma2", "bloom"])
def test_of_the_families_that_transformers_reads(case: str, tmp_path: Path) -> None:
    kind = "Q8_0" if case != "bloom" else "F16"
    tiny = tiny_gguf(
        case, tmp_path, kind=kind, tokenizer__ggml__tokens=[f"t{n}" for n in range(96)]
    )
    _compare(tiny.file)


def test_of_k_quants(tmp_path: Path) -> None:
    """Random blocks, because nothing in Python writes these types."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=256, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    generator = np.random.default_rng(7)
    file = tmp_path / "mixed.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for key, value in metadata_of(config, "llama", heads=4, groups=2).items():
        add_value(writer, f"llama{key}" if key.startswith(".") else key, value)
    writer.add_vocab_size(32)
    for name, shape in shapes.items():
        theirs = table.get_name(name, try_suffixes=(".weight",))
        assert theirs is not None
        if len(shape) == 1:
            writer.add_tensor(theirs, generator.standard_normal(shape).astype(np.float32))
            continue
        kind = BY_NAME[_MIXED[theirs.removeprefix("blk.0.").removeprefix("blk.1.")[:-7]]]
        width = shape[1] // kind.elements * kind.nbytes
        blocks = generator.integers(0, 256, (shape[0] * width // kind.nbytes, kind.nbytes))
        blocks = blocks.astype(np.uint8)
        scales = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "Q3_K": (108,), "Q2_K": (80, 82)}
        for at in scales.get(kind.name, (0,)):
            halves = generator.uniform(1e-3, 2e-2, len(blocks)).astype(np.float16)
            blocks[:, at : at + 2] = halves[:, None].view(np.uint8)
        writer.add_tensor(
            theirs, blocks.reshape(shape[0], width),
            raw_dtype=gguf.GGMLQuantizationType[kind.name],
        )  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _compare(file)
