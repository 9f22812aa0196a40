"""On real questions and a real model, forge scores as lm-eval's ``HFLM`` does, item by item.

Runs where FORGE_MEDICAL_DATA names the folder with the data sets' files, and FORGE_MEDICAL_MODEL a
checkpoint, such as the demo's.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from forge.evaluate.backends.local import LocalBackend
from forge.evaluate.contract import ChoiceRequest
from forge.evaluate.prepare import prepare_task
from forge.evaluate.suite import load_suite
from forge.results.answers import ChoiceAnswer
from forge.runtime.any_model import LoadedModel, load_any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("lm_eval")
    from forge.evaluate.lm_eval_adapter import reference_scores

DATA, MODEL = (os.environ.get(f"FORGE_MEDICAL_{name}") for name in ("DATA", "MODEL"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        not (DATA and MODEL), reason="FORGE_MEDICAL_DATA and FORGE_MEDICAL_MODEL are not set"
    ),
]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_any(str(MODEL), dtype="float32")


@pytest.mark.parametrize("task", ["pubmedqa", "mmlu_anatomy", "medqa", "medmcqa"])
def test_every_log_likelihood_and_the_accuracy(task: str, model: LoadedModel) -> None:
    prepared = prepare_task(
        load_suite("medical").task(task), seed=1, data_dir=Path(str(DATA)), quick=12
    )
    asked = [each for each in prepared.requests if isinstance(each, ChoiceRequest)]
    found: dict[int, ChoiceAnswer] = {}
    LocalBackend(model).choose(asked, lambda place, answer: found.update({place: answer}))
    right = [0, 0]
    for place, (item, expected) in enumerate(
        zip(prepared.items, reference_scores(model, asked), strict=True)
    ):
        assert found[place].log_probs == pytest.approx(expected, abs=1e-3)
        right[0] += found[place].chosen("constrained") == item.gold
        right[1] += expected.index(max(expected)) == item.gold
    assert right[0] == right[1]
