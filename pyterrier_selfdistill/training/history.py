"""What happened in training, as a frame and as plots.

The trainer of transformers logs dictionaries: some with the loss, some with measures, several a step.
:func:`history` makes one row a step of them, and :func:`plot` draws it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

PROGRESS = ["step", "epoch", "loss", "margin", "target", "learning_rate"]
"""The columns of a history that are no measures."""


def history(logs: Iterable[Mapping[str, Any]], measures: Iterable[str] = ()) -> pd.DataFrame:
    """Makes a frame of a training log.

    Args:
        logs: What the trainer logged, each with its ``step``; measures are prefixed with ``eval_``.
        measures: The names of the measures.

    Returns:
        One row a step that something was logged for: ``step``, ``epoch``, ``loss``, ``margin`` and ``target`` (means
        over the steps since the row before), ``learning_rate``, and the measures; NaN where nothing was logged.

    Example:
        >>> history([{"step": 2, "loss": 0.5}, {"step": 2, "eval_RR": 0.25}], ["RR"])[["step", "loss", "RR"]]
           step  loss    RR
        0     2   0.5  0.25
    """
    columns = {**{name: name for name in PROGRESS}, **{f"eval_{name}": name for name in measures}}
    rows: dict[int, dict[str, Any]] = {}
    for log in logs:
        known = {columns[key]: value for key, value in log.items() if key in columns}
        if len(known.keys() - {"step", "epoch"}):
            rows.setdefault(log["step"], {}).update(known)
    return pd.DataFrame([rows[step] for step in sorted(rows)], columns=list(columns.values()))


def milestones(history: pd.DataFrame) -> list[dict[str, Any]]:
    """Returns the rows of a history in which something was measured, or the last one if nothing was.

    Args:
        history: What :func:`history` returns.

    Returns:
        A dictionary a row, without what was not logged.

    Example:
        >>> logs = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_RR": 0.2}]
        >>> milestones(history(logs, ["RR"]))
        [{'step': 2, 'loss': 0.5, 'RR': 0.2}]
    """
    measures = [name for name in history if name not in PROGRESS]
    measured = history[history[measures].notna().any(axis=1)] if measures else history.iloc[:0]
    rows = measured if len(measured) else history.tail(1)
    columns = ["step", "loss", "margin", "target", *measures]
    return [{c: row[c] for c in columns if pd.notna(row[c])} for row in rows.to_dict(orient="records")]


def plot(history: pd.DataFrame) -> Figure:
    """Draws a history: the loss, the margin against the target, and the first measure.

    Args:
        history: What :func:`history` returns.

    Returns:
        A figure of its own, which no window shows; notebooks do.

    Example:
        >>> plot(history([{"step": 2, "loss": 0.5, "margin": 0.1, "target": 0.6}])).axes[1].get_title()
        'Margin against target'
    """
    measures = [name for name in history if name not in PROGRESS]
    panels = {"Loss": ["loss"], "Margin against target": ["margin", "target"], "Validation": measures[:1]}
    panels = {
        title: drawn for title, columns in panels.items() if (drawn := [c for c in columns if any(history[c].notna())])
    }
    figure = _HistoryFigure(figsize=(4 * max(len(panels), 1), 3), layout="constrained")
    for axes, (title, columns) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0] if panels else [], panels.items(), strict=True
    ):
        for column in columns:
            values = history[["step", column]].dropna()
            axes.plot(values["step"], values[column], marker="o" if len(values) < 20 else None, label=column)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


class _HistoryFigure(Figure):
    """A figure that notebooks show though pyplot, which would open windows elsewhere, does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()
