"""The ingredients of a recipe by their closed forms, and what of them does not go together."""

import dataclasses

import numpy as np
import pytest

from faisca.config import Config, GRPOConfig, ModelConfig, SFTConfig, TrainConfig
from faisca.errors import FaiscaError
from faisca.muon import matrix_stacks, moments_of, row_cuts, step_length
from faisca.parameters import initial_parameters, parameter_shapes

SMALL = ModelConfig(context=8, dim=12, num_layers=2, num_heads=6, num_kv_heads=2, hidden_dim=20, vocabulary_size=11)
MIXTURE = dataclasses.replace(SMALL, feed_forward_bias=False, num_experts=3, shared_expert_dim=5)


@pytest.mark.parametrize("model", [SMALL, MIXTURE, dataclasses.replace(SMALL, initial_range=0.02, attention_bias=True)])
def test_outputs_that_begin_at_zero_are_the_ends_of_branches(model: ModelConfig):
    """And nothing else begins at other values than without the option."""
    plain = initial_parameters(model, 1)
    empty = initial_parameters(dataclasses.replace(model, zero_outputs=True), 1)
    assert list(plain) == list(empty)
    for name, value in empty.items():
        if name.rpartition(".")[0].endswith((".out_proj", ".down")):
            assert not value.any(), name
        else:
            assert np.array_equal(value, plain[name]), name


def test_muon_moves_the_matrices_of_blocks_alone():
    """Not tables, vectors and routers; each matrix once, with its like in other layers."""
    shapes = parameter_shapes(MIXTURE)
    moved = {name for name, shape in shapes.items() if moments_of(name, shape, "muon") == ("first_moment",)}
    stacks = matrix_stacks(MIXTURE)
    assert sorted(name for stack in stacks for name in stack) == sorted(moved)
    assert all(len({shapes[name] for name in stack}) == 1 and len(stack) == 2 for stack in stacks)
    assert not any("embedding" in name or "router" in name or "norm" in name or "out_head" in name for name in moved)
    assert all(len(moments_of(name, shape, "adamw")) == 2 for name, shape in shapes.items())


def test_queries_keys_and_values_have_steps_of_their_own():
    name = "transformer_blocks.0.attention.in_proj.weight"
    assert row_cuts(name, SMALL) == [12, 16] and parameter_shapes(SMALL)[name] == (20, 12)
    assert row_cuts("transformer_blocks.0.attention.out_proj.weight", SMALL) == []


@pytest.mark.parametrize("shape", [(30, 12), (12, 30), (16, 16), (3, 8, 24)])
def test_steps_are_as_long_as_adams(shape: tuple[int, ...]):
    """The root mean square of an orthogonal matrix is 1 / √(longer side); of a step it is 0.2."""
    left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=shape), full_matrices=False)
    assert np.sqrt(np.mean((step_length(shape) * left @ right) ** 2)) == pytest.approx(0.2)


def test_muons_rate_follows_the_schedule():
    assert TrainConfig(optimizer="muon").muon_rate_ratio == 1.0
    assert TrainConfig(optimizer="muon", learning_rate=0.004, muon_learning_rate=0.02).muon_rate_ratio == 5.0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"pretrain": TrainConfig(muon_momentum=0.9)}, "pretrain.muon_momentum 0.9 means nothing .*optimizer muon"),
        ({"sft": SFTConfig(muon_learning_rate=0.02)}, "sft.muon_learning_rate 0.02 means nothing"),
        ({"grpo": GRPOConfig(decay_share=0.5)}, "grpo.decay_share 0.5 means nothing .* constant: add .*wsd"),
    ],
)
def test_options_without_what_they_are_of_are_refused(config: dict, words: str):
    with pytest.raises(FaiscaError, match=words):
        Config(**config)
