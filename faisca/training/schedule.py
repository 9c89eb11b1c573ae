"""Learning rate as a function of the step."""

import math

from faisca.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """Rate for `step` (from 0) of `total`: a linear warm-up, then constant, a half cosine, or stable and a decay.

    Cosine (Loshchilov & Hutter 2017, arXiv 1608.03983, without restarts) and warm-up–stable–decay (Hu et al. 2024,
    arXiv 2404.06395; linear, as Hägele et al. 2024) reach `min_learning_rate_share` of the peak at the last step.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "wsd":
        decay_steps = max(1, round(config.decay_share * total))
        left = min(1.0, max(0, total - 1 - step) / decay_steps)
    else:
        done = (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps)
        left = (1 + math.cos(math.pi * min(1.0, done))) / 2
    floor = config.min_learning_rate_share
    return config.learning_rate * (floor + (1 - floor) * left)
