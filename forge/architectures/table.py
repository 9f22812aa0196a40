"""One row a family: where its layers, embeddings and heads are, and what its config calls them.

To add a family, add a row. Names are those of published safetensors files, which for some
families exist with and without an outer prefix (``transformer.h.0`` and ``h.0``); a row
lists all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from forge.core.catalog import Catalog
from forge.core.errors import IncompatibleError


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of models.

    Attributes:
        name: ``model_type`` of its ``config.json``.
        layer_prefixes: What stands before a layer's number in tensor names.
        embeddings: Token embedding; its rows are the vocabulary.
        heads: Output projection; its rows are the vocabulary. Absent from a tied checkpoint.
        final_norms: Norm after the last layer.
        num_layers_keys: Config keys that may hold the number of layers, the first present counts.
        per_layer_lists: Config keys that hold one entry a layer.
        layer_number_lists: Config keys that hold numbers of layers.
        layers_by_default: How many layers a config means that states no number, if that happens.
        tied_by_default: What an absent ``tie_word_embeddings`` means.
        text_section: Config key of the language model's part in a model of several parts.
        is_multipart: Whether tensors outside the language model belong to other parts (a vision
            tower, a projector), which a merge carries over from one model untouched.
        tower: Family of the language model of such a model when it stands alone; ``None`` when
            the config says (``model_type`` of its ``text_section``).
        inferred_layers: Number of layers of a row that was inferred rather than listed; ``None``
            when the config states it.
        notice: What the user should know when the row was inferred rather than listed.
    """

    name: str
    layer_prefixes: tuple[str, ...] = ("model.layers.",)
    embeddings: tuple[str, ...] = ("model.embed_tokens.weight",)
    heads: tuple[str, ...] = ("lm_head.weight", "lm_head.bias")
    final_norms: tuple[str, ...] = ("model.norm.weight", "model.norm.bias")
    num_layers_keys: tuple[str, ...] = ("num_hidden_layers",)
    per_layer_lists: tuple[str, ...] = ("layer_types",)
    layer_number_lists: tuple[str, ...] = ()
    layers_by_default: int | None = None
    tied_by_default: bool = False
    text_section: str | None = None
    is_multipart: bool = False
    tower: str | None = None
    inferred_layers: int | None = None
    notice: str | None = None

    def layer_of(self, name: str) -> int | None:
        """Return the number of the layer that a tensor belongs to.

        Args:
            name: The tensor.

        Returns:
            The number, or ``None`` for a tensor outside the layers.
        """
        parts = self._split(name)
        return None if parts is None else parts[1]

    def with_layer(self, name: str, layer: int) -> str:
        """Return a tensor's name with another layer number.

        Args:
            name: A tensor of a layer.
            layer: The new number.

        Returns:
            The new name.

        Raises:
            ValueError: The tensor is not part of a layer.
        """
        parts = self._split(name)
        if parts is None:
            raise ValueError(f"'{name}' is not in a layer of {self.name}")
        return f"{parts[0]}{layer}.{parts[2]}"

    def num_layers(self, config: Mapping[str, object]) -> int:
        """Return the number of layers that a config states.

        Args:
            config: ``config.json`` of a model of this family.

        Returns:
            The number, at least 1; of an inferred row, what was found, which may be 0.

        Raises:
            IncompatibleError: The config has no such number.
        """
        if self.inferred_layers is not None:
            return self.inferred_layers
        text = self.text_config(config)
        for key in self.num_layers_keys:
            value = text.get(key)
            if type(value) is int and value > 0:
                return value
        if self.layers_by_default is not None and not any(
            key in text for key in self.num_layers_keys
        ):
            return self.layers_by_default
        raise IncompatibleError(
            f"config.json of a {self.name} model must state '{self.num_layers_keys[0]}' "
            "as a positive number."
        )

    def num_layers_key(self, config: Mapping[str, object]) -> str:
        """Return the config key that holds the number of layers.

        Args:
            config: ``config.json`` of a model of this family.

        Returns:
            The key, inside ``text_section`` where there is one.

        Raises:
            IncompatibleError: No key of the config of an unknown family holds the number of its
                layers, so that a changed number could not be written.
        """
        text = self.text_config(config)
        if not self.num_layers_keys:
            raise IncompatibleError(
                f"The layers of a '{self.name}' model cannot be restacked: nothing in its "
                f"config.json says that it has {self.inferred_layers}, so the new number could "
                "not be written. A row in forge/architectures/table.py would name the key."
            )
        return next((key for key in self.num_layers_keys if key in text), self.num_layers_keys[0])

    def text_config(self, config: Mapping[str, object]) -> Mapping[str, object]:
        """Return the part of a config that describes the language model.

        Args:
            config: ``config.json``.

        Returns:
            The config itself, or its ``text_section``.
        """
        section = config.get(self.text_section) if self.text_section else None
        return section if isinstance(section, Mapping) else config

    def num_positions(self, config: Mapping[str, object]) -> int | None:
        """Return the most tokens that a config says the model can read.

        Args:
            config: ``config.json``.

        Returns:
            The number; ``None`` where there is none, as of positions that are never counted out.
        """
        text = self.text_config(config)
        found = (text.get(key) for key in POSITIONS)
        return next((v for v in found if type(v) is int and v > 0), None)

    def is_tied(self, config: Mapping[str, object]) -> bool:
        """Tell whether a config declares that the head shares the embedding's weights.

        Args:
            config: ``config.json``.

        Returns:
            The declaration of the whole model, else of its language model, else the default.
        """
        for part in (config, self.text_config(config)):
            value = part.get("tie_word_embeddings")
            if isinstance(value, bool):
                return value
        return self.tied_by_default

    def language_family(self, config: Mapping[str, object]) -> str:
        """Return the family of the language model, standing alone.

        Args:
            config: ``config.json`` of a model of this family.

        Returns:
            This family's name; of a model of several parts, that of its language model.
        """
        if not self.is_multipart:
            return self.name
        text = self.text_config(config)
        stated = text.get("model_type")
        is_stated = text is not config and isinstance(stated, str)
        return self.tower or (str(stated) if is_stated else self.name)

    def is_carried(self, name: str) -> bool:
        """Tell whether a tensor belongs to another part than the language model.

        Args:
            name: The tensor.

        Returns:
            Whether a merge carries it over from one model untouched: in a model of several parts,
            whatever is neither in the layers nor embedding, final norm or head.
        """
        roles = (*self.embeddings, *self.final_norms, *self.heads)
        return self.is_multipart and self._split(name) is None and name not in roles

    def counterpart(self, name: str, other: Architecture, names: Collection[str]) -> str:
        """Return what a model of another family, or of another spelling, calls a tensor.

        Args:
            name: A tensor of a model of this family.
            other: A family with the same language model; it may be this one.
            names: All tensors of a model of that family.

        Returns:
            The name in ``names``; where there is none, the one that was looked for.
        """
        if name in names:
            return name
        choices: list[str] = []
        parts = self._split(name)
        if parts is not None:
            choices += [f"{prefix}{parts[1]}.{parts[2]}" for prefix in other.layer_prefixes]
        for ours, theirs in (
            (self.embeddings, other.embeddings),
            (self.final_norms, other.final_norms),
            (self.heads, other.heads),
        ):
            leaf = name.rpartition(".")[2]
            choices += [each for each in theirs if name in ours and each.endswith(f".{leaf}")]
        if not choices and self is other:
            # The spellings of one family differ by an outer module: transformer.wpe and wpe.
            inner = min(self.layer_prefixes, key=len)
            outer = [each.removesuffix(inner) for each in self.layer_prefixes]
            choices += [add + name.removeprefix(drop) for drop in outer for add in outer]
        return next((each for each in choices if each in names), (choices or [name])[0])

    def vocabulary_axis(self, name: str) -> int | None:
        """Return the axis of a tensor that runs over the vocabulary.

        Args:
            name: The tensor.

        Returns:
            0 for embedding and head, ``None`` for any other tensor.
        """
        return 0 if name in self.embeddings or name in self.heads else None

    def _split(self, name: str) -> tuple[str, int, str] | None:
        for prefix in self.layer_prefixes:
            if name.startswith(prefix):
                number, dot, rest = name[len(prefix) :].partition(".")
                if dot and number.isascii() and number.isdecimal() and len(number) < 8:
                    return prefix, int(number), rest
        return None


def _with_tower(
    name: str,
    outer: str,
    *,
    tower: str | None = None,
    layers_by_default: int | None = None,
    tied_by_default: bool = False,
) -> Architecture:
    """Return a family of several parts, whose files name the language model in one of two ways."""
    inner = (f"{outer}model.", "model.language_model.")
    return Architecture(
        name,
        layer_prefixes=tuple(f"{prefix}layers." for prefix in inner),
        embeddings=tuple(f"{prefix}embed_tokens.weight" for prefix in inner),
        heads=tuple(dict.fromkeys((f"{outer}lm_head.weight", "lm_head.weight"))),
        final_norms=tuple(f"{prefix}norm.weight" for prefix in inner),
        layers_by_default=layers_by_default,
        tied_by_default=tied_by_default,
        text_section="text_config",
        is_multipart=True,
        tower=tower,
    )


FURTHER_LAYERS: Final = "num_nextn_predict_layers"
"""Config key that promises layers behind the last, which predict further tokens (DeepSeek-V3)."""
POSITIONS: Final = ("max_position_embeddings", "n_positions", "max_seq_len")
"""Config keys of the number of tokens that a model can read."""
_DECODER_H: Final = ("transformer.h.", "h.")

ARCHITECTURES: Final = Catalog(
    (
        Architecture("llama"),
        Architecture("mistral"),
        Architecture("mixtral"),
        Architecture("qwen2"),
        Architecture("qwen3"),
        Architecture("qwen2_moe", layer_number_lists=("mlp_only_layers",)),
        Architecture("qwen3_moe", layer_number_lists=("mlp_only_layers",)),
        Architecture("gemma", tied_by_default=True),
        Architecture("gemma2", tied_by_default=True),
        Architecture("gemma3_text", tied_by_default=True),
        _with_tower("gemma3", "language_model.", tower="gemma3_text", tied_by_default=True),
        # Its published configs leave out what is Llama's default, such as the 32 layers of 7B.
        _with_tower("llava", "language_model.", layers_by_default=32),
        # Published files begin like those of the language model alone.
        _with_tower("qwen2_vl", "", tower="qwen2"),
        _with_tower("qwen2_5_vl", "", tower="qwen2"),
        Architecture(
            "phi", final_norms=("model.final_layernorm.weight", "model.final_layernorm.bias")
        ),
        Architecture("phi3"),
        Architecture("deepseek_v2"),
        Architecture("deepseek_v3"),
        Architecture("gpt_oss"),
        Architecture(
            "bloom",
            layer_prefixes=_DECODER_H,
            embeddings=("transformer.word_embeddings.weight", "word_embeddings.weight"),
            final_norms=(
                "transformer.ln_f.weight", "transformer.ln_f.bias", "ln_f.weight", "ln_f.bias",
            ),
            num_layers_keys=("n_layer", "num_hidden_layers"),
            tied_by_default=True,
        ),
        Architecture(
            "gpt_neox",
            layer_prefixes=("gpt_neox.layers.",),
            embeddings=("gpt_neox.embed_in.weight",),
            heads=("embed_out.weight", "lm_head.weight"),
            final_norms=("gpt_neox.final_layer_norm.weight", "gpt_neox.final_layer_norm.bias"),
        ),
        Architecture(
            "gpt2",
            layer_prefixes=_DECODER_H,
            embeddings=("transformer.wte.weight", "wte.weight"),
            final_norms=(
                "transformer.ln_f.weight", "transformer.ln_f.bias", "ln_f.weight", "ln_f.bias",
            ),
            num_layers_keys=("n_layer", "num_hidden_layers"),
            tied_by_default=True,
        ),
        Architecture(
            "gptj",
            layer_prefixes=_DECODER_H,
            embeddings=("transformer.wte.weight", "wte.weight"),
            final_norms=(
                "transformer.ln_f.weight", "transformer.ln_f.bias", "ln_f.weight", "ln_f.bias",
            ),
            num_layers_keys=("n_layer", "num_hidden_layers"),
        ),
        Architecture(
            "mpt",
            layer_prefixes=("transformer.blocks.",),
            embeddings=("transformer.wte.weight",),
            final_norms=("transformer.norm_f.weight", "transformer.norm_f.bias"),
            num_layers_keys=("n_layers", "num_hidden_layers"),
            tied_by_default=True,
        ),
        Architecture(
            "falcon",
            layer_prefixes=_DECODER_H,
            embeddings=("transformer.word_embeddings.weight", "word_embeddings.weight"),
            final_norms=(
                "transformer.ln_f.weight", "transformer.ln_f.bias", "ln_f.weight", "ln_f.bias",
            ),
            num_layers_keys=("num_hidden_layers", "n_layer"),
            tied_by_default=True,
        ),
        Architecture("stablelm"),
        Architecture("starcoder2", tied_by_default=True),
        Architecture("olmo2"),
        Architecture("cohere", tied_by_default=True),
        Architecture(
            "smollm3", per_layer_lists=("layer_types", "no_rope_layers"), tied_by_default=True
        ),
        Architecture("granite"),
        Architecture(
            "opt",
            layer_prefixes=("model.decoder.layers.", "decoder.layers."),
            embeddings=("model.decoder.embed_tokens.weight", "decoder.embed_tokens.weight"),
            final_norms=(
                "model.decoder.final_layer_norm.weight", "model.decoder.final_layer_norm.bias",
                "decoder.final_layer_norm.weight", "decoder.final_layer_norm.bias",
            ),
            tied_by_default=True,
        ),
    )
)  # fmt: skip
