"""The two programs that are compared, as a user starts them, and the recipes they are given."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.models import Family, read_tensor, widen
from benchmarks.process import BenchmarkError

ROOT: Final = Path(__file__).resolve().parent.parent
WITNESS: Final = "model.layers.0.mlp.up_proj.weight"
_TOLERATED: Final = 0.25


@dataclass(frozen=True, slots=True)
class Contest:
    """One method with its parameters, and how many times cheaper than mergekit it must be.

    Attributes:
        method: Name in recipes.
        floor: Least ratio of CPU time and of wall time.
        num_models: Models that are read, the base among them.
        base_is_merged: Whether the base takes part with parameters of its own.
        has_base: Whether the recipe names a ``base_model``.
        model_parameters: Of each model beside the base.
        parameters: Global ones.
    """

    method: str
    floor: float
    num_models: int
    base_is_merged: bool
    has_base: bool
    model_parameters: Mapping[str, float]
    parameters: Mapping[str, float | bool]

    def inputs(self, family: Family) -> tuple[Path, ...]:
        """Return the folders that a merge reads."""
        return family.models[: self.num_models]

    def write_recipe(self, path: Path, family: Family) -> None:
        """Write the recipe that both programs are given; JSON is YAML."""
        entries: list[dict[str, object]] = []
        for model in self.inputs(family):
            entry: dict[str, object] = {"model": str(model.resolve())}
            takes_part = model != family.base or self.base_is_merged
            if self.model_parameters and takes_part:
                entry["parameters"] = dict(self.model_parameters)
            entries.append(entry)
        recipe: dict[str, object] = {"models": entries, "merge_method": self.method}
        if self.has_base:
            recipe["base_model"] = str(family.base.resolve())
        if self.parameters:
            recipe["parameters"] = dict(self.parameters)
        path.write_text(json.dumps(recipe | {"dtype": "bfloat16"}, indent=2) + "\n")


CONTESTS: Final = {
    contest.method: contest
    for contest in (
        Contest("linear", 6, 3, True, False, {"weight": 1.0}, {}),
        Contest("slerp", 6, 2, True, True, {}, {"t": 0.5}),
        Contest("dare_ties", 15, 3, False, True, {"weight": 0.5, "density": 0.5}, {}),
        Contest("ties", 20, 3, False, True, {"weight": 0.5, "density": 0.5}, {"normalize": True}),
        Contest("della", 30, 3, False, True,
                {"weight": 0.5, "density": 0.5, "epsilon": 0.15}, {}),
    )
}  # fmt: skip


Command = Callable[[Path, Path], Sequence[str | Path]]
"""Takes a recipe and an output folder."""


def forge_command(recipe: Path, output: Path) -> Sequence[str | Path]:
    """Return the command that merges with forge."""
    forge = (sys.executable, "-m", "forge", "merge")
    return (*forge, recipe, "--out", output, "--overwrite", "--quiet")


def mergekit_command(recipe: Path, output: Path) -> Sequence[str | Path]:
    """Return the command that merges with mergekit, as its console script does."""
    return (sys.executable, "-m", "mergekit.scripts.run_yaml", recipe, output, "--quiet")


def check_same_work(contest: Contest, family: Family, ours: Path, theirs: Path) -> None:
    """See that both outputs are merges of one kind, before any time is compared.

    mergekit rounds every step to bfloat16 and draws other random numbers, so the outputs differ;
    but the size of what was added to the base must be the same, and must not be nothing.

    Raises:
        BenchmarkError: It differs by more than a quarter, or the outputs' shapes differ.
    """
    base = widen(read_tensor(family.base, WITNESS))
    sizes = []
    for folder in (ours, theirs):
        merged = read_tensor(folder, WITNESS)
        if merged.size != base.size:
            raise BenchmarkError(f"{WITNESS} in {folder} has {merged.size} elements")
        sizes.append(float(np.linalg.norm(widen(merged) - base)))
    ours_moved, theirs_moved = sizes
    if ours_moved == 0 or abs(ours_moved - theirs_moved) > _TOLERATED * theirs_moved:
        raise BenchmarkError(
            f"{contest.method}: forge moved {WITNESS} by {ours_moved:.4g} and mergekit by "
            f"{theirs_moved:.4g}, so they did not do the same work"
        )
