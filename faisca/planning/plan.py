"""The plan of a stage: every moment at which much is alive, and the largest of them.

Counted are the arrays of the framework, as MLX's and CUDA's own counters have them: not the libraries (0.2 to
0.5 GB resident), not the titles, and not the NumPy copies of a checkpoint, which come when a step's arrays are gone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from faisca.backend import ROWS_AT_A_TIME, Runtime
from faisca.config import Config, ModelConfig
from faisca.planning.load import FLOAT, Load, load_of, rows_of
from faisca.planning.mlx_step import mlx_moments
from faisca.planning.torch_step import Moments, torch_moments

PARTS = ("parameters", "optimiser", "reference", "gradients", "activations", "logits", "cache")
"""what a plan tells apart, in the order of the table"""
MARGINS = {"torch": 1.01, "mlx": 1.03}
"""times what the formulas of a step give, besides weights: a plan had better be too large than too small"""
SAMPLING = 32
"""bytes a logit: itself, scaled, as a probability, as a whole number and added up"""


@dataclass(frozen=True)
class StagePlan:
    """What one stage takes, in bytes."""

    stage: str
    load: Load
    moments: Mapping[str, Mapping[str, float]]
    """bytes of each part, by moment; weights, optimiser state and reference included"""

    @cached_property
    def peak(self) -> str:
        """The moment at which most is alive."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def parts(self) -> Mapping[str, float]:
        """Bytes of each part at the peak."""
        return self.moments[self.peak]

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return round(sum(self.parts.values()))


def plan(config: Config, model: ModelConfig, runtime: Runtime, stage: str) -> StagePlan:
    """The plan of a stage of a run; `model` has its real vocabulary size."""
    load = load_of(config, model, runtime, stage)
    return StagePlan(stage, load, step_moments(load) | _with_state(load, _other_moments(config, load)))


def step_moments(load: Load) -> Moments:
    """The moments of one optimiser step, in bytes by part."""
    match load.backend:
        case "torch":
            moments = torch_moments(load)
        case "mlx":
            moments = mlx_moments(load)
        case other:
            raise ValueError(
                f"there are no formulas for backend {other}: write them beside faisca/planning/mlx_step.py"
            )
    margin = MARGINS[load.backend]
    larger = {name: {part: margin * size for part, size in parts.items()} for name, parts in moments.items()}
    return _with_state(load, larger)


def _with_state(load: Load, moments: Moments) -> Moments:
    """The moments with what is alive at all of them: weights, the optimiser's state, GRPO's reference."""
    state = {"parameters": load.parameters, "optimiser": load.moments}
    state |= {"reference": load.frozen} if load.policy and not load.adapter else {}  # its base is one
    return {name: {**state, **parts} for name, parts in moments.items()}


def _other_moments(config: Config, load: Load) -> Moments:
    """Sampling and evaluation, which no gradient waits for."""
    model = load.model
    shown = replace(
        load,
        rows=rows_of(config, "pretrain"),
        length=config.data.window,
        policy=False,
        scored=0,
    )
    # Of a block, without a gradient: the stream, a norm, queries to values, what attends, the feed-forward layer.
    hidden = (4 if model.activation == "swiglu" else 2) * load.hidden + 2 * load.rows_of_experts
    attention = load.projected + load.changed + 2 * load.queries
    block = shown.tokens * (3 * FLOAT * model.dim + load.width * (attention + hidden))
    scores = 2 * FLOAT * shown.tokens * model.num_heads * shown.length if load.backend == "mlx" or load.explicit else 0
    copies = 1.5 * load.head if load.narrow else 0
    return {
        "sampling": sampling(load, *_most_sampled(config, load)),
        "evaluation": {"activations": block + scores, "logits": 3 * shown.logits + copies},
    }


def sampling(load: Load, rows: int, positions: int) -> dict[str, float]:
    """Bytes by part that `rows` take whose prompts and completions together have so many positions, besides weights."""
    model = load.model
    # Keys and values of all positions, in all blocks; twice, while rows that have ended leave.
    cache = 2 * 2 * model.num_layers * rows * positions * load.keys * load.width
    # In bfloat16 the head is rounded and multiplied in float32.
    copies = 1.5 * load.head if load.narrow else 0
    return {"cache": cache, "logits": SAMPLING * rows * model.vocabulary_size + copies}


def _most_sampled(config: Config, load: Load) -> tuple[int, int]:
    """Rows and positions of whatever a stage samples: headlines that are shown or counted, and GRPO's rollouts."""
    sample, grpo = config.sample, config.grpo
    at_a_time = grpo.rollout_batch or ROWS_AT_A_TIME
    written = min(at_a_time, grpo.group_size * grpo.prompts_per_step) if load.policy else 0
    rows = max(written, min(at_a_time, max(sample.counted, sample.count)))
    if grpo.prompts_file:  # it is not read here: a prompt may fill the context
        return rows, load.model.context
    # A token has at least one byte, and end-of-text stands before the prompt: no prompt is longer.
    longest = max(len(prompt.encode()) for prompt in (sample.prompt, *grpo.prompts))
    positions = 1 + longest + max(sample.max_new_tokens, grpo.max_new_tokens)
    return rows, min(positions, load.model.context)
