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


def beside_the_stream(expected: Arrays, found: Arrays, table: str) -> tuple[Arrays, Arrays]:
    """Gradients of a stream's scales with the norm of the embedding `table`'s beside them, if there are any.

    Each is a sum over the whole stream that may cancel to next to nothing, since a norm that follows ignores scales:
    their rounding is judged by what is summed.
    """
    if not any(name.endswith("_scales") for name in expected):
        return expected, found
    scale = float(np.linalg.norm(expected[table]))
    one, two = (
        {name: np.append(g, scale) if name.endswith("_scales") else g for name, g in side.items()}
        for side in (expected, found)
    )
    return one, two
