"""Figures of a study."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .statistics import EQUIVALENCE_BOUND, NON_INFERIORITY_BOUND, Difference

matplotlib.use("Agg")  # figures go to files, also without a display

MARKS = {"better": "▲", "worse": "▼", "equivalent": "≈", "not behind": "≥"}
"""The sign of each verdict, which also tells it without colors."""

KEY = {
    "▲": "▲ better",
    "▼": "▼ worse",
    "≈": f"≈ equivalent, within {EQUIVALENCE_BOUND}",
    "≥": f"≥ not behind by {NON_INFERIORITY_BOUND}",
}

WIDTH = 8.2
"""The width in inches of a figure that fills a page of 900 pixels at 110 dots an inch."""


class Field(NamedTuple):
    """A field of :func:`draw_differences`: its row, the heading and the name of its column, and what is in it."""

    loss: str
    collection: str
    encoder: str
    difference: Difference
    verdicts: Sequence[str] = ()

    @property
    def marks(self) -> str:
        """The signs of the verdicts; a better system is not behind anyhow."""
        return "".join(MARKS[word] for word in self.verdicts if word != "not behind" or "better" not in self.verdicts)


def draw_differences(fields: Sequence[Sequence[Any]], other: str = "InfoNCE") -> Figure:
    """Draw differences to ``other`` as a table, a row a loss and a column a collection with an encoder.

    Colors go from orange (worse) to purple (better), which all kinds of color vision tell apart.
    """
    placed = [Field(*field) for field in fields]
    losses = list(dict.fromkeys(field.loss for field in placed))
    columns = list(dict.fromkeys((field.collection, field.encoder) for field in placed))
    figure = Figure(figsize=(WIDTH, 1.3 + 0.48 * len(losses)), layout="constrained")
    axes = figure.subplots()
    norm = CenteredNorm(halfrange=max(0.001, *(abs(field.difference.mean) for field in placed)))
    for field in placed:
        x, y = columns.index((field.collection, field.encoder)), losses.index(field.loss)
        # the ends of the map are too dark for black letters
        color = matplotlib.colormaps["PuOr"](0.2 + 0.6 * norm(field.difference.mean))
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5))
        mean, _, interval = str(field.difference).partition(" ")
        weight = "bold" if field.marks else "normal"
        axes.text(x, y - 0.12, f"{mean} {field.marks}".strip(), ha="center", va="center", fontsize=9, weight=weight)
        axes.text(x, y + 0.26, interval, ha="center", va="center", fontsize=6.3)
    _name_columns(axes, columns)
    axes.set_yticks(range(len(losses)), losses)
    axes.set(xlim=(-0.5, len(columns) - 0.5), ylim=(len(losses) - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    marked = "".join(field.marks for field in placed)
    meanings = [meaning for mark, meaning in KEY.items() if mark in marked]
    axes.set_xlabel("   ".join([f"nDCG@10 minus {other}, with 95 % intervals", *meanings]), fontsize="small")
    return figure


def _name_columns(axes: Axes, columns: Sequence[tuple[str, str]]) -> None:
    """Write the encoder above each column, and the collection above its encoders."""
    axes.xaxis.set_ticks_position("top")
    axes.set_xticks(range(len(columns)), [encoder for _, encoder in columns], fontsize="small")
    start = 0
    for collection, together in groupby(columns, key=itemgetter(0)):
        number = len(list(together))
        middle = (start + start + number - 1) / 2
        above: dict[str, Any] = {
            "xytext": (0, 20),
            "textcoords": "offset points",
            "ha": "center",
            "va": "bottom",
            "weight": "bold",
        }
        axes.annotate(
            collection.replace(", ", ",\n"), (middle, 1), xycoords=("data", "axes fraction"), fontsize="small", **above
        )
        start += number
