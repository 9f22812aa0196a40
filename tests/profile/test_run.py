"""Sessions: what is measured together, what is found again, and what memory refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from forge.core.errors import CheckpointError, EvaluationError, OutputError
from forge.core.machine import usable_cores
from forge.profile import needs
from forge.profile import session as session_module
from forge.profile.comparison import cores_of
from forge.profile.noise import disturbance_of
from forge.profile.run import Profiles, profile_models
from forge.profile.session import Session
from forge.profile.setting import Effort, Setting
from forge.profile.subjects import Subject
from forge.profile.turns import Seat, turns_needed
from forge.profile.worker_process import WorkerError
from forge.results.records import ProfileRecord
from forge.results.store import ResultsStore, open_results
from tests.factory import tiny_checkpoint

pytestmark = pytest.mark.alone

EFFORT = Effort(rounds=2, samples=1)


class Machine:
    """Measures nothing: each model's times follow from its name."""

    def __init__(self) -> None:
        self.measured: list[list[str]] = []
        self.together: list[bool] = []
        self.fails: dict[str, WorkerError] = {}
        self.stops_at: int | None = None

    def take_turns(
        self, queue: Sequence[Seat], effort: Effort, *, together: bool, done: object
    ) -> None:
        if len(self.measured) == self.stops_at:
            raise KeyboardInterrupt
        self.measured.append([seat.name for seat in queue])
        self.together.append(together)
        for number, seat in enumerate(queue):
            if seat.name in self.fails:
                seat.leave(self.fails[seat.name])
                continue
            for quantity in ("prefill_s", "ttft_s", "decode_s"):
                seat.samples[quantity] = [[1.0 + number]] * effort.rounds
            seat.samples["load_s"] = [[1.0]]
            seat.memory = {"kv_per_token": 64, "kv_per_token_by_formula": 64}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(session_module, "take_turns", found.take_turns)
    monkeypatch.setattr(session_module, "noise_before", lambda cores: {"load_before": 0.0})
    return found


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("profiled")
    tiny_checkpoint(root / "alpha")
    # To time a model takes no tokenizer.
    tiny_checkpoint(root / "beta", seed=1, with_tokenizer=False)
    tiny_checkpoint(root / "gamma", seed=2)
    return root


def profiled(
    models: Path,
    results: Path,
    *names: str,
    batches: Sequence[int] = (1,),
    prompt_tokens: Sequence[int] = (6,),
    effort: Effort = EFFORT,
    baseline: str | None = None,
    again: bool = False,
) -> Profiles:
    return profile_models(
        [str(models / name) for name in names or ("alpha", "beta")], results=results,
        batches=batches, prompt_tokens=prompt_tokens, new_tokens=3, effort=effort, threads=1,
        baseline=baseline, again=again,
    )  # fmt: skip


def test_two_models_are_really_measured(models: Path, tmp_path: Path) -> None:
    results = tmp_path / "reports" / "results.db"
    found = profiled(models, results, batches=(2,))
    (session,) = found.sessions
    assert not session.is_reused
    first, second = session.profiles
    for profile in session.profiles:
        assert profile.status == "ok"
        shape = {name: [len(each) for each in rows] for name, rows in profile.samples.items()}
        expected = {"load_s": [1], "prefill_s": [1, 1], "ttft_s": [1, 1], "decode_s": [3, 3]}
        assert {name: shape[name] for name in expected} == expected
        assert min(profile.samples["ttft_s"]) >= min(profile.samples["prefill_s"])
        assert profile.backend == "forge plain, float32, sdpa attention"
        # bfloat16 on disk, with a header; float32 in memory, with the buffers of the rotation.
        on_disk = profile.memory["weights_on_disk"] or 0
        assert 1.5 * on_disk < (profile.memory["weights_in_memory"] or 0) < 2.1 * on_disk
        assert profile.memory["kv_per_token"] == 2 * 2 * 2 * 4 * 4
        assert profile.noise["load_before"] >= 0
        assert {"other_cpu_cores", "steal_share", "queue_wait_share"} <= profile.noise.keys()
        assert profile.setting["batch"] == 2
    # The baseline's second process, kept beside what its first one took.
    assert len(first.samples["control_decode_s"]) == 2
    assert "control_decode_s" not in second.samples
    assert found.ratio(session, first, "decode") is None
    assert found.ratio(session, second, "decode") is not None
    with open_results(results, create=False) as store:
        assert store.profiles() == session.profiles
        assert {model.label for model in store.models()} == {"alpha", "beta"}
        assert store.environments() == (found.environment,)
    again = profiled(models, results, batches=(2,))
    assert again.sessions[0].is_reused
    assert again.sessions[0].profiles == session.profiles


def test_a_competitor_stands_in_every_record_and_forbids_a_winner(
    models: Path, tmp_path: Path
) -> None:
    """From the competitor's CPU to the verdict, through real workers."""
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burn) for _ in usable_cores()]
    try:
        found = profile_models(
            [str(models / "alpha"), str(models / "beta")], results=tmp_path / "r.db",
            prompt_tokens=(16,), new_tokens=100, effort=Effort(rounds=3, samples=2), threads=1,
        )  # fmt: skip
    finally:
        for process in burners:
            process.kill()
            process.wait()
    (session,) = found.sessions
    cores = cores_of(found.environment.body)
    for profile in session.profiles:
        assert profile.noise["other_cpu_cores"] > 0.25
        assert disturbance_of(profile.noise, num_cores=cores) > 0.1
    ratio = found.ratio(session, session.profiles[1], "decode")
    assert ratio is not None
    assert ratio.floor > 1.1
    # Two models of one shape: no winner may come out of this.
    assert ratio.verdict == "≈"
    assert ratio.reason


def test_the_same_session_is_measured_once(models: Path, tmp_path: Path, machine: Machine) -> None:
    results = tmp_path / "r.db"
    first = profiled(models, results)
    assert machine.measured == [["alpha", "beta", "alpha again"]]
    assert not first.sessions[0].is_reused
    second = profiled(models, results)
    assert second.sessions[0].is_reused
    assert second.sessions[0].profiles == first.sessions[0].profiles
    assert len(machine.measured) == 1
    third = profiled(models, results, again=True)
    assert len(machine.measured) == 2
    assert third.sessions[0].digest != first.sessions[0].digest
    # From now on the newer one is found.
    assert profiled(models, results).sessions[0].digest == third.sessions[0].digest


@pytest.mark.parametrize(
    "change",
    [
        {"names": ("beta", "alpha")},
        {"names": ("alpha", "beta", "gamma")},
        {"baseline": "beta"},
        {"prompt_tokens": (7,)},
        {"effort": Effort(rounds=3, samples=1)},
        {"effort": Effort(rounds=2, samples=2)},
        {"effort": Effort(rounds=2, samples=1, seed=1)},
        {"effort": Effort(rounds=2, samples=1, control=False)},
    ],
)
def test_whatever_decides_a_ratio_makes_another_session(
    change: dict[str, object], models: Path, tmp_path: Path, machine: Machine
) -> None:
    results = tmp_path / "r.db"
    profiled(models, results)
    changed = dict(change)
    names = changed.pop("names", ("alpha", "beta"))
    profiled(models, results, *names, **changed)  # type: ignore[arg-type,misc]
    assert len(machine.measured) == 2


def test_one_byte_of_a_model_makes_another_session(
    tmp_path: Path, models: Path, machine: Machine
) -> None:
    tiny_checkpoint(tmp_path / "alpha")
    tiny_checkpoint(tmp_path / "beta", seed=1, with_tokenizer=False)
    results = tmp_path / "r.db"
    profiled(models, results)
    # The same bytes somewhere else are the same models.
    profiled(tmp_path, results)
    assert len(machine.measured) == 1
    path = tmp_path / "beta" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    profiled(tmp_path, results)
    assert len(machine.measured) == 2


def test_an_interrupted_sweep_goes_on_where_it_was_stopped(
    models: Path, tmp_path: Path, machine: Machine
) -> None:
    results = tmp_path / "r.db"
    machine.stops_at = 2
    with pytest.raises(KeyboardInterrupt):
        profiled(models, results, prompt_tokens=(6, 7, 8))
    machine.stops_at = None
    found = profiled(models, results, prompt_tokens=(6, 7, 8))
    assert [session.is_reused for session in found.sessions] == [True, True, False]
    assert len(machine.measured) == 3


def test_a_session_that_was_not_stored_to_its_end_is_not_found(
    models: Path, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "r.db"
    stored: list[object] = []
    add = ResultsStore.add_profile

    def stop_at_second(self: ResultsStore, profile: ProfileRecord) -> None:
        if stored:
            raise KeyboardInterrupt
        stored.append(profile)
        add(self, profile)

    with monkeypatch.context() as patch:
        patch.setattr(ResultsStore, "add_profile", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            profiled(models, results)
    found = profiled(models, results)
    assert not found.sessions[0].is_reused
    assert len({profile.session for profile in found.sessions[0].profiles}) == 1
    assert profiled(models, results).sessions[0] == Session(
        found.sessions[0].digest, found.sessions[0].setting, found.sessions[0].profiles, True
    )


def test_one_model_alone_needs_no_control(models: Path, tmp_path: Path, machine: Machine) -> None:
    profiled(models, tmp_path / "r.db", "alpha")
    assert machine.measured == [["alpha"]]


def test_what_does_not_fit_is_recorded_and_larger_ones_are_not_tried(
    models: Path, tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def needed(subject: object, setting: Setting) -> int:
        is_beta = "beta" in str(subject.reference)  # type: ignore[attr-defined]
        return 100 if is_beta and setting.prompt_tokens == 7 else 1

    monkeypatch.setattr(needs, "needed_bytes", needed)
    monkeypatch.setattr(needs, "available_bytes", lambda device: 50)
    found = profiled(models, tmp_path / "r.db", batches=(1, 2), prompt_tokens=(6, 7))
    table = {
        (session.setting.batch, session.setting.prompt_tokens): session.profiles[1]
        for session in found.sessions
    }
    assert {key: profile.status for key, profile in table.items()} == {
        (1, 6): "ok", (1, 7): "out of memory", (2, 6): "ok", (2, 7): "out of memory",
    }  # fmt: skip
    assert "it needs about 0.0 GB" in table[1, 7].notices[0]
    assert table[2, 7].notices == (
        "It was not tried: 'batch 1, 7 + 3 tokens' did not fit, and this is larger.",
    )
    assert table[1, 7].samples == {}
    # The baseline alone has nothing to be compared with.
    assert machine.measured[1] == ["alpha"]
    assert all(session.profiles[0].status == "ok" for session in found.sessions)
    assert found.ratio(found.sessions[1], table[1, 7], "decode") is None


def test_memory_that_runs_out_meanwhile_ends_the_sweep_of_that_model(
    models: Path, tmp_path: Path, machine: Machine
) -> None:
    machine.fails["beta"] = WorkerError("killed", "Its process was ended from outside.")
    found = profiled(models, tmp_path / "r.db", prompt_tokens=(6, 7))
    assert [session.profiles[1].status for session in found.sessions] == ["killed", "out of memory"]
    assert machine.measured == [["alpha", "beta", "alpha again"], ["alpha"]]
    # Found again, it still ends the sweep.
    profiled(models, tmp_path / "r.db", prompt_tokens=(6, 7, 8))
    assert machine.measured[2:] == [["alpha"]]


def test_a_model_that_fails_is_tried_in_the_next_setting(
    models: Path, tmp_path: Path, machine: Machine
) -> None:
    machine.fails["beta"] = WorkerError("failed", "TypeError: no.")
    found = profiled(models, tmp_path / "r.db", prompt_tokens=(6, 7))
    assert [session.profiles[1].status for session in found.sessions] == ["failed", "failed"]
    assert found.sessions[0].profiles[1].notices == ("TypeError: no.",)


def test_a_failed_control_is_said(models: Path, tmp_path: Path, machine: Machine) -> None:
    machine.fails["alpha again"] = WorkerError("failed", "No.")
    first = profiled(models, tmp_path / "r.db").sessions[0].profiles[0]
    assert "control_decode_s" not in first.samples
    assert any("The control failed" in notice for notice in first.notices)


@pytest.mark.parametrize(("available", "together"), [(10, False), (16, True), (None, False)])
def test_models_stay_in_memory_if_all_fit_side_by_side(
    available: int | None,
    together: bool,
    models: Path,
    tmp_path: Path,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two models and the control take 12.
    monkeypatch.setattr(needs, "needed_bytes", lambda checkpoint, setting: 4)
    monkeypatch.setattr(needs, "available_bytes", lambda device: available)
    profiled(models, tmp_path / "r.db")
    assert machine.together == [together]


def test_needs_are_weights_cache_and_prompt(models: Path) -> None:
    from forge.checkpoints.progress import Silence
    from forge.profile.subjects import open_subjects

    (subject,) = open_subjects([str(models / "alpha")], progress=Silence())
    small, long, wide = (
        needs.needed_bytes(subject.checkpoint, Setting("cpu", "float32", 1, batch, prompt, 4))
        for batch, prompt in ((1, 4), (1, 104), (3, 4))
    )
    config = subject.checkpoint.config
    weights = sum(
        subject.checkpoint.source.info(name).numel * 4 for name in subject.checkpoint.source.names()
    )
    cache = 2 * 2 * 2 * 4 * 4
    widest = 4 * (6 * 16 + 3 * 32)
    assert config["hidden_size"] == 16
    assert small == needs.PROCESS_BYTES + weights + 8 * cache + 4 * widest + 4 * 2 * 32
    assert long - small == 100 * (cache + widest)
    assert wide - small == 2 * (8 * cache + 4 * widest + 4 * 2 * 32)


def test_progress_counts_every_turn(models: Path, tmp_path: Path, machine: Machine) -> None:
    class Heard:
        def __init__(self) -> None:
            self.totals: list[tuple[int, int]] = []
            self.advanced = 0

        def start(self, total_bytes: int, done_bytes: int) -> None:
            self.totals.append((total_bytes, done_bytes))

        def advance(self, num_bytes: int) -> None:
            self.advanced += num_bytes

        def stage(self, name: str) -> None: ...

        def status(self, text: str) -> None: ...

        def notice(self, text: str) -> None: ...

    results, names = tmp_path / "r.db", [str(models / "alpha"), str(models / "beta")]
    turns = turns_needed(3, EFFORT)
    for lengths, expected in (((6,), (turns, 0)), ((6, 7), (2 * turns, turns))):
        heard = Heard()
        profile_models(
            names, results=results, prompt_tokens=lengths, new_tokens=3, effort=EFFORT,
            threads=1, progress=heard,
        )  # fmt: skip
        assert heard.totals == [expected]
        assert heard.advanced == turns


def wrong(models: Path, tmp_path: Path, *names: str, **options: object) -> str:
    with pytest.raises((CheckpointError, EvaluationError, OutputError)) as caught:
        profile_models(
            [str(models / name) for name in names or ("alpha", "beta")],
            **{"results": tmp_path / "r.db", "effort": EFFORT, "prompt_tokens": (6,), **options},  # type: ignore[arg-type]
        )
    return str(caught.value)


def test_wrong_inputs_are_named_before_anything_is_measured(
    models: Path, tmp_path: Path, machine: Machine
) -> None:
    assert "delta" in wrong(models, tmp_path, "alpha", "delta")
    assert "--batch 0 is not from 1" in wrong(models, tmp_path, batches=(0,))
    assert "are the same model, byte by byte" in wrong(models, tmp_path, "alpha", "alpha")
    assert wrong(models, tmp_path, prompt_tokens=(100,), new_tokens=32) == (
        "'alpha' knows 128 positions, and prompts of 100 tokens with 32 new ones need 132. Lower "
        "--prompt-tokens or --new-tokens, or leave the model out."
    )
    assert wrong(models, tmp_path, baseline="alhpa") == (
        "--baseline alhpa is none of the models that are profiled: alpha, beta. Did you mean "
        "'alpha'?"
    )
    # No file can be made there, whoever asks.
    assert "cannot be made" in wrong(models, tmp_path, results=Path("/proc/forge/results.db"))
    assert machine.measured == []


def test_a_results_file_that_cannot_be_written_is_found_out_first(
    models: Path, tmp_path: Path, machine: Machine
) -> None:
    results = tmp_path / "r.db"
    with open_results(results):
        pass
    # Even root cannot write to it: there is a folder in the place of SQLite's journal.
    (tmp_path / "r.db-journal").mkdir()
    assert "cannot be used" in wrong(models, tmp_path, results=results)
    assert machine.measured == []


def test_equal_labels_are_told_apart_by_their_paths(
    models: Path, tmp_path: Path, machine: Machine
) -> None:
    tiny_checkpoint(tmp_path / "alpha", seed=9)
    found = profile_models(
        [str(models / "alpha"), str(tmp_path / "alpha")], results=tmp_path / "r.db",
        effort=EFFORT, baseline=str(tmp_path / "alpha"), prompt_tokens=(6,), new_tokens=2,
    )  # fmt: skip
    assert found.baseline == found.models[1].fingerprint
    message = wrong(models, tmp_path, "alpha", str(tmp_path / "alpha"), baseline="alpha")
    assert "fits several models" in message


def test_subjects_are_what_recipes_name(models: Path) -> None:
    from forge.checkpoints.progress import Silence
    from forge.profile.subjects import common_vocabulary, open_subjects

    subjects: tuple[Subject, ...] = open_subjects([str(models / "alpha")], progress=Silence())
    assert common_vocabulary(subjects) == 32
    with pytest.raises(EvaluationError, match="No model is named"):
        open_subjects([], progress=Silence())
