"""Bugs in which an option does not reach what it governs: in the core, and in either twin."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
GOVERNS = "tests/test_options_reach.py::test_an_option_changes_what_it_governs"
TWIN = "tests/test_options_in_twins.py::"
BUGS = (
    Mutation(
        "scale_rewards ignored",
        "faisca/training/grpo_update.py",
        "group_advantages(rewards, config.group_size, config.scale_rewards)",
        'group_advantages(rewards, config.group_size, "group")',
        f"{GOVERNS}[grpo.scale_rewards]",
    ),
    Mutation(
        "mask_truncated ignored",
        "faisca/training/grpo.py",
        "= not (truncated and mask_truncated)",
        "= 1",
        f"{GOVERNS}[grpo.mask_truncated]",
    ),
    Mutation(
        "log_every ignored",
        "faisca/training/stage.py",
        "len(self._pending) >= self.run.config.run.log_every",
        "len(self._pending) >= 10",
        f"{GOVERNS}[run.log_every]",
    ),
    Mutation(
        "max_bad_steps ignored",
        "faisca/training/stage.py",
        "progress.skipped_in_a_row >= run.config.run.max_bad_steps",
        "progress.skipped_in_a_row >= 10",
        f"{GOVERNS}[run.max_bad_steps]",
    ),
    Mutation(
        "keep ignored",
        "faisca/training/run.py",
        "prune_checkpoints(self.folder, self.config.run.keep,",
        "prune_checkpoints(self.folder, 3,",
        f"{GOVERNS}[run.keep]",
    ),
    Mutation(
        "the columns of addresses have one name",
        "faisca/data/sources.py",
        '"url": config.url_column}',
        '"url": "requested_url"}',
        f"{GOVERNS}[data.url_column]",
    ),
    Mutation(
        "the share that is held out is fixed",
        "faisca/data/headlines.py",
        "_hold_out(train, config.validation_share, seed)",
        "_hold_out(train, 0.05, seed)",
        f"{GOVERNS}[data.validation_share]",
    ),
    Mutation(
        "the cosine ends at a tenth",
        "faisca/training/schedule.py",
        "floor = config.min_learning_rate_share",
        "floor = 0.1",
        "tests/test_boundary.py::test_every_training_step_has_its_rate_seed_and_micro_batches",
    ),
    Mutation(
        "loss_chunk ignored",
        M + "device.py",
        "loss_chunk=config.loss_chunk or LOSS_CHUNK",
        "loss_chunk=LOSS_CHUNK",
        TWIN + "test_loss_chunk_bounds_the_logits",
    ),
    Mutation(
        "all logits at once",
        T + "losses.py",
        "targets_BT.flatten(), model.runtime.loss_chunk, with_gradients",
        "targets_BT.flatten(), targets_BT.numel(), with_gradients",
        TWIN + "test_loss_chunk_bounds_the_logits",
    ),
    Mutation(
        "gradient_checkpointing ignored",
        T + "device.py",
        "gradient_checkpointing=config.gradient_checkpointing,",
        "gradient_checkpointing=False,",
        TWIN + "test_gradient_checkpointing_keeps_less",
    ),
    Mutation(
        "nothing recomputed",
        M + "model.py",
        "if self.runtime.gradient_checkpointing and self.training:",
        "if False:",
        TWIN + "test_gradient_checkpointing_keeps_less",
    ),
    Mutation(
        "compile ignored",
        T + "device.py",
        "torch.compile(step) if runtime.compile else step",
        "step",
        TWIN + "test_compile_reaches_the_step",
    ),
    Mutation(
        "explicit attention ignored",
        M + "device.py",
        "attention=config.attention,",
        'attention="fused",',
        TWIN + "test_explicit_attention_leaves_the_fused_kernel_alone",
    ),
    Mutation(
        "the cap of the cache ignored",
        M + "device.py",
        "if config.cache_limit_gb:",
        "if False:",
        TWIN + "test_the_cache_limit_reaches_mlx",
    ),
    Mutation(
        "dtype ignored",
        T + "model.py",
        'self.narrow = runtime.dtype == "bfloat16"',
        "self.narrow = False",
        TWIN + "test_dtype_reaches_the_arithmetic",
    ),
    Mutation(
        "the policy's temperature ignored in its step",
        T + "grpo.py",
        "here.tokens, places_N, config.temperature",
        "here.tokens, places_N, 1.0",
        TWIN + "test_an_option_of_the_policy_loss_reaches_the_twins_steps",
    ),
    Mutation(
        "CISPO's cap fixed",
        M + "grpo.py",
        "mx.minimum(ratio, config.cispo_cap)",
        "mx.minimum(ratio, 5.0)",
        TWIN + "test_an_option_of_the_policy_loss_reaches_the_twins_steps",
    ),
)
