"""How far a variant's next-token predictions are from those of the model that it was made from.

At each position of the same token windows, with p the reference's distribution of the next token
and q the variant's, over a vocabulary of V tokens,

    KL(p ‖ q) = Σ_v p(v) · (log p(v) − log q(v))   in nats.

It sees what a benchmark's accuracy averages away: answers that flipped in both directions cancel
in an accuracy and add up here. Perplexity is that of the windows' own next tokens.

Logits are never stored: 4,096 positions of a vocabulary of 128,000 would take 2 GB a model. What is
kept of each model is its last hidden states, a few megabytes, and its head, which turns them into
logits a chunk of positions at a time. A model's own ``forward`` does that, with the trunk replaced
by one that returns those hidden states, so soft caps and logit scales of every family are in.
That also allows one model after the other where there is no memory for two.

Shape suffixes: B windows, T tokens of a window, P predicted positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from forge.core.errors import NonFiniteError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK_LOGITS: Final = 1 << 23
"""Logits of one chunk: 32 MiB in float32, and a few such arrays at a time."""
_BATCH_TOKENS: Final = 2048


@dataclass(frozen=True, slots=True)
class Divergence:
    """A variant against its reference, over the positions that have a next token.

    Attributes:
        num_positions: Predictions that were compared.
        mean: Mean KL divergence of the variant from the reference, nats.
        median: Its median over positions.
        p90: Its 90th percentile, interpolated between the nearest two.
        p99: Its 99th percentile.
        max: The largest.
        same_top_share: Share of positions where both find the same token the likeliest.
        perplexity_reference: Perplexity of the reference on the windows.
        perplexity_variant: That of the variant.
    """

    num_positions: int
    mean: float
    median: float
    p90: float
    p99: float
    max: float
    same_top_share: float
    perplexity_reference: float
    perplexity_variant: float

    @property
    def perplexity_ratio(self) -> float:
        """The variant's perplexity relative to the reference's; 1 is no loss."""
        return self.perplexity_variant / self.perplexity_reference

    def as_json(self) -> dict[str, object]:
        """Return the figures as plain JSON values."""
        return {**asdict(self), "perplexity_ratio": self.perplexity_ratio}


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a model predicts over token windows, short of its logits.

    Attributes:
        hidden_PD: Last hidden states, after the final norm, in the model's type.
        head: Turns rows of them into logits, ``[n, D]`` to ``[n, V]``. Holds nothing else of
            the model alive.
    """

    hidden_PD: torch.Tensor
    head: Callable[[torch.Tensor], torch.Tensor]


def divergence(
    reference: PreTrainedModel, variant: PreTrainedModel, tokens_BT: npt.NDArray[np.int64]
) -> Divergence:
    """Compare two models on the same tokens.

    Args:
        reference: The model that the variant was made from.
        variant: The other one. Both must be on the same device.
        tokens_BT: Token ids, ``[windows, tokens]``, at least 2 tokens a window.

    Returns:
        The comparison at the ``B · (T - 1)`` positions that have a next token.

    Raises:
        NonFiniteError: A model's logits are NaN or infinite, or the divergence is.
    """
    return compare(predict(reference, tokens_BT), predict(variant, tokens_BT), tokens_BT)


@torch.no_grad()
def predict(model: PreTrainedModel, tokens_BT: npt.NDArray[np.int64]) -> Predictions:
    """Run a model's trunk over token windows.

    Args:
        model: A causal language model; put into evaluation mode.
        tokens_BT: Token ids, ``[windows, tokens]``, at least 2 tokens a window.

    Returns:
        Its last hidden states at all positions but each window's last, and its head.

    Raises:
        ValueError: There is no position with a next token.
    """
    if tokens_BT.ndim != 2 or tokens_BT.shape[0] < 1 or tokens_BT.shape[1] < 2:
        raise ValueError(f"tokens must be [windows, 2 or more], not {tokens_BT.shape}")
    model.train(False)
    trunk = model.base_model
    rows = max(1, _BATCH_TOKENS // tokens_BT.shape[1])
    parts = []
    for start in range(0, tokens_BT.shape[0], rows):
        batch_BT = torch.from_numpy(tokens_BT[start : start + rows]).to(model.device)
        hidden_BTD = trunk(input_ids=batch_BT, use_cache=False)[0]
        parts.append(hidden_BTD[:, :-1].reshape(-1, hidden_BTD.shape[-1]))
    return Predictions(torch.cat(parts), head_of(model))


@torch.no_grad()
def compare(
    reference: Predictions, variant: Predictions, tokens_BT: npt.NDArray[np.int64]
) -> Divergence:
    """Compare the predictions of two models.

    Args:
        reference: Those of the model that the variant was made from.
        variant: Those of the other one.
        tokens_BT: The tokens that both were made on.

    Returns:
        The comparison.

    Raises:
        NonFiniteError: A model's logits are NaN or infinite, or the divergence is.
    """
    targets_P = torch.from_numpy(np.ascontiguousarray(tokens_BT[:, 1:]).reshape(-1))
    vocabulary = reference.head(reference.hidden_PD[:1]).shape[-1]
    step = max(1, _CHUNK_LOGITS // vocabulary)
    kl, same, nll_reference, nll_variant = [], 0, [], []
    for start in range(0, len(targets_P), step):
        part = slice(start, start + step)
        log_p_PV = _log_probabilities(reference, part, "reference")
        log_q_PV = _log_probabilities(variant, part, "variant")
        targets_P1 = targets_P[part, None].to(log_p_PV.device)
        same += int((log_p_PV.argmax(-1) == log_q_PV.argmax(-1)).sum())
        nll_reference.append(-log_p_PV.gather(-1, targets_P1)[:, 0].double().cpu().numpy())
        nll_variant.append(-log_q_PV.gather(-1, targets_P1)[:, 0].double().cpu().numpy())
        p_PV = log_p_PV.exp()
        terms_PV = log_p_PV.sub_(log_q_PV).mul_(p_PV)
        # Where p vanishes so does its term, also where both models rule the token out.
        terms_PV.masked_fill_(p_PV == 0, 0.0)
        kl.append(terms_PV.sum(-1).double().cpu().numpy())
    # A divergence is not negative; what rounding leaves of equal distributions, -1e-8, may be.
    kl_P = np.maximum(np.concatenate(kl), 0.0)
    if not np.isfinite(kl_P).all():
        raise NonFiniteError(
            f"The variant model rules out tokens that its reference holds possible, first in "
            f"position {int(np.argmin(np.isfinite(kl_P)))}."
        )
    median, p90, p99 = np.quantile(kl_P, (0.5, 0.9, 0.99)).tolist()
    return Divergence(
        num_positions=len(kl_P),
        mean=float(kl_P.mean()),
        median=median,
        p90=p90,
        p99=p99,
        max=float(kl_P.max()),
        same_top_share=same / len(kl_P),
        perplexity_reference=math.exp(float(np.concatenate(nll_reference).mean())),
        perplexity_variant=math.exp(float(np.concatenate(nll_variant).mean())),
    )


def head_of(model: PreTrainedModel) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what a model does with its last hidden states.

    Args:
        model: A causal language model; it is not changed.

    Returns:
        A function of hidden states ``[n, D]`` that gives logits ``[n, V]``. It runs the model's
        own ``forward`` on a shallow copy whose trunk returns what it is given, and holds the
        weights of the trunk no longer than the model does.
    """
    replay = _Replay()
    headed = copy.copy(model)
    # A shallow copy shares the table of submodules; the trunk must go from the copy alone.
    headed.__dict__["_modules"] = dict(model._modules)
    headed._modules[model.base_model_prefix] = replay

    def head(hidden_PD: torch.Tensor) -> torch.Tensor:
        replay.hidden_BTD = hidden_PD[None]
        # Some models look only at the number of tokens, most not even at that.
        filler_BT = torch.zeros((1, len(hidden_PD)), dtype=torch.long, device=hidden_PD.device)
        try:
            logits: torch.Tensor = headed(input_ids=filler_BT, use_cache=False).logits
        finally:
            replay.hidden_BTD = None
        return logits[0]

    return head


class _Replay(nn.Module):
    """A trunk that returns the hidden states that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_BTD: torch.Tensor | None = None

    @property
    def decoder(self) -> _Replay:
        """OPT's head asks the decoder inside its trunk."""
        return self

    def forward(self, *args: object, **kwargs: object) -> _TrunkOutput:
        return _TrunkOutput(self.hidden_BTD)


class _TrunkOutput:
    """Looks like any family's output of a trunk: the hidden states, and nothing else."""

    def __init__(self, hidden_BTD: torch.Tensor | None) -> None:
        self.last_hidden_state = hidden_BTD

    def __getitem__(self, index: int | slice) -> object:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _log_probabilities(predictions: Predictions, part: slice, which: str) -> torch.Tensor:
    logits_PV = predictions.head(predictions.hidden_PD[part]).float()
    log_PV = logits_PV.log_softmax(-1)
    # The largest log-probability of a row is finite exactly when its logits have a finite
    # maximum and no NaN; a logit of -inf is a token that the model rules out.
    if not bool(log_PV.amax(-1).isfinite().all()):
        raise NonFiniteError(
            f"The {which} model predicts NaN or infinite logits, first in position "
            f"{part.start + int((~log_PV.amax(-1).isfinite()).nonzero()[0, 0])}."
        )
    return log_PV
