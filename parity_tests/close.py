"""The assertion of the ladder: two sets of named arrays are close."""

from collections.abc import Mapping

import numpy as np

from faisca.errors import VerificationError
from faisca.parity.differences import Difference, differences

MEASURES = ("absolute", "scaled", "norm")


def require_close(
    expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], tolerance: float, measure: str = "scaled"
) -> list[Difference]:
    """The differences; VerificationError, which names the three worst, where one exceeds `tolerance` in `measure`."""
    assert measure in MEASURES, measure
    found = differences(expected, actual)
    assert found, "nothing to compare"
    worst = sorted(found, key=lambda difference: -getattr(difference, measure))
    bad = [difference for difference in worst if not getattr(difference, measure) <= tolerance]
    if bad:
        listing = " | ".join(map(str, bad[:3]))
        raise VerificationError(
            f"{len(bad)} of {len(found)} arrays differ by more than {tolerance:g} ({measure}): {listing}"
        )
    return found


def as_parts_of_stream(found: Mapping[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """Gradients of a stream's scales with that of the embedding beside them, which their rounding is as large as.

    Each is a sum over the whole stream that may cancel to next to nothing, since a norm that follows ignores scales.
    """
    return {name: np.append(g, scale) if name.endswith("_scales") else g for name, g in found.items()}
