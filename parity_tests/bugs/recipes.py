"""Bugs of training ingredients: Muon, its schedule, empty outputs; and options that went."""

from bugs.mutation import Mutation

T, M, CORE = "faisca_torch/", "faisca_mlx/", "faisca/"
MUON = "parity_tests/test_19_muon.py::"
EXACT, STEPS = MUON + "test_torch_in_float64_against_the_reference", MUON + "test_three_steps_between_twins"
OPTIONS = "tests/test_recipe_options.py"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "torch: momentum that is not Nesterov's",
        T + "muon.py",
        "return gradient.lerp(moment, config.muon_momentum)",
        "return moment",
        EXACT,
    ),
    Mutation(
        "MLX: Nesterov's gradient twice",
        M + "muon.py",
        "return moments[name] + new * (gradient - moments[name])",
        "return moments[name] + gradient",
        STEPS,
    ),
    Mutation("queries, keys and values as one matrix", CORE + "muon.py", "in_proj.weight", "in_projection", EXACT),
    Mutation(
        "values not apart from keys",
        CORE + "muon.py",
        "[config.num_heads, config.num_heads + config.kv_heads]",
        "[config.num_heads]",
        EXACT,
    ),
    Mutation("step length of rows alone", CORE + "muon.py", "max(shape[-2:])", "shape[-2]", EXACT),
    Mutation(
        "MLX: the largest number in place of the norm",
        M + "muon.py",
        "mx.sqrt(row_sums(row_sums(x.square())))",
        "mx.abs(x).max(axis=(-1, -2))",
        STEPS,
    ),
    Mutation(
        "MLX: decay applied twice",
        M + "muon.py",
        "step_RC + config.weight_decay",
        "step_RC + 2 * config.weight_decay",
        STEPS,
    ),
    Mutation(
        "torch: Muon at AdamW's rate", T + "muon.py", "learning_rate * config.muon_rate_ratio", "learning_rate", STEPS
    ),
    Mutation("another polynomial", CORE + "muon.py", "-4.7750", "-4.7550", EXACT),
    Mutation(
        "torch: the gradient of a skipped step stays in the moment",
        T + "muon.py",
        "torch.where(finite, weight.grad, moment)",
        "weight.grad",
        MUON + "test_what_is_not_finite_changes_nothing",
    ),
    Mutation(
        "empty projections up, in place of down",
        CORE + "parameters.py",
        'config.zero_outputs and layer == "down"',
        'config.zero_outputs and layer == "up"',
        OPTIONS,
    ),
    Mutation(
        "wsd ends a step late",
        CORE + "training/schedule.py",
        "max(0, total - 1 - step) / decay_steps",
        "max(0, total - step) / decay_steps",
        "tests/test_schedule.py",
    ),
    Mutation(
        "an option that was removed, and is on, is read as off",
        CORE + "config/files.py",
        "if (type(value), value) != (type(off), off):",
        "if type(value) is not type(off):",
        "tests/test_config.py",
    ),
)
