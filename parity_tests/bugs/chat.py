"""Bugs of conversations: where an answer is, what its loss is divided by, and where it stops."""

from bugs.mutation import Mutation

ENDS = "tests/test_generation.py::test_rows_stop_at_whichever_end_comes_first"
EDGES = "parity_tests/test_14_limits.py::test_a_micro_batch_of_targets_that_are_left_out"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "only the first end stops (torch)",
        "faisca_torch/generate.py",
        "np.isin(chosen, end_of_text)",
        "(chosen == end_of_text[0])",
        ENDS,
    ),
    Mutation(
        "only the last end stops (mlx)",
        "faisca_mlx/generate.py",
        "np.isin(chosen, end_of_text)",
        "(chosen == end_of_text[-1])",
        ENDS,
    ),
    Mutation(
        "padding counted in the mean",
        "faisca_mlx/train.py",
        "counted = mx.maximum((targets_MRT >= 0).sum(), 1)",
        "counted = mx.maximum(mx.array(targets_MRT.size), 1)",
        EDGES,
    ),
)
