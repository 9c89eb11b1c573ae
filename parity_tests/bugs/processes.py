"""Several processes: what is averaged, who has which rows, and what stays one process's own."""

from bugs.mutation import Mutation

T, M = "faisca_torch/", "faisca_mlx/"
RUNG = "parity_tests/test_21_processes.py"


def together(backend: str, name: str) -> str:
    """The work of this name in two processes of a backend."""
    return f"{RUNG}::test_it_is_the_trajectory_of_one_process[('{backend}', 2)-{name}]"


UNEVEN, GRPO, BOTH = "uneven targets", "grpo", f"{RUNG}::test_one_job_over_both_frameworks"

BUGS = (
    Mutation(
        "torch: each process divides by its own targets",
        T + "train.py",
        "model.runtime.processes.mean(int((targets >= 0).sum()))",
        "int((targets >= 0).sum())",
        together("torch", UNEVEN),
    ),
    Mutation(
        "MLX: each process divides by its own targets",
        M + "train.py",
        "learner.model.runtime.processes.mean(int((targets >= 0).sum()))",
        "int((targets >= 0).sum())",
        together("mlx", UNEVEN),
    ),
    Mutation(
        "MLX: gradients stay each process's own",
        M + "processes.py",
        "means = nn.average_gradients(tree_map(lambda gradient: gradient.astype(narrow), gradients))",
        "means = gradients",
        together("mlx", "GPT-2"),
    ),
    Mutation(
        "torch: gradients of a last micro-batch are not averaged",
        T + "train.py",
        "last=part.stop >= len(inputs)",
        "last=part.stop > len(inputs)",
        together("torch", "micro-batches"),
    ),
    Mutation(
        "torch: a step's numbers are process 0's own",
        T + "processes.py",
        "        means, largest = all_NK.mean(0), all_NK.amax(0)",
        "        means, largest = all_NK[0], all_NK[0]",
        together("torch", GRPO),
    ),
    Mutation(
        "MLX: a step's numbers are process 0's own",
        M + "processes.py",
        "        means, largest = all_NK.mean(axis=0), all_NK.max(axis=0)",
        "        means, largest = all_NK[0], all_NK[0]",
        together("mlx", GRPO),
    ),
    Mutation(
        "a process's share of a minibatch counts all of its tokens",
        "faisca/training/grpo_update.py",
        "step_tokens=rollouts.step_tokens / processes.size",
        "step_tokens=rollouts.step_tokens",
        together("torch", GRPO),
    ),
    Mutation(
        "torch: a clipped norm is of a process's part of the weights",
        T + "processes.py",
        "_gather(squares.view(1)).sum() if self.processes.shard else squares",
        "squares",
        f"{RUNG}::test_weights_that_processes_share",
    ),
    Mutation(
        "MLX: in a mixed job, gradients are added and not averaged",
        "faisca/group.py",
        " / np.float32(self.size)",
        "",
        "tests/test_processes.py::test_everyone_hears_the_same",
    ),
    Mutation(
        "all processes drop the same",
        "faisca/group.py",
        'return f"{name}, process {self.rank}" if self.rank else name',
        "return name",
        "tests/test_processes.py::test_alone_nothing_is_sent",
    ),
    Mutation(
        "parts leave the last row out",
        "faisca/group.py",
        "(self.rank + 1) * rows // self.size)",
        "(self.rank + 1) * (rows - 1) // self.size)",
        "tests/test_processes.py::test_parts_are_neighbours_and_even",
    ),
    Mutation(
        "losses of turns are added process by process",
        "faisca/group.py",
        "return [many[i] for i in range(max(map(len, lists))) for many in lists if i < len(many)]",
        "return [one for many in lists for one in many]",
        "tests/test_processes.py::test_everyone_hears_the_same",
    ),
    Mutation(
        "processes with other options are let in",
        "faisca/processes/join.py",
        "if theirs.get(name, fact) != fact:",
        "if name == 'code' and theirs.get(name, fact) != fact:",
        "tests/test_processes.py::test_processes_that_would_train_something_else_are_named",
    ),
)
