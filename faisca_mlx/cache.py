"""What generation keeps of the positions behind it.

Shapes: B rows, G heads of keys and values, K head width.
"""

import mlx.core as mx
import numpy as np


class KeyValueCache:
    """Keys and values of the positions seen so far, one pair of [B, G, length, K] arrays a block."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        self.length, self.capacity = 0, capacity
        self.last_B1: mx.array | None = None
        """each row's last token"""
        self.layers: list[tuple[mx.array, mx.array] | None] = [None] * num_layers

    def append(self, layer: int, key_BGTK: mx.array, value_BGTK: mx.array) -> tuple[mx.array, mx.array]:
        """Write new positions of a block, and return all of its positions so far."""
        pair = self.layers[layer]
        # All the room at once: growing would copy the cache at every token.
        if pair is None:
            B, G, _, K = key_BGTK.shape
            pair = tuple(mx.zeros((B, G, self.capacity, K), key_BGTK.dtype) for _ in range(2))
        end = self.length + key_BGTK.shape[2]
        keys, values = pair
        keys[:, :, self.length : end] = key_BGTK
        values[:, :, self.length : end] = value_BGTK
        self.layers[layer] = (keys, values)
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, rows: np.ndarray) -> None:
        """Drop all rows but these: finished rows cost nothing."""
        kept = mx.array(rows)
        self.layers = [None if pair is None else (pair[0][kept], pair[1][kept]) for pair in self.layers]
        self.last_B1 = None if self.last_B1 is None else self.last_B1[kept]


def tokens_before(tokens_BT: mx.array, cache: KeyValueCache | None) -> mx.array:
    """The token before each: of the first, what the cache has last, or token 0."""
    last_B1 = mx.zeros_like(tokens_BT[:, :1]) if cache is None or cache.last_B1 is None else cache.last_B1
    return mx.concatenate([last_B1, tokens_BT[:, :-1]], axis=1)
