"""Bugs of AdamW's arithmetic, its rate, and the state that it is given and gives out."""

from bugs.mutation import Mutation

T = "faisca_torch/"
M = "faisca_mlx/"
ADAM = "parity_tests/test_05_arithmetic.py"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "epsilon inside the root",
        M + "optimizer.py",
        '(mx.sqrt(state["v"]) + self.eps * correction)',
        'mx.sqrt(state["v"] + (self.eps * correction) ** 2)',
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "epsilon corrected with the root",
        M + "optimizer.py",
        "self.eps * correction",
        "self.eps",
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "decay after the update",
        M + "optimizer.py",
        "optimizer.apply_gradients(usable, _decayed(model.trainable_parameters(), config, rate))",
        "_decayed(optimizer.apply_gradients(usable, model.trainable_parameters()), config, rate)",
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "decay by the peak rate",
        M + "optimizer.py",
        "1 - learning_rate * config.weight_decay",
        "1 - config.learning_rate * config.weight_decay",
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "decay not scaled by the rate",
        M + "optimizer.py",
        "1 - learning_rate * config.weight_decay",
        "1 - config.weight_decay",
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "bias correction a step late",
        M + "optimizer.py",
        "correction / _correction(beta1, step)",
        "correction / _correction(beta1, step + 1)",
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "second moment of the mean gradient",
        M + "optimizer.py",
        "(1 - beta2) * mx.square(gradient)",
        '(1 - beta2) * mx.square(state["m"])',
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "rate for the decayed group only",
        T + "optimizer.py",
        "for group in learner.optimizer.param_groups:",
        "for group in learner.optimizer.param_groups[:1]:",
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "the rate of the step before",
        T + "optimizer.py",
        '        group["lr"] = learning_rate',
        '        group["lr"], group["next"] = group.get("next", learner.config.learning_rate), learning_rate',
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "a rate of 0 is the configured one (torch)",
        T + "optimizer.py",
        'group["lr"] = learning_rate',
        'group["lr"] = learning_rate or learner.config.learning_rate',
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "a rate of 0 is the configured one (MLX)",
        M + "train.py",
        "(*parts, mx.array(learning_rate), ",
        "(*parts, mx.array(learning_rate or learner.config.learning_rate), ",
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "policy steps at the configured rate (torch)",
        T + "grpo.py",
        '{"loss": torch.stack(losses).sum()}, learning_rate=learning_rate)',
        '{"loss": torch.stack(losses).sum()}, learning_rate=config.learning_rate)',
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "policy steps at the configured rate (MLX)",
        M + "grpo.py",
        "to_device(model, places_MN), mx.array(learning_rate))",
        "to_device(model, places_MN), mx.array(config.learning_rate))",
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "the rate stays the configured one",
        M + "optimizer.py",
        "optimizer.state.update(learning_rate=rate, finite=finite)",
        "optimizer.state.update(finite=finite)",
        ADAM + "::test_four_steps_at_four_rates",
    ),
    Mutation(
        "restored moments share the caller's memory",
        T + "device.py",
        'torch.tensor(state[f"{ours}.{name}"], device=device)',
        'torch.from_numpy(state[f"{ours}.{name}"])',
        ADAM + "::test_states_are_copies_in_both_directions",
    ),
    Mutation(
        "moments are given out with the memory of the optimiser",
        T + "device.py",
        "_whole(tensor.detach()).float().cpu().numpy().copy()",
        "_whole(tensor.detach()).float().cpu().numpy()",
        ADAM + "::test_states_are_copies_in_both_directions",
    ),
    Mutation(
        "the step count is not restored",
        M + "device.py",
        '    slots["step"] = mx.array(int(state["step"]), learner.optimizer.step.dtype)\n',
        "",
        "tests/test_backend.py::test_optimizer_state_goes_out_and_in_bit_for_bit",
    ),
    Mutation(
        "norms decay by the name of their weight",
        "faisca/parameters.py",
        'decay == "all" or len(shape) >= 2',
        'decay == "all" or name.endswith("weight")',
        "tests/test_parameters.py",
    ),
    Mutation(
        "warm-up begins with a rate of 0",
        "faisca/training/schedule.py",
        "(step + 1) / config.warmup_steps",
        "step / config.warmup_steps",
        "tests/test_schedule.py",
    ),
)
