"""Opening a model: its configuration is read, limited and trusted only as data."""

from pathlib import Path

import pytest

from forge.checkpoints.checkpoint import open_checkpoint
from forge.checkpoints.companions import TOKENIZER_FILES, read_companions, read_tokenizer_files
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference
from tests.factory import tiny_checkpoint


def test_a_local_model(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path / "m", shards=2)
    checkpoint = open_checkpoint(ModelReference.parse(str(root)))
    assert checkpoint.root == root
    assert checkpoint.revision is None
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.source.label == str(root)
    assert checkpoint.notices == ()
    assert checkpoint.local_paths == (str(root),)
    checkpoint.source.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"), (b"[1]", "must hold a JSON object"),
        (b'{"a": ', "not valid JSON"), (b"\xff\xfe", "not valid JSON"),
        (b'{"a": "' + b"x" * (5 << 20) + b'"}', "larger than"),
        (b"[" * 200_000, "not valid JSON"), (None, "has no config.json"),
    ],
)  # fmt: skip
def test_a_broken_config_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    root = tiny_checkpoint(tmp_path / "m")
    (root / "config.json").unlink()
    if content is not None:
        (root / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(ModelReference(str(root)))


@pytest.mark.parametrize("reference", ["{}", "{}+org/other"])
def test_an_adapter_alone_is_no_model(tmp_path: Path, reference: str) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(ModelReference.parse(reference.format(adapter)))
    assert str(refusal.value) == (
        f"'{adapter}' is an adapter, not a model. Write it behind its base model: 'base+{adapter}'."
    )


def test_a_config_cannot_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path / "m")
    (root / "config.json").rename(tmp_path / "elsewhere.json")
    (root / "config.json").symlink_to("../elsewhere.json")
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        open_checkpoint(ModelReference(str(root)))


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path / "m")
    (root / "config.json").unlink()
    (root / "config.json").symlink_to("config.json")
    with pytest.raises(CheckpointError, match="cannot be resolved"):
        open_checkpoint(ModelReference(str(root)))


def test_tokenizer_files_with_named_templates(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path / "m")
    (root / "chat_templates").mkdir()
    (root / "chat_templates" / "tool.jinja").write_text("tool")
    (root / "chat_templates" / "notes.txt").write_text("no template")
    files = read_tokenizer_files(root)
    assert set(files) == {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "chat_templates/tool.jinja",
    }  # fmt: skip
    assert files["tokenizer.json"] == (root / "tokenizer.json").read_bytes()
    assert read_companions(root, ["absent.json"]) == {}
    assert set(read_companions(root, TOKENIZER_FILES)) == set(files) - {"chat_templates/tool.jinja"}


def test_a_template_cannot_be_a_link_out_of_the_folder(tmp_path: Path) -> None:
    root = tiny_checkpoint(tmp_path / "m")
    (root / "chat_templates").mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "chat_templates" / "x.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        read_tokenizer_files(root)
