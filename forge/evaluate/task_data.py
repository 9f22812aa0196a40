"""Find the rows of a task: beside its suite, in a folder of the user's, or on the Hub.

A folder that the user names replaces the Hub altogether: with it nothing is fetched, and a file
that is not there is a missing file, said by a value that callers can show or act on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forge.checkpoints.hub_datasets import dataset_file, dataset_files
from forge.core.errors import CheckpointError, EvaluationError
from forge.evaluate.rows import Row, read_rows, refuse
from forge.evaluate.task_spec import Columns, Source, Suite, TaskSpec
from forge.evaluate.values import find_value


@dataclass(frozen=True, slots=True)
class MissingData:
    """A file that a task needs and that is not there.

    Attributes:
        task: Name of the task.
        file: The file.
        folder: Where it was looked for.
        columns: Columns that it needs.
        origin: What of the Hub it should hold.
    """

    task: str
    file: str
    folder: Path
    columns: tuple[str, ...]
    origin: str

    def __str__(self) -> str:
        what = f" ({self.origin})" if self.origin else ""
        return (
            f"Task '{self.task}' needs '{self.file}'{what} in '{self.folder}', with the columns "
            f"{', '.join(self.columns)}."
        )


@dataclass(frozen=True, slots=True)
class Availability:
    """Which tasks of a suite can be run on the data that there is.

    Attributes:
        tasks: Those that can, in the order of the suite.
        missing: What the others lack. No average over ``tasks`` is one over the suite then.
    """

    tasks: tuple[TaskSpec, ...]
    missing: tuple[MissingData, ...]

    @property
    def notice(self) -> str | None:
        """What must be said beside every result of these tasks; ``None`` if none is missing."""
        if not self.missing:
            return None
        names = ", ".join(item.task for item in self.missing)
        total = len(self.tasks) + len(self.missing)
        return (
            f"Left out for lack of data: {names}. Averages are over {len(self.tasks)} of the "
            f"suite's {total} tasks and do not compare with those over all."
        )


def check_data(suite: Suite, *, data_dir: Path | None, skip_missing: bool = False) -> Availability:
    """Find out, before anything is computed, for which tasks there is data.

    Args:
        suite: The suite.
        data_dir: The folder that replaces the Hub; ``None`` for the Hub, where nothing is missing
            before it is fetched.
        skip_missing: Whether tasks may be left out.

    Returns:
        The tasks that can be run.

    Raises:
        EvaluationError: There is no such folder; files are missing and ``skip_missing`` is not
            set; or all are missing.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise EvaluationError(f"There is no folder '{data_dir}'. Name one with --data-dir.")
    found = [(task, missing_data(task, data_dir)) for task in suite.tasks]
    tasks = tuple(task for task, missing in found if missing is None)
    missing = tuple(item for _, item in found if item is not None)
    if missing and (not tasks or not skip_missing):
        advice = (
            "Put the files there, or leave these tasks out with --skip-missing: averages are then "
            "over the others."
        )
        advice = advice if tasks else "None of the suite's files is there."
        raise EvaluationError("\n".join([*_by_file(missing), advice]))
    return Availability(tasks, missing)


def _by_file(missing: Sequence[MissingData]) -> list[str]:
    """Say once of each file that it is missing, whatever number of tasks needs it."""
    first: dict[str, MissingData] = {}
    others: dict[str, list[str]] = {}
    for item in missing:
        if first.setdefault(item.file, item) is not item:
            others.setdefault(item.file, []).append(item.task)
    return [
        f"{item} So {'do' if len(more) > 1 else 'does'} {', '.join(more)}."
        if (more := others.get(file, []))
        else str(item)
        for file, item in first.items()
    ]


def missing_data(task: TaskSpec, data_dir: Path | None) -> MissingData | None:
    """Return what a task lacks in a folder, or ``None``.

    Args:
        task: The task.
        data_dir: The folder, or ``None`` for the Hub.
    """
    source = task.data
    if source.beside is not None or data_dir is None:
        return None
    name = source.file or ""
    if name and (data_dir / name).is_file():
        return None
    return MissingData(task.name, name, data_dir, needed_columns(task.columns), origin_of(source))


def read_source(
    task: TaskSpec, source: Source, columns: Columns, *, data_dir: Path | None
) -> list[tuple[str, list[Row]]]:
    """Read the rows of a source that are a task's.

    Args:
        task: The task.
        source: Its data, or its pool.
        columns: What the columns there mean.
        data_dir: The folder that replaces the Hub, or ``None``.

    Returns:
        For each file, its name for messages and its rows; at least one row in all.

    Raises:
        EvaluationError: A file is missing, malformed, or holds no row that is meant.
    """
    if source.beside is not None:
        path = task.folder / source.beside
        files = [(str(path), read_rows(path))]
    elif data_dir is not None:
        path = data_dir / (source.file or "")
        if source.file is None or not path.is_file():
            missing = MissingData(
                task.name, source.file or "", data_dir, needed_columns(columns), origin_of(source)
            )
            raise EvaluationError(str(missing))
        files = [(str(path), read_rows(path))]
    else:
        files = _from_hub(task, source)
    kept = [(name, [row for row in rows if _is_meant(row, source.where)]) for name, rows in files]
    if not any(rows for _, rows in kept):
        wanted = " and ".join(f"{key} = {' or '.join(v)}" for key, v in source.where.items())
        raise refuse(files[0][0], [f"has no row with {wanted} for the task '{task.name}'."])
    return _selected(task, source, columns, kept) if data_dir is None else kept


def has_source(source: Source, data_dir: Path | None) -> bool:
    """Tell whether a source can be read without asking the Hub in vain."""
    if source.beside is not None:
        return True
    if data_dir is None:
        return source.hub is not None
    return source.file is not None and (data_dir / source.file).is_file()


def needed_columns(columns: Columns) -> tuple[str, ...]:
    """Return the names of the columns that rows must have."""
    names = (
        columns.question, columns.context, *columns.options, columns.answer, columns.right,
        columns.wrong, columns.reference, columns.id, columns.label, columns.cluster,
    )  # fmt: skip
    return tuple(dict.fromkeys(name for name in names if name is not None))


def origin_of(source: Source) -> str:
    """Say what of the Hub a source is."""
    if source.hub is None:
        return ""
    if source.archive is not None:
        return f"'{source.member}' of {source.archive} in {source.hub}"
    config = "" if source.config is None else f"'{source.config}', "
    return f"{source.hub}, {config}split '{source.split}'"


def _from_hub(task: TaskSpec, source: Source) -> list[tuple[str, list[Row]]]:
    if source.hub is None:
        raise EvaluationError(
            f"The data of task '{task.name}' is on no Hub: name the folder that holds "
            f"'{source.file}' with --data-dir."
        )
    try:
        if source.archive is not None:
            path = dataset_file(source.hub, source.archive)
            return [(origin_of(source), read_rows(path, member=source.member))]
        paths = dataset_files(source.hub, split=source.split, config=source.config)
        return [(f"{source.hub} {path.name}", read_rows(path)) for path in paths]
    except CheckpointError as error:
        raise EvaluationError(
            f"Task '{task.name}': {error} With --data-dir, a folder that holds '{source.file}' "
            "replaces the Hub."
        ) from error


def _is_meant(row: Row, where: Mapping[str, tuple[str, ...]]) -> bool:
    return all(find_value(row.values, column) in values for column, values in where.items())


def _selected(
    task: TaskSpec, source: Source, columns: Columns, files: list[tuple[str, list[Row]]]
) -> list[tuple[str, list[Row]]]:
    """Keep the rows whose ids a file beside the suite lists, or does not."""
    listed = source.only_ids or source.except_ids
    if listed is None:
        return files
    ids = {str(row.values.get("id")) for row in read_rows(task.folder / listed)}

    def name_of(row: Row) -> str:
        return str(find_value(row.values, columns.id or "id"))

    wanted = source.only_ids is not None
    kept = [
        (name, [row for row in rows if (name_of(row) in ids) == wanted]) for name, rows in files
    ]
    there = {name_of(row) for _, rows in files for row in rows}
    if lost := sorted(ids - there):
        raise refuse(
            files[0][0],
            [f"lacks {len(lost):,} of the {len(ids):,} rows in '{listed}', such as {lost[0]}."],
        )
    return kept
