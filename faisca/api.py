"""What the shell does, from Python: a configuration, a run, a run that is watched, and what came of one.

`faisca` hands these out; `docs/python.md` shows them at work.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from faisca.config import Config
from faisca.config.files import lay, preset_sections, write_config
from faisca.errors import FaiscaError, VerificationError
from faisca.loaded_model import LoadedModel, load
from faisca.runs.log import METRICS
from faisca.training import stages
from faisca.training.start import inherit, own_sections

Record = dict[str, Any]
"""a line of `metrics.jsonl`: `stage`, `step`, `seconds`, and what was measured"""
PAUSE = 0.1
"""seconds between two looks at a run that is watched"""


def configure(preset: str | None = None, start_from: str | Path | None = None, **sections: Mapping[str, Any]) -> Config:
    """A configuration: a preset, and over it values by section, `configure("tiny", pretrain={"epochs": 1})`.

    `start_from` is a checkpoint or run folder to begin with: its model and tokenizer come along, and without a
    preset the rest of its configuration too. FaiscaError for what is unknown or impossible.
    """
    base = preset_sections(preset or "spark")
    if start_from is not None:
        state = stages.saved_state(_path(start_from))
        base = inherit(own_sections(state) if preset is None else base, state)
    return Config(**lay(base, sections))


def run(config: Config, out: str | Path | None = None, start_from: str | Path | None = None) -> dict[str, Any]:
    """Train as `faisca run` does, in the new folder `out` (None: runs/PRESET); returns the summary.

    Ctrl-C saves after the step under way and raises KeyboardInterrupt, which says how to go on.
    """
    return stages.run(config, _folder(config, out), None if start_from is None else _path(start_from))


def resume(out: str | Path, config: Config | None = None) -> dict[str, Any]:
    """Continue the run in `out`, as if it had never stopped; `config` None is its own. Returns the summary."""
    return stages.resume(_path(out), config or stages.saved_state(_path(out)).config)


def train(
    out: str | Path, preset: str | None = None, start_from: str | Path | None = None, **sections: Mapping[str, Any]
) -> LoadedModel:
    """`configure`, `run` in the new folder `out`, and load what came of it."""
    config = configure(preset, start_from, **sections)
    run(config, out, start_from)
    return load(out, config.run.backend, config.run.device, config.run.dtype)


def watch(
    config: Config | None = None, out: str | Path | None = None, start_from: str | Path | None = None
) -> Generator[Record, None, None]:
    """`run`, in a process of its own: yields each record of `metrics.jsonl` as it is written.

    Without `config` it continues the run in `out`, with what its checkpoint has not seen. Closing the generator, or
    leaving its loop, stops the run after its step: it is saved, and `resume(out)` or another `watch` goes on.
    FaiscaError for what `run` refuses.
    """
    if config is None and out is None:
        raise FaiscaError("nothing to watch: give a configuration, or the folder of a run to continue")
    folder = _path(out) if config is None and out is not None else _folder(config or Config(), out)
    known = _known(folder) if config is None else _nothing(folder)
    with tempfile.TemporaryDirectory() as place, open(Path(place) / "errors", "w+b") as errors:
        if config is None:
            words = ["--resume", str(folder)]
        else:
            write_config(config, Path(place) / "config.toml")
            words = ["--config", f"{place}/config.toml", "--out", str(folder)]
        words += [] if start_from is None else ["--from", str(_path(start_from))]
        process = subprocess.Popen(
            [sys.executable, "-m", "faisca", "run", *words],
            env=os.environ | {"PYTHONPATH": _search_path()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            yield from _follow(process, folder / METRICS, known)
            _raise_for(process.returncode, errors)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait()


def _follow(process: "subprocess.Popen[bytes]", path: Path, known: int) -> Iterator[Record]:
    """Records as they are written from byte `known` on, until the process has ended."""
    rest, ended = b"", False
    while not ended:
        ended = process.poll() is not None  # before reading: what was written last is there then
        if path.exists():
            with path.open("rb") as file:
                file.seek(known)
                new = file.read()
            known += len(new)
            *lines, rest = (rest + new).split(b"\n")
            yield from map(json.loads, lines)
        if not ended:
            time.sleep(PAUSE)


def _known(folder: Path) -> int:
    """Bytes of the metrics of a run that its checkpoint has seen; what was written later is cut off, as a resumed
    run does it.
    """
    seen = stages.saved_state(folder).metrics_bytes
    if (folder / METRICS).exists() and (folder / METRICS).stat().st_size > seen:
        os.truncate(folder / METRICS, seen)
    return seen


def _nothing(folder: Path) -> int:
    """0, the bytes that a new run's metrics have; FaiscaError where the folder is in use."""
    if os.path.isdir(folder) and os.listdir(folder):
        raise FaiscaError(
            f"{folder} is not empty: name a new folder, or give no configuration, which continues its run"
        )
    return 0


def _raise_for(status: int, errors: IO[bytes]) -> None:
    """What the process has said at its end, as the error that it was there."""
    errors.seek(0)
    text = errors.read().decode(errors="replace").strip()
    last = text.rpartition("\n")[2].removeprefix("faisca: ")
    if status == 130:
        raise KeyboardInterrupt(last)
    if status in (1, 2) and "Traceback" not in text:
        raise (VerificationError if status == 1 else FaiscaError)(last)
    if status:
        raise RuntimeError(f"the run ended with status {status}:\n{text}")


def _search_path() -> str:
    """Where the process finds this package, whatever is installed."""
    own = str(Path(__file__).parents[1])
    return os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH"))))


def _folder(config: Config, out: str | Path | None) -> Path:
    return Path("runs") / config.preset if out is None else _path(out)


def _path(path: str | Path) -> Path:
    return Path(os.path.expanduser(path))
