"""Random configurations with their work: small, and of every option that decides what a step computes."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from faisca.certificate.work import Work, uneven
from faisca.config import GRPOConfig, ModelConfig, RunConfig
from faisca.parameters import initial_parameters
from faisca.streams import generator

COMPILED_EVERY = 25
"""MLX compiles with g++, which takes seconds: so few of them do"""


@dataclass(frozen=True)
class Drawn:
    """The n-th configuration of a backend."""

    config: RunConfig
    work: Work


def draw(number: int, backend: str) -> Drawn:
    """A configuration that depends on its number and backend alone."""
    random = generator(number, f"random configuration of {backend}")
    model = _model(random)
    config = RunConfig(
        device="cpu",
        dtype=_one(random, "float32", "float32", "bfloat16"),
        compile="on" if backend == "mlx" and number % COMPILED_EVERY == 1 else "off",
        attention=_one(random, "fused", "explicit"),
        loss_chunk=int(random.integers(1, 300)),
        gradient_checkpointing=_one(random, True, False),
    )
    weights = uneven(initial_parameters(model, number), number)
    rows = int(random.integers(1, 25))
    if random.random() < 0.5:
        return Drawn(config, Work("pretrain", model, weights, rows, int(random.integers(2, model.context + 1)), number))
    grpo = _grpo(random, model, rows)
    prompt = int(random.integers(1, model.context + 1 - grpo.max_new_tokens + 1))
    length = min(model.context, prompt + grpo.max_new_tokens - 1 + int(random.integers(0, 16)))
    return Drawn(config, Work("grpo", model, weights, rows, max(2, length), number, grpo, prompt))


def _model(random: np.random.Generator) -> ModelConfig:
    heads = int(random.integers(1, 5))
    return ModelConfig(
        context=int(random.integers(6, 49)),
        dim=heads * int(random.integers(2, 17)),
        num_layers=int(random.integers(1, 4)),
        num_heads=heads,
        hidden_dim=int(random.integers(4, 97)),
        dropout=_one(random, 0.0, 0.1, 0.5),
        attention_dropout=_one(random, 0.0, 0.1),
        activation=_one(random, "gelu", "gelu_tanh"),
        tie_embeddings=_one(random, True, False),
        attention_bias=_one(random, True, False),
        norm_epsilon=_one(random, 1e-5, 1e-3),
        vocabulary_size=int(random.integers(40, 800)),
    )


def _grpo(random: np.random.Generator, model: ModelConfig, rows: int) -> GRPOConfig:
    return GRPOConfig(
        group_size=2 * rows,
        minibatch_size=rows,
        max_new_tokens=int(random.integers(1, model.context)),
        temperature=_one(random, 1.0, 0.8, 0.5),
        top_k=_one(random, 0, 0, 5),
        loss=_one(random, "grpo", "bnpo", "dr_grpo", "dapo"),
        objective=_one(random, "clip", "cispo"),
        importance=_one(random, "token", "sequence"),
        clip_low=_one(random, 0.0, 0.1, 0.2),
        clip_high=_one(random, 0.0, 0.2, 0.28),
        kl_weight=_one(random, 0.0, 0.05, 1.0),
    )


def _one(random: np.random.Generator, *choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]
