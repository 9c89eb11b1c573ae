"""The model, its losses and gradients, AdamW and GRPO in NumPy float64: independent of both twins.

Written from the papers' formulas, for clarity and not for speed. Each layer returns its output
and a function that takes the gradient with respect to that output to the one with respect to its
input, adding to the gradients of its weights on the way.
"""

import math
from collections.abc import Callable

import numpy as np

from faisca.config import GRPOConfig, ModelConfig, OptimizerConfig

Array = np.ndarray
Layer = tuple[Array, Callable[[Array], Array]]
erf = np.vectorize(math.erf, otypes=[np.float64])


class Reference:
    """A GPT-2-style decoder; `gradients` holds what the last backward pass added up."""

    def __init__(self, config: ModelConfig, parameters: dict[str, Array]) -> None:
        self.config = config
        self.weights = {name: value.astype(np.float64) for name, value in parameters.items()}
        self.gradients = {name: np.zeros_like(value) for name, value in self.weights.items()}

    def hidden_states(self, tokens: Array) -> list[Array]:
        """[B, T, D] after each block, then after the final norm."""
        return self._forward(tokens)[0]

    def logits(self, tokens: Array) -> Array:
        return self.hidden_states(tokens)[-1] @ self.weights[self._head].T

    def losses(self, inputs: Array, targets: Array) -> Array:
        """-log p(target) of each place, [B, T]; 0 where the target is negative."""
        picked = np.take_along_axis(log_softmax(self.logits(inputs)), np.maximum(targets, 0)[..., None], 2)
        return np.where(targets >= 0, -picked[..., 0], 0.0)

    def token_log_probs(self, tokens: Array, temperature: float) -> Array:
        """log p of each token after the first, [B, T-1]."""
        log_p = log_softmax(self.logits(tokens[:, :-1]) / temperature)
        return np.take_along_axis(log_p, tokens[:, 1:, None], 2)[..., 0]

    def backward(self, inputs: Array, targets: Array, upstream: Array, temperature: float = 1.0) -> dict[str, Array]:
        """Gradients of Σ upstream · log p(target), by name; negative targets are left out."""
        self.gradients = {name: np.zeros_like(value) for name, value in self.weights.items()}
        states, back = self._forward(inputs)
        hidden, head = states[-1], self.weights[self._head]
        d_logits = -np.exp(log_softmax(hidden @ head.T / temperature))
        rows, columns = np.indices(targets.shape)
        d_logits[rows, columns, np.maximum(targets, 0)] += 1
        d_logits *= (np.where(targets >= 0, upstream, 0.0) / temperature)[..., None]
        self.gradients[self._head] += flat(d_logits).T @ flat(hidden)
        back(d_logits @ head)
        return self.gradients

    @property
    def _head(self) -> str:
        return "token_embedding.weight" if self.config.tie_embeddings else "out_head.weight"

    def _forward(self, tokens: Array) -> tuple[list[Array], Callable[[Array], None]]:
        T = tokens.shape[1]
        x = self.weights["token_embedding.weight"][tokens] + self.weights["positional_embedding.weight"][:T]
        states, steps = [], []
        for i in range(self.config.num_layers):
            for half, layer in (("norm1", self._attention), ("norm2", self._feed_forward)):
                normed, back_norm = self._norm(x, f"transformer_blocks.{i}.{half}")
                added, back_layer = layer(normed, f"transformer_blocks.{i}")
                x = x + added
                steps.append(lambda d, one=back_layer, two=back_norm: d + two(one(d)))
            states.append(x)
        final, back_final = self._norm(x, "final_layer_norm")

        def back(d: Array) -> None:
            d = back_final(d)
            for step in reversed(steps):
                d = step(d)
            np.add.at(self.gradients["token_embedding.weight"], tokens, d)
            self.gradients["positional_embedding.weight"][:T] += d.sum(0)

        return [*states, final], back

    def _linear(self, x: Array, name: str) -> Layer:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")

        def back(d: Array) -> Array:
            self.gradients[f"{name}.weight"] += flat(d).T @ flat(x)
            if bias is not None:
                self.gradients[f"{name}.bias"] += flat(d).sum(0)
            return d @ weight

        return x @ weight.T + (0 if bias is None else bias), back

    def _norm(self, x: Array, name: str) -> Layer:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        centred = x - x.mean(-1, keepdims=True)
        root = np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.norm_epsilon)
        normed = centred / root

        def back(d: Array) -> Array:
            self.gradients[f"{name}.weight"] += flat(d * normed).sum(0)
            self.gradients[f"{name}.bias"] += flat(d).sum(0)
            d = d * weight
            return (d - d.mean(-1, keepdims=True) - normed * (d * normed).mean(-1, keepdims=True)) / root

        return normed * weight + bias, back

    def _attention(self, x: Array, block: str) -> Layer:
        (B, T, D), H = x.shape, self.config.num_heads
        qkv, back_in = self._linear(x, f"{block}.attention.in_proj")
        query, key, value = (part.reshape(B, T, H, D // H).swapaxes(1, 2) for part in np.split(qkv, 3, axis=-1))
        scale = 1 / math.sqrt(D // H)
        scores = np.where(np.tril(np.ones((T, T), bool)), scale * query @ key.swapaxes(2, 3), -np.inf)
        shares = np.exp(log_softmax(scores))
        out, back_out = self._linear((shares @ value).swapaxes(1, 2).reshape(B, T, D), f"{block}.attention.out_proj")

        def back(d: Array) -> Array:
            d = back_out(d).reshape(B, T, H, D // H).swapaxes(1, 2)
            d_shares = d @ value.swapaxes(2, 3)
            d_scores = shares * (d_shares - (d_shares * shares).sum(-1, keepdims=True)) * scale
            parts = (d_scores @ key, d_scores.swapaxes(2, 3) @ query, shares.swapaxes(2, 3) @ d)
            return back_in(np.concatenate([part.swapaxes(1, 2).reshape(B, T, D) for part in parts], axis=-1))

        return out, back

    def _feed_forward(self, x: Array, block: str) -> Layer:
        up, back_up = self._linear(x, f"{block}.feed_forward.up")
        active, slope = gelu_tanh(up) if self.config.activation == "gelu_tanh" else gelu(up)
        down, back_down = self._linear(active, f"{block}.feed_forward.down")
        return down, lambda d: back_up(back_down(d) * slope)


def gelu(x: Array) -> tuple[Array, Array]:
    """x · Φ(x) and its derivative (Hendrycks & Gimpel 2016)."""
    below = (1 + erf(x / math.sqrt(2))) / 2
    return x * below, below + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def gelu_tanh(x: Array) -> tuple[Array, Array]:
    """GPT-2's approximation, and its derivative."""
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return x * (1 + t) / 2, (1 + t) / 2 + x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2) / 2


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def adamw(
    weights: dict[str, Array],
    gradients: list[dict[str, Array]],
    config: OptimizerConfig,
    rate: float,
    decayed: Callable[[str, tuple[int, ...]], bool],
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array]]:
    """Weights and both moments after a step on each of the gradients (Loshchilov & Hutter 2019, algorithm 2)."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    first, second = ({name: np.zeros_like(value) for name, value in weights.items()} for _ in range(2))
    for step, gradient in enumerate(gradients, start=1):
        norm = math.sqrt(sum(float((value**2).sum()) for value in gradient.values()))
        factor = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        for name, value in weights.items():
            g = gradient[name] * factor
            first[name] = config.beta1 * first[name] + (1 - config.beta1) * g
            second[name] = config.beta2 * second[name] + (1 - config.beta2) * g**2
            root = np.sqrt(second[name] / (1 - config.beta2**step)) + config.epsilon
            decay = config.weight_decay if decayed(name, value.shape) else 0.0
            weights[name] = value - rate * (first[name] / (1 - config.beta1**step) / root + decay * value)
    return weights, first, second


def policy_loss(
    log_probs: Array,
    old: Array,
    reference: Array,
    advantages: Array,
    mask: Array,
    config: GRPOConfig,
    step_tokens: float,
    weighing: Array | None = None,
) -> float:
    """GRPO's loss as docs/parity.md's sources state it; `weighing`: CISPO's weights are taken at these log-probs."""
    at = log_probs if weighing is None or config.objective == "clip" else weighing
    counts = np.maximum(mask.sum(1), 1)[:, None]
    log_ratio = np.where(mask > 0, at - old, 0.0)
    if config.importance == "sequence":
        log_ratio = np.broadcast_to(log_ratio.sum(1, keepdims=True) / counts, mask.shape)
    ratio, A = np.exp(log_ratio), advantages[:, None]
    if config.objective == "cispo":
        losses = -np.minimum(ratio, config.cispo_cap) * A * log_probs
    else:
        losses = -np.minimum(ratio * A, np.clip(ratio, 1 - config.clip_low, 1 + config.clip_high) * A)
    log_rho = np.where(mask > 0, reference - log_probs, 0.0)
    losses = np.where(mask > 0, losses + config.kl_weight * (np.exp(log_rho) - log_rho - 1), 0.0)
    if config.loss == "grpo":
        return float((losses.sum(1, keepdims=True) / counts).mean())
    divisors = {"bnpo": mask.sum(), "dr_grpo": len(mask) * config.max_new_tokens, "dapo": step_tokens}
    return float(losses.sum() / max(divisors[config.loss], 1))


def slope(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    """The gradient of a function by central differences."""
    out = np.zeros_like(at)
    for index in np.ndindex(at.shape):
        bump = np.zeros_like(at)
        bump[index] = step
        out[index] = (function(at + bump) - function(at - bump)) / (2 * step)
    return out
