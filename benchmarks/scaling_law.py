"""A scaling law of one recipe on headlines: how large a model, and how many tokens, for an hour.

    python benchmarks/scaling_law.py OUT --data HEADLINES --recipe modern

Five sizes of a recipe of ours are trained to four lengths, each with a schedule of its own that ends there; runs are
those of `recipes.py`, and like them are not trained twice. L(N, D) = E + A / N^a + B / D^b is fitted to the logarithms
of their bits per byte, with Huber's loss, from many starts (Hoffmann et al. 2022, arXiv 2203.15556, section 3.3); its
uncertainty is that of fits to points drawn again, with replacement. OUT/scaling_law.json has the numbers, OUT/
scaling_law.png the chart; `recipes_page.py --adopt OUT` puts them where `faisca plan --hours` and the page read them.
"""

import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from recipes import StudyOptions, find_recipe, study
from recipes_report import check_comparable, log_axis
from recipes_trainees import Recipe

from faisca.cli import exit_status
from faisca.commands.parse import parse
from faisca.errors import FaiscaError
from faisca.planning.law import predict, read_law, weights_met
from faisca.porting.formats import model_config
from faisca.streams import generator
from faisca.system.files import write_atomically

SIZES = ("64x2", "96x3", "128x4", "160x4", "192x5")
"""width and layers; heads of 64 or wider, of 32 for the smallest two; feed-forward layers in the recipe's proportion"""
LENGTHS = (5e5, 1.5e6, 4e6, 1e7)
"""tokens: with these sizes 8e14 operations in all, some hours of two cores"""
MULTIPLE = 16
"""the widths of feed-forward layers are rounded to multiples of this"""
STARTS = ((0.5, 1.0, 1.5), (0.0, 3.0, 6.0), (0.2, 0.5), (0.0, 3.0, 6.0), (0.2, 0.5))
"""of E, log A, a, log B, b"""
HUBER = 1e-2
"""residuals of log L beyond which a point counts less: a percent"""
RESAMPLED = 100


@dataclass(frozen=True, kw_only=True)
class Options(StudyOptions):
    """Options of the scaling study."""

    seeds: str = "1"
    recipe: str = "modern"
    """a name of benchmarks/recipes, or a TOML file, of ours"""
    backend: str = "torch"
    """torch or mlx"""
    sizes: str = ",".join(SIZES)
    """widths and numbers of layers"""
    lengths: str = ",".join(f"{length:g}" for length in LENGTHS)
    """tokens of the runs"""


@dataclass(frozen=True)
class Point:
    """A run's end."""

    weights: float
    tokens: float
    bits_per_byte: float


def sized(recipe: Recipe, size: str) -> Recipe:
    """The recipe with another width and number of layers."""
    try:
        dim, layers = map(int, size.split("x"))
    except ValueError:
        raise FaiscaError(f"size {size!r} is none: write WIDTHxLAYERS, as in 128x4") from None
    heads = max(1, dim // (64 if dim >= 128 else 32))
    model = recipe.config("sample", 0).model
    hidden = round(dim * model.hidden_dim / model.dim / MULTIPLE) * MULTIPLE
    changes = f"--model.dim {dim} --model.num-layers {layers} --model.num-heads {heads} --model.hidden-dim {hidden}"
    return Recipe(f"{recipe.name} {size}", recipe.path, changes, recipe.backend)


def least(points: Sequence[Point], start: Sequence[float]) -> tuple[float, tuple[float, ...]]:
    """The cost and the constants where the fit ends that begins at these logarithms of the constants."""
    from scipy.optimize import least_squares  # here, as in recipes_report.py

    weights, tokens, measured = (np.array(values) for values in zip(*(vars(p).values() for p in points), strict=True))

    def constants(x: np.ndarray) -> np.ndarray:
        return np.exp(np.clip(x, -50, 50))

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.log(predict(constants(x), weights, tokens)) - np.log(measured)

    found = least_squares(residuals, start, loss="huber", f_scale=HUBER)
    return float(found.cost), tuple(float(f"{value:.6g}") for value in constants(found.x))


def fit(points: Sequence[Point]) -> tuple[float, ...]:
    """E, A, a, B, b of the least cost over all starts; all of them are positive."""
    if len({point.weights for point in points}) < 3 or len({point.tokens for point in points}) < 3:
        raise FaiscaError("a law needs at least three sizes and three lengths: give more of --sizes and --lengths")
    return min(least(points, start) for start in itertools.product(*STARTS))[1]


def bootstrap(points: Sequence[Point], first: Sequence[float]) -> list[tuple[float, ...]]:
    """Fits to points drawn with replacement, from the fit of all."""
    found = []
    for row in range(RESAMPLED):
        drawn = generator(0, "bootstrap of the scaling law", row=row).integers(len(points), size=len(points))
        found.append(least([points[i] for i in drawn], np.log(first))[1])
    return found


def points_of(runs: Sequence[dict[str, Any]]) -> list[Point]:
    """Weights that a token meets, tokens, and bits per byte of each run."""
    return [Point(weights_of(run), run["curve"][-1]["tokens"], run["curve"][-1]["bits_per_byte"]) for run in runs]


def weights_of(run: dict[str, Any]) -> int:
    """Weights that a token is multiplied with."""
    model = model_config(run["configuration"]["model"], run["recipe"])
    return weights_met(replace(model, vocabulary_size=run["facts"]["vocabulary"]))


def sizes_of(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The models studied, each once."""
    found = {}
    for run in runs:
        model, facts = run["configuration"]["model"], run["facts"]
        shape = {name: model[name] for name in ("dim", "num_layers", "num_heads", "hidden_dim")}
        found[run["recipe"]] = {
            "weights": weights_of(run),
            "parameters": facts["parameters"],
            "flops_per_token": facts["flops_per_token"],
            **shape,
        }
    return list(found.values())


def law_of(runs: Sequence[dict[str, Any]], recipe: str) -> dict[str, Any]:
    """What `faisca.planning.law.read_law` reads, and where it comes from."""
    points, facts = points_of(runs), runs[0]["facts"]
    first = fit(points)
    tokens = [point.tokens for point in points]
    errors = [abs(predict(first, p.weights, p.tokens) / p.bits_per_byte - 1) for p in points]
    return {
        "law": "bits per byte = E + A / weights^a + B / tokens^b",
        "constants": first,
        "bootstrap": bootstrap(points, first),
        "largest_error": max(errors),
        "recipe": recipe,
        "sizes": sizes_of(runs),
        "tokens": (min(tokens), max(tokens)),
        "vocabulary": facts["vocabulary"],
        "tokens_per_headline": facts["training_tokens"] / facts["training_titles"],
        "training_headlines": facts["training_titles"],
        "points": [vars(point) for point in points],
        "machine": runs[0]["machine"],
    }


def draw(law: dict[str, Any], path: Path) -> None:
    """Measured points, the law's line for each size, and its 95 % band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.6), layout="constrained")
    panel = figure.subplots()
    points = [Point(**point) for point in law["points"]]
    for weights in sorted({point.weights for point in points}):
        some = [point for point in points if point.weights == weights]
        tokens = np.geomspace(*law["tokens"], 60)
        (line,) = panel.plot(tokens / 1e6, predict(law["constants"], weights, tokens), linewidth=1.2)
        fits = [predict(each, weights, tokens) for each in law["bootstrap"]]
        panel.fill_between(tokens / 1e6, *np.percentile(fits, [2.5, 97.5], axis=0), color=line.get_color(), alpha=0.15)
        measured = [[point.tokens / 1e6 for point in some], [point.bits_per_byte for point in some]]
        panel.plot(*measured, "o", color=line.get_color(), label=f"{weights / 1e6:.2f} M weights")
    panel.set(xlabel="million tokens", ylabel="bits per byte, validation")
    log_axis(panel)
    panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def run_all(options: Options) -> list[dict[str, Any]]:
    """Every size to every length, shortest first."""
    recipe, runs = find_recipe(options.recipe, options.backend), list[dict[str, Any]]()
    if recipe.peer:
        raise FaiscaError(f"recipe {recipe.name} is a peer's: the law is of a recipe of ours")
    sizes = [sized(recipe, size.strip()) for size in options.sizes.split(",")]
    for length in sorted(map(float, options.lengths.split(","))):
        part = study(replace(options, tokens=length), sizes)
        check_comparable(part)
        runs += part
    return runs


def main(argv: list[str]) -> int:
    """Train what is missing, fit, write, draw."""
    options = parse(Options, argv, command="python benchmarks/scaling_law.py", help=__doc__)
    if (options.seconds, options.flops, options.tokens) != (None, None, None):
        raise FaiscaError("the budgets of a scaling study are its --lengths: leave --seconds, --flops and --tokens out")
    law = law_of(run_all(options), options.recipe)
    path = options.out / "scaling_law.json"
    write_atomically(path, (json.dumps(law) + "\n").encode())
    read_law(path)  # as faisca plan will
    draw(law, path.with_suffix(".png"))
    names = ("E", "A", "a", "B", "b")
    print("  ".join(f"{name} {value:.4g}" for name, value in zip(names, law["constants"], strict=True)))
    print(f"largest error {law['largest_error']:.1%}; {path} and {path.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(sys.argv[1:])))
