"""A table of results as it is meant: models in rows, what was measured in columns.

What a column holds is read off its head and its cells: labels, settings (group size, bits), tasks
(scores that are averaged, where more is better), other measures, where more is better (tokens/s)
or less (perplexity, latency), and averages. Tables with models in columns are turned first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from forge.report.card_cells import Cell, Number
from forge.report.card_tables import CardTable

Kind = Literal["label", "setting", "task", "measure", "average", "weighted"]

_ARROWS: Final = re.compile(r"[↑↓▲▼⬆⬇%*†‡:]|\(\s*\)")
_UP: Final = re.compile(r"[↑▲⬆]")
_AVERAGE_WORD: Final = r"(?:avg|average|mean|moyenne|durchschnitt|promedio|media|mittel)\.?"
_AVERAGE: Final = re.compile(
    rf"(?:(?:overall|total|macro|global|task|unweighted)[- ]?)?{_AVERAGE_WORD}"
    r"(?:\s(?:score|accuracy|acc\.?|result|performance|overall|of|over|across|all|\(|\[).{0,60})?"
    rf"|.{{1,40}}\s{_AVERAGE_WORD}|macro",
    re.IGNORECASE,
)
_WEIGHTED: Final = re.compile(r"\b(?:micro|weighted)\b", re.IGNORECASE)
_UNWEIGHTED: Final = re.compile(r"\bun-?weighted\b", re.IGNORECASE)
_LOWER: Final = re.compile(
    r"↓|⬇|▼|\b(?:\w{0,12}ppl|perplexity|perplexities|kl|kld|divergence|v?ram|memory|mem|disk|time|latency|"
    r"ttft|tpot|itl|ece|calibration error|brier|loss|errors?|err|wer|cer|eer|mae|mse|rmse|fid|"
    r"toxicity|hallucinations?|hallucination rate|cost|price|energy|seconds?|sec|ms|missing|nll|"
    r"bpb|bits per byte|flips?)\b",
    re.IGNORECASE,
)
_HIGHER_MEASURE: Final = re.compile(
    r"\b(?:speed|speed-?up|throughput|tokens?/s|tok/s|tps|elo|mt-?bench|qps|samples/s)\b"
    r"|tokens? per second",
    re.IGNORECASE,
)
_SETTING: Final = re.compile(
    r"(?:^|[\s_#(])(?:group[\s_]?size|q_group_size|bits?|w_bit|bpw|version|seq(?:uence)?|context|"
    r"length|params?|parameters?|#params|size|layers?|heads?|hidden|epochs?|lr|learning rate|"
    r"batch|seeds?|shots?|rank|year|date|no|id|tokens?|likes|downloads|count|num|number|steps?|n|"
    r"questions|items|samples|examples|window|dim|dimension|vocab|vocabulary|width|depth|step|"
    r"iterations?|gpus?|ratio|density|weight|alpha|temperature|license)(?:$|[\s_)/])",
    re.IGNORECASE,
)
_SHARE: Final = re.compile(
    r"\b(?:acc|accuracy|f1|em|exact match|recall|precision|auc|auroc|auprc|rouge(?:-?[\dl])?|bleu|"
    r"pass@\d+|mmlu|medqa|medmcqa|pubmedqa|arc|hellaswag|winogrande|gsm8k|truthfulqa|boolq|piqa|"
    r"anatomy|genetics|biology|medicine)\b|%",
    re.IGNORECASE,
)
_CHANGE: Final = re.compile(
    r"[Δδ].{0,40}|.{0,40}\b(?:delta|diff|difference|change|gain|gains|improvement)\b.{0,40}",
    re.IGNORECASE,
)
_MODELS: Final = re.compile(
    r"\b(?:models?|methods?|systems?|variants?|llms?|name)\b", re.IGNORECASE
)
_TASKS: Final = re.compile(
    r"\b(?:tasks?|benchmarks?|datasets?|metrics?|tests?|subjects?|categor(?:y|ies)|evaluation)\b",
    re.IGNORECASE,
)
_NUMERIC_SHARE: Final = 0.6


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        index: Its number in the view, from 0.
        name: Its head, without arrows.
        kind: What it holds.
        lower_is_better: Whether less is better.
        is_share: Whether its head says that it is a share of answers, such as an accuracy.
        is_known: Whether its head, or an average beside it, says which direction is better.
    """

    index: int
    name: str
    kind: Kind
    lower_is_better: bool = False
    is_share: bool = False
    is_known: bool = True


@dataclass(frozen=True, slots=True)
class View:
    """A table with models in its rows.

    Attributes:
        table: The table, turned where its columns were models.
        columns: What its columns hold.
        groups: Numbers of its rows, in groups that separators divide; neither those nor rows of
            differences are among them.
        is_certain: Whether something says which way round the table is.
    """

    table: CardTable
    columns: tuple[Column, ...]
    groups: tuple[tuple[int, ...], ...]
    is_certain: bool

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of the rows of all groups."""
        return tuple(row for group in self.groups for row in group)

    def of_kind(self, *kinds: Kind) -> tuple[Column, ...]:
        """Return the columns of some kinds, in order."""
        return tuple(column for column in self.columns if column.kind in kinds)

    def cell(self, row: int, column: Column) -> Cell:
        """Return a cell."""
        return self.table.rows[row][column.index]

    def number(self, row: int, column: Column) -> Number | None:
        """Return the number of a cell, or ``None``."""
        return self.cell(row, column).number

    def label(self, row: int) -> str:
        """Return what names a row: the first of its labels that is not empty."""
        labels = (self.cell(row, column).text for column in self.of_kind("label"))
        return next(filter(None, labels), "") or f"row {row + 1}"

    @property
    def has_results(self) -> bool:
        """Whether it shows scores of anything."""
        return bool(self.of_kind("task", "average", "weighted")) and len(self.rows) > 0


def view_of(table: CardTable, *, turned: bool | None = None) -> View:
    """Return a table with models in its rows.

    Args:
        table: The table as it stands in the card.
        turned: Whether its columns are models; ``None`` to read that off its heads.
    """
    found = _is_turned(table) if turned is None else turned
    shown = _turn(table) if found else table
    rows = [at for at, row in enumerate(shown.rows) if not _separates(row)]
    columns = tuple(
        _column(at, head, [shown.rows[row][at] for row in rows])
        for at, head in enumerate(shown.heads)
    )
    if any(column.kind in ("average", "weighted") for column in columns):
        # What is averaged has one direction, and an average is better where it is larger.
        columns = tuple(replace(column, is_known=True) for column in columns)
    return View(shown, columns, _groups(shown), is_certain=found is not None)


def less_is_better(text: str) -> bool:
    """Return whether a text names a measure of which less is better, such as perplexity."""
    return bool(_LOWER.search(text))


def _is_turned(table: CardTable) -> bool | None:
    if any(_is_average(cell.text) for cell in table.heads[1:]):
        return False
    if any(_is_average(row[0].text) for row in table.rows):
        return True
    first = table.heads[0].text
    if _MODELS.search(first):
        return False
    return True if _TASKS.search(first) and len(table.heads) > 2 else None


def _turn(table: CardTable) -> CardTable:
    kept = [row for row in table.rows if not _separates(row)]
    heads = (table.heads[0], *(row[0] for row in kept))
    rows = tuple(
        (table.heads[column], *(row[column] for row in kept))
        for column in range(1, len(table.heads))
    )
    return CardTable(table.line, heads, rows or ((*heads,),), table.ragged)


def _separates(row: Iterable[Cell]) -> bool:
    """Tell whether a row only divides: nothing in it, or one title."""
    cells = list(row)
    texts = {cell.text for cell in cells if cell.text}
    if not texts or all(set(text) <= set("-:–—=_. ") for text in texts):
        return True
    filled = sum(bool(cell.text) for cell in cells)
    is_title = len(texts) == 1 and (filled == 1 or filled == len(cells))
    return is_title and len(cells) > 2 and not any(cell.number for cell in cells)


def _groups(table: CardTable) -> tuple[tuple[int, ...], ...]:
    groups: list[list[int]] = [[]]
    for at, row in enumerate(table.rows):
        if _separates(row):
            groups.append([])
        elif not _CHANGE.fullmatch(row[0].text):
            groups[-1].append(at)
    return tuple(tuple(group) for group in groups if group)


def _column(index: int, head: Cell, cells: list[Cell]) -> Column:
    name = " ".join(_ARROWS.sub(" ", head.text).split())
    present = [cell for cell in cells if not cell.is_missing]
    numbers = [cell.number for cell in present if cell.number is not None]
    if not numbers or len(numbers) < _NUMERIC_SHARE * len(present):
        return Column(index, name, "label")
    if _is_average(head.text):
        weighted = _WEIGHTED.search(head.text) and not _UNWEIGHTED.search(head.text)
        is_share = bool(_SHARE.search(head.text))
        return Column(index, name, "weighted" if weighted else "average", is_share=is_share)
    if _LOWER.search(head.text):
        return Column(index, name, "measure", lower_is_better=True)
    if _HIGHER_MEASURE.search(head.text):
        return Column(index, name, "measure")
    if _CHANGE.fullmatch(name):
        return Column(index, name, "setting")
    # 'MMLU (5-shot)' is a task: what stands in parentheses says how it was asked.
    if _SETTING.search(re.sub(r"\([^()]{0,60}\)", "", name)) or not name:
        return Column(index, name, "label" if not name and index == 0 else "setting")
    is_share = bool(_SHARE.search(head.text))
    is_known = is_share or bool(_UP.search(head.text))
    return Column(index, name, "task", is_share=is_share, is_known=is_known)


def _is_average(head: str) -> bool:
    name = " ".join(_ARROWS.sub(" ", head).split())
    return bool(_AVERAGE.fullmatch(name) or _WEIGHTED.fullmatch(name)
                or re.fullmatch(rf"(?:micro|weighted)[- ]?{_AVERAGE_WORD}", name, re.IGNORECASE)) \
        and not _LOWER.search(head)  # fmt: skip
