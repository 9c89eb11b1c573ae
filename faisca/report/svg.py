"""A chart as SVG: what is printed, and what is there without JavaScript. Colours and dashes are those of the CSS."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from faisca.report.curves import Chart, Curve
from faisca.report.numbers import tick, tick_steps
from faisca.text import shortened

SIZES = {"wide": (960, 320), "half": (470, 250), "small": (310, 180)}
CHARACTER, LONGEST = 6.3, 18
"""pixels of a character of a curve's name, and the most that are shown"""
LINE = 14
"""pixels between labels"""
MOST_DOTS = 60
"""points that are marked"""
BAR = (960, 14)
"""width and height of a bar of parts"""
Key = tuple[int, str]
"""a run and the name of a measure"""


@dataclass(frozen=True)
class Frame:
    """Where numbers are drawn."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float
    right: float
    top: float
    bottom: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point, in pixels."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def draw(chart: Chart, run_names: Sequence[str]) -> Markup:
    """The chart against its first axis."""
    axis = chart.axes[0]
    curves = [curve for curve in chart.curves if axis in curve.x]
    width, height = SIZES[chart.size]
    named = labels(chart, run_names)
    room = 14 + CHARACTER * min(LONGEST, max(map(len, named.values()))) if named else 12
    frame = _frame(curves, axis, (width - room, height - 26), 52 if chart.size == "wide" else 46)
    alone = len(run_names) == 1
    parts = [Markup('<svg class="static" viewBox="0 0 {} {}" aria-hidden="true">').format(width, height)]
    parts += _grid(frame, axis)
    parts += [_band(curve, axis, frame, alone) for curve in curves if curve.spread]
    for curve in curves:
        parts += _line(curve, axis, frame, alone)
    if named:
        parts += _labels(curves, axis, frame, named, alone)
    return Markup("").join([*parts, Markup("</svg>")])


def labels(chart: Chart, run_names: Sequence[str]) -> dict[Key, str]:
    """What curves are called at their ends, by run and name; empty for one curve, and where there is no room."""
    keys = list(dict.fromkeys((curve.run, curve.name) for curve in chart.curves))
    if len(keys) < 2 or chart.size == "small":
        return {}
    alone = len({run for run, _ in keys}) == 1
    return {
        (run, name): name if alone else " ".join(filter(None, (run_names[run].rpartition("/")[2], name)))
        for run, name in keys
    }


def _frame(curves: list[Curve], axis: str, corner: tuple[float, float], left: int) -> Frame:
    xs = [x for curve in curves for x in curve.x[axis]]
    spreads = [(y, s) for curve in curves for y, s in zip(curve.y, curve.spread or [0.0] * len(curve.y), strict=True)]
    low, high = min(y - s for y, s in spreads), max(y + s for y, s in spreads)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    first, last = min(0.0, min(xs)), max(xs)
    x = (first, last if last > first else first + 1.0)
    return Frame(x, (low if low == 0 else low - room, high + room), left, corner[0], 8, corner[1])


def _grid(frame: Frame, axis: str) -> list[Markup]:
    """Hairlines with their numbers, and numbers below."""
    parts = []
    for value in tick_steps(*frame.y, 4):
        _, y = frame.at(frame.x[0], value)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}H{:.1f}"/>').format(frame.left, y, frame.right))
        parts.append(_text("tick end", frame.left - 8, y + 4, tick(value, frame.y, "value")))
    for value in tick_steps(*frame.x, 6 if frame.right - frame.left > 500 else 3, axis):
        x, _ = frame.at(value, frame.y[0])
        parts.append(_text("tick middle", x, frame.bottom + 18, tick(value, frame.x, axis)))
    return [
        *parts,
        Markup('<path class="base" d="M{:.1f} {:.1f}H{:.1f}"/>').format(frame.left, frame.bottom, frame.right),
    ]


def _line(curve: Curve, axis: str, frame: Frame, alone: bool) -> list[Markup]:
    points = [frame.at(x, y) for x, y in zip(curve.x[axis], curve.y, strict=True)]
    colour, dash = curve.ink(alone)
    faint = " faint" if curve.look == "faint" else ""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    parts = [Markup('<path class="line {} {}{}" d="M{}"/>').format(colour, dash, faint, path)]
    if len(points) == 1 or (curve.look == "dots" and len(points) <= MOST_DOTS):
        parts += [Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(colour, *p) for p in points]
    return parts


def _band(curve: Curve, axis: str, frame: Frame, alone: bool) -> Markup:
    assert curve.spread is not None, "a curve without one has no band"
    rows = list(zip(curve.x[axis], curve.y, curve.spread, strict=True))
    edge = [frame.at(x, y + s) for x, y, s in rows] + [frame.at(x, y - s) for x, y, s in reversed(rows)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in edge)
    return Markup('<path class="band {}" d="M{}Z"/>').format(curve.ink(alone)[0], path)


def _labels(curves: list[Curve], axis: str, frame: Frame, names: dict[Key, str], alone: bool) -> list[Markup]:
    """Each curve's name at its end in its colour, moved where two would touch."""
    inks = {(curve.run, curve.name): curve.ink(alone)[0] for curve in curves}
    ends = {(curve.run, curve.name): frame.at(curve.x[axis][-1], curve.y[-1])[1] for curve in curves}
    placed = _apart(sorted((y, key) for key, y in ends.items()), frame.top + 4, frame.bottom)
    text = Markup('<text class="label {}" x="{:.1f}" y="{:.1f}">{}</text>')
    return [text.format(inks[key], frame.right + 8, y + 4, shortened(names[key], LONGEST)) for y, key in placed]


def _apart(wanted: list[tuple[float, Key]], top: float, bottom: float) -> list[tuple[float, Key]]:
    """Heights, sorted, at least a line apart, as near to those wanted as it goes."""
    lowered: list[tuple[float, Key]] = []
    for y, key in wanted:
        lowered.append((max(y, lowered[-1][0] + LINE if lowered else top), key))
    lifted: list[tuple[float, Key]] = []
    for y, key in reversed(lowered):
        lifted.append((min(y, lifted[-1][0] - LINE if lifted else bottom), key))
    return lifted


def _text(words: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(words, x, y, text)


def bar(parts: Sequence[tuple[str, float, str]], whole: float) -> Markup:
    """Parts of a whole side by side: the class of each, its size, and its words."""
    x, drawn = 0.0, []
    for kind, size, words in parts:
        wide = BAR[0] * size / whole if whole else 0.0
        rect = Markup('<rect class="{}" x="{:.1f}" y="0" width="{:.1f}" height="{}"><title>{}</title></rect>')
        drawn.append(rect.format(kind, x, max(0.0, wide - 1), BAR[1], words))
        x += wide
    open_tag = Markup('<svg class="bar" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">')
    return Markup("").join([open_tag.format(*BAR, "; ".join(words for _, _, words in parts)), *drawn, Markup("</svg>")])
