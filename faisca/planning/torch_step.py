"""The moments of a step of the torch twin at which most is alive.

Autograd keeps what `blocks.torch_block` lists from the forward pass on, and frees it block by block in
the backward pass, while gradients come; the optimiser works in place.
"""

from faisca.backend import KEPT_EXPONENTIALS
from faisca.planning.blocks import torch_block
from faisca.planning.load import FLOAT, Load

ORTHOGONAL = 4.7
"""stacks of a matrix of all layers that Muon has alive: itself, normalised, its polynomial twice, and steps"""
Moments = dict[str, dict[str, float]]
"""bytes of each part, by moment"""


def torch_moments(load: Load) -> Moments:
    """Bytes by moment and part, besides weights, optimiser state and reference, which are always there."""
    block, width, ND = torch_block(load), load.width, load.tokens * load.model.dim
    copies = load.copied_matrices
    saved = load.model.num_layers * (load.stream if load.checkpointing else block)
    saved += load.stream + 8 * load.tokens + width * ND  # the final norm, and its result
    saved += (load.stream if load.dropout else 0) + 16 * load.tokens  # the embeddings' mask; ids
    saved += 0 if load.checkpointing else copies
    saved -= (
        load.stream if load.adapter and not load.checkpointing else 0
    )  # the first norm: nothing before it is trained
    waiting = load.trained if load.accumulates else 0
    # A block's backward pass: the gradient of the stream, and that of the activation's result; with a gate of both.
    gated = 2 if load.model.activation == "swiglu" else 1
    passing = load.stream + gated * width * load.tokens * load.hidden
    again = block - load.stream + copies / load.model.num_layers if load.checkpointing else 0
    head_alone = load.trained if load.accumulates else load.head_gradient
    most_gradients = load.trained - (0 if load.accumulates or load.model.tie_embeddings else load.head_gradient)
    one_block = block + (copies / load.model.num_layers if load.checkpointing else copies)
    muon: Moments = {"orthogonal steps": {"gradients": load.trained + ORTHOGONAL * load.largest_stack}}
    return (
        (muon if load.muon else {})
        | _head_moments(load, saved, waiting)
        | {
            "last block": {"gradients": head_alone, "activations": saved + again + passing},
            "first block": {"gradients": most_gradients, "activations": one_block + passing},
            "embeddings": {
                "gradients": load.trained
                + (load.head_gradient if load.accumulates or load.model.tie_embeddings else 0),
                "activations": load.stream,
            },
        }
    )


def _head_moments(load: Load, saved: float, waiting: float) -> Moments:
    """The loss, which makes the head's gradient in the forward pass, and its backward pass, which hands it on."""
    d_hidden = load.width * load.tokens * load.model.dim
    # Until a chunk's copy is there, that of the chunk before it lives on.
    at_once = 2 if (load.scored or load.tokens) > load.chunk else 1
    copied = 0.5 * at_once if load.narrow else 0
    logits, chunks = 1 + copied, 2.0  # in GRPO logits and exponentials
    if load.model.logit_soft_cap:  # a quotient and the slope; from the second chunk on beside the slope before
        second = min((load.scored or load.tokens) / load.chunk - 1, 1)
        logits, chunks = max(3, 2 + copied / 2 + 2 * second), max(4.0, 3 + 2 * second)
    # In bfloat16 the head is copied, multiplied in float32, and its gradient rounded before it is added.
    copies = 1.5 * load.head + load.head_gradient if load.narrow else 0
    if not load.policy:
        return {
            "loss": {
                "gradients": waiting + load.head_gradient,
                "activations": saved + d_hidden,
                "logits": logits * load.logits + copies,
            },
            "gradient of the head": {
                "gradients": waiting + 2 * load.head_gradient,
                "activations": saved + 2 * d_hidden,
            },
        }
    kept = kept_exponentials(load)
    again = load.logits * (at_once * load.width / FLOAT if kept else logits)
    again += load.logits if load.explores else 0
    return {
        "log-probabilities": {
            "gradients": waiting,
            "activations": saved + d_hidden,
            "logits": kept + chunks * load.logits + 0.6 * copies,
        },
        "gradient of the head": {
            "gradients": waiting + load.head_gradient,
            "activations": saved + 2 * d_hidden,
            "logits": kept + again + copies,
        },
    }


def kept_exponentials(load: Load) -> float:
    """Bytes of the exponentials that log-probabilities keep for their gradient; 0 where they are too many."""
    numbers = load.scored * load.model.vocabulary_size
    return numbers * load.width if numbers <= KEPT_EXPONENTIALS and not load.model.logit_soft_cap else 0
