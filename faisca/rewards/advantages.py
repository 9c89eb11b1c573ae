"""What rewards turn into: advantages."""

import numpy as np


def mean_and_deviation(rewards: np.ndarray) -> tuple[float | None, float | None]:
    """Mean and standard deviation (Bessel-corrected) of the rewards that are no NaN; None where there are too few."""
    scored = rewards[~np.isnan(rewards)]
    return (float(scored.mean()) if len(scored) else None, float(scored.std(ddof=1)) if len(scored) > 1 else None)


def group_advantages(rewards: np.ndarray, group_size: int, scale: str) -> np.ndarray:
    """Advantages of completions against their group: float64 [B], rows of a group side by side.

    (reward − group mean) / (standard deviation + 1e-4), the deviation Bessel-corrected and taken
    over the `group`, over the `batch`, or not at all (`none`). A group of equal rewards has
    exactly 0; so has a completion whose reward is NaN, which the statistics leave out.
    """
    grouped = rewards.reshape(-1, group_size)
    centred = np.zeros_like(grouped)
    deviations = np.zeros(len(grouped))
    for i, group in enumerate(grouped):
        # NaN takes no part in the mean; equal rewards must give exactly 0, not rounding noise.
        scored = group[~np.isnan(group)]
        if len(scored) > 1 and scored.max() > scored.min():
            centred[i] = np.nan_to_num(group - scored.mean())
            deviations[i] = scored.std(ddof=1)
    if scale == "none":
        return centred.reshape(-1)
    # One deviation for the whole batch: groups with small differences are not blown up.
    if scale == "batch":
        scored = rewards[~np.isnan(rewards)]
        deviations[:] = scored.std(ddof=1) if len(scored) > 1 else 0.0
    return (centred / (deviations[:, None] + 1e-4)).reshape(-1)
