"""Conversions: the way back gives the same bytes, and what cannot be converted is named."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from forge import api
from forge.checkpoints.sink import MANIFEST_FILE, TensorSink
from forge.core.errors import CheckpointError, IncompatibleError, OutputError
from forge.formats.catalog import load_format
from forge.formats.contract import QuantizedWeight, Scheme
from tests.factory import tiny_checkpoint, write_safetensors
from tests.quantize.packed_folder import PROJECTIONS, as_array, packed_folder, raw_tensors

_WORDS = ("gemm", "gemv", "gemv_fast", "compressed-tensors", "gptq")
_LAYER = "model.layers.1.mlp.down_proj"


def _weights(root: Path, layout: str, scheme: Scheme) -> dict[str, QuantizedWeight]:
    """Return all quantized weights of a folder, by module."""
    module = load_format(layout)
    tensors = raw_tensors(root)
    found: dict[str, QuantizedWeight] = {}
    anchor = ".weight_packed" if layout == "compressed-tensors" else ".qweight"
    for name in tensors:
        if not name.endswith(anchor):
            continue
        owner = name.removesuffix(anchor)
        parts = {
            key.rpartition(".")[2]: as_array(row)
            for key, row in tensors.items()
            if key.rpartition(".")[0] == owner
        }
        shape = module.shape_of({key: array.shape for key, array in parts.items()}, scheme)
        found[owner] = module.unpack(parts, shape_OI=shape, scheme=scheme)
    return found


@pytest.mark.parametrize(("start", "there"), list(itertools.permutations(_WORDS, 2)))
def test_there_and_back_is_the_same_file(tmp_path: Path, start: str, there: str) -> None:
    scheme = Scheme(4, 32)
    kept = ("model.layers.0.mlp.up_proj",)
    source = packed_folder(tmp_path / "a", start, scheme=scheme, kept=kept)
    middle, back = tmp_path / "b", tmp_path / "c"
    result = api.convert(str(source), there, middle)
    api.convert(str(middle), start, back)
    assert (back / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    original, between = _weights(source, start, scheme), _weights(middle, there, scheme)
    assert len(original) == 2 * len(PROJECTIONS) - len(kept)
    assert original.keys() == between.keys()
    for name, weight in original.items():
        np.testing.assert_array_equal(weight.codes_OI, between[name].codes_OI)
        np.testing.assert_array_equal(weight.scales_OG, between[name].scales_OG)
        np.testing.assert_array_equal(weight.zeros_OG, between[name].zeros_OG)
    # All that is no part of a quantized layer is there as it was.
    tensors, converted = raw_tensors(source), raw_tensors(middle)
    plain = {name for name in tensors if name.rpartition(".")[0] not in original}
    assert plain == {name for name in converted if name.rpartition(".")[0] not in original}
    assert all(tensors[name] == converted[name] for name in plain)
    assert result.num_tensors == len(converted)


@pytest.mark.parametrize(("dtype", "shard"), [("F32", "5GB"), ("F16", "20KB")])
def test_the_way_back_is_the_same_for_other_types_and_shards(
    tmp_path: Path, dtype: str, shard: str
) -> None:
    packed = packed_folder(tmp_path / "p", "awq-gemv", scheme=Scheme(4, 64), dtype=dtype, tie=True)
    folders = [packed]
    for number, word in enumerate(("gemm", "gemv", "gemm", "gemv")):
        folders.append(tmp_path / str(number))
        api.convert(str(folders[-2]), word, folders[-1], max_shard_size=shard)
    names = sorted(path.name for path in folders[2].glob("model*"))
    assert len(names) > 1 or shard == "5GB"
    for name in names:
        assert (folders[2] / name).read_bytes() == (folders[4] / name).read_bytes()
    assert raw_tensors(folders[2]) == raw_tensors(packed)


def test_a_symmetric_scheme_gets_zero_points_in_awq(tmp_path: Path) -> None:
    scheme = Scheme(4, 32, symmetric=True)
    source = packed_folder(tmp_path / "a", "compressed-tensors", scheme=scheme)
    result = api.convert(str(source), "gemm", tmp_path / "b")
    notices = json.loads((tmp_path / "b" / MANIFEST_FILE).read_text())["notices"]
    assert result.manifest["notices"] == notices
    assert len(notices) == 1
    assert "AWQ has no symmetric scheme" in notices[0]
    api.convert(str(tmp_path / "b"), "compressed-tensors", tmp_path / "c")
    former = _weights(source, "compressed-tensors", scheme)
    for name, weight in _weights(tmp_path / "c", "compressed-tensors", Scheme(4, 32)).items():
        np.testing.assert_array_equal(weight.codes_OI, former[name].codes_OI)
        np.testing.assert_array_equal(weight.zeros_OG, former[name].zeros_OG)
    gptq = api.convert(str(source), "gptq", tmp_path / "d")
    assert gptq.manifest["notices"] == []
    api.convert(str(tmp_path / "d"), "compressed-tensors", tmp_path / "e")
    assert raw_tensors(tmp_path / "e") == raw_tensors(source)


def test_config_names_what_each_reader_must_leave(tmp_path: Path) -> None:
    kept = ("model.layers.0.mlp.up_proj",)
    scheme = Scheme(4, 32)
    source = packed_folder(tmp_path / "a", "awq-gemm", scheme=scheme, kept=kept, tie=True)
    configs = {}
    for word in _WORDS[1:]:
        api.convert(str(source), word, tmp_path / word)
        configs[word] = json.loads((tmp_path / word / "config.json").read_text())
    for config in configs.values():
        stripped = {key: value for key, value in config.items() if key != "quantization_config"}
        former = json.loads((source / "config.json").read_text())
        del former["quantization_config"]
        assert stripped == former
    declared = {word: config["quantization_config"] for word, config in configs.items()}
    assert declared["gemv"]["version"] == "gemv"
    assert declared["gemv"]["modules_to_not_convert"] == list(kept)
    # The head is tied, and its readers look for codes of it nevertheless.
    assert declared["compressed-tensors"]["ignore"] == ["lm_head", *kept]
    assert declared["gptq"]["dynamic"] == {r"-:model\.layers\.0\.mlp\.up_proj": {}}
    api.convert(str(tmp_path / "compressed-tensors"), "gemm", tmp_path / "back")
    assert (tmp_path / "back/config.json").read_bytes() == (source / "config.json").read_bytes()


def test_small_files_come_along_and_the_manifest_says_where_from(tmp_path: Path) -> None:
    source = packed_folder(tmp_path / "private/a", "awq-gemm", scheme=Scheme(4, 32))
    (source / "LICENSE").write_text("free\n")
    (source / "README.md").write_text("---\nlicense: mit\nbase_model: x/y\n---\n\n# Old\n")
    former = {
        "schema": 1, "kind": "quantize", "forge": "0", "recipe": {"method": "rtn"},
        "modules": {_LAYER: {"error": 0.5}}, "inputs": [{"model": "x/y"}], "tensors": {},
        "files": {},
    }  # fmt: skip
    (source / MANIFEST_FILE).write_text(json.dumps(former))
    out = tmp_path / "out"
    result = api.convert(str(source), "gemv", out)
    for name in ("LICENSE", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\nbase_model: x/y\n---\n\n# a, AWQ GEMV\n")
    assert "no current server loads it" in card
    manifest = json.loads((out / MANIFEST_FILE).read_text())
    assert manifest == result.manifest
    assert manifest["kind"] == "convert"
    assert manifest["conversion"] == {"from": "awq-gemm", "to": "awq-gemv"}
    assert manifest["recipe"] == {"method": "rtn"}
    assert manifest["modules"] == former["modules"]
    assert manifest["origin"]["inputs"] == [{"model": "x/y"}]
    assert [notice for notice in manifest["notices"] if "no other program" in notice]
    assert str(tmp_path) not in "".join(
        path.read_text() for path in out.iterdir() if path.suffix in (".json", ".md")
    )
    assert api.verify(out).ok
    api.convert(str(out), "gemm", tmp_path / "back")
    again = json.loads((tmp_path / "back" / MANIFEST_FILE).read_text())
    assert again["origin"] == manifest["origin"]
    assert again["recipe"] == {"method": "rtn"}


def test_a_second_run_resumes_and_a_third_has_nothing_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = packed_folder(tmp_path / "a", "awq-gemm", scheme=Scheme(4, 32))
    expected = tmp_path / "expected"
    api.convert(str(source), "gemv", expected)
    out = tmp_path / "out"
    finish = TensorSink.finish
    count = 0

    def fail_at_tenth(self: TensorSink, name: str, **rest: object) -> None:
        nonlocal count
        count += 1
        if count >= 10:  # those that wait in the pool as well
            raise KeyboardInterrupt
        finish(self, name, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TensorSink, "finish", fail_at_tenth)
    with pytest.raises(KeyboardInterrupt):
        api.convert(str(source), "gemv", out, threads=1)
    assert not out.exists()
    monkeypatch.setattr(TensorSink, "finish", finish)
    result = api.convert(str(source), "gemv", out, threads=2)
    assert result.resumed_tensors == 9
    assert {path.name for path in out.iterdir()} == {path.name for path in expected.iterdir()}
    for path in expected.iterdir():
        assert (out / path.name).read_bytes() == path.read_bytes(), path.name
    again = api.convert(str(source), "gemv", out)
    assert again.resumed_tensors == again.num_tensors
    with pytest.raises(OutputError):
        api.convert(str(source), "gemv_fast", out)
    api.convert(str(source), "compressed-tensors", out, overwrite=True)
    assert (out / "config.json").read_text().count("pack-quantized") == 2


def test_what_cannot_be_converted_is_said(tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = tiny_checkpoint(tmp_path / "plain", hidden=64)
    with pytest.raises(IncompatibleError, match="is not quantized, and a conversion only"):
        api.convert(str(plain), "gemm", out)
    source = packed_folder(tmp_path / "gemm", "awq-gemm", scheme=Scheme(4, 32))
    with pytest.raises(IncompatibleError, match="is in AWQ GEMM already"):
        api.convert(str(source), "gemm", out)
    with pytest.raises(IncompatibleError, match="Did you mean 'compressed-tensors'"):
        api.convert(str(source), "compresed-tensor", out)
    with pytest.raises(IncompatibleError, match="fixes its own codes"):
        api.convert(str(source), "bnb-nf4", out)
    with pytest.raises(IncompatibleError, match="has an adapter"):
        api.convert(f"{source}+{plain}", "gemv", out)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(IncompatibleError, match=r"quantized \(fp8\), but not in a layout"):
        api.convert(str(source), "gemv", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gemm", "plain"]


def test_layers_that_do_not_fit_are_all_named_before_anything_is_written(tmp_path: Path) -> None:
    source = packed_folder(tmp_path / "a", "awq-gemm", scheme=Scheme(4, 16))
    with pytest.raises(IncompatibleError) as caught:
        api.convert(str(source), "gemv", tmp_path / "out")
    lines = str(caught.value).split("\n")
    assert len(lines) == 6
    assert lines[0].startswith("'model.layers.0.")
    assert lines[0].endswith("AWQ GEMV has groups of 32, 64, or a multiple of 128, not of 16.")
    assert lines[-1] == "... and 9 layers more."
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_scale_that_the_target_cannot_hold_names_its_layer(tmp_path: Path) -> None:
    def change(module: str, weight: QuantizedWeight) -> None:
        if module == _LAYER:
            weight.scales_OG[0, 0], weight.zeros_OG[0, 0] = 0, 7

    source = packed_folder(tmp_path / "a", "awq-gemm", scheme=Scheme(4, 32), change=change)
    with pytest.raises(IncompatibleError, match=f"'{_LAYER}' of .*AWQ GEMV fast stores"):
        api.convert(str(source), "gemv_fast", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tensors_that_are_not_what_the_config_says(tmp_path: Path) -> None:
    source = packed_folder(tmp_path / "a", "awq-gemm", scheme=Scheme(4, 32))

    def convert_with(to: str = "compressed-tensors", **changes: object) -> None:
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy)
        config = json.loads((copy / "config.json").read_text())
        config["quantization_config"] |= changes
        (copy / "config.json").write_text(json.dumps(config))
        api.convert(str(copy), to, tmp_path / "out")

    with pytest.raises(CheckpointError, match="is I32"):
        convert_with(group_size=64)
    with pytest.raises(CheckpointError, match="no AWQ GEMM: AWQ GEMM holds 4 bits, not 8"):
        convert_with(bits=8)
    with pytest.raises(CheckpointError, match="is I32"):
        convert_with(version="gemv")
    with pytest.raises(CheckpointError, match="must state bits and group_size"):
        convert_with(group_size=None)
    with pytest.raises(CheckpointError, match="no tensor is called"):
        convert_with(
            "gemm",
            **load_format("compressed-tensors").quantization_config(Scheme(4, 32), []),
        )


def test_parts_that_are_missing_or_unknown(tmp_path: Path) -> None:
    source = packed_folder(tmp_path / "a", "awq-gemm", scheme=Scheme(4, 32))
    tensors = raw_tensors(source)
    name = f"{_LAYER}.qzeros"
    without = {key: row for key, row in tensors.items() if key != name}
    write_safetensors(source / "model.safetensors", without)
    with pytest.raises(CheckpointError, match=f"lacks the tensor '{name}'"):
        api.convert(str(source), "gemv", tmp_path / "out")
    write_safetensors(source / "model.safetensors", tensors | {f"{_LAYER}.g_idx": tensors[name]})
    with pytest.raises(CheckpointError, match=r"g_idx' of .* is no part that forge knows"):
        api.convert(str(source), "gemv", tmp_path / "out")
    bias = ("BF16", (64,), bytes(128))
    write_safetensors(source / "model.safetensors", tensors | {f"{_LAYER}.bias": bias})
    api.convert(str(source), "gemv", tmp_path / "out")
    assert raw_tensors(tmp_path / "out")[f"{_LAYER}.bias"] == bias
