"""Turn a document into a merge recipe, reporting everything that is wrong with it at once.

Reading goes on after each problem: a misspelt key in one model hides no value out of range
in the next. Only when nothing was reported is the recipe complete, and only then is it
returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from forge.core.catalog import Catalog
from forge.core.errors import RecipeError
from forge.recipes.document import Document
from forge.recipes.findings import Findings
from forge.recipes.keep_probability import check_keep_probability
from forge.recipes.merge_entries import ModelEntry, Parameters, SliceEntry, TokenizerEntry
from forge.recipes.merge_types import DEFAULT_MAX_SHARD_SIZE, MergeRecipe
from forge.recipes.method_rules import Group, Listed, check_base, check_group
from forge.recipes.output_words import read_chat_template, read_dtype, read_shard_size
from forge.recipes.parameter_reader import Level, read_parameters, with_defaults
from forge.recipes.parameters import MethodRow
from forge.recipes.place import KeyPath
from forge.recipes.reference import ModelReference
from forge.recipes.settings import Setting
from forge.recipes.shapes import ModelShape, ModuleShape, RecipeShape, fit
from forge.recipes.slice_reader import MethodReader, Outer, ParameterReader, read_slices
from forge.recipes.statistics_rules import check_statistics
from forge.recipes.tokenizer_reader import read_tokenizer


def read_merge_recipe(document: Document, methods: Catalog[MethodRow]) -> MergeRecipe:
    """Read a merge recipe.

    Args:
        document: The YAML, or values built in memory.
        methods: The merge methods to choose from.

    Returns:
        The recipe with all defaults filled in.

    Raises:
        RecipeError: Carries every problem of the document.
    """
    findings = Findings(document, list(document.problems))
    value = document.value
    hints = {
        row.name: "Write it under 'parameters'." for method in methods for row in method.parameters
    }
    hints |= dict.fromkeys(("experts", "gate_mode"), "Recipes with experts are for 'forge moe'.")
    shape = fit(RecipeShape, value, (), findings, hints=hints)
    if not isinstance(value, dict):
        raise RecipeError(findings.problems)
    method = _read_method(shape.merge_method, value.get("merge_method"), methods, findings)

    def read(
        raw: Mapping[str, object] | None, path: KeyPath, level: Level, row: MethodRow | None
    ) -> dict[str, Setting]:
        return read_parameters(raw, path, level, method=row, methods=methods, findings=findings)

    def choose(name: str, path: KeyPath) -> MethodRow | None:
        return _find_method(name, path, methods, findings)

    base = findings.reference(shape.base_model, ("base_model",))
    body = _read_body(shape, value, base, method, read, choose, findings, hints)
    for group in body.groups:
        check_group(group, findings)
    if base is not None or value.get("base_model") is None:
        check_base(body.groups, findings)

    tokenizer = read_tokenizer(shape.tokenizer_source, shape.tokenizer, findings)
    _check_token_models(tokenizer, body.groups, findings)
    check_statistics(method, base, body.models, body.slices, findings)
    dtype = read_dtype(shape.dtype, ("dtype",), findings)
    out_dtype = read_dtype(shape.out_dtype, ("out_dtype",), findings)
    chat_template = read_chat_template(shape.chat_template, findings)
    size = read_shard_size(shape.max_shard_size or DEFAULT_MAX_SHARD_SIZE, findings)
    if method is None:
        raise RecipeError(findings.problems)
    recipe = MergeRecipe(
        method,
        base_model=base,
        models=body.models,
        slices=body.slices,
        parameters=with_defaults(body.parameters, method),
        dtype=dtype,
        out_dtype=out_dtype,
        tokenizer=tokenizer,
        chat_template=chat_template,
        name=shape.name,
        seed=shape.seed,
        allow_nonfinite=shape.allow_nonfinite,
        max_shard_size=size,
        notices=tuple(findings.notices),
        file=findings.place(()).file,
    )
    check_keep_probability(recipe, findings)
    if findings.problems:
        raise RecipeError(findings.problems)
    return recipe


@dataclass(frozen=True, slots=True)
class _Body:
    """What stands either at the top level or in the one module."""

    models: tuple[ModelEntry, ...]
    slices: tuple[SliceEntry, ...]
    parameters: Parameters
    groups: tuple[Group, ...]


def _read_body(
    shape: RecipeShape,
    value: Mapping[str, object],
    base: ModelReference | None,
    method: MethodRow | None,
    read: ParameterReader,
    choose: MethodReader,
    findings: Findings,
    hints: dict[str, str],
) -> _Body:
    parameters = read(shape.parameters, ("parameters",), "global", method)
    module, prefix = _read_module(shape, findings)
    for name, setting in read(module.parameters, (*prefix, "parameters"), "global", method).items():
        parameters[name] = setting.then(parameters.get(name))
    written = frozenset(shape.parameters or ()) | frozenset(module.parameters or ())
    models: tuple[ModelEntry, ...] = ()
    slices: tuple[SliceEntry, ...] = ()
    groups: list[Group] = []
    if (module.models is None) == (module.slices is None):
        _report_choice(module, value, prefix, findings)
    if module.models is not None:
        at = (*prefix, "models")
        models, listed = _read_models(module.models, at, method, read, findings, hints)
        groups.append(Group(listed, base, written, at, is_slice=False, method=method))
    if module.slices is not None:
        at = (*prefix, "slices")
        outer = Outer(base, method, written, read, choose, findings, hints)
        slices, found = read_slices(module.slices, at, outer)
        groups += found
    return _Body(models, slices, parameters, tuple(groups))


def _read_method(
    name: str | None, written: object, methods: Catalog[MethodRow], findings: Findings
) -> MethodRow | None:
    path: KeyPath = ("merge_method",)
    if name is None:
        if written is None:
            findings.missing(
                path, "The recipe names no method. Add, say, 'merge_method: dare_ties'."
            )
        return None
    return _find_method(name, path, methods, findings)


def _find_method(
    name: str, path: KeyPath, methods: Catalog[MethodRow], findings: Findings
) -> MethodRow | None:
    if name in methods:
        return methods[name]
    known = ", ".join(methods.names())
    findings.add(path, f"{name!r} is no merge method.{methods.suggest(name)} Known: {known}.")
    # Judging the rest by the method that is probably meant shows its mistakes in this run, too.
    nearest = get_close_matches(name.lower(), methods.names(), n=1, cutoff=0.6)
    return methods[nearest[0]] if nearest else None


def _read_module(shape: RecipeShape, findings: Findings) -> tuple[ModuleShape, KeyPath]:
    """Return what lists the models, and its path: the recipe itself or its one module."""
    if shape.modules is None:
        return ModuleShape(models=shape.models, slices=shape.slices), ()
    path: KeyPath = ("modules",)
    if shape.models is not None or shape.slices is not None:
        findings.add(path, "'modules' excludes 'models' and 'slices' beside it. Keep one of them.")
    if list(shape.modules) != ["default"]:
        names = ", ".join(f"'{name}'" for name in shape.modules) or "none"
        findings.add(
            path,
            f"Only models of one module, 'default', can be merged; the recipe has {names}. Write "
            "'models' or 'slices' at the top level.",
        )
        return ModuleShape(), path
    at = (*path, "default")
    return fit(ModuleShape, shape.modules["default"], at, findings), at


def _report_choice(
    module: ModuleShape, value: Mapping[str, object], prefix: KeyPath, findings: Findings
) -> None:
    if module.models is not None:
        findings.add(
            (*prefix, "slices"),
            "'models' and 'slices' exclude each other. Keep 'models' for whole models, 'slices' "
            "to choose layers.",
        )
    elif not any(
        value.get(key) is not None or (key,) in findings.misspelt
        for key in ("models", "slices", "modules")
    ):
        findings.add(
            prefix, "The recipe lists no models. Add 'models:' with a '- model: ...' for each."
        )


def _read_models(
    items: list[object],
    path: KeyPath,
    method: MethodRow | None,
    read: ParameterReader,
    findings: Findings,
    hints: dict[str, str],
) -> tuple[tuple[ModelEntry, ...], tuple[Listed, ...]]:
    entries: list[ModelEntry] = []
    listed: list[Listed] = []
    for index, item in enumerate(items):
        at = (*path, index)
        shape = fit(ModelShape, item, at, findings, hints=hints)
        parameters = read(shape.parameters, (*at, "parameters"), "model", method)
        model = findings.reference(shape.model, (*at, "model"))
        if isinstance(item, dict) and item.get("model") is None:
            findings.missing((*at, "model"), "This item names no model. Add 'model: ...'.")
        listed.append(Listed(model, frozenset(shape.parameters or ()), at))
        if model is not None:
            entries.append(ModelEntry(model, parameters, findings.place(at), shape.statistics))
    return tuple(entries), tuple(listed)


def _check_token_models(
    tokenizer: TokenizerEntry | None, groups: Sequence[Group], findings: Findings
) -> None:
    named = {item.model for group in groups for item in group.listed}
    named |= {group.base for group in groups}
    for entry in () if tokenizer is None else tokenizer.tokens:
        if entry.model is not None and entry.model not in named:
            findings.add(
                ("tokenizer", "tokens", entry.token, "source"),
                f"{entry.model} is not merged by this recipe. Take the embedding from one of "
                "its models.",
            )
