"""What a merge writes is what its users need: it loads, generates, verifies, and stays small."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.command import finish, forge, start, tree
from tests.end_to_end.model_folders import RECIPE, write_small, write_sparse
from tests.factory import read_values, tiny_checkpoint, tiny_shapes

LINEAR = """\
merge_method: linear
models:
  - model: ./med
    parameters: {weight: 0.75}
  - model: ./chat
    parameters: {weight: 0.25}
dtype: float32
"""
TASK = """\
merge_method: task_arithmetic
base_model: ./base
models:
  - model: ./med
    parameters: {weight: 0.6}
  - model: ./chat
    parameters: {weight: 0.3}
dtype: bfloat16
"""
SLERP = """\
merge_method: slerp
base_model: ./base
models:
  - model: ./base
  - model: ./med
parameters:
  t:
    - filter: self_attn
      value: [0.1, 0.9]
    - value: 0.4
dtype: bfloat16
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a folder with small models and a recipe."""
    write_small(tmp_path)
    return tmp_path


def _merge(place: Path, *more: str, recipe: str = RECIPE, out: str = "out") -> Path:
    (place / "recipe.yaml").write_text(recipe)
    outcome = forge("merge", "recipe.yaml", "--out", out, *more, cwd=place)
    assert outcome.code == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    return place / out


@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_it_and_generates(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    out = _merge(place, recipe=LINEAR)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    med, chat = read_values(place / "med"), read_values(place / "chat")
    state = model.state_dict()
    assert state.keys() == med.keys()
    for name, value in state.items():
        expected = 0.75 * med[name].astype(np.float64) + 0.25 * chat[name].astype(np.float64)
        assert np.array_equal(value.numpy(), expected.astype(np.float32)), name
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "aspirin treats"}], tokenize=False
    )
    assert prompt == "<s>user aspirin treats</s>"
    tokens = tokenizer("aspirin treats pain", return_tensors="pt")
    assert tokens.input_ids[0, 0] == model.config.bos_token_id == 1
    generated = model.generate(input_ids=tokens.input_ids, max_new_tokens=4, min_new_tokens=4)
    assert generated.shape == (1, tokens.input_ids.shape[1] + 4)
    assert model.generation_config.eos_token_id == 2
    assert model.generation_config.pad_token_id == 3


def test_an_adapter_and_its_base_in_one_recipe(place: Path) -> None:
    from safetensors.numpy import save_file

    adapter = place / "adapter"
    adapter.mkdir()
    name = "model.layers.0.self_attn.q_proj"
    down = np.full((2, 16), 0.5, np.float32)
    up = np.full((16, 2), 0.25, np.float32)
    prefix = f"base_model.model.{name}"
    save_file(
        {f"{prefix}.lora_A.weight": down, f"{prefix}.lora_B.weight": up},
        adapter / "adapter_model.safetensors",
    )
    (adapter / "adapter_config.json").write_text(
        json.dumps(
            {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
             "bias": "none", "base_model_name_or_path": "./base"}
        )
    )  # fmt: skip
    recipe = TASK.replace("./med", "./base+./adapter").replace("weight: 0.6", "weight: 1.0")
    out = _merge(place, recipe=recipe.replace("weight: 0.3", "weight: 0.0"))
    base, merged = read_values(place / "base"), read_values(out)
    for tensor, values in base.items():
        expected = values + 2.0 * (up @ down) if tensor == f"{name}.weight" else values
        assert np.allclose(merged[tensor], expected, rtol=2**-8, atol=0), tensor


def test_the_small_files_are_those_of_the_base(place: Path) -> None:
    for name, template in (("base", "BASE {{ messages }}"), ("med", "MED")):
        tiny_checkpoint(
            place / name, tune=None if name == "base" else 1, chat_template=template,
            config_overrides={"rope_theta": 5e5, "torch_dtype": "float32", "dtype": None,
                              "_name_or_path": f"/home/{name}"},
        )  # fmt: skip
    (place / "base" / "generation_config.json").write_text('{"eos_token_id": [2, 3]}\n')
    out = _merge(place)
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16"
    assert "dtype" not in config
    assert config["rope_theta"] == 5e5
    assert config["num_hidden_layers"] == 2
    assert "_name_or_path" not in config
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 3]
    for name in ("tokenizer.json", "special_tokens_map.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (place / "base" / name).read_bytes()
    assert "/home/" not in "".join(path.read_text() for path in out.glob("*.json"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_holds(place: Path, umask: int, mode: int) -> None:
    outcome = forge(
        "merge", "recipe.yaml", "--out", "out", cwd=place, before=lambda: os.umask(umask) and None
    )
    assert outcome.code == 0, outcome.stderr
    files = [path for path in (place / "out").rglob("*") if path.is_file()]
    assert len(files) >= 6
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


def test_nothing_is_left_of_an_output_that_is_replaced(place: Path) -> None:
    out = _merge(place, "--max-shard-size", "2KB")
    assert len(list(out.glob("*.safetensors"))) > 5
    (out / "notes.txt").write_text("of the user, in a folder of forge")
    _merge(place, "--overwrite")
    assert [path.name for path in out.glob("*.safetensors*")] == ["model.safetensors"]
    fresh = _merge(place, out="fresh")
    assert {path.name for path in out.iterdir()} == {path.name for path in fresh.iterdir()}
    _merge(place, "--overwrite", "--max-shard-size", "4KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = {path.name for path in out.glob("*.safetensors")}
    assert files == set(index["weight_map"].values())
    assert "model.safetensors" not in files
    values = read_values(out)
    assert values.keys() == read_values(fresh).keys()
    assert all(np.array_equal(values[name], value) for name, value in read_values(fresh).items())


def test_the_same_command_again_does_nothing(place: Path) -> None:
    out = _merge(place)
    before = tree(place)
    inode = (out / "model.safetensors").stat().st_ino
    outcome = forge("merge", "recipe.yaml", "--out", "out", cwd=place)
    assert outcome.code == 0
    assert "already holds exactly this merge" in outcome.stderr
    assert tree(place) == before
    assert (out / "model.safetensors").stat().st_ino == inode


def test_the_same_command_again_does_not_trust_a_damaged_output(place: Path) -> None:
    out = _merge(place)
    (out / "model.safetensors").unlink()
    outcome = forge("merge", "recipe.yaml", "--out", "out", cwd=place)
    assert outcome.code == 2
    assert "exists and is not empty" in outcome.error


def test_changed_inputs_are_another_merge(place: Path) -> None:
    _merge(place)
    tiny_checkpoint(place / "med", tune=9)
    before = tree(place)
    outcome = forge("merge", "recipe.yaml", "--out", "out", cwd=place)
    assert outcome.code == 2
    assert "--overwrite" in outcome.error
    assert tree(place) == before


def test_folders_that_change_their_names_are_changed_inputs(place: Path) -> None:
    recipe = RECIPE.replace("weight: 0.5", "weight: 0.9", 1)
    _merge(place, recipe=recipe)
    (place / "med").rename(place / "aside")
    (place / "chat").rename(place / "med")
    (place / "aside").rename(place / "chat")
    outcome = forge("merge", "recipe.yaml", "--out", "out", cwd=place)
    assert outcome.code == 2, outcome
    assert "--overwrite" in outcome.error


def test_the_manifest_verifies_and_sees_one_changed_bit(place: Path) -> None:
    out = _merge(place)
    assert forge("verify", out, cwd=place).code == 0
    path = out / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    outcome = forge("verify", out, cwd=place)
    assert outcome.code == 1, outcome
    assert "model.safetensors" in outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr
    path.write_bytes(whole)
    assert forge("verify", out, cwd=place).code == 0


@pytest.mark.parametrize(
    "recipe", [LINEAR.replace("float32", "bfloat16"), TASK, SLERP], ids=["linear", "task", "slerp"]
)
def test_mergekit_writes_the_same_within_rounding(place: Path, recipe: str) -> None:
    pytest.importorskip("mergekit")
    ours = read_values(_merge(place, recipe=recipe))
    # In float32, because mergekit works in the recipe's dtype, and loses digits in bfloat16.
    exact = recipe.replace("bfloat16", "float32\nout_dtype: bfloat16")
    theirs_at = _merge(place, "--engine", "mergekit", recipe=exact, out="theirs")
    theirs = read_values(theirs_at)
    assert ours.keys() == theirs.keys()
    differing = total = 0
    for name, mine in ours.items():
        assert np.allclose(mine, theirs[name], rtol=2**-7, atol=1e-8), name
        differing += int(np.count_nonzero(mine != theirs[name]))
        total += mine.size
    assert differing <= 0.001 * total
    manifest = json.loads((theirs_at / "forge_manifest.json").read_text())
    assert manifest["engine"]["name"] == "mergekit"
    assert forge("verify", theirs_at, cwd=place).code == 0


def _write_like_mistral(root: Path, *, layers: int, inner: int = 14336, tie: bool = False) -> None:
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000,
        "tie_word_embeddings": tie, "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5,
    }  # fmt: skip
    shapes = tiny_shapes(config)
    for name in ("base", "med", "chat"):
        write_sparse(root / name, shapes, shard_bytes=5 * 10**9)
        (root / name / "config.json").write_text(json.dumps(config))
    (root / "recipe.yaml").write_text(RECIPE)


def test_a_7b_recipe_is_planned_in_no_time(tmp_path: Path) -> None:
    _write_like_mistral(tmp_path, layers=32)
    # Twice, because the first may have to read the interpreter from a cold disk.
    seconds = []
    for _ in range(2):
        began = os.times().children_user
        outcome = forge("merge", "recipe.yaml", "--dry-run", "--json", cwd=tmp_path)
        seconds.append(os.times().children_user - began)
    assert outcome.code == 0, outcome.stderr
    plan = json.loads(outcome.stdout)
    assert plan["num_parameters"] == 7_241_732_096
    assert plan["num_tensors"] == 291
    # CPU time, because wall time is that of everything else on the machine.
    assert min(seconds) < 2
    assert not (tmp_path / "merges").exists()


def _peak_anonymous_bytes(process: subprocess.Popen[str]) -> int:
    """Follow a process to its end; return its largest anonymous memory."""
    peak = 0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            break
        sizes = [int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:")]
        peak = max([peak, *sizes])
        time.sleep(0.002)
    return peak


@pytest.mark.parametrize("method", ["dare_ties", "ties"])
def test_memory_does_not_grow_with_the_tensors(tmp_path: Path, method: str) -> None:
    """A model with the embedding of a 7B model, which has 262 MB in each of three inputs."""
    _write_like_mistral(tmp_path, layers=1, inner=1024, tie=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("dare_ties", method))
    process = start(["merge", "recipe.yaml", "--out", "out", "--quiet"], cwd=tmp_path)
    peak = _peak_anonymous_bytes(process)
    outcome = finish(process)
    assert outcome.code == 0, outcome.stderr
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 350_000_000
    shutil.rmtree(tmp_path / "out")
    assert 10_000_000 < peak < 250_000_000
