"""Bugs of precision, of a signal that is not there, and of sums in the sampler."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
BUGS = (
    # accumulators
    Mutation(
        "MLX: the head's gradient added up in bfloat16",
        M + "losses.py",
        "return d_hidden_nD, d_head_VD + (errors_nV.T @ shared_hidden_nD).astype(mx.float32)",
        "return d_hidden_nD, (d_head_VD + errors_nV.T @ shared_hidden_nD).astype(exps_nV.dtype)",
        "10",
    ),
    Mutation(
        "torch: the head's gradient added up in bfloat16",
        T + "losses.py",
        "d_head_VD = torch.zeros_like(head_VD) if wanted else None",
        "d_head_VD = torch.zeros_like(narrow_head_VD) if wanted else None",
        "10",
    ),
    Mutation(
        "torch: the head's policy gradient added up in bfloat16",
        T + "log_probs.py",
        "torch.zeros_like(head_VD) if ctx.needs_input_grad[1]",
        "torch.zeros_like(narrow_head_VD) if ctx.needs_input_grad[1]",
        "10",
    ),
    Mutation(
        "MLX: the embedding cast before the gather",
        M + "model.py",
        "self.token_embedding(tokens_BT)",
        "self.token_embedding.weight.astype(mx.bfloat16)[tokens_BT]",
        "10",
    ),
    Mutation(
        "MLX: micro-batches added up in bfloat16",
        M + "train.py",
        "tree_map(mx.add, gradients, more)",
        "tree_map(lambda a, b: (a + b).astype(mx.bfloat16), gradients, more)",
        "10",
    ),
    Mutation(
        "MLX: the one-hot subtracted after the product is rounded",
        M + "losses.py",
        "    errors_nV = mx.put_along_axis(exps_nV, picked_n1, error_n1.astype(exps_nV.dtype), axis=1)\n",
        "    errors_nV = exps_nV\n"
        "    d_head_VD = d_head_VD.astype(exps_nV.dtype).at[target_n].add(-hidden_nD * weight_n1).astype(mx.float32)\n",
        "10",
    ),
    # the head in bfloat16
    Mutation(
        "torch: the head stays in float32",
        T + "model.py",
        "self.final_layer_norm = Norm(config.norm, config.dim, config, runtime)",
        'self.final_layer_norm = Norm(config.norm, config.dim, config, Runtime("torch", "cpu", "float32", False))',
        "10",
    ),
    Mutation(
        "torch: logits rounded to bfloat16",
        T + "losses.py",
        "return torch.mm(hidden_nD.to(out_nV.dtype), head_VD.to(out_nV.dtype).T, out=out_nV)",
        "return out_nV.copy_(hidden_nD @ head_VD.T)",
        "10",
    ),
    Mutation(
        "MLX: exponentials rounded before they are summed",
        M + "losses.py",
        "    exps = mx.exp(logits - peak)  # the one exponential a logit\n",
        "    exps = mx.exp(logits - peak).astype(hidden_nD.dtype)\n",
        "10",
    ),
    Mutation(
        "torch: exponentials rounded before they are summed",
        T + "losses.py",
        "            sums = exps.sum(1, keepdim=True)\n",
        "            sums = exps.to(hidden.dtype).to(exps.dtype).sum(1, keepdim=True)\n",
        "10",
    ),
    # a signal that is not there
    Mutation(
        "masked advantages count as a signal",
        "faisca/training/grpo_update.py",
        "rollouts.advantages[counted].any()",
        "rollouts.advantages.any()",
        "tests/test_reinforcement.py",
    ),
    Mutation(
        "a minibatch without advantage is left out after the policy has moved",
        "faisca/training/grpo_update.py",
        "left or bool(metrics)",
        "left",
        "tests/test_reinforcement.py",
    ),
    Mutation(
        "a minibatch without advantage counts before the policy has moved",
        "faisca/training/grpo_update.py",
        "left or bool(metrics)",
        "True",
        "tests/test_reinforcement.py",
    ),
    Mutation(
        "a minibatch without a token that counts moves weights for the KL",
        "faisca/training/grpo_update.py",
        "(pulled and counted.any())",
        "pulled",
        "tests/test_reinforcement.py",
    ),
    # sums in the sampler
    Mutation(
        "MLX: probabilities added up in float32",
        M + "generate.py",
        "    cumulative = mx.cumsum(probs_RS, axis=1)\n",
        "    cumulative = mx.cumsum(probs_RS.astype(mx.float32), axis=1).astype(mx.int64)\n",
        "07",
    ),
    Mutation(
        "torch: probabilities too coarse for many tokens",
        T + "generate.py",
        "(scaled_RS.softmax(1) * UNIT).round().long()",
        "((scaled_RS.softmax(1) * 2**20).round() * 2**18).long()",
        "07",
    ),
    Mutation(
        "torch: a uniform number loses its last bits",
        T + "generate.py",
        "(uniforms_R * 2**24).long() * cumulative[:, -1] >> 24",
        "(uniforms_R * 2**12).long() * cumulative[:, -1] >> 12",
        "07",
    ),
)
