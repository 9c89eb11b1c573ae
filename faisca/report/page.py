"""The report as one HTML file: what was read and computed, put into the templates; nothing in it asks the network."""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from faisca.report import numbers, svg, tables
from faisca.report.completions import ends_of_grpo
from faisca.report.curves import Chart, Curve, grpo_charts, training_charts
from faisca.report.recorded import Recorded
from faisca.report.samples import TITLES, columns
from faisca.report.story import highlights, named, status
from faisca.report.tokens import LEVELS, StageTokens
from faisca.system.packages import version_of
from faisca.text import format_bytes, json_text

SCRIPTS = ("uPlot.iife.min.js", "charts.js", "page.js")
STYLES = ("uPlot.min.css", "page.css", "parts.css")
ASSETS = files("faisca.report") / "assets"


@dataclass(frozen=True)
class Section:
    """A stage's charts, and the table of numbers behind them."""

    stage: str
    title: str
    charts: list[Chart]
    numbers: list[list[str]]


def render(runs: list[Recorded], scored: Sequence[list[StageTokens] | None], written: str) -> str:
    """The page; `scored` has each run's token probabilities, None where they were not asked for."""
    names = [run.name for run in runs]
    sections = [_section(runs, stage) for stage in TITLES]
    sections = [section for section in sections if section.charts]
    scripts, style = [_asset(name) for name in SCRIPTS], Markup("\n").join(_asset(name) for name in STYLES)
    spent = [tables.costs(run) for run in runs]
    page: str = (
        _environment()
        .get_template("report.html")
        .render(
            runs=runs,
            sections=sections,
            drawn={chart.key: svg.draw(chart, names) for section in sections for chart in section.charts},
            legends={chart.key: _legend(chart, names) for section in sections for chart in section.charts},
            highlights=highlights(runs[0]) if len(runs) == 1 else [],
            outcome=tables.outcome(runs),
            samples=[columns(run) for run in runs],
            completions=[ends_of_grpo(run) for run in runs],
            scored=scored,
            levels=LEVELS,
            titles=TITLES,
            costs=spent,
            slowest=max((stage.seconds for stages in spent for stage in stages), default=0.0),
            sizes=[tables.folder_bytes(run) for run in runs],
            bar=svg.bar,
            certificates=[tables.certificates(run) for run in runs],
            machines=[tables.machine_rows(run) for run in runs],
            options=tables.options(runs),
            configured=[run for run in runs if run.config],
            data=_data(sections, names),
            scripts=scripts,
            style=style,
            policy=_policy(scripts, style),
            version=version_of("faisca-mlx"),
            written=written,
        )
    )
    return page


def _environment() -> Environment:
    """Templates in which every text is escaped, and a name that nobody gave is an error."""
    environment = Environment(
        loader=PackageLoader("faisca.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = {
        "bytes": format_bytes,
        "breakable": lambda name: Markup("_<wbr>").join(name.split("_")),
        "capitalised": _capitalised,
        "duration": numbers.duration,
        "named": named,
        "status": status,
    }
    environment.filters.update(filters)
    return environment


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _section(runs: list[Recorded], stage: str) -> Section:
    charts = grpo_charts(runs) if stage == "grpo" else training_charts(runs, stage)
    rows = [
        [chart.title, " ".join(filter(None, (runs[curve.run].name if len(runs) > 1 else "", curve.name)))]
        + [numbers.measure(value) for value in (curve.y[0], min(curve.y), max(curve.y), curve.y[-1])]
        for chart in charts
        for curve in chart.curves
        if curve.look != "faint"
    ]
    return Section(stage, TITLES[stage], charts, rows)


def _legend(chart: Chart, names: Sequence[str]) -> list[dict[str, Any]]:
    """What is toggled in a chart: a run's measure, which may be a curve and its single steps."""
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for curve in chart.curves:
        ink, dash = curve.ink(len(names) == 1)
        words = " ".join(filter(None, (names[curve.run] if len(names) > 1 else "", curve.name)))
        known = {
            "run": curve.run,
            "name": curve.name,
            "words": words,
            "ink": ink,
            "dash": dash,
            "dots": curve.look == "dots",
        }
        found[curve.run, curve.name] = known | {"last": numbers.measure(curve.y[-1])}
    return list(found.values())


def _data(sections: list[Section], names: Sequence[str]) -> Markup:
    """What the scripts draw, as JSON that no text in it can end."""
    charts = {
        chart.key: {
            "title": chart.title,
            "size": chart.size,
            "axes": chart.axes,
            "group": section.stage,
            "labels": [[*key, words] for key, words in svg.labels(chart, names).items()],
            "curves": [_curve_data(curve, len(names) == 1) for curve in chart.curves],
        }
        for section in sections
        for chart in section.charts
    }
    return Markup(json_text({"charts": charts, "runs": list(names)}).replace("<", "\\u003c"))


def _curve_data(curve: Curve, alone: bool) -> dict[str, Any]:
    ink, dash = curve.ink(alone)
    return {
        "run": curve.run,
        "name": curve.name,
        "look": curve.look,
        "ink": ink,
        "dash": int(dash[1:]),
        "x": {axis: list(map(_short, values)) for axis, values in curve.x.items()},
        "y": list(map(_short, curve.y)),
        "spread": None if curve.spread is None else list(map(_short, curve.spread)),
    }


def _short(value: float) -> float:
    """A number without the digits that no chart shows."""
    return int(value) if value == int(value) else float(f"{value:.6g}")


def _asset(name: str) -> Markup:
    """A script or style; uPlot's under its licence, in place of the comment that names its address."""
    text = (ASSETS / name).read_text(encoding="utf-8").strip()
    if name.startswith("uPlot"):
        licence = (ASSETS / "uPlot.LICENSE").read_text(encoding="utf-8").strip()
        text = f"/* uPlot\n{licence}\n*/\n" + re.sub(r"\A/\*!.*?\*/", "", text).strip()
    return Markup(text)


def _policy(scripts: Sequence[str], style: str) -> str:
    """A Content Security Policy under which only these scripts and this style do anything, and nothing is fetched."""
    allowed = " ".join(map(_hash, scripts))
    return f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
