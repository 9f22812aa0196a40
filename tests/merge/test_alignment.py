"""Language models of several parts: what is merged, what is carried over, and under which names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from forge.api import check, merge
from forge.core.errors import IncompatibleError
from tests.architectures.tiny_models import WITH_VISION, save_tiny
from tests.evaluate.backends.word_models import letter_tokenizer
from tests.factory import read_values

_TEXT = {"gemma3": "gemma3_text", "qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2", "llava": "llama"}
_EYES = ("vision_tower.", "visual.", "multi_modal_projector.")


def recipe_of(folder: Path, *models: Path, base: Path | None = None) -> Path:
    """Write a recipe that averages models, the first of them the donor unless there is a base."""
    entries = "".join(f"  - model: {model}\n    parameters: {{weight: 1}}\n" for model in models)
    head = "merge_method: linear\n"
    if base is not None:
        head = f"merge_method: task_arithmetic\nbase_model: {base}\n"
    path = folder / "recipe.yaml"
    path.write_text(f"{head}models:\n{entries}")
    return path


def is_seen(name: str) -> bool:
    return name.startswith(_EYES)


@pytest.mark.parametrize("case", WITH_VISION)
def test_two_models_with_eyes(case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b, out = (tmp_path / name for name in ("a", "b", "out"))
    for seed, folder in enumerate((a, b)):
        save_tiny(case, folder, seed=seed)
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": seed}))
    result = merge(recipe_of(tmp_path, a, b), out=out)
    left, right, merged = (read_values(folder) for folder in (a, b, out))
    assert list(merged) == list(left)
    eyes = [name for name in merged if is_seen(name)]
    assert eyes
    for name, values in merged.items():
        if is_seen(name):
            assert values.tobytes() == left[name].tobytes(), name
            assert result.manifest["tensors"][name]["method"] == "carried"
        else:
            mean = (left[name].astype(np.float64) + right[name]) / 2
            np.testing.assert_allclose(values, mean, rtol=1e-6, atol=1e-7)
    notices = " ".join(result.manifest["notices"])
    assert f"These {len(eyes)} tensors are carried over" in notices
    lost = f"{len(eyes)} tensors that were carried over"
    assert lost in notices
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert sum(message.startswith(lost) for message in warned) == 1
    assert json.loads((out / "preprocessor_config.json").read_text()) == {"size": 0}
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 5, 6, 7]])).logits).all()


def test_equal_eyes_are_no_reason_to_warn(tmp_path: Path) -> None:
    a, b, out = (tmp_path / name for name in ("a", "b", "out"))
    save_tiny("llava", a)
    save_tiny("llava", b, seed=1)
    eyes = {name: row for name, row in load_file(a / "model.safetensors").items() if is_seen(name)}
    save_file(load_file(b / "model.safetensors") | eyes, b / "model.safetensors", {"format": "pt"})
    notices = " ".join(merge(recipe_of(tmp_path, a, b), out=out).manifest["notices"])
    assert "are carried over" in notices
    assert "other values" not in notices


def test_eyes_of_another_type_are_a_warning(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    save_tiny("llava", a)
    shutil.copytree(a, b)
    tensors = load_file(b / "model.safetensors")
    name = "vision_tower.post_layernorm.bias"
    save_file(tensors | {name: tensors[name].half()}, b / "model.safetensors", {"format": "pt"})
    found = [f for f in check(recipe_of(tmp_path, a, b)).findings if f.code == "parts-unlike"]
    assert [(finding.level, f"'{name}'" in finding.message) for finding in found] == [
        ("warning", True)
    ]
    merge(recipe_of(tmp_path, a, b), out=tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")[name].dtype == torch.float32


@pytest.mark.parametrize("case", WITH_VISION)
def test_a_model_of_text_merges_into_one_with_eyes(case: str, tmp_path: Path) -> None:
    seeing, text, out = (tmp_path / name for name in ("seeing", "text", "out"))
    save_tiny(case, seeing)
    blind = save_tiny(_TEXT[case], text, seed=1)
    result = merge(recipe_of(tmp_path, seeing, text), out=out)
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    own = AutoModelForImageTextToText.from_pretrained(seeing, dtype=torch.float32).eval()
    ours, theirs = own.state_dict(), blind.state_dict()
    num_merged = 0
    for name, values in loaded.state_dict().items():
        plain = name.replace("model.language_model.", "model.")
        if plain in theirs and "vision" not in name:
            num_merged += 1
            torch.testing.assert_close(values, (ours[name] + theirs[plain]) / 2)
        else:
            assert torch.equal(values, ours[name]), name
    assert num_merged == len(theirs)
    notices = " ".join(result.manifest["notices"])
    assert "are carried over" in notices
    assert ("is merged under the names of" in notices) == ("qwen" not in case)


def test_a_task_vector_of_text_on_a_base_with_eyes(tmp_path: Path) -> None:
    """base + (text - base) is the text model, behind the base's eyes."""
    seeing, text, out = (tmp_path / name for name in ("seeing", "text", "out"))
    save_tiny("gemma3", seeing)
    save_tiny("gemma3_text", text, seed=1)
    merge(recipe_of(tmp_path, text, base=seeing), out=out)
    merged, expected, own = (read_values(folder) for folder in (out, text, seeing))
    for name, values in merged.items():
        if is_seen(name):
            assert values.tobytes() == own[name].tobytes()
        else:
            plain = expected[name.removeprefix("language_model.")]
            np.testing.assert_allclose(values, plain, rtol=1e-5, atol=1e-6)


def test_eyes_that_would_be_lost_are_a_warning(tmp_path: Path) -> None:
    seeing, text, out = (tmp_path / name for name in ("seeing", "text", "out"))
    save_tiny("gemma3", seeing)
    save_tiny("gemma3_text", text, seed=1)
    recipe = recipe_of(tmp_path, text, seeing)
    found = [finding for finding in check(recipe).findings if finding.code == "parts-left-out"]
    assert [finding.level for finding in found] == ["warning"]
    merge(recipe, out=out)
    AutoModelForCausalLM.from_pretrained(out)
    assert not any(is_seen(name) for name in read_values(out))


def test_another_language_model_is_refused(tmp_path: Path) -> None:
    seeing, text = tmp_path / "seeing", tmp_path / "text"
    save_tiny("llava", seeing)
    save_tiny("mistral", text, sizes={"num_key_value_heads": 4})
    with pytest.raises(IncompatibleError, match=r"'llava' model but .* is a 'mistral' model"):
        merge(recipe_of(tmp_path, seeing, text), out=tmp_path / "out")


def test_a_filter_for_the_eyes_is_dead(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    save_tiny("llava", a)
    shutil.copytree(a, b)
    recipe = recipe_of(tmp_path, a, b)
    text = recipe.read_text().replace(
        "{weight: 1}", "{weight: [{filter: vision_tower, value: 0}, {value: 1}]}", 1
    )
    recipe.write_text(text)
    assert any(finding.code == "dead-filter" for finding in check(recipe).errors)


@pytest.mark.parametrize("case", ["gpt2", "bloom", "falcon 7b"])
def test_two_spellings_of_one_family(case: str, tmp_path: Path) -> None:
    """Published GPT-2 begins with h.0, and what transformers saves with transformer.h.0."""
    a, b, out = (tmp_path / name for name in ("a", "b", "out"))
    save_tiny(case, a)
    save_tiny(case, b, seed=1)
    short = {
        name.removeprefix("transformer."): values
        for name, values in load_file(b / "model.safetensors").items()
    }
    save_file(short, b / "model.safetensors", {"format": "pt"})
    for number, models in enumerate(((a, b), (b, a))):
        result = merge(recipe_of(tmp_path, *models), out=out / str(number))
        assert "is merged under the names of" in " ".join(result.manifest["notices"])
        merged, lead = read_values(out / str(number)), read_values(models[0])
        assert list(merged) == list(lead)
    first, second = read_values(out / "0"), read_values(out / "1")
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name.removeprefix("transformer.")])


def test_vocabularies_of_two_sizes(tmp_path: Path) -> None:
    """A vision-language model has tokens for images, for which the text model has no rows."""
    seeing, text, out = (tmp_path / name for name in ("seeing", "text", "out"))
    save_tiny("gemma3", seeing)
    save_tiny("gemma3_text", text, seed=1, sizes={"vocab_size": 80})
    for folder in (seeing, text):
        letter_tokenizer().save_pretrained(folder)
    recipe = recipe_of(tmp_path, seeing, text)
    assert {finding.code for finding in check(recipe).errors} == {"vocabulary-size"}
    recipe.write_text(recipe.read_text() + "tokenizer: {source: base}\n")
    merge(recipe, out=out)
    rows = {
        name: next(v for k, v in read_values(folder).items() if k.endswith("embed_tokens.weight"))
        for name, folder in (("seeing", seeing), ("text", text), ("out", out))
    }
    assert rows["out"].shape == rows["seeing"].shape
    mean = (rows["seeing"][:77] + rows["text"][:77]) / 2
    np.testing.assert_allclose(rows["out"][:77], mean, rtol=1e-6, atol=1e-7)
    AutoModelForImageTextToText.from_pretrained(out)
