"""Adapters: scale, sides, what is frozen, what is merged, and which base they belong to."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
RUNG = "parity_tests/test_20_lora.py"
REFERENCE = f"{RUNG}::test_logits_and_gradients_against_the_reference"
RUNG_DROPOUT = "parity_tests/test_20_dropout.py"
DROPOUT = f"{RUNG_DROPOUT}::test_dropout_is_of_what_the_adapter_reads"
PORTING = "tests/test_porting_adapters.py"
RUNS = "tests/test_adapters.py"

BUGS = (
    Mutation("alpha over rank forgotten", "faisca/config/model.py", "self.alpha / self.rank", "1.0", REFERENCE),
    Mutation(
        "alpha is not divided by the rank", "faisca/config/model.py", "self.alpha / self.rank", "self.alpha", REFERENCE
    ),
    Mutation(
        "torch: the scale counts twice",
        T + "lora.py",
        "self.scale * narrow",
        "self.scale * self.scale * narrow",
        REFERENCE,
    ),
    Mutation(
        "MLX: the scale counts twice",
        M + "lora.py",
        "self.scale * narrow",
        "self.scale * self.scale * narrow",
        REFERENCE,
    ),
    Mutation(
        "A begins at 0, and B does not",
        "faisca/parameters.py",
        """.a"] = Parameter((*stack, rank, inputs), _uniform(inputs))
                rows[f"{module}.lora.{part}.b"] = Parameter((*stack, outputs, rank), _zeros)""",
        """.a"] = Parameter((*stack, rank, inputs), _zeros)
                rows[f"{module}.lora.{part}.b"] = Parameter((*stack, outputs, rank), _uniform(rank))""",
        f"{RUNG}::test_at_first_an_adapter_changes_nothing",
    ),
    Mutation(
        "torch: dropout of what A makes",
        T + "lora.py",
        "narrow = product(self.dropout(x), self.a.to(x.dtype))",
        "narrow = self.dropout(product(x, self.a.to(x.dtype)))",
        DROPOUT,
    ),
    Mutation(
        "MLX: dropout of what A makes",
        M + "lora.py",
        "narrow = product(self.dropout(x), self.a.astype(x.dtype))",
        "narrow = self.dropout(product(x, self.a.astype(x.dtype)))",
        DROPOUT,
    ),
    *(
        Mutation(
            f"{name}: what a policy's adapter drops is not seeded",
            f"{package}lora.py",
            f"    {call}(seed)\n",
            "",
            f"{RUNG_DROPOUT}::test_a_policys_adapter_drops_what_the_seed_says",
        )
        for name, package, call in (("torch", T, "torch.manual_seed"), ("MLX", M, "mx.random.seed"))
    ),
    Mutation(
        "MLX: the policy drops with its adapter",
        M + "lora.py",
        "in model.eval().modules()",
        "in model.train().modules()",
        f"{RUNG_DROPOUT}::test_a_policys_own_dropout_stays_off",
    ),
    Mutation(
        "MLX: a policy's adapter drops nothing",
        M + "lora.py",
        "            module.train()\n",
        "            module.eval()\n",
        f"{RUNG_DROPOUT}::test_a_policys_adapter_drops_what_the_seed_says",
    ),
    Mutation(
        "every update of a policy drops the same",
        "faisca/training/grpo_update.py",
        ', epoch {epoch}, minibatch {number}"',
        '"',
        f"{RUNS}::test_each_update_of_grpo_has_a_seed_of_its_own",
    ),
    Mutation(
        "every step of a policy drops the same",
        "faisca/training/grpo_update.py",
        "integer_seed(setup.seed, purpose, step)",
        "integer_seed(setup.seed, purpose)",
        f"{RUNS}::test_each_update_of_grpo_has_a_seed_of_its_own",
    ),
    Mutation(
        "torch: the base is trained too",
        T + "model.py",
        "parameter.requires_grad_(trained(name, config))",
        "parameter.requires_grad_(True)",
        f"{RUNG}::test_the_base_stays_bit_for_bit",
    ),
    Mutation(
        "MLX: the base is trained too",
        M + "lora.py",
        "    model.freeze()\n",
        "",
        f"{RUNG}::test_the_base_stays_bit_for_bit",
    ),
    Mutation(
        "torch: experts without their adapter",
        T + "experts.py",
        'product_RD + self.lora(x_RD, product, self.weight, product_RD) if hasattr(self, "lora") else product_RD',
        "product_RD",
        REFERENCE,
    ),
    Mutation(
        "MLX: the adapters of queries and values in each other's columns",
        M + "lora.py",
        "for part, outputs in self._parts:",
        "for part, outputs in reversed(self._parts):",
        REFERENCE,
    ),
    Mutation(
        "MLX: the base without its adapter is another model",
        M + "lora.py",
        "base._rotation = model._rotation",
        "base._rotation = None if model._rotation is None else tuple(table * 1.01 for table in model._rotation)",
        f"{RUNG}::test_without_its_adapter_it_is_the_base_and_shares_its_arrays",
    ),
    Mutation(
        "torch: the base of a policy is a copy",
        T + "lora.py",
        "shared = {name: weight for",
        "shared = {name: weight.clone() for",
        f"{RUNG}::test_without_its_adapter_it_is_the_base_and_shares_its_arrays",
    ),
    Mutation(
        "merged twice",
        "faisca/lora.py",
        "+= adapter.scale * b @ a",
        "+= 2 * adapter.scale * b @ a",
        f"{RUNG}::test_the_merged_model_is_the_same",
    ),
    Mutation(
        "merged in the rows of another part",
        "faisca/lora.py",
        "            start += rows\n",
        "",
        f"{RUNG}::test_the_merged_model_is_the_same",
    ),
    Mutation(
        "GRPO's reference has the adapter",
        "faisca/training/grpo.py",
        "reference = backend.base_of(model=model)",
        "reference = model",
        f"{RUNS}::test_the_reference_has_no_adapter",
    ),
    Mutation(
        "the base is not checked",
        "faisca/runs/base.py",
        "if base_sha256(weights, model) != sha256:",
        "if sha256 is None:",
        f"{RUNS}::test_a_base_that_does_not_match_is_refused",
    ),
    Mutation(
        "a stage begins with the base of the one before",
        "faisca/training/adapters.py",
        "return merged(weights(run, model), run.setup.model_config)",
        "return merged(weights(run, model), plain(run.setup.model_config))",
        f"{RUNS}::test_grpo_begins_with_what_sft_learnt_added_up",
    ),
    Mutation(
        "mlx-lm's scale is taken for alpha",
        "faisca/porting/adapter_folders.py",
        "    alpha = scale * rank\n",
        "    alpha = scale\n",
        f"{PORTING}::test_one_of_mlx_lms_making_comes_in_and_goes_to_peft",
    ),
    Mutation(
        "another base is taken",
        "faisca/porting/adapters.py",
        "if base_sha256(base.parameters, base.model) != state.base_sha256:",
        "if state.base_sha256 is None:",
        f"{PORTING}::test_another_base_is_refused",
    ),
    Mutation(
        "what PEFT trains besides is left out silently",
        "faisca/porting/adapter_folders.py",
        '    "rank_pattern": (OFF, "other ranks for some matrices, where ours has one"),\n',
        "",
        f"{PORTING}::test_what_ours_does_not_have_is_refused_by_name",
    ),
    Mutation(
        "torch: DoRA's norm carries a gradient",
        T + "lora.py",
        "with torch.no_grad():\n            norm_O",
        "with torch.enable_grad():\n            norm_O",
        REFERENCE,
    ),
    Mutation(
        "MLX: DoRA's norm carries a gradient",
        M + "lora.py",
        "mx.stop_gradient(mx.linalg.norm(moved, axis=-1))",
        "mx.linalg.norm(moved, axis=-1)",
        REFERENCE,
    ),
    Mutation(
        "torch: DoRA divides by the base's length",
        T + "lora.py",
        "weight.float() + self.scale * self.b @ self.a",
        "weight.float()",
        REFERENCE,
    ),
    Mutation(
        "MLX: DoRA resizes the bias too",
        M + "model.py",
        "product - self.bias.astype(x_BTD.dtype) if self.lora.dora and",
        "product if self.lora.dora and",
        REFERENCE,
    ),
    Mutation(
        "DoRA's lengths are merged without m",
        "faisca/lora.py",
        "(m / np.linalg.norm(own, axis=-1))",
        "(0 * m + 1 / np.linalg.norm(own, axis=-1))",
        f"{RUNG}::test_the_merged_model_is_the_same",
    ),
    Mutation(
        "DoRA begins with lengths of 1",
        "faisca/parameters.py",
        "    return drawn | _lengths(config, drawn)\n",
        "    return drawn\n",
        f"{RUNG}::test_at_first_rows_are_as_long_as_the_bases",
    ),
    Mutation(
        "DoRA goes to PEFT as LoRA",
        "faisca/porting/adapter_folders.py",
        '"use_dora": adapter.dora,',
        '"use_dora": False,',
        f"{PORTING}::test_one_of_mlx_lms_making_comes_in_and_goes_to_peft",
    ),
)
