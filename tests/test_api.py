"""The public surface, pinned: a change here is a change for every user."""

from __future__ import annotations

import inspect

from forge import api

SURFACE = {
    "calibrate": "(model: 'str', statistics: \"Literal['regmean', 'fisher']\", out: 'Path', *, "
    "calibration: 'Mapping[str, object] | None' = None, "
    "labels: \"Literal['sampled', 'text']\" = 'sampled', device: 'str' = 'cpu', "
    "threads: 'int | None' = None, overwrite: 'bool' = False, "
    "progress: 'Progress | None' = None) -> 'CollectResult'",
    "check": "(config: 'str | Path | MergeRecipe | MoeRecipe', *, out: 'Path | None' = None) "
    "-> 'CheckReport'",
    "convert": "(model: 'str', to: 'str', out: 'Path', *, threads: 'int | None' = None, "
    "max_shard_size: 'str' = '5GB', overwrite: 'bool' = False, "
    "progress: 'Progress | None' = None) -> 'ConvertResult'",
    "diff": "(a: 'str', b: 'str', *, progress: 'Progress | None' = None) -> 'CheckpointDifference'",
    "divergence": "(variant: 'str', against: 'str', *, text: 'Path | None' = None, "
    "tokens: 'int' = 4096, device: 'str' = 'cpu', dtype: 'str | None' = None, "
    "threads: 'int | None' = None, results: 'Path | None' = None, "
    "progress: 'Progress | None' = None) -> 'DivergenceRecord'",
    "evaluate": "(models: 'Sequence[str | Path]', *, suite: 'str | Suite', "
    "data_dir: 'Path | str | None' = None, tasks: 'Sequence[str] | None' = None, "
    "seeds: 'Sequence[int] | None' = None, quick: 'int | None' = None, "
    "skip_missing: 'bool' = False, results: 'Path | str' = PosixPath('reports/results.db'), "
    "settings: 'LocalSettings | None' = None, apis: 'Sequence[ApiModel]' = (), "
    "ensembles: 'Sequence[Ensemble]' = (), labels: 'Mapping[str, str] | None' = None, "
    "progress: 'Progress | None' = None) -> 'EvaluationRun'",
    "inspect": "(folder: 'Path') -> 'Inspection'",
    "is_moe": "(config: 'str | Path') -> 'bool'",
    "lint": "(path: 'Path') -> 'LintReport'",
    "load_moe_recipe": "(config: 'str | Path', *, seed: 'int | None' = None, "
    "max_shard_size: 'str | None' = None) -> 'MoeRecipe'",
    "load_quantize_recipe": "(config: 'str | Path | None' = None, *, options: "
    "'Mapping[str, object] | None' = None) -> 'QuantizeRecipe'",
    "load_recipe": "(config: 'str | Path', *, seed: 'int | None' = None, "
    "max_shard_size: 'str | None' = None) -> 'MergeRecipe'",
    "lora_extract": "(model: 'str', base: 'str', out: 'Path', *, rank: 'int | None' = None, "
    "energy: 'float | None' = None, embeddings: 'Embeddings' = 'skip', dtype: 'str' = 'float32', "
    "threads: 'int | None' = None, overwrite: 'bool' = False, divergence: 'bool' = True, "
    "text: 'Path | None' = None, progress: 'Progress | None' = None) -> 'ExtractResult'",
    "merge": "(config: 'str | Path | MergeRecipe', out: 'Path', *, threads: 'int | None' = None, "
    "overwrite: 'bool' = False, seed: 'int | None' = None, progress: 'Progress | None' = None, "
    "engine: 'Engine' = 'forge') -> 'MergeResult'",
    "methods": "() -> 'Catalog[MethodRow]'",
    "moe": "(config: 'str | Path | MoeRecipe', out: 'Path', *, threads: 'int | None' = None, "
    "overwrite: 'bool' = False, progress: 'Progress | None' = None) -> 'MergeResult'",
    "newest_checkpoint": "(place: 'Path | None' = None) -> 'Path'",
    "plan": "(config: 'str | Path | MergeRecipe', *, out: 'Path | None' = None) -> 'MergePlan'",
    "plan_quantize": "(config: 'str | Path | QuantizeRecipe', *, out: 'Path | None' = None) "
    "-> 'QuantizePlan'",
    "profile": "(models: 'Sequence[str]', *, results: 'Path' = PosixPath('reports/results.db'), "
    "baseline: 'str | None' = None, batches: 'Sequence[int]' = (1,), "
    "prompt_tokens: 'Sequence[int]' = (128,), new_tokens: 'int' = 32, device: 'str' = 'cpu', "
    "dtype: 'str | None' = None, threads: 'int | None' = None, effort: 'Effort | None' = None, "
    "again: 'bool' = False, progress: 'Progress | None' = None) -> 'Profiles'",
    "quantize": "(config: 'str | Path | QuantizeRecipe', out: 'Path', *, "
    "threads: 'int | None' = None, overwrite: 'bool' = False, verification: 'Verify' = 'full', "
    "tokens: 'int | None' = None, progress: 'Progress | None' = None) -> 'QuantizeResult'",
    "reference": "(text: 'str') -> 'ModelReference'",
    "report": "(out: 'Path', *, results: 'Path', models: 'Sequence[str]' = (), "
    "baseline: 'str | None' = None, margin: 'float' = 0.01, suite: 'str | None' = None, "
    "mode: 'Mode' = 'constrained', title: 'str | None' = None, "
    "formats: 'Sequence[str] | None' = None) -> 'ReportResult'",
    "verify": "(folder: 'Path', *, against: 'str | None' = None, quick: 'bool' = False, "
    "tokens: 'int | None' = None, progress: 'Progress | None' = None) -> 'Verification'",
}


def test_the_functions_are_these() -> None:
    functions = {
        name: str(inspect.signature(getattr(api, name)))
        for name in api.__all__
        if inspect.isfunction(getattr(api, name))
    }
    assert functions == SURFACE
    assert set(api.__all__) - set(SURFACE) == {"ForgeError"}


def test_every_function_is_documented() -> None:
    for name in SURFACE:
        text = inspect.getdoc(getattr(api, name))
        assert text is not None
        assert "Returns:" in text or text.startswith("Return ")
