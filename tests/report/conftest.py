"""The planted results file, written once, and its comparison."""

from __future__ import annotations

from pathlib import Path

import pytest

from forge.report.compare import compare
from forge.report.comparison import Comparison
from tests.report.results_factory import write_results


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results file of ``write_results``; read-only by use."""
    return write_results(tmp_path_factory.mktemp("results") / "results.db")


@pytest.fixture(scope="session")
def comparison(planted: Path) -> Comparison:
    """Its comparison, with a margin of 2 points."""
    return compare(planted, margin=0.02)
