"""Sums, norms and losses that are added up in another way than in blocks, or not completely."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"

BUGS = (
    Mutation("sums added one by one", M + "sums.py", "values.shape[-1]) > BLOCK:", "values.shape[-1]) > 10**9:", "03"),
    Mutation("one block for all", M + "sums.py", "BLOCK = 16", "BLOCK = 2**30", "03"),
    Mutation(
        "a total by BLAS, as a product with ones",
        M + "sums.py",
        "return row_sums(values.flatten())",
        "return values.flatten() @ mx.ones(values.size)",
        "03",
    ),
    Mutation("last partial block dropped", M + "sums.py", "if size > whole else []", "if False else []", "03"),
    Mutation(
        "last partial block begins one number early",
        M + "sums.py",
        "rest = [values[..., whole:]",
        "rest = [values[..., whole - 1 :]",
        "03",
    ),
    Mutation(
        "last partial block filled up with ones",
        M + "sums.py",
        "values[..., whole:].sum(axis=-1, keepdims=True)]",
        "values[..., whole:].sum(axis=-1, keepdims=True) + (BLOCK - size % BLOCK)]",
        "03",
    ),
    Mutation(
        "blocks of a row reach into the next",
        M + "sums.py",
        "values[..., :whole].reshape(*values.shape[:-1], -1, BLOCK).sum(axis=-1)",
        "values[..., :whole].reshape(-1, BLOCK, *values.shape[:-1]).sum(axis=1).T.reshape(*values.shape[:-1], -1)",
        "03",
    ),
    Mutation(
        "exponentials of the loss added one by one",
        M + "losses.py",
        "sums = row_sums(exps)[:, None]\n    softmax",
        "sums = exps.sum(axis=1, keepdims=True)\n    softmax",
        "03",
    ),
    Mutation(
        "exponentials of log-probabilities added one by one",
        M + "log_probs.py",
        "sums = row_sums(exps)[:, None]\n        log_p",
        "sums = exps.sum(axis=1, keepdims=True)\n        log_p",
        "03",
    ),
    Mutation(
        "entropies added one by one",
        M + "log_probs.py",
        "row_sums(exps * scores)[:, None] / sums",
        "(exps * scores).sum(axis=1, keepdims=True) / sums",
        "03",
    ),
    Mutation(
        "MLX's logsumexp in evaluation",
        M + "losses.py",
        "peak.squeeze(1) + mx.log(row_sums(mx.exp(logits - peak)))",
        "mx.logsumexp(logits, axis=1)",
        "03",
    ),
    Mutation(
        "KL averaged one by one", M + "grpo.py", "total(k3 * mask_BP) / tokens", "(k3 * mask_BP).sum() / tokens", "03"
    ),
    Mutation(
        "policy loss added one by one",
        M + "grpo.py",
        "total(losses_BP) / mx.maximum(counts_B.sum(), 1)",
        "losses_BP.sum() / mx.maximum(counts_B.sum(), 1)",
        "03",
    ),
    Mutation(
        "norms added, not their squares",
        M + "optimizer.py",
        "mx.sqrt(total(mx.stack(squares)))",
        "total(mx.sqrt(mx.stack(squares)))",
        "05",
    ),
    Mutation(
        "torch's norm of a whole table",
        T + "optimizer.py",
        "torch.linalg.vector_norm(gradient, dim=-1).flatten()",
        "torch.linalg.vector_norm(gradient).flatten()",
        "03",
    ),
    Mutation(
        "norm without biases",
        T + "optimizer.py",
        "for gradient in gradients]\n    return",
        "for gradient in gradients if gradient.ndim > 1]\n    return",
        "03",
    ),
)
