"""What an extraction refuses before any decomposition, and what it says of the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from forge.adapters.contract import Request
from forge.adapters.plan import EXPERTS, Changed, Pairing
from forge.core.enumeration import some
from forge.core.errors import IncompatibleError


def notices_of(changes: Sequence[Changed], pairing: Pairing, request: Request) -> tuple[str, ...]:
    """Check what is asked for against what differs.

    Args:
        changes: What differs.
        pairing: The models.
        request: What is asked for.

    Returns:
        What the user should know: what is lost, where the rank is less, how PEFT loads new tokens.

    Raises:
        IncompatibleError: Nothing would be held, or the rank is beyond every matrix.
    """
    lost = [change for change in changes if change.fate == "lost"]
    if len(lost) == len(changes):
        raise IncompatibleError(
            f"Only {_some(lost)} differ, and nothing of that would be held. Pass --embeddings full "
            "to hold embedding and head whole."
        )
    notices = []
    small = _smaller(changes, request)
    if small:
        notices.append(
            f"Matrices with fewer than {request.rank} rows or columns get factors of their full "
            f"rank, which lose nothing: {_some(small)}."
        )
    if lost:
        notices.append(_loss(lost, changes, pairing))
    if pairing.rows is not None:
        notices.append(
            f"The fine-tune has {pairing.rows:,} tokens. PEFT loads the adapter on a base that was "
            "resized to as many (resize_token_embeddings); forge does it itself."
        )
    return tuple(notices)


def _smaller(changes: Sequence[Changed], request: Request) -> list[Changed]:
    factored = [change for change in changes if change.fate == "factors"]
    largest = max((change.side for change in factored), default=0)
    if request.rank is None or not factored:
        return []
    if request.rank > largest:
        raise IncompatibleError(
            f"A rank of {request.rank} is beyond every matrix: the largest has {largest}. "
            f"Give at most {largest}."
        )
    if request.share is not None:
        return []
    return [change for change in factored if change.side < request.rank]


def _loss(lost: Sequence[Changed], changes: Sequence[Changed], pairing: Pairing) -> str:
    total = math.fsum(change.energy for change in changes if not math.isnan(change.energy))
    share = math.fsum(change.energy for change in lost) / total
    text = f"Left out of the adapter, and with it {share:.2%} of the energy: {_some(lost)}."
    if any(change.name in pairing.vocabulary.names for change in lost):
        return f"{text} --embeddings full (or lora, where they are not tied) holds embeddings."
    if pairing.has_foreign_experts:
        return f"{text} PEFT loads factors of the experts of Mixtral alone from such files."
    return text


def check_experts(changes: Sequence[Changed], ranks: Mapping[str, int]) -> None:
    """Refuse experts of several ranks, which PEFT cannot stack.

    Args:
        changes: Tensors that are held by factors.
        ranks: Their ranks.

    Raises:
        IncompatibleError: They are not all of the adapter's largest rank.
    """
    experts = {ranks[change.name] for change in changes if EXPERTS in change.name}
    if experts and experts != {max(ranks.values())}:
        raise IncompatibleError(
            "PEFT loads factors of experts only if all have one rank, the largest of the adapter. "
            f"Give a rank alone (--rank) that is at most {min(experts)}."
        )


def _some(changes: Sequence[Changed]) -> str:
    return some([change.name for change in changes])
