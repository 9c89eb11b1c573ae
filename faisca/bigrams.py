"""Which row of a table a bigram has, once for both twins: a hash, for there are more bigrams than rows.

What a word's second piece means depends on its first. A table of pairs says so before the first block, and costs no
products. Bigrams that share a row share what they learn (Svenstrup et al. 2017, arXiv 1709.03933, hash embeddings).
"""

import numpy as np

from faisca.config import ModelConfig

MULTIPLIERS = (0x9E3779B1, 0x85EBCA77)
"""odd, for a bigram's first and second token: the high bits of a product depend on all of the token's (Knuth 6.4)"""
DROPPED_BITS = 8
"""the low ones, which do not"""


def bigram_keys(config: ModelConfig) -> tuple[np.ndarray, np.ndarray]:
    """Keys of each token as a bigram's first and as its second: int32 [V] each, at least 0.

    The row of a bigram is (first key XOR second key) mod `bigram_rows`. Before the first token stands token 0.
    """
    tokens = np.arange(config.vocabulary_size, dtype=np.uint64)
    first, second = ((tokens * factor % 2**32 >> DROPPED_BITS).astype(np.int32) for factor in MULTIPLIERS)
    return first, second
