"""Figures of what the records of a study say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .comparison import Results, System, collections_of
from .significance import EQUIVALENCE_BOUND, NON_INFERIORITY_BOUND, Difference

matplotlib.use("Agg")  # figures go to files, also where there is no display

MARKS = {"better": "▲", "worse": "▼", "equivalent": "≈", "not behind": "≥"}
"""How a field shows what holds of its difference, also without colors."""

KEY = {
    "▲": "▲ better",
    "▼": "▼ worse",
    "≈": f"≈ equivalent, within {EQUIVALENCE_BOUND}",
    "≥": f"≥ not behind by {NON_INFERIORITY_BOUND}",
}
"""What marks mean, as the figure says it."""

WIDTH = 8.2
"""The width in inches of a figure that fills a page of 900 pixels at 110 dots an inch."""


class Field(NamedTuple):
    """A difference and where it belongs in :func:`draw_differences`.

    Attributes:
        loss: Its row.
        collection: The columns that have a heading together.
        encoder: Its column below this heading.
        difference: The difference.
        verdicts: What holds of it, words of :data:`MARKS`.
    """

    loss: str
    collection: str
    encoder: str
    difference: Difference
    verdicts: Sequence[str] = ()


def draw_differences(fields: Sequence[Sequence[Any]], other: str = "InfoNCE") -> Figure:
    """Draw differences as fields, a row a loss and a column a collection with an encoder.

    A field has the difference, its 95 % interval and a mark for what holds of it. Colors go from orange (worse) to
    purple (better), which people with every kind of color vision tell apart.

    Args:
        fields: What :class:`Field` has, in the order of rows and columns.
        other: What the differences are to.

    Returns:
        The figure.
    """
    placed = [Field(*field) for field in fields]
    losses = list(dict.fromkeys(field.loss for field in placed))
    columns = list(dict.fromkeys((field.collection, field.encoder) for field in placed))
    figure = Figure(figsize=(WIDTH, 1.3 + 0.48 * len(losses)), layout="constrained")
    axes = figure.subplots()
    means = [field.difference.mean for field in placed]
    norm = CenteredNorm(halfrange=max(0.001, *map(abs, means)))  # so that less than what is written has no color
    colors = matplotlib.colormaps["PuOr"]
    for field in placed:
        x = columns.index((field.collection, field.encoder))
        y = losses.index(field.loss)
        # the ends of the map are too dark to write on in black
        color = colors(0.2 + 0.6 * norm(field.difference.mean))
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5))
        marks = _marks(field.verdicts)
        weight = "bold" if marks else "normal"
        mean, _, interval = str(field.difference).partition(" ")
        axes.text(x, y - 0.12, f"{mean} {marks}".strip(), ha="center", va="center", fontsize=9, weight=weight)
        axes.text(x, y + 0.26, interval, ha="center", va="center", fontsize=6.3)
    _name_columns(axes, columns)
    axes.set_yticks(range(len(losses)), losses)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(losses) - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    marked = "".join(_marks(field.verdicts) for field in placed)
    meanings = [meaning for mark, meaning in KEY.items() if mark in marked]
    label = "   ".join([f"nDCG@10 minus that of {other}, with 95 % intervals", *meanings])
    axes.set_xlabel(label, fontsize="small")
    return figure


def _marks(verdicts: Sequence[str]) -> str:
    """Write what holds of a difference; what is better is not behind, which would be no news."""
    news = [verdict for verdict in verdicts if verdict != "not behind" or "better" not in verdicts]
    return "".join(MARKS[verdict] for verdict in news)


def _name_columns(axes: Axes, columns: Sequence[tuple[str, str]]) -> None:
    """Write the encoder above each column, and above those of a collection its name."""
    axes.xaxis.set_ticks_position("top")
    axes.set_xticks(range(len(columns)), [encoder for _, encoder in columns], fontsize="small")
    end = 0
    for collection, together in groupby(columns, key=itemgetter(0)):
        start, end = end, end + len(list(together))
        middle = (start + end - 1) / 2
        axes.annotate(
            collection,
            xy=(middle, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 20),
            textcoords="offset points",
            ha="center",
            weight="bold",
            fontsize="small",
        )


def draw_by_triples(results: Results, grid: str) -> Figure:
    """Draw nDCG@10 of the systems of a grid against the number of triples."""

    def triples(system: System) -> float:
        return system.run.triples

    return _draw_lines(results, grid, triples, "triples")


def draw_by_seconds(results: Results, grid: str) -> Figure:
    """Draw nDCG@10 of the systems of a grid against the cost of training."""

    def seconds(system: System) -> float:
        return system.total

    return _draw_lines(results, grid, seconds, "seconds, those of the teacher included")


def draw_by_margin(results: Results, grid: str) -> Figure:
    """Draw nDCG@10 against the static margin, with the parameter-free losses of the same settings as lines."""
    static = results.grid(grid, loss="static")
    free = results.grid(grid, loss=["adaptive", "distributed"])
    collections = collections_of(static)
    figure, panels = _panels(len(collections), width=5)
    for axes, collection in zip(panels, collections, strict=True):
        for in_batch, label in {False: "static", True: "static, in-batch"}.items():
            points: list[tuple[Any, float]] = []
            for system in _of_collection(static, collection):
                if system.run.in_batch == in_batch:
                    points.append((system.run.margin, _quality(system)))
            if points:
                _plot(axes, points, label)
        # the first two colors are those of the static margins, where a grid has them with in-batch negatives too
        for number, system in enumerate(_of_collection(free, collection), 2):
            axes.axhline(_quality(system), color=f"C{number}", linestyle="--", label=system.run.loss_name)
        axes.set(title=collection, xlabel="static margin", ylabel="nDCG@10")
        _finish(axes)
    return figure


def draw_distributions(systems: Sequence[System]) -> Figure:
    """Draw medians, quartiles and 5 % and 95 % quantiles of margins and targets while training."""
    recorded = [system for system in systems if system.records[0]["training"].get("distributions")]
    figure, panels = _panels(len(recorded), width=4, sharey=True)
    for axes, system in zip(panels, recorded, strict=True):
        distributions = system.records[0]["training"]["distributions"]
        steps = [int(step) for step in distributions]
        for number, name in enumerate(("target", "margin")):
            rows = [quantiles[name] for quantiles in distributions.values()]
            low, first, median, third, high = np.transpose(rows)
            color = f"C{number}"
            axes.plot(steps, median, color=color, label=name)
            axes.fill_between(steps, first, third, color=color, alpha=0.3, linewidth=0)
            axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(title=f"{system.run.loss_name}\n{system.run.collection}", xlabel="step")
        _finish(axes)
    return figure


def _draw_lines(results: Results, grid: str, x: Callable[[System], float], label: str) -> Figure:
    """Draw nDCG@10 against something, a panel a collection and a line a loss."""
    trained = [system for system in results.grid(grid) if system.run.loss != "untouched"]
    collections = collections_of(trained)
    figure, panels = _panels(len(collections), width=5)
    for axes, collection in zip(panels, collections, strict=True):
        systems = _of_collection(trained, collection)
        lines: dict[str, list[tuple[float, float]]] = {}
        for system in systems:
            point = (x(system), _quality(system))
            lines.setdefault(system.run.loss_name, []).append(point)
        for name, points in lines.items():
            _plot(axes, points, name)
        before = results.untouched(systems[0].run)
        axes.axhline(_quality(before), color="grey", linestyle=":", label="untouched")
        axes.set(title=collection, xlabel=label, ylabel="nDCG@10", xscale="log")
        _finish(axes)
    return figure


def _of_collection(systems: Sequence[System], collection: str) -> list[System]:
    return [system for system in systems if system.run.collection == collection]


def _panels(number: int, width: float, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """Make a figure with panels side by side; one without panels has the width of one."""
    figure = Figure(figsize=(width * max(number, 1), 3.5), layout="constrained")
    if number == 0:
        return figure, []
    return figure, figure.subplots(1, number, squeeze=False, sharey=sharey)[0]


def _quality(system: System) -> float:
    return system.mean(system.test, "nDCG@10")


def _plot(axes: Axes, points: Sequence[tuple[Any, float]], label: str) -> None:
    x, y = zip(*sorted(points), strict=True)
    axes.plot(x, y, marker="o", label=label)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
