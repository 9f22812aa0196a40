"""Tiny invented files with the columns of every data set that a suite of forge names.

Questions are numbered, so that a test sees which one it has: question ``n`` of a file has its right
answer at option ``n`` modulo their number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

SUBJECTS: Final = (
    "anatomy", "clinical_knowledge", "college_biology", "college_medicine", "medical_genetics",
    "professional_medicine",
)  # fmt: skip
LANGUAGES: Final = (
    "Arabic", "Chinese", "French", "German", "Portuguese", "Russian", "Spanish",
)  # fmt: skip
CORPORA: Final = (
    *(f"MMLU_{subject}" for subject in SUBJECTS),
    "MedQA", "MedQA-5_options", "PubMedQA", "MedMCQA",
)  # fmt: skip
DECISIONS: Final = ("yes", "no", "maybe")
Row = Mapping[str, object]


def write_lines(path: Path, rows: Iterable[Row]) -> Path:
    """Write rows as JSON lines and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def mmlu(subject: str, count: int, *, word: str = "test") -> list[Row]:
    """Rows of ``cais/mmlu``."""
    return [
        {
            "question": f"{subject} {word} question {n}?", "subject": subject,
            "choices": [f"choice {n}{letter}" for letter in "abcd"], "answer": n % 4,
        }
        for n in range(count)
    ]  # fmt: skip


def medqa(count: int, *, letters: str = "ABCD", word: str = "test") -> list[Row]:
    """Rows of ``GBaker/MedQA-USMLE-4-options`` and, with five letters, of ``bigbio/med_qa``."""
    return [
        {
            "question": f"MedQA {word} question {n}?", "meta_info": "step1",
            "options": {letter: f"option {n}{letter}" for letter in letters},
            "answer_idx": letters[n % len(letters)],
            "answer": f"option {n}{letters[n % len(letters)]}",
        }
        for n in range(count)
    ]  # fmt: skip


def medmcqa(count: int, *, word: str = "validation") -> list[Row]:
    """Rows of ``openlifescienceai/medmcqa``."""
    return [
        {
            "id": f"{word}-{n}", "question": f"MedMCQA {word} question {n}?", "cop": n % 4,
            **{f"op{letter}": f"option {n}{letter}" for letter in "abcd"},
            "choice_type": "single", "subject_name": "Anatomy",
        }
        for n in range(count)
    ]  # fmt: skip


def pubmedqa(count: int, *, word: str = "test") -> list[Row]:
    """Rows of PubMedQA, sorted by label as its official test file is."""
    rows: list[Row] = [
        {
            "pubid": str(1000 + n), "question": f"PubMedQA {word} question {n}?",
            "contexts": [f"Background {n}.", f"Results {n}."], "labels": ["BACKGROUND", "RESULTS"],
            "long_answer": f"Conclusion {n} of the authors.", "final_decision": DECISIONS[n % 3],
        }
        for n in range(count)
    ]  # fmt: skip
    return sorted(rows, key=lambda row: DECISIONS.index(str(row["final_decision"])))


def truthfulqa(count: int) -> list[Row]:
    """Rows of ``truthfulqa/truthful_qa``, configuration generation."""
    categories = ("Health", "Nutrition", "Psychology", "Science", "Law")
    return [
        {
            "type": "Adversarial", "category": categories[n % 5],
            "question": f"TruthfulQA question {n}?", "best_answer": f"right {n}",
            "correct_answers": [f"right {n}", f"also right {n}"],
            "incorrect_answers": [f"wrong {n}{letter}" for letter in "abcdefg"[: 2 + n % 5]],
            "source": "invented",
        }
        for n in range(count)
    ]  # fmt: skip


def bio_instruct(count: int, *, word: str) -> list[Row]:
    """Records of the files in ``BioMistral/BioInstructQA``: ``count`` of each corpus."""
    rows: list[Row] = []
    for corpus in CORPORA:
        letters = {"PubMedQA": "ABC", "MedQA-5_options": "ABCDE"}.get(corpus, "ABCD")
        for n in range(count):
            options = {letter: f"{word} option {n}{letter}" for letter in letters}
            if corpus == "PubMedQA":
                options = dict(zip(letters, DECISIONS, strict=True))
            context = f"Passage {n}." if corpus == "PubMedQA" else None
            rows.append(
                {
                    "identifier": f"{corpus}-{word}-{n}", "corpus_name": corpus,
                    "task_type": "mcqa", "classes": list(letters),
                    "question": f"{corpus} {word} question {n}?", "options": options,
                    "question_translated": f"{corpus} {word} Frage {n}?",
                    "options_translated": options, "context": context,
                    "context_translated": context and f"Abschnitt {n}.",
                    "correct_answer_letter": letters[n % len(letters)],
                }
            )  # fmt: skip
    return rows


def write_medical(folder: Path, *, count: int = 12, five_options: bool = True) -> Path:
    """Write the files of the English suites and return their folder.

    Args:
        folder: Where to.
        count: Rows of each file.
        five_options: Whether MedQA with five options is among them.
    """
    for subject in SUBJECTS:
        write_lines(folder / f"mmlu_{subject}.test.jsonl", mmlu(subject, count))
        write_lines(folder / f"mmlu_{subject}.dev.jsonl", mmlu(subject, 5, word="dev"))
    write_lines(folder / "medqa_4options.test.jsonl", medqa(count))
    write_lines(folder / "medmcqa.validation.jsonl", medmcqa(count))
    write_lines(folder / "pubmedqa.test.jsonl", pubmedqa(count))
    if five_options:
        write_lines(folder / "medqa_5options.test.jsonl", medqa(count, letters="ABCDE"))
    write_lines(folder / "truthfulqa.generation.validation.jsonl", truthfulqa(count * 5))
    return folder


def write_multilingual(folder: Path, *, count: int = 4) -> Path:
    """Write the files of the multilingual suite, as its archive holds them."""
    for language in LANGUAGES:
        path = folder / "langs_processed" / f"{language}-full.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(bio_instruct(count, word=language)), "utf-8")
    path = folder / "base" / "overall_train+prompt.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(bio_instruct(count, word="train")), "utf-8")
    return folder
