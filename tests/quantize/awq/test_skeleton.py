"""A model that is filled one block at a time computes what the whole model does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forge.checkpoints.checkpoint import open_checkpoint
from forge.quantize.awq.skeleton import Skeleton, first_of
from forge.recipes.reference import ModelReference
from tests.architectures.tiny_models import save_tiny
from tests.quantize.awq.models import TOKENS_BT


@pytest.mark.parametrize("case", ["deepseek_v2 lite", "deepseek_v3", "qwen2_vl", "llava"])
def test_blocks_compute_what_they_do_in_the_model(case: str, tmp_path: Path) -> None:
    model = save_tiny(case, tmp_path)
    outputs: list[torch.Tensor] = []
    for module in model.get_decoder().layers:
        module.register_forward_hook(lambda _, __, found: outputs.append(first_of(found)))
    with torch.no_grad():
        model(torch.from_numpy(TOKENS_BT))
    checkpoint = open_checkpoint(ModelReference(str(tmp_path)))
    skeleton = Skeleton(checkpoint, device=torch.device("cpu"), num_tokens=TOKENS_BT.shape[1])
    [(states, calls)] = list(skeleton.embed([TOKENS_BT]))
    assert len(outputs) == len(skeleton.blocks)
    for index, (block, call) in enumerate(zip(skeleton.blocks, calls, strict=True)):
        skeleton.load(index)
        with torch.no_grad():
            states = first_of(block(states, *call.arguments, **call.keywords))
        torch.testing.assert_close(states, outputs[index], rtol=1e-4, atol=1e-4)
        skeleton.drop(index)
