"""The float64 reference of every merge method, under its name in a recipe.

Plain numpy, slow and obviously right; nothing here imports forge, so that an error there cannot
hide here. ``tests/oracle/test_reference_matches_mergekit.py`` shows that these functions say what
mergekit 0.1.5 does, wherever a docstring has no ``Differs:``.

Tensors are float64 arrays of one shape, and so is the result.
"""

from __future__ import annotations

from tests.reference.geometric import (
    arcee_fusion,
    model_stock,
    nearswap,
    ram,
    ramplus_tl,
    sce,
)
from tests.reference.spectral import iso_c, iso_cts, lines, tsv_m
from tests.reference.spherical import karcher, linear, multislerp, nuslerp, passthrough, slerp
from tests.reference.task_vectors import (
    breadcrumbs,
    breadcrumbs_ties,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    task_arithmetic,
    ties,
)
from tests.reference.weighted import fisher, regmean

__all__ = [
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "fisher",
    "iso_c",
    "iso_cts",
    "karcher",
    "linear",
    "lines",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "passthrough",
    "ram",
    "ramplus_tl",
    "regmean",
    "sce",
    "slerp",
    "task_arithmetic",
    "ties",
    "tsv_m",
]
