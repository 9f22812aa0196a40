"""The manifest is valid JSON in UTF-8, whatever a recipe's file is called."""

from __future__ import annotations

import json

from forge.checkpoints.manifest import manifest_bytes


def test_a_file_name_that_is_no_utf8_is_escaped() -> None:
    content = {"recipe_file": "caf\udce9.yaml", "tensors": {"ü": {"dtype": "F32"}}, "é": 1}
    stored = manifest_bytes(content)
    assert json.loads(stored.decode("utf-8")) == content
