"""``forge generate``: streams, repeats, stops, and says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from forge import runtime
from forge.cli.app import run
from forge.core.errors import CheckpointError, IncompatibleError
from forge.runtime.generation import generate, load_tokenizer
from tests.architectures.rows import write_row
from tests.cli.process import environment
from tests.factory import tiny_checkpoint
from tests.runtime.folders import llama, quantized_pair

PROMPT = "aspirin treats fever in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # As many tokens as the tokenizer has words, and none of them ends the text.
    model = llama(vocab_size=16, eos_token_id=None)
    model.generation_config.eos_token_id = 99
    return quantized_pair(model, tmp_path_factory.mktemp("generate"), "awq-gemm").quantized


def greedy_text(folder: Path, prompt: str, count: int, *, chat: bool) -> str:
    """Return what transformers' own loop writes."""
    model = runtime.load(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if chat:
        prompt = f"<s>user {prompt}</s>"
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not chat)["input_ids"]
    with torch.inference_mode():
        for _ in range(count):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return tokenizer.decode(ids[0, -count:], skip_special_tokens=True)


@pytest.mark.parametrize("chat", [True, False])
def test_greedy_text(folder: Path, chat: bool, capsys: pytest.CaptureFixture[str]) -> None:
    word = "--chat" if chat else "--no-chat"
    assert run(["generate", str(folder), PROMPT, "--max-new-tokens", "6", word]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == greedy_text(folder, PROMPT, 6, chat=chat)
    assert "6 tokens, " in shown.err
    assert "tokens/s" in shown.err


def test_json_and_draws_repeat(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def record(seed: int) -> dict[str, object]:
        words = ["--temperature", "2", "--seed", str(seed), "--max-new-tokens", "12", "--json"]
        assert run(["generate", str(folder), PROMPT, *words]) == 0
        found = json.loads(capsys.readouterr().out)
        assert isinstance(found, dict)
        return found

    first = record(1)
    assert first["tokens"] == 12
    assert first["text"] == record(1)["text"]
    assert len({str(record(seed)["text"]) for seed in range(1, 4)}) > 1


def test_pieces_add_up(folder: Path) -> None:
    model = runtime.load(folder)
    pieces: list[str] = []
    made = generate(
        model, load_tokenizer(model), PROMPT, max_new_tokens=9, chat=False, emit=pieces.append
    )
    assert "".join(pieces) == made.text
    assert len(pieces) > 3
    assert (made.tokens, made.prompt_tokens) == (9, 5)
    assert made.tokens_per_s > 0


def test_the_prompt_comes_from_stdin(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    words = ["--max-new-tokens", "4", "--quiet"]
    assert run(["generate", str(folder), PROMPT, *words]) == 0
    expected = capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
    assert run(["generate", str(folder), "-", *words]) == 0
    assert capsys.readouterr() == expected
    assert expected.err == ""


def test_it_ends_where_the_model_ends(tmp_path: Path) -> None:
    model = runtime.load(tiny_checkpoint(tmp_path / "tiny", vocab=16))
    tokenizer = load_tokenizer(model)
    with torch.no_grad():
        ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        first = int(model(ids).logits[0, -1].argmax())
    for ends, count in ((99, 5), ([98, first], 1)):
        model.generation_config.eos_token_id = ends
        made = generate(model, tokenizer, PROMPT, max_new_tokens=5, chat=False)
        assert made.tokens == count


def test_replies_longer_than_the_positions_of_any_family_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_row("MPT", tmp_path)
    assert run(["generate", str(root / "base"), "a", "--max-new-tokens", "99", "--quiet"]) == 2
    assert "longer than the 64 that the model knows" in capsys.readouterr().err


def test_mistakes(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "tokenizer_config.json").unlink()
    (bare / "tokenizer.json").unlink()
    plain = tiny_checkpoint(tmp_path / "plain", chat_template=None)
    for words, message in (
        ([str(tmp_path / "absent"), "x"], "absent"),
        ([str(bare), "x"], "has no tokenizer"),
        ([str(plain), "x", "--chat"], "has no chat template"),
        ([str(folder), "aspirin", "--max-new-tokens", "5000"], "longer than the 2048"),
        ([str(folder), "x", "--temperature", "-1"], "--temperature"),
    ):
        assert run(["generate", *words]) == 2
        shown = capsys.readouterr()
        assert message in shown.err
        assert "Traceback" not in shown.err
        assert shown.out == ""


def test_errors_have_kinds(folder: Path, tmp_path: Path) -> None:
    model = runtime.load(tiny_checkpoint(tmp_path / "tiny", with_tokenizer=False))
    with pytest.raises(CheckpointError, match=r"Copy tokenizer\.json"):
        load_tokenizer(model)
    model = runtime.load(folder)
    with pytest.raises(IncompatibleError, match="Shorten it"):
        generate(model, load_tokenizer(model), PROMPT, max_new_tokens=9999)


def test_ctrl_c_ends_the_text(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "forge", "generate", folder, PROMPT, "--max-new-tokens", "2000"],
        env=environment() | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None
    begun = os.read(process.stdout.fileno(), 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert begun + out
    assert out.endswith(b"\n")
    assert err.decode().splitlines()[-1] == "interrupted"
    assert b"Traceback" not in err
