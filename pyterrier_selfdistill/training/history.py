"""The history of a training: as a frame, as a plot, and in the summary of a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

# the columns of a history that are not measures
PROGRESS = [
    *("step", "epoch", "loss", "margin", "target", "scale", "learning_rate"),
    *("similarity", "representational_similarity"),
]

FEW_POINTS = 20  # A line with fewer points gets markers


def history_frame(logs: Iterable[Mapping[str, Any]], measures: Iterable[str] = ()) -> pd.DataFrame:
    """Make a frame of a trainer's log, with a row for each step that logged something."""
    logs, measures = list(logs), list(measures)
    columns = {name: name for name in PROGRESS} | {f"eval_{name}": name for name in measures}
    for measure in measures:
        for log in logs:
            of_data_sets = [name for name in log if name.startswith(f"eval_{measure} (")]
            columns |= {name: name.removeprefix("eval_") for name in of_data_sets}
    rows: dict[int, dict[str, Any]] = {}
    for log in logs:
        known = {columns[key]: value for key, value in log.items() if key in columns}
        if known.keys() - {"step", "epoch"}:
            rows.setdefault(log["step"], {}).update(known)
    return pd.DataFrame([rows[step] for step in sorted(rows)], columns=list(columns.values()))


def milestones(history: pd.DataFrame) -> list[dict[str, Any]]:
    """Select the rows with measures, or the last row with a loss, for the summary of a model."""
    measures = _measures(history)
    rows = history[history[measures].notna().any(axis=1)]
    if rows.empty:
        # the similarity of documents may have been logged after the last loss
        rows = history.dropna(subset="loss").tail(1)
    selected = []
    for row in rows[["step", "loss", "margin", "target", "scale", *measures]].to_dict(orient="records"):
        selected.append({str(name): value for name, value in row.items() if pd.notna(value)})
    return selected


def plot_history(history: pd.DataFrame) -> Figure:
    """Draw the loss, the margin with its target, the scale and the first measure, as far as they were logged."""
    lines = {
        "Loss": ["loss"],
        "Margin against target": ["margin", "target"],
        "Scale": ["scale"],
        "Evaluation": _measures(history)[:1],
    }
    panels = {title: [name for name in names if history[name].notna().any()] for title, names in lines.items()}
    panels = {title: names for title, names in panels.items() if names}
    figure = _HistoryFigure(figsize=(4 * max(len(panels), 1), 3), layout="constrained")
    for position, (title, columns) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), position, title=title, xlabel="step")
        for column in columns:
            values = history[["step", column]].dropna()
            (line,) = axes.plot(values["step"], values[column], label=column)
            if len(values) < FEW_POINTS:
                line.set_marker("o")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


class _HistoryFigure(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def is_better(value: float, best: float | None, greater_is_better: bool) -> bool:
    if best is None:
        return True
    return value > best if greater_is_better else value < best


def warn_if_not_improved(history: pd.DataFrame, metric: str, greater_is_better: bool, keeps_start: bool) -> None:
    """Warn when no later evaluation is better than the one before training."""
    values = history.set_index("step")[metric].dropna()
    if 0 not in values.index or len(values) < 2:
        return
    before, after = values.iloc[0], values.iloc[1:]
    step = after.idxmax() if greater_is_better else after.idxmin()
    if is_better(after[step], before, greater_is_better):
        return
    result = "the encoder of the last step, since load_best_model_at_end=False"
    if keeps_start:
        result = "the encoder that training started from"
    logger.warning(
        "training did not improve %s on the validation queries: %.4f before, %.4f at best after, in step %d, which is "
        "worse by %.4f. The result is %s. Try a lower learning_rate, another target, harder negatives (a retriever "
        "before the trainer) or more data",
        *(metric, before, after[step], step, abs(after[step] - before), result),
    )


def _measures(history: pd.DataFrame) -> list[str]:
    return [name for name in history if name not in PROGRESS]
