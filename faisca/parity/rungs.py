"""The rungs of the parity ladder that need no more than the boundary between core and twins.

A rung measures named arrays on one side, a twin on a device, and compares them between two sides.
`faisca parity` climbs them on the user's machine; `parity_tests/` climbs them for every option
and looks inside the twins besides. `docs/parity.md` says where each tolerance comes from.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from faisca.backend import Learner, Rollouts
from faisca.config import GRPOConfig, OptimizerConfig
from faisca.parity.cases import Arrays, Case, Side, completions, uneven_parameters
from faisca.streams import generator
from faisca.training.schedule import learning_rate

EPSILON = 1e-6
"""Adam's; at 1e-8 a weight whose gradient is rounding noise (a key bias, whose true gradient is 0) moves at random"""


def weights(side: Side, case: Case) -> Arrays:
    """The weights that come back from a model."""
    return side.backend.get_parameters(model=case.make_model(side))


def logits(side: Side, case: Case) -> Arrays:
    return {"logits": side.backend.logits(model=case.make_model(side), tokens=case.batch()[0])}


def losses(side: Side, case: Case) -> Arrays:
    """Summed losses: whole, in odd chunks, and with half of the targets left out."""
    inputs, targets = case.batch()
    masked = np.where(generator(case.seed, "masked targets").random(targets.shape) < 0.5, targets, -1)
    return {
        f"{name}, {chunk} rows at a time": np.array(
            side.backend.evaluate(model=case.make_model(side, loss_chunk=chunk), inputs=inputs, targets=wanted)
        )
        for name, wanted in (("loss", targets), ("loss of half the targets", masked))
        for chunk in (10**6, 64, 7)
    }


def log_probabilities(side: Side, case: Case) -> Arrays:
    model, tokens = case.make_model(side, loss_chunk=50), case.batch()[0]
    odd = np.arange(1, tokens[:, 1:].size, 2, dtype=np.int32)
    return {
        f"log-probabilities of {name} at temperature {temperature}": side.backend.token_log_probs(
            model=model, tokens=tokens, temperature=temperature, places=places
        )
        for temperature in (1.0, 0.7)
        for name, places in (("all", None), ("every second token", odd))
    }


def gradients(side: Side, case: Case) -> Arrays:
    """Gradients by name: Adam's first moment after one step, with beta1 = 0."""
    learner, _ = train(side, case, _optimizer(beta1=0.0, clip_norm=0.0), steps=1)
    state = side.backend.get_optimizer_state(learner=learner)
    return {name.removeprefix("first_moment."): value for name, value in state.items() if name.startswith("first")}


def first_moments(side: Side, case: Case) -> Arrays:
    """First moments after two steps, the second from a restored state, with clipping, micro-batches and decay."""
    return {name: value for name, value in _optimizer_state(side, case).items() if name.startswith("first")}


def second_moments(side: Side, case: Case) -> Arrays:
    """The second moments of the same steps, and their count."""
    return {name: value for name, value in _optimizer_state(side, case).items() if not name.startswith("first")}


@functools.lru_cache(maxsize=4)  # two rungs look at the same state
def _optimizer_state(side: Side, case: Case) -> Arrays:
    config = _optimizer(clip_norm=0.1, weight_decay=0.3)
    learner, _ = train(side, case, config, steps=1, micro_batch_size=case.rows // 2)
    state = side.backend.get_optimizer_state(learner=learner)
    again = dataclasses.replace(case, parameters=learner_parameters(side, learner))
    learner, _ = train(side, again, config, steps=1, state=state)
    return side.backend.get_optimizer_state(learner=learner)


def optimizer_change(side: Side, case: Case) -> Arrays:
    """How two AdamW steps, as above, move each weight."""
    config = _optimizer(clip_norm=0.1, weight_decay=0.3)
    learner, _ = train(side, case, config, steps=2, micro_batch_size=case.rows // 2)
    return _change(case, learner_parameters(side, learner))


def trajectory(side: Side, case: Case) -> Arrays:
    """Loss and gradient norm of every step of a short training."""
    return _training(side, case)[0]


def distance(side: Side, case: Case) -> Arrays:
    """How the training moved the weights, all together."""
    return _training(side, case)[1]


def policy_steps(side: Side, case: Case) -> Arrays:
    """GRPO's metrics over two passes of two minibatches on given completions."""
    return _policy_updates(side, case)[0]


def policy_change(side: Side, case: Case) -> Arrays:
    """How these four updates move the weights, all together."""
    return _policy_updates(side, case)[1]


@functools.lru_cache(maxsize=4)  # two rungs look at the same training
def _training(side: Side, case: Case) -> tuple[Arrays, Arrays]:
    learner, metrics = train(side, case, _optimizer(), steps=case.steps)
    return _numbers(metrics), _together(_change(case, learner_parameters(side, learner)))


@functools.lru_cache(maxsize=4)
def _policy_updates(side: Side, case: Case) -> tuple[Arrays, Arrays]:
    learner, metrics = reinforce(side, case)
    return _numbers(metrics), _together(_change(case, learner_parameters(side, learner)))


def train(
    side: Side,
    case: Case,
    config: OptimizerConfig,
    *,
    steps: int,
    micro_batch_size: int = 0,
    state: Arrays | None = None,
    **changes: Any,
) -> tuple[Learner, list[dict[str, float]]]:
    """A learner after some steps on the case's batches, and the steps' metrics."""
    learner = side.backend.make_learner(model=case.make_model(side, **changes), config=config)
    if state is not None:
        side.backend.set_optimizer_state(learner=learner, state=state)
    metrics = []
    for step in range(steps):
        inputs, targets = case.batch(step)
        metrics.append(
            side.backend.train_step(
                learner=learner,
                inputs=inputs,
                targets=targets,
                learning_rate=learning_rate(config, step, steps),
                micro_batch_size=micro_batch_size,
                dropout_seed=step,
            )
        )
    return learner, side.backend.read_metrics(metrics=metrics)


def reinforce(side: Side, case: Case, config: GRPOConfig | None = None) -> tuple[Learner, list[dict[str, float]]]:
    """A learner after GRPO's updates on given completions, with a reference that differs from the policy."""
    config = config or GRPOConfig(epsilon=EPSILON, clip_high=0.28, kl_weight=0.1)
    model = case.make_model(side)
    reference = dataclasses.replace(case, parameters=uneven_parameters(case.model, case.seed + 1)).make_model(side)
    tokens, mask, advantages = completions(case)
    old, ref = (
        side.backend.token_log_probs(model=scorer, tokens=tokens, temperature=config.temperature, places=None)
        for scorer in (model, reference)
    )
    learner, metrics = side.backend.make_learner(model=model, config=config), []
    for rows in (slice(0, None, 2), slice(1, None, 2), slice(0, None, 2), slice(1, None, 2)):
        counted = float(mask[rows].sum())
        rollouts = Rollouts(tokens[rows], mask[rows], advantages[rows], old[rows], ref[rows], step_tokens=counted)
        metrics.append(
            side.backend.grpo_step(
                learner=learner, rollouts=rollouts, config=config, learning_rate=1e-3, dropout_seed=0
            )
        )
    return learner, side.backend.read_metrics(metrics=metrics)


def learner_parameters(side: Side, learner: Learner) -> Arrays:
    """The weights of a learner's model."""
    return side.backend.get_parameters(model=learner.model)


def _optimizer(**changes: Any) -> OptimizerConfig:
    return OptimizerConfig(**({"epsilon": EPSILON, "warmup_steps": 5, "learning_rate": 1e-3} | changes))


def _change(case: Case, after: Mapping[str, np.ndarray]) -> Arrays:
    return {name: value - case.parameters[name] for name, value in after.items()}


def _together(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {"change of the weights": np.concatenate([value.ravel() for value in arrays.values()])}


def _numbers(metrics: list[dict[str, float]]) -> Arrays:
    return {name: np.array([step[name] for step in metrics]) for name in metrics[0]}


@dataclass(frozen=True)
class Rung:
    """What is compared, how, and how much it may differ."""

    number: int
    title: str
    arrays: Callable[[Side, Case], Arrays]
    tolerance: float
    measure: str = "scaled"


RUNGS = (
    Rung(1, "weights in and out, exactly", weights, 0.0),
    Rung(2, "logits", logits, 1e-5),
    Rung(3, "loss, any chunk size", losses, 1e-6),
    Rung(3, "log-probabilities", log_probabilities, 1e-5),
    Rung(4, "gradient of every weight", gradients, 1e-5, "norm"),
    Rung(5, "AdamW: first moments", first_moments, 1e-5, "norm"),  # linear in the gradients: as they
    Rung(5, "AdamW: second moments", second_moments, 2e-5, "norm"),  # of squares: twice the relative error
    Rung(5, "AdamW: change, two steps", optimizer_change, 1e-3, "norm"),
    Rung(6, "training: loss, grad norm", trajectory, 1e-5),
    Rung(6, "training: change of weights", distance, 1e-3, "norm"),
    Rung(8, "GRPO: metrics of updates", policy_steps, 1e-4),
    Rung(8, "GRPO: change of weights", policy_change, 1e-3, "norm"),
)
