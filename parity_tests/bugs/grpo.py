"""Bugs of rewards, rollouts and the policy loss."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "KL the wrong way round",
        T + "grpo.py",
        "rollouts.reference_log_probs - log_probs_BP",
        "log_probs_BP - rollouts.reference_log_probs",
        "08",
    ),
    Mutation(
        "log-probabilities put back in another order",
        T + "log_probs.py",
        "zeros.index_copy(0, places_N, found)",
        "zeros.index_copy(0, places_N.sort()[0], found)",
        "08",
    ),
    Mutation(
        "KL subtracted",
        M + "grpo.py",
        "losses + config.kl_weight * weighed",
        "losses - config.kl_weight * weighed",
        "08",
    ),
    Mutation(
        "clipping takes the larger",
        T + "grpo.py",
        "torch.minimum(capped * A, clipped * A)",
        "torch.maximum(capped * A, clipped * A)",
        "08",
    ),
    Mutation(
        "one clip for both sides",
        M + "grpo.py",
        "1 + config.clip_high)\n            capped",
        "1 + config.clip_low)\n            capped",
        "08",
    ),
    Mutation(
        "gradient through CISPO's weight",
        M + "grpo.py",
        "mx.stop_gradient(mx.minimum(ratio, config.cispo_cap))",
        "mx.minimum(ratio, config.cispo_cap)",
        "08",
    ),
    Mutation(
        "population standard deviation",
        "faisca/rewards/advantages.py",
        "deviations[i] = scored.std(ddof=1)",
        "deviations[i] = scored.std()",
        "08",
    ),
    Mutation(
        "end-of-text not learnt",
        "faisca/training/grpo.py",
        "mask[row, len(prompt) - 1 : end - 1]",
        "mask[row, len(prompt) - 1 : end - 2]",
        "08",
    ),
    Mutation(
        "left padding", "faisca/training/grpo.py", "tokens[row, :end] = prompt", "tokens[row, -end:] = prompt", "08"
    ),
)
