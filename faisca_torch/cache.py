"""What generation keeps of the positions behind it.

Shapes: B rows, G heads of keys and values, K head width.
"""

import numpy as np
import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of the positions seen so far, one pair of [B, G, length, K] tensors a block."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.length, self.capacity = 0, capacity
        self.last_B1: Tensor | None = None
        """each row's last token"""
        self.layers: list[tuple[Tensor, Tensor] | None] = [None] * num_layers

    def append(self, layer: int, key_BGTK: Tensor, value_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions of a block, and return all of its positions so far."""
        pair = self.layers[layer]
        # All the room at once: growing would copy the cache at every token.
        if pair is None:
            B, G, _, K = key_BGTK.shape
            pair = self.layers[layer] = tuple(key_BGTK.new_empty(2, B, G, self.capacity, K))
        end = self.length + key_BGTK.shape[2]
        pair[0][:, :, self.length : end] = key_BGTK
        pair[1][:, :, self.length : end] = value_BGTK
        return pair[0][:, :, :end], pair[1][:, :, :end]

    def keep(self, rows: np.ndarray) -> None:
        """Drop all rows but these: finished rows cost nothing."""
        self.layers = [None if pair is None else (pair[0][rows], pair[1][rows]) for pair in self.layers]
        self.last_B1 = None if self.last_B1 is None else self.last_B1[rows]


def tokens_before(tokens_BT: Tensor, cache: KeyValueCache | None) -> Tensor:
    """The token before each: of the first, what the cache has last, or token 0."""
    last_B1 = tokens_BT.new_zeros(len(tokens_BT), 1) if cache is None or cache.last_B1 is None else cache.last_B1
    return torch.cat((last_B1, tokens_BT[:, :-1]), dim=1)
