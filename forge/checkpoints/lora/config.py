"""What ``adapter_config.json`` says, read with the rules by which PEFT reads it.

A rank or an alpha can differ by module: ``rank_pattern`` and ``alpha_pattern`` map patterns to
numbers. PEFT takes the first pattern, in the file's order, for which

    re.match(rf"(.*\\.)?({pattern})$", module)

and the default when there is none. The patterns are a stranger's, and Python's matcher can be
made to run for years by one, so a pattern that repeats a repetition is refused.

An adapter can say far more than forge does. What would change the merged weights and is not done
is refused by name; leaving it out would make a different model. Keys that only steer training or
choose modules (the tensors say which were chosen) have no effect here.

Reference: PEFT 0.21, ``peft.utils.other.get_pattern_key``, ``peft.tuners.lora.config``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeGuard, TypeVar

from forge.checkpoints.companions import ADAPTER_CONFIG_FILE
from forge.checkpoints.folder import read_json_object
from forge.core.errors import CheckpointError

_Value = TypeVar("_Value", int, float)

Kind = Literal["LORA", "IA3", "TRAINABLE_TOKENS"]

_KINDS: Final[tuple[Kind, ...]] = ("LORA", "IA3", "TRAINABLE_TOKENS")
_BIASES: Final = ("none", "all", "lora_only")
_MAX_RANK: Final = 1 << 20
_MAX_PATTERN: Final = 512
_MAX_REPEATS: Final = 3
_MAX_TOKENS: Final = 1 << 24
_HANDLED: Final = frozenset(
    {
        "alpha_pattern", "bias", "ensure_weight_tying", "fan_in_fan_out", "feedforward_modules",
        "init_lora_weights", "lora_alpha", "lora_bias", "modules_to_save", "peft_type", "r",
        "rank_pattern", "target_parameters", "token_indices", "trainable_token_indices",
        "use_dora", "use_rslora",
    }
)  # fmt: skip
_WITHOUT_EFFECT: Final = frozenset(
    {
        "auto_mapping", "base_model_name_or_path", "corda_config", "eva_config",
        "exclude_modules", "inference_mode", "init_ia3_weights", "init_weights",
        "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
        "lora_ga_config", "megatron_config", "megatron_core", "modules_to_tie", "peft_version",
        "qalora_group_size", "revision", "runtime_config", "target_modules",
        "target_modules_to_tie", "task_type",
    }
)  # fmt: skip
"""Keys that do not change what a trained adapter's tensors mean."""
_CHANGES_THE_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin that also change the base's weights before training."""
_REPEAT: Final = re.compile(r"[*+]|\{\d*,?\d*\}")


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """An adapter's settings, checked.

    Attributes:
        kind: PEFT's name of the kind of adapter.
        base: Model that it says it was trained on, or ``None``.
        rank: Rank where no pattern says otherwise; 1 for kinds without ranks.
        alpha: Numerator of the scale where no pattern says otherwise.
        rank_pattern: Ranks by pattern of module names, in the file's order.
        alpha_pattern: Alphas by pattern.
        rank_stabilized: Whether the scale is alpha / √r instead of alpha / r.
        decomposed: Whether magnitude and direction are trained apart (DoRA).
        fan_in_fan_out: Whether the last module that PEFT looked at stores ``[in, out]``.
        modules_to_save: Ends of the names of modules that the adapter holds whole.
        target_parameters: Ends of the names of parameters that it changes without a module.
        token_indices: Rows that are trained alone, by end of the embedding's name; the name is
            empty where the adapter means the input embedding.
        keeps_tie: Whether PEFT was told to keep tied embeddings tied.
    """

    kind: Kind
    base: str | None
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    rank_stabilized: bool
    decomposed: bool
    fan_in_fan_out: bool
    modules_to_save: tuple[str, ...]
    target_parameters: tuple[str, ...]
    token_indices: Mapping[str, tuple[int, ...]]
    keeps_tie: bool

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's factors.

        Args:
            module: Its name as PEFT has it, without ``base_model.model.``.
        """
        return _by_pattern(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return what the product of a module's factors is multiplied by.

        Args:
            module: Its name as PEFT has it.
        """
        rank, alpha = self.rank_of(module), _by_pattern(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)

    def targets_parameter(self, name: str) -> bool:
        """Tell whether a parameter is changed without its module.

        Args:
            name: The parameter as PEFT has it, such as ``model.layers.0.mlp.experts.down_proj``.
        """
        return any(name == key or name.endswith(f".{key}") for key in self.target_parameters)

    def is_saved_whole(self, module: str) -> bool:
        """Tell whether PEFT replaces a module by the adapter's own.

        Args:
            module: Its name as PEFT has it.
        """
        return any(module.endswith(key) for key in self.modules_to_save)


def _by_pattern(patterns: Mapping[str, _Value], module: str, default: _Value) -> _Value:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def read_adapter_config(root: Path) -> AdapterConfig:
    """Read and check an adapter's settings.

    Args:
        root: The adapter's folder.

    Returns:
        The settings.

    Raises:
        CheckpointError: The file is missing or malformed, or asks for what forge does not do.
    """
    path = root / ADAPTER_CONFIG_FILE
    config = read_json_object(root, ADAPTER_CONFIG_FILE)
    if config is None:
        raise CheckpointError(f"The adapter has no {ADAPTER_CONFIG_FILE} in '{root}'.")
    kind = next((known for known in _KINDS if known == config.get("peft_type")), None)
    if kind is None:
        raise _refusal(root, f"peft_type {_short(config.get('peft_type'))}")
    _refuse_unsupported(config, root)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if kind != "LORA":
        rank, alpha = 1, 1
    if not _is_rank(rank) or not _is_number(alpha):
        raise CheckpointError(f"'{path}' has no valid r and lora_alpha.")
    base = config.get("base_model_name_or_path")
    tokens = config.get(
        "token_indices" if kind == "TRAINABLE_TOKENS" else "trainable_token_indices"
    )
    return AdapterConfig(
        kind=kind,
        base=base if isinstance(base, str) and base else None,
        rank=rank,
        alpha=float(alpha),
        rank_pattern=_patterns(config, "rank_pattern", path, _is_rank, "a rank"),
        alpha_pattern=_patterns(config, "alpha_pattern", path, _is_number, "a number"),
        rank_stabilized=config.get("use_rslora") is True,
        decomposed=config.get("use_dora") is True,
        fan_in_fan_out=config.get("fan_in_fan_out") is True,
        modules_to_save=_names(config, "modules_to_save", path),
        target_parameters=_names(config, "target_parameters", path),
        token_indices=_token_indices(tokens, path),
        keeps_tie=config.get("ensure_weight_tying") is True,
    )


def _refusal(root: Path, what: str, instead: str | None = None) -> CheckpointError:
    return CheckpointError(
        f"The adapter '{root}' uses {what}, which forge does not merge. "
        + (instead or "Merge it with PEFT (merge_and_unload) and use the result as the model.")
    )


def _refuse_unsupported(config: Mapping[str, object], root: Path) -> None:
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_THE_BASE):
        # Its own weights are not what was trained on.
        raise _refusal(
            root,
            f"init_lora_weights {_short(start)}, which also changes the base before training",
            "Save it as a plain LoRA with PEFT (save_pretrained with "
            "path_initial_model_for_weight_conversion).",
        )
    if config.get("bias", "none") not in _BIASES:
        raise _refusal(root, f"bias {_short(config.get('bias'))}")
    for key, value in config.items():
        if value and key not in _HANDLED and key not in _WITHOUT_EFFECT:
            raise _refusal(root, f"{_short(key)[1:-1]} = {_short(value)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


def _is_number(value: object) -> TypeGuard[int | float]:
    if type(value) not in (int, float):
        return False
    assert isinstance(value, int | float)
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_rank(value: object) -> TypeGuard[int]:
    return type(value) is int and 1 <= value <= _MAX_RANK


def _patterns(
    config: Mapping[str, object],
    key: str,
    path: Path,
    is_value: Callable[[object], TypeGuard[_Value]],
    what: str,
) -> dict[str, _Value]:
    table = config.get(key) or {}
    if not isinstance(table, dict):
        raise CheckpointError(f"'{path}': {key} must map patterns to values.")
    found: dict[str, _Value] = {}
    for pattern, value in table.items():
        if not is_value(value):
            raise CheckpointError(
                f"'{path}': {key}[{_short(pattern)}] is {_short(value)}, not {what}."
            )
        if not _is_harmless(pattern):
            raise CheckpointError(
                f"'{path}': the pattern {_short(pattern)} of {key} is longer or repeats more than "
                "a name of a module needs, and could take forever to match. Write the names out."
            )
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except (re.error, OverflowError, RecursionError) as error:
            raise CheckpointError(
                f"'{path}': {key} has the pattern {_short(pattern)}, which is not one: {error}."
            ) from error
        found[pattern] = value
    return found


def _is_harmless(pattern: str) -> bool:
    """Tell whether matching takes polynomial time: few repetitions, and none of a repetition."""
    plain = re.sub(r"\\.", "x", pattern)
    num_repeats = len(_REPEAT.findall(plain))
    repeats_a_group = re.search(r"\)(?:[*+]|\{)", plain) is not None
    return len(pattern) <= _MAX_PATTERN and num_repeats <= (1 if repeats_a_group else _MAX_REPEATS)


def _names(config: Mapping[str, object], key: str, path: Path) -> tuple[str, ...]:
    value = config.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise CheckpointError(f"'{path}': {key} must be a list of names.")
    return tuple(value)


def _token_indices(value: object, path: Path) -> dict[str, tuple[int, ...]]:
    if value is None:
        return {}
    table: dict[Any, Any] = value if isinstance(value, dict) else {"": value}
    found: dict[str, tuple[int, ...]] = {}
    for name, rows in table.items():
        is_list = isinstance(rows, list) and 0 < len(rows) <= _MAX_TOKENS
        if not is_list or not all(type(row) is int and row >= 0 for row in rows):
            raise CheckpointError(f"'{path}': the trainable token indices must be lists of rows.")
        if len(set(rows)) < len(rows):
            raise CheckpointError(f"'{path}': a trainable token index is listed twice.")
        found[str(name)] = tuple(rows)
    return found
