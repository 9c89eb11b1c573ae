"""A plan that leaves something out, and a measurement that takes what it should not."""

from bugs.mutation import Mutation

PLANNED = "tests/test_planning.py::test_a_plan_is_what_a_twin_takes[torch-spark]"
CACHED = "tests/test_planning.py::test_a_cache_"
TUNED = "tests/test_tuning.py::"
BUGS = (
    Mutation(
        "the plan forgets the second moment",
        "faisca/planning/load.py",
        "return 2 * self.trained -",
        "return self.trained -",
        f"{TUNED}test_plan_tells_parts_that_add_up",
    ),
    Mutation(
        "the plan forgets what the feed-forward layer keeps",
        "faisca/planning/blocks.py",
        "feed_forward = TORCH_ACTIVATION[load.model.activation] * width * load.hidden\n",
        "feed_forward = 0\n",
        PLANNED,
    ),
    Mutation(
        "the plan forgets the gate",
        "faisca/planning/blocks.py",
        '"relu2": 2, "swiglu": 4}',
        '"relu2": 2, "swiglu": 2}',
        PLANNED.replace("spark", "llama"),
    ),
    Mutation(
        "the plan forgets the rows of experts",
        "faisca/planning/blocks.py",
        "feed_forward += 2 * width * load.rows_of_experts  #",
        "feed_forward += 0  #",
        PLANNED.replace("spark", "mixture"),
    ),
    Mutation(
        "the plan forgets that keys and values are grouped",
        "faisca/planning/plan.py",
        "rows * positions * load.keys",
        "rows * positions * load.queries",
        f"{CACHED}holds_the_heads_of_keys_and_as_many_positions_as_are_written",
    ),
    Mutation(
        "the plan forgets what the reference is kept in",
        "faisca/planning/plan.py",
        '{"reference": load.frozen}',
        '{"reference": load.parameters}',
        "tests/test_planning.py::test_a_reference_in_bfloat16_halves_the_matrices_of_blocks",
    ),
    Mutation(
        "the plan forgets that queries and keys are turned",
        "faisca/planning/blocks.py",
        "fused += width * (load.changed + HK)",
        "fused += 0",
        PLANNED.replace("spark", "llama"),
    ),
    Mutation(
        "the plan forgets the head's gradient in the loss",
        "faisca/planning/torch_step.py",
        '"gradients": waiting + load.head_gradient,\n                "activations": saved + d_hidden',
        '"gradients": waiting,\n                "activations": saved + d_hidden',
        PLANNED.replace("spark", "tied table"),
    ),
    Mutation(
        "a tuned setting may compute another loss",
        "faisca/tuning/search.py",
        "        if other:\n",
        "        if False:\n",
        f"{TUNED}test_a_setting_that_computes_another_loss_is_refused",
    ),
    Mutation(
        "what is tried may exceed the memory",
        "faisca/tuning/search.py",
        "if planned > self.opened.memory:",
        "if planned > 2 * self.opened.memory:",
        f"{TUNED}test_nothing_above_the_memory_is_tried",
    ),
    Mutation(
        "a gain within the noise is taken",
        "faisca/tuning/search.py",
        "self.after < self.before * (1 - self.noise)",
        "self.after < self.before",
        f"{TUNED}test_a_challenger_wins_by_more_than_the_noise",
    ),
    Mutation(
        "the plan of an adapter has the moments of all weights",
        "faisca/planning/load.py",
        "for name, shape in shapes if trained(name, self.model))",
        "for name, shape in shapes)",
        "tests/test_planning.py::test_an_adapters_stage_holds_its_base_once_and_trains_the_adapter_alone",
    ),
    Mutation(
        "the plan of an adapter has a second model as reference",
        "faisca/planning/plan.py",
        "if load.policy and not load.adapter else",
        "if load.policy else",
        "tests/test_planning.py::test_an_adapters_stage_holds_its_base_once_and_trains_the_adapter_alone",
    ),
    Mutation(
        "the plan of an adapter keeps what only all weights read",
        "faisca/planning/blocks.py",
        "kept - counted + rows",
        "rows",
        PLANNED.replace("spark", "adapter, some"),
    ),
    Mutation(
        "the plan forgets the copy of a base in bfloat16",
        "faisca/planning/load.py",
        "return 0 if kept == self.width else int(self.width * self.matrices)",
        "return 2 * self.matrices if self.narrow else 0",
        PLANNED.replace("spark", "adapter, base in bfloat16"),
    ),
)
