"""The sections of a configuration: frozen dataclasses; each field states its range beside its meaning.

Defaults are those of the `spark` preset; other presets are the TOML files in `presets/`, which
have the same sections and names.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from faisca.backends import BACKENDS
from faisca.config.optimizer import LoRAConfig, OptimizerConfig
from faisca.config.ranges import Count, CountOrOff, NotNegative, Positive, Range, Share

COLDEST = 1e-6
"""temperatures below are 0: logits divided by them leave float32, and what they would tell apart is rounding"""
STAGES = ("pretrain", "sft", "grpo")

if TYPE_CHECKING:
    BackendName = str
    DeviceName = str
else:  # checked, and listed in the help, as the table of backends has them
    BackendName = Literal[("auto", *BACKENDS)]
    DeviceName = Literal[("auto", "cpu", "gpu", *dict.fromkeys(d for row in BACKENDS.values() for d in row.devices))]


@dataclass(frozen=True)
class TokenizerConfig:
    """How titles become token ids."""

    kind: Literal["bpe", "gpt2", "json"] = "bpe"
    """bpe: a byte-level BPE trained on the training titles; gpt2: tiktoken's 50,257 tokens; json: a ported model's"""
    vocabulary_size: CountOrOff = 4096
    """tokens of a trained BPE, end-of-text included (gpt2 has its own number)"""


@dataclass(frozen=True)
class DataConfig:
    """Where headlines come from and how they are cut into windows."""

    source: str = "sample"
    """sample (embedded, synthetic), hub, hub:OWNER/NAME, or a local file or folder"""
    title_column: str = "title"
    """column that holds the headline"""
    language_column: str = "language"
    """column that holds the ISO language code"""
    url_column: str = "requested_url"
    """column that holds the address"""
    language: str = "pt"
    """keep titles in this language; empty keeps all (and needs no language column)"""
    max_title_characters: Count = 1000
    """longer titles are no headlines: they are dropped, and counted"""
    validation_share: Share = 0.05
    """share of titles held out where the source has no validation split of its own"""
    window: Count = 64
    """tokens in a training window"""
    stride: Count = 64
    """tokens from the start of a training window to the start of the next"""


@dataclass(frozen=True)
class TrainConfig(OptimizerConfig):
    """Pre-training or supervised fine-tuning on packed windows."""

    url_contains: str = ""
    """keep only titles whose address contains this; empty keeps all"""
    max_titles: CountOrOff = 0
    """training titles at most; 0 takes all"""
    max_validation_titles: CountOrOff = 0
    """validation titles at most; 0 takes all"""
    epochs: Count = 3
    """passes over the training windows"""
    max_steps: CountOrOff = 0
    """stop after this many optimiser steps; 0 runs all epochs"""
    batch_size: Count = 32
    """windows in an optimiser step"""
    micro_batch_size: CountOrOff = 0
    """windows computed at a time, their gradients accumulated; 0 takes the whole batch at once"""
    evaluate_every: CountOrOff = 50
    """steps between evaluations; 0 evaluates only before and after the stage"""
    evaluation_batches: Count = 5
    """batches of each validation set in the evaluations along the way"""


@dataclass(frozen=True)
class SFTConfig(LoRAConfig, TrainConfig):
    """Supervised fine-tuning: on titles of one kind, or on the answers in conversations."""

    conversations: str = ""
    """a JSONL file, a conversation a line (messages, or prompt and completion), instead of titles; the loss is on
    answers alone, and data.window is the longest conversation, in tokens"""


@dataclass(frozen=True)
class GRPOConfig(LoRAConfig, OptimizerConfig):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300)."""

    learning_rate: Positive = 1e-4
    schedule: Literal["constant", "cosine", "wsd"] = "constant"
    warmup_steps: CountOrOff = 5
    weight_decay: NotNegative = 0.0
    steps: Count = 40
    """rollout-and-update rounds"""
    prompts: tuple[str, ...] = ("",)
    """what rollouts begin with, or a file of lines; "" starts a headline; a space at the end is left out"""
    prompts_file: str = ""
    """instead of prompts a JSONL file: prompt or messages, and columns for rewards; each pass in another order"""
    prompts_per_step: Count = 1
    """prompts in a step, taken in turn; each has a group of its own"""
    group_size: Count = 24
    """completions of one prompt; advantages compare them with one another"""
    max_new_tokens: Count = 32
    """longest completion, in tokens"""
    temperature: Annotated[float, Range(least=COLDEST)] = 1.0
    """temperature of the rollout, and of the log-probabilities that the loss compares"""
    top_k: CountOrOff = 0
    """sample among the k likeliest tokens; 0 is off: top-k biases the importance ratio"""
    rollout_batch: CountOrOff = 0
    """completions sampled at a time, which changes none of them; 0 takes 64"""
    epochs: Count = 2
    """passes over a step's rollouts"""
    minibatch_size: Count = 12
    """completions in one update"""
    micro_batch_size: CountOrOff = 0
    """completions computed at a time; 0 is the whole minibatch"""
    reward: tuple[str, ...] = ("football",)
    """one or several of football, keywords:WORD,SOME PHRASE (commas between), regex:PATTERN, length:20-90 (characters),
    distinct, exact:COLUMN, FILE.py:FUNCTION (completions, prompts, **columns -> one number each); docs/rewards.md"""
    reward_weights: tuple[float, ...] = ()
    """what each reward counts in their sum; 1 where none are given"""
    reward_timeout: NotNegative = 0.0
    """seconds for a call of a reward, which is ended then and its completions have none; 0 waits"""
    reward_workers: CountOrOff = 0
    """processes that compute rewards, which are the same with any number; 0 is none, or one where there is a timeout"""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """what the advantages are divided by: standard deviation of the group, of the batch, or nothing"""
    baseline: Literal["group", "leave_one_out", "none"] = "group"
    """what a reward is compared with: the group's mean, the mean of the others (RLOO), or nothing (REINFORCE)"""
    loss: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    """how per-token losses are averaged; with micro-batches, bnpo counts the tokens of each, dapo those of all"""
    objective: Literal["clip", "cispo", "sapo", "gmpo", "reinforce"] = "clip"
    """PPO's clipped surrogate, CISPO's clipped weights, SAPO's soft gate, GMPO's geometric mean, or log p alone"""
    importance: Literal["token", "sequence"] = "token"
    """importance ratio per token, or one a sequence (GSPO)"""
    clip_low: NotNegative = 0.2
    """the ratio is clipped at 1 - clip_low (GMPO: its logarithm at -clip_low)"""
    clip_high: NotNegative = 0.2
    """and at 1 + clip_high (GMPO: its logarithm at clip_high)"""
    delta: NotNegative = 0.0
    """two-sided clipping: largest ratio where the advantage is negative; 0 is off"""
    cispo_cap: Positive = 5.0
    """largest importance weight of CISPO"""
    sapo_temperature_pos: Positive = 1.0
    """how steep SAPO's gate is where the advantage is positive"""
    sapo_temperature_neg: Positive = 1.05
    """and where it is not"""
    kl_weight: NotNegative = 0.05
    """weight of the k3 KL divergence to the reference model"""
    kl_bias_correction: bool = False
    """weigh the KL divergence by the importance ratio: its gradient is then that of the policy's own divergence"""
    entropy_weight: NotNegative = 0.0
    """weight of the entropy bonus: mean entropy of a token, taken from the loss"""
    rollout_correction: Literal["auto", "off", "token", "sequence"] = "auto"
    """weigh completions by how likely the trainer finds what the sampler drew; auto: token in bfloat16, else off"""
    rollout_correction_cap: Positive = 3.0
    """largest such weight"""
    mask_truncated: bool = False
    """leave completions that never reached end-of-text out of the loss"""
    save_completions: bool = True
    """write every completion, with its rewards, to completions.jsonl in the run's folder"""

    def __post_init__(self) -> None:
        if isinstance(self.reward, str):  # one name, as older files and a quick hand have it
            object.__setattr__(self, "reward", (self.reward,))


@dataclass(frozen=True)
class SampleConfig:
    """Headlines shown along the way, and those that are counted."""

    prompt: str = "Presidente"
    """what the shown headlines begin with; a space at its end is left out: tokens bring their own"""
    count: Count = 3
    """headlines shown before and after each stage"""
    counted: Count = 200
    """headlines over which the football and distinct shares are measured"""
    max_new_tokens: Count = 32
    """longest headline, in tokens"""
    temperature: NotNegative = 0.5
    """0 takes the likeliest token each time"""
    top_k: CountOrOff = 30
    """sample among the k likeliest tokens; 0 is off"""
    top_p: Annotated[float, Range(above=0, most=1)] = 1.0
    """sample among the likeliest tokens that together have this probability; 1 is off"""


@dataclass(frozen=True)
class RunConfig:
    """Where and how a run computes, logs and saves."""

    seed: Annotated[int, Range(least=0, below=2**63)] = 1337
    """every random number of the run derives from it"""
    stages: tuple[str, ...] = STAGES
    """which stages to run, in order"""
    backend: BackendName = "auto"
    """auto: mlx on Apple silicon, torch elsewhere"""
    device: DeviceName = "auto"
    """auto: the fastest that the backend finds; gpu: whichever GPU there is"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """what activations are computed in; weights and optimiser state stay float32"""
    weights: Literal["float32", "bfloat16"] = "float32"
    """what the blocks' matrices are kept in where nothing trains them: GRPO's reference, an adapter's base"""
    compile: Literal["auto", "on", "off"] = "auto"
    """compile the training step; auto does so where it pays"""
    loss_chunk: CountOrOff = 0
    """rows of logits alive at a time in the loss; 0 takes what was fastest: 512 for torch, 128 for MLX"""
    attention: Literal["fused", "explicit"] = "fused"
    """one fused kernel, or scores, softmax and product one after the other: slower, and the scores take memory"""
    preflight: Literal["auto", "on", "off"] = "auto"
    """compare the stage's own steps with the CPU before the first one: losses, gradients, update, rollout; auto does so
    on every GPU; where they differ another way is taken that does not, or the stage is refused"""
    gradient_checkpointing: bool = False
    """recompute each block in the backward pass: less memory, more time"""
    cache_limit_gb: NotNegative = 0.0
    """cap of MLX's buffer cache in GiB; 0 leaves it free, which is faster"""
    log_every: Count = 10
    """steps between lines of progress; reading metrics waits for the device"""
    checkpoint_every: CountOrOff = 0
    """steps between checkpoints; 0 saves at the end of each stage"""
    keep: Count = 3
    """checkpoints kept along the way, newest first; ends of stages always stay"""
    max_bad_steps: Count = 10
    """stop after this many steps in a row whose loss or gradient is not finite"""
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """what gradients travel in between processes: bfloat16 halves the bytes, and rounds"""
    shard: bool = False
    """of several processes, each keeps a part of weights, gradients and moments: for models that do not fit (torch)"""
    tracker: Literal["none", "trackio", "wandb", "tensorboard", "mlflow"] = "none"
    """where else metrics, samples and charts go, see docs/trackers.md; its library is installed apart"""
