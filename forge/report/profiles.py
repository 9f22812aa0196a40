"""Table 1: memory and speed of each model, against its baseline measured in turns with it.

A ratio means something only between records of one session: they were taken in turns, so that what
the machine did meanwhile counts against both. It is one of times, as on published cards: below 1
is faster. Where ``forge.profile.comparison`` finds that noise covers it, no winner is named.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.profile.comparison import Quantity, compare, cores_of
from forge.report.comparison import Environment
from forge.report.comparison.differences import Interval
from forge.report.comparison.profiles import Latency, Profile, ProfileTable, TimeRatio
from forge.report.lineup import Lineup
from forge.results.records import EnvironmentRecord, ProfileRecord
from forge.statistics.summary import quantiles

Rounds = Sequence[Sequence[float]]
Cell = tuple[str, int | None, int, int, int]
"""Device, threads, batch, prompt tokens, new tokens."""

PEAKS: Final = ("peak_allocated", "driver", "peak_resident")
"""What table 1 shows as the peak: the first of these that was read."""


@dataclass(frozen=True, slots=True)
class ProfileReader:
    """Profiles of a report, and where they were measured.

    Attributes:
        records: Of the report's models, the oldest first.
        names: Name of each environment by its digest.
        cores: How many cores each has, likewise.
        lineup: The models.
    """

    records: tuple[ProfileRecord, ...]
    names: Mapping[str, str]
    cores: Mapping[str, int]
    lineup: Lineup

    def table(self) -> ProfileTable:
        """Lay out table 1 and the sweep behind it."""
        latest = self.latest()
        shown = [self._profile(record) for record in latest.values()]
        main = main_cell(latest.values())
        rows = []
        for entry in self.lineup.entries:
            if entry.record.kind == "local":
                record = latest.get((entry.record.fingerprint, *main)) if main else None
                rows.append((entry.label, None if record is None else self._profile(record)))
        order = [entry.label for entry in self.lineup.entries]
        shown.sort(
            key=lambda p: (order.index(p.model), p.device, p.batch, p.prompt_tokens, p.new_tokens,
                           p.threads or 0)
        )  # fmt: skip
        return ProfileTable("" if main is None else _words(main), tuple(rows), tuple(shown))

    def latest(self) -> dict[tuple[str, str, int | None, int, int, int], ProfileRecord]:
        """Return the last profile of each model in each setting."""
        return {(record.model, *cell_of(record)): record for record in self.records}

    def ratio(
        self, quantity: Quantity, model: ProfileRecord, against: ProfileRecord | None
    ) -> TimeRatio | None:
        """Return the ratio of two profiles' times.

        Args:
            quantity: What was timed.
            model: Above.
            against: Below; of the same session and setting, or ``None``.

        Returns:
            The ratio, or ``None`` where one of them has no such times.
        """
        if against is None:
            return None
        found = compare(against, model, quantity, num_cores=self.cores[model.environment])
        if found is None:
            return None
        # Theirs is one of speeds.
        interval = Interval(1 / found.high, 1 / found.low)
        return TimeRatio(1 / found.ratio, interval, found.verdict == "≈", found.reason or None)

    def partner(self, record: ProfileRecord, fingerprint: str | None) -> ProfileRecord | None:
        """Return another model's profile that was measured in turns with this one."""
        found = [
            other
            for other in self.records
            if other.model == fingerprint
            and (other.session, cell_of(other)) == (record.session, cell_of(record))
        ]
        # Of two types of arithmetic the same one is the fairer partner.
        found.sort(key=lambda other: other.setting.get("dtype") == record.setting.get("dtype"))
        return found[-1] if found else None

    def slower(self, one: str, other: str) -> int | None:
        """Compare two models' decoding in the setting of table 1.

        Args:
            one: Fingerprint.
            other: Fingerprint.

        Returns:
            1 where the first is slower, -1 where it is faster, 0 where noise covers the
            difference; ``None`` where they were not measured in turns.
        """
        latest = self.latest()
        main = main_cell(latest.values())
        record = None if main is None else latest.get((one, *main))
        if record is None:
            return None
        found = self.ratio("decode", record, self.partner(record, other))
        if found is None:
            return None
        return 0 if found.covered else 1 if found.ratio > 1 else -1

    def _profile(self, record: ProfileRecord) -> Profile:
        label = self.lineup.label_of(record.model)
        assert label is not None
        entry = next(e for e in self.lineup.entries if e.record.fingerprint == record.model)
        partner = self.partner(record, entry.baseline)
        device, threads, batch, prompt_tokens, new_tokens = cell_of(record)
        dtype = record.setting.get("dtype")
        prefill = _latency(record.samples.get("prefill_s"))
        decode = _latency(record.samples.get("decode_s"))
        energy = _latency(record.samples.get("energy_j"))
        peak_is = next((name for name in PEAKS if record.memory.get(name) is not None), None)
        return Profile(
            model=label,
            baseline=None if partner is None else self.lineup.label_of(partner.model),
            device=device,
            dtype=dtype if isinstance(dtype, str) else None,
            threads=threads,
            batch=batch,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            status=record.status,
            backend=record.backend,
            environment=self.names[record.environment],
            load=_latency(record.samples.get("load_s")),
            first_token=_latency(record.samples.get("ttft_s")),
            prefill=prefill,
            decode=decode,
            prefill_tokens_per_s=_rate(batch * prompt_tokens, prefill),
            decode_tokens_per_s=_rate(batch, decode),
            prefill_ratio=self.ratio("prefill", record, partner),
            decode_ratio=self.ratio("decode", record, partner),
            energy_j_per_token=None if energy is None else energy.median / (batch * new_tokens),
            memory=tuple(record.memory.items()),
            peak_bytes=record.memory[peak_is] if peak_is else None,
            peak_is=peak_is,
            noise=tuple(record.noise.items()),
            notices=record.notices,
        )


def read_profiles(
    records: Sequence[ProfileRecord], environments: Sequence[EnvironmentRecord], lineup: Lineup
) -> tuple[ProfileReader, tuple[Environment, ...]]:
    """Choose the profiles of a report, and name the environments that they refer to.

    Args:
        records: All, the oldest first.
        environments: All, the oldest first.
        lineup: The models of the report.

    Returns:
        The profiles, and the environments as ``A``, ``B`` …
    """
    shown = {entry.record.fingerprint for entry in lineup.entries}
    kept = tuple(record for record in records if record.model in shown)
    used = {record.environment for record in kept}
    found = [environment for environment in environments if environment.digest in used]
    names = {each.digest: _letters(number) for number, each in enumerate(found)}
    return (
        ProfileReader(kept, names, {each.digest: cores_of(each.body) for each in found}, lineup),
        tuple(Environment(names[each.digest], tuple(_facts(each.body))) for each in found),
    )


def cell_of(record: ProfileRecord) -> Cell:
    """Return the setting that two profiles must share to be compared."""
    setting = record.setting

    def number(name: str) -> int | None:
        value = setting.get(name)
        return value if isinstance(value, int) else None

    return (
        str(setting.get("device")), number("threads"), number("batch") or 1,
        number("prompt_tokens") or 0, number("new_tokens") or 0,
    )  # fmt: skip


def main_cell(records: Iterable[ProfileRecord]) -> Cell | None:
    """Return the setting that table 1 is in: the one in which most models have figures.

    Args:
        records: Profiles.

    Returns:
        Of equally common settings that with the smallest batch, then the longest prompt; ``None``
        without figures.
    """
    counted = Counter(cell_of(record) for record in records if record.status == "ok")
    return max(
        counted,
        key=lambda cell: (counted[cell], -cell[2], cell[3], cell[4], cell[0], cell[1] or 0),
        default=None,
    )


def _latency(rounds: Rounds | None) -> Latency | None:
    samples = [value for each in rounds or () for value in each]
    if not samples:
        return None
    median, p90, p99 = quantiles(samples, (0.5, 0.9, 0.99))
    return Latency(median, p90, p99, len(samples))


def _rate(num_tokens: int, latency: Latency | None) -> float | None:
    return None if latency is None else num_tokens / latency.median


def _words(cell: Cell) -> str:
    device, threads, batch, prompt_tokens, new_tokens = cell
    parts = [
        device,
        *([f"{threads} threads"] if threads is not None else []),
        f"batch {batch}",
        f"{prompt_tokens} prompt tokens",
        f"{new_tokens} new tokens",
    ]
    return ", ".join(parts)


def _letters(number: int) -> str:
    letters = string.ascii_uppercase
    return letters[number] if number < len(letters) else f"{letters[-1]}{number}"


def _facts(body: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in sorted(body.items()):
        if isinstance(value, Mapping):
            yield from _facts(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield prefix + name, ", ".join(str(item) for item in value)
        elif value is not None:
            yield prefix + name, str(value)
