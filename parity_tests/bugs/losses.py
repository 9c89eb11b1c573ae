"""Bugs of losses and log-probabilities."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "targets shifted by one too few",
        T + "log_probs.py",
        "targets = tokens_BT[:, 1:]",
        "targets = tokens_BT[:, :-1]",
        "03",
    ),
    Mutation(
        "token 0 left out of the loss", T + "losses.py", "targets_N[rows, None] >= 0", "targets_N[rows, None] > 0", "03"
    ),
    Mutation(
        "temperature forgotten in log-probabilities",
        M + "log_probs.py",
        "logits = project(hidden, head) / temperature",
        "logits = project(hidden, head)",
        "03",
    ),
    Mutation(
        "temperature forgotten in the gradient",
        T + "log_probs.py",
        "(-(upstream / ctx.temperature)[",
        "(-(upstream)[",
        "03",
    ),
    Mutation(
        "last odd chunk dropped",
        T + "losses.py",
        "for start in range(0, size, chunk)",
        "for start in range(0, max(size - size % chunk, 1), chunk)",
        "03",
    ),
    Mutation(
        "logits rounded before the softmax",
        M + "losses.py",
        "return hidden_nD.astype(mx.float32) @ head_VD.astype(hidden_nD.dtype).astype(mx.float32).T",
        "return (hidden_nD @ head_VD.astype(hidden_nD.dtype).T).astype(mx.float32)",
        "10",
    ),
)
