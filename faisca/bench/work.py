"""What `faisca bench` measures: the work, the same for every backend and baseline, and how it is counted.

Everything is made of numbers that the preset names and of seeded random ones, so no headlines,
tokenizer or network are needed. Weights are initial values, except that end-of-text gets a
logit of its own: never, or as often as it comes after a headline's tokens.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tiktoken

from faisca.backend import Sampling
from faisca.config import Config, ModelConfig, TrainConfig
from faisca.config.files import layered_sections
from faisca.data.byte_level import END_OF_TEXT
from faisca.data.tokenizer import Tokenizer, expected_tokens
from faisca.parameters import Parameters, initial_parameters, parameter_shapes
from faisca.streams import generator

HEADLINE_TOKENS = 20
"""tokens in a headline, its end-of-text included: what rows that end are as long as, on average"""
PROMPT_TOKENS = 4
LONG_PROMPT = 512
"""tokens of the prompt that `prefill` reads"""
NEVER = -60.0
"""what end-of-text's logit is below the others, or half of it, where rows never end"""
WRITERS = ("attention.out_proj", "feed_forward.down", "feed_forward.experts.down", "feed_forward.shared.down")
"""modules of a block that write to the residual stream"""
Train = TypeVar("Train", bound=TrainConfig)
QUICK = {"windows": 8, "completions": 8, "new_tokens": 32}
"""the largest sizes of `--quick`"""
PEAK_SIZE = 2048
"""side of the square matrices whose product is the peak; --quick takes half"""


@dataclass(frozen=True)
class Work:
    """The work of one preset, or of a file laid on it, full or quick."""

    config: Config
    model: ModelConfig
    quick: bool
    file: str = ""
    """name of the TOML file whose sizes these are, where there is one"""

    def describe(self) -> dict[str, Any]:
        """The numbers that two results must share to be comparable."""
        train = {
            stage: {
                name: getattr(getattr(self.config, stage), name)
                for name in ("batch_size", "micro_batch_size", "decay", "clip_norm")
            }
            for stage in ("pretrain", "sft")
        }
        grpo, sample = self.config.grpo, self.config.sample
        return {
            "preset": " + ".join(filter(None, [self.config.preset, self.file])),
            "quick": self.quick,
            "model": asdict(self.model),
            "window": self.config.data.window,
            **train,
            "grpo": {
                name: getattr(grpo, name)
                for name in ("group_size", "prompts_per_step", "max_new_tokens", "epochs", "minibatch_size", "top_k")
            },
            "sample": {name: getattr(sample, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p")},
        }

    @property
    def end_of_text(self) -> int:
        """Its token id: the last."""
        return self.model.vocabulary_size - 1

    def tokenizer(self) -> Tokenizer:
        """A vocabulary of as many tokens as the model's; which ones they are does not matter to speed."""
        ranks = {i.to_bytes(1 if i < 256 else 3): i for i in range(self.end_of_text)}
        special = {END_OF_TEXT: self.end_of_text}
        return Tokenizer("bpe", tiktoken.Encoding("bench", pat_str=".", mergeable_ranks=ranks, special_tokens=special))

    @property
    def completions(self) -> int:
        """Rows of a rollout."""
        return self.config.grpo.group_size * self.config.grpo.prompts_per_step

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of a training step: int32 [B, T] random ids."""
        shape = (self.config.pretrain.batch_size, self.config.data.window + 1)
        ids = generator(0, "bench pretrain").integers(self.model.vocabulary_size, size=shape, dtype=np.int32)
        return ids[:, :-1], ids[:, 1:]

    def prompts(self, rows: int) -> list[list[int]]:
        """The same short prompt for each row, end-of-text first."""
        return [[self.end_of_text, *range(1, PROMPT_TOKENS)]] * rows

    def long_prompt(self) -> list[list[int]]:
        """One prompt of LONG_PROMPT random ids."""
        ids = generator(0, "bench prefill").integers(self.end_of_text, size=LONG_PROMPT)
        return [[int(token) for token in ids]]

    @property
    def has_prefill(self) -> bool:
        """Whether the context holds a long prompt and a token more."""
        return self.model.context > LONG_PROMPT

    def sampling(self) -> Sampling:
        """As `faisca generate` samples, no further than the context."""
        sample = self.config.sample
        most = min(sample.max_new_tokens, self.model.context - PROMPT_TOKENS)
        return Sampling(sample.temperature, sample.top_k, sample.top_p, most)

    def parameters(self, *, rows_end: bool = False) -> Parameters:
        """Initial weights; rows never end, or with `rows_end` after HEADLINE_TOKENS on average.

        End-of-text's row of the head reads nothing but the final norm's first output, which tells nothing of the text.
        """
        parameters = initial_parameters(replace(self.model, tie_embeddings=False), 0)
        head = parameters["out_head.weight"]
        head[:, 0], head[-1] = 0.0, 0.0
        others = len(head) * math.exp(head.var() * self.model.dim / 2)  # sum of exp x, the logits x normal
        if self.model.norm == "layer":
            parameters["final_layer_norm.weight"][0], parameters["final_layer_norm.bias"][0] = 0.0, 1.0
            scale = 1.0
        else:
            scale, others = _mark_stream(parameters, self.model, rows_end), len(head) - 1
        head[-1, 0] += scale * (math.log(others / (HEADLINE_TOKENS - 1)) if rows_end else NEVER)
        if self.model.tie_embeddings:
            parameters["token_embedding.weight"] = parameters.pop("out_head.weight")
        return {name: parameters[name] for name in parameter_shapes(self.model)}


@dataclass(frozen=True)
class TimedCase:
    """Something that is timed. With an amount it is reported as amount a second, else in seconds."""

    title: str
    unit: str
    amount: Callable[[Work], float] | None = None

    def value(self, work: Work, seconds: float) -> float:
        """What is reported of a run that took so long."""
        return self.amount(work) / seconds if self.amount else seconds


def make_work(preset: str | None, *, quick: bool, file: Path | None = None) -> Work:
    """The work of a preset, or of a TOML file on one; `quick` cuts its batches and lengths to QUICK."""
    config = Config(**layered_sections(preset, file))
    if quick:
        config = _quick(config)
    tokens = expected_tokens(config.tokenizer)
    model = replace(config.model, vocabulary_size=config.model.vocabulary_size or tokens)
    most = min(config.grpo.max_new_tokens, model.context - PROMPT_TOKENS)
    return Work(
        replace(config, grpo=replace(config.grpo, max_new_tokens=most)), model, quick, file.name if file else ""
    )


def _mark_stream(parameters: Parameters, model: ModelConfig, rows_end: bool) -> float:
    """Without a bias in the final norm: the residual stream's first number is the same at every token.

    Its norm is above 0, and with `rows_end` 1 over what is returned, to 1e-4: the number is so large that it alone
    decides the size, and the norm hands on nothing else.
    """
    mark = 100 * math.sqrt(model.dim) if rows_end else 1.0
    for name, value in parameters.items():
        if name.startswith("transformer_blocks.") and name.split(".", 2)[2].startswith(WRITERS):
            (value.swapaxes(0, 1) if value.ndim == 3 else value)[0] = 0.0  # experts lie in stacks
    if model.positions == "learned":
        parameters["positional_embedding.weight"][:, 0] = 0.0
    parameters["out_head.weight" if model.tie_embeddings else "token_embedding.weight"][:, 0] = mark
    if rows_end:
        norm = parameters["final_layer_norm.weight"]
        norm[:], norm[0] = 0.0, 1 / (mark * math.sqrt(model.dim))
    return mark


def training_tokens(work: Work) -> int:
    """Tokens in one training step."""
    return work.config.pretrain.batch_size * work.config.data.window


def peak_size(work: Work) -> int:
    """Side of the square matrices that are multiplied for the peak."""
    return PEAK_SIZE // 2 if work.quick else PEAK_SIZE


def _quick(config: Config) -> Config:
    def smaller(train: Train) -> Train:
        windows = min(train.batch_size, QUICK["windows"])
        return replace(train, batch_size=windows, micro_batch_size=min(train.micro_batch_size, windows))

    grpo = config.grpo
    group = min(grpo.group_size, QUICK["completions"])
    return replace(
        config,
        pretrain=smaller(config.pretrain),
        sft=smaller(config.sft),
        grpo=replace(
            grpo,
            group_size=group,
            minibatch_size=min(grpo.minibatch_size, group // 2),
            max_new_tokens=min(grpo.max_new_tokens, QUICK["new_tokens"]),
        ),
        sample=replace(config.sample, max_new_tokens=min(config.sample.max_new_tokens, QUICK["new_tokens"])),
    )


CASES = {
    "pretrain": TimedCase("pre-training step", "tokens/s", training_tokens),
    "rollout": TimedCase(
        "rollout, full rows", "tokens/s", lambda work: work.completions * work.config.grpo.max_new_tokens
    ),
    "grpo_full": TimedCase("GRPO step, full rows", "s"),
    "grpo_once": TimedCase("GRPO step, full rows, one update", "s"),
    "grpo_ending": TimedCase("GRPO step, rows that end", "s"),
    "generate_1": TimedCase("generation, 1 row", "tokens/s", lambda work: work.sampling().max_new_tokens),
    "generate_16": TimedCase("generation, 16 rows", "tokens/s", lambda work: 16 * work.sampling().max_new_tokens),
    "generate_24": TimedCase("generation, 24 rows", "tokens/s", lambda work: 24 * work.sampling().max_new_tokens),
    "generate_64": TimedCase("generation, 64 rows", "tokens/s", lambda work: 64 * work.sampling().max_new_tokens),
    "first_token": TimedCase("time to the first token", "s"),
    "prefill": TimedCase(f"prefill of {LONG_PROMPT} tokens", "tokens/s", lambda work: LONG_PROMPT),
    "peak": TimedCase("matrix product, peak", "FLOP/s", lambda work: 2.0 * peak_size(work) ** 3),
    "products": TimedCase("the step's matrix products alone", "s"),
}
"""What is timed in interleaved rounds, in the order of the table.

`pretrain` stands for SFT as well: in every preset, a step of either has the same size and the same options.
"""
