"""What values may not be together: the rules between options, each with the remedy in its message."""

from dataclasses import fields

from faisca.config.model import ModelConfig
from faisca.config.optimizer import OptimizerConfig
from faisca.config.sections import (
    STAGES,
    DataConfig,
    GRPOConfig,
    RunConfig,
    SFTConfig,
    TokenizerConfig,
    TrainConfig,
)
from faisca.errors import FaiscaError

EXPERTS = tuple(
    "experts_per_token expert_dim shared_expert_dim normalise_experts balance_weight router_z_weight".split()
)
"""options of ModelConfig that need `num_experts`"""
TARGETS = ("query", "key", "value", "output", "gate", "up", "down", "experts")
"""what of a block may have an adapter, in forward order; experts: the matrices of all of them"""


def check_model(model: ModelConfig, tokenizer: TokenizerConfig) -> None:
    """Heads must divide the width, pairs of numbers turn, and a byte-level BPE needs its bytes."""
    if model.dim % model.num_heads and not model.head_dim:
        fitting = max(n for n in range(1, model.num_heads + 1) if model.dim % n == 0)
        raise FaiscaError(
            f"model.dim {model.dim} is not divisible by model.num_heads {model.num_heads}: "
            f"try --model.num-heads {fitting}"
        )
    if model.num_heads % model.kv_heads:
        fitting = max(n for n in range(1, model.kv_heads + 1) if model.num_heads % n == 0)
        raise FaiscaError(
            f"model.num_kv_heads {model.num_kv_heads} does not divide model.num_heads {model.num_heads}: "
            f"try --model.num-kv-heads {fitting}"
        )
    if model.qk_norm_over == "all" and not model.qk_norm:
        raise FaiscaError("model.qk_norm_over all means nothing without model.qk_norm: add --model.qk-norm")
    check_positions(model)
    check_experts(model)
    if tokenizer.kind == "bpe" and tokenizer.vocabulary_size < 257:
        raise FaiscaError(
            f"tokenizer.vocabulary_size {tokenizer.vocabulary_size} is too small for a byte-level "
            "BPE: use at least 257 (256 bytes and <|endoftext|>)"
        )


def check_positions(model: ModelConfig) -> None:
    """Rotation turns pairs of numbers, and its options mean nothing without it."""
    if model.positions == "rope":
        if model.head_width % 2:
            raise FaiscaError(
                f"model.positions rope turns pairs of numbers, and heads are {model.head_width} wide: "
                f"try --model.head-dim {model.head_width + 1}"
            )
        if model.rope_factor > 1 and model.rope_low_frequency >= model.rope_high_frequency:
            raise FaiscaError(
                f"model.rope_low_frequency {model.rope_low_frequency:g} is not below model.rope_high_frequency "
                f"{model.rope_high_frequency:g}: Llama 3 has 1 and 4"
            )
        return
    for option in fields(model):
        if option.name.startswith("rope_") and getattr(model, option.name) != option.default:
            raise FaiscaError(
                f"model.{option.name} {getattr(model, option.name):g} means nothing with learned positions: "
                "add --model.positions rope, or leave it out"
            )


def check_experts(model: ModelConfig) -> None:
    """A token's experts are among those there are and have no biases; without experts, their options mean nothing."""
    if model.num_experts:
        if model.experts_per_token > model.num_experts:
            raise FaiscaError(
                f"model.experts_per_token {model.experts_per_token} is more than model.num_experts "
                f"{model.num_experts}: try --model.experts-per-token {model.num_experts}"
            )
        if model.feed_forward_bias:
            raise FaiscaError(
                f"model.num_experts {model.num_experts}: experts have no biases: add --model.no-feed-forward-bias"
            )
        return
    for option in fields(model):
        if option.name in EXPERTS and getattr(model, option.name) != option.default:
            raise FaiscaError(
                f"model.{option.name} {getattr(model, option.name)} means nothing without experts: "
                "add --model.num-experts 8, or leave it out"
            )


def check_data(data: DataConfig, model: ModelConfig) -> None:
    """Windows must fit the context; the source and its title column must be named."""
    if data.window > model.context:
        raise FaiscaError(
            f"data.window {data.window} is larger than model.context {model.context}: use --data.window "
            f"{model.context} --data.stride {model.context}, or for a new model at least --model.context {data.window}"
        )
    for name in ("source", "title_column"):
        if not getattr(data, name):
            raise FaiscaError(f"data.{name} is empty: name one")


def check_training(name: str, stage: TrainConfig) -> None:
    """Micro-batches must divide a batch."""
    check_optimizer(name, stage)
    if stage.micro_batch_size and stage.batch_size % stage.micro_batch_size:
        raise FaiscaError(
            f"{name}.batch_size {stage.batch_size} is not a multiple of {name}.micro_batch_size "
            f"{stage.micro_batch_size}: choose a divisor of {stage.batch_size}"
        )


def check_optimizer(name: str, stage: OptimizerConfig) -> None:
    """Options of Muon, and of a schedule with a decay, mean nothing without it."""
    wanted = {"optimizer": "muon", "schedule": "wsd"}
    needed = {"muon_learning_rate": "optimizer", "muon_momentum": "optimizer", "decay_share": "schedule"}
    for option in fields(OptimizerConfig):
        owner, value = needed.get(option.name, ""), getattr(stage, option.name)
        if owner and value != option.default and getattr(stage, owner) != wanted[owner]:
            raise FaiscaError(
                f"{name}.{option.name} {value:g} means nothing with {name}.{owner} {getattr(stage, owner)}: "
                f"add --{name}.{owner} {wanted[owner]}, or leave it out"
            )


def check_adapter(name: str, stage: SFTConfig | GRPOConfig, model: ModelConfig) -> None:
    """An adapter's matrices are among those there are; Muon moves whole matrices; without a rank there is none."""
    if not stage.lora_rank:
        for option in fields(type(stage)):
            value = getattr(stage, option.name)
            if option.name.startswith("lora_") and value != option.default:
                raise FaiscaError(
                    f"{name}.{option.name} {_listed(value)} means nothing without an adapter: add --{name}.lora-rank 8"
                )
        return
    if stage.optimizer == "muon":
        raise FaiscaError(
            f"{name}.optimizer muon moves whole matrices, and {name}.lora_rank {stage.lora_rank} trains an adapter "
            f"beside them: use --{name}.optimizer adamw"
        )
    there = possible_targets(model)
    unknown = [target for target in stage.lora_targets if target not in there]
    if stage.lora_targets != ("all",) and (unknown or not stage.lora_targets):
        raise FaiscaError(
            f"{name}.lora_targets {_listed(unknown)} is none of this model's matrices: choose all, or among "
            f"{' '.join(there)}"
        )
    if stage.lora_dora and "experts" in there and {"all", "experts"} & set(stage.lora_targets):
        raise FaiscaError(
            f"{name}.lora_dora is not for experts, whose matrices lie in stacks: leave it out, or name "
            f"{name}.lora_targets without experts"
        )


def possible_targets(model: ModelConfig) -> tuple[str, ...]:
    """Those of TARGETS that a model has."""
    lacking = set() if model.activation == "swiglu" else {"gate"}
    if not model.num_experts:
        lacking |= {"experts"}
    elif not model.shared_expert_dim:
        lacking |= {"gate", "up", "down"}
    return tuple(target for target in TARGETS if target not in lacking)


def check_recomputed(sft: SFTConfig, run: RunConfig) -> None:
    """What an adapter drops is drawn as it comes: a block that is computed again would drop something else."""
    if sft.lora_dropout and run.gradient_checkpointing:
        raise FaiscaError(
            f"sft.lora_dropout {sft.lora_dropout:g} does not go with run.gradient_checkpointing, which would draw it "
            "anew: leave one of them out"
        )


def _listed(value: object) -> str:
    return " ".join(map(str, value)) or "(none)" if isinstance(value, tuple | list) else str(value)


def check_grpo(grpo: GRPOConfig) -> None:
    """A group needs something to compare with, and minibatches must divide a step's completions."""
    check_optimizer("grpo", grpo)
    rollouts = grpo.group_size * grpo.prompts_per_step
    if not grpo.prompts:
        raise FaiscaError('grpo.prompts is empty: give at least one ("" starts a headline)')
    check_rewards(grpo)
    if grpo.group_size < 2:
        raise FaiscaError("grpo.group_size 1 leaves nothing to compare with: use at least 2")
    if rollouts % grpo.minibatch_size:
        raise FaiscaError(
            f"grpo.minibatch_size {grpo.minibatch_size} does not divide the {rollouts} completions of a "
            "step: choose a divisor"
        )
    if grpo.micro_batch_size and grpo.minibatch_size % grpo.micro_batch_size:
        raise FaiscaError(
            f"grpo.minibatch_size {grpo.minibatch_size} is not a multiple of grpo.micro_batch_size "
            f"{grpo.micro_batch_size}: choose a divisor of {grpo.minibatch_size}"
        )
    check_policy_loss(grpo)


def check_policy_loss(grpo: GRPOConfig) -> None:
    """What no objective can make sense of."""
    if grpo.baseline == "none" and grpo.scale_rewards != "none":
        raise FaiscaError(
            f"grpo.scale_rewards {grpo.scale_rewards} divides by a deviation from a mean, and grpo.baseline none has "
            "no mean: add --grpo.scale-rewards none"
        )
    if grpo.importance == "sequence" and grpo.objective in ("gmpo", "reinforce"):
        raise FaiscaError(
            f"grpo.importance sequence means nothing with grpo.objective {grpo.objective}: use token, or clip for GSPO"
        )
    if grpo.delta and grpo.objective != "clip":
        raise FaiscaError(f"grpo.delta {grpo.delta:g} means nothing with grpo.objective {grpo.objective}: leave it out")
    if grpo.delta and grpo.delta <= 1 + grpo.clip_high:
        raise FaiscaError(
            f"grpo.delta {grpo.delta:g} is not above 1 + grpo.clip_high {1 + grpo.clip_high:g}: choose a larger one"
        )


def check_rewards(grpo: GRPOConfig) -> None:
    """At least one reward, and as many weights where there are any."""
    if not grpo.reward:
        raise FaiscaError("grpo.reward is empty: name at least one, such as football")
    if grpo.reward_weights and len(grpo.reward_weights) != len(grpo.reward):
        raise FaiscaError(
            f"grpo.reward_weights has {len(grpo.reward_weights)} numbers for {len(grpo.reward)} rewards: give one each"
        )


def check_stages(stages: tuple[str, ...]) -> None:
    """Known stages, each once, in their order."""
    if not stages or list(stages) != [stage for stage in STAGES if stage in stages]:
        raise FaiscaError(
            f"run.stages {','.join(stages) or '(none)'} has an unknown name or another order: "
            f"choose among {','.join(STAGES)}, each once, in this order"
        )
