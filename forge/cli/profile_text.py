"""Show profiles: a table of memory and one of speed for each setting, and what to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from forge.cli.tables import duration_text, size_text, table
from forge.profile.comparison import QUANTITIES, cores_of, spread, tokens_per_s
from forge.profile.noise import disturbance_of

if TYPE_CHECKING:
    from forge.profile.comparison import Quantity
    from forge.profile.run import Profiles
    from forge.profile.session import Session
    from forge.results.records import ModelRecord, ProfileRecord

_NONE = "–"
_NOISY = 0.05
"""Share of the machine that others may take before the reader is told."""


def profiles_text(found: Profiles, *, width: int | None) -> str:
    """Lay out everything that was measured.

    Args:
        found: The profiles.
        width: Columns of the terminal, or ``None``.
    """
    labels = _labels(found.models)
    parts = [_environment_line(found.environment.body)]
    for session in found.sessions:
        parts += [
            _title(found, session),
            _memory_table(found, session, labels, width),
            _speed_table(found, session, labels, width),
            _remarks(found, session, labels),
        ]
    return "\n\n".join(part for part in parts if part)


def profiles_json(found: Profiles) -> dict[str, object]:
    """Return everything that was measured as plain JSON values, raw samples included."""
    labels = _labels(found.models)
    return {
        "environment": found.environment.body,
        "baseline": labels[found.baseline],
        "effort": found.effort.as_json(),
        "models": [
            {
                "label": labels[model.fingerprint], "fingerprint": model.fingerprint,
                "method": model.method, "format": model.format, "bits": model.bits,
                "group_size": model.group_size, "num_parameters": model.num_parameters,
            }
            for model in found.models
        ],
        "sessions": [
            {
                "session": session.digest,
                "setting": session.setting.as_json(),
                "is_reused": session.is_reused,
                "profiles": [
                    _profile_json(found, session, profile, labels) for profile in session.profiles
                ],
            }
            for session in found.sessions
        ],
    }  # fmt: skip


def _profile_json(
    found: Profiles, session: Session, profile: ProfileRecord, labels: Mapping[str, str]
) -> dict[str, object]:
    spreads = {name: spread(rounds) for name, rounds in profile.samples.items()}
    ratios = {name: found.ratio(session, profile, name) for name in QUANTITIES}
    return {
        "model": labels[profile.model],
        "status": profile.status,
        "backend": profile.backend,
        "memory": dict(profile.memory),
        "noise": dict(profile.noise),
        "prefill_tokens_per_s": tokens_per_s(profile, "prefill"),
        "decode_tokens_per_s": tokens_per_s(profile, "decode"),
        "summary": {name: each.as_json() for name, each in spreads.items() if each is not None},
        "ratios": {name: each.as_json() for name, each in ratios.items() if each is not None},
        "samples": {name: [list(each) for each in rows] for name, rows in profile.samples.items()},
        "notices": list(profile.notices),
    }


def _labels(models: Sequence[ModelRecord]) -> dict[str, str]:
    """Return a label for each model; what the user typed where labels are equal."""
    counts: dict[str, int] = {}
    for model in models:
        counts[model.label] = counts.get(model.label, 0) + 1
    return {
        model.fingerprint: model.label if counts[model.label] == 1 else model.location
        for model in models
    }


def _environment_line(body: Mapping[str, object]) -> str:
    cpu, gpu, versions = body["cpu"], body["gpu"], body["versions"]
    assert isinstance(cpu, Mapping)
    assert isinstance(versions, Mapping)
    memory = body.get("memory_bytes")
    parts = [f"{cpu['model']}, {cpu['cores']} cores"]
    if isinstance(memory, int):
        parts.append(size_text(memory))
    if isinstance(gpu, Mapping):
        parts.append(f"{gpu['name']}, driver {gpu['driver']}")
    shown = ("forge", "torch", "transformers")
    parts.append(", ".join(f"{name} {versions[name]}" for name in shown if name in versions))
    return "; ".join(parts)


def _title(found: Profiles, session: Session) -> str:
    setting, effort = session.setting, found.effort
    threads = f"{setting.threads} thread{'' if setting.threads == 1 else 's'}"
    reused = ", measured before (--again measures anew)" if session.is_reused else ""
    return (
        f"batch {setting.batch}, {setting.prompt_tokens} prompt and {setting.new_tokens} new "
        f"tokens, {setting.device}, {threads}; {effort.rounds} rounds of {effort.samples}{reused}"
    )


def _memory_table(
    found: Profiles, session: Session, labels: Mapping[str, str], width: int | None
) -> str:
    heads = ["model", "method", "format", "bits", "group", "on disk", "in memory", "KV / token"]
    names = ["weights_on_disk", "weights_in_memory", "kv_per_token"]
    if session.setting.device == "cpu":
        heads += ["peak loading", "peak running"]
        names += ["peak_resident_loading", "peak_resident_running"]
    else:
        heads += ["allocated", "reserved", "driver", "host"]
        names += ["peak_allocated", "peak_reserved", "driver", "peak_resident"]
    rows = []
    for model, profile in zip(found.models, session.profiles, strict=True):
        rows.append([
            labels[model.fingerprint], model.method or _NONE, model.format or _NONE,
            _number(model.bits), _number(model.group_size),
            *(_size(profile.memory.get(name)) for name in names),
        ])  # fmt: skip
    return table(heads, rows, right=heads[3:], width=width)


def _speed_table(
    found: Profiles, session: Session, labels: Mapping[str, str], width: int | None
) -> str:
    heads = ["model", "load", "prefill tok/s", "× prefill", "TTFT", "p99", "decode tok/s",
             "× decode", "step", "p99 step"]  # fmt: skip
    rows = []
    for profile in session.profiles:
        label = labels[profile.model]
        if profile.status != "ok":
            rows.append([label, profile.status, *[_NONE] * (len(heads) - 2)])
            continue
        load, first, step = (
            spread(profile.samples[name]) for name in ("load_s", "ttft_s", "decode_s")
        )
        assert load is not None
        assert first is not None
        assert step is not None
        rows.append([
            label, duration_text(load.median), _rate(tokens_per_s(profile, "prefill")),
            _ratio(found, session, profile, "prefill"), _milliseconds(first.median),
            _milliseconds(first.p99), _rate(tokens_per_s(profile, "decode")),
            _ratio(found, session, profile, "decode"), _milliseconds(step.median),
            _milliseconds(step.p99),
        ])  # fmt: skip
    return table(heads, rows, right=heads[1:], width=width)


def _ratio(found: Profiles, session: Session, profile: ProfileRecord, quantity: Quantity) -> str:
    if profile.model == found.baseline:
        return "1"
    ratio = found.ratio(session, profile, quantity)
    if ratio is None:
        return _NONE
    sign = "≈ " if ratio.verdict == "≈" else ""
    return f"{sign}{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _remarks(found: Profiles, session: Session, labels: Mapping[str, str]) -> str:
    lines = [_noise_line(found, session)]
    for profile in session.profiles:
        for quantity in QUANTITIES[:2]:
            ratio = found.ratio(session, profile, quantity)
            if ratio is not None and ratio.verdict == "≈":
                lines.append(f"≈ {labels[profile.model]}, {quantity}: {ratio.reason}.")
    by_notice: dict[str, list[str]] = {}
    for profile in session.profiles:
        for notice in profile.notices:
            by_notice.setdefault(notice, []).append(labels[profile.model])
    for notice, models in by_notice.items():
        everyone = len(models) == len(session.profiles)
        lines.append(notice if everyone else f"{', '.join(models)}: {notice}")
    return "\n".join(line for line in lines if line)


def _noise_line(found: Profiles, session: Session) -> str:
    cores = cores_of(found.environment.body)
    measured = [profile for profile in session.profiles if profile.status == "ok"]
    if not measured:
        return ""
    worst = max(measured, key=lambda profile: disturbance_of(profile.noise, num_cores=cores))
    share = disturbance_of(worst.noise, num_cores=cores)
    word = "NOISY: others" if share > _NOISY else "Others"
    others, steal, waited, load = (
        worst.noise.get(name, 0.0)
        for name in ("other_cpu_cores", "steal_share", "queue_wait_share", "load_before")
    )
    return (
        f"{word} took up to {share:.0%} of the machine (other processes {others:.2f} of {cores} "
        f"cores, hypervisor {steal:.1%}, threads waited {waited:.1%} of their time); load before "
        f"{load:.2f}."
    )


def _number(value: int | None) -> str:
    return _NONE if value is None else str(value)


def _size(value: int | None) -> str:
    return _NONE if value is None else size_text(value)


def _rate(value: float | None) -> str:
    return _NONE if value is None else (f"{value:.1f}" if value < 100 else f"{value:,.0f}")


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else duration_text(seconds)
