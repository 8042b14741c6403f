"""The history of a training: its frame, its milestones, its plot, its warning; and the similarity of documents."""

import math

import numpy as np
import pandas as pd
import pytest

from pyterrier_selfdistill.training.loop import mean_cosine, representational_similarity
from pyterrier_selfdistill.training.run_folder import (
    PROGRESS,
    history_frame,
    milestones,
    plot_history,
    warn_if_not_improved,
)

LOGS = [
    {"step": 0, "epoch": 0.0, "similarity": 0.3},
    {"step": 0, "epoch": 0.0, "eval_RR": 0.1, "eval_RR (a)": 0.2, "eval_runtime": 3.0},
    {"step": 1, "epoch": 0.5, "loss": 0.7, "margin": 0.1, "target": 0.6, "learning_rate": 1e-5},
    {"step": 2, "epoch": 1.0, "similarity": 0.4, "representational_similarity": 0.9},
    {"step": 2, "epoch": 1.0, "loss": 0.5, "margin": 0.2, "target": 0.6, "learning_rate": 1e-6},
    {"step": 2, "epoch": 1.0, "eval_RR": 0.3, "eval_RR (a)": 0.4},
    {"step": 2, "epoch": 1.0, "train_runtime": 5.0},
    {"step": 3, "epoch": 1.5, "train_runtime": 5.0},
]


def test_history_frame_has_one_row_a_step_that_logged_something():
    nan = np.nan
    expected = pd.DataFrame(
        [
            [0, 0.0, nan, nan, nan, nan, 0.3, nan, 0.1, 0.2],
            [1, 0.5, 0.7, 0.1, 0.6, 1e-5, nan, nan, nan, nan],
            [2, 1.0, 0.5, 0.2, 0.6, 1e-6, 0.4, 0.9, 0.3, 0.4],
        ],
        columns=[*PROGRESS, "RR", "RR (a)"],
    )
    pd.testing.assert_frame_equal(history_frame(LOGS, ["RR"]), expected)


def test_milestones_are_the_evaluated_steps_or_the_last_with_a_loss():
    last = {"step": 2, "loss": 0.5, "margin": 0.2, "target": 0.6}
    evaluated = [{"step": 0, "RR": 0.1, "RR (a)": 0.2}, last | {"RR": 0.3, "RR (a)": 0.4}]
    assert milestones(history_frame(LOGS, ["RR"])) == evaluated
    assert milestones(history_frame([*LOGS, {"step": 4, "similarity": 0.4}])) == [last]
    assert milestones(history_frame([], ["RR"])) == []


def test_plot_history_draws_only_logged_columns():
    titles = [axes.get_title() for axes in plot_history(history_frame(LOGS, ["RR"])).axes]
    assert titles == ["Loss", "Margin against target", "Evaluation"]
    without_target = history_frame([{key: log[key] for key in log if key != "target"} for log in LOGS], ["RR"])
    assert [axes.get_title() for axes in plot_history(without_target).axes] == ["Loss", "Margin", "Evaluation"]
    assert [axes.get_title() for axes in plot_history(history_frame(LOGS[:2], ["RR"])).axes] == ["Evaluation"]
    assert not plot_history(history_frame([])).axes


@pytest.mark.parametrize(
    ("later", "greater_is_better", "words"),
    [
        ([0.05, 0.1], True, ["at best 0.1000 afterwards, in step 2", "which is equal"]),
        ([0.05, 0.07], True, ["at best 0.0700 afterwards, in step 2", "worse by 0.0300"]),
        ([0.3, 0.2], False, ["at best 0.2000 afterwards, in step 2", "worse by 0.1000"]),
        ([0.05, 0.2], True, []),
    ],
)
def test_a_warning_compares_the_best_step_with_the_untrained_encoder(caplog, later, greater_is_better, words):
    logs = [{"step": step, "eval_RR": value} for step, value in enumerate([0.1, *later])]
    warn_if_not_improved(history_frame(logs, ["RR"]), "RR", greater_is_better=greater_is_better, keeps_start=True)
    assert bool(caplog.text) == bool(words)
    assert all(word in caplog.text for word in words)


@pytest.fixture
def vectors():
    vectors = np.random.default_rng(0).normal(size=(6, 4))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_mean_cosine_is_the_mean_over_pairs(vectors):
    cosines = [vectors[i] @ vectors[j] for i in range(6) for j in range(i)]
    assert mean_cosine(vectors) == pytest.approx(np.mean(cosines))
    assert mean_cosine(vectors[[0, 0, 0]]) == pytest.approx(1)
    assert mean_cosine(vectors[:1]) == 0


def test_representational_similarity_ignores_rotations(vectors):
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))
    assert representational_similarity(vectors, vectors @ rotation) == pytest.approx(1)
    assert representational_similarity(vectors, vectors[::-1]) < 0.9
    # unknown for too few texts, or equal ones
    assert math.isnan(representational_similarity(vectors[:2], vectors[:2]))
    assert math.isnan(representational_similarity(vectors, np.ones((6, 1))))
