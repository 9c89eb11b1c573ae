"""The moments of a step of the MLX twin at which most is alive.

MLX evaluates one graph a step, about twenty operations wide, so what is alive at a moment is no list that
the source shows. The factors below were fitted to peaks measured with MLX 0.32.4 on a CPU, over models of
many shapes; each says in the unit of which array it counts. `tests/test_planning.py` holds the result.
"""

from faisca.planning.blocks import mlx_block
from faisca.planning.load import FLOAT, Load
from faisca.planning.torch_step import Moments, kept_exponentials

UPDATE = 1.0
"""gradients of all parameters wait for the norm of all"""
ORTHOGONAL = 3.5
"""times the blocks' matrices, in Muon's steps: new weights and moments, and stacks on their way; from 3.1 to 3.6,
for they are computed in another order each time"""
TABLES = 3.5
"""heads: embedding and head are updated at once, with gradient, square and both moments"""
BIGRAMS = 2.0
"""of their table, updated at once with the two"""
LOSS = {False: (3.7, 2.2), True: (5.6, 4.4)}
"""chunks of logits, and heads, alive in the loss; in bfloat16 with copies"""
POLICY = {False: (6.4, 1.0, 5.0), True: (7.3, 4.8, 15.0)}
"""the same in GRPO's log-probabilities, with residual streams"""
SQUEEZED, SQUEEZED_POLICY = 4.4, 6.4
"""and chunks more with a soft cap: tanh, the squeezed logits, the slope, and the slope's product"""
PASSING = {False: (14, 25), True: (2, 11)}
"""residual streams alive in the loss, and in the backward pass: of all weights, or of an adapter, whose base has no
gradients that wait beside them"""
RECOMPUTED = (7.0, 9.4, 3.5, 5.0)
"""arrays [N, D], [N, F], [N, H·T] and, with experts, [N, S·D] of blocks computed again, two or three at once"""


def mlx_moments(load: Load) -> Moments:
    """Bytes by moment and part, besides weights, optimiser state and reference, which are always there."""
    stream, half = load.stream, (1 + load.width / FLOAT) / 2
    saved = load.model.num_layers * (stream if load.checkpointing else mlx_block(load))
    saved += load.copied_matrices
    waiting = load.trained if load.accumulates else 0
    waiting_for_all = UPDATE * load.trained + TABLES * load.head_gradient + BIGRAMS * load.bigram_gradient
    if load.muon:
        waiting_for_all = max(waiting_for_all, UPDATE * load.trained + ORTHOGONAL * FLOAT * load.matrices)
    update = {"gradients and new moments": waiting_for_all}
    if load.policy:
        return {"update": update} | _policy_moments(load, saved, half)
    chunks, heads = LOSS[load.narrow]
    in_loss, in_backward = PASSING[load.adapter is not None]
    heads = 1 if load.adapter else heads  # a gradient of zeros is handed on
    chunks += SQUEEZED if load.model.logit_soft_cap else 0
    scores = FLOAT * load.tokens * load.model.num_heads * load.length
    transient = (2.5 if load.narrow and load.attention_dropout else 1.2) * scores
    return {
        "update": update,
        "loss": {
            "gradients": waiting + heads * load.head,
            "activations": saved + in_loss * half * stream,
            "logits": chunks * load.logits,
        },
        "backward pass": {
            "gradients": waiting + 4 * load.head_gradient + (FLOAT * load.matrices if load.narrow else 0),
            "activations": saved
            + in_backward * half * stream
            + transient
            + (_again(load, half) if load.checkpointing else 0),
        },
    }


def _policy_moments(load: Load, saved: float, half: float) -> Moments:
    kept = kept_exponentials(load) * (1.7 if load.narrow else 1)  # some wait in float32 to be rounded
    chunks, heads, streams = POLICY[load.narrow]
    waiting = load.trained if load.accumulates else 0
    chunks += SQUEEZED_POLICY if load.model.logit_soft_cap else 0
    if kept and load.scored <= load.chunk:
        chunks -= 3.5  # one chunk: what is kept is among what it makes
    moments: Moments = {
        "log-probabilities": {
            "gradients": waiting + heads * load.head_gradient,
            "activations": saved + streams * half * load.stream,
            "logits": kept + chunks * load.logits,
        }
    }
    if not load.narrow:
        moments["backward pass"] = {
            "gradients": waiting + 4.9 * load.head_gradient,
            "activations": saved + 16 * load.stream,
            "logits": kept,
        }
    return moments


def _again(load: Load, half: float) -> float:
    """Blocks that are computed again, and their gradients, which wait until the norm of all is known."""
    streams, hidden, scores, rows = RECOMPUTED
    side_by_side = min(1.0, (load.model.num_layers + 1) / 3)  # a single block has none beside it
    attention = load.width * load.tokens * load.model.num_heads * load.length
    attention *= scores * (1.5 if load.attention_dropout else 1)
    between = load.width * load.tokens * (hidden * load.hidden + rows * load.rows_of_experts)
    blocks = streams * half * load.stream + between + attention
    # Where gradients of an earlier micro-batch wait, new ones join them as they come.
    return side_by_side * blocks + (0 if load.accumulates else FLOAT * load.matrices)
