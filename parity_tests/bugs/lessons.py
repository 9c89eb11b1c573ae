"""Bugs in the single-file lessons: rung 0 compares them with the packages and with each other."""

from bugs.mutation import Mutation

TORCH, MLX = "lessons/torch_in_one_file.py", "lessons/mlx_in_one_file.py"
RUNG = "parity_tests/test_00_lessons.py"
SCRIPTS = "tests/test_lessons.py"
BUGS = (
    Mutation("lesson: scores scaled by the model's width", TORCH, "(D // self.heads) ** 0.5", "D**0.5", RUNG),
    Mutation(
        "lesson: a position sees the next one", MLX, "mx.arange(T)[:, None]\n", "mx.arange(T)[:, None] + 1\n", RUNG
    ),
    Mutation("lesson: tanh GELU", MLX, "nn.gelu(", "nn.gelu_approx(", RUNG),
    Mutation(
        "lesson: post-norm", TORCH, "self.attention(self.norm1(x_BTD))", "self.norm1(self.attention(x_BTD))", RUNG
    ),
    Mutation("lesson: default initial values", TORCH, "    model.load_state_dict(", "    dict(", RUNG),
    Mutation("lesson: no bias correction", MLX, "bias_correction=True", "bias_correction=False", RUNG),
    Mutation("lesson: gradients kept for the next step", TORCH, "    optimizer.zero_grad()", "    pass", RUNG),
    Mutation("lesson: gradients not clipped", MLX, "clip_grad_norm(gradients, 1.0)", "(gradients, 0.0)", RUNG),
    Mutation("lesson: no weight decay", TORCH, "weight_decay=weight_decay)", "weight_decay=0.0)", RUNG),
    Mutation(
        "lesson: rows go on after their end", MLX, "chosen_R = mx.where(ended_R, end_of_text, chosen_R)", "pass", RUNG
    ),
    Mutation(
        "lesson: categorical on probabilities",
        MLX,
        "return mx.minimum(passed_R, logits_RV.shape[1] - 1)",
        "return mx.random.categorical(mx.softmax(logits_RV, axis=1))",
        RUNG,
    ),
    Mutation(
        "lesson: temperature ignored in the log-probabilities",
        TORCH,
        "(model.eval()(tokens_BT[:, :-1]) / temperature)",
        "model.eval()(tokens_BT[:, :-1])",
        RUNG,
    ),
    Mutation("lesson: end-of-text not learnt", MLX, "np.cumsum(ends, 1) - ends == 0", "np.cumsum(ends, 1) == 0", RUNG),
    Mutation("lesson: population standard deviation", TORCH, "rewards.std(ddof=1)", "rewards.std()", RUNG),
    Mutation(
        "lesson: KL the wrong way round",
        MLX,
        "on_device(rollouts.reference) - log_p",
        "log_p - on_device(rollouts.reference)",
        RUNG,
    ),
    Mutation("lesson: clipping takes the larger", TORCH, "torch.minimum(ratio * A", "torch.maximum(ratio * A", RUNG),
    Mutation(
        "lesson: averaged over all tokens alike",
        MLX,
        "(losses_BT.sum(1) / mx.maximum(mask.sum(1), 1)).mean()",
        "losses_BT.sum() / mx.maximum(mask.sum(), 1)",
        RUNG,
    ),
    Mutation("lesson: the reference learns, too", TORCH, "copy.deepcopy(model), ", "model, ", RUNG),
    Mutation("lesson: words with their punctuation", MLX, 're.findall(r"\\w+", ', 're.findall(r"\\S+", ', RUNG),
    Mutation("lesson: dropout in GRPO", TORCH, "(model.eval()(tokens_BT", "(model(tokens_BT", SCRIPTS),
    Mutation("lesson: targets are the inputs", MLX, "windows_BS[:, 1:]", "windows_BS[:, :-1]", SCRIPTS),
)
