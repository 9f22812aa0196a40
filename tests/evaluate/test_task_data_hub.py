"""Tasks are read from the Hub through the real client, from a server on 127.0.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.checkpoints.hub_server import serve_hub
from tests.evaluate.tiny_data import bio_instruct, medmcqa, mmlu, pubmedqa

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

CODE = """
import json, sys
from forge.core.errors import ForgeError
from forge.evaluate.prepare import prepare_task
from forge.evaluate.suite import load_suite
out = {}
for text in sys.argv[1:]:
    suite, _, name = text.partition(":")
    try:
        task = load_suite(suite).task(name)
        prepared = prepare_task(task, seed=1, data_dir=None, quick=None)
        out[text] = {
            "items": [item.question for item in prepared.items],
            "shots": [shot.question for shot in prepared.shots],
            "examples": prepared.sample["examples"],
        }
    except ForgeError as error:
        out[text] = str(error)
print(json.dumps(out))
"""


def _prepared(
    url: str, cache: Path, *tasks: str, **environment: str
) -> dict[str, dict[str, list[str]]]:
    settings = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HF_")},
        "HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost", **environment,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CODE, *tasks],
        env=settings, capture_output=True, text=True, timeout=120, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return answer


def _table(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def _publish(root: Path) -> dict[str, Path]:
    """Lay out data sets as those of the Hub are."""
    folders = {}
    for name in (
        "cais/mmlu",
        "openlifescienceai/medmcqa",
        "qiaojin/PubMedQA",
        "BioMistral/BioInstructQA",
    ):
        folders[name] = root / name
        folders[name].mkdir(parents=True)
        (folders[name] / "README.md").write_text("data")
    for subject in ("anatomy", "medical_genetics"):
        for split, count in (("test", 6), ("dev", 5)):
            _table(
                folders["cais/mmlu"] / subject / f"{split}-00000-of-00001.parquet",
                mmlu(subject, count, word=split),
            )
    data = folders["openlifescienceai/medmcqa"] / "data"
    _table(data / "validation-00000-of-00001.parquet", medmcqa(8))
    for part in range(2):
        rows = [{**row, "id": f"t{part}-{n}"} for n, row in enumerate(medmcqa(6, word="train"))]
        _table(data / f"train-0000{part}-of-00002.parquet", rows)
    listed = Path(__file__).parents[2] / "forge/evaluate/suites/pubmedqa.test_ids.jsonl"
    ids = [json.loads(line)["id"] for line in listed.read_text().splitlines()]
    labeled = []
    for number, row in enumerate(pubmedqa(510)):
        pubid = int(ids[number]) if number < 500 else number
        labeled.append({
            "pubid": pubid, "question": row["question"], "long_answer": row["long_answer"],
            "context": {"contexts": row["contexts"], "labels": row["labels"]},
            "final_decision": row["final_decision"],
        })  # fmt: skip
    folder = folders["qiaojin/PubMedQA"]
    _table(folder / "pqa_labeled" / "train-00000-of-00001.parquet", labeled)
    _table(folder / "pqa_artificial" / "train-00000-of-00001.parquet", labeled[:1])
    archive = folders["BioMistral/BioInstructQA"] / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("langs_processed/French-full.json", json.dumps(bio_instruct(3, word="fr")))
        file.writestr("base/overall_train+prompt.json", json.dumps(bio_instruct(4, word="train")))
    return folders


def test_tasks_are_read_from_data_sets_as_they_are_laid_out(tmp_path: Path) -> None:
    tasks = (
        "medical:mmlu_anatomy", "medical:medmcqa", "medical:pubmedqa",
        "medical-multilingual:french_medqa", "medical:mmlu_college_biology", "medical:medqa",
        "medical-multilingual:german_medqa",
    )  # fmt: skip
    folders = _publish(tmp_path / "hub")
    with serve_hub() as hub:
        hub.models.update(folders)
        found = _prepared(hub.url, tmp_path / "cache", *tasks)
        url = hub.url
        fetched = {path for method, path, _ in hub.requests if "/resolve/" in path}
    anatomy = found["medical:mmlu_anatomy"]
    assert sorted(anatomy["items"]) == [f"anatomy test question {n}?" for n in range(6)]
    assert anatomy["examples"] == "published"
    assert not any("medical_genetics" in path or "/dev-" in path for path in fetched)
    assert len(found["medical:medmcqa"]["items"]) == 8
    assert all("train" in shot for shot in found["medical:medmcqa"]["shots"])
    assert len(found["medical:pubmedqa"]["items"]) == 500
    assert not any("artificial" in path for path in fetched)
    french = found["medical-multilingual:french_medqa"]
    assert sorted(french["items"]) == [f"MedQA fr Frage {n}?" for n in range(3)]
    assert all(shot.startswith("MedQA train question") for shot in french["shots"])
    assert found["medical:mmlu_college_biology"] == (
        "Task 'mmlu_college_biology': The data set 'cais/mmlu' has no folder 'college_biology'. It "
        "has anatomy, medical_genetics. With --data-dir, a folder that holds "
        "'mmlu_college_biology.test.jsonl' replaces the Hub."
    )
    assert "neither a local folder nor a repository" in str(found["medical:medqa"])
    assert "has 0 files 'langs_processed/German-full.json'" in str(
        found["medical-multilingual:german_medqa"]
    )
    offline = _prepared(url, tmp_path / "cache", *tasks[:4], HF_HUB_OFFLINE="1")
    assert offline == {task: found[task] for task in tasks[:4]}


def test_a_data_set_without_the_listed_rows_is_refused(tmp_path: Path) -> None:
    folders = _publish(tmp_path / "hub")
    folder = folders["qiaojin/PubMedQA"]
    _table(folder / "pqa_labeled" / "train-00000-of-00001.parquet", [
        {**row, "context": {"contexts": row["contexts"]}} for row in pubmedqa(6)
    ])  # fmt: skip
    with serve_hub() as hub:
        hub.models.update(folders)
        found = _prepared(hub.url, tmp_path / "cache", "medical:pubmedqa")
    assert str(found["medical:pubmedqa"]).startswith(
        "'qiaojin/PubMedQA train-00000-of-00001.parquet' lacks 500 of the 500 rows in "
        "'pubmedqa.test_ids.jsonl', such as "
    )
