"""Bugs by which a random number is used twice, or ignores what it should depend on."""

from bugs.mutation import Mutation

T = "faisca_torch/"
M = "faisca_mlx/"
MASKS = "parity_tests/test_11_randomness.py"
DRAWS = "tests/test_draws.py"
REINFORCE, UPDATE = "faisca/training/grpo.py", "faisca/training/grpo_update.py"
TRAIN = "faisca/training/train.py"
EVALUATION = "faisca/training/evaluate.py"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "micro-batches drop the same",
        T + "train.py",
        "        part = slice(rows, rows +",
        "        torch.manual_seed(dropout_seed)\n        part = slice(rows, rows +",
        MASKS + "::test_micro_batches_of_a_step_drop_anew",
    ),
    Mutation(
        "every step drops the same",
        T + "train.py",
        "torch.manual_seed(dropout_seed)",
        "torch.manual_seed(0)",
        MASKS + "::test_each_step_drops_anew_and_its_seed_decides",
    ),
    Mutation(
        "steps drop one of two ways",
        M + "train.py",
        "mx.random.seed(dropout_seed)",
        "mx.random.seed(dropout_seed % 2)",
        MASKS + "::test_each_step_drops_anew_and_its_seed_decides",
    ),
    Mutation(
        "the random state is no input of the compiled step",
        M + "optimizer.py",
        "self.optimizer.state, mx.random.state]",
        "self.optimizer.state]",
        MASKS + "::test_each_step_drops_anew_and_its_seed_decides",
    ),
    Mutation(
        "a recomputed block's sites drop the same",
        M + "model.py",
        "mx.random.split(random_key, 3)",
        "[random_key] * 3",
        MASKS + "::test_sites_blocks_and_steps_have_masks_of_their_own",
    ),
    Mutation(
        "recomputed blocks drop by their number alone",
        M + "model.py",
        "key = mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)",
        "key = mx.random.key(block.attention.layer)",
        MASKS + "::test_sites_blocks_and_steps_have_masks_of_their_own",
    ),
    Mutation(
        "all recomputed blocks drop the same",
        M + "model.py",
        "key = mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)",
        "key = mx.random.state[0]",
        MASKS + "::test_sites_blocks_and_steps_have_masks_of_their_own",
    ),
    Mutation(
        "rows share a mask",
        M + "model.py",
        "mx.random.bernoulli(1 - self.rate, x.shape, key=random_key)",
        "mx.random.bernoulli(1 - self.rate, x.shape[-2:], key=random_key)",
        MASKS + "::test_rows_positions_and_features_have_masks_of_their_own",
    ),
    Mutation(
        "positions share a mask",
        M + "model.py",
        "mx.random.bernoulli(1 - self.rate, x.shape, key=random_key)",
        "mx.random.bernoulli(1 - self.rate, x.shape[-1:], key=random_key)",
        MASKS + "::test_rows_positions_and_features_have_masks_of_their_own",
    ),
    Mutation(
        "heads and rows of attention share a mask",
        M + "model.py",
        "self.dropout(shares_BHTT, random_key) @ value",
        "(shares_BHTT * self.dropout(mx.ones((T, T)), random_key)) @ value",
        MASKS + "::test_attention_drops_anew_in_each_row_head_and_position",
    ),
    Mutation(
        "whole positions are dropped",
        T + "model.py",
        "        )\n        self.dropout = nn.Dropout(",
        "        )\n        self.dropout = nn.Dropout1d(",
        MASKS + "::test_rows_positions_and_features_have_masks_of_their_own",
    ),
    Mutation(
        "completions in the same order in each epoch",
        UPDATE,
        "turn = step * config.epochs + epoch",
        "turn = step",
        DRAWS,
    ),
    Mutation(
        "the order of completions ignores the seed",
        UPDATE,
        'permutation(setup.seed, "order of grpo',
        'permutation(0, "order of grpo',
        DRAWS,
    ),
    Mutation(
        "rollouts ignore the seed",
        REINFORCE,
        'uniforms(setup.seed, "grpo rollout"',
        'uniforms(0, "grpo rollout"',
        DRAWS,
    ),
    Mutation(
        "rollouts use the numbers of the counts",
        REINFORCE,
        '"grpo rollout", step=step,',
        '"completions counted", step=step,',
        DRAWS,
    ),
    Mutation(
        "dropout's seed is the same at each step",
        TRAIN,
        'f"dropout in {name}", stage.step)',
        'f"dropout in {name}")',
        DRAWS,
    ),
    Mutation(
        "dropout's seeds are the same in both stages",
        TRAIN,
        'f"dropout in {name}", stage.step)',
        '"dropout", stage.step)',
        DRAWS,
    ),
    Mutation(
        "dropout's seeds ignore the run's", TRAIN, 'integer_seed(seed, f"dropout', 'integer_seed(0, f"dropout', DRAWS
    ),
    Mutation(
        "both stages take windows in the same order",
        TRAIN,
        "seed=seed, stage=name, step=stage.step",
        'seed=seed, stage="", step=stage.step',
        DRAWS,
    ),
    Mutation(
        "windows in the same order whatever the seed",
        TRAIN,
        "seed=seed, stage=name, step=stage.step",
        "seed=0, stage=name, step=stage.step",
        DRAWS,
    ),
    Mutation(
        "windows in the same order in each epoch",
        "faisca/data/windows.py",
        "len(windows), epoch)\n    return",
        "len(windows), 0)\n    return",
        DRAWS,
    ),
    Mutation(
        "samples use the numbers of the counts",
        EVALUATION,
        'uniforms(setup.seed, "samples shown"',
        'uniforms(setup.seed, "completions counted"',
        DRAWS,
    ),
    Mutation(
        "samples along the way repeat themselves",
        EVALUATION,
        '"samples shown", step=step,',
        '"samples shown", step=0,',
        DRAWS,
    ),
    Mutation(
        "samples ignore the seed",
        EVALUATION,
        'uniforms(setup.seed, "samples shown"',
        'uniforms(0, "samples shown"',
        DRAWS,
    ),
    Mutation(
        "counts ignore the seed",
        EVALUATION,
        'uniforms(setup.seed, "completions counted"',
        'uniforms(0, "completions counted"',
        DRAWS,
    ),
    Mutation(
        "every 64 rows use the same numbers",
        "faisca/training/generate.py",
        "uniforms=uniforms[rows]",
        "uniforms=uniforms[: len(prompts[rows])]",
        "tests/test_generation.py::test_a_row_does_not_depend_on_the_rows_beside_it",
    ),
    Mutation(
        "rows share their numbers",
        "faisca/streams.py",
        "counter=[0, 0, step, row]",
        "counter=[0, 0, step, 0]",
        "tests/test_streams.py",
    ),
    Mutation(
        "streams of two purposes are equal",
        "faisca/streams.py",
        'f"{seed}/{purpose}"',
        'f"{seed}/"',
        "tests/test_streams.py",
    ),
    Mutation(
        "a row's next token uses the number of the last",
        T + "generate.py",
        "uniforms[rows, nth_new.clip(0, sampling.max_new_tokens - 1)]",
        "uniforms[rows, nth_new.clip(0, 0)]",
        "tests/test_generation.py::test_the_cache_and_the_batch_change_no_token",
    ),
    Mutation(
        "numbers by position, not by row's own token",
        M + "generate.py",
        "uniforms[rows, nth_new.clip(0, sampling.max_new_tokens - 1)]",
        "uniforms[rows, min(position - lengths.min(), sampling.max_new_tokens - 1)]",
        "tests/test_generation.py::test_mixed_prompts_give_what_each_gives_alone",
    ),
)
