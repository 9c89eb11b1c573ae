"""Runs of three stages that take a second, ways to end them badly, and what a run came to."""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import open_twin

from faisca import cli
from faisca.config.files import load_preset, write_config
from faisca.runs.checkpoint import checkpoint_folders, load_checkpoint
from faisca.runs.log import read_records

PLACES = "Lisboa Porto Braga Faro Coimbra Évora Aveiro Viseu Leiria Setúbal".split()
SUBJECTS = "Governo Câmara Tribunal Hospital Escola Clube Empresa Sindicato".split()
ACTIONS = "anuncia medidas|abre inquérito|fecha portas|vence jogo|perde recurso|aprova plano|adia obras".split("|")
TIMED = {"seconds", "tokens_per_second", "peak_memory_bytes"} | {
    f"seconds_{part}" for part in ("rollout", "scoring", "update")
}
"""what may differ between two equal runs"""

OPTIONS = """
    --device cpu --checkpoint-every 2 --keep 2 --model.dropout 0.1 --model.attention-dropout 0.1
    --tokenizer.vocabulary-size 300
    --pretrain.epochs 2 --pretrain.max-steps 9 --pretrain.batch-size 16
    --sft.epochs 2 --sft.max-steps 7 --sft.batch-size 8 --sft.evaluate-every 3
    --grpo.steps 4 --grpo.epochs 2
"""


class KilledError(BaseException):
    """Stands for the end of the process, where a test stays in its own."""


def write_material(folder: Path) -> Path:
    """Headlines of our own, a configuration, and a reward that tells completions apart."""
    rows = [(s, a, p) for p in PLACES for s in SUBJECTS for a in ACTIONS]
    lines = [
        json.dumps({"title": f"{s} de {p} {a}", "language": "pt", "requested_url": f"https://x.{c}/{i}"})
        for i, (s, a, p) in enumerate(rows)
        for c in ["pt" if i % 2 else "com.br"]
    ]
    (folder / "headlines.jsonl").write_text("\n".join(lines[:400]) + "\n", encoding="utf-8")
    (folder / "reward.py").write_text("def length(texts):\n    return [float(len(text) % 7) for text in texts]\n")
    write_config(load_preset("tiny"), folder / "tiny.toml")
    return folder


def arguments(material: Path, backend: str, *more: str) -> list[str]:
    """What follows `faisca run` to start a small run; `more` wins."""
    own = [
        "--config",
        f"{material}/tiny.toml",
        "--data",
        f"{material}/headlines.jsonl",
        "--grpo.reward",
        f"{material}/reward.py:length",
    ]
    return [*OPTIONS.split(), "--backend", backend, *own, *more]


def start(material: Path, folder: Path, backend: str, *more: str) -> None:
    """A new run, in this process."""
    assert cli.main(["run", *arguments(material, backend, *more), "--out", str(folder)]) == 0


def resume(folder: Path, *more: str) -> None:
    """Its continuation, in this process."""
    assert cli.main(["run", "--resume", str(folder), *more]) == 0


def die_in(patch: pytest.MonkeyPatch, backend: str, function: str, call: int, action: Callable[[], Any]) -> None:
    """Do `action` instead of the twin's function at its n-th call from now on (1 is the next), and every later one."""
    twin, calls = open_twin(backend), 0
    original = getattr(twin, function)

    def counted(**values: Any) -> Any:
        nonlocal calls
        calls += 1
        return action() if calls >= call else original(**values)

    patch.setattr(twin, function, counted)


def killed_in(backend: str, function: str, call: int, work: Callable[[], Any]) -> None:
    """Do `work` and end it at the n-th call of the twin's function."""

    def die() -> None:
        raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        die_in(patch, backend, function, call, die)
        with pytest.raises(KilledError):
            work()


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that two equal runs have in common: the newest arrays as bytes, metrics, summary, pointers."""
    checkpoint = load_checkpoint(folder)
    arrays = {"model": checkpoint.parameters, "optimizer": checkpoint.optimizer, "reference": checkpoint.reference}
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {
        "arrays": {kind: {name: a.tobytes() for name, a in (group or {}).items()} for kind, group in arrays.items()},
        "metrics": [untimed(record) for record in read_records(folder)],
        "completions": path.read_bytes() if (path := folder / "completions.jsonl").exists() else b"",
        "summary": summary | {"stages": [untimed(stage) for stage in summary["stages"]]},
        "pointers": [(folder / name).read_text() for name in ("latest", "best")],
        "checkpoints": [path.name for path in checkpoint_folders(folder)],
    }


def untimed(record: dict[str, Any]) -> dict[str, Any]:
    """A record without what depends on the clock and the machine."""
    return {key: value for key, value in record.items() if key not in TIMED}


def same_outcome(left: dict[str, Any], right: dict[str, Any], but: tuple[str, ...] = ()) -> None:
    """Assert that two runs came to the same, part by part, so that a failure says where they differ."""
    assert left.keys() == right.keys()
    for part in left.keys() - {"arrays", *but}:
        assert left[part] == right[part], part
    for kind, group in left["arrays"].items():
        assert group.keys() == right["arrays"][kind].keys()
        unlike = [name for name, content in group.items() if content != right["arrays"][kind][name]]
        assert not unlike, (kind, unlike)


def trajectory(folder: Path) -> dict[tuple[str, int, str], float]:
    """Losses, norms and rewards by stage, step and name."""
    keys = ("loss", "grad_norm", "validation_loss", "portugal_validation_loss", "reward_mean", "kl", "entropy")
    found = {}
    for record in read_records(folder):
        for key in keys:
            if isinstance(record.get(key), float):
                found[record["stage"], record["step"], key] = record[key]
    return found


# processes, forked from one that has the libraries loaded: a new one is there in no time


def processes() -> Any:
    """A multiprocessing context whose processes start with torch and the core imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "faisca.training.stages", "faisca.commands.train", "faisca_torch", "matplotlib.pyplot"]
    )
    return context


def begin(argv: list[str], errors: Path, limit: int | None = None) -> Any:
    """`faisca ARGV` in a process of its own, its standard error in a file; `limit` is the longest file it may write."""
    process = processes().Process(target=_faisca, args=(argv, str(errors), limit))
    process.start()
    return process


def finish(argv: list[str], errors: Path, limit: int | None = None) -> tuple[int, str]:
    """Exit status and standard error of `faisca ARGV`."""
    process = begin(argv, errors, limit)
    process.join(timeout=300)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode, errors.read_text(encoding="utf-8")


def _faisca(argv: list[str], errors: str, limit: int | None) -> None:
    for descriptor, target in ((1, os.devnull), (2, errors)):
        os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    if limit is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(cli.main(argv))


def is_one_clear_line(text: str) -> bool:
    """Whether standard error has exactly one line of ours, beside warnings about checkpoints, and no traceback."""
    lines = [line for line in text.splitlines() if line]
    ours = [line for line in lines if line.startswith("faisca: ")]
    return len(ours) == 1 and lines[-1] == ours[0] and ": " in ours[0][8:] and "Traceback" not in text


def largest_difference(left: dict[Any, float], right: dict[Any, float]) -> float:
    """Between numbers of the same names."""
    assert left.keys() == right.keys()
    return float(np.max([abs(left[key] - right[key]) for key in left]))
