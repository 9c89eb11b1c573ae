"""Bugs by which dropout is active where it must not be, or absent where it must be."""

from bugs.mutation import Mutation

T = "faisca_torch/"
M = "faisca_mlx/"
MODES = "parity_tests/test_11_modes.py"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "dropout in evaluation's loss (torch)",
        T + "train.py",
        "    model.eval()\n    with torch.no_grad():\n        hidden_ND = model(to_device(model, inputs)",
        "    with torch.no_grad():\n        hidden_ND = model(to_device(model, inputs)",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "dropout in logits (torch)",
        T + "train.py",
        "    model.eval()\n    with torch.no_grad():\n        hidden_ND = model(to_device(model, tokens)",
        "    with torch.no_grad():\n        hidden_ND = model(to_device(model, tokens)",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "dropout in log-probabilities (torch)",
        T + "log_probs.py",
        "    model.eval()\n    with torch.no_grad():\n        log_probs",
        "    with torch.no_grad():\n        log_probs",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "dropout in samples after a training step (torch)",
        T + "generate.py",
        "    model.eval()\n",
        "",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "a policy step in the mode that it finds (torch)",
        T + "lora.py",
        "in model.eval().modules()",
        "in model.modules()",
        MODES + "::test_absent_in_a_policy_step_right_after_a_training_step",
    ),
    Mutation(
        "blocks recomputed in evaluation lose the cache (torch)",
        T + "model.py",
        "gradient_checkpointing and self.training",
        "gradient_checkpointing",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "no dropout in training (torch)",
        T + "train.py",
        "model = learner.model.train()",
        "model = learner.model.eval()",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "dropout in evaluation's loss (MLX)",
        M + "train.py",
        "    model.eval()\n    hidden_ND",
        "    hidden_ND",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "dropout in logits (MLX)",
        M + "train.py",
        "    model.eval()\n    return np.array(project(",
        "    return np.array(project(",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "dropout in log-probabilities (MLX)",
        M + "log_probs.py",
        "    model.eval()\n    log_probs, _ = shifted_log_probs(",
        "    log_probs, _ = shifted_log_probs(",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "dropout in samples after a training step (MLX)",
        M + "generate.py",
        "    model.eval()\n",
        "",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "a policy step in the mode that it finds (MLX)",
        M + "lora.py",
        "in model.eval().modules()",
        "in model.modules()",
        MODES + "::test_absent_in_a_policy_step_right_after_a_training_step",
    ),
    Mutation(
        "blocks recomputed in evaluation lose the cache (MLX)",
        M + "model.py",
        "gradient_checkpointing and self.training",
        "gradient_checkpointing",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "no dropout in training (MLX)",
        M + "train.py",
        "    learner.model.train()\n",
        "    learner.model.eval()\n",
        MODES + "::test_absent_right_after_a_training_step",
    ),
    Mutation(
        "no dropout once the model has been evaluated (torch)",
        T + "train.py",
        "model = learner.model.train()",
        "model = learner.model if learner.optimizer.state else learner.model.train()",
        MODES + "::test_training_goes_on_as_if_nobody_had_looked",
    ),
    Mutation(
        "no dropout once the model has been evaluated (MLX)",
        M + "train.py",
        "    learner.model.train()\n",
        "    if learner.optimizer.step.item() == 0:\n        learner.model.train()\n",
        MODES + "::test_training_goes_on_as_if_nobody_had_looked",
    ),
)
