"""The matrix products of a step, counted and listed: what a benchmark compares its speed with."""

from faisca.backend import PLACES_MULTIPLE
from faisca.bench.work import PROMPT_TOKENS, Work, training_tokens
from faisca.config import ModelConfig
from faisca.parameters import parameter_shapes
from faisca.planning.law import flops_per_token
from faisca.training.grpo import LENGTH_STEP

Product = tuple[int, int, int, int]
"""a matrix product: batch, m, k, n"""


def training_flops(work: Work) -> float:
    """Operations of the matrix products that a training step needs, forward and backward.

    What a backend computes twice does not count.
    """
    return training_tokens(work) * flops_per_token(work.model, work.config.data.window)


def training_products(work: Work, chunk: int) -> list[Product]:
    """The matrix products of one training step as they are computed, forward and backward."""
    model, T = work.model, work.config.data.window
    rows = work.config.pretrain.micro_batch_size or work.config.pretrain.batch_size
    N, V = rows * T, model.vocabulary_size
    head = [p for start in range(0, N, chunk) for p in linear_products(min(chunk, N - start), model.dim, V)]
    return (block_products(model, rows, T) + head) * (work.config.pretrain.batch_size // rows)


def block_products(model: ModelConfig, rows: int, T: int, *, backward: bool = True) -> list[Product]:
    """The products of all blocks for so many rows of T tokens, forward and backward, or forward alone."""
    heads, width, passes = rows * model.num_heads, model.head_width, 3 if backward else 1
    shapes = [s for name, s in parameter_shapes(model).items() if name.startswith("transformer_blocks.0.")]
    layers = [shape for shape in shapes if len(shape) == 2]
    block = [product for out, into in layers for product in linear_products(rows * T, into, out)[:passes]]
    block += [(heads, T, width, T), (heads, T, T, width)] * passes
    return block * model.num_layers


def linear_products(N: int, into: int, out: int) -> list[Product]:
    """Forward, gradient of the input, gradient of the weight."""
    return [(1, N, into, out), (1, N, out, into), (1, out, N, into)]


def grpo_products(work: Work, chunk: int) -> dict[str, list[Product]]:
    """The products of each part of a GRPO step whose rows never end: (batch, m, k, n)."""
    grpo, model = work.config.grpo, work.model
    minibatches = work.completions // grpo.minibatch_size
    positions = PROMPT_TOKENS + grpo.max_new_tokens - 1
    padded = min(-(-positions // LENGTH_STEP) * LENGTH_STEP, model.context)
    counted = -(-grpo.minibatch_size * grpo.max_new_tokens // PLACES_MULTIPLE) * PLACES_MULTIPLE
    counted = min(counted, grpo.minibatch_size * padded)
    rows = [min(chunk, counted - start) for start in range(0, counted, chunk)]
    shapes = [(N, model.dim, model.vocabulary_size) for N in rows]
    forward = block_products(model, grpo.minibatch_size, padded, backward=False)
    forward += [product for shape in shapes for product in linear_products(*shape)[:1]]
    both = block_products(model, grpo.minibatch_size, padded)
    both += [product for shape in shapes for product in linear_products(*shape)]
    return {
        "rollout": rollout_products(work),
        "rewards": [],
        "log-probabilities": forward * minibatches,  # of the reference: the sampler has given the policy's own
        "updates": both * (grpo.epochs * minibatches),
    }


def rollout_products(work: Work) -> list[Product]:
    """The prompt, then a token of each row at a time, which looks back at all before it; the head at the last alone."""
    model, B = work.model, work.completions
    heads, width = B * model.num_heads, model.head_width
    (head, *_) = linear_products(B, model.dim, model.vocabulary_size)
    found = [*block_products(model, B, PROMPT_TOKENS, backward=False), head]
    for length in range(PROMPT_TOKENS + 1, PROMPT_TOKENS + work.config.grpo.max_new_tokens):
        step = block_products(model, B, 1, backward=False)
        attention = {(heads, 1, width, 1): (heads, 1, width, length), (heads, 1, 1, width): (heads, 1, length, width)}
        found += [*(attention.get(product, product) for product in step), head]
    return found
