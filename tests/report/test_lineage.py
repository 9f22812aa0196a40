"""Where models come from, and what merges and quantizations measured."""

from __future__ import annotations

import pytest

from forge.recipes.yaml_reader import parse_yaml
from forge.report.comparison import Comparison
from forge.report.comparison.origin import Lineage
from forge.report.lineage import lineages, public_name
from forge.report.lineup import line_up
from forge.report.merge_diagnostics import merge_diagnostics
from forge.report.quantization_errors import quantization_errors
from forge.results.records import ModelRecord
from tests.report import results_factory as world
from tests.report.results_factory import merge_manifest, quantize_manifest


def lineage_of(found: Comparison, label: str) -> Lineage:
    return next(entry for entry in found.lineage if entry.model == label)


def test_a_quantization_names_its_source_files_and_commands(comparison: Comparison) -> None:
    found = lineage_of(comparison, world.SAME)
    (parent,) = found.parents
    assert (parent.label, parent.role, parent.licence) == (world.SOURCE, "source", "apache-2.0")
    assert parent.files[0].digest == "xxh3_128_tree:" + "ab" * 16
    assert found.commands[0] == (
        "forge quantize models/source_7b --config recipes/source_7b-awq.yaml "
        "--out models/source_7b-awq"
    )
    assert found.content_digest == "cd" * 32
    assert dict(found.versions) == {"forge": "0.1.0", "numpy": "2.4.6", "python": "3.11.7"}


def test_the_recipe_is_yaml_of_the_manifest(comparison: Comparison) -> None:
    found = lineage_of(comparison, world.MERGE)
    assert found.recipe is not None
    assert (
        parse_yaml(found.recipe, "recipe").value
        == merge_manifest(f"models/{world.SOURCE}", "hub/one", "hub/two")["recipe"]
    )
    assert found.recipe_file == "merge-more.yaml"
    assert found.commands[0] == "forge merge recipes/merge-more.yaml --out 'models/merge & more'"
    assert found.notices == ("two tokens were added",)


def test_what_forge_did_not_make_has_no_commands(comparison: Comparison) -> None:
    found = lineage_of(comparison, world.SOURCE)
    assert (found.made_by, found.recipe, found.commands) == (None, None, ())


@pytest.mark.parametrize(
    ("location", "public"),
    [
        ("/home/me/models/a", "a"),
        ("/home/me/models/a/", "a"),
        ("~/models/a", "a"),
        (r"C:\Users\me\a", "a"),
        ("models/a", "models/a"),
        ("org/name@main", "org/name@main"),
        ("org/name+/home/me/lora", "org/name+lora"),
    ],
)
def test_folders_of_a_machine_are_not_published(location: str, public: str) -> None:
    assert public_name(location) == public


def test_no_folder_of_a_machine_is_in_a_lineage() -> None:
    manifest = merge_manifest("/home/me/base", "/home/me/x")
    record = ModelRecord("1" * 32, "m", "local", "/home/me/out/m", manifest=manifest)
    (found,) = lineages(line_up([record]))
    assert "/home" not in repr(found)
    assert found.commands[0] == "forge merge recipes/m.yaml --out m"


def test_recipes_of_labels_that_differ_in_signs_only_have_files_of_their_own() -> None:
    records = [
        ModelRecord(f"{n}" * 32, label, "local", label, manifest=merge_manifest("a", "b"))
        for n, label in enumerate(("m x", "m/x", "m-x"))
    ]
    files = [entry.recipe_file for entry in lineages(line_up(records))]
    assert files == ["m-x.yaml", "m-x-2.yaml", "m-x-3.yaml"]


def test_a_manifest_of_another_shape_is_survived() -> None:
    odd: dict[str, object] = {
        "kind": 3, "recipe": {"deep": [[[{"a": float("nan")}]]]}, "inputs": [{"files": [1, {}]}],
        "versions": [], "notices": "no", "content_digest": 5, "modules": {"x": 1},
        "statistics": [4],
    }  # fmt: skip
    record = ModelRecord("1" * 32, "m", "local", "m", manifest=odd)
    (found,) = lineages(line_up([record]))
    assert (found.made_by, found.content_digest, found.notices) == (None, None, ())
    assert quantization_errors("m", odd) is None
    assert merge_diagnostics("m", "dare", {**odd, "kind": "merge"}) is None


def test_errors_by_layer_and_projection() -> None:
    manifest = quantize_manifest("a", method="awq", format_name="awq-gemm")
    found = quantization_errors("a-awq", manifest)
    assert found is not None
    assert found.layers == (0, 1)
    assert found.projections == (
        "self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.down_proj",
    )  # fmt: skip
    assert found.values == (
        pytest.approx((0.013, 0.012, 0.011, 0.010)), pytest.approx((0.023, 0.022, 0.021, 0.020)),
    )  # fmt: skip
    assert found.worst == "model.layers.1.self_attn.q_proj"


def test_a_module_without_an_error_is_a_hole() -> None:
    found = quantization_errors(
        "m",
        {"modules": {"model.layers.0.a": {"error": 0.5}, "model.layers.1.b": {"error": 0.25}}},
    )
    assert found is not None
    assert found.values == ((0.5, None), (None, 0.25))


def test_merge_diagnostics_are_those_of_the_manifest(comparison: Comparison) -> None:
    (found,) = comparison.merges
    assert found.inputs == ("hub/one", "hub/two")
    assert found.pairs == ((1, 0),)
    assert [(row.place, row.layer, row.conflict_share) for row in found.layers] == [
        ("embedding", None, 0.0), ("layer 0", 0, 0.1), ("layer 1", 1, 0.2),
        ("head", None, pytest.approx(0.3)),
    ]  # fmt: skip


def test_the_commands_that_measure_again_name_models_and_settings(comparison: Comparison) -> None:
    variants = " ".join(
        f"models/{name}" for name in (world.SOURCE, world.SAME, world.WORSE, world.FEW, world.SLOW)
    )
    assert comparison.commands == (
        f"forge profile {variants} 'models/merge & more' --batch 1,4 --prompt-tokens 128 "
        "--new-tokens 32 --device cpu --threads 2",
        f"forge eval {variants} 'models/merge & more' --suite planted",
        f"forge eval models/{world.SOURCE} models/{world.SAME} --suite written",
        f"forge divergence models/{world.SAME} --against models/{world.SOURCE}",
        f"forge divergence models/{world.WORSE} --against models/{world.SOURCE}",
    )
