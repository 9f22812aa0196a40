"""What does not fit together is told once, in one sentence, by its cause and not tensor by tensor.

Every pair of models here differs in dozens or hundreds of tensors. ``forge check`` lists one error,
``forge merge`` prints it and exits with 2, and nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from forge.cli.app import run
from tests.end_to_end.command import tree
from tests.factory import tiny_checkpoint

RECIPE = """\
merge_method: linear
models:
  - model: ./a
  - model: ./b
parameters: {weight: 0.5}
dtype: bfloat16
"""


def layers(root: Path) -> None:
    tiny_checkpoint(root / "a", layers=32)
    tiny_checkpoint(root / "b", layers=40)


def families(root: Path) -> None:
    """Mistral and Llama 3: other families, vocabularies, rotary bases and special tokens."""
    tiny_checkpoint(root / "a", model_type="mistral")
    tiny_checkpoint(
        root / "b", vocab=64, extra_tokens=[f"word{n}" for n in range(40)],
        config_overrides={"rope_theta": 5e5, "bos_token_id": 60, "eos_token_id": 61},
    )  # fmt: skip


def families_as_one(root: Path) -> None:
    """The same, but both are saved as Llama, which Mistral's tensors fit."""
    tiny_checkpoint(root / "a")
    tiny_checkpoint(root / "b", vocab=64, config_overrides={"rope_theta": 5e5})
    path = root / "b" / "tokenizer.json"
    content = json.loads(path.read_text())
    words = list(content["model"]["vocab"])
    content["model"]["vocab"] = {
        word: n for n, word in enumerate([*words[:4], *reversed(words[4:])])
    }
    path.write_text(json.dumps(content))


def sizes(root: Path) -> None:
    """Llama 2 and Llama 3: as above, and other widths."""
    families_as_one(root)
    tiny_checkpoint(root / "b", vocab=64, hidden=24)


CAUSES: dict[str, tuple[Callable[[Path], None], str]] = {
    "32 with 40 layers": (
        layers,
        "./a has 32 layers but ./b has 40: merge models with the same number of layers, or choose "
        "layers with 'slices'.",
    ),
    "Mistral with Llama 3": (
        families,
        "./a is a 'mistral' model but ./b is a 'llama' model: one config.json cannot describe "
        "both, so merge models of one architecture.",
    ),
    "Mistral saved as Llama with Llama 3": (
        families_as_one,
        "'model.embed_tokens.weight' has 32 rows in ./a but 64 in ./b: their vocabularies differ "
        "in size. Add 'tokenizer: {source: base}' to keep the tokens of ./a alone, or 'tokenizer: "
        "{source: union}' to keep those of all.",
    ),
    "Llama 2 with Llama 3": (
        sizes,
        "hidden_size is 16 in ./a but 24 in ./b; head_dim is 4 in ./a but 6 in ./b; "
        "intermediate_size is 32 in ./a but 48 in ./b: the config.json of ./a, which the result "
        "has, would misread the other's weights, so merge models of one architecture and size.",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_one_sentence_tells_the_cause(
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, sentence = CAUSES[name]
    make(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    assert run(["merge", "recipe.yaml", "--out", "out", "-q"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {sentence}\n")
    assert run(["check", "recipe.yaml", "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [item["message"] for item in findings if item["level"] == "error"] == [sentence]
    assert tree(tmp_path) == before


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_tied_and_untied_are_merged_with_one_notice(
    tmp_path: Path,
    order: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_checkpoint(tmp_path / order[0], tie=True)
    tiny_checkpoint(tmp_path / order[1], tune=1)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    assert run(["merge", "recipe.yaml", "--out", "out"]) == 0
    sentence = (
        f"./{order[0]} is tied (the embedding is the head) but ./{order[1]} is not, so the result "
        "is untied: its head is merged of the tied embedding and the other heads, and "
        "tie_word_embeddings is written as false."
    )
    assert f"notice: {sentence}\n" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "forge_manifest.json").read_text())
    assert sentence in manifest["notices"]
    assert (
        json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    )
