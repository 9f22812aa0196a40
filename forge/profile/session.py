"""Measure and keep sessions: one setting with all of its models, measured in turns.

Ratios mean something only between figures that shared their minutes. So a session is stored when
its last turn is over, and found again only as a whole: by the same models in the same order, the
same baseline, setting, effort and environment. One model more is another session, and measures all
of them anew. A sweep is several sessions; interrupted, it keeps those that are complete, and the
same command goes on with the first that is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from forge.checkpoints.progress import Progress
from forge.core.machine import usable_cores
from forge.profile import needs
from forge.profile.comparison import CONTROL
from forge.profile.energy import explain_absence
from forge.profile.noise import noise_before, noise_of, spread_of
from forge.profile.setting import PROBE_VERSION, Effort, Setting
from forge.profile.subjects import Subject, common_vocabulary
from forge.profile.turns import SAMPLED, Seat, take_turns, turns_needed
from forge.profile.worker import OUT_OF_MEMORY, Request
from forge.profile.worker_process import ends_a_sweep
from forge.results.records import EnvironmentRecord, ProfileRecord, digest_of
from forge.results.store import ResultsStore

_WORTH_A_WORD: Final = 0.01
"""Relative difference of a measured cache from its formula that is said."""


@dataclass(frozen=True, slots=True)
class Session:
    """One setting, all models.

    Attributes:
        digest: Its name in the results file.
        setting: How the models ran.
        profiles: One a model, in the order of the models.
        is_reused: Whether it was measured before.
    """

    digest: str
    setting: Setting
    profiles: tuple[ProfileRecord, ...]
    is_reused: bool


class Sessions:
    """The sessions of one command.

    Args:
        subjects: The models.
        baseline: The one that ratios are against.
        environment: Where this is.
        effort: How much is measured.
        store: Where figures are kept.
        progress: Hears how it goes; one step is one turn.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        baseline: Subject,
        *,
        environment: EnvironmentRecord,
        effort: Effort,
        store: ResultsStore,
        progress: Progress,
    ) -> None:
        self._subjects, self._baseline, self._environment = subjects, baseline, environment
        self._effort, self._store, self._progress = effort, store, progress
        self._ended: dict[str, list[Setting]] = {}

    def run(self, settings: Sequence[Setting], *, again: bool) -> tuple[Session, ...]:
        """Find or measure a session for every setting.

        Args:
            settings: The settings, those that need little memory first.
            again: Whether to measure what was measured before.

        Returns:
            One session a setting, in their order.
        """
        kept: dict[Setting, Session] = {}
        for setting in settings:
            found = None if again else self._find(setting)
            if found is not None:
                kept[setting] = found
        steps = turns_needed(self._num_seats(), self._effort)
        self._progress.stage("measuring")
        self._progress.start(steps * len(settings), steps * len(kept))
        return tuple(kept.get(setting) or self._measure(setting, steps) for setting in settings)

    def _num_seats(self) -> int:
        return len(self._subjects) + int(self._has_control())

    def _has_control(self) -> bool:
        return self._effort.control and len(self._subjects) > 1

    def _digest(self, setting: Setting, number: int) -> str:
        models = [subject.record.fingerprint for subject in self._subjects]
        how = _setting_json(setting, self._effort), self._effort.control
        where, base = self._environment.digest, self._baseline.record.fingerprint
        return digest_of("session", PROBE_VERSION, where, *how, models, base, number)

    def _taken(self, setting: Setting) -> list[Session]:
        """Return all sessions of this kind, complete or not, in the order they were measured."""
        found: list[Session] = []
        while True:
            digest = self._digest(setting, len(found))
            profiles = {each.model: each for each in self._store.profiles(session=digest)}
            if not profiles:
                return found
            present = (profiles.get(subject.record.fingerprint) for subject in self._subjects)
            found.append(Session(digest, setting, tuple(each for each in present if each), True))

    def _find(self, setting: Setting) -> Session | None:
        taken = self._taken(setting)
        complete = [each for each in taken if len(each.profiles) == len(self._subjects)]
        if not complete:
            return None
        for profile in complete[-1].profiles:
            self._note_end(profile.model, profile.status, setting)
        return complete[-1]

    def _note_end(self, fingerprint: str, status: str, setting: Setting) -> None:
        if ends_a_sweep(status):
            self._ended.setdefault(fingerprint, []).append(setting)

    def _measure(self, setting: Setting, steps: int) -> Session:
        digest = self._digest(setting, len(self._taken(setting)))
        seats, together = self._seats(setting)
        running = [seat for seat in seats.values() if seat.status == "ok"]
        control = self._control_seat(setting, seats)
        before = noise_before(usable_cores())
        queue = running if control is None else [*running, control]
        count = 0

        def done(name: str) -> None:
            nonlocal count
            count += 1
            self._progress.status(f"{setting}: {name}")
            self._progress.advance(1)

        if queue:
            take_turns(queue, self._effort, together=together, done=done)
        self._progress.advance(max(0, steps - count))
        for seat in seats.values():
            if seat.status != "ok":
                self._progress.notice(f"{seat.name}, {setting}: {seat.status}. {seat.notices[-1]}")
        if control is not None:
            _add_control(seats[self._baseline.record.fingerprint], control)
        profiles = tuple(
            self._record(subject, setting, seats[subject.record.fingerprint], digest, before)
            for subject in self._subjects
        )
        for profile in profiles:
            self._store.add_profile(profile)
            self._note_end(profile.model, profile.status, setting)
        return Session(digest, setting, profiles, False)

    def _seats(self, setting: Setting) -> tuple[dict[str, Seat], bool]:
        """Return every model's seat, those that cannot run out of the rounds already."""
        vocabulary = common_vocabulary(self._subjects)
        available = needs.available_bytes(setting.device)
        seats: dict[str, Seat] = {}
        needed: list[int] = []
        for subject in self._subjects:
            request = Request(subject.reference, setting, self._effort.seed, vocabulary)
            seat = seats[subject.record.fingerprint] = Seat(subject.record.label, request)
            own = needs.needed_bytes(subject.checkpoint, setting)
            refused = self._ended_below(subject, setting) or needs.refusal(own, available)
            if refused is not None:
                seat.status = OUT_OF_MEMORY
                seat.tell(refused)
                continue
            is_twice = self._has_control() and subject is self._baseline
            needed += [own, own] if is_twice else [own]
        return seats, needs.fit_together(needed, available)

    def _ended_below(self, subject: Subject, setting: Setting) -> str | None:
        """Return why a model is not tried in a setting that is larger than one that did not fit."""
        ended = self._ended.get(subject.record.fingerprint, ())
        smaller = next((each for each in ended if setting.holds(each)), None)
        if smaller is None:
            return None
        return f"It was not tried: '{smaller}' did not fit, and this is larger."

    def _control_seat(self, setting: Setting, seats: dict[str, Seat]) -> Seat | None:
        base = seats[self._baseline.record.fingerprint]
        others = [seat for seat in seats.values() if seat is not base and seat.status == "ok"]
        if not self._has_control() or base.status != "ok" or not others:
            return None
        return Seat(f"{base.name} again", base.request)

    def _record(
        self,
        subject: Subject,
        setting: Setting,
        seat: Seat,
        session: str,
        before: Mapping[str, float],
    ) -> ProfileRecord:
        fingerprint = subject.record.fingerprint
        shown = _setting_json(setting, self._effort)
        if seat.status == "ok":
            _explain(seat, setting)
        return ProfileRecord(
            key=digest_of(
                "profile", fingerprint, shown, self._environment.digest, session, PROBE_VERSION
            ),
            model=fingerprint,
            session=session,
            environment=self._environment.digest,
            setting=shown,
            status=seat.status,
            samples={
                name: tuple(tuple(values) for values in rounds)
                for name, rounds in seat.samples.items()
            },
            memory={"weights_on_disk": subject.record.weight_bytes, **seat.memory},
            noise={**before, **_noise(seat)},
            backend=seat.backend,
            notices=tuple(seat.notices),
            probe_version=PROBE_VERSION,
        )


def _setting_json(setting: Setting, effort: Effort) -> dict[str, object]:
    """Return what is the same for all profiles of a session."""
    return {
        **setting.as_json(), "rounds": effort.rounds, "samples": effort.samples,
        "seed": effort.seed,
    }  # fmt: skip


def _add_control(base: Seat, control: Seat) -> None:
    """Keep what the baseline's second process took beside what its first one did."""
    if control.status != "ok":
        base.tell(f"The control failed, so that only halves are compared: {control.notices[-1]}")
    elif base.status == "ok":
        for quantity in SAMPLED:
            base.samples[f"{CONTROL}{quantity}"] = control.samples[quantity]


def _noise(seat: Seat) -> dict[str, float]:
    found = noise_of(seat.turns, num_cores=len(usable_cores()))
    for quantity in ("prefill_s", "decode_s"):
        spread = spread_of(seat.samples.get(quantity, ()))
        if spread is not None:
            found[f"round_spread_{quantity.removesuffix('_s')}"] = round(spread, 4)
    if seat.clocks_mhz:
        found["device_clock_mhz"] = sum(seat.clocks_mhz) / len(seat.clocks_mhz)
    return found


def _explain(seat: Seat, setting: Setting) -> None:
    """Say what a reader of the figures should know."""
    if "energy_j" not in seat.samples:
        seat.tell(explain_absence(setting.device))
    measured, formula = (
        seat.memory.get(name) for name in ("kv_per_token", "kv_per_token_by_formula")
    )
    if measured is None:
        seat.tell("Its cache is of a kind whose size cannot be read.")
    elif formula is None:
        seat.tell("For its cache there is no formula to check the measured size with.")
    elif abs(measured - formula) > _WORTH_A_WORD * formula:
        seat.tell(
            f"Its cache takes {measured:,} bytes a token, and {formula:,} by its configuration; "
            "sliding windows and shared layers keep less."
        )
