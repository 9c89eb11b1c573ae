"""How good a model is: losses on two fixed yardsticks, and what its headlines are like.

Every stage is measured on the same two sets of titles, which no stage trains on: `validation`
(all of the language) and `portugal` (the validation titles of SFT: by default those with `.pt/`
in their address). How Portuguese-from-Portugal a model is shows as its loss on the second: the
original reports the same number, and it needs no second model. The rewards, and the football and distinct shares, are
counted over completions of GRPO's prompts, sampled as GRPO samples.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from faisca.backend import Backend, Model, Sampling
from faisca.config import Config, GRPOConfig, SampleConfig
from faisca.data.headlines import Titles
from faisca.data.tokenizer import Tokenizer
from faisca.data.windows import evaluation_batches, target_bytes
from faisca.text import titles_name
from faisca.training.generate import complete, encode_prompt, headline
from faisca.training.rewards import Reward, football, mean_and_deviation, score, share


@dataclass(frozen=True)
class Yardstick:
    """Validation titles, tokenised, with the shape in which they are evaluated."""

    tokens: np.ndarray
    window: int
    batch_size: int


@dataclass(frozen=True)
class Bench:
    """What every measurement needs besides the model."""

    backend: Backend
    tokenizer: Tokenizer
    context: int
    seed: int
    sample: SampleConfig
    grpo: GRPOConfig
    reward: Reward | None = None
    """that of `grpo.reward`; None measures no reward"""


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


def measure_loss(bench: Bench, model: Model, yardstick: Yardstick, most: int | None = None) -> tuple[float, float]:
    """Mean loss (nats a token) and bits per byte over a yardstick, or over its first `most` batches.

    Bits per byte compare models with different tokenizers; an end-of-text counts as one byte, the
    line break that it stands for.
    """
    sizes = bench.tokenizer.bytes_per_token()
    total, tokens, size = 0.0, 0, 0
    batches = evaluation_batches(yardstick.tokens, window=yardstick.window, batch_size=yardstick.batch_size, most=most)
    for inputs, targets in batches:
        total += bench.backend.evaluate(model=model, inputs=inputs, targets=targets)
        tokens += int((targets >= 0).sum())
        size += target_bytes(targets, sizes)
    return total / tokens, total / math.log(2) / size


def show_samples(bench: Bench, model: Model, step: int = 0) -> list[str]:
    """A few headlines from `sample.prompt`, as the run shows them."""
    sample = bench.sample
    prompt = encode_prompt(bench.tokenizer, sample.prompt, bench.context)
    sampling = Sampling(sample.temperature, sample.top_k, sample.top_p, sample.max_new_tokens)
    completions = complete(
        bench.backend,
        model,
        [prompt] * sample.count,
        sampling,
        bench.tokenizer.end_of_text,
        seed=bench.seed,
        purpose="samples shown",
        step=step,
    )
    return [headline(bench.tokenizer, sample.prompt, completion) for completion in completions]


def count_completions(bench: Bench, model: Model) -> tuple[list[list[int]], list[list[int]]]:
    """The prompts and completions (token ids) over which shares are counted, always the same draws."""
    texts = [bench.grpo.prompts[i % len(bench.grpo.prompts)] for i in range(bench.sample.counted)]
    prompts = [encode_prompt(bench.tokenizer, text, bench.context) for text in texts]
    sampling = Sampling(bench.grpo.temperature, bench.grpo.top_k, 1.0, bench.grpo.max_new_tokens)
    completions = complete(
        bench.backend,
        model,
        prompts,
        sampling,
        bench.tokenizer.end_of_text,
        seed=bench.seed,
        purpose="completions counted",
    )
    return prompts, list(completions)


def measure(bench: Bench, model: Model, yardsticks: dict[str, Yardstick]) -> dict[str, Any]:
    """All that the summary says of a model at one moment."""
    loss, bits = measure_loss(bench, model, yardsticks["validation"])
    portugal, _ = measure_loss(bench, model, yardsticks["portugal"])
    texts = [bench.tokenizer.decode(completion) for completion in count_completions(bench, model)[1]]
    mean, deviation = None, None
    if bench.reward is not None:
        mean, deviation = mean_and_deviation(score(bench.reward, bench.grpo.reward, texts))
    return {
        "validation_loss": loss,
        "bits_per_byte": bits,
        "portugal_validation_loss": portugal,
        "football_share": share(football(texts)),
        "reward": mean,
        "reward_std": deviation,
        "distinct_share": len(set(texts)) / len(texts),
        "samples": show_samples(bench, model),
    }


def kl_divergence(log_probs: np.ndarray, reference: np.ndarray, mask: Sequence[Any] | np.ndarray) -> float:
    """Masked mean of the k3 estimate of KL(policy ‖ reference) over sampled tokens, in nats."""
    log_rho = np.where(mask, np.asarray(reference, np.float64) - log_probs, 0.0)
    return float((np.exp(log_rho) - log_rho - 1).sum() / max(1, np.sum(mask)))
