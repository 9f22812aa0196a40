"""The commands that measure a report's models again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from forge.report.boards import Board
from forge.report.comparison.differences import Divergence
from forge.report.comparison.profiles import Profile
from forge.report.lineage import public_name
from forge.report.lineup import Lineup


def measuring_commands(
    lineup: Lineup,
    *,
    profiles: Sequence[Profile],
    boards: Sequence[Board],
    divergences: Sequence[Divergence],
) -> tuple[str, ...]:
    """Return the commands, one for each device, board and divergence.

    Args:
        lineup: The models; those behind an API and ensembles are not in the commands.
        profiles: All profiles of the report.
        boards: Its evaluations.
        divergences: Its divergences.
    """
    places = {
        entry.label: shlex.quote(public_name(entry.record.location))
        for entry in lineup.entries
        if entry.record.kind == "local"
    }
    devices = sorted({profile.device for profile in profiles})
    commands = [_profile([p for p in profiles if p.device == device], places) for device in devices]
    for board in boards:
        asked = [
            places[entry.label]
            for entry in lineup.entries
            if entry.label in places and entry.record.fingerprint in board.models()
        ]
        if asked:
            commands.append(_evaluate(board, asked))
    commands += [
        f"forge divergence {places[each.variant]} --against {places[each.reference]}"
        for each in divergences
        if each.variant in places and each.reference in places
    ]
    return tuple(commands)


def _profile(profiles: Sequence[Profile], places: dict[str, str]) -> str:
    models = dict.fromkeys(places[each.model] for each in profiles if each.model in places)
    threads = {each.threads for each in profiles if each.threads is not None}
    options = [
        f"--batch {_numbers(each.batch for each in profiles)}",
        f"--prompt-tokens {_numbers(each.prompt_tokens for each in profiles)}",
        f"--new-tokens {max(each.new_tokens for each in profiles)}",
        f"--device {shlex.quote(profiles[0].device)}",
        *([f"--threads {max(threads)}"] if threads else []),
    ]
    return " ".join(["forge profile", *models, *options])


def _evaluate(board: Board, models: Sequence[str]) -> str:
    quick = {evaluation.sample.get("quick") for evaluation in board.evaluations.values()}
    options = [f"--suite {shlex.quote(board.key.suite)}"]
    if len(quick) == 1 and isinstance(number := next(iter(quick)), int):
        options.append(f"--quick {number}")
    return " ".join(["forge eval", *models, *options])


def _numbers(values: Iterable[int]) -> str:
    return ",".join(str(value) for value in sorted(set(values)))
