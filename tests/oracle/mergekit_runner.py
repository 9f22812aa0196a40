"""Run mergekit 0.1.5 on tiny checkpoints, as a user would, and return what it wrote.

mergekit is used as a black box: checkpoints and a recipe go in, a checkpoint comes out. The names
are those of a Llama with one layer; the shapes are chosen to cover vectors, matrices and one
three-dimensional tensor, and every tensor has a different number of elements, so that a draw of
random numbers inside mergekit tells by its size which tensor it is for.
"""

from __future__ import annotations

import json
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Array = NDArray[np.float64]
Tensors = dict[str, Array]
Precision = Literal["float32", "float64"]

_LAYER: Final = "model.layers.0."
SHAPES: Final[Mapping[str, tuple[int, ...]]] = {
    "model.embed_tokens.weight": (24, 12),
    _LAYER + "input_layernorm.weight": (12,),
    _LAYER + "self_attn.q_proj.weight": (12, 11),
    _LAYER + "self_attn.k_proj.weight": (2, 3, 4),
    _LAYER + "self_attn.v_proj.weight": (5, 7),
    _LAYER + "self_attn.o_proj.weight": (12, 10),
    _LAYER + "post_attention_layernorm.weight": (13,),
    _LAYER + "mlp.gate_proj.weight": (20, 12),
    _LAYER + "mlp.up_proj.weight": (20, 13),
    _LAYER + "mlp.down_proj.weight": (12, 21),
    "model.norm.weight": (11,),
    "lm_head.weight": (24, 13),
}
_CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 24,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


def filled(make: Callable[[tuple[int, ...]], Array]) -> Tensors:
    """Return one array for each name of the tiny model, from its shape."""
    return {name: make(shape) for name, shape in SHAPES.items()}


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the Hub offline and make any attempt to connect an error."""

    def refuse(*_: object) -> None:
        raise AssertionError("mergekit tried to reach the network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", refuse)


def _write(root: Path, tensors: Tensors, precision: Precision) -> str:
    root.mkdir(parents=True)
    (root / "config.json").write_text(json.dumps(_CONFIG | {"torch_dtype": precision}))
    arrays = {name: np.ascontiguousarray(x.astype(precision)) for name, x in tensors.items()}
    save_file(arrays, str(root / "model.safetensors"), metadata={"format": "pt"})
    return str(root)


def run_mergekit(
    folder: Path,
    method: str,
    models: Sequence[Tensors],
    *,
    base: Tensors | None = None,
    model_parameters: Sequence[Mapping[str, object]] = (),
    parameters: Mapping[str, object] | None = None,
    precision: Precision,
) -> Tensors:
    """Merge with mergekit and return the merged tensors as float64.

    Args:
        folder: An empty folder to work in.
        method: The word after ``merge_method:``.
        models: The tensors of each model beside the base.
        base: The tensors of ``base_model``, or ``None`` for a recipe without it.
        model_parameters: ``parameters`` of each model, in order; empty for none.
        parameters: The global ``parameters``.
        precision: Storage and arithmetic of the whole run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mergekit.config import MergeConfiguration
        from mergekit.merge import run_merge
        from mergekit.options import MergeOptions

        entries: list[dict[str, object]] = []
        for index, tensors in enumerate(models):
            entry: dict[str, object] = {"model": _write(folder / f"m{index}", tensors, precision)}
            if model_parameters:
                entry["parameters"] = dict(model_parameters[index])
            entries.append(entry)
        recipe: dict[str, object] = {"merge_method": method, "dtype": precision, "models": entries}
        if base is not None:
            recipe["base_model"] = _write(folder / "base", base, precision)
        if parameters:
            recipe["parameters"] = dict(parameters)
        run_merge(
            MergeConfiguration.model_validate(recipe),
            str(folder / "merged"),
            options=MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True),
        )
    merged: Tensors = {}
    for path in sorted((folder / "merged").glob("*.safetensors")):
        merged |= {name: x.astype(np.float64) for name, x in load_file(str(path)).items()}
    return merged
