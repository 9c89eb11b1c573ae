"""Learning rate as a function of the step."""

import math

from faisca.config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """Rate for `step` (from 0) of `total`: a linear warm-up, then constant or a half cosine.

    The cosine reaches `min_learning_rate_share` of the peak at the last step (Loshchilov & Hutter
    2017, arXiv 1608.03983, without restarts).
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, total - 1 - config.warmup_steps)
    floor = config.min_learning_rate_share
    return config.learning_rate * (floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, done))) / 2)
