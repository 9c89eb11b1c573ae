"""Every random draw of the project, as named counter-based streams.

A stream is a pure function of (seed, purpose, counters): nothing depends on what
was drawn before, so a resumed run, another backend or another batch size sees the
same numbers. The generator is Philox 4x64 (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011), keyed by a hash of the seed and the purpose;
the counters (a step, a row) fill the upper words of Philox's counter, so each pair
of counters owns 2**128 blocks of its own.
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, step: int = 0, row: int = 0) -> np.random.Generator:
    """A NumPy generator of its own for (seed, purpose, step, row)."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, row]))


def permutation(seed: int, purpose: str, size: int, step: int = 0) -> np.ndarray:
    """A random order of `range(size)`: int64 array [size]."""
    return generator(seed, purpose, step).permutation(size)


def uniforms(seed: int, purpose: str, *, step: int, rows: int, columns: int) -> np.ndarray:
    """Uniform numbers in [0, 1) for sampling: float32 array [rows, columns].

    Row `r` has a stream of its own, so it does not depend on how many rows there are.
    """
    draws = [generator(seed, purpose, step, row).random(columns, np.float32) for row in range(rows)]
    return np.stack(draws)


def integer_seed(seed: int, purpose: str, step: int = 0) -> int:
    """A 63-bit seed for a framework's own generator (dropout), drawn from the stream."""
    return int(generator(seed, purpose, step).integers(2**63 - 1))
