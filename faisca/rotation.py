"""Rotary positions (Su et al. 2021, arXiv 2104.09864): the angles, once for both twins.

A head's numbers are pairs, number i with number i + K/2 (Llama's halves, not the paper's neighbours).
Position t turns pair i by t / base^(2i/K) radians, so the product of a query and a key depends on their
distance alone.
"""

import math

import numpy as np

from faisca.config import ModelConfig


def rotation_table(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of each position's angles: float64 [context, K/2] each.

    In float32 the product of position and frequency alone would be wrong by 5e-4 at position 8,192.
    """
    angles_TK = np.arange(config.context)[:, None] * frequencies(config)
    return np.cos(angles_TK), np.sin(angles_TK)


def frequencies(config: ModelConfig) -> np.ndarray:
    """Radians a token of each pair: float64 [K/2]; `rope_factor` stretches the long wavelengths as Llama 3 does.

    Between the two limits the stretching fades in linearly with the frequency (Llama 3.1's `apply_scaling`).
    """
    pairs = np.arange(0, config.head_width, 2) / config.head_width
    plain = config.rope_base**-pairs
    turns = config.rope_original_context * plain / (2 * math.pi)  # of a pair, over the original context
    low, high = config.rope_low_frequency, config.rope_high_frequency
    kept = np.clip((turns - low) / (high - low), 0, 1) if config.rope_factor > 1 else 1.0
    return np.asarray(kept * plain + (1 - kept) * plain / config.rope_factor)
