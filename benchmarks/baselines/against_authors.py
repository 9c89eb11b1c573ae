"""Peers' recipes against their authors' own code: `python benchmarks/baselines/against_authors.py PEER CHECKOUT`.

CHECKOUT is a clone of the peer's repository, at the commit that `PEER_recipe.py` names. Its model gets our weights,
zeros made random so that no gradient is rounding alone, and both learn the same batches: ours by our updates, theirs by
their optimiser with their schedule's numbers. Losses must agree to 1e-6 and weights to 1e-4 after five updates, or the
exit status is 1. No test runs it, for it needs the clone.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from faisca.cli import exit_status
from faisca.errors import FaiscaError

sys.path[0] = str(Path(__file__).parent.parent)  # and not this folder, whose files have the names of libraries
from recipes_trainees import load_peer  # noqa: E402

STEPS, TOTAL, VOCABULARY, WINDOW = 5, 60, 128, 32
Pairs = Iterator[tuple[Tensor, Tensor]]
Side = tuple[nn.Module, Pairs, Callable[[Tensor], Tensor], Callable[[int], None]]
"""their model, pairs of our and their weights, their logits, and their update of a step"""


def nanogpt(ours: Any, options: Any, script: ModuleType) -> Side:
    from model import GPT, GPTConfig

    sizes = {"n_layer": options.layers, "n_head": options.heads, "n_embd": options.dim, "dropout": 0.0, "bias": False}
    theirs = GPT(GPTConfig(block_size=WINDOW, vocab_size=VOCABULARY, **sizes))
    betas = (options.beta1, options.beta2)
    optimizer = theirs.configure_optimizers(options.weight_decay, options.learning_rate, betas, "cpu")

    def update(step: int) -> None:
        clip_and_step(theirs, optimizer, script.learning_rate(options, step, TOTAL))

    def pairs() -> Pairs:
        parts = theirs.transformer
        yield from ((ours.tokens.weight, parts.wte.weight), (ours.positions.weight, parts.wpe.weight))
        yield ours.norm.weight, parts.ln_f.weight
        for our, their in zip(ours.blocks, parts.h, strict=True):
            yield from ((our.norm1.weight, their.ln_1.weight), (our.norm2.weight, their.ln_2.weight))
            yield from ((our.qkv.weight, their.attn.c_attn.weight), (our.out.weight, their.attn.c_proj.weight))
            yield from ((our.up.weight, their.mlp.c_fc.weight), (our.down.weight, their.mlp.c_proj.weight))

    return theirs, pairs(), lambda ids: theirs(ids, ids)[0], update


def minimind(ours: Any, options: Any, script: ModuleType) -> Side:
    from model.model_minimind import MiniMindConfig, MiniMindForCausalLM

    sizes = {"hidden_size": options.dim, "num_hidden_layers": options.layers, "vocab_size": VOCABULARY}
    theirs = MiniMindForCausalLM(MiniMindConfig(**sizes, max_position_embeddings=WINDOW))
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=options.learning_rate)

    def update(step: int) -> None:
        clip_and_step(theirs, optimizer, script.learning_rate(options, step, TOTAL))

    def pairs() -> Pairs:
        yield from ((ours.tokens.weight, theirs.lm_head.weight), (ours.norm.weight, theirs.model.norm.weight))
        for our, their in zip(ours.blocks, theirs.model.layers, strict=True):
            attention = their.self_attn
            for name, part in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
                yield getattr(our, name).weight, getattr(attention, f"{part}_proj").weight
            for name in ("gate", "up", "down"):
                yield getattr(our, name).weight, getattr(their.mlp, f"{name}_proj").weight
            yield from (
                (our.query_norm.weight, attention.q_norm.weight),
                (our.key_norm.weight, attention.k_norm.weight),
            )
            yield our.norm1.weight, their.input_layernorm.weight
            yield our.norm2.weight, their.post_attention_layernorm.weight

    return theirs, pairs(), lambda ids: theirs(ids).logits, update


def nanochat(ours: Any, options: Any, script: ModuleType) -> Side:
    from nanochat.gpt import GPT, GPTConfig

    sizes = {"n_layer": options.depth, "n_head": options.depth, "n_kv_head": options.depth, "n_embd": options.dim}
    theirs = GPT(GPTConfig(sequence_len=WINDOW, vocab_size=VOCABULARY, window_pattern="L", **sizes))
    theirs.init_weights()
    rates = {"unembedding": options.head_rate, "embedding": options.embedding_rate, "matrix": options.matrix_rate}
    scaled = {
        f"{name}_lr": rate * options.batch_scale for name, rate in {**rates, "scalar": options.scalar_rate}.items()
    }
    optimizer = theirs.setup_optimizer(weight_decay=options.scaled_decay, **scaled)

    def update(step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * script.rate_share(options, step, TOTAL)
            if group["kind"] == "muon":
                group["momentum"] = script.muon_momentum(options, step, TOTAL)
                group["weight_decay"] = options.scaled_decay * (1 + math.cos(math.pi * step / TOTAL)) / 2
        optimizer.step()
        theirs.zero_grad(set_to_none=True)

    def pairs() -> Pairs:
        yield from ((ours.tokens.weight, theirs.transformer.wte.weight), (ours.head.weight, theirs.lm_head.weight))
        yield from ((ours.stream_scale, theirs.resid_lambdas), (ours.first_scale, theirs.x0_lambdas))
        yield from ((ours.smear_gate.weight, theirs.smear_gate.weight), (ours.smear, theirs.smear_lambda))
        yield ours.backout, theirs.backout_lambda
        yield from ((ours.values[layer].weight, table.weight) for layer, table in theirs.value_embeds.items())
        for our, their in zip(ours.blocks, theirs.transformer.h, strict=True):
            attention = their.attn
            for name, part in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "proj")):
                yield getattr(our, name).weight, getattr(attention, f"c_{part}").weight
            yield from ((our.up.weight, their.mlp.c_fc.weight), (our.down.weight, their.mlp.c_proj.weight))
            if our.gate is not None:
                yield our.gate.weight, attention.ve_gate.weight

    return theirs, pairs(), theirs, update


SIZES = {"nanochat": {"depth": 3}}
"""where a peer's own would hide something: at depth 2 the middle layer is the last, and backout changes nothing"""
SIDES = {"nanogpt": nanogpt, "minimind": minimind, "nanochat": nanochat}


def clip_and_step(model: nn.Module, optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Clip at 1, step at this rate, clear."""
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def main(argv: list[str]) -> int:
    """Compare, and say by how much they differ."""
    if len(argv) != 2 or argv[0] not in SIDES or not Path(argv[1]).is_dir():
        raise FaiscaError(f"name a peer ({', '.join(SIDES)}) and the folder of a clone of its repository")
    sys.path.insert(0, argv[1])
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    torch.manual_seed(0)
    script = load_peer(argv[0])
    options = script.Options(window=WINDOW, **SIZES.get(argv[0], {}))
    ours = script.Model(options, VOCABULARY)
    theirs, pairs, logits, update = SIDES[argv[0]](ours, options, script)
    pairs = list(pairs)
    with torch.no_grad():
        for our, their in pairs:
            if our.abs().max() < 0.01:
                our.normal_(std=0.02)
            their.copy_(our)
    assert sum(p.numel() for p in theirs.parameters()) == sum(our.numel() for our, _ in pairs), "a weight has no pair"
    updater, apart = script.Updater(ours, options), 0.0
    for step in range(STEPS):
        ids, targets = torch.randint(VOCABULARY, (2, 4, WINDOW))
        losses = [F.cross_entropy(side(ids).flatten(0, 1), targets.flatten()) for side in (ours, logits)]
        for loss in losses:
            loss.backward()
        apart = max(apart, abs(losses[0].item() - losses[1].item()))
        updater.update(step + 30, TOTAL)
        update(step + 30)
    weights = max((our - their).abs().max().item() for our, their in pairs)
    print(f"{argv[0]}: losses of {STEPS} steps within {apart:.1e}, weights after them within {weights:.1e}")
    return 0 if apart <= 1e-6 and weights <= 1e-4 else 1


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
