"""What is stored: models, environments, questions, answers, evaluations, profiles, divergences.

Records are keyed by what they depend on, so that a second run finds them and a run of something
else does not: a model by the digest of its files, an answer by model, prompt and what computed it.
A record never changes once it is written; only a model's label and place follow the last run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from forge.results.answers import Answer

Json = Mapping[str, object]


def digest_of(*parts: object) -> str:
    """Return a digest of plain JSON values, 32 hexadecimal digits of SHA-256.

    Args:
        parts: Text, numbers, booleans, ``None``, lists and mappings with text keys.
    """
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model that was measured.

    Attributes:
        fingerprint: Digest of everything that decides its predictions: see
            ``forge.checkpoints.identity``; of an API or an ensemble, of what names it.
        label: Its name in tables, such as the folder's.
        kind: Where it runs.
        location: What the user typed.
        architecture: Name of its family, or ``None``.
        num_parameters: Its parameters, or ``None`` where that is not known.
        weight_bytes: Size of its weight files, or ``None``.
        dtype: Type of the weights that are not quantized, such as ``bfloat16``, or ``None``.
        format: Name in the catalog of formats, such as ``awq-gemm``; ``None`` in full precision.
        method: What made it, such as ``dare_ties`` or ``awq``; ``None`` if forge did not.
        bits: Bits of a code, or ``None``.
        group_size: Weights that share a scale, or ``None``.
        licence: What its card says, or ``None``.
        members: Fingerprints of an ensemble's models.
        manifest: Its ``forge_manifest.json`` without digests of single tensors, or ``None``.
    """

    fingerprint: str
    label: str
    kind: Literal["local", "api", "ensemble"]
    location: str
    architecture: str | None = None
    num_parameters: int | None = None
    weight_bytes: int | None = None
    dtype: str | None = None
    format: str | None = None
    method: str | None = None
    bits: int | None = None
    group_size: int | None = None
    licence: str | None = None
    members: tuple[str, ...] = ()
    manifest: Json | None = None


@dataclass(frozen=True, slots=True)
class EnvironmentRecord:
    """Where something was measured.

    Attributes:
        digest: Digest of ``body``.
        body: Hardware, clocks, driver, versions, threads; plain JSON values.
    """

    digest: str
    body: Json

    @classmethod
    def of(cls, body: Json) -> EnvironmentRecord:
        """Return the record of an environment."""
        return cls(digest_of(body), body)


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """A question as it was put, without the shots before it.

    Attributes:
        digest: Digest of everything below.
        task: The task that it is from.
        item_id: Its name there; unique in the task.
        question: The question, with its context where it has one.
        options: Texts of the options, or the decisions that an answer in words can state; empty for
            a question without either.
        gold: Index of the right option, or the reference answer in words.
        label: What sampling is stratified by, such as ``yes``.
        cluster: Name of the passage that several items share, or ``None``.
    """

    digest: str
    task: str
    item_id: str
    question: str
    options: tuple[str, ...]
    gold: int | str
    label: str
    cluster: str | None = None

    @classmethod
    def of(
        cls,
        task: str,
        item_id: str,
        *,
        question: str,
        options: Sequence[str],
        gold: int | str,
        label: str,
        cluster: str | None = None,
    ) -> ItemRecord:
        """Return the record with its digest."""
        digest = digest_of(task, item_id, question, list(options), gold, label, cluster)
        return cls(digest, task, item_id, question, tuple(options), gold, label, cluster)


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """An answer, keyed by all that it depends on.

    Attributes:
        key: Digest of model, rendered prompt, options, backend, type and scoring version.
        model: Fingerprint of the model.
        answer: The answer.
    """

    key: str
    model: str
    answer: Answer


@dataclass(frozen=True, slots=True)
class EvaluationRecord:
    """One model on one task with one set of examples.

    Attributes:
        key: Digest of all that it depends on, the questions and answers included.
        model: Fingerprint of the model.
        suite: Name of the suite.
        task: Name of the task.
        kind: ``choice`` or ``text``.
        seed: Which set of examples stood before the questions.
        shots: How many examples that were.
        backend: What computed the answers, such as ``forge`` or ``api-chat``.
        dtype: Type of the arithmetic, or ``None`` behind an API.
        chat: Whether prompts went through the model's chat template.
        scoring_version: Version of the scoring.
        sample: How many items, of how many, and how they were drawn.
        metrics: By name, such as ``constrained/accuracy``; ``None`` where there is none.
        items: Digest of each question and key of the answer to it, in the order of the task.
        suite_digest: Digest of the suite's file and the data behind it.
    """

    key: str
    model: str
    suite: str
    task: str
    kind: Literal["choice", "text"]
    seed: int
    shots: int
    backend: str
    dtype: str | None
    chat: bool
    scoring_version: int
    sample: Json
    metrics: Mapping[str, float | None]
    items: tuple[tuple[str, str], ...]
    suite_digest: str


@dataclass(frozen=True, slots=True)
class ProfileRecord:
    """One model in one setting, measured in processes of its own.

    Attributes:
        key: Digest of model, setting, environment, session and probe version.
        model: Fingerprint of the model.
        session: Records of one session were measured in turns, so that their ratios mean
            something.
        environment: Digest of the environment.
        setting: ``device``, ``dtype``, ``threads``, ``batch``, ``prompt_tokens``, ``new_tokens``,
            and the effort: ``rounds``, ``samples``, ``seed``.
        status: ``ok``, or why there are no figures.
        samples: Raw samples by quantity: a tuple for each round. ``load_s`` (loading),
            ``ttft_s`` (prompt to first token), ``prefill_s`` (the prompt alone), ``decode_s``
            (one step of all sequences), ``energy_j`` (a round); of the baseline also ``control_…``,
            the same from a second process.
        memory: Bytes by name, ``None`` where the device does not say: ``weights_on_disk``,
            ``weights_in_memory``, ``peak_allocated``, ``peak_reserved``, ``driver``,
            ``peak_resident``, ``kv_per_token``, ``kv_per_token_by_formula``,
            ``resident_before_load``, ``peak_resident_loading``, ``peak_resident_running``,
            ``anonymous``.
        noise: What the machine did meanwhile: ``other_cpu_cores`` (used by other processes),
            ``steal_share``, ``queue_wait_share``, ``load_before``, ``busy_cores_before``,
            ``swap_used_bytes``, ``clock_mhz``, ``round_spread_prefill``, ``round_spread_decode``.
        backend: The kernels that really ran.
        notices: What the reader should know, such as why energy is missing.
        probe_version: Version of the probes.
    """

    key: str
    model: str
    session: str
    environment: str
    setting: Json
    status: str
    samples: Mapping[str, tuple[tuple[float, ...], ...]]
    memory: Mapping[str, int | None]
    noise: Mapping[str, float]
    backend: str
    notices: tuple[str, ...] = ()
    probe_version: int = 1


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far one decoder block's output is from the reference's.

    Attributes:
        layer: Its number, from 0.
        relative_error: ``‖variant − reference‖ / ‖reference‖`` over all tokens, both models run
            on their own, so that errors of the blocks before are in it.
        own_error: Error of this block alone: both blocks are given the reference's input, and the
            norm of their difference is relative to that of what the reference's block adds to
            its input. ``None`` where it was not measured.
    """

    layer: int
    relative_error: float
    own_error: float | None = None


@dataclass(frozen=True, slots=True)
class DivergenceRecord:
    """A variant's predictions against those of its source, on the same tokens.

    Attributes:
        key: Digest of both models, the tokens, the type and the version.
        variant: Fingerprint.
        reference: Fingerprint.
        text: Name of the text.
        tokens_digest: Digest of the token windows.
        dtype: Type of the arithmetic.
        figures: ``num_positions``, ``mean``, ``median``, ``p90``, ``p99``, ``max`` (KL, nats),
            ``same_top_share``, ``perplexity_reference``, ``perplexity_variant``,
            ``perplexity_ratio``.
        layers: Error of each decoder block's output, in order; empty where it was not measured.
    """

    key: str
    variant: str
    reference: str
    text: str
    tokens_digest: str
    dtype: str
    figures: Mapping[str, float]
    layers: tuple[LayerError, ...] = field(default=())
