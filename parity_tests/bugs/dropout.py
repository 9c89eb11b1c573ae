"""Bugs of dropout, of what it draws, and of when it is active."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "no attention dropout",
        M + "model.py",
        "self.dropout(shares_BHTT, random_key) @ value",
        "shares_BHTT @ value",
        "11",
    ),
    Mutation("dropout in evaluation", T + "model.py", "if self.training else 0.0", "if True else 0.0", "11"),
    Mutation(
        "recomputed blocks drop anew",
        M + "model.py",
        "partial(block, rotation=rotation, cache=None, random_key=key)",
        "partial(block, rotation=rotation, cache=None, random_key=None)",
        "04",
    ),
    Mutation("dropout's seed ignored", M + "train.py", "    mx.random.seed(dropout_seed)\n", "", "11"),
    Mutation("dropout active in GRPO", T + "lora.py", "in model.eval().modules()", "in model.train().modules()", "11"),
)
