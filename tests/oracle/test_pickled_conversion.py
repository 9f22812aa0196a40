"""The command that a refusal of pickled weights names converts them, and runs nothing of theirs."""

from __future__ import annotations

import os
import pickle
import shlex
import sys
from pathlib import Path

import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


class _Malice:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._file),)


def _run_named_command(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command of the refusal, word for word, in this process."""
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin") as caught:
        open_checkpoint(ModelReference(str(root)))
    python, option, code, *arguments = shlex.split(str(caught.value).partition("files: ")[2])
    assert (python, option) == ("python", "-c")
    monkeypatch.setattr(sys, "argv", ["-c", *arguments])
    exec(code, {"__name__": "__main__"})


def _llama(root: Path) -> dict[str, object]:
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=32, dtype="bfloat16",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).bfloat16()
    config.save_pretrained(root)
    state: dict[str, object] = model.state_dict()
    return state


def test_it_converts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "my model's weights"
    state = _llama(root)
    torch.save(state, root / "pytorch_model.bin")
    _run_named_command(root, monkeypatch)
    source = open_checkpoint(ModelReference(f"{root}-safetensors")).source
    assert set(source.names()) == set(state)
    for name in source.names():
        assert bytes(source.read(name)) == state[name].view(torch.uint8).numpy().tobytes()


def test_it_runs_nothing_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, mark = tmp_path / "m", tmp_path / "was-run"
    state = _llama(root)
    torch.save({**state, "x": _Malice(mark)}, root / "pytorch_model.bin")
    pickle.loads(pickle.dumps(_Malice(tmp_path / "shown")))
    assert (tmp_path / "shown").exists(), "the malice works where nothing guards against it"
    with pytest.raises((pickle.UnpicklingError, OSError, ValueError), match=r"weights_only|pickle"):
        _run_named_command(root, monkeypatch)
    assert not mark.exists()
