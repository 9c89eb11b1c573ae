"""Parameters without a framework: names, shapes, counts and the distribution of initial values."""

import dataclasses
import math

import numpy as np
import pytest

from faisca.config import ModelConfig
from faisca.config.files import load_preset
from faisca.errors import FaiscaError
from faisca.parameters import check_parameters, count_parameters, decays, initial_parameters, parameter_shapes

CONFIG = ModelConfig(context=64, dim=96, num_layers=2, num_heads=2, hidden_dim=160, vocabulary_size=300)


def with_options(**options) -> ModelConfig:
    return dataclasses.replace(CONFIG, **options)


def test_names_and_shapes_in_forward_order():
    shapes = parameter_shapes(dataclasses.replace(CONFIG, num_layers=1))
    assert list(shapes.items()) == [
        ("token_embedding.weight", (300, 96)),
        ("positional_embedding.weight", (64, 96)),
        ("transformer_blocks.0.norm1.weight", (96,)),
        ("transformer_blocks.0.norm1.bias", (96,)),
        ("transformer_blocks.0.attention.in_proj.weight", (288, 96)),
        ("transformer_blocks.0.attention.out_proj.weight", (96, 96)),
        ("transformer_blocks.0.norm2.weight", (96,)),
        ("transformer_blocks.0.norm2.bias", (96,)),
        ("transformer_blocks.0.feed_forward.up.weight", (160, 96)),
        ("transformer_blocks.0.feed_forward.up.bias", (160,)),
        ("transformer_blocks.0.feed_forward.down.weight", (96, 160)),
        ("transformer_blocks.0.feed_forward.down.bias", (96,)),
        ("final_layer_norm.weight", (96,)),
        ("final_layer_norm.bias", (96,)),
        ("out_head.weight", (300, 96)),
    ]


def test_the_faisca_preset_has_the_originals_number_of_parameters():
    config = dataclasses.replace(load_preset("faisca").model, vocabulary_size=50_257)
    assert count_parameters(config) == 13_689_856
    tied = dataclasses.replace(config, tie_embeddings=True)
    assert count_parameters(tied) == 13_689_856 - 50_257 * 128


def test_gpt2_small_has_its_known_number_of_parameters():
    gpt2 = ModelConfig(
        context=1024, dim=768, num_layers=12, num_heads=12, hidden_dim=3072, vocabulary_size=50_257,
        tie_embeddings=True, attention_bias=True,
    )  # fmt: skip
    assert count_parameters(gpt2) == 124_439_808


def test_tying_drops_the_head_and_attention_biases_come_with_their_option():
    assert set(parameter_shapes(CONFIG)) - set(parameter_shapes(with_options(tie_embeddings=True))) == {
        "out_head.weight"
    }
    more = set(parameter_shapes(with_options(attention_bias=True))) - set(parameter_shapes(CONFIG))
    assert more == {f"transformer_blocks.{i}.attention.{name}.bias" for i in (0, 1) for name in ("in_proj", "out_proj")}


def test_initial_values_have_the_shapes_that_are_declared():
    for options in ({}, {"tie_embeddings": True, "attention_bias": True}):
        config = with_options(**options)
        values = initial_parameters(config, 0)
        assert {name: value.shape for name, value in values.items()} == parameter_shapes(config)
        assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}
        check_parameters(values, config)


@pytest.mark.parametrize(("options", "scale"), [({}, 1.0), ({"tie_embeddings": True}, 0.02)])
@pytest.mark.parametrize("name", ["token_embedding.weight", "positional_embedding.weight"])
def test_embeddings_are_normal(options, scale, name):
    values = initial_parameters(with_options(**options), 0)[name] / scale
    error = 1 / math.sqrt(values.size)
    assert abs(values.mean()) < 4 * error and abs(values.std() - 1) < 4 * error
    assert np.mean(np.abs(values) < 1) == pytest.approx(0.6827, abs=0.02)  # not uniform


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("transformer_blocks.0.attention.in_proj.weight", math.sqrt(6 / (96 + 288))),
        ("transformer_blocks.0.attention.out_proj.weight", 1 / math.sqrt(96)),
        ("transformer_blocks.1.feed_forward.up.weight", 1 / math.sqrt(96)),
        ("transformer_blocks.1.feed_forward.up.bias", 1 / math.sqrt(96)),
        ("transformer_blocks.1.feed_forward.down.weight", 1 / math.sqrt(160)),
        ("transformer_blocks.1.feed_forward.down.bias", 1 / math.sqrt(160)),
        ("out_head.weight", 1 / math.sqrt(96)),
    ],
)
def test_linear_layers_are_uniform_within_torchs_bounds(name, bound):
    values = initial_parameters(CONFIG, 0)[name] / np.float32(bound)
    assert np.abs(values).max() <= 1 + 1e-6
    assert values.std() == pytest.approx(1 / math.sqrt(3), abs=4 / math.sqrt(values.size))
    assert np.abs(values).max() > 1 - 20 / values.size  # the bound is reached


def test_norms_are_the_identity_and_attention_biases_zero():
    values = initial_parameters(with_options(attention_bias=True), 0)
    norms = {name: value for name, value in values.items() if "norm" in name}
    assert len(norms) == 2 * (2 * 2 + 1)
    assert all((value == (1 if name.endswith("weight") else 0)).all() for name, value in norms.items())
    assert all((value == 0).all() for name, value in values.items() if "proj.bias" in name)


def test_each_parameter_has_a_stream_of_its_own():
    values, other = initial_parameters(CONFIG, 0), initial_parameters(with_options(num_layers=5), 0)
    assert all(np.array_equal(values[name], other[name]) for name in values)
    same_shape = [values[f"transformer_blocks.{i}.feed_forward.up.weight"] for i in (0, 1)]
    assert not np.intersect1d(*same_shape[:2]).size > 0.01 * same_shape[0].size
    assert not np.array_equal(values["out_head.weight"], initial_parameters(CONFIG, 1)["out_head.weight"])


def test_decay_of_matrices_only_or_of_all():
    shapes = parameter_shapes(with_options(attention_bias=True))
    decayed = {name for name, shape in shapes.items() if decays(name, shape, "matrices")}
    assert decayed == {name for name in shapes if name.endswith("weight") and "norm" not in name}
    assert all(decays(name, shape, "all") for name, shape in shapes.items())


def change(values: dict, leave_out: str = "", **more: np.ndarray) -> dict:
    return {name: value for name, value in values.items() if name != leave_out} | more


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"leave_out": "out_head.weight"}, ["missing out_head.weight"]),
        ({"head.bias": np.zeros(3)}, ["unknown head.bias"]),
        ({"leave_out": "final_layer_norm.bias", "ln": np.zeros(3)}, ["missing final_layer_norm.bias, unknown ln"]),
        ({"out_head.weight": np.zeros((96, 300))}, ["out_head.weight", "[96, 300]", "[300, 96]"]),
        ({"final_layer_norm.bias": np.zeros((96, 1))}, ["final_layer_norm.bias", "[96, 1]", "[96]"]),
    ],
    ids=["missing", "extra", "renamed", "transposed", "dimensions"],
)
def test_weights_that_do_not_fit_are_named(changes, words):
    with pytest.raises(FaiscaError) as caught:
        check_parameters(change(initial_parameters(CONFIG, 0), **changes), CONFIG)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_long_list_of_problems_is_cut():
    with pytest.raises(FaiscaError, match=r"missing token_embedding\.weight, .* and 22 more$"):
        check_parameters({}, CONFIG)
