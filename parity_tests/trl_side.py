"""TRL's GRPOTrainer as a calculator: its own code for advantages, corrections and losses, on arrays that are given.

The trainer is made without `__init__`, which wants a model, a data set and an accelerator; what the two methods read
of it is set here. Only the forward pass, the sampler and the rewards are stand-ins, for they are what is given.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from trl import GRPOTrainer, RLOOTrainer

from faisca.config import GRPOConfig

END, PADDING = 1, 0


def make_trainer(config: GRPOConfig, micro_batches: int = 1, kind: type = GRPOTrainer, **more: Any) -> Any:
    """A trainer with TRL's names for the options of a configuration; `more`: other attributes."""
    trainer: Any = object.__new__(kind)
    loss_type = config.objective if config.objective in ("cispo", "sapo") else config.loss
    trainer.args = SimpleNamespace(
        use_bias_correction_kl=config.kl_bias_correction,
        delta=config.delta or None,
        sapo_temperature_pos=config.sapo_temperature_pos,
        sapo_temperature_neg=config.sapo_temperature_neg,
        steps_per_generation=micro_batches,
        gradient_accumulation_steps=micro_batches,
        gradient_checkpointing_kwargs=None,
        per_device_train_batch_size=64,
    )
    one = SimpleNamespace(num_processes=1, process_index=0, sync_gradients=True, device=torch.device("cpu"))
    one.is_main_process, one.gather = True, lambda value: value
    one.reduce = lambda value, reduction: value
    attributes = {
        "accelerator": one,
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "loss_type": loss_type,
        "importance_sampling_level": config.importance,
        "epsilon_low": config.clip_low,
        "epsilon_high": config.cispo_cap if loss_type == "cispo" else config.clip_high,
        "beta": config.kl_weight,
        "_entropy_bonus_enabled": config.entropy_weight > 0,
        "entropy_coef": config.entropy_weight,
        "use_adaptive_entropy": False,
        "max_completion_length": config.max_new_tokens,
        "current_gradient_accumulation_steps": micro_batches,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "aux_loss_enabled": False,
        "use_vllm": config.rollout_correction in ("token", "sequence"),
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": f"{config.rollout_correction}_truncate",
        "vllm_importance_sampling_clip_min": None,
        "vllm_importance_sampling_clip_max": config.rollout_correction_cap,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "scale_rewards": config.scale_rewards,
        "num_generations": config.group_size,
        "num_iterations": 1,
        "mask_truncated_completions": config.mask_truncated,
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_weights": torch.ones(1),
        "reward_func_names": ["given"],
        "_logs": defaultdict(lambda: defaultdict(list), prompt=[], completion=[], advantages=[]),
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "_is_vlm": False,
        "pad_to_multiple_of": None,
        "_tokenizer": SimpleNamespace(pad_token_id=PADDING),
        "eos_token_ids": [END],
        "ref_model": None,
        "reward_clip_range": None,
        "normalize_advantages": False,
    }
    vars(trainer).update(attributes | more)
    return trainer


def loss_and_gradient(
    config: GRPOConfig, fixture: SimpleNamespace, weights: np.ndarray | None = None, micro_batches: int = 1
) -> tuple[float, np.ndarray, dict[str, float]]:
    """`_compute_loss` of a fixture's micro-batches, added up; its gradient of the log-probabilities; its metrics.

    `weights`: those of the rollout's correction.
    """
    log_probs = torch.tensor(fixture.log_probs, requires_grad=True)
    arrays = {
        name: torch.tensor(getattr(fixture, name)) for name in ("old", "reference", "mask", "advantages", "entropies")
    }
    total = torch.zeros(())
    trainer = make_trainer(config, micro_batches)
    for rows in torch.arange(len(log_probs)).reshape(micro_batches, -1):
        part = {name: value[rows] for name, value in arrays.items()}
        trainer._get_per_token_logps_and_entropies = lambda *_, rows=rows, part=part, **__: (
            log_probs[rows],
            part["entropies"],
            None,
        )
        inputs = {
            "prompt_ids": torch.zeros(len(rows), 1),
            "prompt_mask": torch.ones(len(rows), 1),
            "completion_ids": torch.zeros_like(part["mask"]),
            "completion_mask": part["mask"],
            "advantages": part["advantages"],
            "old_per_token_logps": part["old"],
            "ref_per_token_logps": part["reference"],
            "num_items_in_batch": torch.tensor(fixture.step_tokens),
        }
        if weights is not None:
            inputs["importance_sampling_ratio"] = torch.tensor(weights)[rows]
        total = total + trainer._compute_loss(None, inputs)
    total.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return total.item(), log_probs.grad.numpy(), metrics


def scored(
    config: GRPOConfig,
    completions: list[list[int]],
    rewards: np.ndarray,
    old: np.ndarray | None = None,
    sampled: list[list[float]] | None = None,
    kind: type = GRPOTrainer,
) -> tuple[dict[str, Any], dict[str, float]]:
    """`_generate_and_score_completions` of completions that are given: what the loss gets, and its metrics."""
    B = len(completions)

    def generate(prompts: list[Any]) -> tuple[Any, ...]:
        if kind is RLOOTrainer:
            return [[7]] * B, completions, completions
        return [[7]] * B, completions, None, completions, sampled, {}, None, None

    trainer = make_trainer(
        config,
        kind=kind,
        beta=0.0,
        _generate=generate,
        _calculate_rewards=lambda *_: torch.tensor(rewards)[:, None],
        _get_per_token_logps_and_entropies=lambda *_, **__: (torch.tensor(old), None, None),
    )
    output = trainer._generate_and_score_completions([{"prompt": ""}] * B)
    return output, {name: values[-1] for name, values in trainer._metrics["train"].items()}
