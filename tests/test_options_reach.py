"""Every option of every section changes the thing that it governs: one without effect fails, and so does a new one
that has no entry here.

An entry names what an option governs, as something to look at. What the core does with options is
seen in the calls of a run on the stand-in backend (`stand_in.py`); what a twin does with them, in
the numbers of its steps. An option of a few choices is tried with each of them.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from small_models import SMALL, TWINS, cpu_runtime, open_twin
from stand_in import Call, StandIn, install, make_stand_in, small_config, write_headlines

from faisca import backend, stages
from faisca.backend import Backend, Rollouts, Sampling
from faisca.checkpoint import checkpoint_folders
from faisca.config import Config, GRPOConfig, ModelConfig, OptimizerConfig
from faisca.errors import FaiscaError
from faisca.parity.rungs import uneven_parameters
from faisca.run_log import read_records

# --- what the core does with an option ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ran:
    """A run on the stand-in, or the error that ended it."""

    folder: Path
    calls: list[Call]
    ended: str

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def given(self, function: str, *names: str) -> list[Any]:
        """Arguments of each call of a function; arrays as lists."""
        values = [[getattr(call, name) for name in names] for call in self.named(function)]
        return [[v.tolist() if isinstance(v, np.ndarray) else v for v in row] for row in values]

    def records(self, *names: str) -> list[list[Any]]:
        lines = read_records(self.folder)
        return [[line[name] for name in names] for line in lines if set(names) <= set(line)]


Look = Callable[[Ran], Any]


def handed(function: str, *names: str) -> Look:
    return lambda ran: ran.given(function, *names)


def in_config(function: str, name: str) -> Look:
    """An option of a configuration that is handed over whole; `test_boundary.py` has that it is the stage's own."""
    return lambda ran: [getattr(call.config, name) for call in ran.named(function)]


def shapes(ran: Ran) -> Any:
    return [{name: value.shape for name, value in call.parameters.items()} for call in ran.named("make_model")]


def rollout(name: str) -> Look:
    def look(ran: Ran) -> Any:
        values = [getattr(call.rollouts, name) for call in ran.named("grpo_step")]
        return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]

    return look


def sampled(part: str, rows: int | None = None) -> Look:
    """Of calls of `generate` with so many rows: how tokens are chosen, or the prompts."""

    def look(ran: Ran) -> Any:
        calls = [call for call in ran.named("generate") if rows in (None, len(call.prompts))]
        return [getattr(call.sampling, part, None) if part != "prompts" else call.prompts for call in calls]

    return look


def learnt(ran: Ran) -> Any:
    """The training titles of the last stage as the model sees them, whatever their order: which tokens, how often."""
    return np.bincount(np.concatenate([call.inputs.ravel() for call in ran.named("train_step")])).tolist()


def measured(ran: Ran) -> Any:
    """The first evaluation: the titles that a model is measured on."""
    return [call.targets.tolist() for call in ran.named("evaluate") if call.updates == ran.calls[-1].updates]


def kept(ran: Ran) -> Any:
    return [path.name for path in checkpoint_folders(ran.folder)]


RATES, BATCHES = handed("train_step", "learning_rate"), handed("train_step", "inputs")
OPTIMISER = {
    name: (value, in_config("make_learner", name))
    for name, value in {
        "weight_decay": 0.7,
        "decay": None,
        "beta1": 0.5,
        "beta2": 0.6,
        "epsilon": 0.1,
        "clip_norm": 0.4,
    }.items()
}
RATE = {"learning_rate": 0.07, "schedule": None, "warmup_steps": 1, "min_learning_rate_share": 0.9}
COSINE = {"min_learning_rate_share": {"schedule": "cosine"}}
TRAIN: dict[str, tuple[Any, Look]] = {
    **{name: (value, RATES) for name, value in RATE.items()},
    **OPTIMISER,
    "url_contains": (".br/", learnt),
    "max_titles": (30, learnt),
    "max_validation_titles": (9, measured),
    "epochs": (1, lambda ran: len(ran.named("train_step"))),
    "max_steps": (2, lambda ran: len(ran.named("train_step"))),
    "batch_size": (4, lambda ran: {call.inputs.shape[0] for call in ran.named("train_step")}),
    "micro_batch_size": (2, handed("train_step", "micro_batch_size")),
    "evaluate_every": (1, lambda ran: ran.records("epoch", "validation_loss")),
    "evaluation_batches": (1, lambda ran: len(ran.named("evaluate"))),
}
UPDATES = handed("grpo_step", "learning_rate")
GRPO: dict[str, tuple[Any, Look]] = {
    **{name: (value, UPDATES) for name, value in (RATE | {"warmup_steps": 3}).items()},
    **OPTIMISER,
    "steps": (2, lambda ran: len(ran.named("grpo_step"))),
    "prompts": (("Alerta",), sampled("prompts", 6)),
    "prompts_per_step": (4, lambda ran: max(len(call.prompts) for call in ran.named("generate"))),
    "group_size": (5, lambda ran: max(len(call.prompts) for call in ran.named("generate"))),
    "max_new_tokens": (2, sampled("max_new_tokens", 6)),
    "temperature": (0.3, lambda ran: (sampled("temperature", 6)(ran), ran.given("token_log_probs", "temperature"))),
    "top_k": (3, sampled("top_k", 6)),
    "epochs": (3, lambda ran: len(ran.named("grpo_step"))),
    "minibatch_size": (3, lambda ran: {len(call.rollouts.tokens) for call in ran.named("grpo_step")}),
    "reward": ("keywords:vento", lambda ran: ran.records("reward_mean")),
    "scale_rewards": (None, rollout("advantages")),
    "mask_truncated": (None, rollout("mask")),
    **{
        name: (value, in_config("grpo_step", name))
        for name, value in {"clip_low": 0.1, "clip_high": 0.3, "cispo_cap": 2.0, "kl_weight": 0.7}.items()
    },
    **{name: (None, in_config("grpo_step", name)) for name in ("loss", "objective", "importance")},
}
ONE_FILE = {"data.source": "one.jsonl"}
TONGUES = {"data.language_column": "tongue"}
OPTIONS: dict[str, tuple[Any, Look]] = {
    **{
        f"model.{name}": (value, shapes)
        for name, value in {"context": 20, "dim": 6, "num_layers": 2, "hidden_dim": 5, "vocabulary_size": 310}.items()
    },
    **{f"model.{name}": (None, shapes) for name in ("tie_embeddings", "attention_bias")},
    **{
        f"model.{name}": (value, in_config("make_model", name))
        for name, value in {"num_heads": 2, "dropout": 0.2, "attention_dropout": 0.3, "norm_epsilon": 1e-3}.items()
    },
    "model.activation": (None, in_config("make_model", "activation")),
    "tokenizer.kind": (None, shapes),
    "tokenizer.vocabulary_size": (290, shapes),
    "data.source": ("one.jsonl", learnt),
    "data.title_column": ("headline", learnt),
    "data.language_column": ("tongue", learnt),
    "data.url_column": ("place", learnt),
    "data.language": ("", learnt),
    "data.max_title_characters": (33, learnt),
    "data.validation_share": (0.4, measured),
    "data.window": (12, lambda ran: ran.named("train_step")[0].inputs.shape),
    "data.stride": (30, BATCHES),
    **{f"pretrain.{name}": entry for name, entry in TRAIN.items()},
    **{f"sft.{name}": entry for name, entry in TRAIN.items()},
    "sft.micro_batch_size": (1, TRAIN["micro_batch_size"][1]),
    **{f"grpo.{name}": entry for name, entry in GRPO.items()},
    "sample.prompt": ("Clube", sampled("prompts", 2)),
    "sample.count": (3, lambda ran: [len(call.prompts) for call in ran.named("generate")]),
    "sample.counted": (9, lambda ran: [len(call.prompts) for call in ran.named("generate")]),
    **{
        f"sample.{name}": (value, sampled(name, 2))
        for name, value in {"max_new_tokens": 2, "temperature": 0.1, "top_k": 2, "top_p": 0.4}.items()
    },
    "run.seed": (
        6,
        lambda ran: (
            *(ran.given("train_step", "inputs", "dropout_seed"), ran.given("generate", "uniforms")),
            ran.named("make_model")[0].parameters["out_head.weight"].tolist(),
        ),
    ),
    "run.stages": (("pretrain", "sft"), lambda ran: [record[0] for record in ran.records("stage")]),
    "run.backend": ("mlx", lambda ran: ran.named("open_runtime")[0].config.backend),
    **{
        f"run.{name}": (value, in_config("open_runtime", name))
        for name, value in {"loss_chunk": 7, "cache_limit_gb": 0.5}.items()
    },
    **{
        f"run.{name}": (None, in_config("open_runtime", name))
        for name in ("device", "dtype", "compile", "gradient_checkpointing")
    },
    "run.log_every": (2, lambda ran: [len(call.answer) for call in ran.named("read_metrics")]),
    "run.checkpoint_every": (5, lambda ran: len(ran.named("get_optimizer_state"))),
    "run.keep": (1, kept),
    "run.max_bad_steps": (2, lambda ran: (ran.ended[:16], len(ran.named("train_step")))),
}
"""what to change each option to (None: to every other choice), and what it governs"""
BESIDE: dict[str, dict[str, Any]] = {
    "data.language": TONGUES,
    "data.validation_share": ONE_FILE,
    "pretrain.max_steps": {"pretrain.epochs": 2},
    "pretrain.epochs": {"pretrain.max_steps": 0},
    "pretrain.batch_size": {"pretrain.micro_batch_size": 0},
    "sft.min_learning_rate_share": {"sft.schedule": "cosine"},
    "grpo.scale_rewards": {"grpo.steps": 1},
    "run.keep": {"pretrain.max_steps": 5, "run.checkpoint_every": 1},
}
"""what else must be so for an option to matter, in both runs"""
BAD = ("run.max_bad_steps",)
"""options that matter where every step fails"""
FAIL_AT = {"run.keep": 4}
"""or where a run breaks off, after so many updates: at a stage's end nothing is left to see"""


def options() -> dict[str, Any]:
    """All options by their whole names, with their annotations."""
    return {
        f"{section.name}.{name}": get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        for section in dataclasses.fields(Config)
        if section.name != "preset"
        for name, annotation in get_type_hints(type(getattr(Config(), section.name)), include_extras=True).items()
    }


def choices(name: str, base: Any, value: Any) -> list[Any]:
    """The values to change an option to."""
    annotation = options()[name]
    every = [True, False] if annotation is bool else get_args(annotation) if get_origin(annotation) is Literal else []
    return [choice for choice in every if choice != base] or [value]


def test_every_option_has_an_entry_and_every_entry_an_option() -> None:
    assert sorted(OPTIONS) == sorted(options())
    assert set(BESIDE) | set(BAD) | set(FAIL_AT) <= set(OPTIONS)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Headlines with a second column of each kind, and all of them in one file, too."""
    folder = write_headlines(tmp_path_factory.mktemp("material"))
    lines = []
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        for i, row in enumerate(rows):
            place = "https://b.pt/" if i % 2 else "https://b.br/"
            row |= {"headline": f"{row['title']} hoje", "tongue": ("pt", "en")[i % 3 == 0], "place": place}
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        lines.append(text)
    (folder / "one").mkdir()
    (folder / "one" / "one.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


class EndedError(Exception):
    """Breaks a run off."""


class Runs:
    """Runs of one stage on the stand-in, each made once."""

    def __init__(self, material: Path, folder: Path) -> None:
        self.material, self.folder = material, folder
        self.made: dict[str, Ran] = {}

    def __call__(self, stage: str, changes: dict[str, Any], bad: bool = False, fail_at: int | None = None) -> Ran:
        key = repr((stage, changes, bad, fail_at))
        if key not in self.made:
            self.made[key] = self._run(stage, changes, bad, fail_at)
        return self.made[key]

    def config(self, stage: str, changes: dict[str, Any]) -> Config:
        changes = {"run.stages": (stage,), "run.checkpoint_every": 0} | changes
        if changes.get("data.source"):
            changes = changes | {"data.source": str(self.material / "one" / "one.jsonl")}
        return small_config(self.material, **changes)

    def _run(self, stage: str, changes: dict[str, Any], bad: bool, fail_at: int | None) -> Ran:
        start = self("pretrain", {}).folder if stage != "pretrain" else None
        stand_in = make_stand_in(small_config(self.material), self.material)
        stand_in.skipped = lambda updates: float(bad)
        if fail_at is not None:
            stand_in.train_step = breaking_off(stand_in.train_step, fail_at)  # type: ignore[method-assign]
        folder, ended = self.folder / str(len(self.made)), ""
        with pytest.MonkeyPatch.context() as patch:
            install(patch, stand_in)
            patch.setitem(backend.PACKAGES, "mlx", "numpy")
            patch.setitem(sys.modules, "faisca_mlx", stand_in)
            try:
                stages.run(self.config(stage, changes), folder, start)
            except (FaiscaError, EndedError) as error:
                ended = str(error)
        return Ran(folder, stand_in.calls, ended)


def breaking_off(step: Callable[..., Any], updates: int) -> Callable[..., Any]:
    def broken(*, learner: Any, **given: Any) -> Any:
        if learner.model.updates == updates:
            raise EndedError("broken off")
        return step(learner=learner, **given)

    return broken


@pytest.fixture(scope="module")
def runs(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(material, tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_what_it_governs(runs: Runs, name: str, request: pytest.FixtureRequest) -> None:
    if name == "tokenizer.kind":
        request.getfixturevalue("gpt2_cache")
    section, _, option = name.partition(".")
    stage = section if section in ("sft", "grpo") else "sft" if name == "data.url_column" else "pretrain"
    value, look = OPTIONS[name]
    beside = BESIDE.get(name, {})
    base = getattr(getattr(runs.config(stage, beside), section), option)
    how = {"bad": name in BAD, "fail_at": FAIL_AT.get(name)}
    seen = [look(runs(stage, beside, **how))]
    values = [base, *choices(name, base, value)]
    assert len(values) > 1 and base not in values[1:]
    seen += [look(runs(stage, beside | {name: other}, **how)) for other in values[1:]]
    assert all(seen), "there is something to look at"
    for i, one in enumerate(seen):
        assert all(one != other for other in seen[:i]), f"{name} {values[i]!r} changes nothing"


# --- what a twin does with an option ------------------------------------------------------------

INPUTS = np.random.default_rng(0).integers(0, 11, (4, 9)).astype(np.int32)
OPTIMIZER = OptimizerConfig(weight_decay=0.1, clip_norm=0.01)
POLICY = GRPOConfig(weight_decay=0.1, clip_norm=0.0, kl_weight=0.3)


@pytest.fixture(scope="module", params=TWINS)
def twin(request: pytest.FixtureRequest) -> Backend:
    return open_twin(request.param)


def model_of(twin: Backend, config: ModelConfig = SMALL, **run: Any) -> Any:
    runtime = cpu_runtime(twin, **run)
    return twin.make_model(config=config, parameters=uneven_parameters(config, 0), runtime=runtime)


def logits(twin: Backend, config: ModelConfig, **run: Any) -> bytes:
    found = twin.logits(model=model_of(twin, config, **run), tokens=INPUTS)
    assert np.isfinite(found).all()
    return found.tobytes()


def train(twin: Backend, learner: Any, rate: float = 1e-2, **more: Any) -> dict[str, float]:
    given = {"inputs": INPUTS[:, :-1], "targets": INPUTS[:, 1:], "micro_batch_size": 0, "dropout_seed": 1} | more
    return twin.read_metrics(metrics=[twin.train_step(learner=learner, learning_rate=rate, **given)])[0]


def rows(twin: Backend, config: ModelConfig, sampling: Sampling) -> list[list[int]]:
    draws = np.random.default_rng(1).random((6, sampling.max_new_tokens), np.float32)
    given = {"prompts": [[1, 2]] * 6, "uniforms": draws, "sampling": sampling, "end_of_text": 11}
    return np.stack(list(twin.generate(model=model_of(twin, config), **given)), 1).tolist()


MODEL = {"context": 9, "num_heads": 4, "norm_epsilon": 0.1, "dropout": 0.4, "attention_dropout": 0.4}
MODEL |= {"dim": 12, "num_layers": 1, "hidden_dim": 20, "vocabulary_size": 14}


def model_effect(twin: Backend, name: str, config: ModelConfig) -> Any:
    """Logits; the loss in training for dropout; and for the context, how long a row becomes."""
    if name == "context":
        return len(rows(twin, config, Sampling(1.0, 0, 1.0, 20))[0])
    if "dropout" in name:
        return train(twin, twin.make_learner(model=model_of(twin, config), config=OPTIMIZER))["loss"]
    return logits(twin, config)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(ModelConfig)])
def test_a_model_option_reaches_the_twins_arithmetic(twin: Backend, name: str) -> None:
    base = getattr(SMALL, name)
    effects = [model_effect(twin, name, SMALL)]
    for value in choices(f"model.{name}", base, MODEL.get(name)):
        effects.append(model_effect(twin, name, dataclasses.replace(SMALL, **{name: value})))
    assert len(set(effects)) == len(effects) > 1


def trained_weights(twin: Backend, config: OptimizerConfig) -> bytes:
    """Weights after three steps, in which moments, decay and clipping have had their say."""
    learner = twin.make_learner(model=model_of(twin), config=config)
    for _ in range(3):
        train(twin, learner)
    return b"".join(value.tobytes() for value in twin.get_parameters(model=learner.model).values())


ROLLOUTS = Rollouts(
    tokens=INPUTS,
    mask=np.array([[0, 1, 1, 1, 0, 0, 0, 0], [0] + [1] * 7, [1] * 8, [0, 0, 1, 1, 1, 0, 0, 0]], np.float32),
    advantages=np.array([1.5, -1.0, 0.5, -2.0], np.float32),
    old_log_probs=np.random.default_rng(2).normal(-2.5, 1.0, (4, 8)).astype(np.float32),
    reference_log_probs=np.random.default_rng(3).normal(-2.5, 1.0, (4, 8)).astype(np.float32),
    step_tokens=30.0,
)


def policy_weights(twin: Backend, config: GRPOConfig) -> bytes:
    """Weights after two GRPO steps: one has ratios on both sides of the clip, the other a momentum."""
    learner = twin.make_learner(model=model_of(twin), config=config)
    for _ in range(2):
        twin.grpo_step(learner=learner, rollouts=ROLLOUTS, config=config, learning_rate=1e-2)
    return b"".join(value.tobytes() for value in twin.get_parameters(model=learner.model).values())


ADAM = {"weight_decay": 0.3, "beta1": 0.5, "beta2": 0.9, "epsilon": 1e-2, "clip_norm": 0.5}


@pytest.mark.parametrize("name", ["decay", *ADAM])
@pytest.mark.parametrize("weights", [trained_weights, policy_weights])
def test_an_optimiser_option_reaches_the_twins_steps(twin: Backend, weights: Callable, name: str) -> None:
    base = OPTIMIZER if weights is trained_weights else POLICY
    values = choices(f"pretrain.{name}", getattr(base, name), ADAM.get(name))
    effects = [weights(twin, base), *(weights(twin, dataclasses.replace(base, **{name: value})) for value in values)]
    assert len(set(effects)) == len(effects) > 1


LOSS = {"clip_low": 0.5, "clip_high": 0.6, "cispo_cap": 1.1, "kl_weight": 0.6, "temperature": 0.7, "max_new_tokens": 8}
NEEDS = {"cispo_cap": {"objective": "cispo"}, "max_new_tokens": {"loss": "dr_grpo"}}
LITERALS = ("loss", "objective", "importance")


@pytest.mark.parametrize("name", [*LOSS, *LITERALS])
def test_an_option_of_the_policy_loss_reaches_the_twins_steps(twin: Backend, name: str) -> None:
    base = dataclasses.replace(POLICY, **NEEDS.get(name, {}))
    values = choices(f"grpo.{name}", getattr(base, name), LOSS.get(name))
    assert getattr(base, name) not in values
    effects = [policy_weights(twin, dataclasses.replace(base, **{name: value})) for value in values]
    assert len({policy_weights(twin, base), *effects}) == len(effects) + 1 > 1


def test_only_known_options_of_grpo_are_the_cores_alone() -> None:
    """A new option of the policy's step must be tried on the twins too."""
    core = {*RATE, *ADAM, "decay", "steps", "prompts", "prompts_per_step", "group_size", "top_k", "epochs"}
    core |= {"minibatch_size", "reward", "scale_rewards", "mask_truncated"}
    assert {field.name for field in dataclasses.fields(GRPOConfig)} == core | set(LOSS) | set(LITERALS)
    assert {field.name for field in dataclasses.fields(OptimizerConfig)} == {*RATE, *ADAM, "decay"}


SAMPLED = {"temperature": 0.2, "top_k": 2, "top_p": 0.3, "max_new_tokens": 3}


@pytest.mark.parametrize("name", SAMPLED)
def test_an_option_of_sampling_reaches_the_twins_tokens(twin: Backend, name: str) -> None:
    base = Sampling(temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=6)
    assert {field.name for field in dataclasses.fields(Sampling)} == set(SAMPLED)
    assert rows(twin, SMALL, base) != rows(twin, SMALL, dataclasses.replace(base, **{name: SAMPLED[name]}))


def test_arguments_of_a_step_reach_it(twin: Backend) -> None:
    """Rate and seed of a training step; the rate of a policy step."""
    config = dataclasses.replace(SMALL, dropout=0.3)

    def moved(**given: Any) -> bytes:
        learner = twin.make_learner(model=model_of(twin, config), config=OPTIMIZER)
        train(twin, learner, **given)
        return twin.get_parameters(model=learner.model)["out_head.weight"].tobytes()

    assert len({moved(), moved(rate=2e-2), moved(dropout_seed=2)}) == 3
    after = []
    for rate in (1e-2, 2e-2):
        learner = twin.make_learner(model=model_of(twin), config=POLICY)
        twin.grpo_step(learner=learner, rollouts=ROLLOUTS, config=POLICY, learning_rate=rate)
        after.append(twin.get_parameters(model=learner.model)["out_head.weight"])
    assert not np.array_equal(*after)


# --- what a twin does with the options of its runtime -------------------------------------------


def test_dtype_reaches_the_arithmetic(twin: Backend) -> None:
    found = {logits(twin, SMALL, dtype=dtype) for dtype in ("float32", "bfloat16")}
    assert len(found) == 2 and logits(twin, SMALL, dtype="auto") in found


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What the twins ask their frameworks to compile; nothing is."""
    asked: list[Any] = []
    for module in ("torch", "mlx.core"):
        if module in sys.modules:
            monkeypatch.setattr(sys.modules[module], "compile", lambda what, **more: (asked.append(what), what)[1])
    yield asked
    if "torch" in sys.modules:
        sys.modules["torch"].use_deterministic_algorithms(False)  # what compiling for the CPU sets


def test_compile_reaches_the_step(twin: Backend, compilations: list[Any]) -> None:
    for choice in ("off", "on"):
        twin.make_learner(model=model_of(twin, compile=choice), config=OPTIMIZER)
        assert bool(compilations) == (choice == "on")


def test_a_device_that_is_asked_for_is_taken_or_missed(twin: Backend) -> None:
    taken = {}
    for device in ("cpu", "gpu", "cuda", "mps"):
        try:
            taken[device] = cpu_runtime(twin, device=device).device
        except FaiscaError as error:
            assert f"device {device} is not available" in str(error)
    assert taken.pop("cpu") == "cpu" and "cpu" not in taken.values()


class Largest:
    """The most numbers that any array of a step has, and how many are kept for the backward pass, in torch."""

    def __enter__(self) -> "Largest":
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        self.largest = self.kept = 0

        class Watching(TorchDispatchMode):
            def __torch_dispatch__(_, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                out = function(*args, **(kwargs or {}))
                if isinstance(out, torch.Tensor):
                    self.largest = max(self.largest, out.numel())
                return out

        def keep(tensor: Any) -> Any:
            self.kept += tensor.numel()
            return tensor

        self.modes = [Watching(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)]
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in self.modes[::-1]:
            mode.__exit__(*error)


def footprint(twin: Backend, config: ModelConfig, **run: Any) -> tuple[int, int]:
    """How much a training step needs: its largest array and what it keeps in torch, its peak in MLX."""
    learner = twin.make_learner(model=model_of(twin, config, **run), config=OPTIMIZER)
    tokens = np.random.default_rng(0).integers(0, 12, (8, 65)).astype(np.int32)
    given = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    train(twin, learner, **given)
    runtime = learner.model.runtime
    if runtime.backend == "torch":
        with Largest() as seen:
            train(twin, learner, **given)
        return seen.largest, seen.kept
    before = twin.memory(runtime=runtime, reset_peak=True)["active"]
    train(twin, learner, **given)
    return (twin.memory(runtime=runtime, reset_peak=False)["peak"] - before,) * 2


def test_loss_chunk_bounds_the_logits(twin: Backend) -> None:
    """512 tokens and 4,000 words: all logits at once, or those of 16 tokens at a time."""
    wide = dataclasses.replace(SMALL, context=64, vocabulary_size=4000, num_layers=1)
    whole, chunked = (footprint(twin, wide, loss_chunk=chunk)[0] for chunk in (512, 16))
    assert whole > 4 * chunked


def test_gradient_checkpointing_keeps_less(twin: Backend) -> None:
    deep = dataclasses.replace(SMALL, context=64, num_layers=6, hidden_dim=128)
    kept, recomputed = (footprint(twin, deep, gradient_checkpointing=choice)[1] for choice in (False, True))
    assert kept > 1.5 * recomputed


def test_the_cache_limit_reaches_mlx() -> None:
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    twin = open_twin("mlx")
    free = mx.set_cache_limit(2**34)
    try:
        for limit, wanted in ((0.5, 2**29), (0.25, 2**28)):
            cpu_runtime(twin, cache_limit_gb=limit)
            assert mx.set_cache_limit(2**34) == wanted
        cpu_runtime(twin, cache_limit_gb=0.0)
        assert mx.set_cache_limit(2**34) == 2**34
    finally:
        mx.set_cache_limit(free)


def test_the_stand_in_has_the_functions_of_a_backend() -> None:
    """So that what is seen here is what a twin would be asked."""
    names = {name for name in vars(Backend) if not name.startswith("_")}
    assert names <= set(vars(StandIn))
