"""Compare the tokenizers of the models: whether a row of the embedding means one token in all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from forge.checkpoints.chat_templates import choose_template, template_of
from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.companions import read_tokenizer_files
from forge.core.enumeration import listed
from forge.core.errors import ForgeError
from forge.merge.check.report import Notebook
from forge.merge.check.stack import Subject
from forge.merge.check.tokenizer_facts import TokenizerTable, tokenizer_table
from forge.merge.vocabulary.planning import VocabularyPlan
from forge.merge.vocabulary.tokens import Tokenizer, read_tokenizers
from forge.recipes.merge_types import MergeRecipe
from forge.recipes.reference import ModelReference

_FEW: Final = 0.01
"""Share of ids with another meaning up to which the merge is doubtful, and beyond which absurd."""
_SHOWN: Final = 3


def read_all_tokenizers(
    checkpoints: Mapping[ModelReference, Checkpoint],
    vocabulary: VocabularyPlan | None,
    notes: Notebook,
) -> Mapping[ModelReference, Tokenizer | None] | None:
    """Read the tokenizers of all models; parsing them is most of the time of a check.

    Args:
        checkpoints: Every model.
        vocabulary: The result's vocabulary when it has been planned, and tokenizers been read.
        notes: Receives what is wrong with a file.

    Returns:
        The tokenizers, or ``None`` when a file is malformed.
    """
    roots = {model: checkpoint.tokenizer_root for model, checkpoint in checkpoints.items()}
    try:
        return read_tokenizers(roots, known=None if vocabulary is None else vocabulary.tokenizers)
    except ForgeError as error:
        notes.error("tokenizer-file", str(error))
        return None


def check_tokenizers(
    recipe: MergeRecipe,
    models: Sequence[ModelReference],
    subjects: Mapping[ModelReference, Subject],
    checkpoints: Mapping[ModelReference, Checkpoint],
    tokenizers: Mapping[ModelReference, Tokenizer | None],
    notes: Notebook,
) -> TokenizerTable:
    """Report tokenizers and chat templates that differ.

    Args:
        recipe: The recipe.
        models: Those whose embedding, head or tokenizer enters the result; the first gives the
            tokenizer when the recipe does not say otherwise.
        subjects: Every model that is merged.
        checkpoints: Those, and models that only lend tokens.
        tokenizers: Their tokenizers.
        notes: Receives the findings.

    Returns:
        The tokenizers of all models side by side.
    """
    lead = models[0]
    merged = dict.fromkeys([*models, *recipe.references()])
    named = dict.fromkeys([*merged, *checkpoints])
    templates: dict[ModelReference, str | None] = {}
    try:
        for model in named:
            known = tokenizers.get(model)
            root = checkpoints[model].tokenizer_root
            files = read_tokenizer_files(root) if known is None else known.files
            templates[model] = template_of(files)
        _check_templates(recipe, lead, {model: templates[model] for model in merged}, notes)
    except ForgeError as error:
        notes.error("tokenizer-file", str(error))
    if recipe.tokenizer is None:
        _check_ids(lead, models[1:], tokenizers, notes)
        _check_rows(subjects[lead], tokenizers[lead], notes)
    return tokenizer_table(
        [checkpoints[model] for model in named],
        tokenizers,
        templates,
        {model: subject.vocab_rows for model, subject in subjects.items()},
    )


def _check_rows(lead: Subject, tokenizer: Tokenizer | None, notes: Notebook) -> None:
    """Report tokens that the result would have no row for, and a count that is not the rows'."""
    rows, stated = lead.vocab_rows, lead.text_config.get("vocab_size")
    if type(stated) is int and rows is not None and stated != rows:
        notes.warning(
            "tokenizer-rows",
            f"config.json of {lead.reference} states vocab_size {stated:,}, but its embedding has "
            f"{rows:,} rows, so loaders will refuse the result. Add 'tokenizer: {{source: base}}', "
            "which states what is there, or repair the file.",
        )
    if tokenizer is None or rows is None:
        return
    beyond = [token for token, number in tokenizer.ids.items() if number >= rows]
    if beyond:
        notes.warning(
            "tokenizer-rows",
            f"The tokenizer of {lead.reference} has tokens beyond the {rows:,} rows of its "
            f"embedding: {_some(beyond)}. A text with one of them makes loaders fail. Add "
            "'tokenizer: {source: base}', which gives each token a row.",
        )


def _some(tokens: Sequence[str]) -> str:
    shown = ", ".join(repr(token) for token in tokens[:_SHOWN])
    return shown + (f" and {len(tokens) - _SHOWN:,} more" if len(tokens) > _SHOWN else "")


def _check_ids(
    lead: ModelReference,
    others: Sequence[ModelReference],
    found: Mapping[ModelReference, Tokenizer | None],
    notes: Notebook,
) -> None:
    own = found[lead]
    unknown = [model for model in (lead, *others) if found[model] is None]
    if own is None:
        notes.warning(
            "tokenizer-missing",
            f"{lead} has no tokenizer that forge can read, so the result will have none either. "
            "Add its files to the model's folder, or name a 'tokenizer: {source: ...}'.",
        )
        return
    if unknown:
        notes.notice(
            "tokenizer-missing",
            f"{listed(unknown)} cannot be compared with the tokenizer of {lead}: there is no "
            "tokenizer that forge can read. The rows of the embeddings are taken to agree.",
        )
    for model in others:
        other = found[model]
        if other is not None and other.ids is not own.ids and other.ids != own.ids:
            _report_ids(lead, own, model, other, notes)


def _report_ids(
    lead: ModelReference,
    own: Tokenizer,
    model: ModelReference,
    other: Tokenizer,
    notes: Notebook,
) -> None:
    ours = {number: token for token, number in own.ids.items()}
    theirs = {number: token for token, number in other.ids.items()}
    shared = ours.keys() & theirs.keys()
    unlike = sorted(number for number in shared if ours[number] != theirs[number])
    if unlike:
        shown = ", ".join(
            f"{number} is {ours[number]!r} / {theirs[number]!r}" for number in unlike[:_SHOWN]
        )
        more = f" and {len(unlike) - _SHOWN:,} more" if len(unlike) > _SHOWN else ""
        text = (
            f"The tokenizers of {lead} and {model} give the same ids to different tokens: "
            f"{shown}{more}. Rows of different tokens would be merged into one. Add "
            "'tokenizer: {source: union}' to keep the tokens of both, or 'tokenizer: {source: "
            f"base}}' to keep those of {lead}."
        )
        if len(unlike) > _FEW * len(shared):
            notes.error("tokenizer", text)
        else:
            notes.warning("tokenizer", text)
        return
    for owner, extra in (
        (model, sorted(theirs.keys() - ours.keys())),
        (lead, sorted(ours.keys() - theirs.keys())),
    ):
        if extra:
            names = theirs if owner == model else ours
            shown = _some([names[number] for number in extra])
            outcome = (
                "They are not in the tokenizer of the result; 'tokenizer: {source: union}' keeps "
                "them."
                if owner == model
                else "They stay in the tokenizer of the result."
            )
            notes.warning("tokenizer", f"Only the tokenizer of {owner} has {shown}. {outcome}")


def _check_templates(
    recipe: MergeRecipe,
    lead: ModelReference,
    templates: Mapping[ModelReference, str | None],
    notes: Notebook,
) -> None:
    if recipe.chat_template is not None:
        try:
            choose_template(recipe.chat_template, [*templates.values()])
        except ForgeError as error:
            notes.error("chat-template", str(error))
        return
    chosen = lead
    if recipe.tokenizer is not None and not isinstance(recipe.tokenizer.source, str):
        chosen = recipe.tokenizer.source
    own = templates.get(chosen)
    others = [model for model, template in templates.items() if model != chosen and template != own]
    if chosen in templates and others:
        outcome = f"gets that of {chosen}" if own is not None else "gets none, like it"
        notes.warning(
            "chat-template",
            f"The chat template of {listed(others)} differs from that of {chosen}. The result "
            f"{outcome}. Write 'chat_template: auto', a name or Jinja to choose another.",
        )
