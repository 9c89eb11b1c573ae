"""A backend without a framework, for tests of the core: it notes every call, and what it answers is known exactly.

A stand-in "model" is a dictionary of parameters; every update that was made of it adds 1 to all of
its `final_layer_norm.weight`, which begins at 1. So each call says how often the weights that it was
made with had been updated (`updates`), checkpoints and resumed runs included.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from faisca.backend import Runtime, Sampling
from faisca.backends import BACKENDS
from faisca.config import (
    Config,
    DataConfig,
    GRPOConfig,
    ModelConfig,
    RunConfig,
    SampleConfig,
    SFTConfig,
    TokenizerConfig,
    TrainConfig,
    plain,
)
from faisca.data.tokenizer import Tokenizer
from faisca.parameters import in_adapter, trained
from faisca.streams import permutation
from faisca.training import stages

COUNTER = "final_layer_norm.weight"


@dataclass(frozen=True)
class Call:
    """One call over the boundary: the function, what was given (arrays copied), how often its weights were updated."""

    name: str
    given: dict[str, Any]
    updates: int
    answer: Any = None

    def __getattr__(self, name: str) -> Any:
        return self.given[name]


@dataclass
class StandInModel:
    parameters: dict[str, np.ndarray]
    config: Any

    @property
    def updates(self) -> int:
        return int(self.parameters[COUNTER][0]) - 1


@dataclass
class StandInLearner:
    model: StandInModel
    config: Any
    steps: int = 0


def nats(updates: int, targets: np.ndarray) -> float:
    """The loss that the stand-in reports: of each target apart, and less with every update."""
    kept = targets[targets >= 0].astype(np.int64)
    return float((1 + kept % 7).sum()) * 8 / (8 + updates)


def scores(updates: int, tokens: np.ndarray, temperature: float) -> np.ndarray:
    """The log-probabilities that the stand-in reports: float32 [B, T-1], other ones after each update."""
    ids = tokens[:, 1:].astype(np.float64)
    return (-(1 + (ids % 5) / 10 + updates * (ids % 3) / 100) / temperature).astype(np.float32)


class StandIn:
    """Functions of `faisca.backend.Backend`, with `calls` as they came.

    `phrases` are completions (token ids without an end) that `generate` chooses among: by the first
    uniform number of a row, and other ones after an update; the second decides whether it ends.
    `losses` and `skipped` say what an evaluation and a step report, `costs` by how much each
    function's calls put `clock` forward.
    """

    def __init__(self, phrases: list[list[int]] = [[1, 2]], ends: float = 0.75) -> None:  # noqa: B006
        self.calls: list[Call] = []
        self.phrases, self.ends = phrases, ends
        self.losses: Callable[[int, np.ndarray], float] = nats
        self.skipped: Callable[[int], float] = lambda updates: 0.0
        self.clock, self.costs = 0.0, dict[str, float]()
        self.tidied: tuple[str, ...] = ()

    def named(self, *names: str) -> list[Call]:
        return [call for call in self.calls if call.name in names]

    def _note(self, name: str, updates: int, answer: Any = None, **given: Any) -> Any:
        self.clock += self.costs.get(name, 0.0)
        copied = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in given.items()}
        self.calls.append(Call(name, copied, updates, answer))
        return answer

    def open_runtime(self, *, config: Any) -> Runtime:
        chunk, checkpointing = config.loss_chunk or 512, config.gradient_checkpointing
        device = "gpu" if config.device == "gpu" else "cpu"
        runtime = Runtime("torch", device, "float32", False, chunk, gradient_checkpointing=checkpointing)
        return self._note("open_runtime", 0, runtime, config=config)

    def make_model(self, *, config: Any, parameters: Any, runtime: Runtime) -> StandInModel:
        given, own = ({name: np.array(value) for name, value in parameters.items()} for _ in range(2))
        model = StandInModel(own, config)
        return self._note("make_model", model.updates, model, config=config, parameters=given, runtime=runtime)

    def base_of(self, *, model: StandInModel) -> StandInModel:
        shared = {name: value for name, value in model.parameters.items() if not in_adapter(name)}
        return self._note("base_of", model.updates, StandInModel(shared, plain(model.config)))

    def join(self, *, rank: int, size: int) -> Any:
        raise AssertionError("a stand-in is alone")

    def get_parameters(self, *, model: StandInModel) -> dict[str, np.ndarray]:
        own = {name: value for name, value in model.parameters.items() if trained(name, model.config)}
        copies = {name: value.copy() for name, value in own.items()}
        return self._note("get_parameters", model.updates, copies)

    def make_learner(self, *, model: StandInModel, config: Any) -> StandInLearner:
        return self._note("make_learner", model.updates, StandInLearner(model, config), config=config)

    def get_optimizer_state(self, *, learner: StandInLearner) -> dict[str, np.ndarray]:
        state: dict[str, np.ndarray] = {"step": np.array(learner.steps, np.int64)}
        for moment in ("first_moment", "second_moment"):
            model = learner.model
            own = {name: value for name, value in model.parameters.items() if trained(name, model.config)}
            state |= {f"{moment}.{name}": np.zeros_like(value) for name, value in own.items()}
        return self._note("get_optimizer_state", learner.model.updates, state)

    def set_optimizer_state(self, *, learner: StandInLearner, state: Any) -> None:
        learner.steps = int(state["step"])
        self._note("set_optimizer_state", learner.model.updates, steps=learner.steps)

    def train_step(self, *, learner: StandInLearner, inputs: Any, targets: Any, **more: Any) -> dict[str, float]:
        metrics = {"loss": nats(learner.model.updates, targets) / (targets >= 0).sum()}
        shown = {"inputs": inputs, "targets": targets, **more, "config": learner.config, "learner_steps": learner.steps}
        return self._update("train_step", learner, metrics, **shown)

    def grpo_step(
        self, *, learner: StandInLearner, rollouts: Any, config: Any, learning_rate: float, dropout_seed: int
    ) -> dict[str, float]:
        updates = learner.model.updates
        metrics = {name: updates + i for i, name in enumerate(("kl", "ratio_mean", "ratio_max", "entropy", "loss"))}
        shown = {"rollouts": rollouts, "config": config, "learning_rate": learning_rate, "dropout_seed": dropout_seed}
        return self._update("grpo_step", learner, metrics, **shown, optimizer=learner.config)

    def _update(self, name: str, learner: StandInLearner, metrics: dict[str, Any], **given: Any) -> dict[str, float]:
        before = learner.model.updates
        metrics |= {"grad_norm": float(before), "skipped": self.skipped(before)}
        learner.model.parameters[COUNTER] += 1
        learner.steps += 1
        return self._note(name, before, metrics, **given)

    def read_metrics(self, *, metrics: list[dict[str, float]]) -> list[dict[str, float]]:
        return self._note("read_metrics", 0, [dict(step) for step in metrics])

    def evaluate(self, *, model: StandInModel, inputs: np.ndarray, targets: np.ndarray) -> float:
        loss = self.losses(model.updates, targets)
        return self._note("evaluate", model.updates, loss, inputs=inputs, targets=targets)

    def logits(self, *, model: StandInModel, tokens: np.ndarray) -> np.ndarray:
        found = np.zeros((*tokens.shape, model.config.vocabulary_size), np.float32)
        return self._note("logits", model.updates, found, tokens=tokens)

    def token_log_probs(
        self, *, model: StandInModel, tokens: np.ndarray, temperature: float, places: np.ndarray | None
    ) -> np.ndarray:
        found = scores(model.updates, tokens, temperature)
        if places is not None:
            elsewhere = np.setdiff1d(np.arange(found.size), places)
            found.ravel()[elsewhere] = 0
        return self._note("token_log_probs", model.updates, found, tokens=tokens, temperature=temperature)

    def generate(
        self,
        *,
        model: StandInModel,
        prompts: Any,
        uniforms: np.ndarray,
        sampling: Sampling,
        end_of_text: tuple[int, ...],
        log_probs: np.ndarray | None,
    ) -> Iterator[np.ndarray]:
        rows = []
        for prompt, row in zip(prompts, uniforms, strict=True):
            phrase = self.phrases[(int(row[0] * len(self.phrases)) + model.updates) % len(self.phrases)]
            ended = phrase + [end_of_text[0]] * bool(len(row) > 1 and row[1] < self.ends)
            rows.append(ended[: min(sampling.max_new_tokens, model.config.context + 1 - len(prompt))])
        given = {"prompts": [list(prompt) for prompt in prompts], "uniforms": uniforms, "sampling": sampling}
        self._note("generate", model.updates, rows, **given)
        for i, row in enumerate([] if log_probs is None else rows):
            scored = scores(model.updates, np.array([given["prompts"][i] + row]), sampling.temperature)
            log_probs[i, : len(row)] = scored[0, len(given["prompts"][i]) - 1 :]
        for i in range(max(map(len, rows))):
            yield np.array([row[i] if i < len(row) else -1 for row in rows])

    def memory(self, *, runtime: Runtime, reset_peak: bool) -> dict[str, int]:
        return self._note("memory", 0, {"peak": 1000, "active": 10, "cache": 1}, reset_peak=reset_peak)

    @contextmanager
    def training_memory(self, *, runtime: Runtime) -> Iterator[None]:
        self._note("training memory begins", 0)
        try:
            yield
        finally:
            self._note("training memory ends", 0)

    def tidy_memory(self, *, learner: StandInLearner) -> list[str]:
        return self._note("tidy_memory", learner.model.updates, list(self.tidied))


def install(patch: pytest.MonkeyPatch, stand_in: StandIn) -> StandIn:
    """Make the stand-in what `--backend torch` opens, whether or not torch is installed."""
    patch.setitem(BACKENDS, "torch", replace(BACKENDS["torch"], needs="numpy"))
    patch.setitem(sys.modules, "faisca_torch", stand_in)
    patch.setattr(Figure, "savefig", lambda self, file, **options: file.write(b"\x89PNG"))  # charts take most of a run
    return stand_in


# a run on it

PLACES = "Lisboa Porto Braga Faro Coimbra Évora Aveiro Viseu Leiria Setúbal".split()
SUBJECTS = "Governo Câmara Tribunal Hospital Escola Clube Empresa Sindicato".split()
ACTIONS = "anuncia medidas|abre inquérito|fecha portas|perde recurso|adia obras".split("|")
PHRASES = ("Golo", "vento", "Taça", "chuva forte", "Liga", "a")
"""what the stand-in writes: every other one has a word of football"""


def write_headlines(folder: Path) -> Path:
    """A training and a validation split of our own, a third of each from Portugal; and a reward."""
    lines = [f"{subject} de {place} {action}" for action in ACTIONS for subject in SUBJECTS for place in PLACES]
    addresses = [f"https://a.{'pt' if i % 3 == 1 else 'br'}/{i}" for i in range(len(lines))]
    rows = [
        json.dumps({"title": line, "language": "pt", "requested_url": address})
        for line, address in zip(lines, addresses, strict=True)
    ]
    mixed = [rows[137 * i % len(rows)] for i in range(len(rows))]
    (folder / "train.jsonl").write_text("\n".join(mixed[:150]) + "\n", encoding="utf-8")
    (folder / "test.jsonl").write_text("\n".join(mixed[150:220]) + "\n", encoding="utf-8")
    (folder / "reward.py").write_text("def length(texts):\n    return [float(len(text) % 5) for text in texts]\n")
    return folder


def small_config(folder: Path, **changes: Any) -> Config:
    """Three stages of a few steps, in which no two options that could be mistaken for one another are equal.

    `changes` are options by their whole names: `small_config(folder, **{"grpo.steps": 2})`.
    """
    config = Config(
        model=ModelConfig(context=24, dim=4, num_layers=1, num_heads=1, hidden_dim=4),
        tokenizer=TokenizerConfig(vocabulary_size=300),
        data=DataConfig(source=str(folder), window=16, stride=40),
        pretrain=TrainConfig(
            **{"learning_rate": 0.5, "warmup_steps": 3, "min_learning_rate_share": 0.2, "epochs": 4, "max_steps": 11},
            **{"batch_size": 12, "micro_batch_size": 4, "evaluate_every": 4, "evaluation_batches": 3},
            **{"max_titles": 120, "max_validation_titles": 50, "weight_decay": 0.3},
        ),
        sft=SFTConfig(
            **{"learning_rate": 0.25, "schedule": "constant", "warmup_steps": 2, "epochs": 2, "url_contains": ".pt/"},
            **{"batch_size": 5, "micro_batch_size": 0, "evaluate_every": 3, "evaluation_batches": 2},
            **{"max_titles": 40, "max_validation_titles": 20, "weight_decay": 0.2},
        ),
        grpo=GRPOConfig(
            **{"learning_rate": 0.125, "schedule": "cosine", "warmup_steps": 2, "steps": 4, "epochs": 2},
            **{"prompts": ("Golo ", "", "O vento"), "prompts_per_step": 2, "group_size": 3, "minibatch_size": 2},
            **{"max_new_tokens": 6, "temperature": 0.8, "top_k": 9, "kl_weight": 0.1},
            reward=f"{folder / 'reward.py'}:length",
        ),
        sample=SampleConfig(
            **{"prompt": "Gov", "count": 2, "counted": 7, "max_new_tokens": 5},
            **{"temperature": 0.6, "top_k": 11, "top_p": 0.9},
        ),
        run=RunConfig(seed=5, backend="torch", device="cpu", log_every=3, checkpoint_every=2),
    )
    for name, value in changes.items():
        section, _, option = name.partition(".")
        config = replace(config, **{section: replace(getattr(config, section), **{option: value})})
    return config


def own_tokenizer(config: Config, folder: Path) -> Tokenizer:
    """The tokenizer that the run must have: trained on the training titles of pre-training, in their order."""
    return Tokenizer.train(stage_titles(folder, config, "pretrain", "train"), config.tokenizer.vocabulary_size)


def stage_titles(folder: Path, config: Config, stage: str, split: str) -> list[str]:
    """In plain Python, the titles of a split that a stage works with, in its order."""
    options, lines = getattr(config, stage), (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    kept = [row["title"] for row in rows if options.url_contains in row["requested_url"]]
    if split == "test":
        return kept[: options.max_validation_titles or None]
    kept = kept[: options.max_titles or None]
    return [kept[i] for i in permutation(config.run.seed, f"order of {stage} titles", len(kept))]


def make_stand_in(config: Config, folder: Path) -> StandIn:
    """A stand-in that writes PHRASES."""
    tokenizer = own_tokenizer(config, folder)
    return StandIn([tokenizer.encode(phrase) for phrase in PHRASES])


TRAINED = {"pretrain": 11, "sft": 6}
"""steps; and 4 steps of GRPO have 3 minibatches in each of 2 epochs"""
BEGAN = {"pretrain": 0, "sft": 11, "grpo": 17}
"""updates before each stage"""


@dataclass(frozen=True)
class Finished:
    """A run of three stages, with all that it asked of its backend."""

    config: Config
    folder: Path
    material: Path
    backend: StandIn
    tokenizer: Tokenizer

    def calls(self, name: str, stage: str) -> list[Call]:
        """Those made with weights of a stage under way: after its beginning, before the next one's first update."""
        ends = {"pretrain": 11, "sft": 17, "grpo": 41}
        return [call for call in self.backend.named(name) if BEGAN[stage] <= call.updates < ends[stage]]

    def ids(self, stage: str, split: str) -> np.ndarray:
        """Token ids of a stage's titles, end-of-text after each."""
        titles = stage_titles(self.material, self.config, stage, split)
        return np.array([i for title in titles for i in (*self.tokenizer.encode(title), self.tokenizer.end_of_text)])


def finish(config: Config, material: Path, folder: Path, **behaviour: Any) -> Finished:
    """A run of all stages on the stand-in; `behaviour` are attributes of it."""
    backend = make_stand_in(config, material)
    vars(backend).update(behaviour)
    with pytest.MonkeyPatch.context() as patch:
        install(patch, backend)
        if backend.costs:
            patch.setattr("time.perf_counter", lambda: backend.clock)
        stages.run(config, folder)
    return Finished(config, folder, material, backend, own_tokenizer(config, material))
