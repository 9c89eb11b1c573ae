"""Runs for reports: folders with what a run records, written in a moment, without checkpoints."""

import json
import math
from pathlib import Path
from typing import Any

from faisca.config.files import config_from_dict, load_preset, write_config
from faisca.runs.summary import STAGE_KEYS

HEADLINES = ["Governo aprova o orçamento", "Câmara de Évora abre concurso", "Benfica vence <b>clássico</b> & sobe"]


def losses(stage: str, steps: int, start: float, every: int = 10) -> list[dict[str, Any]]:
    """Records of a stage that trains: a loss a step, both validation losses every so many."""
    found = []
    for step in range(1, steps + 1):
        known = {"stage": stage, "step": step, "seconds": start + step / 10, "tokens_seen": 256 * step}
        loss = 3 + 3 * math.exp(-3 * step / steps) + 0.1 * math.sin(step)
        found.append(known | {"loss": loss, "grad_norm": 1.0, "learning_rate": 1e-3, "skipped": 0, "epoch": step / 50})
        if step % every == 0:
            measured = {"validation_loss": loss + 0.05, "portugal_validation_loss": loss - 0.05}
            found.append({**known, "epoch": step / 50, **measured})
    return [*found, {"stage": stage, "step": steps, "seconds": start + steps / 10, "samples": HEADLINES}]


def rounds(steps: int, start: float) -> list[dict[str, Any]]:
    """Records of GRPO."""
    return [
        {"stage": "grpo", "step": step, "seconds": start + step, "reward_mean": step / (steps + 1), "reward_std": 0.2}
        | {"reward/football_mean": 0.5, "reward/length_mean": 0.25, "kl": 1e-4 * step, "entropy": 3.0, "skipped": 0}
        | {"seconds_rollout": 0.5, "seconds_scoring": 0.01, "seconds_update": 0.3, "completion_length_mean": 9.5}
        | {"best": {"text": HEADLINES[2], "reward": 1.0}, "worst": {"text": HEADLINES[0], "reward": 0.0}}
        for step in range(1, steps + 1)
    ]


def completions(step: int, count: int = 16) -> list[dict[str, Any]]:
    """Lines of completions.jsonl, of one step."""
    return [
        {"step": step, "prompt": "Presidente", "completion": f" escreve {i} de {step}", "reward": i / count}
        | {"rewards": {"football": 0.0, "length": i / count}, "advantage": i - count / 2, "ended": i % 2 == 0}
        for i in range(count)
    ]


def entry(stage: str, steps: int, **more: Any) -> dict[str, Any]:
    """What summary.json has of a finished stage."""
    known: dict[str, Any] = dict.fromkeys(STAGE_KEYS, 0.5) | {"stage": stage, "steps": steps}
    known |= {"samples_before": HEADLINES[:1], "samples_after": HEADLINES, "seconds": steps / 20}
    return known | {"tokens_per_second": 1234.5, "peak_memory_bytes": 5 * 10**8, "skipped_steps": 0} | more


def write_run(
    folder: Path, records: list[dict[str, Any]], entries: list[dict[str, Any]], config: dict[str, Any] | None = None
) -> Path:
    """A run's folder: metrics, summary where a stage is finished, and the configuration; returns it."""
    folder.mkdir(parents=True)
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    facts = {"backend": "torch", "device": "cpu", "preset": "tiny", "seed": 1337, "parameters": 54_321}
    if entries:
        (folder / "summary.json").write_text(json.dumps(facts | {"stages": entries}), encoding="utf-8")
    steps = sorted({record["step"] for record in records if record["stage"] == "grpo"})
    if steps:
        rows = [json.dumps(row, ensure_ascii=False) + "\n" for step in steps for row in completions(step)]
        (folder / "completions.jsonl").write_text("".join(rows), encoding="utf-8")
    write_config(config_from_dict(config or {}, load_preset("tiny")), folder / "config.toml")
    return folder


def three_stages(folder: Path, config: dict[str, Any] | None = None, **last: Any) -> Path:
    """A whole run; `last` changes GRPO's entry in the summary."""
    records = [*losses("pretrain", 60, 1.0), *losses("sft", 30, 9.0), *rounds(12, 13.0)]
    entries = [entry("pretrain", 60), entry("sft", 30), entry("grpo", 12, kl_after=0.01, **last)]
    return write_run(folder, records, entries, config)
