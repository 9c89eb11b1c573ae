"""Bugs of caps that ratios reach, of rows without tokens, and of steps that are not finite."""

from bugs.mutation import Mutation

T = "faisca_torch/"
M = "faisca_mlx/"
EDGES = "parity_tests/test_14_limits.py"
GRPO = "parity_tests/test_08_grpo.py"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "CISPO without its cap (torch)",
        T + "grpo.py",
        "ratio.clamp(max=config.cispo_cap).detach()",
        "ratio.detach()",
        GRPO + "::test_every_variant_against_the_reference",
    ),
    Mutation(
        "CISPO without its cap (MLX)",
        M + "grpo.py",
        "mx.minimum(ratio, config.cispo_cap)",
        "ratio",
        GRPO + "::test_every_variant_against_the_reference",
    ),
    Mutation(
        "CISPO's cap counted from 1",
        T + "grpo.py",
        "ratio.clamp(max=config.cispo_cap)",
        "ratio.clamp(max=1 + config.cispo_cap)",
        GRPO + "::test_every_variant_against_the_reference",
    ),
    Mutation(
        "CISPO capped at the clip",
        M + "grpo.py",
        "mx.minimum(ratio, config.cispo_cap)",
        "mx.minimum(ratio, 1 + config.clip_high)",
        GRPO + "::test_every_variant_against_the_reference",
    ),
    Mutation(
        "the lower clip is the inverse of the upper",
        T + "grpo.py",
        "ratio.clamp(1 - config.clip_low, 1 +",
        "ratio.clamp(1 / (1 + config.clip_low), 1 +",
        GRPO + "::test_every_variant_against_the_reference",
    ),
    Mutation(
        "the ratio is not clipped below",
        M + "grpo.py",
        "mx.clip(ratio, 1 - config.clip_low, 1 +",
        "mx.clip(ratio, 0, 1 +",
        GRPO + "::test_every_variant_against_the_reference",
    ),
    Mutation(
        "the largest ratio counts padding (torch)",
        T + "grpo.py",
        "torch.where(kept, ratio, zero).max()",
        "ratio.max()",
        GRPO + "::test_watched_numbers_are_what_they_say",
    ),
    Mutation(
        "the largest ratio counts padding (MLX)",
        M + "grpo.py",
        "mx.where(kept, ratio, 0.0).max()",
        "ratio.max()",
        GRPO + "::test_watched_numbers_are_what_they_say",
    ),
    Mutation(
        "clipped below, whatever the advantage",
        T + "grpo.py",
        "((ratio < 1 - config.clip_low) & (A < 0))",
        "(ratio < 1 - config.clip_low)",
        GRPO + "::test_watched_numbers_are_what_they_say",
    ),
    Mutation(
        "the share that is clipped above, by the lower clip",
        M + "grpo.py",
        "ratio > 1 + config.clip_high) & (A",
        "ratio > 1 + config.clip_low) & (A",
        GRPO + "::test_watched_numbers_are_what_they_say",
    ),
    Mutation(
        "the share clipped below counts what is clipped above",
        M + "grpo.py",
        '"clip_low_share": (((ratio < 1 - config.clip_low) & (A < 0))',
        '"clip_low_share": (((ratio > 1 + config.clip_high) & (A > 0))',
        GRPO + "::test_watched_numbers_are_what_they_say",
    ),
    Mutation(
        "a row without tokens leaves the mean over rows",
        M + "grpo.py",
        "mx.maximum(counts_B, 1)) / rows",
        "mx.maximum(counts_B, 1)) / mx.maximum((counts_B > 0).sum(), 1)",
        GRPO + "::test_every_variant_against_the_reference",
    ),
    Mutation(
        "a row without tokens divides by zero",
        T + "grpo.py",
        "counts_B1 = mask_BP.sum(1, keepdim=True).clamp(min=1)",
        "counts_B1 = mask_BP.sum(1, keepdim=True)",
        EDGES + "::test_a_row_without_tokens_has_no_say",
    ),
    Mutation(
        "only the loss decides what is skipped (torch)",
        T + "optimizer.py",
        'numbers["loss"].isfinite() & grad_norm.isfinite()',
        'numbers["loss"].isfinite()',
        EDGES + "::test_a_finite_loss_with_an_infinite_gradient_changes_nothing",
    ),
    Mutation(
        "only the loss decides what is skipped (MLX)",
        M + "optimizer.py",
        'mx.isfinite(numbers["loss"]) & mx.isfinite(grad_norm)',
        'mx.isfinite(numbers["loss"])',
        EDGES + "::test_a_finite_loss_with_an_infinite_gradient_changes_nothing",
    ),
    Mutation(
        "a skipped step's gradients stay",
        T + "optimizer.py",
        "    learner.model.zero_grad()\n",
        "    if not skipped:\n        learner.model.zero_grad()\n",
        EDGES + "::test_a_finite_loss_with_an_infinite_gradient_changes_nothing",
    ),
    Mutation(
        "a skipped step is counted",
        M + "optimizer.py",
        "optimizer.step + finite",
        "optimizer.step + 1",
        EDGES + "::test_a_finite_loss_with_an_infinite_gradient_changes_nothing",
    ),
    Mutation(
        "a skipped step decays",
        M + "optimizer.py",
        "model.trainable_parameters(), config, rate)",
        "model.trainable_parameters(), config, learning_rate)",
        EDGES + "::test_a_finite_loss_with_an_infinite_gradient_changes_nothing",
    ),
    Mutation(
        "a skipped step lets the first moment decay",
        M + "optimizer.py",
        'mx.where(finite, beta1, 1.0) * state["m"]',
        'beta1 * state["m"]',
        EDGES + "::test_a_finite_loss_with_an_infinite_gradient_changes_nothing",
    ),
    Mutation(
        "a skipped step lets the second moment decay",
        M + "optimizer.py",
        'mx.where(finite, beta2, 1.0) * state["v"]',
        'beta2 * state["v"]',
        EDGES + "::test_a_finite_loss_with_an_infinite_gradient_changes_nothing",
    ),
    Mutation(
        "a skipped step takes the infinite gradient",
        M + "optimizer.py",
        "mx.where(finite, gradient, 0.0)",
        "gradient",
        EDGES + "::test_a_finite_loss_with_an_infinite_gradient_changes_nothing",
    ),
    Mutation(
        "a skipped step moves along its momentum",
        M + "optimizer.py",
        "mx.where(finite, learning_rate, 0.0)",
        "learning_rate",
        EDGES + "::test_a_finite_loss_with_an_infinite_gradient_changes_nothing",
    ),
)
