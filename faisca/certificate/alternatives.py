"""What else computes the same: other ways through the same step, in the order in which they are tried."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from faisca.backend import Runtime
from faisca.config import RunConfig

CHUNKS = (256, 128, 64)
"""rows of logits at a time: shapes of other kernels"""


def alternatives(config: RunConfig, runtime: Runtime) -> Iterator[tuple[str, RunConfig]]:
    """In words, and as a configuration: one change after the other, and at last the plainest of all.

    Another dtype is none of them: that is for the user to choose.
    """
    changes: list[tuple[str, dict[str, Any]]] = [
        (f"loss chunks of {chunk} rows", {"loss_chunk": chunk}) for chunk in CHUNKS if chunk != runtime.loss_chunk
    ]
    if runtime.compile:
        changes.append(("no compilation", {"compile": "off"}))
    if runtime.attention != "explicit":
        changes.append(("explicit attention", {"attention": "explicit"}))
    recompute = not runtime.gradient_checkpointing
    changes.append((f"gradient checkpointing {'on' if recompute else 'off'}", {"gradient_checkpointing": recompute}))
    yield from ((words, replace(config, **change)) for words, change in changes)
    plainest: dict[str, Any] = {"loss_chunk": CHUNKS[-1], "compile": "off", "attention": "explicit"}
    yield (
        f"loss chunks of {CHUNKS[-1]} rows, no compilation, explicit attention and no gradient checkpointing",
        replace(config, **plainest, gradient_checkpointing=False),
    )
