"""The assertion of the ladder: two sets of named arrays are close."""

from collections.abc import Mapping

import numpy as np

from faisca.errors import VerificationError
from faisca.parity.differences import Difference, differences

Arrays = Mapping[str, np.ndarray]
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
