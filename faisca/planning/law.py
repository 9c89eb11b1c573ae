"""How large a model, and how many headlines, for an hour: from a law that was fitted to runs on headlines.

L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022, arXiv 2203.15556, equation 2): bits per byte of a model with N
weights that a token is multiplied with, after D tokens, repeated ones included. `benchmarks/scaling_law.py` fits it
and writes `scaling_law.json`; without that file there is no answer.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from faisca.config import ModelConfig
from faisca.errors import FaiscaError
from faisca.parameters import parameter_shapes

STORED = Path(__file__).parent / "scaling_law.json"
FRESH_PASSES = 4
"""up to which repeated data count nearly as new ones (Muennighoff et al. 2023, arXiv 2305.16264)"""
CANDIDATES = 200
"""sizes that are compared, evenly spaced in their logarithm"""


@dataclass(frozen=True)
class Law:
    """Constants of the law, those of its bootstrap, and where it was measured."""

    constants: Sequence[float]
    """E, A, a, B, b"""
    bootstrap: Sequence[Sequence[float]]
    """the same of fits to resampled points: what they disagree in is the law's uncertainty"""
    sizes: Sequence[dict[str, Any]]
    """the models studied, smallest first: `weights`, `flops_per_token`, `dim`, `num_layers`, `parameters`"""
    tokens: Sequence[float]
    """fewest and most tokens studied"""
    recipe: str
    vocabulary: int
    tokens_per_headline: float
    training_headlines: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", sorted(self.sizes, key=lambda size: size["weights"]))


@dataclass(frozen=True)
class Answer:
    """What an amount of time buys, by the law."""

    weights: float
    nearest: dict[str, Any]
    """the studied size that is nearest"""
    tokens: float
    headlines: float
    passes: float
    """over the headlines that the law was fitted on"""
    bits_per_byte: float
    interval: tuple[float, float]
    """95 % of the bootstrap's fits"""
    doubts: tuple[str, ...]
    """in what the answer leaves what was studied"""


def flops_per_token(model: ModelConfig, window: int) -> float:
    """Operations of the matrix products for a trained token, forward and backward.

    6 a weight that it meets, 12 · layers · window · width of all heads for attention (Chowdhery et al. 2022, arXiv
    2204.02311, appendix B). Of a mixture's experts, those of a token count.
    """
    return 6.0 * weights_met(model) + 12.0 * model.num_layers * window * model.num_heads * model.head_width


def weights_met(model: ModelConfig) -> int:
    """Weights that a token is multiplied with: all matrices, the head's included, and no table."""
    total = 0
    for name, shape in parameter_shapes(replace(model, tie_embeddings=False)).items():
        if len(shape) == 3:
            total += math.prod(shape) // shape[0] * model.experts_per_token
        elif len(shape) == 2 and "embedding" not in name:
            total += math.prod(shape)
    return total


def read_law(path: Path = STORED) -> Law:
    """The stored law; FaiscaError where there is none."""
    if not path.exists():
        raise FaiscaError(
            "--hours: no scaling law has been measured for this version: benchmarks/scaling_law.py measures one"
        )
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Law(**{field.name: stored[field.name] for field in fields(Law)})


def predict(constants: Sequence[float], weights: np.ndarray | float, tokens: np.ndarray | float) -> Any:
    """Bits per byte by the law."""
    E, A, a, B, b = constants
    return E + A / weights**a + B / tokens**b


def best_for(law: Law, hours: float, flops_per_second: float) -> Answer:
    """The best of the sizes in the range studied, where all of them compute at the same speed."""
    least, most = law.sizes[0]["weights"], law.sizes[-1]["weights"]
    weights = np.geomspace(least, most, CANDIDATES)
    studied = [[size[name] for size in law.sizes] for name in ("weights", "flops_per_token")]
    a_token = np.exp(np.interp(np.log(weights), *np.log(studied)))
    tokens = 3600 * hours * flops_per_second / a_token
    found = int(np.argmin(predict(law.constants, weights, tokens)))
    fits = [predict(constants, weights[found], tokens[found]) for constants in law.bootstrap]
    low, high = np.percentile(fits, [2.5, 97.5])
    headlines = tokens[found] / law.tokens_per_headline
    passes = float(headlines / law.training_headlines)
    return Answer(
        weights=float(weights[found]),
        nearest=min(law.sizes, key=lambda size: abs(math.log(size["weights"] / weights[found]))),
        tokens=float(tokens[found]),
        headlines=float(headlines),
        passes=passes,
        bits_per_byte=float(predict(law.constants, weights[found], tokens[found])),
        interval=(float(low), float(high)),
        doubts=tuple(_doubts(law, found, float(tokens[found]), passes)),
    )


def hours_words(law: Law, answer: Answer, hours: float, flops_per_second: float) -> list[str]:
    """The answer in lines."""
    size, (low, high) = answer.nearest, answer.interval
    return [
        f"{hours:g} h at {flops_per_second / 1e9:,.1f} GFLOP/s, what --tokens-per-second is of this configuration:",
        f"  model      {answer.weights / 1e6:,.2f} M weights that a token meets, vocabulary {law.vocabulary:,}; the "
        f"nearest studied: --model.dim {size['dim']} --model.num-layers {size['num_layers']} "
        f"--model.num-heads {size['num_heads']} --model.hidden-dim {size['hidden_dim']}",
        f"  headlines  {answer.headlines:,.0f}, {answer.tokens / 1e6:,.1f} M tokens: {answer.passes:,.1f} passes over "
        f"the {law.training_headlines:,} of the study",
        f"  quality    {answer.bits_per_byte:.3f} bits per byte of unseen headlines ({low:.3f} to {high:.3f}), by the "
        f"law of recipe {law.recipe}, where every size computes as fast",
        *(f"  doubt      {doubt}" for doubt in answer.doubts),
    ]


def _doubts(law: Law, found: int, tokens: float, passes: float) -> list[str]:
    doubts = []
    if found in (0, CANDIDATES - 1):
        doubts.append(f"the best size may be {'smaller' if found == 0 else 'larger'}: none such was studied")
    if not law.tokens[0] <= tokens <= law.tokens[1]:
        doubts.append(
            f"runs of {law.tokens[0]:,.0f} to {law.tokens[1]:,.0f} tokens were studied, none as long or short"
        )
    if passes > FRESH_PASSES:
        doubts.append(
            f"beyond {FRESH_PASSES} passes over the same headlines, one more teaches less than new ones would "
            "(Muennighoff et al. 2023): the law does not know it"
        )
    return doubts
