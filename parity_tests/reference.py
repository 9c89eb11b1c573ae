"""The model, its losses and gradients in NumPy float64: independent of both twins.

Written from the papers' formulas, for clarity and not for speed. Each layer returns its output
and a function that takes the gradient with respect to that output to the one with respect to its
input, adding to the gradients of its weights on the way.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from reference_experts import experts, router_loss
from reference_lora import low_rank

from faisca.config import ModelConfig

Array = np.ndarray
Layer = tuple[Array, Callable[[Array], Array]]
erf = np.vectorize(math.erf, otypes=[np.float64])


class Reference:
    """A decoder with any of our options; `gradients` holds what the last backward pass added up."""

    def __init__(self, config: ModelConfig, parameters: dict[str, Array]) -> None:
        self.config = config
        self.weights = {name: value.astype(np.float64) for name, value in parameters.items()}
        self.gradients = {name: np.zeros_like(value) for name, value in self.weights.items()}
        self.routed: list[Array] = []
        """the last forward pass's logits of each router"""
        self.with_router_loss = False

    def hidden_states(self, tokens: Array) -> list[Array]:
        """[B, T, D] after each block, then after the final norm."""
        return self._forward(tokens)[0]

    def logits(self, tokens: Array) -> Array:
        return self._squeezed(self.hidden_states(tokens)[-1])[0]

    def losses(self, inputs: Array, targets: Array) -> Array:
        """-log p(target) of each place, [B, T]; 0 where the target is negative."""
        picked = np.take_along_axis(log_softmax(self.logits(inputs)), np.maximum(targets, 0)[..., None], 2)
        return np.where(targets >= 0, -picked[..., 0], 0.0)

    def token_log_probs(self, tokens: Array, temperature: float) -> Array:
        """log p of each token after the first, [B, T-1]."""
        log_p = log_softmax(self.logits(tokens[:, :-1]) / temperature)
        return np.take_along_axis(log_p, tokens[:, 1:, None], 2)[..., 0]

    def router_loss(self) -> float:
        """What routers add to the loss of the last forward pass."""
        return router_loss(self.routed, self.config)

    def backward(
        self, inputs: Array, targets: Array, upstream: Array, temperature: float = 1.0, bonus: Array | float = 0.0
    ) -> dict[str, Array]:
        """Gradients of Σ upstream · log p(target) + bonus · entropy, by name; negative targets are left out.

        Where `with_router_loss`, of that and the routers' losses.
        """
        self.gradients = {name: np.zeros_like(value) for name, value in self.weights.items()}
        states, back = self._forward(inputs)
        hidden, head = states[-1], self.weights[self._head]
        logits, slope = self._squeezed(hidden)
        log_p = log_softmax(logits / temperature)
        d_logits = -np.exp(log_p)
        d_entropy = -np.exp(log_p) * (log_p - (np.exp(log_p) * log_p).sum(-1, keepdims=True))
        rows, columns = np.indices(targets.shape)
        d_logits[rows, columns, np.maximum(targets, 0)] += 1
        d_logits *= np.where(targets >= 0, upstream, 0.0)[..., None]
        d_logits += np.broadcast_to(bonus, targets.shape)[..., None] * d_entropy
        d_logits *= slope / temperature
        self.gradients[self._head] += flat(d_logits).T @ flat(hidden)
        back(d_logits @ head)
        return self.gradients

    def _squeezed(self, hidden: Array) -> tuple[Array, Array | float]:
        """Logits of final hidden states, and the slope of their soft cap."""
        logits, cap = hidden @ self.weights[self._head].T, self.config.logit_soft_cap
        return (cap * np.tanh(logits / cap), 1 / np.cosh(logits / cap) ** 2) if cap else (logits, 1.0)

    @property
    def _head(self) -> str:
        return "token_embedding.weight" if self.config.tie_embeddings else "out_head.weight"

    def _forward(self, tokens: Array) -> tuple[list[Array], Callable[[Array], None]]:
        T, learned = tokens.shape[1], self.config.positions == "learned"
        x = self.weights["token_embedding.weight"][tokens]
        if learned:
            x = x + self.weights["positional_embedding.weight"][:T]
        rows = self._bigrams(tokens) if self.config.bigram_rows else None
        if rows is not None:
            x = x + self.weights["bigram_embedding.weight"][rows]
        states, steps, self.routed = [], [], []
        halves = [("norm1", "attention", self._attention), ("norm2", "feed_forward", self._feed_forward)]
        if self.config.num_experts:
            halves[1] = ("norm2", "feed_forward", partial(experts, self))
        for i in range(self.config.num_layers):
            for half, name, layer in halves:
                normed, back_norm = self._norm(x, f"transformer_blocks.{i}.{half}", self.config.norm)
                added, back_layer = layer(normed, f"transformer_blocks.{i}.{name}")
                x = x + added
                steps.append(lambda d, one=back_layer, two=back_norm: d + two(one(d)))
            states.append(x)
        final, back_final = self._norm(x, "final_layer_norm", self.config.norm)

        def back(d: Array) -> None:
            d = back_final(d)
            for step in reversed(steps):
                d = step(d)
            np.add.at(self.gradients["token_embedding.weight"], tokens, d)
            if learned:
                self.gradients["positional_embedding.weight"][:T] += d.sum(0)
            if rows is not None:
                np.add.at(self.gradients["bigram_embedding.weight"], rows, d)

        return [*states, final], back

    def _bigrams(self, tokens: Array) -> Array:
        """The row of each token and the one before it, in whole numbers of Python."""
        found = [[0, *row.tolist()] for row in tokens]
        return np.array([[bigram_row(*pair, self.config.bigram_rows) for pair in pairwise(row)] for row in found])

    def _linear(self, x: Array, name: str, expert: Any = ()) -> Layer:
        weight, bias = self.weights[f"{name}.weight"][expert], self.weights.get(f"{name}.bias")
        added, back_adapter = low_rank(self, x, name, len(weight), expert)

        def back(d: Array) -> Array:
            self.gradients[f"{name}.weight"][expert] += flat(d).T @ flat(x)
            if bias is not None:
                self.gradients[f"{name}.bias"] += flat(d).sum(0)
            return d @ weight + back_adapter(d)

        return x @ weight.T + (0 if bias is None else bias) + added, back

    def _norm(self, x: Array, name: str, kind: str) -> Layer:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        centred = x - x.mean(-1, keepdims=True) if kind == "layer" else x
        root = np.sqrt((centred**2).mean(-1, keepdims=True) + self.config.norm_epsilon)
        normed = centred / root

        def back(d: Array) -> Array:
            self.gradients[f"{name}.weight"] += flat(d * normed).sum(0)
            if bias is not None:
                self.gradients[f"{name}.bias"] += flat(d).sum(0)
            d = d * weight
            through_mean = d.mean(-1, keepdims=True) if kind == "layer" else 0
            return (d - through_mean - normed * (d * normed).mean(-1, keepdims=True)) / root

        return normed * weight + (0 if bias is None else bias), back

    def _attention(self, x: Array, name: str) -> Layer:
        H, G = self.config.num_heads, self.config.kv_heads
        (B, T, _), K = x.shape, self.config.head_width
        qkv, back_in = self._linear(x, f"{name}.in_proj")
        parts = np.split(qkv, [H * K, (H + G) * K], axis=-1)
        query, back_query = self._placed(parts[0], f"{name}.query_norm")
        key, back_key = self._placed(parts[1], f"{name}.key_norm")
        value = parts[2].reshape(B, T, G, K).swapaxes(1, 2)
        key, value = (np.repeat(heads, H // G, axis=1) for heads in (key, value))
        scores = np.where(np.tril(np.ones((T, T), bool)), query @ key.swapaxes(2, 3) / math.sqrt(K), -np.inf)
        shares = np.exp(log_softmax(scores))
        out, back_out = self._linear((shares @ value).swapaxes(1, 2).reshape(B, T, H * K), f"{name}.out_proj")

        def of_groups(d: Array) -> Array:
            """What all query heads of a group send to their one head of keys or values."""
            return d.reshape(B, G, H // G, T, K).sum(2)

        def back(d: Array) -> Array:
            d = back_out(d).reshape(B, T, H, K).swapaxes(1, 2)
            d_shares = d @ value.swapaxes(2, 3)
            d_scores = shares * (d_shares - (d_shares * shares).sum(-1, keepdims=True)) / math.sqrt(K)
            d_query, d_key = back_query(d_scores @ key), back_key(of_groups(d_scores.swapaxes(2, 3) @ query))
            parts = (d_query, d_key, of_groups(shares.swapaxes(2, 3) @ d).swapaxes(1, 2))
            return back_in(np.concatenate([part.reshape(B, T, -1) for part in parts], axis=-1))

        return out, back

    def _placed(self, x: Array, norm: str) -> Layer:
        """Queries or keys [B, T, heads · K] as [B, heads, T, K], normalised and turned, where the model does so."""
        split = (*x.shape[:2], -1, self.config.head_width)
        rows = x if self.config.qk_norm_over == "all" else x.reshape(split)
        normed, back_norm = self._norm(rows, norm, "rms") if self.config.qk_norm else (rows, lambda d: d)
        heads = normed.reshape(split).swapaxes(1, 2)
        if self.config.positions == "learned":
            return heads, lambda d: back_norm(d.swapaxes(1, 2).reshape(rows.shape))
        turn = np.exp(1j * np.arange(x.shape[1])[:, None] * frequencies(self.config))
        return turned(heads, turn), lambda d: back_norm(turned(d, turn.conj()).swapaxes(1, 2).reshape(rows.shape))

    def _feed_forward(self, x: Array, name: str, expert: Any = ()) -> Layer:
        kind = self.config.activation
        up, back_up = self._linear(x, f"{name}.up", expert)
        if kind == "swiglu":
            gate, back_gate = self._linear(x, f"{name}.gate", expert)
            opened, slope = silu(gate)
            down, back_down = self._linear(opened * up, f"{name}.down", expert)

            def back(d: Array) -> Array:
                d = back_down(d)
                return back_gate(d * up * slope) + back_up(d * opened)

            return down, back
        active, slope = {"gelu": gelu, "gelu_tanh": gelu_tanh, "relu2": relu2}[kind](up)
        down, back_down = self._linear(active, f"{name}.down", expert)
        return down, lambda d: back_up(back_down(d) * slope)


def turned(x: Array, turn: Array) -> Array:
    """Pairs (i, i + K/2) as complex numbers, times `turn`."""
    left, right = np.split(x, 2, axis=-1)
    product = (left + 1j * right) * turn
    return np.concatenate([product.real, product.imag], axis=-1)


def frequencies(config: ModelConfig) -> Array:
    """Radians a token, pair by pair; with Llama 3's scaling as its own code has it, by wavelength."""
    found, old = [], config.rope_original_context
    for i in range(config.head_width // 2):
        one = config.rope_base ** (-2 * i / config.head_width)
        length = 2 * math.pi / one
        if config.rope_factor != 1 and length > old / config.rope_low_frequency:
            one /= config.rope_factor
        elif config.rope_factor != 1 and length >= old / config.rope_high_frequency:
            span = config.rope_high_frequency - config.rope_low_frequency
            smooth = (old / length - config.rope_low_frequency) / span
            one = (1 - smooth) * one / config.rope_factor + smooth * one
        found.append(one)
    return np.array(found)


def bigram_row(first: int, second: int, rows: int) -> int:
    """The row of a pair of neighbours: the upper 24 of 32 bits of each token's product, one XOR the other."""
    return ((first * 0x9E3779B1 & 0xFFFFFFFF) >> 8 ^ (second * 0x85EBCA77 & 0xFFFFFFFF) >> 8) % rows


def gelu(x: Array) -> tuple[Array, Array]:
    """x · Φ(x) and its derivative (Hendrycks & Gimpel 2016)."""
    below = (1 + erf(x / math.sqrt(2))) / 2
    return x * below, below + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def gelu_tanh(x: Array) -> tuple[Array, Array]:
    """GPT-2's approximation, and its derivative."""
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return x * (1 + t) / 2, (1 + t) / 2 + x * (1 - t**2) * c * (1 + 3 * 0.044715 * x**2) / 2


def silu(x: Array) -> tuple[Array, Array]:
    """x · σ(x) and its derivative (Shazeer 2020 gates with it)."""
    share = 1 / (1 + np.exp(-x))
    return x * share, share * (1 + x * (1 - share))


def relu2(x: Array) -> tuple[Array, Array]:
    """max(x, 0)² and its derivative (So et al. 2021)."""
    kept = np.maximum(x, 0)
    return kept**2, 2 * kept


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
