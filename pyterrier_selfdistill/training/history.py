"""What happened in training: as a frame, as a plot, and as a summary.

The trainer of transformers logs dictionaries: some with the loss, some with measures, several a step.
:func:`history_frame` makes one row a step of them, :func:`plot_history` draws it, and :func:`training_summary` says of
the whole run what is stored with its model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import Any

import pandas as pd
import sentence_transformers
import torch
import transformers
from matplotlib.figure import Figure
from transformers import TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

PROGRESS = [
    *("step", "epoch", "loss", "margin", "target", "scale", "learning_rate"),
    *("similarity", "representational_similarity"),
]
"""The columns of a history that are no measures."""

FEW_POINTS = 20
"""Below so many, the points of a line are marked."""


def history_frame(logs: Iterable[Mapping[str, Any]], measures: Iterable[str] = ()) -> pd.DataFrame:
    """Make a frame of a training log.

    Args:
        logs: What the trainer logged, each with its ``step``; measures are prefixed with ``eval_``.
        measures: The names of the measures.

    Returns:
        One row a step that something was logged for: ``step``, ``epoch``, ``loss``, ``margin``, ``target`` and
        ``scale`` (means over the steps since the last that were logged), ``learning_rate``, ``similarity`` (the mean
        cosine of some documents), ``representational_similarity`` (the correlation of their cosines with those before
        training), and the measures, followed by those of each collection, such as ``nDCG@10 (a)``, if several were
        evaluated; NaN where nothing was logged.

    Example:
        >>> history_frame([{"step": 2, "loss": 0.5}, {"step": 2, "eval_RR": 0.25}], ["RR"])[["step", "loss", "RR"]]
           step  loss    RR
        0     2   0.5  0.25
    """
    logs = list(logs)
    measures = list(measures)
    columns = {name: name for name in PROGRESS}
    columns |= {f"eval_{name}": name for name in [*measures, *_of_collections(logs, measures)]}
    rows: dict[int, dict[str, Any]] = {}
    for log in logs:
        known = {columns[key]: value for key, value in log.items() if key in columns}
        if known.keys() - {"step", "epoch"}:
            rows.setdefault(log["step"], {}).update(known)
    in_order = [rows[step] for step in sorted(rows)]
    return pd.DataFrame(in_order, columns=list(columns.values()))


def of_collection(measure: str, collection: str) -> str:
    """Name a measure of one collection, where several are evaluated.

    Args:
        measure: The name of the measure.
        collection: The name of the collection.

    Returns:
        The name.

    Example:
        >>> of_collection("nDCG@10", "a")
        'nDCG@10 (a)'
    """
    return f"{measure} ({collection})"


def _of_collections(logs: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> list[str]:
    """List the measures of single collections that were logged, those of a measure together."""
    starts = [f"eval_{of_collection(measure, '')}".removesuffix(")") for measure in measures]
    found: dict[str, None] = {}  # a set that keeps the order
    for start in starts:
        for log in logs:
            names = [name.removeprefix("eval_") for name in log if name.startswith(start)]
            found |= dict.fromkeys(names)
    return list(found)


def milestones(history: pd.DataFrame) -> list[dict[str, Any]]:
    """Select the rows of a history in which something was measured, or the last one with a loss if nothing was.

    Args:
        history: What :func:`history_frame` returns.

    Returns:
        A dictionary a row, without what was not logged.

    Example:
        >>> logs = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.5}, {"step": 2, "eval_RR": 0.2}]
        >>> milestones(history_frame(logs, ["RR"]))
        [{'step': 2, 'loss': 0.5, 'RR': 0.2}]
    """
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
    """Draw a history: the loss, the margin against the target, and the first measure.

    Args:
        history: What :func:`history_frame` returns.

    Returns:
        A figure of its own, which no window shows; notebooks do.

    Example:
        >>> history = history_frame([{"step": 2, "loss": 0.5, "margin": 0.1, "target": 0.6}])
        >>> plot_history(history).axes[1].get_title()
        'Margin against target'
    """
    panels = _panels(history)
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


def training_summary(
    settings: Mapping[str, Any],
    state: TrainerState,
    history: pd.DataFrame,
    *,
    similarity: Mapping[str, float | None],
    seconds: float,
    metric: str | None,
) -> dict[str, Any]:
    """Summarize a run: what it was, what it reached, and with which versions.

    Args:
        settings: What makes the run: data, loss, arguments, seed.
        state: The state of the training loop at the end.
        history: What :func:`history_frame` returns.
        similarity: What became of the similarity of documents.
        seconds: How long the training took.
        metric: The measure by which the best checkpoint became the model; None if the last one did.

    Returns:
        The settings, and ``steps``, ``best_step`` and ``best_measure`` (``name`` and ``value``; both None if the last
        one is the model, and those of step 0 if none was better than the encoder before training), ``seconds``,
        ``similarity``, ``history`` (its :func:`milestones`) and ``versions``.

    Example:
        >>> logs = history_frame([{"step": 2, "loss": 0.5}])
        >>> state = TrainerState(global_step=2)
        >>> options = {"similarity": {"before": 0.2}, "seconds": 0.1, "metric": "RR"}
        >>> summary = training_summary({"seed": 42}, state, logs, **options)
        >>> list(summary)
        ['seed', 'steps', 'best_step', 'best_measure', 'seconds', 'similarity', 'history', 'versions']
    """
    best_step = None
    best_measure = None
    if metric is not None:
        best_step = state.best_global_step
        best_measure = {"name": metric, "value": state.best_metric}
    libraries = (sentence_transformers, transformers, torch)
    return {
        **settings,
        "steps": state.global_step,
        "best_step": best_step,
        "best_measure": best_measure,
        "seconds": round(seconds, 1),
        "similarity": dict(similarity),
        "history": milestones(history),
        "versions": {library.__name__: library.__version__ for library in libraries},
    }


def is_better(value: float, best: float | None, greater_is_better: bool) -> bool:
    """Tell whether a value beats the best one so far; one that ties does not.

    Args:
        value: The value.
        best: The best one so far; None if there is none.
        greater_is_better: Whether more of it is better.

    Returns:
        Whether it does.

    Example:
        >>> is_better(0.3, 0.2, True), is_better(0.2, 0.2, True), is_better(0.1, 0.2, False)
        (True, False, True)
    """
    if best is None:
        return True
    if greater_is_better:
        return value > best
    return value < best


def warn_if_not_improved(
    history: pd.DataFrame, metric: str, *, greater_is_better: bool = True, keeps_start: bool = True
) -> None:
    """Warn if no checkpoint is better than the encoder was before training.

    Args:
        history: What :func:`history_frame` returns.
        metric: The measure that decides which checkpoint is best.
        greater_is_better: Whether more of it is better.
        keeps_start: Whether the encoder that training started from is the result in that case, or the last one is.
    """
    values = history.set_index("step")[metric].dropna()
    if 0 not in values.index or len(values) < 2:
        return
    before = values.iloc[0]
    after = values.iloc[1:]
    step = after.idxmin()
    if greater_is_better:
        step = after.idxmax()
    best = after[step]
    if is_better(best, before, greater_is_better):
        return
    result = "the encoder of the last step all the same, as load_best_model_at_end=False says"
    if keeps_start:
        result = "the encoder that training started from"
    logger.warning(
        "training did not improve %s on the validation queries: %.4f before, %.4f at best after, in step %d, which is "
        "worse by %.4f. The result is %s. Try a lower learning_rate, another target, harder negatives (a retriever "
        "before the trainer) or more data",
        metric,
        before,
        best,
        step,
        abs(best - before),
        result,
    )


def _measures(history: pd.DataFrame) -> list[str]:
    """List the columns of a history that are measures."""
    return [name for name in history if name not in PROGRESS]


def _panels(history: pd.DataFrame) -> dict[str, list[str]]:
    """Choose what to draw in each panel, by its title: the columns in which something was logged."""
    columns = {
        "Loss": ["loss"],
        "Margin against target": ["margin", "target"],
        "Scale": ["scale"],
        "Evaluation": _measures(history)[:1],
    }
    panels = {}
    for title, names in columns.items():
        logged = [name for name in names if history[name].notna().any()]
        if logged:
            panels[title] = logged
    return panels


class _HistoryFigure(Figure):
    """A figure that notebooks show though pyplot, which would open windows elsewhere, does not know it."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def deciding_measure(arguments: TrainingArguments) -> str:
    """Name the measure that decides which checkpoint is best.

    Args:
        arguments: The arguments of a training with evaluation.

    Returns:
        Its name, without the prefix that it is logged with.

    Example:
        >>> deciding_measure(TrainingArguments(metric_for_best_model="eval_RR", use_cpu=True))
        'RR'
    """
    return str(arguments.metric_for_best_model).removeprefix("eval_")
