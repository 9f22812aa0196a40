"""The diagonal of a model's Fisher information, for Fisher merging.

For each sequence the gradient of

    Σ_t log p(y_t | x_<t),    y_t drawn from the model's own p(· | x_<t)

is squared and summed, element by element. The labels of different positions are independent given
the text, and a score has mean zero, so the cross terms vanish in expectation: what is summed is an
unbiased estimate of Σ_t of every position's Fisher information at the price of one backward pass a
sequence. With ``labels="text"`` y_t is the text's own next token: the empirical Fisher, which is no
Fisher information but needs no luck.

The whole model is in memory in float32, with as much again for the sums and one gradient at a time.

transformers renames tensors when it loads them, and stacks what files hold one by one, such as
experts. Both only move elements, so the sums are moved back in the way in which it saves a model:
every weight's statistics have the name and the shape that it has in its file.

Reference: Matena and Raffel 2022, arXiv 2111.09832; Kunstner et al. 2019, arXiv 1905.12558, on the
difference between the two.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers.core_model_loading import revert_weight_conversion

from forge.checkpoints.checkpoint import Checkpoint
from forge.checkpoints.progress import Progress
from forge.core.errors import IncompatibleError, NonFiniteError
from forge.core.machine import available_memory
from forge.quantize.calibration.mapped_model import load_mapped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Labels = Literal["sampled", "text"]

_EXPERT: Final = re.compile(r"\.experts\.\d+\..*")


def collect_fisher(
    checkpoint: Checkpoint,
    tokens_BT: npt.NDArray[np.int64],
    *,
    labels: Labels,
    seed: int,
    device: str,
    progress: Progress,
) -> dict[str, npt.NDArray[np.float32]]:
    """Collect the mean squared gradient of a token's log likelihood.

    Args:
        checkpoint: The model.
        tokens_BT: int64, the calibration set.
        labels: ``sampled`` from the model, or the ``text``'s own.
        seed: Of the draws.
        device: Where to calculate.
        progress: Hears how many sequences are done.

    Returns:
        float32, by the names of the checkpoint's tensors and of their shapes. Weights that take
        no part in the prediction of text, such as a vision tower's, are not among them.

    Raises:
        IncompatibleError: It does not fit into memory, or sequences are of one token.
        NonFiniteError: A gradient is a NaN or an infinity.
    """
    num_sequences, num_tokens = tokens_BT.shape
    if num_tokens < 2:
        raise IncompatibleError("A sequence of one token has no next token to predict.")
    _check_memory(checkpoint, device)
    model = load_mapped(checkpoint, device=device)
    model.to(torch.float32)  # type: ignore[arg-type]
    parameters = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
    }
    _check_names(checkpoint, model, parameters)
    sums: dict[str, torch.Tensor] = {}
    handles = []
    for name, parameter in parameters.items():
        parameter.requires_grad_(True)

        def square(parameter: torch.Tensor, name: str = name) -> None:
            assert parameter.grad is not None
            total = sums.setdefault(name, torch.zeros_like(parameter, requires_grad=False))
            total.addcmul_(parameter.grad, parameter.grad)
            parameter.grad = None

        hook = parameter.register_post_accumulate_grad_hook(square)  # type: ignore[no-untyped-call]
        handles.append(hook)
    for index in range(num_sequences):
        ids_1T = torch.from_numpy(tokens_BT[index : index + 1]).to(device)
        logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
        logs_TV = torch.log_softmax(logits_TV, dim=-1)
        loss = -logs_TV.gather(1, _labels(ids_1T, logs_TV, labels, seed, index)[:, None]).sum()
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"The log likelihood of sequence {index} is a NaN or an infinity under "
                f"'{checkpoint.reference}'. Check the checkpoint."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        progress.status(f"sequence {index + 1} of {num_sequences}")
    for handle in handles:
        handle.remove()
    for parameter in parameters.values():
        # The sums are all that is needed now, and some of them are copied on their way back.
        parameter.data = parameter.new_empty(0)
    scale = 1.0 / (num_sequences * (num_tokens - 1))
    for total in sums.values():
        total.mul_(scale)
    found = {
        name: total.cpu().numpy() for name, total in _as_stored(checkpoint, model, sums).items()
    }
    for name, values in found.items():
        if not np.isfinite(values).all():
            raise NonFiniteError(f"A gradient of '{name}' is a NaN or overflows when squared.")
    return found


def _check_names(
    checkpoint: Checkpoint, model: PreTrainedModel, parameters: Mapping[str, torch.Tensor]
) -> None:
    """Refuse, before any gradient, a model whose sums could not be given back to its files."""
    shapes = {
        name: torch.empty(parameter.shape, device="meta") for name, parameter in parameters.items()
    }
    if not _as_stored(checkpoint, model, shapes):
        raise IncompatibleError(
            f"No weight of '{checkpoint.reference}' has the name and shape that transformers gives "
            "it, so gradients cannot be told apart."
        )


def _as_stored(
    checkpoint: Checkpoint, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return what a model's parameters are in the files of its checkpoint."""
    try:
        stored = revert_weight_conversion(model, dict(tensors))
    except (NotImplementedError, ValueError) as error:
        raise IncompatibleError(
            f"transformers cannot tell which tensors of '{checkpoint.reference}' its weights came "
            f"from: {error}"
        ) from error
    source = checkpoint.source
    names = frozenset(source.names())
    return {
        name: tensor
        for name, tensor in stored.items()
        if name in names and tuple(tensor.shape) == source.info(name).shape
    }


def _labels(
    ids_1T: torch.Tensor, logs_TV: torch.Tensor, labels: Labels, seed: int, index: int
) -> torch.Tensor:
    if labels == "text":
        return ids_1T[0, 1:]
    generator = torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)
    # On the CPU in float32, so that a seed means the same draws wherever the model runs.
    drawn = torch.multinomial(logs_TV.detach().cpu().exp(), 1, generator=generator)
    return drawn[:, 0].to(ids_1T.device)


def _check_memory(checkpoint: Checkpoint, device: str) -> None:
    source = checkpoint.source
    # The gradient of a layer's experts is one tensor.
    sizes: Counter[str] = Counter()
    for name in source.names():
        sizes[_EXPERT.sub(".experts", name)] += source.info(name).numel
    needed = sizes.total() * 8 + max(sizes.values()) * 8
    available = _available(device)
    if available is not None and needed > available:
        raise IncompatibleError(
            f"Fisher statistics of '{checkpoint.reference}' need {needed / 1e9:.1f} GB of memory "
            f"for weights and sums in float32, and {available / 1e9:.1f} GB are available on "
            f"{device}. "
            "Collect RegMean's instead (--statistics regmean), which go block by block."
        )


def _available(device: str) -> int | None:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    return available_memory()
