"""The results file: one SQLite database that several processes may write at once.

Every ``add`` is one short transaction, so an interruption loses nothing that was added before,
and a writer waits for another's. A record that is there already is left as it is: its key says all
that it depends on. The journal is SQLite's own rollback journal and not the write-ahead log,
because a results file is copied, mailed and committed, and must be whole by itself.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, cast

from forge.core.errors import OutputError, ResultsError
from forge.results.answers import Answer, answer_from_json
from forge.results.records import (
    AnswerRecord,
    DivergenceRecord,
    EnvironmentRecord,
    EvaluationRecord,
    ItemRecord,
    LayerError,
    ModelRecord,
    ProfileRecord,
)
from forge.results.schema import APPLICATION_ID, STATEMENTS, TABLES, VERSION

Row = TypeVar("Row")

_WAIT_S: Final = 120.0
"""How long a writer waits for others."""
_CHUNK: Final = 500
"""Keys of one look-up; SQLite allows 32,766."""


class ResultsStore:
    """Measurements in a SQLite file.

    Use ``open_results``. Reading returns records in the order of their keys' columns, which does
    not depend on who wrote first.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self.path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def add_models(self, models: Iterable[ModelRecord]) -> None:
        """Add models; of one that is there, what is known of it becomes what is said now."""
        rows = [(m.fingerprint, m.label, m.kind, m.location, _dump(m), _now()) for m in models]
        with self._writing() as cursor:
            cursor.executemany(
                "INSERT INTO models VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (fingerprint) DO UPDATE "
                "SET label = excluded.label, location = excluded.location, body = excluded.body",
                rows,
            )

    def add_environment(self, environment: EnvironmentRecord) -> None:
        """Add an environment, unless it is there."""
        with self._writing() as cursor:
            cursor.execute(
                "INSERT OR IGNORE INTO environments VALUES (?, ?, ?)",
                (environment.digest, json.dumps(environment.body), _now()),
            )

    def add_answers(self, answers: Iterable[AnswerRecord]) -> None:
        """Add answers that are not there yet."""
        rows = [(a.key, a.model, json.dumps(a.answer.as_json()), _now()) for a in answers]
        with self._writing() as cursor:
            cursor.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?)", rows)

    def add_evaluation(self, evaluation: EvaluationRecord, items: Iterable[ItemRecord]) -> None:
        """Add an evaluation with its questions, unless it is there. Its answers must be."""
        with self._writing() as cursor:
            cursor.executemany(
                "INSERT OR IGNORE INTO items VALUES (?, ?, ?, ?, ?)",
                [(i.digest, i.task, i.item_id, _dump(i), _now()) for i in items],
            )
            cursor.execute(
                "INSERT OR IGNORE INTO evaluations VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    evaluation.key, evaluation.model, evaluation.suite, evaluation.task,
                    evaluation.seed, _dump(evaluation, without=("items",)), _now(),
                ),
            )  # fmt: skip
            cursor.executemany(
                "INSERT OR IGNORE INTO evaluation_items VALUES (?, ?, ?, ?)",
                [
                    (evaluation.key, position, item, answer)
                    for position, (item, answer) in enumerate(evaluation.items)
                ],
            )

    def add_profile(self, profile: ProfileRecord) -> None:
        """Add a profile, unless it is there."""
        row = (profile.key, profile.model, profile.session, _dump(profile), _now())
        with self._writing() as cursor:
            cursor.execute("INSERT OR IGNORE INTO profiles VALUES (?, ?, ?, ?, ?)", row)

    def add_divergence(self, found: DivergenceRecord) -> None:
        """Add a divergence, unless it is there."""
        row = (found.key, found.variant, found.reference, _dump(found), _now())
        with self._writing() as cursor:
            cursor.execute("INSERT OR IGNORE INTO divergences VALUES (?, ?, ?, ?, ?)", row)

    def models(self) -> tuple[ModelRecord, ...]:
        """Return all models, in the order in which they were first added."""
        rows = self._rows("SELECT body FROM models ORDER BY created, label, fingerprint")
        return tuple(_model(json.loads(body)) for (body,) in rows)

    def environments(self) -> tuple[EnvironmentRecord, ...]:
        """Return all environments, in the order in which they were added."""
        rows = self._rows("SELECT digest, body FROM environments ORDER BY created, digest")
        return tuple(EnvironmentRecord(digest, json.loads(body)) for digest, body in rows)

    def items(self, digests: Iterable[str] | None = None) -> dict[str, ItemRecord]:
        """Return questions by digest: all, or those that are there of the ones asked for."""
        return self._by_key("items", "digest", digests, _item)

    def answers(self, keys: Iterable[str] | None = None) -> dict[str, Answer]:
        """Return answers by key: all, or those that are there of the ones asked for."""
        return self._by_key("answers", "key", keys, answer_from_json)

    def evaluations(self, *, suite: str | None = None) -> tuple[EvaluationRecord, ...]:
        """Return evaluations, all or those of one suite, by model, suite, task and seed."""
        rows = self._rows(
            "SELECT key, body FROM evaluations WHERE ? IS NULL OR suite = ? "
            "ORDER BY model, suite, task, seed, created, key",
            (suite, suite),
        )
        pairs: dict[str, list[tuple[str, str]]] = {key: [] for key, _ in rows}
        for key, item, answer in self._rows(
            "SELECT evaluation, item, answer FROM evaluation_items ORDER BY evaluation, position"
        ):
            if key in pairs:
                pairs[key].append((item, answer))
        return tuple(_evaluation(json.loads(body), pairs[key]) for key, body in rows)

    def has_evaluation(self, key: str) -> bool:
        """Return whether an evaluation is there."""
        return bool(self._rows("SELECT 1 FROM evaluations WHERE key = ?", (key,)))

    def profiles(self, *, session: str | None = None) -> tuple[ProfileRecord, ...]:
        """Return profiles, all or those of one session, the oldest first."""
        rows = self._rows(
            "SELECT body FROM profiles WHERE ? IS NULL OR session = ? "
            "ORDER BY created, session, model, key",
            (session, session),
        )
        return tuple(_profile(json.loads(body)) for (body,) in rows)

    def divergences(self) -> tuple[DivergenceRecord, ...]:
        """Return all divergences, the oldest first."""
        rows = self._rows("SELECT body FROM divergences ORDER BY created, variant, reference, key")
        return tuple(_divergence(json.loads(body)) for (body,) in rows)

    def export(self) -> Iterator[str]:
        """Yield every row as one line of JSON, with the name of its table under ``table``.

        Yields:
            Lines without their line feed; first one that says which schema this is.
        """
        yield json.dumps({"table": "schema", "version": VERSION})
        for table in TABLES:
            names = [str(row[1]) for row in self._rows(f"PRAGMA table_info({table})")]
            for row in self._rows(f"SELECT * FROM {table} ORDER BY 1, 2"):
                record = dict(zip(names, row, strict=True))
                if "body" in record:
                    record["body"] = json.loads(record["body"])
                yield json.dumps({"table": table, **record})

    def _by_key(
        self,
        table: str,
        column: str,
        keys: Iterable[str] | None,
        read: Callable[[Mapping[str, Any]], Row],
    ) -> dict[str, Row]:
        query = f"SELECT {column}, body FROM {table}"
        if keys is None:
            rows = self._rows(f"{query} ORDER BY {column}")
            return {key: read(json.loads(body)) for key, body in rows}
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Row] = {}
        for start in range(0, len(wanted), _CHUNK):
            part = wanted[start : start + _CHUNK]
            marks = ", ".join("?" * len(part))
            for key, body in self._rows(f"{query} WHERE {column} IN ({marks})", part):
                found[key] = read(json.loads(body))
        return found

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with _sqlite_errors(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        with _sqlite_errors(self.path):
            cursor = self._connection.cursor()
            # Not deferred: a reader that turns into a writer can fail where a writer waits.
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
            except BaseException:
                self._connection.rollback()
                raise
            self._connection.commit()


def open_results(path: Path, *, create: bool = True) -> ResultsStore:
    """Open a results file.

    Args:
        path: The file.
        create: Whether to make it, and its folder, where it does not exist.

    Returns:
        The store, to be closed or used as a context.

    Raises:
        ResultsError: It does not exist, is no results file of forge, is damaged, or has the schema
            of another version. It is left as it is.
        OutputError: It cannot be made or opened here.
    """
    if not create and not path.is_file():
        raise ResultsError(
            f"There is no results file '{path}'. Measure something first, with 'forge eval' or "
            "'forge profile', or name another file with --results."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"'{path.parent}' cannot be made: {error.strerror}.") from error
    with _sqlite_errors(path):
        connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            _check_or_make(connection, path)
        except BaseException:
            connection.close()
            raise
    return ResultsStore(connection, path)


def _check_or_make(connection: sqlite3.Connection, path: Path) -> None:
    application, version = _header(connection)
    if application == 0 and version == 0 and not _tables(connection):
        connection.execute("BEGIN IMMEDIATE")
        # Another process may have made the tables while this one waited.
        if not _tables(connection):
            for statement in STATEMENTS:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
        application, version = _header(connection)
    if application != APPLICATION_ID:
        raise ResultsError(
            f"'{path}' is a database, but not a results file of forge. Name another file with "
            "--results."
        )
    if version != VERSION:
        age = "an older" if version < VERSION else "a newer"
        raise ResultsError(
            f"'{path}' has version {version} of the schema, written by {age} forge; this one reads "
            f"version {VERSION}. The file is left as it is: name a new one with --results, or use "
            "the forge that wrote it."
        )


def _header(connection: sqlite3.Connection) -> tuple[int, int]:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(application), int(version)


def _tables(connection: sqlite3.Connection) -> bool:
    return connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone() is not None


@contextmanager
def _sqlite_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        # sqlite_errorcode: the primary code is in its low byte.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise ResultsError(
                f"'{path}' is no SQLite file, or a damaged one. Name another with --results."
            ) from error
        if code == sqlite3.SQLITE_BUSY:
            raise OutputError(
                f"'{path}' has been locked by another process for {_WAIT_S:.0f} s. Is one stopped "
                "in the middle?"
            ) from error
        if isinstance(error, sqlite3.OperationalError):
            raise OutputError(f"'{path}' cannot be used: {error}.") from error
        raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _dump(record: Any, *, without: tuple[str, ...] = ()) -> str:
    # asdict would copy a manifest of megabytes deeply; that costs nothing that matters here.
    body = {key: value for key, value in asdict(record).items() if key not in without}
    return json.dumps(body, allow_nan=False)


def _model(body: Mapping[str, Any]) -> ModelRecord:
    return ModelRecord(**{**body, "members": tuple(body["members"])})


def _item(body: Mapping[str, Any]) -> ItemRecord:
    return ItemRecord(**{**body, "options": tuple(body["options"])})


def _evaluation(body: Mapping[str, Any], items: Sequence[tuple[str, str]]) -> EvaluationRecord:
    return EvaluationRecord(**body, items=tuple(items))


def _profile(body: Mapping[str, Any]) -> ProfileRecord:
    samples = {
        name: tuple(tuple(values) for values in rounds) for name, rounds in body["samples"].items()
    }
    return ProfileRecord(**{**body, "samples": samples, "notices": tuple(body["notices"])})


def _divergence(body: Mapping[str, Any]) -> DivergenceRecord:
    layers = cast("list[dict[str, Any]]", body["layers"])
    return DivergenceRecord(**{**body, "layers": tuple(LayerError(**row) for row in layers)})
