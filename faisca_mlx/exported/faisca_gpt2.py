"""GPT-2 for mlx-lm with a head of its own, either GELU, and any feed-forward width. Written by Faísca MLX."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import gpt2


@dataclass
class ModelArgs(gpt2.ModelArgs):
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    tie_word_embeddings: bool = True
    eos_token_id: int = 50256


class Positions(nn.Embedding):
    def __call__(self, positions: mx.array) -> mx.array:
        return super().__call__(mx.minimum(positions, len(self.weight) - 1))  # MLX would read beyond the table


class MLP(nn.Module):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        hidden = args.n_inner or 4 * args.n_embd
        self.c_fc = nn.Linear(args.n_embd, hidden)
        self.c_proj = nn.Linear(hidden, args.n_embd)
        self.activation = nn.gelu if args.activation_function == "gelu" else nn.gelu_approx

    def __call__(self, x: mx.array) -> mx.array:
        return self.c_proj(self.activation(self.c_fc(x)))


class Model(gpt2.Model):
    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args)
        self.model.wpe = Positions(args.n_positions, args.n_embd)
        for block in self.model.h:
            block.mlp = MLP(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.n_embd, args.vocab_size, bias=False)

    def __call__(self, inputs: mx.array, cache=None) -> mx.array:
        offset = mx.array(cache[0].offset if cache and cache[0] is not None else 0)
        positions = mx.arange(inputs.shape[1]) + offset[..., None]
        hidden = self.model(inputs, cache)
        logits = self.model.wte.as_linear(hidden) if self.args.tie_word_embeddings else self.lm_head(hidden)
        return mx.where((positions < self.args.n_positions)[..., None], logits, self.stop_logits(logits))

    def stop_logits(self, logits: mx.array) -> mx.array:
        """What follows a full context: the end of the text, and nothing else."""
        stop = mx.arange(logits.shape[-1]) == self.args.eos_token_id
        return mx.where(stop, 0.0, -1e9).astype(logits.dtype)

    @property
    def quant_predicate(self):
        return lambda path, module: not isinstance(module, Positions)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights = {name.removeprefix("transformer."): value for name, value in weights.items()}
        head = {name: weights.pop(name) for name in list(weights) if name.startswith("lm_head.")}
        return super().sanitize(weights) | head
