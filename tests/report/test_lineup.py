"""Which models, in what order, against what."""

from __future__ import annotations

from typing import Any

from forge.report.lineup import line_up
from forge.results.records import ModelRecord, digest_of
from tests.report.results_factory import merge_manifest, quantize_manifest


def record(label: str, **known: Any) -> ModelRecord:
    return ModelRecord(
        fingerprint=known.pop("fingerprint", digest_of(label)),
        label=label,
        kind=known.pop("kind", "local"),
        location=known.pop("location", f"models/{label}"),
        **known,
    )


def quantized(label: str, source: str, **known: Any) -> ModelRecord:
    manifest = quantize_manifest(source, method="awq", format_name="awq-gemm")
    return record(label, format="awq-gemm", manifest=manifest, **known)


def labels(*records: ModelRecord, **choice: Any) -> list[str]:
    return [entry.label for entry in line_up(records, **choice).entries]


def baselines(*records: ModelRecord, **choice: Any) -> dict[str, str | None]:
    found = line_up(records, **choice)
    return {model.label: model.baseline for model in found.models()}


def test_variants_stand_behind_their_sources_and_are_compared_with_them() -> None:
    models = [
        quantized("a-awq", "a"),
        record("a"),
        record("m", manifest=merge_manifest("models/a", "hub/x")),
        quantized("m-awq", "m"),
        record("api", kind="api"),
    ]
    assert labels(*models) == ["a", "a-awq", "m", "m-awq", "api"]
    assert baselines(*models) == {
        "a": None, "a-awq": "a", "m": "a", "m-awq": "m", "api": "a",
    }  # fmt: skip


def test_a_named_baseline_is_that_of_all() -> None:
    models = [record("a"), quantized("a-awq", "a"), record("b")]
    assert baselines(*models, baseline="b") == {"b": None, "a": "b", "a-awq": "b"}


def test_the_baseline_is_kept_although_it_was_not_named_among_the_models() -> None:
    models = [record("a"), record("b"), record("c")]
    assert labels(*models, wanted=["c"], baseline="b") == ["b", "c"]


def test_a_conversion_is_compared_with_the_source_of_its_codes() -> None:
    manifest = {
        "kind": "convert",
        "inputs": [{"model": "a-awq", "role": "source"}],
        "origin": {"inputs": [{"model": "a", "role": "source"}]},
    }
    models = [record("a"), quantized("a-awq", "a"), record("a-gemv", manifest=manifest)]
    assert baselines(*models)["a-gemv"] == "a"
    assert baselines(*models[1:])["a-gemv"] == "a-awq"


def test_a_quantized_model_of_unknown_origin_is_noticed() -> None:
    found = line_up([record("a"), record("b-awq", format="awq-gemm")])
    assert found.notices == (
        "'b-awq' is compared with 'a', because what it was quantized from is not recorded or not "
        "measured; --baseline sets another.",
    )


def test_what_lay_at_the_same_place_before_is_left_out() -> None:
    old, new = record("a", fingerprint="1" * 32), record("a", fingerprint="2" * 32)
    found = line_up([old, new])
    assert [entry.record.fingerprint for entry in found.entries] == ["2" * 32]
    assert found.notices == ("Left out: an earlier model that lay where 'a' lies now.",)


def test_two_places_with_one_label_are_told_apart() -> None:
    models = [
        record("a", fingerprint="12" * 16, location="x/a"),
        record("a", fingerprint="34" * 16, location="y/a"),
    ]
    assert labels(*models) == ["a@121212", "a@343434"]


def test_names_that_point_in_a_circle_end() -> None:
    models = [quantized("a", "b"), quantized("b", "a")]
    assert sorted(labels(*models)) == ["a", "b"]
    assert list(baselines(*models).values()).count(None) == 1


def test_a_manifest_of_another_shape_is_no_lineage() -> None:
    odd: list[dict[str, object]] = [
        {"inputs": 3}, {"inputs": ["x"]}, {"inputs": [{"model": None}]}, {"origin": []},
    ]  # fmt: skip
    models = [record("a"), *(record(f"m{n}", manifest=each) for n, each in enumerate(odd))]
    assert set(baselines(*models).values()) == {None, "a"}
