"""Every option of every section changes the thing that it governs: one without effect fails, and so does a new one
that has no entry here.

An entry names what an option governs, as something to look at in the calls of a run on the
stand-in backend (`stand_in.py`); test_options_in_twins.py has what a twin makes of it. An option of
a few choices is tried with each of them.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from every_option import choices, options
from stand_in import Call, StandIn, install, make_stand_in, small_config, write_headlines

from faisca.backend import Backend
from faisca.backends import BACKENDS
from faisca.config import STAGES, Config
from faisca.config.rules import EXPERTS
from faisca.errors import FaiscaError
from faisca.runs.checkpoint import checkpoint_folders
from faisca.runs.log import read_records
from faisca.trackers.tracker import TRACKERS, Row
from faisca.training import stages


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


def values_of(ran: Ran, name: str) -> list[Any]:
    return [getattr(call.rollouts, name) for call in ran.named("grpo_step")]


def passes(ran: Ran) -> int:
    return len(ran.named("token_log_probs"))


def rollout(name: str) -> Look:
    def look(ran: Ran) -> Any:
        return [value.tolist() if isinstance(value, np.ndarray) else value for value in values_of(ran, name)]

    return look


def sampled(part: str, rows: int | None = None) -> Look:
    """Of calls of `generate` with so many rows: how tokens are chosen, or the prompts."""

    def look(ran: Ran) -> Any:
        calls = [call for call in ran.named("generate") if rows in (None, len(call.prompts))]
        return [getattr(call.sampling, part, None) if part != "prompts" else call.prompts for call in calls]

    return look


def learnt(ran: Ran) -> Any:
    """The training titles of the last stage as the model sees them, whatever their order: which tokens, how often."""
    steps = ran.named("train_step")
    assert steps, "the run ended before its first step"
    return np.bincount(np.concatenate([call.inputs.ravel() for call in steps])).tolist()


def measured(ran: Ran) -> Any:
    """The first evaluation: the titles that a model is measured on."""
    evaluated = ran.named("evaluate")
    return [call.targets.tolist() for call in evaluated if call.updates == evaluated[-1].updates]


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
        "optimizer": None,
        "muon_learning_rate": 0.03,
        "muon_momentum": 0.8,
    }.items()
}
RATE = {"learning_rate": 0.07, "schedule": None, "warmup_steps": 1, "min_learning_rate_share": 0.9}
RATE |= {"decay_share": 1.0}
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
ADAPTER: dict[str, tuple[Any, Look]] = {
    "lora_rank": (3, shapes),
    "lora_alpha": (5.0, in_config("make_model", "adapter")),
    "lora_targets": (("query", "down"), shapes),
    "lora_dropout": (0.2, in_config("make_model", "adapter")),
    "lora_dora": (None, shapes),
}
UPDATES = handed("grpo_step", "learning_rate")
GRPO: dict[str, tuple[Any, Look]] = {
    **{name: (value, UPDATES) for name, value in (RATE | {"warmup_steps": 3}).items()},
    **OPTIMISER,
    **ADAPTER,
    "steps": (2, lambda ran: len(ran.named("grpo_step"))),
    "prompts": (("Alerta",), sampled("prompts", 6)),
    "prompts_per_step": (4, lambda ran: max(len(call.prompts) for call in ran.named("generate"))),
    "group_size": (5, lambda ran: max(len(call.prompts) for call in ran.named("generate"))),
    "max_new_tokens": (2, sampled("max_new_tokens", 6)),
    "temperature": (0.3, lambda ran: (sampled("temperature", 6)(ran), ran.given("token_log_probs", "temperature"))),
    "top_k": (3, sampled("top_k", 6)),
    "rollout_batch": (2, lambda ran: {len(call.prompts) for call in ran.named("generate")}),
    "epochs": (3, lambda ran: len(ran.named("grpo_step"))),
    "minibatch_size": (3, lambda ran: {len(call.rollouts.tokens) for call in ran.named("grpo_step")}),
    "prompts_file": ("prompts.jsonl", sampled("prompts", 6)),
    "reward": (("keywords:vento",), lambda ran: ran.records("reward_mean")),
    "reward_weights": ((2.0,), lambda ran: ran.records("reward_mean")),
    "reward_timeout": (60.0, lambda ran: ran.records("reward_mean")),
    "reward_workers": (2, lambda ran: ran.records("reward_mean")),
    "save_completions": (None, lambda ran: sorted(path.name for path in ran.folder.iterdir())),
    "micro_batch_size": (1, in_config("grpo_step", "micro_batch_size")),
    "baseline": (None, rollout("advantages")),
    "rollout_correction": (None, lambda ran: (ran.ended, [a.shape for a in values_of(ran, "advantages")], passes(ran))),
    "rollout_correction_cap": (0.5, rollout("advantages")),
    "scale_rewards": (None, rollout("advantages")),
    "mask_truncated": (None, rollout("mask")),
    **{
        name: (value, in_config("grpo_step", name))
        for name, value in {
            **{"clip_low": 0.1, "clip_high": 0.3, "cispo_cap": 2.0, "kl_weight": 0.7, "delta": 4.0},
            **{"sapo_temperature_pos": 0.5, "sapo_temperature_neg": 2.0, "entropy_weight": 0.1},
        }.items()
    },
    **{
        name: (None, in_config("grpo_step", name)) for name in ("loss", "objective", "importance", "kl_bias_correction")
    },
}
MUON = ("muon_learning_rate", "muon_momentum")
ROTARY = [f"model.rope_{name}" for name in ("base", "factor", "low_frequency", "high_frequency", "original_context")]
ONE_FILE = {"data.source": "one.jsonl"}
TONGUES = {"data.language_column": "tongue"}
OPTIONS: dict[str, tuple[Any, Look]] = {
    **{
        f"model.{name}": (value, shapes)
        for name, value in {"context": 20, "dim": 6, "num_layers": 2, "hidden_dim": 5, "vocabulary_size": 310}.items()
    },
    **{
        f"model.{name}": (None, shapes)
        for name in ("tie_embeddings", "attention_bias", "feed_forward_bias", "qk_norm", "norm", "positions")
    },
    "model.num_kv_heads": (1, shapes),
    "model.bigram_rows": (9, shapes),
    "model.qk_norm_over": (None, in_config("make_model", "qk_norm_over")),
    **{f"model.{name}": (5, shapes) for name in ("num_experts", "expert_dim", "shared_expert_dim")},
    **{
        f"model.{name}": (value, in_config("make_model", name))
        for name, value in {
            "experts_per_token": 3,
            "normalise_experts": None,
            "balance_weight": 0.5,
            "router_z_weight": 0.5,
        }.items()
    },
    "model.head_dim": (6, shapes),
    "model.zero_outputs": (
        None,
        lambda ran: ran.named("make_model")[0].parameters["transformer_blocks.0.attention.out_proj.weight"].tolist(),
    ),
    "model.initial_range": (0.3, lambda ran: ran.named("make_model")[0].parameters["token_embedding.weight"].tolist()),
    **{
        f"model.{name}": (value, in_config("make_model", name))
        for name, value in {"num_heads": 2, "dropout": 0.2, "attention_dropout": 0.3, "norm_epsilon": 1e-3}.items()
    },
    **{f"model.{name}": (None, in_config("make_model", name)) for name in ("activation", "attention_output_bias")},
    **{
        f"model.{name}": (value, in_config("make_model", name))
        for name, value in {"rope_base": 50.0, "rope_factor": 2.0, "rope_low_frequency": 0.5}.items()
    },
    **{
        f"model.{name}": (value, in_config("make_model", name))
        for name, value in {"rope_high_frequency": 9.0, "rope_original_context": 7, "logit_soft_cap": 3.0}.items()
    },
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
    "sft.conversations": ("train.jsonl", lambda ran: [ran.ended]),  # this model has no template: test_conversations.py
    **{f"sft.{name}": entry for name, entry in ADAPTER.items()},
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
        for name in ("device", "dtype", "weights", "compile", "attention", "gradient_checkpointing")
    },
    "run.preflight": (None, lambda ran: len(ran.named("make_learner")) > 1 or "no certificate"),
    "run.log_every": (2, lambda ran: [len(call.answer) for call in ran.named("read_metrics")]),
    "run.checkpoint_every": (5, lambda ran: len(ran.named("get_optimizer_state"))),
    "run.keep": (1, kept),
    "run.reduce_dtype": (None, in_config("open_runtime", "reduce_dtype")),  # test_21_processes.py has what it does
    "run.shard": (True, lambda ran: [ran.ended]),  # which one process cannot: there too
    "run.tracker": (None, lambda ran: ran.ended or "no tracker"),
    "run.max_bad_steps": (2, lambda ran: (ran.ended[:16], len(ran.named("train_step")))),
}
"""what to change each option to (None: to every other choice), and what it governs"""
BESIDE: dict[str, dict[str, Any]] = {
    **{name: {"model.positions": "rope"} for name in ROTARY},
    "model.num_kv_heads": {"model.num_heads": 2},
    "model.qk_norm_over": {"model.qk_norm": True},
    "model.num_experts": {"model.feed_forward_bias": False},
    **{f"model.{name}": {"model.feed_forward_bias": False, "model.num_experts": 4} for name in EXPERTS},
    "data.language": TONGUES,
    "data.validation_share": ONE_FILE,
    **{f"{stage}.{name}": {f"{stage}.optimizer": "muon"} for stage in STAGES for name in MUON},
    **{f"{stage}.decay_share": {f"{stage}.schedule": "wsd"} for stage in STAGES},
    **{
        f"{s}.lora_{name}": {f"{s}.lora_rank": 2}
        for s in STAGES[1:]
        for name in ("alpha", "targets", "dropout", "dora")
    },
    "grpo.schedule": {"grpo.steps": 6},
    "grpo.decay_share": {"grpo.schedule": "wsd", "grpo.steps": 4},
    "pretrain.max_steps": {"pretrain.epochs": 2},
    "pretrain.epochs": {"pretrain.max_steps": 0},
    "pretrain.batch_size": {"pretrain.micro_batch_size": 0},
    "sft.min_learning_rate_share": {"sft.schedule": "cosine"},
    "grpo.scale_rewards": {"grpo.steps": 1},
    "grpo.baseline": {"grpo.scale_rewards": "none"},
    "grpo.rollout_correction_cap": {"grpo.rollout_correction": "token"},
    "run.preflight": {"run.device": "gpu"},
    "run.keep": {"pretrain.max_steps": 5, "run.checkpoint_every": 1},
}
"""what else must be so for an option to matter, in both runs"""
SAME = {"run.preflight": "on", "grpo.rollout_correction": "off"}
"""choices that do what the default does there: auto certifies a GPU, and test_16_certificate.py sees that no CPU; in
float32 it corrects nothing, and test_08_updates.py sees that in bfloat16 it does"""
BAD = ("run.max_bad_steps",)
"""options that matter where every step fails"""
FAIL_AT = {"run.keep": 4}
"""or where a run breaks off, after so many updates: at a stage's end nothing is left to see"""


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
    (folder / "prompts.jsonl").write_text('{"prompt": "Hoje"}\n{"prompt": "Ontem"}\n', encoding="utf-8")
    away = "10.0 * (multiprocessing.parent_process() is not None)"  # where rewards have processes of their own
    body = f"import multiprocessing\ndef length(texts):\n    return [len(text) % 5 + {away} for text in texts]\n"
    (folder / "reward.py").write_text(body, encoding="utf-8")
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
        if changes.get("grpo.prompts_file"):
            changes = changes | {"grpo.prompts_file": str(self.material / "prompts.jsonl")}
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
            patch.setitem(BACKENDS, "mlx", dataclasses.replace(BACKENDS["mlx"], needs="numpy"))
            patch.setitem(sys.modules, "faisca_mlx", stand_in)
            for name in TRACKERS:  # refused by name; test_trackers.py has what the libraries make of a run
                patch.setitem(TRACKERS, name, Row(f"no_{name}", name))
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
    values = [base, *(choice for choice in choices(name, base, value) if choice != SAME.get(name))]
    values = [value for value in values if value != "json"]  # a ported model's alone: test_porting_families.py
    assert len(values) > 1 and base not in values[1:]
    seen += [look(runs(stage, beside | {name: other}, **how)) for other in values[1:]]
    assert all(seen), "there is something to look at"
    for i, one in enumerate(seen):
        assert all(one != other for other in seen[:i]), f"{name} {values[i]!r} changes nothing"


def test_the_stand_in_has_the_functions_of_a_backend() -> None:
    """So that what is seen here is what a twin would be asked."""
    names = {name for name in vars(Backend) if not name.startswith("_")}
    assert names <= set(vars(StandIn))
