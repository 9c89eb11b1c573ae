"""The chapters of the twins face to face, in reading order. A new module of the twins needs a place in this table.

A chapter names modules of the twins, by their stems, and what stands in the core, once: `before` the step's code
and `after` it, each a file, or `FILE:NAME` for one definition of it. A chapter of which no module exists is left out,
and so is a module that is only planned; but one that exists and has no place fails the build, as does a file of the
core that is gone.
"""

from dataclasses import dataclass
from pathlib import Path

from definitions import ROOT, SiteError

TWINS = ("faisca_torch", "faisca_mlx")


@dataclass(frozen=True)
class Chapter:
    """A page: its file's name, its title, what it is about, the twins' modules, and the core around them."""

    name: str
    title: str
    about: str
    modules: tuple[str, ...]
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


CHAPTERS = (
    Chapter(
        "numbers",
        "Numbers",
        "Where every number comes from: named streams of random numbers and initial values in the core, once; then "
        "the device and the dtype that a twin computes in, and how each adds up.",
        ("device", "sums"),
        before=("faisca/streams.py", "faisca/parameters.py:parameter_table", "faisca/parameters.py:initial_parameters"),
    ),
    Chapter(
        "model",
        "The model",
        "From token ids to hidden states, in the order of the forward pass; with the cache of keys and values, and the "
        "mixture of experts.",
        ("model", "cache", "experts"),
        before=("faisca/rotation.py", "faisca/bigrams.py"),
    ),
    Chapter(
        "loss",
        "The loss",
        "Cross-entropy straight from hidden states, chunk by chunk, with the gradient made in the forward pass.",
        ("losses",),
    ),
    Chapter(
        "optimiser",
        "The optimiser",
        "AdamW and Muon: what the schedule and the pieces are, in the core; how weights move, in the twins.",
        ("optimizer", "muon"),
        before=("faisca/training/schedule.py", "faisca/muon.py"),
    ),
    Chapter(
        "step",
        "Step and loop",
        "The step — forward, backward, update — is a twin's. The loop — order, schedule, when to evaluate and save — "
        "mentions no array library, and stands in the core.",
        ("train",),
        after=("faisca/training/train.py",),
    ),
    Chapter(
        "sampling",
        "Sampling",
        "From logits to the next token, so that both twins draw the same one from the same uniform number.",
        ("generate",),
        before=("faisca/backend.py:Sampling",),
        after=("faisca/training/generate.py:complete",),
    ),
    Chapter(
        "grpo",
        "GRPO",
        "Log-probabilities with their gradient, the loss of the policy and its step; then the loop around them.",
        ("log_probs", "grpo"),
        before=(
            "faisca/backend.py:Rollouts",
            "faisca/backend.py:Rollouts.micro_batches",
            "faisca/rewards/advantages.py",
        ),
        after=("faisca/training/grpo.py", "faisca/training/grpo_update.py"),
    ),
    Chapter(
        "adapters",
        "Adapters",
        "Low-rank adapters (LoRA) beside frozen weights: where they stand and how they begin, in the core; what they "
        "add to a product, in the twins.",
        ("lora",),
        before=("faisca/lora.py",),
    ),
    Chapter(
        "processes",
        "Several processes",
        "Processes that train one model: what they say to one another, in the core; how a framework's own engine "
        "averages their gradients, in the twins.",
        ("processes",),
        before=("faisca/group.py",),
    ),
    Chapter(
        "proof",
        "Proof",
        "How it is shown that both columns compute the same: the ladder that measures them through the boundary alone, "
        "and the libraries of others that read what we export.",
        ("interop",),
        before=("faisca/parity/rungs.py", "faisca/parity/differences.py"),
        after=("faisca/parity/sampling.py:agreement", "faisca/parity/sampling.py:candidates"),
    ),
)


def modules_of(twin: str, root: Path = ROOT) -> set[str]:
    """The stems of a twin's modules; its `__init__` only lists what it offers."""
    return {path.stem for path in (root / twin).glob("*.py")} - {"__init__"}


def chapters(root: Path = ROOT, table: tuple[Chapter, ...] = CHAPTERS) -> list[tuple[Chapter, list[str]]]:
    """Each chapter with those of its modules that exist; SiteError where a module has no place or no partner."""
    torch, mlx = (modules_of(twin, root) for twin in TWINS)
    placed = [module for chapter in table for module in chapter.modules]
    problems = [
        f"{ours}/{module}.py has no partner in {theirs}/: a module of one twin is a module of both"
        for ours, theirs, lacking in ((*TWINS, torch - mlx), (*TWINS[::-1], mlx - torch))
        for module in sorted(lacking)
    ]
    problems += [
        f"{TWINS[0]}/{module}.py stands in {placed.count(module)} chapters: give it one in tools/site/chapters.py"
        for module in sorted(torch & mlx)
        if placed.count(module) != 1
    ]
    if problems:
        raise SiteError("\n".join(problems))
    found = [(chapter, [module for module in chapter.modules if module in torch]) for chapter in table]
    return [(chapter, modules) for chapter, modules in found if modules]
