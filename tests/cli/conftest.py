"""Two tiny models and two recipes, written once for all tests of the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.factory import tiny_checkpoint

DARE = """\
merge_method: dare_ties
base_model: base
models:
  - model: a
    parameters: {weight: 0.5, density: [0.25, 0.75]}
  - model: b
    parameters: {weight: 0.5, density: 0.5}
dtype: bfloat16
seed: 7
"""
SLERP = """\
name: médical/mix
merge_method: slerp
base_model: base
models:
  - model: base
  - model: a
parameters:
  t:
    - filter: self_attn
      value: [0, 1]
    - value: 0.5
dtype: bfloat16
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base``, ``a``, ``b``, ``dare.yaml`` and ``slerp.yaml``; read-only by use."""
    root = tmp_path_factory.mktemp("models")
    tiny_checkpoint(root / "base", layers=3)
    tiny_checkpoint(root / "a", layers=3, tune=1)
    tiny_checkpoint(root / "b", layers=3, tune=2)
    (root / "dare.yaml").write_text(DARE)
    (root / "slerp.yaml").write_text(SLERP)
    return root


@pytest.fixture
def workplace(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of the test's own, in which those names mean the same."""
    for entry in models.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path
