"""Models are found in folders and on a real (local) HTTP server, through the real client."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forge.checkpoints.hub import resolve
from forge.checkpoints.source import open_safetensors
from forge.core.errors import CheckpointError
from forge.recipes.reference import ModelReference
from tests.checkpoints.hub_server import COMMIT, Hub, serve_hub
from tests.factory import header_bytes, tiny_checkpoint, to_bytes, write_safetensors

Opener = Callable[..., dict[str, object]]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve_hub() as server:
        yield server


@pytest.fixture(autouse=True)
def _forget(hub: Hub) -> None:
    hub.models.clear()
    hub.gated.clear()
    hub.requests.clear()
    hub.honours_ranges = True
    hub.bytes_sent = 0


@pytest.fixture
def open_in_process(hub: Hub, tmp_path: Path) -> Opener:
    def call(*arguments: str, **environment: str) -> dict[str, object]:
        settings = {
            **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1,localhost", **environment,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "tests.checkpoints.hub_process", *arguments],
            env=settings, capture_output=True, text=True, timeout=60, check=False,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        row: dict[str, object] = json.loads(done.stdout)
        return row

    return call


def _published(hub: Hub, root: Path, **keywords: int) -> Path:
    model = tiny_checkpoint(root, **keywords)  # type: ignore[arg-type]
    # What a repository also holds, and what must never be fetched.
    for extra in ("pytorch_model.bin", "consolidated.safetensors", "tf_model.h5", "README.md"):
        (model / extra).write_bytes(b"do not fetch")
    (model / "onnx").mkdir()
    (model / "onnx" / "model.safetensors").write_bytes(b"do not fetch")
    hub.models["org/model"] = model
    return model


def _fetched(hub: Hub) -> set[str]:
    return {path.partition("/resolve/")[2].partition("/")[2] for _, path, _ in hub.requests} - {""}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_model_is_downloaded_once_and_only_what_is_read(
    hub: Hub, tmp_path: Path, open_in_process: Opener, shards: int
) -> None:
    model = _published(hub, tmp_path / "served", shards=shards)
    row = open_in_process("org/model")
    assert row.get("error") is None
    assert row["revision"] == COMMIT
    local = open_safetensors(model, label="m")
    assert row["digests"] == {
        name: hashlib.sha256(local.read(name)).hexdigest() for name in local.names()
    }
    weights = {path.name for path in local.files()}
    index = {"model.safetensors.index.json"} if shards > 1 else set()
    assert _fetched(hub) == weights | index | {
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json",
    }  # fmt: skip
    hub.requests.clear()
    assert open_in_process("org/model", HF_HUB_OFFLINE="1") == row
    assert hub.requests == []


def test_an_adapter_of_the_hub_on_a_local_base(
    hub: Hub, tmp_path: Path, open_in_process: Opener
) -> None:
    base = tiny_checkpoint(tmp_path / "base")
    served = tmp_path / "adapter"
    served.mkdir()
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1}
    (served / "adapter_config.json").write_text(json.dumps(settings))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
    ones = to_bytes([1.0] * 16, "F32")
    write_safetensors(
        served / "adapter_model.safetensors",
        {name.format("A"): ("F32", (1, 16), ones), name.format("B"): ("F32", (16, 1), ones)},
    )
    hub.models["org/adapter"] = served
    row = open_in_process(f"{base}+org/adapter@main")
    assert (row["revision"], row["lora_revision"]) == (None, COMMIT)
    plain = open_in_process(str(base))
    digests, before = row["digests"], plain["digests"]
    assert isinstance(digests, dict)
    assert isinstance(before, dict)
    assert [n for n in digests if digests[n] != before[n]] == [
        "model.layers.0.self_attn.q_proj.weight"
    ]
    assert _fetched(hub) == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_check_reads_headers_alone(
    hub: Hub, tmp_path: Path, open_in_process: Opener, shards: int
) -> None:
    model = _published(hub, tmp_path / "served", shards=shards, hidden=256, vocab=4096)
    row = open_in_process("org/model@main", "headers")
    local = open_safetensors(model, label="m")
    assert row["infos"] == {
        name: [local.info(name).dtype, list(local.info(name).shape)] for name in local.names()
    }
    assert row["kind"] == "HeaderOnlySource"
    assert row["files"] == []
    assert "has not been downloaded" in str(row["read_error"])
    weight_bytes = sum(path.stat().st_size for path in local.files())
    assert hub.bytes_sent < weight_bytes / 2
    assert all(range_ for _, path, range_ in hub.requests if path.startswith("/storage/"))


def test_a_check_uses_weights_that_are_in_the_cache(
    hub: Hub, tmp_path: Path, open_in_process: Opener
) -> None:
    _published(hub, tmp_path / "served")
    open_in_process("org/model")
    row = open_in_process("org/model", "headers")
    assert row["kind"] == "SafetensorsSource"


def test_a_header_longer_than_the_first_request(
    hub: Hub, tmp_path: Path, open_in_process: Opener
) -> None:
    model = _published(hub, tmp_path / "served")
    table = {
        f"tensor.{'x' * 60}.{number}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
        for number in range(4000)
    }
    (model / "model.safetensors").write_bytes(header_bytes(table))
    row = open_in_process("org/model", "headers")
    infos = row["infos"]
    assert isinstance(infos, dict)
    assert len(infos) == 4000


def test_a_hostile_header_of_the_hub_is_refused(
    hub: Hub, tmp_path: Path, open_in_process: Opener
) -> None:
    model = _published(hub, tmp_path / "served")
    (model / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")
    assert "claims a header" in str(open_in_process("org/model", "headers")["error"])


def test_a_server_without_ranges_is_not_made_to_send_everything(
    hub: Hub, tmp_path: Path, open_in_process: Opener
) -> None:
    _published(hub, tmp_path / "served")
    hub.honours_ranges = False
    assert "range requests" in str(open_in_process("org/model", "headers")["error"])


def test_an_index_of_the_hub_cannot_point_outside(
    hub: Hub, tmp_path: Path, open_in_process: Opener
) -> None:
    model = _published(hub, tmp_path / "served")
    index = {"weight_map": {"a": "../../../../etc/x.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    for mode in ([], ["headers"]):
        error = str(open_in_process("org/model", *mode)["error"])
        assert "not a safetensors file of its folder" in error


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("org/absent", "neither a local folder nor a repository that you can read"),
        ("org/model@no-such-branch", "no such revision"),
        ("org/gated", "is gated. Accept its terms"),
        ("org/pickled", "reads safetensors only"),
        ("a b/c", "nor a possible repository id"),
    ],
)
@pytest.mark.parametrize("mode", [[], ["headers"]], ids=["weights", "headers"])
def test_what_cannot_be_found_is_explained(
    hub: Hub, tmp_path: Path, open_in_process: Opener, reference: str, message: str, mode: list[str]
) -> None:
    hub.models["org/gated"] = _published(hub, tmp_path / "served")
    hub.gated.add("org/gated")
    hub.models["org/pickled"] = tiny_checkpoint(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "pickled" / "model.bin")
    error = str(open_in_process(reference, *mode)["error"])
    assert message in error
    assert "Traceback" not in error


def test_offline_and_unreachable_are_told_apart(open_in_process: Opener) -> None:
    error = str(open_in_process("org/model", HF_HUB_OFFLINE="1")["error"])
    assert "HF_HUB_OFFLINE forbids a download" in error
    error = str(open_in_process("org/model", HF_ENDPOINT="http://127.0.0.1:9")["error"])
    assert "http://127.0.0.1:9 did not deliver it" in error
    assert "\n" not in error


# -- local folders -------------------------------------------------------------------------


def test_a_local_folder_needs_no_client(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "m")
    code = (
        "import sys\n"
        "from forge.checkpoints.checkpoint import open_checkpoint\n"
        "from forge.recipes.reference import ModelReference\n"
        f"c = open_checkpoint(ModelReference({str(tmp_path / 'm')!r}))\n"
        "assert c.source.names() and c.revision is None\n"
        "assert not {'huggingface_hub', 'torch', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_local_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Remove the '@v1'"):
        resolve(ModelReference(str(tmp_path), "v1"), weights=True)


def test_a_path_relative_to_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m").mkdir()
    assert resolve(ModelReference("~/m"), weights=True).root == tmp_path / "m"


def test_a_missing_folder_suggests_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "biomistral-7b").mkdir(parents=True)
    (tmp_path / "models" / "file").touch()
    monkeypatch.chdir(tmp_path)

    def message(path: str) -> str:
        with pytest.raises(CheckpointError) as caught:
            resolve(ModelReference(path), weights=True)
        return str(caught.value)

    assert message("./models/biomistral-7B") == (
        "There is no folder './models/biomistral-7B'. Did you mean 'biomistral-7b'?"
    )
    assert message("./models/xyz") == "There is no folder './models/xyz'."
    assert "nor 'a/b'" in message("a/b/c")
    assert (
        message("models/file")
        == "'models/file' is a file. Name the model's folder, or a GGUF file."
    )
