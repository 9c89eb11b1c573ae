"""How far the twins are apart, measured: the numbers behind the tolerances in docs/parity.md.

    python parity_tests/measure.py [SEEDS]

Every rung of `faisca parity`, for every choice of architecture and a few seeds, on small models.
"""

import sys

import numpy as np
from cases import OPTIONS, PAIRED, TWINS, Twin, make_case

from faisca.parity.command import BFLOAT16_RUNGS, in_bfloat16
from faisca.parity.differences import differences
from faisca.parity.rungs import RUNGS, Rung, Side
from faisca.parity.sampling import agreement, settings


def spread(rung: Rung, yardstick: Side, other: Side, seeds: int) -> np.ndarray:
    """The largest difference of each case, sorted."""
    cases = [make_case(seed, **options) for options in OPTIONS for seed in range(seeds)]
    found = [differences(rung.arrays(yardstick, case), rung.arrays(other, case)) for case in cases]
    return np.sort([max(getattr(difference, rung.measure) for difference in one) for one in found])


def ties(yardstick: Side, other: Side, seeds: int) -> tuple[int, int, int]:
    """Tokens drawn, rows that part at a tie, and rows that part elsewhere."""
    cases = [make_case(seed, context=72, **options) for options in OPTIONS[::5] for seed in range(seeds)]
    found = [agreement(yardstick, other, case, sampling) for case in cases for sampling in settings(60)]
    return sum(one.tokens for one in found), sum(one.ties for one in found), sum(len(one.wrong) for one in found)


def main(seeds: int) -> None:
    yardstick = TWINS[0].side
    for other in PAIRED:
        print(f"{TWINS[0]} against {other}: {len(OPTIONS)} architectures, {seeds} seeds")
        print("| rung | compared | measure | median | 95 % | largest | tolerance |\n|---|---|---|---|---|---|---|")
        for rung in (*RUNGS, *BFLOAT16_RUNGS):
            side = in_bfloat16(other.side) if rung in BFLOAT16_RUNGS else other.side
            row(rung, spread(rung, yardstick, side, seeds))
        print("sampling: {:,} tokens, {} rows part at a tie, {} elsewhere".format(*ties(yardstick, other.side, seeds)))
    print("torch in bfloat16")
    for rung in BFLOAT16_RUNGS:
        row(rung, spread(rung, yardstick, in_bfloat16(Twin("torch", "cpu").side), seeds))


def row(rung: Rung, values: np.ndarray) -> None:
    middle, most = np.median(values), values[int(0.95 * len(values))]
    print(
        f"| {rung.number} | {rung.title} | {rung.measure} | {middle:.1e} | {most:.1e} | {values[-1]:.1e} "
        f"| {rung.tolerance:.0e} |",
        flush=True,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
