"""Bugs of the training step and of AdamW."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
BUGS: tuple[Mutation, ...] = (
    Mutation("no bias correction", M + "optimizer.py", "return -mx.expm1(", "return 1 + 0 * (", "05"),
    Mutation(
        "MLX's own sum for the norm",
        M + "optimizer.py",
        "total(gradient.square())",
        "gradient.square().sum()",
        "05",
    ),
    Mutation(
        "decay on norms and biases",
        T + "optimizer.py",
        '{"params": groups[False], "weight_decay": 0.0}',
        '{"params": groups[False], "weight_decay": config.weight_decay}',
        "05",
    ),
    Mutation(
        "decay coupled to the gradient",
        T + "optimizer.py",
        "optimizer = torch.optim.AdamW(",
        "optimizer = torch.optim.Adam(",
        "05",
    ),
    Mutation("default epsilon of Adam", T + "optimizer.py", "eps=config.epsilon", "eps=1e-8", "05"),
    Mutation(
        "betas swapped",
        M + "optimizer.py",
        "betas=[config.beta1, config.beta2]",
        "betas=[config.beta2, config.beta1]",
        "05",
    ),
    Mutation(
        "micro-batches each averaged",
        T + "train.py",
        "to_device(model, targets[part]), True) / counted",
        "to_device(model, targets[part]), True) / targets[part].size",
        "05",
    ),
    Mutation("gradients kept for the next step", T + "optimizer.py", "    learner.model.zero_grad()\n", "", "05"),
    Mutation(
        "moments swapped in a checkpoint",
        M + "device.py",
        '{"first_moment": "m", "second_moment": "v"}',
        '{"first_moment": "v", "second_moment": "m"}',
        "05",
    ),
    Mutation(
        "step count lost on resuming", T + "device.py", 'torch.tensor(float(state["step"])', "torch.tensor(0.0", "05"
    ),
)
