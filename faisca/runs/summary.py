"""What a run came to: `summary.json` for scripts, one table for people, the same table for model cards.

Measures are rows and stages are columns, so that the table fits a terminal of 80 columns and
can be pasted as plain text.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from faisca.errors import FaiscaError
from faisca.system.files import write_atomically
from faisca.system.tables import print_table
from faisca.text import clock, explained, format_bytes, json_text, one_line, reward_title, titles_name

SUMMARY = "summary.json"
RUN_KEYS = ("backend", "device", "preset", "seed", "parameters", "stages")
STAGE_KEYS = """
    stage validation_loss_before validation_loss_after bits_per_byte_after portugal_validation_loss_before
    portugal_validation_loss_after football_share_before football_share_after distinct_share_after seconds
    tokens_per_second peak_memory_bytes samples_before samples_after
""".split()
"""what every stage has; what was not measured is None

grpo also has `kl_after`. Every stage of a new run has `reward_before`, `reward_after`, `reward_std_before` and
`reward_std_after`: mean and standard deviation of `grpo.reward` over the completions that are counted,
None where no completion can be scored; and `data`, what was read and what was left out. The run's `reward`
and `sft_url_contains` say what rewards and `portugal_validation_loss` mean.
"""

Format = Callable[[float], str]


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json` whole or not at all; it has all of RUN_KEYS, its stages all of STAGE_KEYS."""
    missing = [key for key in RUN_KEYS if key not in summary]
    for stage in summary.get("stages", []):
        missing += [f"{stage['stage']}.{key}" for key in STAGE_KEYS if key not in stage]
    assert not missing, f"the summary lacks {', '.join(missing)}"
    write_atomically(folder / SUMMARY, (json_text(explained(summary), indent=2) + "\n").encode())


def read_summary(folder: Path) -> dict[str, Any]:
    """The `summary.json` of a run directory; raises FaiscaError where there is none, or it is broken."""
    path = folder / SUMMARY
    if not path.is_file():
        raise FaiscaError(f"{folder} has no {SUMMARY}: name the directory of a run that has finished a stage")
    try:
        summary = json.loads(path.read_bytes())
    except ValueError as error:
        raise FaiscaError(f"{path} is not JSON ({error}): restore it, or run again") from error
    if not isinstance(summary, dict) or any(key not in summary for key in RUN_KEYS):
        raise FaiscaError(f"{path} is not the summary of a run: restore it, or run again")
    return summary


def show_summary(summary: dict[str, Any], console: Console) -> None:
    """Print the table of measures, then the headlines before and after each stage."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    header, *rows = summary_rows(summary)
    for name in header:
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(*row)
    console.print(Text(run_line(summary), style="bold"), soft_wrap=True)
    console.print()
    print_table(console, table, by="columns")
    console.print()
    for stage in summary["stages"]:
        _show_samples(stage, console)


def summary_markdown(summary: dict[str, Any]) -> str:
    """The table of measures as Markdown."""
    header, *rows = summary_rows(summary)
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def run_line(summary: dict[str, Any]) -> str:
    """One line that names a run: preset, backend, device, size and seed."""
    return (
        f"{summary['preset']} on {summary['backend']} ({summary['device']})"
        f" · {summary['parameters'] / 1e6:.2f} M parameters · seed {summary['seed']}"
    )


def summary_rows(summary: dict[str, Any]) -> list[list[str]]:
    """The table as texts: a header of stages, then a row for each measure that some stage has."""
    stages, kind = summary["stages"], titles_name(summary.get("sft_url_contains", ".pt/"))
    rows = [
        _before_after(stages, "validation loss (nats)", "validation_loss", _three),
        _after(stages, "bits per byte", "bits_per_byte_after", _three),
        _before_after(stages, f"{kind} validation loss", "portugal_validation_loss", _three),
        *_reward_rows(stages, summary.get("reward", "football")),
        _after(stages, "distinct share", "distinct_share_after", _percent),
        _after(stages, _kl_title(stages), "kl_after", lambda value: f"{value:.4f}"),
        _after(stages, "time", "seconds", clock),
        _after(stages, "tokens/s", "tokens_per_second", lambda value: f"{value:,.0f}"),
        _after(stages, _memory_title(stages), "peak_memory_bytes", format_bytes),
    ]
    shown = [row for row in rows if set(row[1:]) != {"–"} or row[0].startswith("reward")]
    return [["", *(stage["stage"] for stage in stages)], *shown]


def _reward_rows(stages: list[dict[str, Any]], reward: str) -> list[list[str]]:
    """The share that the football reward is the mean of, or mean and standard deviation of another reward."""
    if reward == "football":
        return [_before_after(stages, "football share", "football_share", _percent)]
    title = reward_title(reward)
    return [_before_after(stages, title, "reward", _number), _before_after(stages, "its spread", "reward_std", _number)]


def _before_after(stages: list[dict[str, Any]], title: str, key: str, form: Format) -> list[str]:
    pairs = [(_cell(s.get(f"{key}_before"), form), _cell(s.get(f"{key}_after"), form)) for s in stages]
    return [title] + ["–" if pair == ("–", "–") else " → ".join(pair) for pair in pairs]


def _after(stages: list[dict[str, Any]], title: str, key: str, form: Format) -> list[str]:
    return [title] + [_cell(stage.get(key), form) for stage in stages]


def _memory_title(stages: list[dict[str, Any]]) -> str:
    """Which peak it is, where all stages counted the same: the two are not comparable."""
    kinds = {stage.get("peak_memory_kind") for stage in stages}
    kind = kinds.pop() if len(kinds) == 1 else None
    return f"peak memory, {kind}" if kind else "peak memory"


def _kl_title(stages: list[dict[str, Any]]) -> str:
    """It is not the KL of a training step, which is over that step's rollouts."""
    counted = next((stage["counted"] for stage in stages if "counted" in stage), None)
    return f"KL, {counted} completions" if counted else "KL to reference"


def _cell(value: float | None, form: Format) -> str:
    return "–" if value is None else form(value)


def _three(value: float) -> str:
    return f"{value:.3f}"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _show_samples(stage: dict[str, Any], console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for when in ("before", "after"):
        for i, sample in enumerate(stage.get(f"samples_{when}") or []):
            table.add_row("" if i else f"{when} {stage['stage']}", Text(one_line(sample)))
    if table.row_count:
        console.print(table)
        console.print()
