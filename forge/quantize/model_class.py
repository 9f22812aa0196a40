"""Choose the class and the configuration by which transformers runs weights in full precision.

A model of several parts (a vision tower beside its language model) writes text as well, but
transformers lists most of those apart from language models.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from forge.checkpoints.checkpoint import Checkpoint


def plain_config(root: Path) -> PreTrainedConfig:
    """Return a model's configuration, for weights that are handed over in full precision.

    What it says of a quantization is left out: the weights of a quantized model have been decoded
    when they come here, and transformers would take them for codes.

    Args:
        root: The model's folder.

    Raises:
        OSError: There is no ``config.json``.
        ValueError: transformers does not know its model type.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(root), local_files_only=True, trust_remote_code=False)
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return cast("PreTrainedConfig", config)


def config_of(checkpoint: Checkpoint) -> PreTrainedConfig:
    """Return a model's configuration as ``plain_config`` does, an adapter's changes included.

    An adapter can change the number of tokens, and untie what was tied.

    Args:
        checkpoint: The model.

    Raises:
        OSError: There is no ``config.json``.
        ValueError: transformers does not know its model type.
    """
    config = plain_config(checkpoint.root)
    if checkpoint.reference.lora is None:
        return config
    return type(config).from_dict(dict(checkpoint.config))


def generating_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return the class of a model that writes text.

    Args:
        config: Its configuration, as ``transformers.AutoConfig`` reads it.

    Raises:
        KeyError: transformers knows no such model of this configuration.
    """
    import transformers

    for mapping in (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    ):
        if type(config) in mapping:
            return cast("type[PreTrainedModel]", mapping[type(config)])
    raise KeyError(type(config).__name__)
