"""How good a model is: losses on two fixed yardsticks, and what its headlines are like.

Every stage is measured on the same two sets of titles, which no stage trains on: `validation`
(all of the language) and `portugal` (the validation titles of SFT: by default those with `.pt/`
in their address). How Portuguese-from-Portugal a model is shows as its loss on the second: the
original reports the same number, and it needs no second model. Rewards and shares are counted
over completions of GRPO's prompts, sampled as GRPO samples.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from faisca.backend import Model, Sampling
from faisca.config import Config
from faisca.data.conversations import Conversations
from faisca.data.headlines import Titles
from faisca.data.windows import evaluation_batches, target_bytes
from faisca.rewards.advantages import mean_and_deviation
from faisca.rewards.built_in import football, share
from faisca.rewards.samples import Samples
from faisca.runs.measures import Measures
from faisca.streams import uniforms
from faisca.text import titles_name
from faisca.training.generate import complete, complete_together, encode_prompt, headline, rollout_sampling
from faisca.training.setup import Setup


@dataclass(frozen=True)
class Yardstick:
    """Validation titles, tokenised, or conversations, with the shape in which they are evaluated."""

    tokens: np.ndarray | Conversations
    window: int
    batch_size: int

    def batches(self, most: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Inputs and targets, int32 [B, T] each, of the first `most` batches, or of all."""
        if isinstance(self.tokens, Conversations):
            return self.tokens.evaluation_batches(self.batch_size, most)
        return evaluation_batches(self.tokens, window=self.window, batch_size=self.batch_size, most=most)


def make_yardsticks(
    config: Config, titles: Titles, tokenise: Callable[[pa.Array, str], np.ndarray]
) -> dict[str, Yardstick]:
    """Both yardsticks; `tokenise` takes titles and a label for the progress."""
    yardsticks = {}
    kind = titles_name(config.sft.url_contains)
    for name, stage, words in (("validation", "pretrain", ""), ("portugal", "sft", f"{kind} ")):
        stage_config = getattr(config, stage)
        tokens = tokenise(titles[stage][1], f"tokenising {words}validation titles")
        rows = stage_config.micro_batch_size or stage_config.batch_size
        yardsticks[name] = Yardstick(tokens, config.data.window, rows)
    return yardsticks


def measure_loss(setup: Setup, model: Model, yardstick: Yardstick, most: int | None = None) -> tuple[float, float]:
    """Mean loss (nats a token) and bits per byte over a yardstick, or over its first `most` batches.

    Bits per byte compare models with different tokenizers; an end-of-text counts as one byte, the
    line break that it stands for.
    """
    # Sums, not means of means: the last batch is smaller, and its tokens count no more than others.
    sizes, sums, processes = setup.tokenizer.bytes_per_token(), list[float](), setup.processes.apart
    tokens, size = 0, 0
    for i, (inputs, targets) in enumerate(yardstick.batches(most)):
        if i % processes.size == processes.rank:  # processes take turns
            sums.append(setup.backend.evaluate(model=model, inputs=inputs, targets=targets))
        tokens += int((targets >= 0).sum())
        size += target_bytes(targets, sizes)
    total = sum(processes.in_turn(sums))
    return total / tokens, total / math.log(2) / size


def show_samples(setup: Setup, model: Model, step: int = 0) -> list[str]:
    """A few headlines from `sample.prompt`, as the run shows them."""
    sample = setup.config.sample
    prompt = encode_prompt(setup.tokenizer, sample.prompt, setup.model_config.context)
    sampling = Sampling(sample.temperature, sample.top_k, sample.top_p, sample.max_new_tokens)
    # Each step draws anew, so that a run does not show the same headline all along.
    draws = uniforms(setup.seed, "samples shown", step=step, rows=sample.count, columns=sample.max_new_tokens)
    completions = complete(setup, model, [prompt] * sample.count, sampling, draws)
    return [headline(setup.tokenizer, sample.prompt, completion) for completion in completions]


def count_completions(setup: Setup, model: Model) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts and completions (token ids) over which shares are counted, always the same draws."""
    grpo, rows = setup.config.grpo, setup.config.sample.counted
    tasks = setup.tasks.in_turn(rows)
    prompts = [encode_prompt(setup.tokenizer, task.prompt, setup.model_config.context) for task in tasks]
    # Always step 0: two models are compared on the same draws.
    draws = uniforms(setup.seed, "completions counted", step=0, rows=rows, columns=grpo.max_new_tokens)
    return prompts, complete_together(setup, model, prompts, rollout_sampling(grpo), draws)


def measure(setup: Setup, model: Model, yardsticks: Mapping[str, Yardstick]) -> Measures:
    """All that the summary says of a model at one moment."""
    # Two losses on titles that no stage trains on.
    loss, bits = measure_loss(setup, model, yardsticks["validation"])
    portugal, _ = measure_loss(setup, model, yardsticks["portugal"])
    # What it writes for GRPO's prompts, sampled as GRPO samples: the completion alone is judged.
    prompts, completions = count_completions(setup, model)
    texts = list(map(setup.tokenizer.decode, completions, prompts))
    mean, deviation = None, None
    if setup.reward is not None:
        given = Samples.of_tasks(setup.tasks.in_turn(len(texts)), texts, completions)
        mean, deviation = mean_and_deviation(setup.score(given).total)
    return Measures(
        validation_loss=loss,
        bits_per_byte=bits,
        portugal_validation_loss=portugal,
        football_share=share(football(texts)),
        distinct_share=len(set(texts)) / len(texts),
        samples=show_samples(setup, model),
        reward=mean,
        reward_std=deviation,
    )


def kl_divergence(log_probs: np.ndarray, reference: np.ndarray, mask: Sequence[Any] | np.ndarray) -> float:
    """Masked mean of the k3 estimate of KL(policy ‖ reference) over sampled tokens, in nats."""
    log_rho = np.where(mask, np.asarray(reference, np.float64) - log_probs, 0.0)
    return float((np.exp(log_rho) - log_rho - 1).sum() / max(1, np.sum(mask)))
