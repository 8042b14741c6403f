"""Timing of trainings: what the rows say, what the measures turn off, and triples in batches."""

import pandas as pd
import torch

from benchmarks import training_speed
from benchmarks.training_speed import BATCH, load_triples, measures, time_in_turns
from pyterrier_selfdistill import embedding, text_losses


def test_trainings_are_timed_in_turns():
    names = []

    def take(name, seconds):
        def train(triples):
            names.append(name)
            return seconds.pop()

        return train

    trainings = {"slow": take("slow", [8.0, 4.0, 2.0]), "fast": take("fast", [1.0, 1.0, 1.0])}
    rows = time_in_turns(trainings, pd.DataFrame({"query": ["sort"] * 8}), turns=3)
    assert names == ["slow", "fast"] * 3
    assert rows[0] == ("slow", 2.0, [4.0, 2.0, 1.0])
    assert rows[1].median == 8.0


def test_measures_are_turned_off_one_by_one(monkeypatch):
    arrange, cpu = text_losses.arrange, torch.device("cpu")

    def describe(triples):
        return text_losses.arrange is arrange, embedding.number_of_passes(64, cpu)

    monkeypatch.setattr(training_speed, "train_ours", describe)
    states = {name: train(None) for name, train in measures().items()}
    assert states["none"] == (False, 1)
    assert states["one pool alone"] == (True, 1)
    assert states["together"] == (True, 8)
    assert text_losses.arrange is arrange


def test_triples_are_drawn_from_a_folder_of_collections(tmp_path):
    folder = tmp_path / "vaswani"
    folder.mkdir()
    numbers = [str(number) for number in range(9)]
    documents = pd.DataFrame({"docno": numbers, "text": [f"document {number}" for number in numbers]})
    documents.to_json(folder / "docs.jsonl.gz", orient="records", lines=True)
    queries = pd.DataFrame({"qid": numbers, "query": [f"query {number}" for number in numbers]})
    queries.to_csv(folder / "all.topics.tsv", sep="\t", index=False)
    qrels = pd.DataFrame({"qid": numbers, "docno": numbers, "label": [1] * 8 + [0]})
    qrels.to_csv(folder / "all.qrels.tsv", sep="\t", index=False)
    triples = load_triples(tmp_path, 8)
    assert set(triples["positive"]) == {f"document {number}" for number in range(8)}
    assert (triples["query"].str[-1] == triples["positive"].str[-1]).all()
    assert set(triples["negative"]) <= set(documents["text"])
    assert triples.equals(load_triples(tmp_path, 8))


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
