"""Figures of a study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
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

WIDTH = 6.4
"""The width in inches of a figure that can be read on a phone too, where 700 pixels are shown as 360."""


class Field(NamedTuple):
    """A field of :func:`draw_differences`: its column, both names of its row, and its content."""

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
    """Draw differences to ``other`` as a table, with a row per collection and encoder, and a column per loss.

    Colors go from orange (worse) to purple (better), which all kinds of color vision tell apart.
    """
    placed = [Field(*field) for field in fields]
    losses = list(dict.fromkeys(field.loss for field in placed))
    rows = list(dict.fromkeys((field.collection, field.encoder) for field in placed))
    figure = Figure(figsize=(WIDTH, 1.2 + 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots()
    norm = CenteredNorm(halfrange=max(0.001, *(abs(field.difference.mean) for field in placed)))
    for field in placed:
        x, y = losses.index(field.loss), rows.index((field.collection, field.encoder))
        # the ends of the map are too dark for black letters
        color = matplotlib.colormaps["PuOr"](0.2 + 0.6 * norm(field.difference.mean))
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=color, edgecolor="white", linewidth=1.5))
        mean, _, interval = str(field.difference).partition(" ")
        weight = "bold" if field.marks else "normal"
        axes.text(x, y - 0.14, f"{mean}{field.marks}", ha="center", va="center", fontsize=12, weight=weight)
        axes.text(x, y + 0.27, interval, ha="center", va="center", fontsize=6.5)
    axes.xaxis.set_ticks_position("top")
    axes.set_xticks(range(len(losses)), [re.sub(r",? ", r"\g<0>\n", loss, count=1) for loss in losses], fontsize=10.5)
    axes.set_yticks(range(len(rows)), [f"{collection}\n{encoder}" for collection, encoder in rows], fontsize=10.5)
    axes.set(xlim=(-0.5, len(losses) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    marked = "".join(field.marks for field in placed)
    meanings = "   ".join(meaning for mark, meaning in KEY.items() if mark in marked)
    axes.set_xlabel(f"nDCG@10 minus nDCG@10 of {other}, with 95 % intervals\n{meanings}", fontsize=10.5)
    return figure
