"""mlx-lm-lora's GRPO with our weights, all of them trained: `pip install mlx-lm-lora==5.10.2`.

It takes no old policy: every completion is learned from once, in one update. So what is compared differs:

`grpo_once` is its `train_grpo` itself, one iteration as its own report times it: rollout, rewards, the reference's
log-probabilities, one update. It samples and differentiates as many rows at a time as its batch has prompts, so the
prompt is given as often as our minibatch has rows, with a group each that makes our number of completions: one prompt
with one group, as ours, would be sampled and learned row by row.

`grpo_full` has our epochs and minibatches, which its loop cannot do: its functions in a loop of ours. It samples all
rows at once (`generate_grpo`), and each minibatch is one `_grpo_value_and_grad`, in which it scores the
reference again, and one update. No old policy is scored, and gradients are not clipped.
"""

import contextlib
import io
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faisca_mlx  # isort: skip  # noqa: F401  # first: it puts a fast BLAS in place before MLX is loaded
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm_lora.trainer import grpo_trainer

from faisca.bench.twin import STILL, later, reward, timed
from faisca.bench.work import Work
from faisca.bench.worker import load_baseline


class MlxLmLora:
    """Its trainer and its trainer's functions, on the model as mlx-lm loads it."""

    def __init__(self, work: Work, device: str) -> None:
        self.work = work
        self.plain = load_baseline("mlx_lm", Path(__file__).parent)(work, device)
        self.loss, self.device_memory = self.plain.loss, self.plain.device_memory
        decode = work.tokenizer().decode
        ends = {work.end_of_text}
        self.tokenizer = SimpleNamespace(eos_token_ids=ends, decode=lambda ids: decode(ids, work.prompts(1)[0]))

    def describe(self) -> dict[str, Any]:
        return self.plain.describe() | {"mlx_lm_lora": version("mlx-lm-lora")}

    def cases(self) -> dict[str, Callable[[], float]]:
        return {
            "grpo_full": later(self.grpo_step),
            "grpo_once": later(self.trainers_step),
            "grpo_ending": later(lambda: self.grpo_step(rows_end=True)),
        }

    def trainers_step(self, learning_rate: float = STILL) -> Callable[[], float]:
        """One iteration of `train_grpo`, as it reports it."""
        policy, reference = self.plain.make_model(), self.plain.make_model()
        optimizer = optim.AdamW(learning_rate, weight_decay=0.0)
        found: list[float] = []
        callback = SimpleNamespace(on_train_loss_report=lambda info: found.append(info["iterations_per_second"]))
        example = (self.work.prompts(1)[0], [], "", "")
        batch_size = self.work.config.grpo.minibatch_size

        def step() -> float:
            silent = io.StringIO()
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.redirect_stdout(silent),
                contextlib.redirect_stderr(silent),
            ):
                grpo_trainer.train_grpo(
                    policy,
                    reference,
                    self.tokenizer,
                    optimizer,
                    [example] * batch_size,
                    reward_funcs=[judged],
                    args=self.options(batch_size, Path(folder) / "weights.safetensors"),
                    training_callback=callback,
                    end_answer_token="",
                )
            return 1 / found.pop()

        return step

    def options(self, batch_size: int, file: Path) -> grpo_trainer.GRPOTrainingArgs:
        """Ours in its words, for one iteration."""
        return grpo_trainer.GRPOTrainingArgs(
            batch_size=batch_size,
            iters=1,
            steps_per_report=1,
            adapter_file=str(file),
            group_size=self.work.completions // batch_size,
            max_completion_length=self.work.config.grpo.max_new_tokens,
            **self.sampling,
            **self.objective,
        )

    def grpo_step(self, learning_rate: float = STILL, *, rows_end: bool = False) -> Callable[[], float]:
        """Our number of updates, by its functions."""
        grpo, completions = self.work.config.grpo, self.work.completions
        policy, reference = (self.plain.make_model(rows_end=rows_end) for _ in range(2))
        optimizer = optim.AdamW(learning_rate, weight_decay=0.0)
        loss_and_gradients = nn.value_and_grad(policy, grpo_trainer.grpo_loss)
        batch = ([self.work.prompts(1)[0]], [[]], [""], [""], None)
        parts = np.arange(completions).reshape(-1, grpo.minibatch_size)

        def step() -> None:
            policy.train()
            written, texts, prompts = grpo_trainer.generate_grpo(
                policy, self.tokenizer, batch[0], grpo.max_new_tokens, completions, completions, "", **self.sampling
            )
            advantages, watched = grpo_trainer._rollout_rewards(batch, texts, prompts, [judged], None)
            for rows in np.concatenate([parts] * grpo.epochs):
                result, gradients = grpo_trainer._grpo_value_and_grad(
                    loss_and_gradients,
                    policy,
                    len(rows),
                    batch=batch,
                    completions=[written[row] for row in rows],
                    completion_texts=[texts[row] for row in rows],
                    batch_indices=[prompts[row] for row in rows],
                    advantages=advantages[mx.array(rows)],
                    reward_metrics=watched,
                    ref_model=reference,
                    max_tokens=grpo.max_new_tokens,
                    importance_sampling_level=grpo.importance,
                    **self.objective,
                )
                optimizer.update(policy, gradients)
                mx.eval(policy.state, optimizer.state, result)

        return lambda: timed(step)

    @property
    def sampling(self) -> dict[str, float]:
        grpo = self.work.config.grpo
        return {"temperature": grpo.temperature, "top_p": 0.0, "top_k": grpo.top_k, "min_p": 0.0}

    @property
    def objective(self) -> dict[str, Any]:
        grpo = self.work.config.grpo
        clip = {"epsilon": grpo.clip_low, "epsilon_high": grpo.clip_high}
        return clip | {"beta": grpo.kl_weight, "grpo_loss_type": grpo.loss}


def judged(completions: list[str], **_: Any) -> list[float]:
    """The benchmark's reward, as mlx-lm-lora calls one."""
    return reward(completions)


def open_mlx_lm_lora(work: Work, device: str) -> MlxLmLora:
    """`device` as in `faisca bench --device`."""
    return MlxLmLora(work, device)
