"""Bugs of mixtures of experts."""

from bugs.mutation import Mutation

T, M = "faisca_torch/experts.py", "faisca_mlx/experts.py"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "torch: the experts' weights are not normalised",
        T,
        "weights_NS = weights_NS / weights_NS.sum(-1, keepdim=True)",
        "pass",
        "02",
    ),
    Mutation(
        "MLX: weights are normalised over tokens",
        M,
        "weights_NS.sum(axis=-1, keepdims=True)",
        "weights_NS.sum(axis=0, keepdims=True)",
        "02",
    ),
    Mutation(
        "MLX: expert index off by one",
        M,
        "mx.minimum(expert_P, num_experts - 1)",
        "mx.minimum(expert_P + 1, num_experts - 1)",
        "02",
    ),
    Mutation(
        "torch: expert index off by one",
        T,
        "zip(x_RD.split(counts), weight.unbind(), strict=True)",
        "zip(x_RD.split(counts), weight.roll(1, 0).unbind(), strict=True)",
        "02",
    ),
    Mutation(
        "torch: rows stay in the experts' order",
        T,
        "y_RD[order_R.argsort()]",
        "y_RD[order_R]",
        "02",
    ),
    Mutation(
        "torch: no gradient reaches the router", T, "weights_NS[..., None]", "weights_NS[..., None].detach()", "04"
    ),
    Mutation(
        "MLX: no gradient reaches the router",
        M,
        "weights_NS[..., None]",
        "mx.stop_gradient(weights_NS)[..., None]",
        "04",
    ),
    Mutation("torch: balance over the wrong axis", T, "probs_LNE.mean(1)", "probs_LNE.mean(2)[:, :1]", "18"),
    Mutation("MLX: the balance's layers added up", M, ".sum(axis=-1).mean()\n    sums", ".sum()\n    sums", "18"),
    Mutation(
        "MLX: rows that nobody reads have gradients",
        M,
        "mx.where(read_R1, rows_RD, 0.0)",
        "rows_RD",
        "04",
    ),
    Mutation(
        "MLX: a token's gradient from one expert",
        M,
        "cotangent[groups.place_NS].sum(axis=1)",
        "cotangent[groups.place_NS][:, 0]",
        "04",
    ),
    Mutation(
        "torch: of equal logits the last",
        T,
        "descending=True, stable=True).indices[:, :count]",
        "stable=True).indices.flip(1)[:, :count]",
        "18",
    ),
    Mutation(
        "MLX: of equal logits any expert",
        M,
        "left_NE.argmax(axis=1, keepdims=True)",
        "(left_NE.shape[1] - 1 - left_NE[:, ::-1].argmax(axis=1, keepdims=True))",
        "18",
    ),
    Mutation(
        "torch: each micro-batch counts as a whole step",
        "faisca_torch/train.py",
        "len(hidden_BTD) / len(inputs)",
        "1.0",
        "18",
    ),
    Mutation(
        "routers kept in bfloat16",
        "faisca/parameters.py",
        'outside = name.endswith("router.weight") or in_adapter(name)',
        "outside = in_adapter(name)",
        "18",
    ),
)
