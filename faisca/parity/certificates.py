"""The certificate of a preset or a run, on the best device of every backend here: what `run.preflight` would find."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from faisca.backend import load_backend
from faisca.backends import BACKENDS
from faisca.certificate.certify import Certificate, Reference, units
from faisca.certificate.compare import TOLERANCES, Finding
from faisca.certificate.work import Work
from faisca.config import Config, ModelConfig, RunConfig, plain
from faisca.config.files import load_preset
from faisca.data.tokenizer import expected_tokens
from faisca.parameters import initial_parameters
from faisca.system.progress_bar import track
from faisca.system.tables import PlainConsole
from faisca.training.preflight import longest_prompt, stage_work

PROMPT = 4
"""tokens of a prompt where no tokenizer says it"""


@dataclass(frozen=True)
class Subject:
    """What is certified: a configuration with weights."""

    name: str
    config: Config
    model: ModelConfig
    parameters: Mapping[str, np.ndarray]
    prompt: int = PROMPT

    def works(self) -> Iterator[Work]:
        """The work of its stages; those that compute the same shapes once."""
        seen = set()
        for stage in self.config.run.stages:
            work = stage_work(self.config, self.model, stage, self.parameters, self.prompt)
            shape = (work.rows, work.length, stage == "grpo")
            if shape not in seen:
                yield work
            seen.add(shape)


@dataclass(frozen=True)
class Certified:
    """The certificate of a stage on one backend's device."""

    stage: str
    side: str
    certificate: Certificate

    def worst(self) -> list[Finding]:
        """Of each kind of numbers the one that is furthest from the CPU's, as a share of what is allowed."""
        found = self.certificate.findings
        kinds = [kind for kind in TOLERANCES if any(f.kind == kind for f in found)]
        return [max((f for f in found if f.kind == kind), key=lambda f: f.distance) for kind in kinds]

    def to_json(self) -> dict[str, Any]:
        certificate, precision = self.certificate, self.certificate.precision
        return {
            "stage": self.stage,
            "side": self.side,
            "passed": certificate.passed,
            "precision": precision,
            "reference": certificate.reference,
            "compared": len(certificate.findings),
            "furthest": [
                asdict(f) | {"allowed": getattr(TOLERANCES[f.kind], precision), "passed": f.passes(precision)}
                for f in self.worst()
            ],
            "failures": [f.words(precision) for f in certificate.failures],
        }


def subject_of(preset: str | None, checkpoint: Path | None) -> Subject | None:
    """What was named on the command line, if anything."""
    if preset is not None:
        config = load_preset(preset)
        model = replace(config.model, vocabulary_size=expected_tokens(config.tokenizer))
        return Subject(f"preset {preset}", config, model, initial_parameters(model, config.run.seed))
    return None if checkpoint is None else _of_checkpoint(checkpoint)


def certify_all(subject: Subject, console: PlainConsole) -> list[Certified]:
    """Every stage's certificate, on the best device of each backend, computed as users run it."""
    found, works = [], list(subject.works())
    total, done = sum(map(units, works)) * len(BACKENDS), 0
    with track(console, "certificate", total) as tracker:

        def tick() -> None:
            nonlocal done
            done += 1
            tracker.update(done)

        for name in BACKENDS:
            found += [_certify(name, subject, work, tick) for work in works]
    return found


def print_certificates(subject: Subject, found: list[Certified], console: PlainConsole) -> None:
    """A table with a row for each kind of numbers, and what failed below it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print(f"\ncertificate of {subject.name}: its own steps in their full shapes, on the device that takes them")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    for heading in ("stage", "side", "compared"):
        table.add_column(heading)
    for heading in ("furthest", "allowed", "verdict"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        precision = one.certificate.precision
        for f in one.worst():
            verdict = Text("pass") if f.passes(precision) else Text("FAIL", style="bold red")
            allowed = f"{getattr(TOLERANCES[f.kind], precision):.0e}"
            table.add_row(one.stage, one.side, f.kind, f"{f.distance:.1e}", allowed, verdict)
    console.print(table)
    for one in found:
        certificate = one.certificate
        for finding in certificate.failures[:3]:
            console.print(f"{one.stage}, {one.side}: {finding.words(certificate.precision)}")
        off, compared = len(certificate.failures), len(certificate.findings)
        console.print(
            f"{one.stage}, {one.side} in {certificate.precision}: {compared - off} of {compared} arrays agree with "
            f"{certificate.reference}"
        )


def _certify(name: str, subject: Subject, work: Work, tick: Callable[[], None]) -> Certified:
    backend = load_backend(name)
    device = backend.open_runtime(config=RunConfig()).device
    config = replace(subject.config.run, backend=name, device=device)
    return Certified(work.stage, f"{name} {device}", Reference(backend, work.on(device), tick).certify(config))


def _of_checkpoint(path: Path) -> Subject:
    from faisca.lora import merged
    from faisca.runs.checkpoint import load_checkpoint, warn
    from faisca.training.run import checkpoint_tokenizer
    from faisca.training.start import with_prompts_at_hand

    checkpoint = load_checkpoint(path)
    state, tokenizer = checkpoint.state, checkpoint_tokenizer(checkpoint)
    config = with_prompts_at_hand(state.config, warn)
    prompt = longest_prompt(config, tokenizer, state.model.context)
    parameters = dict(merged(checkpoint.parameters, state.model))
    return Subject(str(path), state.config, plain(state.model), parameters, prompt)
