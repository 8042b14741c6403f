"""A range test: do a few steps at several learning rates tell which one is best in the end?

In a training of one epoch each batch is new to the encoder, so the loss of a step is that of held-out triples. The rate
whose loss is lowest while the rate is high is what a range test (Smith, 2017, "Cyclical learning rates for training
neural networks") would choose, at a part of the cost of trainings to the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from .comparison import System
from .run import Run

PART = (0.25, 0.5)
"""Between which shares of the steps to look at the loss: after the warm-up, and while the rate is still high."""


def range_test(systems: Sequence[System]) -> pd.DataFrame:
    """Compare the learning rates that a range test would choose with those that are best on dev.

    Args:
        systems: Systems of searches; those that differ in the learning rate only are compared.

    Returns:
        A row for each search of several rates: ``collection``, ``start``, ``loss``, the rate that is ``predicted`` and
        the one that is ``best`` on dev, and how much nDCG@10 on dev the prediction ``loses``.
    """
    searches: dict[Run, list[System]] = {}
    for system in systems:
        # any constant will do, for what may differ
        searches.setdefault(dataclasses.replace(system.run, learning_rate=1.0), []).append(system)
    rows: list[dict[str, Any]] = []
    for search in searches.values():
        if len(search) > 1:
            rows.append(_predict(search))
    return pd.DataFrame(rows)


def _predict(search: Sequence[System]) -> dict[str, Any]:
    """Predict the best of several learning rates, and compare it with the best."""
    predicted = min(search, key=early_loss)
    best = max(search, key=lambda system: system.dev)
    run = best.run
    return {
        "collection": run.collection,
        "pooling": run.pooling,
        "reinitialized": run.reinitialized,
        "loss": run.loss_name,
        "predicted": predicted.run.learning_rate,
        "best": run.learning_rate,
        "loses": round(best.dev - predicted.dev, 4),
    }


def early_loss(system: System) -> float:
    """Return the mean loss of the steps of a training in :data:`PART`, mean over seeds."""
    losses = []
    for record in system.records:
        history = np.array(record["training"]["history"]["loss"], dtype=float)
        first, last = (int(share * len(history)) for share in PART)
        losses.append(history[first:last].mean())
    return float(np.mean(losses))
