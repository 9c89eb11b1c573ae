"""LoRA in NumPy float64, from Hu et al. 2022: W x + alpha / r · B A x; independent of both twins."""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
HEADS = {"query": "num_heads", "key": "kv_heads", "value": "kv_heads"}


def low_rank(reference: Any, x: Array, name: str, outputs: int, expert: Any) -> tuple[Array, Callable[[Array], Any]]:
    """What the adapters of a matrix [outputs, inputs] add to its product; and the way back, which adds to gradients."""
    model, prefix = reference.config, f"{name}.lora."
    found = [key[:-2] for key in reference.weights if key.startswith(prefix) and key.endswith(".a")]
    added, rows, sizes = np.zeros((*x.shape[:-1], outputs)), dict[str, slice](), dict[str, Any]()
    scale = model.adapter.alpha / model.adapter.rank if found else 0.0
    for part in found:
        kind, first, last = part.rpartition(".")[2], 0, outputs
        if kind in HEADS:
            widths = {head: getattr(model, count) * model.head_width for head, count in HEADS.items()}
            first = sum(width for head, width in widths.items() if list(HEADS).index(head) < list(HEADS).index(kind))
            last = first + widths[kind]
        rows[part] = slice(first, last)
        a, b = (reference.weights[f"{part}.{factor}"][expert] for factor in "ab")
        added[..., rows[part]] += scale * (x @ a.T) @ b.T
        if (
            model.adapter.dora
        ):  # Liu et al. 2024: m (W + s B A) / its norm, which carries no gradient (their section 4.3)
            weight = reference.weights[f"{name}.weight"][rows[part]]
            moved = weight + scale * b @ a
            norm = np.sqrt((moved**2).sum(1))
            sizes[part] = weight, norm, x @ moved.T
            added[..., rows[part]] = reference.weights[f"{part}.m"] / norm * (x @ moved.T) - x @ weight.T

    def back(d: Array) -> Any:
        d_x = 0.0
        for part, columns in rows.items():
            a, b = (reference.weights[f"{part}.{factor}"][expert] for factor in "ab")
            own = d[..., columns]
            if part in sizes:
                weight, norm, product = sizes[part]
                size = reference.weights[f"{part}.m"] / norm
                reference.gradients[f"{part}.m"] += (own * product / norm).reshape(-1, len(norm)).sum(0)
                d_x, own = d_x + ((size - 1) * own) @ weight, size * own
            outer, inner = own.reshape(-1, b.shape[0]), x.reshape(-1, a.shape[1])
            reference.gradients[f"{part}.b"][expert] += scale * outer.T @ (inner @ a.T)
            reference.gradients[f"{part}.a"][expert] += scale * (outer @ b).T @ inner
            d_x = d_x + (scale * own @ b) @ a
        return d_x

    return added, back
