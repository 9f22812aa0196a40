"""Keys and values of tokens that many rows share, computed once.

A layer keeps the shared prefix at the beginning of a buffer with room for a batch of rows behind
it. A batch writes its own keys and values behind the prefix, in place; going back to the prefix
is setting a length. The prefix is copied into each row of the buffer once, and again only when a
batch needs a larger one.

All keys are kept, of layers with a sliding window too: transformers masks what such a layer must
not see by positions, which stay what they are.

Shape suffixes: B rows, H heads, T tokens, D size of a head.
"""

from __future__ import annotations

from typing import cast

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class PrefixLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's keys and values: those of the prefix, and those of the batch at work."""

    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = self.prefix_length = 0
        self.rows = 1
        self.room = 0
        self.keys_BHTD: torch.Tensor | None = None
        self.values_BHTD: torch.Tensor | None = None
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Need nothing: buffers are made by ``update``."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, and return all of them, as views of the buffer."""
        start, end = self.length, self.length + key_states.shape[-2]
        self.keys_BHTD = self._with_room(self.keys_BHTD, key_states, end)
        self.values_BHTD = self._with_room(self.values_BHTD, value_states, end)
        rows = slice(key_states.shape[0])
        self.keys_BHTD[rows, :, start:end] = key_states
        self.values_BHTD[rows, :, start:end] = value_states
        self.length = end
        return self.keys_BHTD[rows, :, :end], self.values_BHTD[rows, :, :end]

    def _with_room(
        self, held: torch.Tensor | None, added_BHTD: torch.Tensor, end: int
    ) -> torch.Tensor:
        rows, heads, _, size = added_BHTD.shape
        if held is not None and held.shape[0] >= rows and held.shape[2] >= end:
            return held
        grown = added_BHTD.new_empty((rows, heads, max(end, self.room), size))
        if held is not None and self.length:
            # Before a batch has begun, one row holds what all begin with.
            source = held[:1] if self.length == self.prefix_length else held
            grown[:, :, : self.length] = source[:, :, : self.length]
        return grown

    def get_seq_length(self) -> int:
        """Return how many tokens are held."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys there will be, and the position of the first."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Return that there is no limit."""
        return -1


class PrefixCache(Cache):
    """The keys and values of all layers; see ``PrefixLayer``."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=PrefixLayer)

    @property
    def own_layers(self) -> list[PrefixLayer]:
        """The layers, as what they are."""
        return cast("list[PrefixLayer]", self.layers)

    def keep(self) -> None:
        """Make what is held now the prefix that every batch begins with."""
        for layer in self.own_layers:
            layer.prefix_length = layer.length

    def begin(self, room: int) -> None:
        """Go back to the prefix.

        Args:
            room: Tokens that a row of the next batch will have, the prefix included.
        """
        for layer in self.own_layers:
            layer.length, layer.room = layer.prefix_length, room

    def holds(self, length: int) -> bool:
        """Return whether every layer holds so many tokens, as those that use a cache do."""
        return bool(self.layers) and all(layer.length == length for layer in self.own_layers)
