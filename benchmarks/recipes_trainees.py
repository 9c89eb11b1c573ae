"""What `recipes.py` trains: a recipe is a TOML file, trained by the product's own code or, for a peer, by a script.

A file of ours has a preset and sections, as `faisca run --config` takes them; a peer's names a script of `baselines/`
(`peer = "nanogpt"`) and its `[options]`. Options can be changed as on the command line: `--pretrain.batch-size 16`.
Everything is measured on the whole validation split, of which no title is trained on.
"""

import dataclasses
import hashlib
import importlib.util
import shlex
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from faisca.config import Config, DataConfig
from faisca.config.files import config_to_dict, lay, read_sections
from faisca.data.headlines import Headlines, load_headlines, select_titles
from faisca.data.windows import training_batch
from faisca.errors import FaiscaError
from faisca.parameters import count_parameters
from faisca.planning.law import flops_per_token
from faisca.streams import integer_seed
from faisca.training.evaluate import measure_loss
from faisca.training.run import Run, open_run
from faisca.training.schedule import learning_rate

HERE = Path(__file__).parent
RECIPES, BASELINES = HERE / "recipes", HERE / "baselines"
PEER_SECTIONS = {"peer", "options"}


class Trainee(Protocol):
    """A model that is trained by a recipe."""

    facts: dict[str, Any]
    """what is known of it: parameters, flops_per_token, vocabulary, window, data, validation"""

    def step(self, step: int, total: int) -> tuple[float, int]:
        """One optimiser step, done to the end, of `total` that are planned: its loss (nats a token) and its tokens."""

    def bits_per_byte(self) -> float:
        """On the whole validation split."""


@dataclass(frozen=True)
class Recipe:
    """A name for tables, the file, and what is changed in it."""

    name: str
    path: Path
    changes: str = ""
    backend: str = "torch"
    """which twin trains a recipe of ours; peers are torch's"""

    @property
    def values(self) -> dict[str, Any]:
        """The file's sections with the changes."""
        if not self.path.is_file():
            known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
            raise FaiscaError(f"recipe {self.path.stem} is unknown: choose among {known}, or name a TOML file")
        values = tomllib.loads(self.path.read_text(encoding="utf-8"))
        for section, options in parse_changes(self.changes).items():
            values[section] = values.get(section, {}) | options
        return values

    @property
    def peer(self) -> str:
        """The script of a peer; "" for a recipe of ours."""
        return str(self.values.get("peer", ""))

    def config(self, data: str, seed: int) -> Config:
        """The configuration of a recipe of ours: pre-training on this data, measured on all validation titles."""
        sections = lay(read_sections(self.path), {k: v for k, v in self.values.items() if k != "preset"})
        pretrain = dataclasses.replace(sections["pretrain"], max_validation_titles=0)
        sft = dataclasses.replace(sections["sft"], url_contains="", max_validation_titles=0)
        source = dataclasses.replace(sections["data"], source=data)
        run = dataclasses.replace(sections["run"], backend=self.backend, seed=seed, stages=("pretrain",))
        return Config(**sections | {"pretrain": pretrain, "sft": sft, "data": source, "run": run})

    def options(self) -> Any:
        """The options of a peer: the dataclass `Options` of its script."""
        values, kind = self.values, load_peer(self.peer).Options
        known = {field.name for field in dataclasses.fields(kind)}
        strange = [*(values.keys() - PEER_SECTIONS), *(values.get("options", {}).keys() - known)]
        if strange:
            raise FaiscaError(f"{self.path.name}: {strange[0]} is unknown: choose among {', '.join(sorted(known))}")
        return kind(**values.get("options", {}))

    def described(self, data: str) -> dict[str, Any]:
        """All that decides what is trained, but for the seed: by it, results are recognised."""
        if self.peer:
            return {"peer": self.peer, "options": dataclasses.asdict(self.options())}
        return config_to_dict(self.config(data, 0))


def parse_changes(text: str) -> dict[str, dict[str, Any]]:
    """`--model.dim 64 --model.qk-norm --model.no-feed-forward-bias` as sections."""
    words, sections = shlex.split(text), dict[str, dict[str, Any]]()
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        section, dot, option = word[2:].replace("-", "_").partition(".")
        if not dot:
            raise FaiscaError(f"change {word} has no section: write --SECTION.OPTION VALUE")
        value = words[place + 1] if place + 1 < len(words) and not words[place + 1].startswith("--") else None
        if value is None and option.startswith("no_"):
            sections.setdefault(section, {})[option[3:]] = False
        else:
            sections.setdefault(section, {})[option] = True if value is None else _value(value)
    return sections


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def load_peer(name: str) -> ModuleType:
    """The script of a peer, as a module."""
    path = BASELINES / f"{name}_recipe.py"
    if not path.exists():
        known = ", ".join(sorted(path.stem.removesuffix("_recipe") for path in BASELINES.glob("*_recipe.py")))
        raise FaiscaError(f"peer {name!r} is unknown: choose among {known}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextmanager
def open_trainee(recipe: Recipe, data: str, seed: int) -> Iterator[Trainee]:
    """The recipe with its tokenizer, tokens and initial weights, ready for the first step."""
    if recipe.peer:
        from recipes_peer import PeerTrainee

        headlines = load_headlines(DataConfig(source=data), seed)
        script, facts = load_peer(recipe.peer), held_out_facts(headlines)
        yield PeerTrainee(script, recipe.options(), headlines, seed, facts)
        return
    config = recipe.config(data, seed)
    facts = held_out_facts(load_headlines(config.data, seed), config)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_run(config, Path(folder) / "run") as run,
        run.setup.backend.training_memory(runtime=run.setup.runtime),
    ):
        yield TwinTrainee(run, facts)


def held_out_facts(headlines: Headlines, config: Config | None = None) -> dict[str, Any]:
    """What was read, and a hash of the validation titles; an error where one of them would be trained on."""
    train = headlines.train["title"].combine_chunks()
    validation = headlines.validation["title"].combine_chunks()
    if config is not None:
        train, validation = select_titles(headlines, config)["pretrain"]
    shared = pc.sum(pc.is_in(validation, value_set=train)).as_py()
    if shared:
        raise FaiscaError(f"{shared} validation titles are training titles too: remove them from one of the files")
    return {"data": headlines.report, "training_titles": len(train), "validation": hash_titles(validation)}


def hash_titles(titles: pa.Array) -> str:
    """SHA-256 of the titles, a line each."""
    return hashlib.sha256("\n".join(titles.to_pylist()).encode()).hexdigest()


class TwinTrainee:
    """A recipe of ours: the steps of a run's pre-training, taken one at a time."""

    def __init__(self, run: Run, facts: Mapping[str, Any]) -> None:
        from faisca.parameters import initial_parameters

        setup = self.setup = run.setup
        self.run, self.config = run, run.config.pretrain
        self.model = setup.make_model(initial_parameters(setup.model_config, setup.seed))
        self.learner = setup.backend.make_learner(model=self.model, config=self.config)
        window = run.config.data.window
        self.facts = dict(facts) | {
            "backend": setup.runtime.backend,
            "device": setup.runtime.device,
            "dtype": setup.runtime.dtype,
            "parameters": count_parameters(setup.model_config),
            "flops_per_token": flops_per_token(setup.model_config, window),
            "vocabulary": setup.tokenizer.vocabulary_size,
            "window": window,
            "training_tokens": len(run.windows["pretrain"].tokens),
        }

    def step(self, step: int, total: int) -> tuple[float, int]:
        """As `faisca/training/train.py` takes it."""
        config, seed, backend = self.config, self.setup.seed, self.setup.backend
        inputs, targets = training_batch(
            self.run.windows["pretrain"], batch_size=config.batch_size, seed=seed, stage="pretrain", step=step
        )
        metrics = backend.train_step(
            learner=self.learner,
            inputs=inputs,
            targets=targets,
            learning_rate=learning_rate(config, step, total),
            micro_batch_size=config.micro_batch_size,
            dropout_seed=integer_seed(seed, "dropout in pretrain", step),
        )
        (measured,) = backend.read_metrics(metrics=[metrics])
        if (step + 1) % self.run.config.run.log_every == 0:
            backend.tidy_memory(learner=self.learner)
        return measured["loss"], int((targets >= 0).sum())

    def bits_per_byte(self) -> float:
        return measure_loss(self.setup, self.model, self.run.yardsticks["validation"])[1]
