"""A recipe for a mixture of experts after reading: frozen values with every default filled in.

Keys are those of mergekit-moe, so that its files run unchanged; ``architecture``, ``name``,
``seed`` and ``max_shard_size`` may stand beside them. Nothing here reads files or judges input;
``forge/recipes/moe_recipe.py`` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from forge.recipes.document import dump_yaml
from forge.recipes.merge_entries import parse_size
from forge.recipes.merge_types import DEFAULT_MAX_SHARD_SIZE
from forge.recipes.place import Place
from forge.recipes.reference import ModelReference

GATE_MODES: Final = {
    "hidden": "from what the router will read when the base model reads the prompts",
    "cheap_embed": "from the embeddings of the prompts' tokens, the same in all layers",
    "random": "drawn at random from the seed; to be trained",
}
"""Where routers come from, by the word after ``gate_mode:``."""
FAMILIES: Final = ("mixtral", "qwen2_moe", "qwen3_moe")
"""What can be built; ``forge/architectures/experts.py`` says of what."""
DEFAULT_EXPERTS_PER_TOKEN: Final = 2


@dataclass(frozen=True, slots=True)
class ExpertEntry:
    """One item of ``experts`` or ``shared_experts``.

    Attributes:
        source_model: The dense model whose MLPs it is.
        positive_prompts: What it is meant for.
        negative_prompts: What it is not meant for.
        residual_scale: Factor of its output.
        place: Where it stands.
    """

    source_model: ModelReference
    positive_prompts: tuple[str, ...] = ()
    negative_prompts: tuple[str, ...] = ()
    residual_scale: float = 1.0
    place: Place = field(default_factory=Place, compare=False, repr=False)

    def dump(self) -> dict[str, object]:
        """Return it as a recipe writes it."""
        keys: dict[str, object] = {"source_model": str(self.source_model)}
        if self.positive_prompts:
            keys["positive_prompts"] = list(self.positive_prompts)
        if self.negative_prompts:
            keys["negative_prompts"] = list(self.negative_prompts)
        if self.residual_scale != 1.0:
            keys["residual_scale"] = self.residual_scale
        return keys


@dataclass(frozen=True, slots=True)
class MoeRecipe:
    """What mixture to build of which models.

    Attributes:
        base_model: Attention, norms, embeddings, head and tokenizer are this model's.
        experts: At least two.
        shared_experts: Experts that every token goes through; of families that have one.
        gate_mode: One of ``GATE_MODES``.
        experts_per_token: How many experts a token goes through.
        architecture: Family to build, or ``None`` for the one that goes with the base.
        dtype: Torch name of the element type to write, or ``None`` to keep each tensor's own.
        name: What to call the result, or ``None``.
        seed: Seed of random routers.
        max_shard_size: Largest file to write, such as ``5GB``.
        notices: What the recipe says but has no effect.
        file: The recipe as the user typed it; ``None`` when it was built in memory.
    """

    base_model: ModelReference
    experts: tuple[ExpertEntry, ...]
    shared_experts: tuple[ExpertEntry, ...] = ()
    gate_mode: str = "hidden"
    experts_per_token: int = DEFAULT_EXPERTS_PER_TOKEN
    architecture: str | None = None
    dtype: str | None = None
    name: str | None = None
    seed: int = 0
    max_shard_size: str = DEFAULT_MAX_SHARD_SIZE
    notices: tuple[str, ...] = field(default=(), compare=False)
    file: str | None = field(default=None, compare=False)

    @property
    def max_shard_bytes(self) -> int:
        """Largest weight file to write, in bytes."""
        return parse_size(self.max_shard_size)

    def references(self) -> tuple[ModelReference, ...]:
        """Return every model, the base first, each once."""
        named = [entry.source_model for entry in (*self.experts, *self.shared_experts)]
        return tuple(dict.fromkeys([self.base_model, *named]))

    def resolved(self) -> dict[str, object]:
        """Return the recipe as plain JSON values with every default written out.

        Reading it back gives an equal recipe.
        """
        keys: dict[str, object] = {
            "name": self.name,
            "base_model": str(self.base_model),
            "architecture": self.architecture,
            "gate_mode": self.gate_mode,
            "experts_per_token": self.experts_per_token,
            "experts": [entry.dump() for entry in self.experts],
            "shared_experts": [entry.dump() for entry in self.shared_experts] or None,
            "dtype": self.dtype,
            "seed": self.seed,
            "max_shard_size": self.max_shard_size,
        }
        return {key: value for key, value in keys.items() if value is not None}

    def to_yaml(self) -> str:
        """Return :meth:`resolved` as YAML."""
        return dump_yaml(self.resolved())
