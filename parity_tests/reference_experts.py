"""A mixture of experts in NumPy float64, token by token and expert by expert: independent of both twins."""

from collections.abc import Callable
from typing import Any

import numpy as np

from faisca.config import ModelConfig

Array = np.ndarray
CLEAR = 1e-5
"""between two router logits: nearer ones may be picked differently where sums are rounded differently"""


def choose(logits: Array, count: int) -> list[int]:
    """A token's experts: larger logits first, and of equal ones the lower number."""
    return sorted(range(len(logits)), key=lambda e: (-logits[e], e))[:count]


def softmax(logits: Array) -> Array:
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def experts(reference: Any, x: Array, name: str) -> tuple[Array, Callable[[Array], Array]]:
    """The layer of a `Reference`; its router's logits are added to `reference.routed`.

    Where `reference.with_router_loss`, its gradient has that of the router's losses too.
    """
    config: ModelConfig = reference.config
    inputs = x.reshape(-1, x.shape[-1])
    logits, back_router = reference._linear(inputs, f"{name}.router")
    reference.routed.append(logits)
    probs = softmax(logits)
    weights = np.zeros_like(probs)
    for token, row in enumerate(logits):
        for e in choose(row, config.experts_per_token):
            weights[token, e] = probs[token, e]
    sums = weights.sum(1, keepdims=True) if config.normalise_experts else np.ones((len(probs), 1))
    picked, weights = weights > 0, weights / sums
    out, backs = np.zeros_like(inputs), []
    for e in range(config.num_experts):
        rows = np.flatnonzero(picked[:, e])
        y, back_expert = reference._feed_forward(inputs[rows], f"{name}.experts", e)
        out[rows] += weights[rows, e, None] * y
        backs.append((e, rows, y, back_expert))
    shared, back_shared = 0.0, None
    if config.shared_expert_dim:
        shared, back_shared = reference._feed_forward(inputs, f"{name}.shared")

    def back(d: Array) -> Array:
        d = d.reshape(inputs.shape)
        d_inputs, d_weights = np.zeros_like(inputs), np.zeros_like(weights)
        for e, rows, y, back_expert in backs:
            d_weights[rows, e] = (d[rows] * y).sum(1)
            d_inputs[rows] += back_expert(weights[rows, e, None] * d[rows])
        if config.normalise_experts:  # weights = p / sums, with sums over the chosen
            d_weights = np.where(picked, d_weights - (d_weights * weights).sum(1, keepdims=True), 0.0)
        d_probs = d_weights / sums
        d_logits = probs * (d_probs - (d_probs * probs).sum(1, keepdims=True))
        if reference.with_router_loss:
            d_logits = d_logits + router_slopes(logits, config)
        d_inputs += back_router(d_logits)
        if back_shared is not None:
            d_inputs += back_shared(d)
        return d_inputs.reshape(x.shape)

    return (out + shared).reshape(x.shape), back


def loads(logits: Array, config: ModelConfig) -> Array:
    """Each expert's share of the choices of a layer's tokens."""
    chosen = [e for row in logits for e in choose(row, config.experts_per_token)]
    return np.bincount(chosen, minlength=config.num_experts) / len(chosen)


def router_metrics(routed: list[Array], config: ModelConfig) -> dict[str, float]:
    """Means over the layers, as `router_loss` of the twins watches them."""
    rows = []
    for logits in routed:
        load, probs, peak = loads(logits, config), softmax(logits), logits.max(1)
        sums = peak + np.log(np.exp(logits - peak[:, None]).sum(1))
        rows.append(
            {
                "balance_loss": config.num_experts * float((load * probs.mean(0)).sum()),
                "router_z_loss": float((sums**2).mean()),
                "expert_load_max": config.num_experts * float(load.max()),
                "router_entropy": float(-(probs * np.log(probs)).sum(1).mean()),
                "dropped_share": 0.0,
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def router_loss(routed: list[Array], config: ModelConfig) -> float:
    """What is added to the loss."""
    if not routed:
        return 0.0
    found = router_metrics(routed, config)
    return config.balance_weight * found["balance_loss"] + config.router_z_weight * found["router_z_loss"]


def router_slopes(logits: Array, config: ModelConfig) -> Array:
    """The gradient of `router_loss` with respect to the logits of one of the layers; the choices are constant."""
    probs, peak = softmax(logits), logits.max(1, keepdims=True)
    sums = peak + np.log(np.exp(logits - peak).sum(1, keepdims=True))
    upward = config.balance_weight * config.num_experts * loads(logits, config) / len(logits)
    balance = probs * (upward - (probs * upward).sum(1, keepdims=True))
    return (balance + config.router_z_weight * 2 * sums * probs / len(logits)) / config.num_layers


def narrowest_choice(routed: list[Array], config: ModelConfig) -> float:
    """How far the last expert that is picked is above the first that is not: below rounding, twins pick differently."""
    if not routed or config.experts_per_token == config.num_experts:
        return float("inf")
    ordered = -np.sort(-np.concatenate(routed), axis=1)
    S = config.experts_per_token
    return float((ordered[:, S - 1] - ordered[:, S]).min())
