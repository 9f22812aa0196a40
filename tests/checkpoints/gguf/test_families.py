"""A model of each family is the same model after a round through GGUF: weights, config, logits."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from forge.checkpoints.checkpoint import open_checkpoint
from forge.recipes.reference import ModelReference
from tests.checkpoints.gguf.models import ARCHITECTURES, as_values, tiny_gguf


@pytest.mark.parametrize("case", ARCHITECTURES)
def test_a_model_comes_back(case: str, tmp_path: Path) -> None:
    tiny = tiny_gguf(case, tmp_path)
    checkpoint = open_checkpoint(ModelReference(str(tiny.file)))
    source = checkpoint.source
    assert sorted(source.names()) == sorted(tiny.weights)
    # 1 + w is rounded where 1 is large beside w.
    slack = 2.0**-23 if case.startswith("gemma") else 0.0
    for name, expected in tiny.weights.items():
        info = source.info(name)
        assert (info.dtype, info.shape) == ("F32", expected.shape), name
        ours = as_values(source.read(name), info.dtype, info.shape)
        tolerance = slack if "norm" in name else 0.0
        np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=name)
    again = _load(checkpoint.root, tiny.weights)
    tokens = torch.arange(4, 40).reshape(2, -1)
    with torch.no_grad():
        expected_logits = tiny.model(tokens).logits
        torch.testing.assert_close(again(tokens).logits, expected_logits, rtol=1e-5, atol=1e-5)
    source.close()


def _load(root: Path, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    """Build a model from a derived config, and give it the original's weights."""
    config = AutoConfig.from_pretrained(root)
    kind = AutoModelForCausalLM._model_mapping[type(config)]
    state = {name: torch.from_numpy(values) for name, values in weights.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, loading = kind.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
        )
    assert not loading["missing_keys"], loading["missing_keys"]
    assert not loading["unexpected_keys"], loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    return model.eval()
