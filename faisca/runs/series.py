"""The points of a curve out of a run's records."""

import math
from typing import Any

import numpy as np

Records = list[dict[str, Any]]


def series(records: Records, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """The points of the records that have numbers for both: two float64 arrays [N]."""
    both = [record for record in records if is_number(record.get(x)) and is_number(record.get(y))]
    return np.array([r[x] for r in both], np.float64), np.array([r[y] for r in both], np.float64)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a twentieth of the points: float64 [N]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(values))
    left = np.minimum(i, math.ceil(len(values) / 40))
    right = np.minimum(left, i[::-1])  # no further right than left: a steep start must not be dragged down
    smoothed: np.ndarray = (sums[i + right + 1] - sums[i - left]) / (left + right + 1)
    return smoothed


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)
