"""The results file keeps what several writers give it, and refuses what is not its own."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forge.core.errors import OutputError, ResultsError
from forge.results import store as module
from forge.results.answers import ChoiceAnswer, TextAnswer, answer_from_json
from forge.results.records import (
    AnswerRecord,
    DivergenceRecord,
    EnvironmentRecord,
    EvaluationRecord,
    ItemRecord,
    LayerError,
    ModelRecord,
    ProfileRecord,
    digest_of,
)
from forge.results.schema import APPLICATION_ID, TABLES, VERSION
from forge.results.store import ResultsStore, open_results
from tests.cli.process import environment

MODEL = ModelRecord(
    "f" * 32, "tiny", "local", "models/tiny", num_parameters=7, members=(),
    manifest={"recipe": {"seed": 1}},
)  # fmt: skip
ITEM = ItemRecord.of("task", "i1", question="Is it?", options=("no", "yes"), gold=1, label="yes")
ANSWER = AnswerRecord("k" * 32, MODEL.fingerprint, ChoiceAnswer((-1.5, -math.inf), None, "x", -0.1))


def evaluation(key: str = "e", *, seed: int = 1, suite: str = "suite") -> EvaluationRecord:
    return EvaluationRecord(
        key, MODEL.fingerprint, suite, "task", "choice", seed, 3, "forge", "float32", False, 1,
        {"items": 1}, {"constrained/accuracy": 0.5, "constrained/ece": None},
        ((ITEM.digest, ANSWER.key),), "d",
    )  # fmt: skip


PROFILE = ProfileRecord(
    "p", MODEL.fingerprint, "s1", "env", {"batch": 1}, "ok", {"ttft_s": ((0.1, 0.2), (0.3,))},
    {"driver": None, "peak_resident": 9}, {"steal_share": 0.0}, "forge", ("no energy",),
)  # fmt: skip
DIVERGENCE = DivergenceRecord(
    "v", MODEL.fingerprint, MODEL.fingerprint, "text", "t", "float32", {"mean": 0.25},
    (LayerError(0, 0.1), LayerError(1, 0.2)),
)  # fmt: skip


def fill(store: ResultsStore) -> None:
    store.add_models([MODEL])
    store.add_environment(EnvironmentRecord.of({"cpu": "x"}))
    store.add_answers([ANSWER])
    store.add_evaluation(evaluation(), [ITEM])
    store.add_profile(PROFILE)
    store.add_divergence(DIVERGENCE)


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.db"
    with open_results(path) as store:
        fill(store)
    with open_results(path, create=False) as store:
        assert store.models() == (MODEL,)
        assert store.environments() == (EnvironmentRecord.of({"cpu": "x"}),)
        assert store.items() == {ITEM.digest: ITEM}
        assert store.answers() == {ANSWER.key: ANSWER.answer}
        assert store.evaluations() == (evaluation(),)
        assert store.profiles() == (PROFILE,)
        assert store.divergences() == (DIVERGENCE,)
        assert store.has_evaluation("e")
        assert not store.has_evaluation("x")


def test_what_is_there_stays_and_only_a_models_label_follows(tmp_path: Path) -> None:
    from dataclasses import replace

    with open_results(tmp_path / "r.db") as store:
        fill(store)
        fill(store)
        store.add_models([replace(MODEL, label="renamed")])
        store.add_answers([replace(ANSWER, answer=TextAnswer("other"))])
        assert [model.label for model in store.models()] == ["renamed"]
        assert store.answers() == {ANSWER.key: ANSWER.answer}
        assert len(store.evaluations()) == len(store.profiles()) == 1


def test_look_ups(tmp_path: Path) -> None:
    with open_results(tmp_path / "r.db") as store:
        fill(store)
        many = [AnswerRecord(f"{n}", MODEL.fingerprint, TextAnswer(f"{n}")) for n in range(1200)]
        store.add_answers(many)
        found = store.answers([*(f"{n}" for n in range(0, 2000, 2)), "none"])
        assert found == {f"{n}": TextAnswer(f"{n}") for n in range(0, 1200, 2)}
        assert store.answers([]) == {}
        store.add_evaluation(evaluation("other", suite="other"), [ITEM])
        assert [each.key for each in store.evaluations(suite="other")] == ["other"]
        assert store.profiles(session="none") == ()


def test_an_evaluation_needs_its_answers(tmp_path: Path) -> None:
    with open_results(tmp_path / "r.db") as store:
        store.add_models([MODEL])
        with pytest.raises(sqlite3.IntegrityError):
            store.add_evaluation(evaluation(), [ITEM])
        # What began is undone as a whole.
        assert store.items() == {}
        assert store.evaluations() == ()


WRITER = """
import sys
from pathlib import Path
from forge.results.answers import TextAnswer
from forge.results.records import AnswerRecord, ModelRecord
from forge.results.store import open_results
name, count = sys.argv[1], int(sys.argv[2])
with open_results(Path("results.db")) as store:
    store.add_models([ModelRecord(name, name, "local", name)])
    for number in range(count):
        store.add_answers([
            AnswerRecord(f"{name}-{number}", name, TextAnswer(name)),
            AnswerRecord(f"shared-{number}", name, TextAnswer("shared")),
        ])
"""


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    names, count = ("a", "b", "c", "d"), 40
    running = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, name, str(count)], cwd=tmp_path, env=environment()
        )
        for name in names
    ]
    assert [each.wait(120) for each in running] == [0] * len(names)
    with open_results(tmp_path / "results.db", create=False) as store:
        assert {model.label for model in store.models()} == set(names)
        answers = store.answers()
    expected = {f"{name}-{n}": TextAnswer(name) for name in names for n in range(count)}
    assert answers == expected | {f"shared-{n}": TextAnswer("shared") for n in range(count)}


def test_a_writer_that_dies_in_the_middle_leaves_a_whole_file(tmp_path: Path) -> None:
    code = WRITER.replace("import sys\n", "import os, sys\n").replace(
        "    for number", "    store._connection.execute('BEGIN IMMEDIATE')\n"
        "    store._connection.execute(\"INSERT INTO answers VALUES ('x','a','{}','')\")\n"
        "    os._exit(9)\n    for number",
    )  # fmt: skip
    made = subprocess.run(
        [sys.executable, "-c", code, "a", "1"], cwd=tmp_path, env=environment(), check=False
    )
    assert made.returncode == 9
    with open_results(tmp_path / "results.db") as store:
        assert store.answers() == {}
        store.add_answers([AnswerRecord("y", "a", TextAnswer("after"))])


def test_a_file_that_stays_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.db"
    open_results(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(module, "_WAIT_S", 0.05)
    with pytest.raises(OutputError, match="has been locked by another process"), open_results(path):
        pass
    other.close()


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"There is no results file .*Measure something first"):
        open_results(tmp_path / "r.db", create=False)
    assert not (tmp_path / "r.db").exists()


def set_version(path: Path, version: int, application: int = APPLICATION_ID) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.execute(f"PRAGMA application_id = {application}")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (VERSION - 1, f"version {VERSION - 1} of the schema, written by an older forge"),
        (VERSION + 1, f"version {VERSION + 1} of the schema, written by a newer forge"),
    ],
)
def test_another_schema_is_refused_and_left_as_it_is(
    version: int, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.db"
    with open_results(path) as store:
        fill(store)
    set_version(path, version)
    before = path.read_bytes()
    with pytest.raises(ResultsError, match=message):
        open_results(path)
    assert path.read_bytes() == before


def test_a_foreign_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text TEXT)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ResultsError, match="is a database, but not a results file of forge"):
        open_results(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be read as one" * 9,
                                     b"SQLite format 3\0" + b"\xff" * 4000])  # fmt: skip
def test_what_is_no_database(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match="is no SQLite file, or a damaged one"):
        open_results(path)
    assert path.read_bytes() == content


def test_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with open_results(path) as store:
        fill(store)
        store.add_answers(
            AnswerRecord(f"{n}", MODEL.fingerprint, TextAnswer("x" * 400)) for n in range(400)
        )
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xa5" * (len(data) - 8192)
    path.write_bytes(data)
    with pytest.raises(ResultsError, match="damaged"), open_results(path) as store:
        store.answers()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be used"):
        open_results(tmp_path)


def test_a_copy_is_whole_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with open_results(path) as store:
        fill(store)
        shutil.copy(path, tmp_path / "copy.db")
        with open_results(tmp_path / "copy.db", create=False) as copied:
            assert copied.answers() == store.answers()


def test_the_export_has_every_row_as_json(tmp_path: Path) -> None:
    with open_results(tmp_path / "r.db") as store:
        fill(store)
        lines = [json.loads(line) for line in store.export()]
    assert lines[0] == {"table": "schema", "version": VERSION}
    assert {line["table"] for line in lines[1:]} == set(TABLES)
    (answer,) = [line for line in lines if line["table"] == "answers"]
    assert answer["key"] == ANSWER.key
    assert answer_from_json(answer["body"]) == ANSWER.answer


numbers = st.floats(max_value=0.0, allow_nan=False)


@given(
    st.lists(numbers, min_size=1, max_size=5), st.none() | st.integers(0, 4), st.text(),
    st.none() | st.floats(max_value=0.0, allow_nan=False, allow_infinity=False),
)  # fmt: skip
def test_answers_survive_json(
    log_probs: list[float], top: int | None, text: str, top_log_prob: float | None
) -> None:
    answer = ChoiceAnswer(tuple(log_probs), top, text, top_log_prob)
    assert answer_from_json(json.loads(json.dumps(answer.as_json(), allow_nan=False))) == answer
    words = TextAnswer(text, top)
    assert answer_from_json(json.loads(json.dumps(words.as_json()))) == words


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))
    assert digest_of(value) != digest_of([value])
