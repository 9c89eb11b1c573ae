"""Realistic porting bugs, one at a time in a copy of the code: does the ladder catch each of them?

    python parity_tests/mutations.py [NAME …]      all of them, or those named

A mutation replaces a piece of source that occurs exactly once. It is caught where an assertion of
its rung fails: a copy that does not even import proves nothing and counts as an error. Before
that, the same tests must pass on an untouched copy.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = ("faisca", "faisca_torch", "faisca_mlx", "parity_tests", "conftest.py", "pyproject.toml")
CHECK = "import faisca, faisca_torch, faisca_mlx; print(faisca.__file__, faisca_torch.__file__, faisca_mlx.__file__)"


@dataclass(frozen=True)
class Mutation:
    """A bug: in `file`, `old` becomes `new`; tests named `rung` must fail."""

    name: str
    file: str
    old: str
    new: str
    rung: str

    def apply(self, root: Path) -> None:
        path = root / self.file
        source = path.read_text()
        found = source.count(self.old)
        if found != 1:
            raise LookupError(f"{self.name}: {self.old!r} occurs {found} times in {self.file}: adapt the mutation")
        path.write_text(source.replace(self.old, self.new))
        compile(path.read_text(), str(path), "exec")


T, M = "faisca_torch/", "faisca_mlx/"
MUTATIONS = (
    # the model
    Mutation("tanh GELU for the exact one", M + "model.py", 'config.activation == "gelu_tanh"', "True", "02"),
    Mutation("exact GELU for tanh", T + "model.py", 'if config.activation == "gelu_tanh"', "if False", "02"),
    Mutation("key and value swapped", T + "model.py", "query, key, value = qkv", "query, value, key = qkv", "02"),
    Mutation(
        "heads interleaved with q, k, v",
        M + "model.py",
        "qkv.transpose(2, 0, 3, 1, 4)",
        "qkv.reshape(B, T, self.config.num_heads, 3, -1).transpose(3, 0, 2, 1, 4)",
        "02",
    ),
    Mutation(
        "output projection transposed",
        M + "model.py",
        "self.out_proj(attended_BHTK.swapaxes(1, 2).reshape(B, T, D))",
        "attended_BHTK.swapaxes(1, 2).reshape(B, T, D) @ self.out_proj.weight",
        "02",
    ),
    Mutation(
        "scores scaled by the model's width",
        M + "model.py",
        "self.config.head_dim**-0.5",
        "self.config.dim**-0.5",
        "02",
    ),
    Mutation("no causal mask", T + "model.py", "is_causal=T > 1", "is_causal=False", "02"),
    Mutation(
        "default epsilon in the last norm",
        T + "model.py",
        "self.final_layer_norm = LayerNorm(config, runtime)",
        "self.final_layer_norm = nn.LayerNorm(config.dim)",
        "02",
    ),
    Mutation(
        "one norm for both halves",
        T + "model.py",
        "self.feed_forward(self.norm2(x_BTD))",
        "self.feed_forward(self.norm1(x_BTD))",
        "02",
    ),
    Mutation(
        "post-norm",
        M + "model.py",
        "self.attention(self.norm1(x_BTD), cache, keys[0])",
        "self.norm1(self.attention(x_BTD, cache, keys[0]))",
        "02",
    ),
    # losses
    Mutation(
        "targets shifted by one too few",
        T + "train.py",
        "targets = tokens_BT[:, 1:]",
        "targets = tokens_BT[:, :-1]",
        "03",
    ),
    Mutation(
        "token 0 left out of the loss", T + "losses.py", "targets_N[rows, None] >= 0", "targets_N[rows, None] > 0", "03"
    ),
    Mutation(
        "temperature forgotten in log-probabilities",
        M + "losses.py",
        "logits = project(hidden, head_VD) / temperature",
        "logits = project(hidden, head_VD)",
        "03",
    ),
    Mutation(
        "temperature forgotten in the gradient",
        T + "losses.py",
        "(-upstream_N / ctx.temperature)",
        "(-upstream_N)",
        "03",
    ),
    Mutation(
        "last odd chunk dropped",
        M + "losses.py",
        "for start in range(0, size, chunk)",
        "for start in range(0, max(size - size % chunk, 1), chunk)",
        "03",
    ),
    # the optimiser
    Mutation("no bias correction", M + "train.py", "return -mx.expm1(", "return 1 + 0 * (", "05"),
    Mutation(
        "MLX's own sum for the norm",
        M + "train.py",
        "gradient.square().sum(axis=-1)",
        "gradient.square().sum(keepdims=True)",
        "05",
    ),
    Mutation(
        "decay on norms and biases",
        T + "train.py",
        '{"params": groups[False], "weight_decay": 0.0}',
        '{"params": groups[False], "weight_decay": config.weight_decay}',
        "05",
    ),
    Mutation(
        "decay coupled to the gradient",
        T + "train.py",
        "optimizer = torch.optim.AdamW(",
        "optimizer = torch.optim.Adam(",
        "05",
    ),
    Mutation("default epsilon of Adam", T + "train.py", "eps=config.epsilon", "eps=1e-8", "05"),
    Mutation(
        "betas swapped",
        M + "train.py",
        "betas=[config.beta1, config.beta2]",
        "betas=[config.beta2, config.beta1]",
        "05",
    ),
    Mutation(
        "micro-batches each averaged",
        T + "train.py",
        "inputs[part], targets[part], True) / targets.size",
        "inputs[part], targets[part], True) / targets[part].size",
        "05",
    ),
    Mutation("gradients kept for the next step", T + "train.py", "    learner.optimizer.zero_grad()\n", "", "05"),
    Mutation(
        "moments swapped in a checkpoint",
        M + "weights.py",
        '{"first_moment": "m", "second_moment": "v"}',
        '{"first_moment": "v", "second_moment": "m"}',
        "05",
    ),
    Mutation(
        "step count lost on resuming", T + "weights.py", 'torch.tensor(float(state["step"])', "torch.tensor(0.0", "05"
    ),
    # sampling
    Mutation("top-k unsorted", M + "generate.py", "    ids = mx.sort(ids, axis=1)\n", "", "07"),
    Mutation(
        "categorical on probabilities",
        M + "generate.py",
        "picked = (cumulative <= threshold).sum(axis=1, keepdims=True)",
        "picked = mx.random.categorical(probs_RS)[:, None]",
        "07",
    ),
    Mutation(
        "top-p without the token that crosses it", T + "generate.py", "before < _share(", "cumulative <= _share(", "07"
    ),
    Mutation(
        "temperature multiplied",
        T + "generate.py",
        "logits_RV.float() / temperature",
        "logits_RV.float() * temperature",
        "07",
    ),
    Mutation(
        "cached positions begin at 0 again",
        T + "model.py",
        "self.positional_embedding.weight[start:end]",
        "self.positional_embedding.weight[: end - start]",
        "07",
    ),
    Mutation(
        "finished rows' cache kept in place of others",
        M + "generate.py",
        "cache.keep(stays)",
        "cache.keep(np.arange(len(stays)))",
        "07",
    ),
    # GRPO
    Mutation(
        "KL the wrong way round", T + "grpo.py", "reference_BP - log_probs_BP", "log_probs_BP - reference_BP", "08"
    ),
    Mutation(
        "log-probabilities put back in another order",
        T + "train.py",
        "zeros.index_copy(0, places_N, found)",
        "zeros.index_copy(0, places_N.sort()[0], found)",
        "08",
    ),
    Mutation("KL subtracted", M + "grpo.py", "losses + config.kl_weight * k3", "losses - config.kl_weight * k3", "08"),
    Mutation(
        "clipping takes the larger",
        T + "grpo.py",
        "torch.minimum(ratio * A, clipped * A)",
        "torch.maximum(ratio * A, clipped * A)",
        "08",
    ),
    Mutation(
        "one clip for both sides",
        M + "grpo.py",
        "1 + config.clip_high)\n        losses",
        "1 + config.clip_low)\n        losses",
        "08",
    ),
    Mutation(
        "gradient through CISPO's weight",
        M + "grpo.py",
        "mx.stop_gradient(mx.minimum(ratio, config.cispo_cap))",
        "mx.minimum(ratio, config.cispo_cap)",
        "08",
    ),
    Mutation(
        "population standard deviation",
        "faisca/rewards.py",
        "deviations[i] = scored.std(ddof=1)",
        "deviations[i] = scored.std()",
        "08",
    ),
    Mutation(
        "end-of-text not learnt",
        "faisca/reinforcement.py",
        "mask[row, len(prompt) - 1 : end - 1]",
        "mask[row, len(prompt) - 1 : end - 2]",
        "08",
    ),
    Mutation(
        "left padding", "faisca/reinforcement.py", "tokens[row, :end] = prompt", "tokens[row, -end:] = prompt", "08"
    ),
    Mutation(
        "dropout active in GRPO", T + "grpo.py", "model = learner.model.eval()", "model = learner.model.train()", "11"
    ),
    # precision and dropout
    Mutation(
        "logits rounded before the softmax",
        M + "losses.py",
        "logits = project(hidden, head_VD) / temperature",
        "logits = project(hidden, head_VD).astype(hidden.dtype) / temperature",
        "10",
    ),
    Mutation(
        "no attention dropout",
        M + "model.py",
        "self.dropout(shares_BHTT, random_key)",
        "shares_BHTT",
        "11",
    ),
    Mutation("dropout in evaluation", T + "model.py", "if self.training else 0.0", "if True else 0.0", "11"),
    Mutation(
        "recomputed blocks drop anew",
        M + "model.py",
        "partial(block, cache=None, random_key=key)",
        "partial(block, cache=None)",
        "04",
    ),
    Mutation("dropout's seed ignored", M + "train.py", "    mx.random.seed(dropout_seed)\n", "", "11"),
)
FEW = ("key and value swapped", "no bias correction", "top-k unsorted")
"""what CI applies"""


def copy_code(root: Path) -> None:
    """The code and its parity tests, for a mutation to change."""
    for part in PARTS:
        source, target = ROOT / part, root / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def run_rung(root: Path, rung: str) -> tuple[int, str]:
    """Exit status and output of a rung's tests in a copy of the code, which must be what they import."""
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    common = {"cwd": root, "env": environment, "capture_output": True, "text": True}
    where = subprocess.run([sys.executable, "-c", CHECK], check=True, **common).stdout.split()
    assert all(Path(path).is_relative_to(root) for path in where), f"tests would run on {where}"
    files = sorted(str(path) for path in (root / "parity_tests").glob(f"test_{rung}_*.py"))
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files]
    done = subprocess.run(command, **common)
    return done.returncode, done.stdout


def verdict(mutation: Mutation | None, rung: str) -> tuple[bool, str]:
    """Whether a rung fails on the mutated code, and the line that says why."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        copy_code(root)
        if mutation is not None:
            mutation.apply(root)
        status, output = run_rung(root, rung)
    if status not in (0, 1):
        raise RuntimeError(f"rung {rung} did not run:\n{output[-2000:]}")
    failures = [line.removeprefix("FAILED ") for line in output.splitlines() if line.startswith("FAILED ")]
    return status == 1, failures[0].partition("::")[2] if failures else output.strip().splitlines()[-1]


def main(names: list[str]) -> int:
    """A line a mutation; 1 where an untouched rung fails or a mutation is not caught."""
    chosen = [mutation for mutation in MUTATIONS if not names or mutation.name in names]
    for rung in sorted({mutation.rung for mutation in chosen}):
        failed, line = verdict(None, rung)
        print(f"rung {rung}  untouched: {line}", flush=True)
        if failed:
            return 1
    missed = 0
    for mutation in chosen:
        caught, line = verdict(mutation, mutation.rung)
        missed += not caught
        print(f"rung {mutation.rung}  {'caught' if caught else 'MISSED'}  {mutation.name}: {line[:150]}", flush=True)
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
