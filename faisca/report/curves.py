"""Curves out of records: which charts a report has, and their points on every axis they can be drawn against."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from faisca.report.recorded import Record, Recorded, is_number
from faisca.runs.charts.curves import smooth
from faisca.runs.charts.grpo import PANELS as GRPO_PANELS
from faisca.runs.charts.grpo import PATTERNS
from faisca.runs.charts.routers import PANELS as ROUTER_PANELS
from faisca.text import reward_name, reward_title, titles_name

AXES = ("tokens", "steps", "time")
"""what a curve can be drawn against"""
SMOOTHED_FROM = 20
"""points from which a curve of training losses is drawn smoothed, over its points"""
COLOURS = 6
"""that runs, or the measures of one, are told apart by"""
MOST_POINTS = {"wide": 4000, "half": 1500, "small": 600}
"""points of one chart, shared by its curves: what a file of less than 2 MB has room for"""
Values = list[float]


@dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    run: int
    """which of the report's runs it is of"""
    name: str
    """of the measure; empty where the chart has only one"""
    x: Mapping[str, Values]
    """by axis"""
    y: Values
    look: str = "solid"
    """solid, faint (single steps under their smoothed curve), dots, dashed, or turn1, turn2, … beside a solid one"""
    spread: Values | None = None
    """half the height of a band around it"""
    left_out: int = 0
    """points that are not drawn, for there are too many"""

    def ink(self, alone: bool) -> tuple[str, str]:
        """Its colour and dashes, as classes of the CSS: colours tell runs apart, or measures where a run is `alone`."""
        turn = int(self.look[4:]) if self.look.startswith("turn") else 0
        if not alone:
            return f"c{self.run % COLOURS}", f"d{turn or int(self.look == 'dashed')}"
        return {"dots": "ink", "dashed": "soft"}.get(self.look, f"c{turn % COLOURS}"), f"d{int(self.look == 'dashed')}"


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes."""

    key: str
    title: str
    unit: str
    curves: list[Curve]
    size: str = "small"
    """wide, half or small"""
    note: str = ""

    @property
    def axes(self) -> list[str]:
        """What it can be drawn against; the first is the printed chart's."""
        return [axis for axis in AXES if any(axis in curve.x for curve in self.curves)]


def training_charts(runs: list[Recorded], stage: str) -> list[Chart]:
    """Losses of pre-training or SFT, and a mixture's routers."""
    losses = [curve for number, run in enumerate(runs) for curve in _losses(number, run, stage)]
    charts = [Chart(f"{stage}-loss", "Loss", "nats per token", losses, "wide", _bad_steps(runs, stage))]
    for key, (title, _) in ROUTER_PANELS.items():
        charts.append(Chart(f"{stage}-{key}", title, "", _of_each(runs, stage, {key: ""})))
    for key, title, unit in (
        ("grad_norm", "gradient norm", ""),
        ("learning_rate", "learning rate", ""),
        ("tokens_per_second", "speed", "tokens per second"),
    ):
        charts.append(Chart(f"{stage}-{key}", title, unit, _of_each(runs, stage, {key: ""})))
    return [_thinned(chart) for chart in charts if chart.curves]


def grpo_charts(runs: list[Recorded]) -> list[Chart]:
    """Reward with its spread, KL, and everything else that was measured of GRPO's steps."""
    rewards = []
    for number, run in enumerate(runs):
        records = [record for record in run.of_stage("grpo") if is_number(record.get("reward_mean"))]
        if curve := _curve(number, run, "grpo", records, "reward_mean", ""):
            spread = [record.get("reward_std") for record in records]
            whole = all(is_number(value) for value in spread)
            rewards.append(replace(curve, spread=[float(value or 0) for value in spread] if whole else None))
    band = "± deviation" if any(curve.spread for curve in rewards) else ""
    charts = [Chart("grpo-reward", f"Mean {_reward(runs)}", band, rewards, "half")]
    for key, (words, names, _) in GRPO_PANELS.items():
        title, unit = _title_and_unit(words)
        charts.append(
            Chart(f"grpo-{key}", title, unit, _of_each(runs, "grpo", names), "half" if key == "kl" else "small")
        )
    for key, (pattern, words) in PATTERNS.items():
        names = _matching(runs, pattern)
        if len(names) > (key == "functions"):  # one function is the reward
            title, unit = _title_and_unit(words)
            charts.append(Chart(f"grpo-{key}", title, unit, _of_each(runs, "grpo", names)))
    charts.append(Chart("grpo-grad_norm", "gradient norm", "", _of_each(runs, "grpo", {"grad_norm": ""})))
    return [_thinned(chart) for chart in charts if chart.curves]


def _losses(number: int, run: Recorded, stage: str) -> Iterable[Curve]:
    """Training, smoothed where it has many points, and the validation losses along the way."""
    records = run.of_stage(stage)
    trained = _curve(number, run, stage, records, "loss", "training")
    if trained and len(trained.y) >= SMOOTHED_FROM:
        yield replace(trained, look="faint")
        yield replace(trained, y=[float(value) for value in smooth(np.array(trained.y))])
    elif trained:
        yield trained
    kind = titles_name(run.config.sft.url_contains if run.config else ".pt/")
    names = {"validation_loss": ("validation", "dots"), "portugal_validation_loss": (f"{kind} validation", "dashed")}
    for key, (name, look) in names.items():
        if curve := _curve(number, run, stage, records, key, name):
            yield replace(curve, look=look)


def _of_each(runs: list[Recorded], stage: str, names: Mapping[str, str]) -> list[Curve]:
    """A curve for each run and each of the measures that it has; measures that share a chart differ in their dashes."""
    found = []
    for number, run in enumerate(runs):
        for turn, (key, name) in enumerate(names.items()):
            if curve := _curve(number, run, stage, run.of_stage(stage), key, name):
                found.append(replace(curve, look=f"turn{turn}" if turn else "solid"))
    return found


def _curve(number: int, run: Recorded, stage: str, records: list[Record], key: str, name: str) -> Curve | None:
    """The points of the records that have a number; None where there are none."""
    points = [record for record in records if is_number(record.get(key))]
    if not points:
        return None
    x = {"steps": [float(record["step"]) for record in points]}
    if all(is_number(record.get("tokens_seen")) for record in points):
        x["tokens"] = [float(record["tokens_seen"]) for record in points]
    if all(is_number(record.get("seconds")) for record in points):
        began = _began(run, stage)
        x["time"] = [second - began for second in _moments(points)]
    return Curve(number, name, x, [float(record[key]) for record in points])


def _began(run: Recorded, stage: str) -> float:
    """When a stage's first record was written: its curves' time counts from there."""
    return min(float(record["seconds"]) for record in run.of_stage(stage) if is_number(record.get("seconds")))


def _moments(records: list[Record]) -> Iterator[float]:
    """When each step ended: those that were read together have one speed, and were written at one moment."""
    for rate, group in groupby(records, lambda record: record.get("tokens_per_second")):
        steps = list(group)
        for record in steps:
            after = steps[-1]["tokens_seen"] - record["tokens_seen"] if rate else 0
            yield steps[-1]["seconds"] - after / rate if after else record["seconds"]


def _thinned(chart: Chart) -> Chart:
    """The chart with at most MOST_POINTS, each curve's share of them: the highest and lowest of each stretch stay."""
    share = max(40, MOST_POINTS[chart.size] // len(chart.curves))
    return replace(chart, curves=[_thin(curve, share) for curve in chart.curves])


def _thin(curve: Curve, most: int) -> Curve:
    """Of each stretch of points the highest and the lowest, in their order, and both ends of the curve."""
    count = len(curve.y)
    if count <= most:
        return curve
    y, kept = np.array(curve.y), {0, count - 1}
    for stretch in np.array_split(np.arange(count), most // 2 - 1):
        kept |= {int(stretch[y[stretch].argmin()]), int(stretch[y[stretch].argmax()])}
    places = sorted(kept)
    x = {axis: [values[i] for i in places] for axis, values in curve.x.items()}
    spread = None if curve.spread is None else [curve.spread[i] for i in places]
    return replace(curve, x=x, y=[curve.y[i] for i in places], spread=spread, left_out=count - len(places))


def _matching(runs: list[Recorded], pattern: str) -> dict[str, str]:
    """Measures of GRPO whose names are of a pattern, with the part that names the curve."""
    keys = dict.fromkeys(key for run in runs for record in run.of_stage("grpo") for key in record)
    return {key: match[1].replace("_", " ") for key in keys if (match := re.fullmatch(pattern, key))}


def _bad_steps(runs: list[Recorded], stage: str) -> str:
    """How many steps had no finite loss, for a curve has a gap there that nobody sees."""
    bad = sum("loss_is" in record or bool(record.get("skipped")) for run in runs for record in run.of_stage(stage))
    return f"Steps without a finite loss or gradient: {bad}; they were skipped." if bad else ""


def _reward(runs: list[Recorded]) -> str:
    """The rewards' name where all runs have the same."""
    names = {reward_title(reward_name(run.config.grpo.reward)) for run in runs if run.config and run.of_stage("grpo")}
    return names.pop() if len(names) == 1 else "reward"


def _title_and_unit(words: str) -> tuple[str, str]:
    """`entropy (nats per token)`, taken apart."""
    title, _, unit = words.partition(" (")
    return title, unit.removesuffix(")")
