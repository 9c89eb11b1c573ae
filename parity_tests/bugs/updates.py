"""Bugs of GRPO's update: objectives, micro-batches, the sampler's log-probabilities, and what the loop hands on."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
LOOP, UPDATE, SHARED = "faisca/training/grpo.py", "faisca/training/grpo_update.py", "faisca/backend.py"
LOSS, TRL, STEPS = (f"parity_tests/test_08_{name}.py::" for name in ("grpo", "trl", "updates"))
EVERY, THEIRS = LOSS + "test_every_variant_against_the_reference", TRL + "test_loss_and_gradient_are_trls"
WHOLE, SAMPLER = STEPS + "test_gradients_that_add_up", STEPS + "test_the_samplers_log_probabilities"
WEIGHED, BOUNDARY = STEPS + "test_in_bfloat16_completions_are_weighed", "tests/test_boundary.py"
WHOLE, SAMPLER = WHOLE + "_are_those_of_the_whole", SAMPLER + "_are_the_trainers"
BUGS: tuple[Mutation, ...] = (
    # objectives
    Mutation("delta ignored", T + "grpo.py", "torch.minimum(capped * A", "torch.minimum(ratio * A", THEIRS),
    Mutation(
        "delta caps the clipped ratio too",
        M + "grpo.py",
        "clipped * A)",
        "mx.minimum(clipped, capped) * A / 2)",
        THEIRS,
    ),
    Mutation("CISPO's cap is a constant", T + "grpo.py", "max=config.cispo_cap", "max=5.0", THEIRS),
    Mutation(
        "SAPO with one temperature",
        M + "grpo.py",
        "A > 0, config.sapo_temperature_pos",
        "A > 9, config.sapo_temperature_pos",
        THEIRS,
    ),
    Mutation("SAPO's gate not divided by its temperature", T + "grpo.py", "* 4 / steep", "* 4", THEIRS),
    Mutation(
        "GMPO clips the side that loses", T + "grpo.py", "held = torch.where(A > 0", "held = torch.where(A < 0", EVERY
    ),
    Mutation(
        "GMPO's arithmetic mean",
        M + "grpo.py",
        "mx.exp(row_sums(held)[:, None] / counts_B1)",
        "row_sums(mx.exp(held))[:, None] / counts_B1",
        EVERY,
    ),
    Mutation(
        "REINFORCE with the ratio",
        T + "grpo.py",
        "Williams 1992\n            losses = -A *",
        "Williams 1992\n            losses = -ratio * A *",
        EVERY,
    ),
    Mutation(
        "corrected KL without a gradient through the ratio",
        T + "grpo.py",
        "weighed = k3 * ratio if",
        "weighed = k3 * ratio.detach() if",
        THEIRS,
    ),
    Mutation(
        "KL always corrected", M + "grpo.py", "k3 * ratio if config.kl_bias_correction else k3", "k3 * ratio", THEIRS
    ),
    Mutation(
        "entropy pushed down",
        T + "grpo.py",
        "- config.entropy_weight * entropy",
        "+ config.entropy_weight * entropy",
        THEIRS,
    ),
    Mutation("entropy of masked places", M + "grpo.py", "mx.where(kept, entropies_BP, 0.0)", "entropies_BP", THEIRS),
    Mutation(
        "a bonus without a gradient",
        M + "grpo.py",
        "2 if config.entropy_weight else 1",
        "1",
        LOSS + "test_entropy_and_loss_of_a_step_against_the_reference",
    ),
    Mutation(
        "the entropy's gradient forgets the temperature",
        T + "log_probs.py",
        "for upstream in upstream_N)",
        "for upstream in (upstream_N[0], upstream_N[1] * ctx.temperature))",
        "parity_tests/test_03_losses.py::test_log_probabilities_and_their_gradients",
    ),
    Mutation(
        "the entropy's gradient without the entropy",
        M + "log_probs.py",
        "(log_p + entropies_N[rows, None])",
        "log_p",
        "parity_tests/test_03_losses.py::test_log_probabilities_and_their_gradients",
    ),
    # micro-batches
    Mutation(
        "each micro-batch counts as the whole",
        T + "grpo.py",
        "clamp(min=1)).sum() / rows",
        "clamp(min=1)).mean()",
        WHOLE,
    ),
    Mutation(
        "only the last micro-batch counts",
        M + "grpo.py",
        "gradients = more if gradients is None else tree_map(mx.add, gradients, more)",
        "gradients = more",
        WHOLE,
    ),
    Mutation(
        "bnpo's means are added up",
        T + "grpo.py",
        " * (len(losses_BP) / rows)",
        "",
        STEPS + "test_bnpo_of_micro_batches_is_the_mean_of_their_means",
    ),
    Mutation(
        "dapo counts the tokens of a micro-batch",
        SHARED,
        "step_rows=B) for part in slices]",
        "step_rows=B, step_tokens=float(self.mask[part].sum())) for part in slices]",
        WHOLE,
    ),
    Mutation(
        "every micro-batch is the first",
        SHARED,
        "counted_first = [np.argsort(part.mask",
        "counted_first = [np.argsort(parts[0].mask",
        WHOLE,
    ),
    Mutation(
        "the largest ratio of all micro-batches added up",
        T + "grpo.py",
        'if name.endswith("max") else',
        'if name.endswith("maximum") else',
        WHOLE,
    ),
    # the sampler's log-probabilities
    Mutation(
        "the sampler's log-probabilities at temperature 1",
        T + "generate.py",
        "(logits_RV.float() / temperature).log_softmax(1)",
        "logits_RV.float().log_softmax(1)",
        SAMPLER,
    ),
    Mutation(
        "MLX: the sampler's log-probabilities at temperature 1",
        M + "generate.py",
        "scores = logits_RV.astype(mx.float32) / temperature",
        "scores = logits_RV.astype(mx.float32)",
        SAMPLER,
    ),
    Mutation(
        "MLX: log-probabilities of the column before",
        M + "generate.py",
        "log_probs[rows[new], nth_new[new]] =",
        "log_probs[rows[new], np.maximum(nth_new[new] - 1, 0)] =",
        SAMPLER,
    ),
    Mutation(
        "the sampler's log-probabilities a place late",
        LOOP,
        "written.log_probs[row, : len(completion)]",
        "np.roll(written.log_probs[row, : len(completion)], 1)",
        SAMPLER,
    ),
    Mutation(
        "a batch of rows writes over the first",
        "faisca/training/generate.py",
        "log_probs=None if log_probs is None else log_probs[rows]",
        "log_probs=None if log_probs is None else log_probs[: len(prompts[rows])]",
        SAMPLER,
    ),
    Mutation(
        "the sampler's log-probabilities in bfloat16 as they are",
        UPDATE,
        'correction == "off" and setup.runtime.dtype == "float32"',
        'correction == "off"',
        WEIGHED,
    ),
    Mutation(
        "a pass that nobody needs",
        UPDATE,
        "if sampled.any() and correction",
        "if False and correction",
        STEPS + "test_in_float32_the_sampler_spares_a_pass_and_the_first_ratio_is_one",
    ),
    Mutation(
        "weights the wrong way round",
        UPDATE,
        "rollouts.old_log_probs - sampled, 0)",
        "sampled - rollouts.old_log_probs, 0)",
        TRL + "test_weights_of_the_correction_are_trls",
    ),
    Mutation(
        "weights without a cap",
        UPDATE,
        "np.minimum(np.exp(gaps), config.rollout_correction_cap)",
        "np.exp(gaps)",
        TRL + "test_weights_of_the_correction_are_trls",
    ),
    Mutation(
        "a sequence's weight is that of its mean token",
        UPDATE,
        "gaps = gaps.sum(1, keepdims=True)",
        "gaps = gaps.mean(1, keepdims=True)",
        TRL + "test_weights_of_the_correction_are_trls",
    ),
    Mutation("auto corrects nothing", UPDATE, 'chosen = "token" if dtype', 'chosen = "off" if dtype', WEIGHED),
    Mutation(
        "leaving one out divides by all",
        UPDATE,
        "advantages * n / np.maximum(n - 1, 1)",
        "advantages * n / np.maximum(n, 1)",
        TRL + "test_leaving_one_out_is_trls",
    ),
    # what the loop hands on
    Mutation(
        "advantages stay where they were when rows are mixed",
        UPDATE,
        "{name: value[rows] for name",
        '{name: value[rows if name != "advantages" else slice(len(rows))] for name',
        BOUNDARY,
    ),
    Mutation(
        "old log-probabilities stay where they were when rows are mixed",
        UPDATE,
        "{name: value[rows] for name",
        '{name: value[rows if name != "old_log_probs" else slice(len(rows))] for name',
        BOUNDARY,
    ),
    Mutation(
        "advantages not centred", UPDATE, 'if config.baseline == "none":', 'if config.baseline != "none":', BOUNDARY
    ),
    Mutation("the prompt is learnt", LOOP, "mask[row, len(prompt) - 1 : end - 1]", "mask[row, : end - 1]", BOUNDARY),
    Mutation(
        "an optimiser step has the tokens of all minibatches",
        UPDATE,
        'step_tokens=float(arrays["mask"].sum())',
        "step_tokens=rollouts.step_tokens",
        BOUNDARY,
    ),
    Mutation(
        "the reference is what the run began with",
        LOOP,
        "reference = setup.make_model(frozen, frozen=True)",
        "from faisca.parameters import initial_parameters as first\n    "
        "reference = setup.make_model(first(setup.model_config, setup.seed))",
        BOUNDARY,
    ),
    Mutation(
        "the first step without warm-up",
        LOOP,
        "rate = learning_rate(config, stage.step, config.steps)",
        "rate = learning_rate(config, stage.step or config.warmup_steps, config.steps)",
        BOUNDARY,
    ),
    Mutation(
        "the last epoch is left out",
        UPDATE,
        "for epoch in range(config.epochs):",
        "for epoch in range(max(config.epochs - 1, 1)):",
        BOUNDARY,
    ),
    Mutation(
        "the reference at temperature 1",
        UPDATE,
        "log_probs_of_all(setup, reference, rollouts)",
        "setup.backend.token_log_probs(model=reference, tokens=rollouts.tokens, temperature=1.0, "
        "places=rollouts.places)",
        BOUNDARY,
    ),
    Mutation(
        "an entropy bonus is no signal",
        UPDATE,
        "pulled = config.entropy_weight or (",
        "pulled = (",
        "tests/test_reinforcement.py",
    ),
    Mutation(
        "rounding counts as having left the reference",
        UPDATE,
        "(gaps > ROUNDING)",
        "(gaps > 0)",
        "tests/test_reinforcement.py",
    ),
    Mutation(
        "the plan forgets micro-batches of GRPO",
        "faisca/planning/load.py",
        "config.grpo.micro_batch_size or config.grpo.minibatch_size",
        "config.grpo.minibatch_size",
        "tests/test_planning.py::test_micro_batches_of_grpo_take_less",
    ),
)
