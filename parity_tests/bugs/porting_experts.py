"""Bugs of ports of mixtures of experts: an expert is as good as another, as far as shapes tell."""

from bugs.mutation import Mutation

EXPERTS, LAYOUT = "faisca/porting/layouts/experts.py", "faisca/porting/layouts/layout.py"
TESTS = "tests/test_porting_experts.py::"
IN = f"{TESTS}test_experts_come_in_exactly_from_every_kind_of_file"
OUT = f"{TESTS}test_a_mixture_of_ours_goes_out_and_comes_back_bit_by_bit"
REFUSED, HOMELESS = (
    f"{TESTS}test_what_we_do_not_compute_is_refused_by_name",
    f"{TESTS}test_a_mixture_that_no_family_computes_does_not_go_out_but_to_weights",
)
CLASSES = "parity_tests/test_02_forward.py::test_logits_against_hugging_faces_own_classes"
BUGS: tuple[Mutation, ...] = (
    Mutation(
        "w1 and w3 swapped",
        EXPERTS,
        '{"gate": "w1", "down": "w2", "up": "w3"}',
        '{"gate": "w3", "down": "w2", "up": "w1"}',
        f"{IN}[mixtral-bfloat16-shards]",
    ),
    Mutation(
        "an expert goes out as the one before it",
        LAYOUT,
        "ours[self.names.index(name)]",
        "ours[self.names.index(name) - 1]",
        f"{OUT}[qwen3_moe]",
    ),
    Mutation(
        "an expert comes in as the one after it",
        LAYOUT,
        "stack[i] = theirs[name]",
        "stack[(i + 1) % len(self.names)] = theirs[name]",
        f"{IN}[olmoe-bfloat16-one file]",
    ),
    Mutation(
        "ups above gates in a stack",
        EXPERTS,
        '{"gate": slice(half), "up": slice(half, None)}',
        '{"up": slice(half), "gate": slice(half, None)}',
        f"{IN}[qwen3_moe-float32-pickle]",
    ),
    Mutation(
        "gates and ups row by row in a stack",
        EXPERTS,
        '{"gate": slice(half), "up": slice(half, None)}',
        '{"gate": slice(0, None, 2), "up": slice(1, None, 2)}',
        f"{IN}[mixtral-float32-pickle]",
    ),
    Mutation(
        "norm_topk_prob ignored",
        EXPERTS,
        '"normalise_experts": family == "mixtral" or _normalised(config, source)',
        '"normalise_experts": bool(family == "mixtral" or _normalised(config, source) or 1)',
        f"{TESTS}test_a_ported_family_is_normalised_as_it_says[qwen3_moe]",
    ),
    Mutation(
        "norm_topk_prob written as Mixtral has it",
        EXPERTS,
        '"norm_topk_prob": model.normalise_experts}',
        '"norm_topk_prob": True}',
        f"{OUT}[olmoe]",
    ),
    Mutation(
        "torch: OLMoE's values normalised as its keys",
        "faisca_torch/model.py",
        "self.key_norm(key), value), dim=2)",
        "self.key_norm(key), self.key_norm(value)), dim=2)",
        f"{CLASSES}[torch-cpu-OLMoE]",
    ),
    Mutation(
        "MLX: OLMoE's keys not normalised",
        "faisca_mlx/model.py",
        "self.key_norm(key), value], axis=2)",
        "key, value], axis=2)",
        f"{CLASSES}[mlx-cpu-OLMoE]",
    ),
    Mutation(
        "experts in the router transposed",
        EXPERTS,
        'return Place((_block(f"model.layers.{layer}.mlp.gate.weight", model),))',
        'return Place((_block(f"model.layers.{layer}.mlp.gate.weight", model),), transposed=True)',
        f"{TESTS}test_a_router_as_wide_as_it_is_high_is_not_turned",
    ),
    Mutation(
        "another number of experts a token",
        EXPERTS,
        '"num_experts_per_tok": model.experts_per_token,',
        '"num_experts_per_tok": 2,',
        f"{OUT}[olmoe]",
    ),
    Mutation(
        "dense layers between mixtures ignored",
        EXPERTS,
        'config.get("mlp_only_layers") in (None, [])',
        "True",
        f"{REFUSED}[some layers without]",
    ),
    Mutation(
        "the weight of the balance loss is theirs",
        EXPERTS,
        'float(f"{weight * count:.12g}")',
        "float(weight)",
        f"{TESTS}test_the_loss_that_balances_comes_in_and_goes_out",
    ),
    Mutation(
        "shares of all written as a Mixtral's",
        EXPERTS,
        'model.normalise_experts or family != "mixtral"',
        "True",
        f"{HOMELESS}[shares of all without norms]",
    ),
    Mutation(
        "a stack read anew for each expert",
        LAYOUT,
        "if name not in last:",
        "if name:",
        f"{TESTS}test_a_stack_is_read_once_for_all_of_its_experts",
    ),
    Mutation(
        "what transformers does not find, drawn at random",
        "faisca_torch/interop.py",
        'if missing := sorted(found["missing_keys"]):',
        "if missing := []:",
        f"{TESTS}test_stacks_of_both_libraries_come_in[mixtral-mlx_lm]",
    ),
)
