"""Two sides' observations compared, each number with a tolerance that is written down."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from faisca.certificate.observe import Observation

SMALL = 1e-4
"""a gradient that is a smaller share of all together is measured against that share: it may be rounding alone"""
SENSITIVITY_TIMES = 8
"""a sensitive model may be off by this many times what moving its weights by a last place changes"""
ROUNDING = 2.0**-23
"""how far float32 moves a weight, as a share of it, over the steps of a certificate"""


@dataclass(frozen=True)
class Tolerance:
    """How far a kind of numbers may be from the CPU's."""

    float32: float
    tf32: float
    """for products of about 11 bits: float32 as the newest GPUs compute it"""
    bfloat16: float
    measure: str
    """of what, in words"""


TOLERANCES = {
    "loss": Tolerance(1e-5, 1e-3, 2e-2, "of the loss, or nats where it is below 1"),
    "log-probabilities": Tolerance(1e-5, 2e-3, 5e-2, "of the largest"),
    "gradient": Tolerance(1e-4, 2e-2, 0.15, "in norm"),
    "weights": Tolerance(1e-3, 5e-2, 0.3, "of their change, in norm"),
    "rollout": Tolerance(1e-5, 1e-3, 5e-2, "on average: of the probability, or of the largest logit"),
    "dropout": Tolerance(1e-5, 1e-5, 1e-5, "where 0 is right"),
}
"""docs/parity.md says where each comes from"""


@dataclass(frozen=True)
class Finding:
    """How far one array is from the CPU's."""

    kind: str
    what: str
    """the step and its shape"""
    array: str
    shape: tuple[int, ...]
    distance: float
    zero: bool
    """whether it is zero throughout where the CPU's is not"""
    sensitivity: float = 0.0
    """the distance that moving the weights by a last place makes in this step; measured where something is off"""

    def allowed(self, dtype: str) -> float:
        """The largest distance that passes, in float32, tf32 or bfloat16."""
        return max(float(getattr(TOLERANCES[self.kind], dtype)), SENSITIVITY_TIMES * self.sensitivity)

    def passes(self, dtype: str) -> bool:
        """Whether the distance is allowed."""
        return not self.zero and self.distance <= self.allowed(dtype)

    def words(self, dtype: str) -> str:
        """As in `gradient of out_head.weight [512, 32] in training step 1, 8 × 32 tokens: off by 0.8 in norm; …`."""
        tolerance = TOLERANCES[self.kind]
        name = f"{self.kind} of {self.array}" if self.kind in ("gradient", "weights") else self.array
        shape = f" [{', '.join(map(str, self.shape))}]" if self.shape else ""
        far = "zero throughout" if self.zero else f"off by {self.distance:.2g} {tolerance.measure}"
        return f"{name}{shape} in {self.what}: {far}; allowed {self.allowed(dtype):.0e}"


def compare(expected: Observation, found: Observation) -> Iterator[Finding]:
    """One finding an array."""
    assert (expected.kind, expected.what) == (found.kind, found.what), "both sides do the same work"
    assert expected.arrays.keys() == found.arrays.keys(), "and have the same arrays"
    everything = sum(_norm(value) ** 2 for value in expected.arrays.values()) ** 0.5
    for name, value in expected.arrays.items():
        other, shape = found.arrays[name], found.arrays[name].shape
        zero = expected.kind == "gradient" and not other.any() and _norm(value) > SMALL * everything
        least, rounding = SMALL * everything, 0.0
        if expected.before is not None and found.before is not None:  # what counts is how they were moved
            least, rounding = 0.0, ROUNDING * _norm(value)
            value, other = value - expected.before[name], other - found.before[name]
        distance = _distance(expected.kind, value, other, least, rounding)
        yield Finding(expected.kind, expected.what, name, shape, distance, zero)


def judge_alone(found: Observation) -> Iterator[Finding]:
    """Findings of what has no counterpart, as it is a distance already: its mean is."""
    for name, value in found.arrays.items():
        distance = float(np.mean(value))
        yield Finding(found.kind, found.what, name, (), distance if np.isfinite(distance) else np.inf, False)


def _distance(kind: str, expected: np.ndarray, found: np.ndarray, least: float, rounding: float) -> float:
    """In the measure of the kind; infinite where shapes differ, or a number is not finite."""
    if expected.shape != found.shape:
        return np.inf
    gap = found.astype(np.float64) - expected
    if not np.isfinite(gap).all():
        return np.inf
    match kind:
        case "loss":
            return float(np.abs(gap).max() / max(float(np.abs(expected).max()), 1.0))
        case "log-probabilities":
            return _ratio(float(np.abs(gap).max()), float(np.abs(expected).max()))
        case "gradient" | "weights":
            return _ratio(max(0.0, _norm(gap) - rounding), max(_norm(expected), least))
        case other:
            raise ValueError(f"{other} has no counterpart: judge it alone")


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64)))


def _ratio(distance: float, scale: float) -> float:
    """0 where nothing differs; infinite where something does, and there is no scale to measure it by."""
    return 0.0 if distance == 0 else distance / scale if scale > 0 else np.inf
