"""Figures of what the records of a study say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .comparison import Results, System, collections_of

matplotlib.use("Agg")  # figures go to files, also where there is no display


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
