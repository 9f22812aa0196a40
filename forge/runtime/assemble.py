"""Build a transformers model around packed weights.

transformers makes the model, without weights, and loads what is not quantized: names, tied
embeddings, buffers and the like are its affair, and plain tensors are mapped, not copied. In
between, a quantizer of our own takes the quantized layers out and puts packed ones in, which is
the door that transformers has for this. They are filled when everything else is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import torch
import transformers
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from forge.checkpoints.checkpoint import Checkpoint
from forge.core.dtypes import DTYPES
from forge.core.errors import CheckpointError, OutputError
from forge.quantize.model_class import generating_class
from forge.runtime.experts import EXPERT_LINEARS, QuantizedExperts
from forge.runtime.linear import QuantizedLinear
from forge.runtime.stored import StoredLayer, StoredModel, read_layer, survey

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME: Final = "forge-packed"
_CONV1D: Final = "Conv1D"


def assemble(checkpoint: Checkpoint, *, device: str, dtype: torch.dtype | None) -> PreTrainedModel:
    """Return the model of a checkpoint, ready to run.

    Args:
        checkpoint: The checkpoint, with its weights.
        device: Where to run it.
        dtype: Type of activations and of all weights that are not quantized; ``None`` for the
            one that the checkpoint names.

    Raises:
        CheckpointError: The checkpoint is damaged, or its tensors are not those of its model.
        IncompatibleError: A layer's groups cannot be run.
    """
    stored = survey(checkpoint)
    model, layers = _build(checkpoint, stored, dtype)
    _fill(checkpoint, stored, layers)
    model.requires_grad_(False)
    if stored.layers:
        # The instance's own, because the class belongs to everybody.
        model.save_pretrained = _refuse_saving  # type: ignore[method-assign]
    if device != "cpu":
        model.to(torch.device(device))  # type: ignore[arg-type]
    return model


def _build(
    checkpoint: Checkpoint, stored: StoredModel, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, dict[str, QuantizedLinear]]:
    root = checkpoint.root
    config = _config(checkpoint)
    if checkpoint.reference.lora is not None:
        # An adapter can change the number of tokens, and untie what was tied.
        config = type(config).from_dict(dict(checkpoint.config))
    declared = getattr(config, "quantization_config", None)
    if declared is not None:
        del config.quantization_config
    packing = _Packing(stored.layers) if stored.layers else None
    if packing is not None and _NAME not in AUTO_QUANTIZER_MAPPING:
        register_quantizer(_NAME)(_PackedQuantizer)
    with quiet_loading(), _opened(checkpoint, stored.plain) as tensors:
        model, report = _model_class(checkpoint, config).from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=dtype if dtype is not None else "auto",
            quantization_config=packing,
            output_loading_info=True,
        )
    _check_report(checkpoint, report)
    # lm-eval finds the tokenizer by it.
    model.name_or_path = model.config.name_or_path = str(checkpoint.tokenizer_root)
    if declared is not None:
        model.config.quantization_config = declared
    if model.can_generate() and (root / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(root)
    return model, packing.placed if packing is not None else {}


def _config(checkpoint: Checkpoint) -> transformers.PreTrainedConfig:
    try:
        # False, not the default, which would ask on the terminal whether code may be run.
        config: transformers.PreTrainedConfig = transformers.AutoConfig.from_pretrained(
            checkpoint.root, trust_remote_code=False
        )
    except Exception as error:
        # Every configuration of transformers checks itself, with errors of its own kind.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "auto_map" in checkpoint.config:
            reason = "the model brings Python code of its own, and forge runs none."
        raise CheckpointError(
            f"transformers cannot run '{checkpoint.source.label}', whose config.json it does not "
            f"read: {reason}"
        ) from error
    return config


def _model_class(checkpoint: Checkpoint, config: transformers.PreTrainedConfig) -> Any:
    try:
        return generating_class(config)
    except KeyError as error:
        raise CheckpointError(
            f"'{checkpoint.source.label}' is of the type {checkpoint.config.get('model_type')!r}, "
            "which transformers does not know as a model that generates text."
        ) from error


def _fill(
    checkpoint: Checkpoint, stored: StoredModel, layers: Mapping[str, QuantizedLinear]
) -> None:
    def fill(item: tuple[str, QuantizedLinear]) -> None:
        name, layer = item
        layer.fill(read_layer(checkpoint.source, stored.layers[name]))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for _ in pool.map(fill, layers.items()):
            pass


@contextmanager
def _opened(checkpoint: Checkpoint, names: tuple[str, ...]) -> Iterator[dict[str, torch.Tensor]]:
    """Map the plain tensors; those that are not converted stay mapped as long as they are used."""
    wanted = set(names)
    tensors: dict[str, torch.Tensor] = {}
    if checkpoint.reference.lora is not None:
        # The files hold the base and the adapter; only the source computes their sum.
        yield {name: _computed(checkpoint, name) for name in names}
        return
    for file in checkpoint.source.files():
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys() if name in wanted}  # noqa: SIM118
    yield tensors


def _computed(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    info = checkpoint.source.info(name)
    dtype = getattr(torch, DTYPES[info.dtype].torch_name)
    data = bytearray(checkpoint.source.read(name))
    return torch.frombuffer(data, dtype=dtype).view(info.shape)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers from printing its report and progress bar; the caller reads the report."""
    level = transformers.logging.get_verbosity()
    was_shown = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if was_shown:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _check_report(checkpoint: Checkpoint, report: Mapping[str, Any]) -> None:
    label = checkpoint.source.label
    for key, fault in (
        ("missing_keys", "lacks {} that its model needs"),
        ("unexpected_keys", "has {} that its model does not know"),
        ("mismatched_keys", "has {} of another shape than its model's"),
        ("error_msgs", "cannot be loaded: {}"),
    ):
        names = sorted(str(name) for name in report.get(key) or ())
        if names:
            shown = ", ".join(f"'{name}'" for name in names[:3])
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"'{label}' {fault.format('the tensors ' + shown + more)}. Is its config.json that "
                "of another model, or the checkpoint incomplete?"
            )


def _refuse_saving(*arguments: object, **options: object) -> NoReturn:
    """Refuse, because the weights lie in memory as no file holds them."""
    raise OutputError(
        "A model that forge runs cannot be saved: its weights are laid out for running. Its "
        "folder is the checkpoint; copy it, or write another format with 'forge convert'."
    )


class _Packing(QuantizationConfigMixin):
    """Tells transformers' loader about ``_PackedQuantizer``; never written to a file."""

    def __init__(self, layers: Mapping[str, StoredLayer]) -> None:
        super().__init__(quant_method=_NAME)  # type: ignore[arg-type]
        self.layers = layers
        self.placed: dict[str, QuantizedLinear] = {}

    def __deepcopy__(self, memo: object) -> _Packing:
        # transformers copies configurations; the layers placed must be found again.
        return self


class _PackedQuantizer(HfQuantizer):
    """Puts packed layers where a model without weights has plain ones."""

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **options: object
    ) -> PreTrainedModel:
        packing = cast(_Packing, self.quantization_config)
        packing.placed = _replace(model, packing.layers)
        return model

    def is_serializable(self, **options: object) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _replace(
    model: PreTrainedModel, layers: Mapping[str, StoredLayer]
) -> dict[str, QuantizedLinear]:
    """Put packed layers into a model; return them by their names in the checkpoint."""
    rename = _renaming(model)
    placed: dict[str, QuantizedLinear] = {}
    experts: dict[str, dict[int, dict[str, QuantizedLinear]]] = {}
    for name, layer in layers.items():
        target = rename(name)
        plain = _module(model, target)
        if plain is not None:
            placed[name] = _packed_for(plain, layer)
            model.set_submodule(target, placed[name])
            continue
        stack, _, rest = target.rpartition(".experts.")
        number, _, role = rest.partition(".")
        if not number.isdecimal() or _module(model, f"{stack}.experts") is None:
            raise CheckpointError(
                f"The layer '{name}' is quantized, but transformers' "
                f"{type(model).__name__} has no such layer."
            )
        placed[name] = QuantizedLinear(layer.shape_OI[1], layer.shape_OI[0], bias=False)
        experts.setdefault(f"{stack}.experts", {}).setdefault(int(number), {})[role] = placed[name]
    for target, members in experts.items():
        model.set_submodule(target, _expert_stack(target, model.get_submodule(target), members))
    return placed


def _packed_for(plain: torch.nn.Module, layer: StoredLayer) -> QuantizedLinear:
    num_out, num_in = layer.shape_OI
    if isinstance(plain, torch.nn.Linear):
        shape = (plain.out_features, plain.in_features)
    elif type(plain).__name__ == _CONV1D:
        shape = (plain.nf, plain.nx)  # type: ignore[assignment]
    else:
        raise CheckpointError(
            f"'{layer.module}' is quantized, but in transformers it is a {type(plain).__name__}, "
            "not a linear layer."
        )
    if shape != layer.shape_OI:
        raise CheckpointError(
            f"'{layer.module}' is {list(layer.shape_OI)} in the files, but its config.json makes "
            f"it {list(shape)}."
        )
    with torch.device("meta"):
        return QuantizedLinear(num_in, num_out, bias=plain.bias is not None)


def _expert_stack(
    target: str, plain: torch.nn.Module, members: Mapping[int, Mapping[str, QuantizedLinear]]
) -> QuantizedExperts:
    gate = getattr(plain, "_apply_gate", None)
    count = getattr(plain, "num_experts", None)
    names = next((names for names in EXPERT_LINEARS if names[0] in members.get(0, {})), None)
    is_whole = names is not None and all(
        set(members.get(number, ())) == set(names) for number in range(count or 0)
    )
    if gate is None or names is None or not is_whole or len(members) != count:
        raise CheckpointError(
            f"The experts of '{target}' are quantized in part, or in a way that forge does not "
            "run: each needs its gate, up and down projection."
        )
    # What joins gate and up needs the module's activation, but none of its weights.
    for name in [name for name, _ in plain.named_parameters(recurse=False)]:
        setattr(plain, name, None)
    ordered = ([members[number][name] for name in names] for number in sorted(members))
    return QuantizedExperts(((gate_, up, down) for gate_, up, down in ordered), gate)


def _module(model: PreTrainedModel, name: str) -> torch.nn.Module | None:
    try:
        found: torch.nn.Module = model.get_submodule(name)
    except AttributeError:
        return None
    return found


def _renaming(model: PreTrainedModel) -> Any:
    """Return what turns a module's name in a checkpoint into its name in the model."""
    renamings = [
        each for each in get_model_conversion_mapping(model) if isinstance(each, WeightRenaming)
    ]
    prefix = model.base_model_prefix

    def rename(name: str) -> str:
        key = f"{name}.weight"
        for each in renamings:
            key, _ = each.rename_source_key(key)
        name = key.removesuffix(".weight")
        choices = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        return next((each for each in choices if _module(model, each) is not None), name)

    return rename
