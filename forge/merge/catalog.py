"""All merge methods with their parameters, defaults and sources, as plain data.

Names, parameters and defaults are mergekit's, so that its recipes run unchanged.
δ is a task vector (model minus base), w a weight, d a density, λ ``lambda``, u a uniform
random number. ``min_models`` counts the models beside the base.
"""

from __future__ import annotations

from typing import Final

from forge.core.catalog import Catalog
from forge.recipes.parameters import MethodRow, ParameterRow, ParameterValue


def _weight(*, default: float | None = None) -> ParameterRow:
    return ParameterRow(
        "weight",
        "model",
        "number",
        "mixing coefficient of this model",
        default=default,
        required=default is None,
    )


def _density(*, default: float = 1.0) -> ParameterRow:
    return ParameterRow(
        "density",
        "model",
        "number",
        "fraction of the task vector kept",
        default=default,
        low=0.0,
        high=1.0,
        advice="Density is the fraction of the task vector kept; try 0.5.",
    )


def _t(meaning: str, *, high: float | None = 1.0) -> ParameterRow:
    advice = "0 is the base model and 1 the other model; try 0.5." if high else ""
    return ParameterRow(
        "t", "global", "number", meaning, required=True, low=0.0, high=high, advice=advice
    )


def _flag(name: str, default: bool, meaning: str) -> ParameterRow:
    return ParameterRow(name, "global", "boolean", meaning, default=default, gradient=False)


_SHARE: Final = ParameterRow(
    "weight",
    "model",
    "number",
    "factor of this model's statistics",
    default=1.0,
    low=0.0,
    advice="0 leaves the model out; 1 is usual.",
)
_LAMBDA: Final = ParameterRow(
    "lambda", "global", "number", "factor of the summed task vectors", default=1.0
)
_INT8_MASK: Final = _flag(
    "int8_mask", False, "accepted for mergekit's recipes; has no numerical effect"
)


def _rescale(default: ParameterValue) -> ParameterRow:
    return ParameterRow(
        "rescale",
        "global",
        "choice",
        "how what is kept is scaled up: by 1/density, to the former L1 norm, or not at all "
        "(true means density, false none)",
        default=default,
        gradient=False,
        choices=("density", "l1", "none"),
    )


_L1_RESCALE: Final = ParameterRow(
    "rescale",
    "global",
    "choice",
    "how what is kept is scaled up: to the former L1 norm (true means l1), or not at all",
    default="none",
    gradient=False,
    choices=("l1", "none"),
)


def _family(*rows: ParameterRow, normalize: bool) -> tuple[ParameterRow, ...]:
    return (
        _weight(),
        *rows,
        _flag("normalize", normalize, "divide by the sum of the weights that took part"),
        _LAMBDA,
        _INT8_MASK,
    )


def _spectral(*rows: ParameterRow) -> tuple[ParameterRow, ...]:
    return (
        _weight(default=1.0),
        *rows,
        _LAMBDA,
        ParameterRow(
            "outside_layers",
            "global",
            "choice",
            "how embeddings and head are merged: by the mean of the task vectors, or by their "
            "singular vectors like the matrices of the layers",
            default="mean",
            gradient=False,
            choices=("mean", "spectral"),
        ),
    )


_GAMMA: Final = ParameterRow(
    "gamma",
    "model",
    "number",
    "fraction of the largest magnitudes dropped",
    default=0.01,
    low=0.0,
    high=1.0,
    advice="Gamma is the fraction of outliers dropped; try 0.01.",
)
_DELLA_EPSILON: Final = ParameterRow(
    "epsilon",
    "model",
    "number",
    "half the range of the keep probability around the density",
    default=0.15,
    low=0.0,
    high=0.5,
    advice="Keep density - epsilon above 0 and density + epsilon below 1; try 0.1.",
)

METHODS: Final[Catalog[MethodRow]] = Catalog(
    [
        MethodRow(
            "linear",
            "Weighted average (model soup)",
            "y = Σ w·x / Σ w",
            "Wortsman et al. 2022, Model soups, arXiv 2203.05482",
            1,
            None,
            "optional",
            (_weight(), _flag("normalize", True, "divide by the sum of the weights")),
            base_is_merged=True,
        ),
        MethodRow(
            "slerp",
            "Spherical linear interpolation",
            "y = sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b; linear where |cos θ| > 0.9995",
            "Shoemake 1985, Animating rotation with quaternion curves",
            1,
            1,
            "required",
            (_t("0 is the base model, 1 the other model"),),
            symmetric=False,
        ),
        MethodRow(
            "nuslerp",
            "Slerp by weights, of models or of their task vectors",
            "t = w1/(w0+w1); y = slerp(t, a, b), or base + slerp(t, δa, δb)",
            "Shoemake 1985; mergekit documentation, NuSLERP",
            2,
            2,
            "optional",
            (
                _weight(),
                _flag("nuslerp_flatten", True, "treat each tensor as one vector"),
                _flag(
                    "nuslerp_row_wise",
                    False,
                    "without flatten: vectors along the first axis instead of the last",
                ),
            ),
        ),
        MethodRow(
            "multislerp",
            "Barycentre on the sphere in one tangent step",
            "m = Σ w·x/(|x| + eps), y = m/|m| · Σ w|x|",
            "Buss and Fillmore 2001, Spherical averages; mergekit documentation, Multi-SLERP",
            1,
            None,
            "optional",
            (
                _weight(),
                _flag("normalize_weights", True, "divide the weights by their sum"),
                ParameterRow(
                    "eps",
                    "global",
                    "number",
                    "added to each norm, and the norm below which directions cancel",
                    default=1e-8,
                    low=0.0,
                    gradient=False,
                ),
            ),
        ),
        MethodRow(
            "karcher",
            "Riemannian (Karcher) mean with equal weights",
            "iterate m <- exp_m(mean log_m(x/|x|)) until the step is below tol",
            "Karcher 1977; Functionality-Oriented LLM Merging on the Fisher-Rao Manifold, "
            "arXiv 2603.04972",
            1,
            None,
            "optional",
            (
                ParameterRow(
                    "max_iter",
                    "global",
                    "integer",
                    "most iterations",
                    default=10.0,
                    low=1.0,
                    high=10000.0,
                    gradient=False,
                ),
                ParameterRow(
                    "tol",
                    "global",
                    "number",
                    "step at which the iteration ends",
                    default=1e-5,
                    low=0.0,
                    gradient=False,
                ),
            ),
            base_is_merged=True,
        ),
        MethodRow(
            "task_arithmetic",
            "Task arithmetic",
            "y = base + λ Σ w·δ",
            "Ilharco et al. 2023, Editing models with task arithmetic, arXiv 2212.04089",
            1,
            None,
            "required",
            _family(normalize=False),
        ),
        MethodRow(
            "ties",
            "TIES: trim, elect a sign, merge the agreeing",
            "y = base + λ Σ_agreeing w·top(δ, d) / Σ_agreeing w",
            "Yadav et al. 2023, TIES-Merging, arXiv 2306.01708",
            1,
            None,
            "required",
            _family(
                _density(),
                _L1_RESCALE,
                normalize=True,
            ),
        ),
        MethodRow(
            "dare_linear",
            "DARE: drop at random and rescale, then sum",
            "y = base + λ Σ w·δ·[u < d]/d",
            "Yu et al. 2024, Language models are super mario, arXiv 2311.03099",
            1,
            None,
            "required",
            _family(_density(), _rescale("density"), normalize=False),
            random=True,
            differs="mergekit rescales to the former L1 norm: rescale: l1.",
        ),
        MethodRow(
            "dare_ties",
            "DARE with the sign election of TIES",
            "y = base + λ Σ_agreeing w·δ·[u < d]/d",
            "Yu et al. 2024, arXiv 2311.03099; Yadav et al. 2023, arXiv 2306.01708",
            1,
            None,
            "required",
            _family(_density(), _rescale("density"), normalize=False),
            random=True,
            differs="mergekit rescales to the former L1 norm: rescale: l1.",
        ),
        MethodRow(
            "breadcrumbs",
            "Model Breadcrumbs: drop the largest and the smallest",
            "y = base + λ Σ w·mid(δ, γ, d)",
            "Davari and Belilovsky 2023, Model Breadcrumbs, arXiv 2312.06795",
            1,
            None,
            "required",
            _family(_density(), _GAMMA, _L1_RESCALE, normalize=False),
        ),
        MethodRow(
            "breadcrumbs_ties",
            "Model Breadcrumbs with the sign election of TIES",
            "y = base + λ Σ_agreeing w·mid(δ, γ, d)",
            "Davari and Belilovsky 2023, arXiv 2312.06795; Yadav et al. 2023, arXiv 2306.01708",
            1,
            None,
            "required",
            _family(_density(), _GAMMA, _L1_RESCALE, normalize=False),
        ),
        MethodRow(
            "della",
            "DELLA: drop at random by magnitude rank, elect a sign",
            "y = base + λ Σ_agreeing w·δ·[u < p]/p / Σ_agreeing w, p = d ± ε by rank in the row",
            "Deep et al. 2024, DELLA-Merging, arXiv 2406.11617",
            1,
            None,
            "required",
            _family(_density(), _DELLA_EPSILON, _rescale("density"), normalize=True),
            random=True,
            differs="mergekit rescales to the former L1 norm: rescale: l1.",
        ),
        MethodRow(
            "della_linear",
            "DELLA without sign election",
            "y = base + λ Σ w·δ·[u < p]/p",
            "Deep et al. 2024, DELLA-Merging, arXiv 2406.11617",
            1,
            None,
            "required",
            _family(_density(), _DELLA_EPSILON, _rescale("density"), normalize=False),
            random=True,
            differs="mergekit rescales to the former L1 norm: rescale: l1.",
        ),
        MethodRow(
            "sce",
            "SCE: select by variance, calculate weights by energy, erase minority signs",
            "y = base + Σ_agreeing e·δ / Σ_agreeing e, e = mean δ² / Σ mean δ²",
            "Wan et al. 2024, FuseChat, arXiv 2408.07990",
            1,
            None,
            "required",
            (
                ParameterRow(
                    "select_topk",
                    "global",
                    "number",
                    "fraction of positions kept, by variance over the models",
                    default=1.0,
                    low=0.0,
                    high=1.0,
                    advice="1 keeps every position; try 0.1.",
                ),
                _INT8_MASK,
            ),
        ),
        MethodRow(
            "model_stock",
            "Model Stock",
            "y = t·mean(x) + (1-t)·base, t = N cos θ / (1 + (N-1) cos θ)",
            "Jang et al. 2024, Model Stock, arXiv 2403.19522",
            2,
            None,
            "required",
            (_flag("filter_wise", False, "one t for each row instead of each tensor"),),
        ),
        MethodRow(
            "lines",
            "LiNeS: task arithmetic whose strength grows with the depth of the layer",
            "y = base + (α + β·depth) Σ w·δ, depth from 0 in the first layer to 1 in the last",
            "Wang et al. 2025, LiNeS, arXiv 2410.17146",
            1,
            None,
            "required",
            (
                _weight(default=1.0),
                ParameterRow(
                    "alpha",
                    "global",
                    "number",
                    "factor in the first layer and outside the layers; 1/Σ w unless given",
                    gradient=False,
                ),
                ParameterRow(
                    "beta",
                    "global",
                    "number",
                    "what the last layer's factor adds to it; 1 - alpha unless given",
                    gradient=False,
                ),
            ),
        ),
        MethodRow(
            "tsv_m",
            "TSV-M: task singular vectors, made orthogonal to each other",
            "y = base + λ U⊥ Σ V⊥ᵀ, of the first r/N singular vectors of every δ",
            "Gargiulo et al. 2025, Task Singular Vectors, arXiv 2412.00081",
            1,
            None,
            "required",
            _spectral(),
        ),
        MethodRow(
            "iso_c",
            "Iso-C: an even spectrum of the summed task vectors",
            "y = base + λ σ̄ U Vᵀ, Σ w·δ = U Σ Vᵀ",
            "Marczak et al. 2025, No Task Left Behind, arXiv 2502.04959",
            1,
            None,
            "required",
            _spectral(),
        ),
        MethodRow(
            "iso_cts",
            "Iso-CTS: an even spectrum of common and task-specific directions",
            "y = base + λ σ̄ U⊥ V⊥ᵀ, of the common space of Σ w·δ and what each δ has outside it",
            "Marczak et al. 2025, No Task Left Behind, arXiv 2502.04959",
            1,
            None,
            "required",
            _spectral(
                ParameterRow(
                    "common_space_fraction",
                    "global",
                    "number",
                    "share of the directions that the common space gets",
                    default=0.8,
                    low=0.0,
                    high=1.0,
                    advice="1 leaves the tasks no space of their own; try 0.8.",
                ),
            ),
        ),
        MethodRow(
            "regmean",
            "RegMean: keep the outputs of linear layers on the models' own inputs",
            "W = (Σ w·W_i Ĝ_i)(Σ w·Ĝ_i)^(-1), G_i = mean of x xᵀ, α of it beside the diagonal",
            "Jin et al. 2023, Dataless Knowledge Fusion, arXiv 2212.09849",
            2,
            None,
            "optional",
            (
                _SHARE,
                ParameterRow(
                    "alpha",
                    "global",
                    "number",
                    "factor of what lies beside the diagonal of the second moments",
                    default=0.9,
                    low=0.0,
                    high=1.0,
                    advice="0 looks at each input alone, 1 at all pairs as they are; try 0.9.",
                ),
            ),
            base_is_merged=True,
            statistics="regmean",
        ),
        MethodRow(
            "fisher",
            "Fisher merging: a mean by how much each model's likelihood hangs on a weight",
            "y = Σ w·F_i·x_i / Σ w·F_i",
            "Matena and Raffel 2022, Fisher-Weighted Averaging, arXiv 2111.09832",
            2,
            None,
            "optional",
            (_SHARE,),
            base_is_merged=True,
            statistics="fisher",
        ),
        MethodRow(
            "nearswap",
            "Nearswap: interpolate most where the models are near",
            "y = base + clamp(t/|x - base|, 0, 1)·(x - base)",
            "alchemonaut, QuartetAnemoi-70B-t0.0001 (model card)",
            1,
            1,
            "required",
            (_t("difference at which the other model is taken whole", high=None),),
            symmetric=False,
        ),
        MethodRow(
            "arcee_fusion",
            "Arcee Fusion: take the changes that matter",
            "y = base + δ·[|δ|·KL(row) ≥ median + 1.5·IQR]",
            "Arcee AI 2025, MergeKit v0.1 release notes",
            1,
            1,
            "required",
            (),
            symmetric=False,
        ),
        MethodRow(
            "ram",
            "Reinforced agent merging",
            "y = base + Σδ where one model changed, mean δ where several did",
            "Reinforced Agent Merging, arXiv 2601.13572",
            1,
            None,
            "required",
            (
                ParameterRow(
                    "epsilon",
                    "global",
                    "number",
                    "magnitudes up to it count as unchanged",
                    default=1e-5,
                    low=0.0,
                    gradient=False,
                ),
            ),
        ),
        MethodRow(
            "ramplus_tl",
            "Reinforced agent merging with rescaling, tensor by tensor",
            "as ram, unique parts × (1 + r·clip(ρ, 0, α)), ρ = shared/unique of that model",
            "Reinforced Agent Merging, arXiv 2601.13572",
            1,
            None,
            "required",
            (
                ParameterRow(
                    "epsilon",
                    "global",
                    "number",
                    "magnitudes up to it count as unchanged",
                    default=1e-5,
                    low=0.0,
                    gradient=False,
                ),
                ParameterRow(
                    "r",
                    "global",
                    "number",
                    "strength of the rescaling",
                    default=0.1,
                    gradient=False,
                ),
                ParameterRow(
                    "alpha",
                    "global",
                    "number",
                    "upper bound of the ratio",
                    default=0.2,
                    low=0.0,
                    gradient=False,
                ),
            ),
        ),
        MethodRow(
            "passthrough",
            "Copy, optionally scaled",
            "y = scale·x",
            "mergekit documentation, Passthrough",
            1,
            1,
            "optional",
            (ParameterRow("scale", "model", "number", "factor of every element", default=1.0),),
            base_is_merged=True,
        ),
    ]
)
"""Every merge method by name."""
