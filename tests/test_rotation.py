"""Rotary positions: angles that float32 could not hold, and Llama 3's stretching of wavelengths."""

import math

import numpy as np
import pytest

from faisca.config import ModelConfig
from faisca.rotation import frequencies, rotation_table

LLAMA3 = {"positions": "rope", "head_dim": 64, "rope_base": 500_000.0}


def test_angles_are_exact_at_long_contexts():
    """In float32 the angle at position 131,071 would be wrong by a hundredth."""
    cos, sin = rotation_table(ModelConfig(context=131_072, **LLAMA3))
    assert cos.shape == sin.shape == (131_072, 32) and cos.dtype == np.float64
    for position, pair in ((0, 5), (1, 0), (131_071, 0), (131_071, 3), (77_777, 31)):
        angle = position * 500_000.0 ** (-pair / 32)
        assert cos[position, pair] == pytest.approx(math.cos(angle), abs=1e-9)
        assert sin[position, pair] == pytest.approx(math.sin(angle), abs=1e-9)


def test_long_wavelengths_are_stretched_as_llama_3_does():
    """Against `transformers`, which has it from Llama's own code."""
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils", reason="transformers is not installed")
    from transformers import LlamaConfig

    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    theirs = LlamaConfig(
        hidden_size=2048, num_attention_heads=32, rope_parameters=rope, max_position_embeddings=131_072
    )
    expected, scale = rope_utils.ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    found = frequencies(ModelConfig(rope_factor=32.0, **LLAMA3))
    assert scale == 1.0 and found == pytest.approx(expected.numpy(), rel=1e-6)
    plain = frequencies(ModelConfig(**LLAMA3))
    assert found[0] == plain[0] and found[-1] == pytest.approx(plain[-1] / 32)
    assert ((plain / 32 < found) & (found < plain)).any(), "some lie between"
