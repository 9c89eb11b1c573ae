"""Bugs of sampling and of the key-value cache."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
BUGS: tuple[Mutation, ...] = (
    Mutation("top-k unsorted", M + "generate.py", "    ids = mx.sort(ids, axis=1)\n", "", "07"),
    Mutation(
        "categorical on probabilities",
        M + "generate.py",
        "picked = (cumulative <= threshold).sum(axis=1, keepdims=True)",
        "picked = mx.random.categorical(probs_RS / UNIT)[:, None]",
        "07",
    ),
    Mutation(
        "top-p without the token that crosses it",
        T + "generate.py",
        "before < _share(",
        "before + probs <= _share(",
        "07",
    ),
    Mutation(
        "temperature multiplied",
        T + "generate.py",
        "scaled = logits_RV.float() / temperature",
        "scaled = logits_RV.float() * temperature",
        "07",
    ),
    Mutation(
        "cached positions begin at 0 again",
        T + "model.py",
        "self.positional_embedding.weight[start:end]",
        "self.positional_embedding.weight[: end - start]",
        "07",
    ),
    Mutation(
        "finished rows' cache kept in place of others",
        M + "generate.py",
        "cache.keep(stays)",
        "cache.keep(np.arange(len(stays)))",
        "07",
    ),
)
