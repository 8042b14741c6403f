"""What happens beside the steps: the bar, early stopping, the similarity monitor, hard-negative mining."""

import logging

import pandas as pd
import pytest
from torch import nn

from pyterrier_selfdistill import Negatives, SelfDistillTrainer
from pyterrier_selfdistill.training.callbacks import HardNegativeMiner


def test_progress_bar_shows_loss_margin_target_and_measures(make, collection, capsys):
    results, qrels = collection.results, collection.qrels
    make(verbose=True).fit(results, qrels, results, qrels)
    bar = capsys.readouterr()
    assert bar.out == ""
    for shown in ("5/5", "loss=", "margin=", "target=", "nDCG@10="):
        assert shown in bar.err


def test_progress_bar_is_off_unless_verbose(make, collection, capsys):
    make(verbose=False).fit(collection.results, collection.qrels)
    silent = capsys.readouterr()
    assert silent.out == ""
    assert "Training" not in silent.err


# --- similarity monitor ---------------------------------------------------------------------------------------------


class DocumentLoss(nn.Module):
    """A loss on documents alone, that no one would train with."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, features, labels=None):
        _, positive, negative = [self.model(column)["sentence_embedding"] for column in features]
        return self.compute(positive, negative)


class Collapse(DocumentLoss):
    """Pull all documents to one place."""

    def compute(self, positive, negative):
        return -(positive @ negative.T).mean()


class Forgetting(DocumentLoss):
    """Push alike documents apart, and others together."""

    def compute(self, positive, negative):
        return (positive @ negative.T).diagonal().mean() - (positive @ positive.T).mean()


@pytest.mark.parametrize(("loss", "learning_rate"), [(Collapse, 1e-2), (None, 1e-3)])
def test_monitor_warns_of_collapse_once(encoder, collection, tmp_path, caplog, loss, learning_rate):
    things = collection.things
    rows = [(f"sort {thing}", f"sort the {thing}", f"plot {thing} by {other}") for thing in things for other in things]
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", loss=loss, learning_rate=learning_rate, verbose=False)
    similarity = trainer.fit_triples(rows * 4).encoder.training_summary["similarity"]
    assert (similarity["after"] > similarity["before"]) == (loss is Collapse)
    assert caplog.text.count("collapse: the mean cosine of documents was") == (loss is Collapse)


@pytest.mark.parametrize("learning_rate", [1e-2, 1e-5])
def test_monitor_warns_of_forgetting_once(encoder, collection, tmp_path, caplog, learning_rate):
    rows = [(f"sort {thing}", f"sort the {thing}", f"sort a {thing}") for thing in collection.things] * 32
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", loss=Forgetting, learning_rate=learning_rate, verbose=False)
    similarity = trainer.fit_triples(rows).encoder.training_summary["similarity"]
    assert (similarity["representational"] < 0.4) == (learning_rate == 1e-2)
    assert caplog.text.count("forgetting: the cosines of documents correlate") == (learning_rate == 1e-2)


def test_monitor_cannot_tell_forgetting_of_two_documents(encoder, tmp_path):
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", verbose=False).fit_triples([("sort", "sort it", "plot it")])
    similarity = trainer.encoder.training_summary["similarity"]
    assert list(similarity) == ["before", "after", "representational"]
    assert similarity["representational"] is None


# --- hard-negative mining -------------------------------------------------------------------------------------------


def test_miner_mines_at_the_beginning_of_each_round_but_the_first(make, collection, caplog):
    options = {"rounds": 3, "num_train_epochs": 3, "negatives": Negatives(2, range_max=20)}
    with caplog.at_level(logging.INFO, "pyterrier_selfdistill"):
        # from a corpus without ranks, the first round draws from results
        trainer = make(corpus=collection.corpus, **options).fit(collection.results, collection.qrels)
    assert [record.args for record in caplog.records if record.msg.startswith("mining")] == [(5,), (10,)]
    folder = trainer.output_dir / "checkpoints"
    mined = {step: pd.read_parquet(folder / f"mined-{step}.parquet") for step in (5, 10)}
    assert not mined[5].equals(mined[10])
    for frame in mined.values():
        for row in frame.itertuples():
            thing = row.query.removeprefix("mean ")
            assert f" the {thing} " not in row.negative_1
            assert f" the {thing} " not in row.negative_2


def test_mined_negatives_are_trained_with_and_resumed(make, collection, interrupted):
    topics, qrels, corpus = collection.topics, collection.qrels, collection.corpus
    options = {"corpus": corpus, "rounds": 3, "num_train_epochs": 2, "save_steps": 3}
    plain = make("plain", corpus=corpus, num_train_epochs=2).fit(topics, qrels)
    whole = make("whole", **options).fit(topics, qrels)
    assert whole.encoder.model_name != plain.encoder.model_name
    with interrupted():
        make("cut", **options).fit(topics, qrels)
    resumed = make("cut", resume=True, **options).fit(topics, qrels)
    assert resumed.encoder.model_name == whole.encoder.model_name


def test_replace_keeps_the_negatives_of_positives_without_mined_ones(encoder, tmp_path):
    miner = HardNegativeMiner(encoder, queries=None, rounds=2, folder=tmp_path)
    miner.mined = {("sort", "sort rows"): ("mined 1", "mined 2")}
    batch = {
        "query": ["sort", "sort"],
        "positive": ["sort rows", "sort files"],
        "negative_1": ["old 1", "old 3"],
        "negative_2": ["old 2", "old 4"],
    }
    expected = {**batch, "negative_1": ["mined 1", "old 3"], "negative_2": ["mined 2", "old 4"]}
    assert miner.replace(batch) == expected
