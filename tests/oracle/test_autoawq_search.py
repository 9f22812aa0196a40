"""``search: module`` chooses the scales that AutoAWQ chooses, or none where that is better.

AutoAWQ does not try "no scale at all", which is compared apart.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from forge.checkpoints.checkpoint import open_checkpoint
from forge.formats.contract import Scheme
from forge.quantize.awq import module_search
from forge.quantize.awq.run import quantize_blocks
from forge.quantize.awq.scales import ScaleChoice, choose
from forge.quantize.awq.settings import AwqSettings
from forge.recipes.reference import ModelReference
from tests.oracle.environments import python_of
from tests.oracle.make_autoawq_golden import AUTOAWQ_REQUIREMENTS
from tests.quantize.awq.models import save_with_outliers

_SAME = 0.95


@pytest.mark.slow
def test_the_scales_are_autoawqs_in_95_percent_of_the_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[ScaleChoice] = []
    best_of_theirs: list[torch.Tensor] = []

    def recorded(
        candidates: list[torch.Tensor], losses: np.ndarray[tuple[int], np.dtype[np.float64]]
    ) -> ScaleChoice:
        chosen.append(choose(candidates, losses))
        best_of_theirs.append(candidates[int(np.argmin(losses[:-1]))])
        return chosen[-1]

    monkeypatch.setattr(module_search, "choose", recorded)
    theirs: list[list[float]] = []
    tokens = np.random.default_rng(5).integers(3, 96, (8, 64))
    np.save(tmp_path / "tokens.npy", tokens)
    for seed in range(3):
        folder = tmp_path / str(seed)
        save_with_outliers("llama", folder, dtype=torch.float32, seed=seed)
        out = tmp_path / f"{seed}.json"
        subprocess.run(
            [
                python_of("autoawq", AUTOAWQ_REQUIREMENTS),
                Path(__file__).with_name("autoawq_scales.py"),
                folder, tmp_path / "tokens.npy", "32", out,
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        theirs += [entry["scales"] for entry in json.loads(out.read_text())]
        checkpoint = open_checkpoint(ModelReference(str(folder)))
        settings = AwqSettings(search="module", clip=False, threads=1)
        for _ in quantize_blocks(checkpoint, tokens, Scheme(4, 32), settings):
            pass
    assert len(chosen) == len(theirs) == 3 * 2 * 4
    same = [
        np.allclose(ours.numpy(), np.array(scales), rtol=2e-3)
        for ours, scales in zip(best_of_theirs, theirs, strict=True)
    ]
    assert np.mean(same) >= _SAME, [choice.ratio for choice in chosen]
    for ours, choice in zip(best_of_theirs, chosen, strict=True):
        if choice.ratio is None:
            assert choice.loss == choice.identity_loss
        else:
            assert torch.equal(ours, choice.scale_I)
            assert choice.loss < choice.identity_loss
    assert sum(choice.ratio is not None for choice in chosen) > len(chosen) / 2
