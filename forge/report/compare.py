"""From a results file to a comparison: choose, pair, test, judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forge import __version__
from forge.core.errors import ResultsError
from forge.report.boards import AnswerReader, Basis, Board, boards
from forge.report.calibration import reliability
from forge.report.commands import measuring_commands
from forge.report.comparison import Comparison, Family, Pareto, Recommendation, Settings, Verdict
from forge.report.comparison.differences import Difference, Divergence, Pair
from forge.report.comparison.origin import Merge, QuantizationErrors
from forge.report.comparison.profiles import ProfileTable
from forge.report.comparison.scores import Reliability, ScoreTable
from forge.report.differences import CONFIDENCE, overall_difference, pair_differences
from forge.report.divergences import shown_divergences
from forge.report.flips import flips_of
from forge.report.lineage import lineages
from forge.report.lineup import Lineup, line_up
from forge.report.merge_diagnostics import merge_diagnostics
from forge.report.pareto import pareto
from forge.report.profiles import ProfileReader, read_profiles
from forge.report.quantization_errors import quantization_errors
from forge.report.recommendation import recommend
from forge.report.scores import Daggers, choice_table, text_tables
from forge.report.verdicts import verdicts
from forge.results.answers import MODES, Mode
from forge.results.store import open_results

DEFAULT_MARGIN: Final = 0.01
_MAX_MARGIN: Final = 0.5


def compare(
    results: Path,
    *,
    models: Sequence[str] = (),
    baseline: str | None = None,
    margin: float = DEFAULT_MARGIN,
    suite: str | None = None,
    mode: Mode = "constrained",
    title: str | None = None,
) -> Comparison:
    """Compare what was measured.

    Args:
        results: The results file.
        models: Labels of the models to show; empty for all.
        baseline: Label of the model that all others are compared with; by default each variant is
            compared with what it was made from.
        margin: Loss of accuracy that does not matter, a share above 0 and at most 0.5.
        suite: Name of the suite that verdicts rest on, and the only one to show; by default the one
            that most models answered, with all others shown.
        mode: Scoring mode that verdicts rest on.
        title: Of the report.

    Returns:
        The comparison. The same file gives the same one.

    Raises:
        ResultsError: There is no such file, nothing in it, a model or suite is not in it, the
            models share no question, or the margin is out of range.
    """
    _check_margin(margin)
    with open_results(results, create=False) as store:
        lineup = line_up(store.models(), wanted=models, baseline=baseline)
        found = boards(store.evaluations(), lineup, suite=suite)
        profiles, environments = read_profiles(store.profiles(), store.environments(), lineup)
        divergences = shown_divergences(store.divergences(), lineup)
        if not found and not profiles.records and not divergences:
            raise ResultsError(
                f"'{results}' has nothing about {_names(lineup)}: no evaluation, profile or "
                "divergence. Run 'forge eval' or 'forge profile' first."
            )
        reader = AnswerReader(store, store.items())
        basis = None
        if found and found[0].key.kind == "choice":
            scored = found[0].scored_in(mode)
            basis = Basis(scored, reader, mode, margin) if scored.evaluations else None
        pairs, families = _pairs(basis, lineup)
        _check_shared(basis)
        tables = _tables(found, reader, lineup, pairs, mode=mode)
        shown = lineup.models()
        settings = Settings(
            suite=None if basis is None else basis.board.key.suite,
            mode=mode,
            margin=margin,
            confidence=CONFIDENCE,
            families=families,
            baseline=baseline,
        )
        judged = _judge(basis, lineup, pairs, tables, profiles, divergences, margin=margin)
        return Comparison(
            title=title or f"Comparison of {_names(lineup)}",
            forge_version=__version__,
            results_file=results.name,
            models=shown,
            settings=settings,
            recommendation=judged.recommendation,
            verdicts=judged.verdicts,
            profiles=judged.profiles,
            tables=tables,
            pairs=pairs,
            pareto=judged.pareto,
            divergences=divergences,
            reliability=_reliability(basis, lineup),
            quantization_errors=_quantization_errors(lineup),
            merges=_merges(lineup),
            lineage=lineages(lineup),
            environments=environments,
            commands=measuring_commands(
                lineup, profiles=judged.profiles.sweep, boards=found, divergences=divergences
            ),
            notices=(*lineup.notices, *_notices(found)),
        )


@dataclass(frozen=True, slots=True)
class _Judgement:
    profiles: ProfileTable
    pareto: Pareto | None
    recommendation: Recommendation
    verdicts: tuple[Verdict, ...]


def _judge(
    basis: Basis | None,
    lineup: Lineup,
    pairs: Sequence[Pair],
    tables: Sequence[ScoreTable],
    profiles: ProfileReader,
    divergences: Sequence[Divergence],
    *,
    margin: float,
) -> _Judgement:
    """Say which model to release, and what to think of each."""
    fingerprints = {entry.label: entry.record.fingerprint for entry in lineup.entries}

    def against(one: str, other: str) -> Difference | None:
        if basis is None:
            return None
        return overall_difference(basis, variant=fingerprints[one], baseline=fingerprints[other])

    def slower(one: str, other: str) -> int | None:
        return profiles.slower(fingerprints[one], fingerprints[other])

    table = tables[0] if basis is not None else None
    profile_table = profiles.table()
    points = pareto(lineup, table, profile_table, slower)
    advice = recommend(lineup, table=table, pareto=points, against=against, margin=margin)
    found = verdicts(
        lineup.models(),
        pairs=pairs,
        margin=margin,
        table=table,
        profiles=dict(profile_table.rows),
        divergences=divergences,
        pareto=points,
        recommended=advice.model,
    )
    return _Judgement(profile_table, points, advice, found)


def _check_margin(margin: float) -> None:
    if not 0 < margin <= _MAX_MARGIN:
        raise ResultsError(
            f"A margin of {100 * margin:g} points is out of range: it is the loss of accuracy that "
            f"does not matter, above 0 and at most {100 * _MAX_MARGIN:g}; try 1."
        )


def _names(lineup: Lineup) -> str:
    labels = [entry.label for entry in lineup.entries]
    return ", ".join(labels) if len(labels) <= 3 else f"{labels[0]} and {len(labels) - 1} others"


def _pairs(basis: Basis | None, lineup: Lineup) -> tuple[tuple[Pair, ...], tuple[Family, ...]]:
    if basis is None:
        return (), ()
    baselines = {entry.record.fingerprint: entry.baseline for entry in lineup.entries}
    labels = {entry.record.fingerprint: entry.label for entry in lineup.entries}
    found, families = pair_differences(basis, baselines)
    pairs = tuple(
        Pair(
            variant=labels[pair.variant],
            baseline=labels[pair.baseline],
            overall=pair.overall,
            tasks=pair.tasks,
            flips=flips_of(basis, variant=pair.variant, baseline=pair.baseline),
        )
        for pair in found
    )
    return pairs, families


def _check_shared(basis: Basis | None) -> None:
    """Refuse models that were all asked different questions."""
    if basis is not None and len(basis.board.models()) > 1 and not basis.board.any_shared():
        raise ResultsError(
            f"The models share no question of suite '{basis.board.key.suite}', so there is "
            "nothing to compare. Evaluate them on the same tasks with 'forge eval', or choose "
            "others with --models."
        )


def _quantization_errors(lineup: Lineup) -> tuple[QuantizationErrors, ...]:
    found = [quantization_errors(each.label, each.record.manifest) for each in lineup.entries]
    return tuple(errors for errors in found if errors is not None)


def _merges(lineup: Lineup) -> tuple[Merge, ...]:
    found = [
        merge_diagnostics(each.label, each.record.method, each.record.manifest)
        for each in lineup.entries
    ]
    return tuple(merge for merge in found if merge is not None)


def _tables(
    found: Sequence[Board],
    reader: AnswerReader,
    lineup: Lineup,
    pairs: Sequence[Pair],
    *,
    mode: Mode,
) -> tuple[ScoreTable, ...]:
    fingerprints = {entry.label: entry.record.fingerprint for entry in lineup.entries}
    daggers: dict[tuple[str, str | None], bool] = {}
    for pair in pairs:
        for difference in (pair.overall, *pair.tasks):
            daggers[fingerprints[pair.variant], difference.task] = difference.significant
    tables: list[ScoreTable] = []
    for number, board in enumerate(found):
        if board.key.kind == "text":
            tables += text_tables(board, lineup)
            continue
        for each in (mode, *(other for other in MODES if other != mode)):
            primary = number == 0 and each == mode
            scored = board.scored_in(each)
            if scored.evaluations:
                carried: Daggers = daggers if primary else {}
                tables.append(
                    choice_table(
                        scored, reader, lineup, mode=each, primary=primary, daggers=carried
                    )
                )
    return tuple(tables)


def _reliability(basis: Basis | None, lineup: Lineup) -> tuple[Reliability, ...]:
    if basis is None:
        return ()
    found = [
        reliability(
            entry.label, [each.bins for each in basis.read_all(entry.record.fingerprint)]
        )
        for entry in lineup.entries
    ]  # fmt: skip
    return tuple(each for each in found if each is not None)


def _notices(found: Sequence[Board]) -> list[str]:
    """Say which of several suites verdicts rest on."""
    names = [
        board.key.suite + (" with chat templates" if board.key.chat else "")
        for board in found
        if board.key.kind == "choice"
    ]
    return [f"Verdicts rest on {names[0]}; beside it: {', '.join(names[1:])}."] if names[1:] else []
