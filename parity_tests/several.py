"""What the processes of a launch compute together, for test_21_processes.py, which computes the same in one process.

    torchrun --nproc-per-node 2 several.py torch OUT.npz [NAME ...]
    mlx.launch -n 2 -- python several.py mlx OUT.npz [NAME ...]

Under torchrun `torch,mlx` makes processes of both backends in turn: one job over two frameworks.
"""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from faisca.backend import Rollouts, load_backend
from faisca.config import Config, GRPOConfig, OptimizerConfig, RunConfig, TrainConfig, plain
from faisca.group import ALONE, Processes
from faisca.lora import adapted
from faisca.parity.cases import Case, Side, completions, uneven_parameters
from faisca.parity.rungs import learner_parameters
from faisca.processes.join import processes_of
from faisca.training.grpo_update import select_rows, share_of

ROWS, MICRO = 8, 2
SMALL = {"context": 32, "dim": 24, "num_layers": 2, "num_heads": 2, "hidden_dim": 40, "vocabulary_size": 101}
MODERN = {"norm": "rms", "positions": "rope", "activation": "swiglu", "feed_forward_bias": False, "qk_norm": True}
MIXTURE = MODERN | {"num_experts": 4, "experts_per_token": 2, "expert_dim": 16, "shared_expert_dim": 9}
ADAPTER = {"lora_rank": 3, "lora_alpha": 5.0}


@dataclasses.dataclass(frozen=True)
class Work:
    """Steps of a small model, the same whatever the number of processes."""

    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    optimizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    run: dict[str, Any] = dataclasses.field(default_factory=dict)
    micro: int = 0
    steps: int = 6
    uneven: bool = False
    """rows with targets that do not count, more in some than in others"""
    grpo: dict[str, Any] | None = None


WORKS = {
    "GPT-2": Work({"tie_embeddings": True, "attention_bias": True}),
    "Muon": Work(MODERN, {"optimizer": "muon"}),
    "uneven targets": Work(uneven=True),
    "micro-batches": Work(MODERN, {"clip_norm": 0.05}, micro=MICRO, uneven=True),
    "mixture": Work(MIXTURE, micro=MICRO),
    "adapter": Work(MODERN | ADAPTER),
    "adapter of experts": Work(MIXTURE | ADAPTER, micro=MICRO),
    "bfloat16 gradients": Work(run={"reduce_dtype": "bfloat16"}),
    "grpo": Work(grpo={}),
    "grpo, sequences and entropy": Work(MODERN, grpo={"importance": "sequence", "loss": "grpo", "entropy_weight": 0.1}),
    "grpo, an adapter in micro-batches": Work(MODERN | ADAPTER, grpo={"loss": "dapo"}, micro=MICRO),
    "200 steps": Work(MODERN, steps=200),
}
SHARDED = {
    "sharded": Work({"tie_embeddings": True}, {"clip_norm": 0.05}, {"shard": True}, micro=MICRO),
    "sharded, Llama": Work(MODERN, run={"shard": True}, uneven=True),
}


def case_of(work: Work) -> Case:
    """The model, with uneven weights."""
    from faisca.config import ModelConfig, SFTConfig

    lora = {name: value for name, value in work.model.items() if name.startswith("lora_")}
    model = ModelConfig(**(SMALL | {name: value for name, value in work.model.items() if name not in lora}))
    model = adapted(model, SFTConfig(**lora)) if lora else plain(model)
    return Case(model, uneven_parameters(model, 0), 0, rows=ROWS, length=20, steps=work.steps)


def perform(work: Work, backend: str, processes: Processes) -> dict[str, np.ndarray]:
    """Losses, norms and what is watched, a row a step, and the weights afterwards."""
    case, side = case_of(work), Side(load_backend(backend), RunConfig(device="cpu", dtype="float32"))
    if processes.size > 1:
        processes = dataclasses.replace(processes, **work.run)
    grpo = work.grpo is not None
    kind: Any = GRPOConfig if grpo else OptimizerConfig
    options = {"epsilon": 1e-6, "learning_rate": 1e-3} | work.optimizer
    if grpo:
        options |= {"minibatch_size": ROWS, "group_size": ROWS, "micro_batch_size": work.micro, "max_new_tokens": 20}
        options |= work.grpo or {}
    config = kind(**options)
    runtime = dataclasses.replace(side.open(), processes=processes)
    model = side.backend.make_model(config=case.model, parameters=case.parameters, runtime=runtime)
    learner = side.backend.make_learner(model=model, config=config)
    step = grpo_steps if grpo else train_steps
    metrics = side.backend.read_metrics(metrics=list(step(work, case, side, learner, config, processes)))
    found = {name: np.array([one[name] for one in metrics]) for name in metrics[0]}
    weights = learner_parameters(side, learner)
    found["all have equal weights"] = np.array(float(equal(processes, weights)))
    return found | {f"weights {name}": value for name, value in weights.items()}


def train_steps(
    work: Work, case: Case, side: Side, learner: Any, config: TrainConfig, processes: Processes
) -> Iterable[Any]:
    """Steps of pre-training, of which this process has its rows."""
    rows = processes.part(ROWS)
    for step in range(work.steps):
        inputs, targets = case.batch(step)
        if work.uneven:
            targets = np.where(np.arange(case.length) < 2 + 2 * np.arange(ROWS)[:, None], targets, -1)
        common = {"learning_rate": 1e-3, "micro_batch_size": work.micro, "dropout_seed": 0}
        yield side.backend.train_step(learner=learner, inputs=inputs[rows], targets=targets[rows], **common)


def grpo_steps(
    work: Work, case: Case, side: Side, learner: Any, config: GRPOConfig, processes: Processes
) -> Iterable[Any]:
    """Steps on fixed completions, of which this process has its rows."""
    tokens, mask, advantages = completions(case)
    near = np.random.default_rng(0).standard_normal((2, *mask.shape)).astype(np.float32) / 10
    old, reference = (near - np.float32(4.6)) * mask
    rollouts = Rollouts(tokens, mask, advantages, old, reference, float(mask.sum()))
    for _ in range(work.steps):
        mine = share_of(select_rows(rollouts, np.arange(ROWS)), processes)
        common = {"config": config, "learning_rate": 1e-3, "dropout_seed": 0}
        yield side.backend.grpo_step(learner=learner, rollouts=mine, **common)


def equal(processes: Processes, weights: dict[str, np.ndarray]) -> bool:
    """Whether every process has the same weights, to the bit; in a mixed job those of its own backend."""
    digest = hashlib.sha256(b"".join(weights[name].tobytes() for name in sorted(weights))).hexdigest()
    kinds, digests = processes.gather(type_of(processes)), processes.gather(digest)
    return len(set(zip(kinds, digests, strict=True))) == len(set(kinds))


def type_of(processes: Processes) -> str:
    """The backend of this process in a mixed job."""
    return mine() if processes.mixed else ""


def mine() -> str:
    """The backend of this process."""
    names = sys.argv[1].split(",")
    return names[int(os.environ.get("RANK", 0)) % len(names)]


def main() -> None:
    """What the module says."""
    works = WORKS | SHARDED
    names = sys.argv[3:] or list(WORKS)
    config = Config(run=RunConfig(backend=mine(), stages=("pretrain",)))  # type: ignore[arg-type]
    with processes_of(config, Path(sys.argv[2])) as (processes, _):
        assert processes.size > 1 and processes != ALONE
        found = {name: perform(works[name], mine(), processes) for name in names}
        own = processes.gather({f"{name}: {what}": value for name, one in found.items() for what, value in one.items()})
        if processes.rank == 0:
            apart = own[-1] if processes.mixed else {}
            np.savez(sys.argv[2], **own[0], **{f"last {name}": value for name, value in apart.items()})


if __name__ == "__main__":
    main()
