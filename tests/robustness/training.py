"""Training: what a trainer is given to train and to evaluate with, and the arguments of its training loop."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd

from pyterrier_selfdistill import SelfDistillTrainer

from . import worlds
from .exploring import EntryPoint
from .mutations import Mutations, cell, equivalent_frame, malformed_frame, no_rows, replace
from .training_data import Drawn, FromResults, equivalent_qrels, malformed_qrels, other_text


class TrainingReachedError(Exception):
    """All data was accepted."""


def reach_training(model: Any) -> Any:
    """Stand for a loss, which is made when all data was accepted; training itself would take a second."""
    raise TrainingReachedError


def _renamed(changes: Mutations, before: str, after: str) -> Mutations:
    """Change another argument in the way that changes one."""
    return changes.map(
        lambda change: change._replace(
            description=change.description.replace(before, after),
            change=lambda given: _swapped(change.change(_swapped(given, before, after)), before, after),
            names=[*change.names, after],
        )
    )


def _swapped(arguments: Any, one: str, other: str) -> dict[str, Any]:
    names = {one: other, other: one}
    return {names.get(name, name): value for name, value in arguments.items()}


@st.composite
def fits(draw: st.DrawFn) -> dict[str, Any]:
    """Make results and judgements to train with, and others to evaluate with."""
    training = draw(FromResults.valid)
    topics, documents = draw(worlds.topics(worlds.TEXTS)), draw(worlds.corpus(worlds.TEXTS))
    return {
        **{name: training[name] for name in ("results", "qrels", "negatives", "min_label", "corpus")},
        "valid_results": draw(worlds.results(topics, documents)),
        "valid_qrels": draw(worlds.judgements(topics, documents)),
        "trains": draw(st.sampled_from([False] * 99 + [True])),
    }


class Fit(EntryPoint):
    """Training is reached, and where it is not interrupted there, its summary counts the triples."""

    name = "trainer.fit"
    milliseconds = 40
    valid = fits()
    equivalent = (
        *FromResults.equivalent,
        _renamed(equivalent_frame("results", ["qid", "query", "docno", "text"]), "results", "valid_results"),
        _renamed(equivalent_qrels, "qrels", "valid_qrels"),
    )
    malformed = (
        malformed_frame("results", ["qid", "docno"], ["query"]).map(
            lambda change: change._replace(names=[*change.names, "topics"])
        ),
        no_rows("results", "topics"),
        other_text("results", "query", "qid"),
        malformed_qrels,
        malformed_frame("valid_results", ["qid"], ["query"]).map(
            lambda change: change._replace(names=[*change.names, "topics", "results"])
        ),
        no_rows("valid_results", "topics"),
        cell("valid_results", "text", [None, math.nan, 3, "\ud800"]),
        _renamed(malformed_qrels, "qrels", "valid_qrels"),
        cell("valid_qrels", "label", [0.5]),
        replace("valid_results", [None], "topics"),
        replace("valid_qrels", [None], "qrels"),
    )

    def call(self, results: Any, qrels: Any, valid_results: Any, valid_qrels: Any, trains: bool, **options: Any) -> Any:
        """Return whether training is reached, or how many triples there were."""
        if trains:
            options |= {"max_steps": 1, "eval_steps": 1}
        else:
            options |= {"loss": reach_training}
        trainer = SelfDistillTrainer(self.tools.encoder, self.tools.path(), verbose=False, **options)
        try:
            trainer.fit(results, qrels, valid_results, valid_qrels)
        except TrainingReachedError:
            return "training"
        return trainer.encoder.training_summary["data"]["triples"]

    def expected(self, valid_results: Any, valid_qrels: Any, trains: bool, **training: Any) -> Any:
        """Return the triples, as of the same results by themselves."""
        return FromResults(self.tools).expected(**training, seed=42)

    def is_right(self, answer: Any, expected: Drawn) -> bool:
        """Compare the number of triples, where something was trained."""
        return answer in ("training", len(expected.negatives))


class TrainingArguments(EntryPoint):
    """A training of as many steps as asked for."""

    name = "trainer.fit_triples, arguments of the loop"
    milliseconds = 250
    valid = st.just({"max_steps": 1})
    equivalent = (
        replace("max_steps", [np.int64(1)]),
        replace("learning_rate", [np.float64(1e-5)]),
        replace("warmup_steps", [0.1, 0]),
    )
    malformed = (
        replace("learning_rate", ["fast", -1.0, math.nan, None, [1e-5]]),
        replace("per_device_train_batch_size", [0, -1, "many", 1.5, None]),
        replace("max_steps", ["one", 1.5, None, [1]]),
        replace("num_train_epochs", ["one", None]),
        replace("eval_strategy", ["always", 3]),
        replace("lr_scheduler_type", ["steep", 3]),
        replace("optim", ["best", 3]),
        replace("logging_steps", ["often", -1]),
    )

    def call(self, **arguments: Any) -> Any:
        """Return how many steps were made."""
        trainer = SelfDistillTrainer(self.tools.encoder, self.tools.path(), verbose=False, **arguments)
        trainer.fit_triples(
            pd.DataFrame([["sort", "sort the rows", "plot"]], columns=["query", "positive", "negative"])
        )
        return trainer.encoder.training_summary["steps"]

    def expected(self, max_steps: int, **_: Any) -> Any:
        """Return how many steps were asked for."""
        return max_steps
