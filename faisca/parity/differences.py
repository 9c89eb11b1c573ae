"""How far two sets of named arrays are apart, and where: what every check of equality here rests on.

Names and shapes must match exactly; a number that is not finite on one side only is infinitely
far away, so that nothing passes by being NaN.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from faisca.errors import VerificationError


@dataclass(frozen=True)
class Difference:
    """The distance between two arrays of the same name."""

    name: str
    absolute: float
    """largest |actual - expected|"""
    scaled: float
    """the same, relative to the largest |expected|"""
    norm: float
    """||actual - expected|| / ||expected||, in the Frobenius norm"""
    where: tuple[int, ...]
    """index of the largest"""
    expected: float
    actual: float

    def __str__(self) -> str:
        place = f"[{', '.join(map(str, self.where))}]" if self.where else ""
        return (
            f"{self.name}{place}: {self.actual:.9g} instead of {self.expected:.9g}; largest difference "
            f"{self.absolute:.3g}, {self.scaled:.3g} of the scale, {self.norm:.3g} in norm"
        )


def differences(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> list[Difference]:
    """One Difference a name, in the order of `expected`; VerificationError where names or shapes differ."""
    missing, extra = [n for n in expected if n not in actual], [n for n in actual if n not in expected]
    if missing or extra:
        listing = ", ".join([f"missing {name}" for name in missing] + [f"unknown {name}" for name in extra])
        raise VerificationError(f"the two sides do not hold the same names: {listing}")
    return [_difference(name, np.asarray(expected[name]), np.asarray(actual[name])) for name in expected]


def _difference(name: str, expected: np.ndarray, actual: np.ndarray) -> Difference:
    if expected.shape != actual.shape:
        raise VerificationError(f"{name} has shape {list(actual.shape)} instead of {list(expected.shape)}")
    if not expected.size:
        return Difference(name, 0.0, 0.0, 0.0, (), 0.0, 0.0)
    wide, other = expected.astype(np.float64), actual.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where(wide == other, 0.0, np.abs(other - wide))
    gap[np.isnan(gap)] = np.inf
    where = np.unravel_index(int(gap.argmax()), gap.shape)
    largest = float(gap[where])
    return Difference(
        name=name,
        absolute=largest,
        scaled=_ratio(largest, float(np.abs(wide).max())),
        norm=_ratio(float(np.linalg.norm(gap)), float(np.linalg.norm(wide))),
        where=tuple(map(int, where)),
        expected=float(wide[where]),
        actual=float(other[where]),
    )


def _ratio(difference: float, scale: float) -> float:
    """0 where nothing differs; infinite where something does and there is no finite scale to measure it by."""
    if difference == 0:
        return 0.0
    return difference / scale if 0 < scale < np.inf else np.inf
