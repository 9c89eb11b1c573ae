"""Bugs in tasks and rewards: what a hasty port does with prompts that differ, columns, NaN, weights and processes."""

from bugs.mutation import Mutation

GRPO, JUDGE, SAMPLES = "faisca/training/grpo.py", "faisca/rewards/judge.py", "faisca/rewards/samples.py"
PROMPTS, REPORT = "faisca/data/prompts.py", "faisca/training/rollout_report.py"
BOUNDARY, REWARDS = "tests/test_boundary.py", "tests/test_rewards.py"
COLUMNS = f"{BOUNDARY}::test_weighted_rewards_see_the_prompt_and_columns_of_their_row"
BUGS = (
    Mutation(
        "columns in another order than completions",
        GRPO,
        "tasks = [task for task in chosen for _ in range(config.group_size)]",
        "tasks = [task for _ in range(config.group_size) for task in chosen]",
        COLUMNS,
    ),
    Mutation(
        "columns of a step's first prompt for all",
        SAMPLES,
        "[task.columns[name] for task in tasks]",
        "[tasks[0].columns[name]] * len(tasks)",
        COLUMNS,
    ),
    Mutation(
        "every pass over the prompts in one order",
        PROMPTS,
        "len(self.all), turn)[place]",
        "len(self.all), 0)[place]",
        "tests/test_prompts.py::test_each_pass_over_a_file_has_every_prompt_once_in_an_order_of_its_own",
    ),
    Mutation(
        "prompts drawn, not shuffled",
        PROMPTS,
        'permutation(seed, "order of grpo prompts", len(self.all), turn)[place]',
        'permutation(seed, "order of grpo prompts", len(self.all), turn + place)[0]',
        "tests/test_prompts.py::test_each_pass_over_a_file_has_every_prompt_once_in_an_order_of_its_own",
    ),
    Mutation(
        "an answer may be asked for as if it were a question",
        PROMPTS,
        'if messages[-1]["role"] == "assistant":',
        'if messages[-1]["role"] == "nobody":',
        "tests/test_prompts.py::test_a_bad_line_is_named_in_one_line",
    ),
    Mutation(
        "NaN of a reward counted as 0 where all are NaN",
        JUDGE,
        "return np.where(np.isnan(parts).all(axis=0), np.nan, total)",
        "return total",
        REWARDS,
    ),
    Mutation(
        "NaN of one reward takes the whole sum",
        JUDGE,
        "np.nansum(weights[:, None] * parts, axis=0)",
        "np.sum(weights[:, None] * parts, axis=0)",
        REWARDS,
    ),
    Mutation(
        "weights on the wrong reward",
        JUDGE,
        "weights[:, None] * parts",
        "weights[::-1, None] * parts",
        REWARDS,
    ),
    Mutation(
        "a completion that a reward fails for has reward 0",
        JUDGE,
        "values = [np.nan if outcome.rewards is None",
        "values = [0.0 if outcome.rewards is None",
        REWARDS,
    ),
    Mutation(
        "a reward that fails for every completion is no error",
        JUDGE,
        "if len(bad) == rows:",
        "if len(bad) > rows:",
        REWARDS,
    ),
    Mutation(
        "failures are not said",
        JUDGE,
        "        if bad:\n            self.say(",
        "        if len(bad) > rows:\n            self.say(",
        REWARDS,
    ),
    Mutation(
        "each completion judged with the columns of the first",
        SAMPLES,
        "columns = {name: [values[i]] for name, values in self.columns.items()}",
        "columns = {name: [values[0]] for name, values in self.columns.items()}",
        "tests/test_reward_workers.py::test_rewards_of_a_row_have_its_columns",
    ),
    Mutation(
        "answers of processes in the order in which they come",
        "faisca/rewards/workers.py",
        "return [done[number] for number in sorted(done)]",
        "return list(done.values())",
        "tests/test_reward_workers.py::test_outcomes_stand_in_the_order_of_the_jobs",
    ),
    Mutation(
        "distinct compares completions of other prompts",
        "faisca/rewards/built_in.py",
        "keys = [repr(prompt) for prompt in prompts]",
        'keys = ["" for prompt in prompts]',
        f"{REWARDS}::test_distinct_compares_completions_of_one_prompt",
    ),
    Mutation(
        "means of rewards over what is no number",
        REPORT,
        'zip((f"reward/{name}_mean", f"reward/{name}_std"), mean_and_deviation(values), strict=True)',
        'zip((f"reward/{name}_mean", f"reward/{name}_std"), mean_and_deviation(np.nan_to_num(values)), strict=True)',
        COLUMNS,
    ),
    Mutation(
        "completions recorded with the advantage of another row",
        REPORT,
        '"advantage": self.advantages[row]',
        '"advantage": self.advantages[-1 - row]',
        f"{BOUNDARY}::test_every_completion_is_on_record",
    ),
    Mutation(
        "completions of a resumed run added to those that it makes again",
        "faisca/training/run.py",
        '"metrics_sha256", "completions_bytes", "completions_sha256")',
        '"metrics_sha256")',
        f"{BOUNDARY}::test_a_resumed_run_hands_over_what_the_unbroken_run_did",
    ),
    Mutation(
        "a resumed run forgets what went wrong before",
        REPORT,
        'record["step"] <= done]',
        'record["step"] <= 0]',
        "tests/test_rollout_report.py::test_a_resumed_watch_knows_the_steps_before_it",
    ),
)
