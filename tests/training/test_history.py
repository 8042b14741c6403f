"""The history of a training: its frame, its milestones, its plot, its warning."""

import logging

import numpy as np
import pandas as pd
import pytest

from pyterrier_selfdistill.training.history import (
    PROGRESS,
    history_frame,
    milestones,
    plot_history,
    warn_if_not_improved,
)

LOGS = [
    {"step": 0, "epoch": 0.0, "similarity": 0.3},
    {"step": 0, "epoch": 0.0, "eval_RR": 0.1, "eval_runtime": 3.0},
    {"step": 1, "epoch": 0.5, "loss": 0.7, "margin": 0.1, "target": 0.6, "scale": 20.0, "learning_rate": 1e-5},
    {"step": 2, "epoch": 1.0, "similarity": 0.4, "representational_similarity": 0.9},
    {"step": 2, "epoch": 1.0, "loss": 0.5, "margin": 0.2, "target": 0.6, "learning_rate": 1e-6},
    {"step": 2, "epoch": 1.0, "eval_RR": 0.3},
    {"step": 2, "epoch": 1.0, "train_runtime": 5.0},
]


def test_history_frame_has_one_row_a_step():
    expected = pd.DataFrame(
        [
            [0, 0.0, np.nan, np.nan, np.nan, np.nan, np.nan, 0.3, np.nan, 0.1],
            [1, 0.5, 0.7, 0.1, 0.6, 20.0, 1e-5, np.nan, np.nan, np.nan],
            [2, 1.0, 0.5, 0.2, 0.6, np.nan, 1e-6, 0.4, 0.9, 0.3],
        ],
        columns=[*PROGRESS, "RR"],
    )
    pd.testing.assert_frame_equal(history_frame(LOGS, ["RR"]), expected)


def test_history_frame_leaves_steps_out_that_nothing_was_logged_for():
    assert history_frame([{"step": 3, "epoch": 1.0, "train_runtime": 5.0}]).empty


def test_milestones_are_the_evaluated_steps():
    expected = [{"step": 0, "RR": 0.1}, {"step": 2, "loss": 0.5, "margin": 0.2, "target": 0.6, "RR": 0.3}]
    assert milestones(history_frame(LOGS, ["RR"])) == expected


@pytest.mark.parametrize("later", [[], [{"step": 3, "similarity": 0.4}]])
def test_milestones_without_evaluation_are_the_last_loss(later):
    expected = [{"step": 2, "loss": 0.5, "margin": 0.2, "target": 0.6}]
    assert milestones(history_frame(LOGS + later)) == expected


def test_milestones_of_an_empty_history_are_none():
    assert milestones(history_frame([], ["RR"])) == []
    assert milestones(history_frame([])) == []


def test_plot_history_leaves_out_what_was_not_logged():
    titles = [axes.get_title() for axes in plot_history(history_frame(LOGS[:2], ["RR"])).axes]
    assert titles == ["Evaluation"]


def test_fit_writes_a_plot_where_nothing_was_logged(make, collection, tmp_path):
    make(logging_strategy="no").fit(collection.results, collection.qrels)
    assert (tmp_path / "run" / "history.png").exists()


def test_fit_warns_when_nothing_improves(make, collection, caplog):
    results, qrels = collection.results, collection.qrels
    with caplog.at_level(logging.WARNING, "pyterrier_selfdistill"):
        make(learning_rate=1e-12).fit(results, qrels, results, qrels)
    assert "did not improve nDCG@10" in caplog.text


@pytest.mark.parametrize(
    ("last", "greater_is_better", "warning"),
    [
        (0.1, True, "0.1000 before, 0.1000 at best after, in step 2, which is worse by 0.0000."),
        (0.07, True, "0.1000 before, 0.0700 at best after, in step 2, which is worse by 0.0300."),
        (0.2, True, None),
        (0.2, False, None),
    ],
)
def test_warn_if_not_improved_compares_with_the_encoder_before(caplog, last, greater_is_better, warning):
    logs = [{"step": 0, "eval_RR": 0.1}, {"step": 1, "eval_RR": 0.05}, {"step": 2, "eval_RR": last}]
    warn_if_not_improved(history_frame(logs, ["RR"]), "RR", greater_is_better=greater_is_better)
    assert ("did not improve RR" in caplog.text) == (warning is not None)
    assert (warning or "") in caplog.text


def test_warn_if_not_improved_looks_for_the_least_where_less_is_better(caplog):
    logs = [{"step": 0, "eval_RR": 0.1}, {"step": 1, "eval_RR": 0.3}, {"step": 2, "eval_RR": 0.2}]
    warn_if_not_improved(history_frame(logs, ["RR"]), "RR", greater_is_better=False, keeps_start=False)
    assert (
        "0.2000 at best after, in step 2, which is worse by 0.1000. The result is the encoder of the last"
        in caplog.text
    )
