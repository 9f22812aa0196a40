"""How the rows of an output's embeddings are made from those of the models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from forge.merge.vocabulary.tokens import Tokenizer
from forge.recipes.reference import ModelReference


@dataclass(frozen=True, slots=True, order=True)
class RowOrigin:
    """A row of a model's embedding."""

    model: ModelReference
    row: int


@dataclass(frozen=True, slots=True)
class RowMap:
    """The embedding of one model in the order of the output's vocabulary.

    Attributes:
        own: For each output row, the model's own row, or -1 where the row is filled.
    """

    own: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VocabularyPlan:
    """The vocabulary of a result.

    Attributes:
        num_rows: Rows of the output's embeddings, padding included.
        tokenizer_files: Tokenizer files to write, by name; empty when those of the base (or the
            first model) stay.
        rows: How to rearrange the embeddings of those models that must be.
        fills: For each output row that some model lacks, where it comes from in that model: no
            origin is zeros, several are their mean.
        tokenizer_model: The model whose ids hold in the output, and with them its ids of special
            tokens.
        notices: What the user should know.
        tokenizer: The result's tokenizer.
        tokenizers: The tokenizers of the models that were asked for them.
    """

    num_rows: int
    tokenizer_files: Mapping[str, bytes]
    rows: Mapping[ModelReference, RowMap]
    fills: Mapping[int, tuple[RowOrigin, ...]]
    tokenizer_model: ModelReference
    notices: tuple[str, ...]
    tokenizer: Tokenizer = field(compare=False, repr=False)
    tokenizers: Mapping[ModelReference, Tokenizer | None] = field(compare=False, repr=False)

    def digest(self) -> str:
        """Return what tells this arrangement of rows from every other one."""
        content = {
            "num_rows": self.num_rows,
            "rows": [[str(model), self.rows[model].own] for model in sorted(self.rows)],
            "fills": [
                [number, [[str(origin.model), origin.row] for origin in self.fills[number]]]
                for number in sorted(self.fills)
            ],
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def without_documents(self) -> VocabularyPlan:
        """Return the plan without what only a check needs.

        A parsed tokenizer of 128,000 pieces takes 50 MB, and a merge may run for an hour.
        """
        return replace(
            self,
            tokenizer=replace(self.tokenizer, files={}, document=None),
            tokenizers={},
        )
