"""A comparison as one JSON document: all of it, nothing rounded.

    {"schema": "forge-report", "version": 1, ...the attributes of Comparison, by name...}

Names and meanings are those of ``forge.report.comparison``; what is ``None`` there is ``null``.
``version`` rises whenever a name goes or changes its meaning, and not when one is added.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Final

from forge.report.comparison import Comparison

SCHEMA: Final = "forge-report"
VERSION: Final = 1


def render_json(comparison: Comparison) -> str:
    """Return a comparison as JSON.

    Args:
        comparison: What to show.
    """
    document = {"schema": SCHEMA, "version": VERSION, **asdict(comparison)}
    return json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
