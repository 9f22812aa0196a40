"""Choose the class by which transformers runs a checkpoint that writes text.

A model of several parts (a vision tower beside its language model) writes text as well, but
transformers lists most of those apart from language models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


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
