"""TRL's GRPOTrainer with our weights: its own loop, its own rollouts by transformers' `generate`, its own updates.

What is timed is a round of `GRPOTrainer.train()`: from the first step's beginning to the last one's end, without what
`train` sets up before. The settings are the preset's, and beside them the fastest that make sense on one device:
no gradient checkpointing (TRL's default recomputes every block), fused AdamW, float32 as ours, dropout off,
nothing logged, saved or reported. With one update a round TRL does not score the policy that sampled, for it is the
policy that learns; we do.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers

from faisca.bench.twin import STILL, later, once, reward
from faisca.bench.work import Work
from faisca.bench.worker import load_baseline
from faisca.config import GRPOConfig

transformers.utils.logging.disable_progress_bar()


class Round(transformers.TrainerCallback):
    """A stopwatch that the trainer starts and stops: seconds from the first step's beginning to the last one's end."""

    began = ended = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.began = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ended = time.perf_counter()


class Trl:
    """A trainer for each GRPO step that is timed, on the model that the transformers baseline makes."""

    def __init__(self, work: Work, device: str) -> None:
        self.work = work
        self.plain = load_baseline("transformers", Path(__file__).parent)(work, device)
        self.loss, self.device_memory = self.plain.loss, self.plain.device_memory

    def describe(self) -> dict[str, Any]:
        return self.plain.describe() | {"trl": trl.__version__}

    def cases(self) -> dict[str, Callable[[], float]]:
        return {
            "grpo_full": later(self.grpo_step),
            "grpo_once": later(lambda: self.grpo_step(**once(self.work))),
            "grpo_ending": later(lambda: self.grpo_step(rows_end=True)),
        }

    def grpo_step(self, *, rows_end: bool = False, **changes: int) -> Callable[[], float]:
        grpo = replace(self.work.config.grpo, learning_rate=STILL, **changes)
        trainer, watch = self.make_trainer(grpo, rows_end=rows_end)

        def step() -> float:
            trainer.train()
            return watch.ended - watch.began

        return step

    def make_trainer(self, grpo: GRPOConfig, *, rows_end: bool = False) -> tuple[trl.GRPOTrainer, Round]:
        """A trainer whose `train()` is one round; it loads the reference model from the policy's folder."""
        watch = Round()
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "model"
            self.plain.make_model(rows_end=rows_end).save_pretrained(source)
            trainer = trl.GRPOTrainer(
                model=transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32),
                reward_funcs=judged,
                args=self.options(grpo, folder),
                train_dataset=Dataset.from_dict({"prompt": [prompt_text(self.work)]}),
                processing_class=words(self.work),
                callbacks=[watch],
            )
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer, watch

    def options(self, grpo: GRPOConfig, folder: str) -> trl.GRPOConfig:
        """Ours in its words. A round is `num_iterations` × `steps_per_generation` updates."""
        minibatches = self.work.completions // grpo.minibatch_size
        learning = {
            "learning_rate": grpo.learning_rate,
            "lr_scheduler_type": "constant",
            "weight_decay": grpo.weight_decay,
            "max_grad_norm": grpo.clip_norm,
            "optim": "adamw_torch_fused",
            "max_steps": grpo.epochs * minibatches,
            "per_device_train_batch_size": grpo.minibatch_size,
            "gradient_accumulation_steps": 1,
            "activation_checkpointing": False,
        }
        rounds = {
            "num_generations": grpo.group_size,
            "num_iterations": grpo.epochs,
            "steps_per_generation": minibatches,
            "max_completion_length": grpo.max_new_tokens,
            "temperature": grpo.temperature,
            "top_k": grpo.top_k,
            "beta": grpo.kl_weight,
            "epsilon": grpo.clip_low,
            "epsilon_high": grpo.clip_high,
            "loss_type": grpo.loss,
            "scale_rewards": grpo.scale_rewards,
            "disable_dropout": True,
        }
        quiet = {
            "output_dir": folder,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": self.plain.device == "cpu",
            "bf16": False,
        }
        return trl.GRPOConfig(**learning, **rounds, **quiet)


def judged(completions: list[str], **_: Any) -> list[float]:
    """The benchmark's reward, as TRL calls one."""
    return reward(completions)


def prompt_text(work: Work) -> str:
    """The benchmark's prompt in `words`."""
    return " ".join(map(str, work.prompts(1)[0]))


def words(work: Work) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer whose words are the ids themselves: "17" is token 17."""
    vocabulary = {str(i): i for i in range(work.model.vocabulary_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=str(work.end_of_text), pad_token="0", padding_side="left"
    )


def open_trl(work: Work, device: str) -> Trl:
    """`device` is a name for torch, or auto."""
    return Trl(work, device)
