"""``forge merge`` and ``forge check`` on tiny models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from forge import api
from forge.cli.app import run
from forge.cli.merge import default_name
from tests.cli.process import forge
from tests.factory import tiny_checkpoint

Capture = pytest.CaptureFixture[str]


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_dry_run_prints_the_plan_and_writes_nothing(workplace: Path, capsys: Capture) -> None:
    before = names(workplace)
    assert run(["merge", "dare.yaml", "--dry-run", "--seed", "99"]) == 0
    text = capsys.readouterr().out
    assert names(workplace) == before
    assert text.startswith("dare_ties → merges/dare\n")
    assert "30 tensors" in text
    assert "seed 99" in text
    assert "m2(weight=0.5 density=0.25) m3(weight=0.5 density=0.5)" in text
    assert "m2(weight=0.5 density=0.75) m3(weight=0.5 density=0.5)" in text
    assert text.endswith("Nothing was written (dry run).\n")


def test_a_dry_run_plans_for_a_larger_disk(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert run(["merge", "dare.yaml", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "  warning: The merge needs 0.00 GB in " in text
    assert "and 0.00 GB are free there." in text
    assert "TENSORS" in text
    assert run(["merge", "dare.yaml", "--dry-run", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["free_disk_bytes"] == 1000
    assert record["memory_bytes"] > 10**8
    assert [finding["code"] for finding in record["findings"]] == ["disk-space"]
    # Nobody can run it here, though.
    assert run(["check", "dare.yaml", "--out", "out"]) == 2
    assert run(["merge", "dare.yaml", "--out", "out"]) == 2
    assert "are free there" in capsys.readouterr().err


def test_layers_of_equal_parameters_share_a_line(workplace: Path, capsys: Capture) -> None:
    recipe = (workplace / "dare.yaml").read_text().replace("[0.25, 0.75]", "0.3")
    (workplace / "flat.yaml").write_text(recipe)
    assert run(["merge", "flat.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith(("layer", "outside"))] == [
        "outside", "layers 0-2", "outside",
    ]  # fmt: skip
    assert any(line.startswith("layers 0-2  3 × 9") for line in lines)


def test_the_plan_as_json_states_every_tensor(workplace: Path, capsys: Capture) -> None:
    assert run(["merge", "slerp.yaml", "--dry-run", "--json", "--max-shard-size", "10KB"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["out"] == "merges/m-dical-mix"
    assert record["recipe"]["max_shard_size"] == "10KB"
    jobs = {job["output"]: job for job in record["jobs"]}
    assert len(jobs) == record["num_tensors"] == 30
    values = [
        jobs[f"model.layers.{layer}.self_attn.q_proj.weight"]["parameters"]["t"]
        for layer in range(3)
    ]
    assert values == [0, 0.5, 1]
    assert jobs["lm_head.weight"]["parameters"]["t"] == 0.5


def test_a_merge_can_be_inspected_verified_and_compared(workplace: Path, capsys: Capture) -> None:
    assert run(["merge", "dare.yaml", "--threads", "1", "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert "merging ..." in captured.err
    assert (record["out"], record["num_tensors"], record["resumed_tensors"]) == (
        "merges/dare", 30, 0,
    )  # fmt: skip
    assert run(["verify", "merges/dare", "--json"]) == 0
    verified = json.loads(capsys.readouterr().out)
    assert verified["ok"]
    assert verified["content_digest"] == record["content_digest"]
    assert run(["inspect", "merges/dare", "--json", "--svg", "chart.svg"]) == 0
    merge = json.loads(capsys.readouterr().out)["merge"]
    assert merge["recipe"]["seed"] == 7
    kept = [row["kept_shares"][0] for row in merge["statistics"] if row["layer"] is not None]
    assert kept == pytest.approx([0.25, 0.5, 0.75], abs=0.08)
    assert (workplace / "chart.svg").read_text().startswith("<svg ")
    assert run(["diff", "merges/dare", "base", "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["only_a"] == []


def test_the_seed_of_the_command_line_wins_and_is_recorded(
    workplace: Path, capsys: Capture
) -> None:
    digests = []
    for out, arguments in (("x", []), ("y", ["--seed", "7"]), ("z", ["--seed", "8"])):
        assert run(["merge", "dare.yaml", "--out", out, "--quiet", "--json", *arguments]) == 0
        digests.append(json.loads(capsys.readouterr().out)["content_digest"])
    assert digests[0] == digests[1] != digests[2]
    manifest = json.loads((workplace / "z" / "forge_manifest.json").read_text())
    assert manifest["recipe"]["seed"] == 8


def test_quiet_prints_the_result_alone(workplace: Path, capsys: Capture) -> None:
    assert run(["merge", "slerp.yaml", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("merges/m-dical-mix\n  30 tensors, ")


def test_an_output_is_replaced_only_when_asked(workplace: Path, capsys: Capture) -> None:
    command = ["merge", "slerp.yaml", "--out", "out", "--quiet"]
    assert run(command) == 0
    before = (workplace / "out" / "forge_manifest.json").stat().st_mtime_ns
    other = ["merge", "dare.yaml", "--out", "out", "--quiet"]
    assert run(other) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert run(command) == 0  # it is there already
    assert (workplace / "out" / "forge_manifest.json").stat().st_mtime_ns == before
    assert run([*other, "--overwrite"]) == 0
    manifest = json.loads((workplace / "out" / "forge_manifest.json").read_text())
    assert manifest["recipe"]["merge_method"] == "dare_ties"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "dare"),
        ("My Mix", "My-Mix"),
        ("../../etc", "etc"),
        ("/", "merge"),
        ("..", "merge"),
        ("ü", "merge"),
        ("a\nb", "a-b"),
    ],
)
def test_the_default_output_stays_under_merges(
    name: str | None, expected: str, workplace: Path
) -> None:
    text = (workplace / "dare.yaml").read_text()
    if name is not None:
        text += f"name: {json.dumps(name)}\n"
    (workplace / "sub").mkdir()
    (workplace / "sub" / "dare.yaml").write_text(text)
    assert default_name(api.load_recipe("sub/dare.yaml")) == expected


def test_check_of_a_good_recipe(workplace: Path, capsys: Capture) -> None:
    assert run(["check", "dare.yaml"]) == 0
    text = capsys.readouterr().out
    assert text.count("llama") == 3
    assert text.endswith("ready to merge.\n")
    assert run(["check", "dare.yaml", "--json", "--out", "x"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["ok"]
    assert record["recipe"]["merge_method"] == "dare_ties"
    assert record["free_disk_bytes"] > 0


def test_check_of_models_that_do_not_fit_exits_with_2(workplace: Path, capsys: Capture) -> None:
    (workplace / "b").unlink()
    tiny_checkpoint(workplace / "b", layers=3, hidden=24)
    assert run(["check", "dare.yaml"]) == 2
    assert "this recipe cannot be merged as it is." in capsys.readouterr().out
    assert run(["check", "dare.yaml", "--json"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert not record["ok"]
    assert any(finding["level"] == "error" for finding in record["findings"])
    assert run(["merge", "dare.yaml", "--quiet"]) == 2
    assert not (workplace / "merges").exists()


def test_a_missing_recipe_names_those_there_are(workplace: Path, capsys: Capture) -> None:
    assert run(["merge", "demo_dair"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: demo_dair There is no such recipe. Did you mean 'demo_dare'?")


def test_the_same_manifest_from_another_process(workplace: Path) -> None:
    for out in ("one", "two"):
        done = forge("merge", "dare.yaml", "--out", out, "--quiet", cwd=workplace)
        assert (done.returncode, done.stderr) == (0, "")
    for name in names(workplace / "one"):
        assert (workplace / "one" / name).read_bytes() == (workplace / "two" / name).read_bytes()


def test_what_is_probably_not_meant_is_a_warning(workplace: Path, capsys: Capture) -> None:
    other = workplace / "turned"
    shutil.copytree(workplace / "a", other)
    config = json.loads((other / "config.json").read_text())
    config["rope_theta"] = 500_000.0
    (other / "config.json").write_text(json.dumps(config))
    (workplace / "soup.yaml").write_text(
        "merge_method: linear\nparameters: {weight: 1.0}\n"
        "models: [{model: base}, {model: turned}]\n"
    )
    assert run(["check", "soup.yaml", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    warned = [each["message"] for each in findings if each["level"] == "warning"]
    assert any("rope_theta" in message for message in warned)
    assert run(["merge", "soup.yaml", "--out", "out"]) == 0
    shown = capsys.readouterr().err.splitlines()
    assert [line[9:] for line in shown if line.startswith("warning: ")] == warned
