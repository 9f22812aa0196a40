"""What is evaluated: a model on this machine or one behind an API, known before it is loaded.

A subject says all that its answers depend on, from its files alone. It is opened, which loads
weights and imports torch, only when an answer is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from forge.checkpoints.checkpoint import open_checkpoint
from forge.core.errors import EvaluationError
from forge.evaluate.backends.api import ApiBackend, Kind
from forge.evaluate.backends.http_json import Server
from forge.evaluate.chat_template import chat_of
from forge.evaluate.contract import TRUNCATING, Backend
from forge.evaluate.prompts import Chat
from forge.recipes.reference import ModelReference
from forge.results.records import ModelRecord, digest_of
from forge.runtime.any_model import backend_for, check_fits, chosen_dtype, load_checkpoint
from forge.runtime.subject import describe


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be evaluated.

    Attributes:
        record: What it is.
        backend: What computes its answers.
        dtype: In which type, or ``None`` behind an API.
        is_chat: Whether prompts go through a chat template, here or behind the API.
        chat: The template of a model on this machine, or ``None`` for plain prompts.
        open: Returns its backend, loading the model.
        check: Refuses a model that could not be opened, before another is begun.
    """

    record: ModelRecord
    backend: str
    dtype: str | None
    is_chat: bool
    chat: Chat | None
    open: Callable[[], Backend]
    check: Callable[[], None]


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """How models on this machine are run.

    Attributes:
        device: ``cpu``, or a CUDA device.
        dtype: Type of activations and plain weights; ``None`` for what suits the device.
        threads: Threads of torch; ``None`` leaves them.
        batch_tokens: Most tokens of a batch; ``None`` for what suits the device.
        truncate: Whether prompts longer than the model's context lose their beginning.
        chat: Whether prompts go through the model's chat template.
    """

    device: str = "cpu"
    dtype: str | None = None
    threads: int | None = None
    batch_tokens: int | None = None
    truncate: bool = False
    chat: bool = False


@dataclass(frozen=True, slots=True)
class ApiModel:
    """A model behind an OpenAI-compatible API.

    Attributes:
        url: Where the API's paths begin, such as ``http://127.0.0.1:8000/v1``.
        model: The model's name there.
        kind: How it is asked: ``completions``, ``chat`` or ``text``.
        key_variable: Environment variable with the key, or ``None``.
        label: Its name in tables; by default the model's name.
        timeout_s: Limit of one request.
    """

    url: str
    model: str
    kind: Kind = "completions"
    key_variable: str | None = None
    label: str | None = None
    timeout_s: float = 120.0


def local_subject(reference: str, settings: LocalSettings, *, label: str | None = None) -> Subject:
    """Describe a model on this machine.

    Args:
        reference: A folder or a Hub id.
        settings: How it will be run.
        label: Its name in tables; by default the last part of the reference.

    Returns:
        The subject. Its files were read once, for their fingerprint.

    Raises:
        CheckpointError: It cannot be found or read.
        EvaluationError: It has no chat template, and one is asked for.
    """
    checkpoint = open_checkpoint(ModelReference.parse(reference), stored=True)
    dtype = chosen_dtype(checkpoint, settings.dtype, device=settings.device)

    def check() -> None:
        check_fits(checkpoint, device=settings.device, dtype=dtype)

    def open_backend() -> Backend:
        from forge.evaluate.backends.local import LocalBackend

        loaded = load_checkpoint(
            checkpoint, device=settings.device, dtype=dtype, threads=settings.threads
        )
        return LocalBackend(loaded, batch_tokens=settings.batch_tokens, truncate=settings.truncate)

    return Subject(
        record=describe(checkpoint, label=label),
        backend=backend_for(checkpoint) + (TRUNCATING if settings.truncate else ""),
        dtype=dtype,
        is_chat=settings.chat,
        chat=chat_of(checkpoint.tokenizer_root, label=reference) if settings.chat else None,
        open=open_backend,
        check=check,
    )


def api_subject(api: ApiModel) -> Subject:
    """Describe a model behind an API.

    Raises:
        EvaluationError: The URL is none, or the key's variable is not set.
    """
    server = Server(api.url, key_variable=api.key_variable, timeout_s=api.timeout_s)
    backend = ApiBackend(server, api.model, api.kind)
    server.check()
    record = ModelRecord(
        fingerprint=digest_of("api", api.url.rstrip("/"), api.model, api.kind),
        label=api.label or api.model,
        kind="api",
        location=f"{api.url.rstrip('/')} {api.model}",
    )
    return Subject(
        record, backend.name, None, api.kind != "completions", None, lambda: backend, server.check
    )


def check_labels(subjects: Sequence[Subject]) -> None:
    """Refuse two models with one name, and one model twice.

    Raises:
        EvaluationError: There are such.
    """
    seen: dict[str, Subject] = {}
    for subject in subjects:
        record = subject.record
        twin = seen.get(record.label)
        if twin is not None:
            raise EvaluationError(
                f"'{twin.record.location}' and '{record.location}' are both called "
                f"'{record.label}'. Give one another name with --label NAME=MODEL."
            )
        seen[record.label] = subject
    same: dict[str, str] = {}
    for subject in subjects:
        first = same.setdefault(subject.record.fingerprint, subject.record.label)
        if first != subject.record.label:
            raise EvaluationError(
                f"'{first}' and '{subject.record.label}' are the same model, byte by byte. Leave "
                "one away."
            )


def with_labels(
    references: Sequence[str], labels: Mapping[str, str]
) -> list[tuple[str, str | None]]:
    """Pair models with the names that the user gave them.

    Args:
        references: The models.
        labels: References by name.

    Raises:
        EvaluationError: A name is for a model that is not among them.
    """
    names = {reference: name for name, reference in labels.items()}
    for reference in names:
        if reference not in references:
            raise EvaluationError(
                f"--label {names[reference]}={reference} names no model of this run. Models: "
                f"{', '.join(references) or 'none'}."
            )
    return [(reference, names.get(reference)) for reference in references]
