"""Timing of trainings: what the measures turn off, and what batches consist of."""

import pandas as pd
import torch

from benchmarks import training_speed
from benchmarks.training_speed import BATCH, measures
from pyterrier_selfdistill import embedding, text_losses


def test_measures_are_turned_off_one_by_one(monkeypatch):
    arrange, cpu = text_losses.arrange, torch.device("cpu")

    def describe(triples):
        return text_losses.arrange is arrange, embedding.number_of_passes(64, cpu)

    monkeypatch.setattr(training_speed, "train_ours", describe)
    states = {name: train(None) for name, train in measures().items()}
    assert states == {
        "columns, one by one": (False, 8),
        "documents in one pool": (True, 1),
        "and in passes of like length": (True, 8),
    }
    assert text_losses.arrange is arrange


def test_padding_is_counted():
    texts = ["sort the rows"] * (BATCH - 1)
    negatives = [*texts, "read " * 27 + "a file"]
    triples = pd.DataFrame({"query": ["sort"] * BATCH, "positive": ["write", *texts], "negative": negatives})
    counted = training_speed.count_padding(triples)
    real = 62 * 5 + 3 + 31  # with the marks at both ends
    assert counted["padded column by column"] == (32 * 5 + 32 * 31) / real
    assert counted["one pool in 1 passes"] == 64 * 31 / real
    assert counted["one pool in 2 passes"] == (63 * 5 + 31) / real
    assert counted["share of queries that are repeated"] == 31 / 32
