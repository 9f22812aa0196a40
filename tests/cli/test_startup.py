"""The command line answers before anything heavy is loaded."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.cli.process import forge, python

pytestmark = pytest.mark.alone

HEAVY = ("torch", "transformers", "numpy", "numba", "pydantic", "yaml", "rich", "huggingface_hub")

LOADED = """
import json, sys
{action}
print(json.dumps(sorted(set({heavy!r}) & set(sys.modules))), file=sys.stderr)
"""


def loaded(action: str, cwd: Path) -> list[str]:
    done = python(LOADED.format(action=action, heavy=HEAVY), cwd=cwd)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr.splitlines()[-1])
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize(
    "action",
    [
        "import forge",
        "import forge.api",
        "from forge.cli.app import run; assert run(['--help']) == 0",
        "from forge.cli.app import run; assert run(['merge', '--help']) == 0",
        "from forge.cli.app import run; assert run(['methods']) == 0",
        "from forge.cli.app import run; assert run(['methods', 'della', '--json']) == 0",
    ],
)
def test_nothing_heavy_is_loaded(action: str, tmp_path: Path) -> None:
    assert loaded(action, tmp_path) == []


def test_the_measure_sees_what_is_loaded(tmp_path: Path) -> None:
    assert loaded("import numpy", tmp_path) == ["numpy"]


@pytest.mark.parametrize("arguments", [["--help"], ["methods"]])
def test_answers_in_half_a_second(arguments: list[str], tmp_path: Path) -> None:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert forge(*arguments, cwd=tmp_path).returncode == 0
        times.append(time.perf_counter() - start)
    # The best of five: other tests may hold the cores.
    assert min(times) < 0.5


def test_check_loads_no_torch(workplace: Path) -> None:
    action = "from forge.cli.app import run; assert run(['check', 'dare.yaml']) == 0"
    assert not {"torch", "transformers"} & set(loaded(action, workplace))
