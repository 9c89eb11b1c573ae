"""A plan that leaves something out, and a measurement that takes what it should not."""

from bugs.mutation import Mutation

PLANNED = "tests/test_planning.py::test_a_plan_is_what_a_twin_takes[torch-spark]"
TUNED = "tests/test_tuning.py::"
BUGS = (
    Mutation(
        "the plan forgets the second moment",
        "faisca/planning/plan.py",
        '"optimiser": 2 * load.parameters',
        '"optimiser": load.parameters',
        f"{TUNED}test_plan_tells_parts_that_add_up",
    ),
    Mutation(
        "the plan forgets what the feed-forward layer keeps",
        "faisca/planning/blocks.py",
        "feed_forward = 2 * width * F  # before and after the activation",
        "feed_forward = 0",
        PLANNED,
    ),
    Mutation(
        "the plan forgets the head's gradient in the loss",
        "faisca/planning/torch_step.py",
        '"gradients": waiting + load.head,',
        '"gradients": waiting,',
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
)
