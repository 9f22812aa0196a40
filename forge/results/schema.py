"""The tables of a results file, and the version that stands in its header.

    PRAGMA application_id   0x464F5247, 'FORG': this is a results file of forge
    PRAGMA user_version     the version of the schema, now 1

    models            fingerprint · label, kind, location, body
    environments      digest · body
    items             digest · task, item_id, body             questions, once each
    answers           key · model, body                        what is never computed twice
    evaluations       key · model, suite, task, seed, body
    evaluation_items  evaluation, position · item, answer      which answers an evaluation is of
    profiles          key · model, session, body
    divergences       key · variant, reference, body

``body`` is the record of that name in ``forge/results/records.py`` as JSON; ``created`` is when
the row was written, UTC. Columns beside the body are what is looked up by.
"""

from __future__ import annotations

from typing import Final

APPLICATION_ID: Final = 0x464F5247
VERSION: Final = 1

STATEMENTS: Final = (
    """CREATE TABLE models (
        fingerprint TEXT PRIMARY KEY, label TEXT NOT NULL, kind TEXT NOT NULL,
        location TEXT NOT NULL, body TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE environments (
        digest TEXT PRIMARY KEY, body TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE items (
        digest TEXT PRIMARY KEY, task TEXT NOT NULL, item_id TEXT NOT NULL,
        body TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE answers (
        key TEXT PRIMARY KEY, model TEXT NOT NULL REFERENCES models,
        body TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE evaluations (
        key TEXT PRIMARY KEY, model TEXT NOT NULL REFERENCES models, suite TEXT NOT NULL,
        task TEXT NOT NULL, seed INTEGER NOT NULL,
        body TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE evaluation_items (
        evaluation TEXT NOT NULL REFERENCES evaluations, position INTEGER NOT NULL,
        item TEXT NOT NULL REFERENCES items, answer TEXT NOT NULL REFERENCES answers,
        PRIMARY KEY (evaluation, position)) WITHOUT ROWID""",
    """CREATE TABLE profiles (
        key TEXT PRIMARY KEY, model TEXT NOT NULL REFERENCES models, session TEXT NOT NULL,
        body TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE divergences (
        key TEXT PRIMARY KEY, variant TEXT NOT NULL REFERENCES models,
        reference TEXT NOT NULL REFERENCES models,
        body TEXT NOT NULL, created TEXT NOT NULL) WITHOUT ROWID""",
    "CREATE INDEX evaluations_by_model ON evaluations (model, suite, task, seed)",
    "CREATE INDEX profiles_by_model ON profiles (model, session)",
    "CREATE INDEX divergences_by_variant ON divergences (variant, reference)",
)

TABLES: Final = (
    "models", "environments", "items", "answers", "evaluations", "evaluation_items",
    "profiles", "divergences",
)  # fmt: skip
