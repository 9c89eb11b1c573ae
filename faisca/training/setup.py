"""What sampling, measuring and GRPO need besides a model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from faisca.backend import Backend, Model, Runtime
from faisca.config import Config, ModelConfig, adapter_of
from faisca.data.prompts import Tasks, open_tasks
from faisca.data.tokenizer import Tokenizer
from faisca.group import Processes
from faisca.rewards.judge import Judge, Scores
from faisca.rewards.samples import Samples


@dataclass(frozen=True)
class Setup:
    """A configuration, and what was opened for it; the model that is trained is passed along beside it."""

    config: Config
    backend: Backend
    runtime: Runtime
    tokenizer: Tokenizer
    model_config: ModelConfig
    """the model's, with its real vocabulary size"""
    reward: Judge | None = None
    """that of `grpo.reward`; None measures no reward"""

    @property
    def seed(self) -> int:
        """The seed of the run, from which every random stream derives."""
        return self.config.run.seed

    @property
    def processes(self) -> Processes:
        """Those that train the model together."""
        return self.runtime.processes

    @cached_property
    def tasks(self) -> Tasks:
        """What GRPO asks, read once."""
        return open_tasks(self.config.grpo.prompts, self.config.grpo.prompts_file)

    def score(self, samples: Samples) -> Scores:
        """What completions are worth. Of several processes the first asks the rewards, which may be slow or random."""
        judge = self.reward
        assert judge is not None, "a run that trains has its rewards"
        return self.processes.first(lambda: judge.score(samples))

    def make_model(self, parameters: Mapping[str, np.ndarray], *, frozen: bool = False) -> Model:
        """A model with these weights on the setup's backend; one that nothing trains may keep them in bfloat16.

        Nor does anything train the base of an adapter.
        """
        frozen = frozen or adapter_of(self.model_config) is not None
        runtime = self.runtime if frozen else replace(self.runtime, weights="float32")
        return self.backend.make_model(config=self.model_config, parameters=parameters, runtime=runtime)
