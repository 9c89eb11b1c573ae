"""One setting, ready to be timed: `faisca.bench.twin` on few windows; and whether it computes the same."""

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from faisca.bench.twin import CaseFunction, TwinSubject
from faisca.bench.work import PROMPT_TOKENS, Work
from faisca.config import Config, ModelConfig
from faisca.parameters import Parameters, initial_parameters
from faisca.planning.plan import plan
from faisca.tuning.opening import Opened

LOSS_TOLERANCE, NORM_TOLERANCE = 1e-5, 1e-4
"""relative; another order of summation, and nothing else"""
BFLOAT16_LOSS_TOLERANCE, BFLOAT16_NORM_TOLERANCE = 2e-2, 5e-2
"""those of `faisca parity` in bfloat16"""
CHECKED_WINDOWS = 2
MOST_NEW_TOKENS = 16
"""tokens of a timed rollout"""


@dataclass(frozen=True)
class Trial:
    """A configuration that is tried."""

    opened: Opened
    config: Config

    @property
    def planned(self) -> int:
        """Bytes that its hungriest stage takes, by the plan."""
        runtime = self.opened.backend.open_runtime(config=self.config.run)
        return max(plan(self.config, self.opened.model, runtime, stage).total for stage in self.config.run.stages)

    def subject(self, windows: int, **model: Any) -> TwinSubject:
        """A twin with this configuration, whose training step has so many windows."""
        train = self._train
        micro = min(self.micro, windows)
        pretrain, sft = (
            dataclasses.replace(stage, batch_size=windows, micro_batch_size=micro) for stage in (train, self.config.sft)
        )
        most = min(self.config.grpo.max_new_tokens, MOST_NEW_TOKENS, self.opened.model.context - PROMPT_TOKENS)
        grpo = dataclasses.replace(self.config.grpo, max_new_tokens=most)
        config = dataclasses.replace(self.config, pretrain=pretrain, sft=sft, grpo=grpo)
        work = Work(config, dataclasses.replace(self.opened.model, **model), quick=False)
        return TwinSubject(self.opened.runtime.backend, work, self.config.run)

    def case(self, work: str, windows: int) -> CaseFunction:
        """What is timed: a training step of so many windows, or a rollout."""
        subject = self.subject(windows)
        return subject.training() if work == "step" else subject.rollout()

    def computed(self, work: str) -> Any:
        """What has to be the same whatever the setting: the numbers of a step, or the tokens of a rollout."""
        return self.step_numbers() if work == "step" else self.rollout_tokens()

    def step_numbers(self) -> np.ndarray:
        """Loss and gradient norm of one step on few windows, without dropout, whose draws may differ by setting."""
        subject = self.subject(CHECKED_WINDOWS, dropout=0.0, attention_dropout=0.0)
        backend, model = subject.backend, subject.work.model
        made = backend.make_model(config=model, parameters=_initial(model), runtime=subject.runtime)
        learner = backend.make_learner(model=made, config=subject.work.config.pretrain)
        inputs, targets = subject.work.batch()
        # one window at a time where micro-batches are smaller than what the run began with
        whole = self.micro >= dataclasses.replace(self, config=self.opened.config).micro
        metrics = backend.train_step(
            learner=learner,
            inputs=inputs,
            targets=targets,
            learning_rate=1e-4,
            micro_batch_size=0 if whole else 1,
            dropout_seed=0,
        )
        (read,) = backend.read_metrics(metrics=[metrics])
        return np.array([read["loss"], read["grad_norm"]])

    def rollout_tokens(self) -> list[list[int]]:
        """The completions of a rollout, token by token."""
        return self.subject(1).completions_of_a_rollout()

    @property
    def _train(self) -> Any:
        stages = [stage for stage in self.config.run.stages if stage != "grpo"]
        return getattr(self.config, stages[0] if stages else "pretrain")

    @property
    def micro(self) -> int:
        """Windows that it computes at a time."""
        return int(self._train.micro_batch_size or self._train.batch_size)


@lru_cache(maxsize=2)
def _initial(model: ModelConfig) -> Parameters:
    return initial_parameters(model, 0)


def difference(trial: Trial, expected: Any, work: str) -> str:
    """What a trial computes otherwise than `expected`, in words; empty where it is the same within tolerance."""
    found = trial.computed(work)
    if work == "rollout":
        return "" if found == expected else "other completions"
    tolerances = (LOSS_TOLERANCE, NORM_TOLERANCE)
    if trial.config.run.dtype == "bfloat16":
        tolerances = bfloat16_tolerances()
    for name, value, wanted, tolerance in zip(("loss", "gradient norm"), found, expected, tolerances, strict=True):
        off = abs(value / wanted - 1)
        if not off <= tolerance:  # also where it is no number
            return f"{name} differs by {off:.1e}, more than {tolerance:g}"
    return ""


def bfloat16_tolerances() -> tuple[float, float]:
    """How far loss and gradient norm in bfloat16 may be from float32; where a certificate of bfloat16 belongs."""
    return BFLOAT16_LOSS_TOLERANCE, BFLOAT16_NORM_TOLERANCE
