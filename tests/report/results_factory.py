"""Write results files with planted truths, so that a report's verdicts can be held against them.

The world of ``write_results``: a source, a merge of it, and their variants, of which

    source_7b        right on 60 % of 2 × 400 questions
    source_7b-awq    the same but for a few flips each way: not worse within 2 points
    source_7b-nf4    10 points worse on each task: worse
    source_7b-int8   asked only 20 questions: undecided
    source_7b-slow   as accurate as awq, but larger and slower than it: dominated
    merge & more     5 points better on each task
    judge            behind an API, one task only
    trio             an ensemble
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forge.results.answers import ChoiceAnswer, TextAnswer
from forge.results.records import (
    AnswerRecord,
    DivergenceRecord,
    EnvironmentRecord,
    EvaluationRecord,
    ItemRecord,
    LayerError,
    ModelRecord,
    ProfileRecord,
    digest_of,
)
from forge.results.store import ResultsStore, open_results

NUM_ITEMS = 400
NUM_OPTIONS = 4
TASKS = ("med_qa", "heart & lung 50%")
SUITE = "planted"
SOURCE = "source_7b"
SAME = "source_7b-awq"
WORSE = "source_7b-nf4"
FEW = "source_7b-int8"
SLOW = "source_7b-slow"
MERGE = "merge & more"
API = "judge"
ENSEMBLE = "trio"
RIGHT = range(240)
"""Questions that the source answers right."""

Right = Sequence[int] | range


@dataclass(frozen=True)
class Asked:
    """How a model does on a task: the numbers of the questions that it answers right."""

    right: frozenset[int]
    num_items: int = NUM_ITEMS


def item(task: str, number: int, *, cluster: str | None = None) -> ItemRecord:
    """Return question ``number`` of a task; its right option goes round."""
    return ItemRecord.of(
        task,
        f"q{number}",
        question=f"Question {number} of {task}: which of these?",
        options=[f"option {letter} of {number}" for letter in "abcd"],
        gold=number % NUM_OPTIONS,
        label="ABCD"[number % NUM_OPTIONS],
        cluster=cluster,
    )


def choice(chosen: int | None, *, confidence: float = 0.7, mass: float = 0.95) -> ChoiceAnswer:
    """Return an answer that gives ``confidence`` of the mass to the chosen option."""
    other = (1.0 - confidence) / (NUM_OPTIONS - 1)
    shares = [other] * NUM_OPTIONS
    if chosen is not None:
        shares[chosen] = confidence
    return ChoiceAnswer(
        log_probs=tuple(math.log(mass * share) for share in shares),
        top=chosen,
        top_text="?" if chosen is None else "ABCD"[chosen],
        top_log_prob=math.log(mass * confidence),
    )


def add_model(store: ResultsStore, label: str, **known: Any) -> ModelRecord:
    """Add a local model whose fingerprint is a digest of its label."""
    record = ModelRecord(
        fingerprint=known.pop("fingerprint", digest_of("model", label)),
        label=label,
        kind=known.pop("kind", "local"),
        location=known.pop("location", f"models/{label}"),
        **known,
    )
    store.add_models([record])
    return record


def add_choices(
    store: ResultsStore,
    model: ModelRecord,
    task: str,
    answers: Sequence[ChoiceAnswer],
    *,
    seed: int = 0,
    suite: str = SUITE,
    items: Sequence[ItemRecord] | None = None,
    chat: bool = False,
    shots: int = 3,
    backend: str = "forge",
    suite_digest: str | None = None,
) -> EvaluationRecord:
    """Add an evaluation of one task, with one answer for each question from number 0 on."""
    asked = [item(task, number) for number in range(len(answers))] if items is None else items
    records = [
        AnswerRecord(
            digest_of(model.fingerprint, question.digest, suite, seed, chat, backend),
            model.fingerprint,
            answer,
        )
        for question, answer in zip(asked, answers, strict=True)
    ]
    store.add_answers(records)
    found = EvaluationRecord(
        key=digest_of(
            "evaluation", model.fingerprint, suite, task, seed, chat, backend, len(asked), shots
        ),
        model=model.fingerprint,
        suite=suite,
        task=task,
        kind="choice",
        seed=seed,
        shots=shots,
        backend=backend,
        dtype=None if model.kind == "api" else "float32",
        chat=chat,
        scoring_version=1,
        sample={"items": len(asked), "of": NUM_ITEMS, "quick": None, "drawn": "all"},
        metrics={},
        items=tuple(
            (question.digest, record.key) for question, record in zip(asked, records, strict=True)
        ),
        suite_digest=suite_digest or digest_of("suite", suite),
    )
    store.add_evaluation(found, asked)
    return found


def add_texts(
    store: ResultsStore,
    model: ModelRecord,
    task: str,
    metrics: Mapping[str, float | None],
    *,
    seed: int = 0,
    suite: str = "written",
) -> EvaluationRecord:
    """Add an evaluation of one question that is answered in words."""
    question = ItemRecord.of(task, "w0", question="Why?", options=[], gold="Because.", label="why")
    answer = AnswerRecord(
        digest_of(model.fingerprint, question.digest, seed), model.fingerprint, TextAnswer("So.")
    )
    store.add_answers([answer])
    found = EvaluationRecord(
        key=digest_of("evaluation", model.fingerprint, suite, task, seed),
        model=model.fingerprint,
        suite=suite,
        task=task,
        kind="text",
        seed=seed,
        shots=0,
        backend="forge",
        dtype="float32",
        chat=False,
        scoring_version=1,
        sample={"items": 1, "of": 1, "quick": None, "drawn": "all"},
        metrics=metrics,
        items=((question.digest, answer.key),),
        suite_digest=digest_of("suite", suite),
    )
    store.add_evaluation(found, [question])
    return found


def answers_of(asked: Asked, *, confidence: float = 0.7) -> list[ChoiceAnswer]:
    """Return answers that are right where planted; a wrong one is the next option."""
    found = []
    for number in range(asked.num_items):
        gold = number % NUM_OPTIONS
        chosen = gold if number in asked.right else (gold + 1) % NUM_OPTIONS
        found.append(choice(chosen, confidence=confidence))
    return found


def add_asked(
    store: ResultsStore,
    model: ModelRecord,
    asked: Asked,
    *,
    tasks: Sequence[str] = TASKS,
    seeds: Sequence[int] = (0, 1, 2),
    backend: str = "forge",
) -> None:
    """Add a model's evaluations of the planted tasks; seeds differ in confidence alone."""
    for task in tasks:
        for seed in seeds:
            answers = answers_of(asked, confidence=0.7 - 0.05 * seed)
            add_choices(store, model, task, answers, seed=seed, backend=backend)


def add_profile(
    store: ResultsStore,
    model: ModelRecord,
    *,
    decode_s: float,
    prefill_s: float,
    peak: int,
    jitter: float = 0.01,
    session: str = "session-1",
    batch: int = 1,
    prompt_tokens: int = 128,
    status: str = "ok",
    noise: Mapping[str, float] | None = None,
) -> ProfileRecord:
    """Add a profile of five rounds of four samples, each a little off the planted time."""
    environment = EnvironmentRecord.of(
        {"cpu": {"name": "Planted CPU", "cores": 2}, "torch": "2.13.0"}
    )
    store.add_environment(environment)

    def rounds(seconds: float) -> tuple[tuple[float, ...], ...]:
        return tuple(
            tuple(seconds * (1.0 + jitter * ((3 * row + 5 * column) % 7 - 3) / 3)
                  for column in range(4))
            for row in range(5)
        )  # fmt: skip

    samples = {
        "load_s": ((0.5,),) * 5,
        "ttft_s": rounds(prefill_s + decode_s),
        "prefill_s": rounds(prefill_s),
        "decode_s": rounds(decode_s),
    }
    record = ProfileRecord(
        key=digest_of("profile", model.fingerprint, session, batch, prompt_tokens),
        model=model.fingerprint,
        session=session,
        environment=environment.digest,
        setting={
            "device": "cpu", "dtype": "bfloat16", "threads": 2, "batch": batch,
            "prompt_tokens": prompt_tokens, "new_tokens": 32,
        },
        status=status,
        samples=samples if status == "ok" else {},
        memory={
            "weights_on_disk": model.weight_bytes, "weights_in_memory": model.weight_bytes,
            "peak_allocated": None, "peak_reserved": None, "driver": None,
            "peak_resident": peak, "kv_per_token": 4096,
        },
        noise=noise or {"other_cpu_cores": 0.02, "steal_share": 0.0, "load_before": 0.1},
        backend="torch",
        notices=("energy is not reported here",),
    )  # fmt: skip
    store.add_profile(record)
    return record


def add_divergence(
    store: ResultsStore, variant: ModelRecord, reference: ModelRecord, *, mean: float
) -> DivergenceRecord:
    """Add a divergence whose other figures follow from the mean, over three layers."""
    record = DivergenceRecord(
        key=digest_of("divergence", variant.fingerprint, reference.fingerprint),
        variant=variant.fingerprint,
        reference=reference.fingerprint,
        text="held-out",
        tokens_digest=digest_of("tokens"),
        dtype="float32",
        figures={
            "num_positions": 2048, "mean": mean, "median": mean / 2, "p90": 2 * mean,
            "p99": 10 * mean, "max": 50 * mean, "same_top_share": 1 - mean,
            "perplexity_reference": 19.0, "perplexity_variant": 19.0 * (1 + mean),
            "perplexity_ratio": 1 + mean,
        },
        layers=tuple(LayerError(layer, mean * (layer + 1)) for layer in range(3)),
    )  # fmt: skip
    store.add_divergence(record)
    return record


def quantize_manifest(source: str, *, method: str, format_name: str) -> dict[str, object]:
    """Return what a record keeps of a quantization's manifest."""
    return {
        "schema": 1,
        "kind": "quantize",
        "forge": "0.1.0",
        "recipe": {
            "model": source, "method": method, "format": [format_name], "bits": 4,
            "group_size": 64, "seed": 0,
        },
        "recipe_file": None,
        "variant": {"format": format_name, "bits": 4, "group_size": 64, "double_quant": False},
        "inputs": [
            {
                "model": source, "role": "source", "revision": None, "lora_revision": None,
                "files": [
                    {"name": "model.safetensors", "bytes": 1000, "xxh3_128_tree": "ab" * 16}
                ],
            }
        ],
        "models": [],
        "notices": [],
        "versions": {"python": "3.11.7", "numpy": "2.4.6"},
        "content_digest": "cd" * 32,
        "modules": {
            f"model.layers.{layer}.{projection}": {"error": 0.01 * (layer + 1) + 0.001 * column}
            for layer in range(2)
            for column, projection in enumerate(
                ("mlp.down_proj", "mlp.up_proj", "self_attn.k_proj", "self_attn.q_proj")
            )
        }
        if method == "awq"
        else {},
    }  # fmt: skip


def merge_manifest(base: str, *others: str) -> dict[str, object]:
    """Return what a record keeps of a merge's manifest."""
    rows = [("embedding", None), ("layer 0", 0), ("layer 1", 1), ("head", None)]
    return {
        "schema": 1,
        "kind": "merge",
        "forge": "0.1.0",
        "recipe": {
            "merge_method": "dare_ties", "base_model": base,
            "models": [{"model": name, "parameters": {"density": 0.5}} for name in others],
            "seed": 42,
        },
        "recipe_file": "planted_dare.yaml",
        "inputs": [
            {
                "model": name, "role": "base" if name == base else "model", "revision": None,
                "lora_revision": None,
                "files": [
                    {"name": "model.safetensors", "bytes": 1000, "xxh3_128_tree": "ef" * 16}
                ],
            }
            for name in (base, *others)
        ],
        "models": list(others),
        "notices": ["two tokens were added"],
        "versions": {"python": "3.11.7"},
        "content_digest": "12" * 32,
        "statistics": [
            {
                "place": place, "layer": layer, "num_tensors": 9, "num_elements": 1000,
                "norms": [1.0 + number, 2.0], "cosines": [0.25], "conflict_share": 0.1 * number,
                "kept_shares": [0.5, 0.5], "angle_degrees": None, "num_fallbacks": 0,
                "fallback": None, "notes": {},
            }
            for number, (place, layer) in enumerate(rows)
        ],
    }  # fmt: skip


def asked_same() -> Asked:
    """The source's answers but for two questions lost and two gained."""
    return Asked(frozenset(RIGHT) - {0, 1} | {300, 301})


def asked_worse() -> Asked:
    """48 questions lost and 8 gained: 10 points of 400."""
    return Asked(frozenset(range(48, 240)) | frozenset(range(240, 248)))


def asked_better() -> Asked:
    """24 gained and 4 lost: 5 points of 400."""
    return Asked(frozenset(range(4, 264)))


def write_results(path: Path) -> Path:
    """Write the planted world.

    Args:
        path: File to make.

    Returns:
        The same path.
    """
    quantized = {"bits": 4, "group_size": 64, "num_parameters": 7_000_000, "dtype": "bfloat16"}
    full = {"num_parameters": 7_000_000, "weight_bytes": 14_000_000, "dtype": "bfloat16"}
    with open_results(path) as store:
        source = add_model(store, SOURCE, architecture="llama", licence="apache-2.0", **full)
        same = add_model(
            store, SAME, format="awq-gemm", method="awq", weight_bytes=4_000_000,
            licence="apache-2.0", **quantized,
            manifest=quantize_manifest(SOURCE, method="awq", format_name="awq-gemm"),
        )  # fmt: skip
        worse = add_model(
            store, WORSE, format="bnb-nf4", method="bnb", weight_bytes=4_100_000,
            **{**quantized, "group_size": None},
            manifest=quantize_manifest(SOURCE, method="bnb", format_name="bnb-nf4"),
        )  # fmt: skip
        few = add_model(
            store, FEW, format="bnb-int8", method="bnb", weight_bytes=7_000_000,
            **{**quantized, "bits": 8, "group_size": None},
            manifest=quantize_manifest(SOURCE, method="bnb", format_name="bnb-int8"),
        )  # fmt: skip
        slow = add_model(
            store, SLOW, format="gptq", method="rtn", weight_bytes=5_000_000, **quantized,
            manifest=quantize_manifest(SOURCE, method="rtn", format_name="gptq"),
        )  # fmt: skip
        merge = add_model(
            store, MERGE, method="dare_ties", licence="apache-2.0", **full,
            manifest=merge_manifest(f"models/{SOURCE}", "hub/one", "hub/two"),
        )  # fmt: skip
        api = add_model(store, API, kind="api", location="http://127.0.0.1:8000/v1")
        trio = add_model(
            store, ENSEMBLE, kind="ensemble", location="ensemble",
            members=(source.fingerprint, merge.fingerprint),
        )  # fmt: skip
        add_asked(store, source, Asked(frozenset(RIGHT)))
        add_asked(store, same, asked_same())
        add_asked(store, worse, asked_worse())
        add_asked(store, few, replace(Asked(frozenset(RIGHT)), num_items=20))
        add_asked(store, slow, asked_same())
        add_asked(store, merge, asked_better())
        add_asked(
            store, api, Asked(frozenset(range(320))), tasks=TASKS[:1], seeds=(0,),
            backend="api-chat",
        )  # fmt: skip
        add_asked(store, trio, Asked(frozenset(range(250))))
        for model, decode_s, prefill_s, peak in (
            (source, 0.100, 0.50, 16_000_000),
            (same, 0.050, 1.00, 6_000_000),
            (worse, 0.060, 0.60, 6_200_000),
            (slow, 0.099, 0.90, 7_000_000),
            (merge, 0.100, 0.50, 16_000_000),
        ):
            add_profile(store, model, decode_s=decode_s, prefill_s=prefill_s, peak=peak)
        add_profile(store, source, decode_s=0.2, prefill_s=1.9, peak=17_000_000, batch=4)
        add_profile(store, same, decode_s=0.12, prefill_s=4.0, peak=7_000_000, batch=4)
        add_profile(store, few, decode_s=0, prefill_s=0, peak=0, status="it needs a CUDA device")
        add_divergence(store, same, source, mean=0.004)
        add_divergence(store, worse, source, mean=0.2)
        add_texts(store, source, "why", {"rouge_l": 0.31, "missing_rate": 0.0})
        add_texts(store, same, "why", {"rouge_l": 0.29, "missing_rate": 0.1})
    return path
