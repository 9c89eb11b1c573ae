"""A peer's recipe as `recipes.py` trains it: its script says what, this file does it on our titles.

A script has `Options` (a dataclass with its authors' numbers), `tokenizer(options)`, `Model(options, vocabulary)` (ids
[B, T] -> logits [B, T, V]), `Updater(model, options)` (`update(step, total)`), and `batch(tokens, end, options, seed,
step)`. Peers compute in float32 on the CPU, uncompiled, which does not pay there; evaluation is ours.
"""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faisca.data.headlines import Headlines
from faisca.data.token_cache import tokenise
from faisca.data.tokenizer import load_tokenizer
from faisca.data.windows import evaluation_batches, target_bytes
from faisca.streams import integer_seed, permutation

EVALUATED = 2**13
"""tokens whose logits are alive in an evaluation, roughly"""


class PeerTrainee:
    """A peer's model with its optimiser, on titles tokenised by its own tokenizer."""

    def __init__(
        self, script: ModuleType, options: Any, headlines: Headlines, seed: int, facts: Mapping[str, Any]
    ) -> None:
        self.script, self.options, self.seed = script, options, seed
        train = headlines.train["title"].combine_chunks()
        train = train.take(pa.array(permutation(seed, "order of pretrain titles", len(train))))
        self.tokenizer = load_tokenizer(script.tokenizer(options), train)
        self.tokens = tokenise(train, self.tokenizer)
        self.held_out = tokenise(headlines.validation["title"].combine_chunks(), self.tokenizer)
        torch.manual_seed(integer_seed(seed, "initial values of a peer"))
        self.model = script.Model(options, self.tokenizer.vocabulary_size)
        self.updater = script.Updater(self.model, options)
        self.facts = dict(facts) | {
            "backend": "torch",
            "device": "cpu",
            "dtype": "float32",
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "flops_per_token": peer_flops(self.model, options.window),
            "vocabulary": self.tokenizer.vocabulary_size,
            "window": options.window,
            "training_tokens": len(self.tokens),
        }

    def step(self, step: int, total: int) -> tuple[float, int]:
        """Forward and backward, in its authors' micro-batches, and their update."""
        options = self.options
        inputs, targets = self.script.batch(self.tokens, self.tokenizer.end_of_text, options, self.seed, step)
        parts = max(1, len(inputs) // options.micro_batch_size)
        loss = torch.zeros(())
        for ids, wanted in zip(np.array_split(inputs, parts), np.array_split(targets, parts), strict=True):
            part = cross_entropy(self.model, ids, wanted, "sum") / targets.size
            part.backward()
            loss += part.detach()
        self.updater.update(step, total)
        return loss.item(), inputs.size

    def bits_per_byte(self) -> float:
        """As `faisca.training.evaluate.measure_loss`."""
        window, sizes = self.options.window, self.tokenizer.bytes_per_token()
        rows = max(1, EVALUATED // window)
        nats, size = 0.0, 0
        self.model.eval()
        with torch.inference_mode():
            for inputs, targets in evaluation_batches(self.held_out, window=window, batch_size=rows):
                nats += cross_entropy(self.model, inputs, targets, "sum").item()
                size += target_bytes(targets, sizes)
        self.model.train()
        return nats / math.log(2) / size


def cross_entropy(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, reduction: str) -> Tensor:
    """Of all logits at once, nats; negative targets are left out."""
    ids, wanted = (torch.from_numpy(array.astype(np.int64)) for array in (inputs, targets))
    return F.cross_entropy(model(ids).flatten(0, 1), wanted.flatten(), ignore_index=-1, reduction=reduction)


def peer_flops(model: nn.Module, window: int) -> float:
    """Operations a token, forward and backward: 6 a weight of a linear layer, and attention's, as for our models."""
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    return 6.0 * weights + 12.0 * model.num_layers * window * model.attention_width
