"""``forge merge``, ``check`` and ``quantize`` with GGUF models, as users run them."""

import json
import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from forge import api
from forge.checkpoints.checkpoint import open_checkpoint
from forge.cli.app import run
from forge.recipes.reference import ModelReference
from tests.architectures.tiny_models import save_tiny
from tests.checkpoints.gguf.models import ARCHITECTURES, as_values, tiny_gguf
from tests.checkpoints.gguf.test_tokenizers import _as_metadata, _original
from tests.factory import bf16_bits, bf16_values, read_values, write_safetensors

Capture = pytest.CaptureFixture[str]
LINEAR = """\
merge_method: linear
models:
  - {model: ./med/llama-grouped.gguf, parameters: {weight: 0.5}}
  - {model: ./base, parameters: {weight: 0.5}}
dtype: bfloat16
"""
TASK = """\
merge_method: task_arithmetic
base_model: ./base
models:
  - {model: ./med, parameters: {weight: 0.75}}
dtype: float32
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in safetensors and bfloat16, and a fine-tune as GGUF in Q8_0, with its tokenizer."""
    place = tmp_path_factory.mktemp("models")
    tokenizer = _original("llama-bpe", added_first=False)
    tokens, metadata = _as_metadata(tokenizer, "llama-bpe")
    base = save_tiny("llama grouped", place / "base", seed=1).to(torch.bfloat16)
    base.resize_token_embeddings(len(tokens))
    base.save_pretrained(place / "base")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(
        place / "base"
    )
    metadata |= {
        "tokenizer.ggml.tokens": tokens, "tokenizer.chat_template": "{{ messages[0].content }}",
    }  # fmt: skip
    extra = {key.replace(".", "__"): value for key, value in metadata.items()}
    tiny = tiny_gguf("llama grouped", place / "tuned", kind="Q8_0", rows=len(tokens), **extra)
    tiny.folder.rename(place / "med")
    return place


@pytest.fixture
def place(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("base", "med"):
        (tmp_path / name).symlink_to(models / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def _decoded(file: Path) -> dict[str, np.ndarray]:
    """Decode a llama's GGUF with gguf alone, in float64."""
    reader = gguf.GGUFReader(file)
    heads = {key: int(reader.fields[f"llama.attention.{key}"].contents())
             for key in ("head_count", "head_count_kv")}  # fmt: skip
    values = {}
    for tensor in reader.tensors:
        array = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        for theirs, key in (("attn_q.", "head_count"), ("attn_k.", "head_count_kv")):
            if theirs in tensor.name:
                shape = array.shape
                array = array.reshape(heads[key], -1, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        values[tensor.name] = array
    return values


_SOME = {
    "blk.0.attn_q.weight": "model.layers.0.self_attn.q_proj.weight",
    "blk.1.attn_k.weight": "model.layers.1.self_attn.k_proj.weight",
    "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    "blk.0.attn_norm.weight": "model.layers.0.input_layernorm.weight",
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
}


def test_a_merge_with_a_bfloat16_parent(place: Path) -> None:
    (place / "linear.yaml").write_text(LINEAR)
    assert run(["check", "linear.yaml"]) == 0
    assert run(["merge", "linear.yaml", "--out", "out"]) == 0
    ours, base = read_values(place / "out"), read_values(place / "base")
    tuned = _decoded(place / "med" / "llama-grouped.gguf")
    assert set(ours) == set(base)
    for theirs, name in _SOME.items():
        # Float32 sums of two products, then one rounding to bfloat16.
        exact = (0.5 * tuned[theirs] + 0.5 * base[name].astype(np.float64)).astype(np.float32)
        np.testing.assert_array_equal(ours[name], bf16_values(bf16_bits(exact)), err_msg=name)
    manifest = json.loads((place / "out" / "forge_manifest.json").read_bytes())
    assert any("is a GGUF, not the model in full precision" in n for n in manifest["notices"])
    (file,) = manifest["inputs"][0]["files"]
    assert file["name"] == "llama-grouped.gguf"
    assert file["bytes"] == (place / "med" / "llama-grouped.gguf").stat().st_size
    assert run(["verify", "out"]) == 0
    config = json.loads((place / "out" / "config.json").read_bytes())
    assert config["torch_dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(place / "out")
    tokenizer = AutoTokenizer.from_pretrained(place / "out")
    original = PreTrainedTokenizerFast.from_pretrained(place / "base")
    text = "The patient didn't get 500 mg\n\n of aspirin<|end|>"
    ids = tokenizer(text)["input_ids"]
    assert ids == [tokenizer.bos_token_id, *original(text)["input_ids"]]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False) == "x"
    assert torch.isfinite(model(torch.tensor([ids])).logits).all()
    # The same recipe again finds nothing to do, which it tells by the hashes of its inputs.
    before = (place / "out" / "model.safetensors").stat().st_mtime_ns
    assert run(["merge", "linear.yaml", "--out", "out"]) == 0
    assert (place / "out" / "model.safetensors").stat().st_mtime_ns == before


def test_a_check_counts_what_is_decoded(place: Path) -> None:
    needs = []
    for model in ("med/llama-grouped.gguf", "base"):
        (place / "one.yaml").write_text(
            f"merge_method: linear\nmodels: [{{model: ./{model}, parameters: {{weight: 1}}}}]\n"
        )
        report = api.check(place / "one.yaml")
        assert not report.errors
        needs.append(report.memory_bytes)
    source = open_checkpoint(ModelReference("med")).source
    largest = max(source.info(name).nbytes for name in source.names())
    assert needs[0] - needs[1] == len(os.sched_getaffinity(0)) * largest


def test_a_task_vector_and_a_lora(place: Path) -> None:
    (place / "task.yaml").write_text(TASK)
    assert run(["merge", "task.yaml", "--out", "task"]) == 0
    ours, base = read_values(place / "task"), read_values(place / "base")
    tuned = _decoded(place / "med" / "llama-grouped.gguf")
    for theirs, name in _SOME.items():
        start = base[name].astype(np.float64)
        exact = start + 0.75 * (tuned[theirs] - start)
        np.testing.assert_allclose(ours[name], exact, rtol=3e-7, atol=1e-7, err_msg=name)

    name = "model.layers.0.self_attn.q_proj.weight"
    generator = np.random.default_rng(3)
    factors = {
        f"base_model.model.{name[:-7]}.lora_{x}.weight": generator.standard_normal(shape)
        for x, shape in (("A", (2, 64)), ("B", (64, 2)))
    }
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})
    )
    write_safetensors(
        place / "adapter" / "adapter_model.safetensors",
        {key: ("F64", values.shape, values.tobytes()) for key, values in factors.items()},
    )
    reference = ModelReference.parse(f"{place}/med/llama-grouped.gguf+{place}/adapter")
    source = open_checkpoint(reference).source
    right, left = factors.values()
    info = source.info(name)
    np.testing.assert_allclose(
        as_values(source.read(name), info.dtype, info.shape),
        tuned["blk.0.attn_q.weight"] + 2 * left @ right, rtol=1e-6, atol=1e-7,
    )  # fmt: skip


def test_quantizing_is_that_of_the_decoded_model(place: Path) -> None:
    source = open_checkpoint(ModelReference("med")).source
    decoded = place / "decoded"
    decoded.mkdir()
    rows = {}
    for name in source.names():
        info = source.info(name)
        rows[name] = (info.dtype, info.shape, bytes(source.read(name)))
    write_safetensors(decoded / "model.safetensors", rows)
    root = open_checkpoint(ModelReference("med")).root
    for file in root.iterdir():
        (decoded / file.name).write_bytes(file.read_bytes())
    digests = []
    for model in ("med", "decoded"):
        out = f"q-{model}"
        code = run(
            ["quantize", model, "--method", "rtn", "--version", "gemm", "--group-size", "32",
             "--out", out, "--verify", "quick"]
        )  # fmt: skip
        assert code == 0
        manifest = json.loads((place / out / "forge_manifest.json").read_bytes())
        digests.append(manifest["content_digest"])
    assert digests[0] == digests[1]
    assert any("is a GGUF" in text for text in json.loads(
        (place / "q-med" / "forge_manifest.json").read_bytes())["notices"])  # fmt: skip


@pytest.mark.slow
def test_a_quantized_gguf_predicts_what_it_did(place: Path, capsys: Capture) -> None:
    command = ["quantize", "med", "--method", "rtn", "--version", "gemm", "--group-size", "32"]
    assert run([*command, "--out", "out"]) == 0
    said = capsys.readouterr().out
    assert "passed: loads and generates" in said
    assert "passed: predictions" in said


@pytest.mark.parametrize("case", [c for c in ARCHITECTURES if c not in ("llama grouped",)])
def test_every_family_merges_with_its_original(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_gguf(case, tmp_path, kind="Q8_0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.yaml").write_text(LINEAR.replace("med/llama-grouped.gguf", "gguf").replace(
        "./base", "./hf"))  # fmt: skip
    assert run(["merge", "m.yaml", "--out", "out"]) == 0
    ours, theirs = read_values(tmp_path / "out"), read_values(tmp_path / "hf")
    for name, values in ours.items():
        # Half of the rounding of Q8_0, and that of bfloat16.
        room = 0.5 * np.abs(theirs[name]).max() / 127 + np.abs(theirs[name]) * 2.0**-8 + 2.0**-9
        assert np.all(np.abs(values - theirs[name]) <= room), name
    assert set(ours) == set(theirs)


WRONG = {
    "truncated": lambda raw: raw[:-1],
    "cut in its header": lambda raw: raw[:200],
    "another magic": lambda raw: b"GGML" + raw[4:],
    "too many tensors": lambda raw: raw[:8] + (2**40).to_bytes(8, "little") + raw[16:],
    "big-endian": lambda raw: raw[:4] + (3).to_bytes(4, "big") + raw[8:],
    "a tensor's name twice": lambda raw: raw.replace(
        b"blk.0.attn_v.weight", b"blk.0.attn_k.weight"
    ),
    "an unknown tensor": lambda raw: raw.replace(b"blk.0.attn_v.weight", b"blk.0.attn_x.weight"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_ends_in_one_message(case: str, place: Path, capsys: Capture) -> None:
    raw = (place / "med" / "llama-grouped.gguf").read_bytes()
    (place / "bad").mkdir()
    (place / "bad" / "m.gguf").write_bytes(WRONG[case](raw))
    (place / "wrong.yaml").write_text(LINEAR.replace("med/llama-grouped", "bad/m"))
    for command in (
        ["merge", "wrong.yaml", "--out", "out"], ["check", "wrong.yaml"],
        ["quantize", "bad", "--method", "rtn", "--out", "out"],
    ):  # fmt: skip
        assert run(command) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        message = captured.err + captured.out
        assert "bad/m.gguf" in message.replace("\n", "")
        assert not (place / "out").exists()


@pytest.mark.parametrize("verb", ["profile", "convert"])
def test_what_needs_stored_weights_says_so(verb: str, place: Path, capsys: Capture) -> None:
    more = ["--to", "gptq", "--out", "x"] if verb == "convert" else []
    assert run([verb, "med", *more]) != 0
    captured = capsys.readouterr()
    assert "neither runs nor" in " ".join((captured.out + captured.err).split())
