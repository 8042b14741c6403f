"""What happens beside the steps: the bar, early stopping, the similarity monitor, hard-negative mining."""

import logging
from itertools import count

import pandas as pd
import pyterrier as pt
import pytest
import torch
from ir_measures import nDCG
from torch import nn

from pyterrier_selfdistill import Negatives, SelfDistillationLoss, SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.training.callbacks import ProgressBar
from pyterrier_selfdistill.training.loop import TrainingLoop
from pyterrier_selfdistill.training.mining import HardNegativeMiner


@pytest.mark.parametrize(("target", "compared"), [("distributed", "target="), ("calibrated", "scale=")])
def test_progress_bar_shows_loss_margin_and_measures(make, collection, capsys, target, compared):
    results, qrels = collection.results, collection.qrels
    make(verbose=True, target=target).fit(results, qrels, results, qrels)
    bar = capsys.readouterr()
    assert bar.out == ""
    for shown in ("5/5", "loss=", "margin=", compared, "nDCG@10="):
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


# --- evaluation beside the steps, and divergence --------------------------------------------------------------------


def test_what_is_evaluated_is_what_is_saved(make, collection):
    """The measures in the history are those of the checkpoints as saved, not of the model under autocast."""
    results, qrels = collection.results, collection.qrels
    trainer = make(bf16=True, num_train_epochs=2, save_total_limit=None, eval_steps=2, learning_rate=1e-2)
    trainer.fit(results, qrels, results, qrels)
    measured = trainer.history.set_index("step")["nDCG@10"].dropna().drop(0)
    for step, value in measured.items():
        saved = SelfDistillBiEncoder(trainer.output_dir / "checkpoints" / f"checkpoint-{step}")
        assert pt.Evaluate(saved(results), qrels, [nDCG @ 10])["nDCG@10"] == value
    best = trainer.encoder.training_summary["best_measure"]["value"]
    assert pt.Evaluate(trainer.encoder(results), qrels, [nDCG @ 10])["nDCG@10"] == best


def test_mining_and_monitoring_are_not_under_autocast(make, collection, monkeypatch):
    autocast = []
    encode = SelfDistillBiEncoder.encode_docs

    def record(self, *arguments, **options):
        vectors = encode(self, *arguments, **options)
        features = self.model.preprocess(["sort"])
        autocast.append(self.model(features)["token_embeddings"].dtype)
        return vectors

    monkeypatch.setattr(SelfDistillBiEncoder, "encode_docs", record)
    make(bf16=True, corpus=collection.corpus, rounds=2).fit(collection.topics, collection.qrels)
    assert len(autocast) > 4
    assert set(autocast) == {torch.float32}


def test_a_training_that_diverges_stops_and_keeps_what_was_there(make, collection, tmp_path):
    results, qrels = collection.results, collection.qrels
    before = make().fit(results, qrels).encoder
    diverging = make(overwrite=True, learning_rate=1e25, save_steps=1, max_grad_norm=0, warmup_steps=0, bf16=False)
    with pytest.raises(FloatingPointError, match=r"in step \d: try a lower learning_rate|after step \d: try"):
        diverging.fit(results, qrels)
    assert pt.Artifact.load(str(tmp_path / "run" / "model")) == before
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("checkpoint-*"):
        for weights in SelfDistillBiEncoder(checkpoint).model.parameters():
            assert weights.isfinite().all()


def test_a_loss_that_is_not_finite_names_its_step(make, collection, monkeypatch, tmp_path):
    compute = SelfDistillationLoss.forward
    steps = count()

    def forward(*arguments):
        loss = compute(*arguments)
        return loss * float("nan") if next(steps) == 3 else loss

    monkeypatch.setattr(SelfDistillationLoss, "forward", forward)
    with pytest.raises(FloatingPointError, match="the loss is nan in step 4: try a lower learning_rate"):
        make(save_steps=1).fit(collection.results, collection.qrels)
    assert not (tmp_path / "run" / "model").exists()
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3").exists()


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(make, collection, monkeypatch, tmp_path):
    def destroy(self, args, state, control, model=None, **options):
        if state.global_step == state.max_steps:
            next(model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(ProgressBar, "on_step_end", destroy)
    with pytest.raises(FloatingPointError, match="weights of .* are not finite after step 5"):
        make(save_strategy="no", verbose=True).fit(collection.results, collection.qrels)
    assert not (tmp_path / "run" / "model").exists()


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


@pytest.mark.parametrize(
    "loader", [{}, {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4}, {"gradient_accumulation_steps": 2}]
)
def test_mined_negatives_are_trained_with_from_the_very_step(make, collection, monkeypatch, loader):
    """What the loss is given after mining has mined negatives only, whatever was fetched ahead."""
    topics, qrels, corpus = collection.topics, collection.qrels, collection.corpus
    steps = []
    train = TrainingLoop.training_step

    def record(self, model, inputs, *more):
        decode = self.model.tokenizer.batch_decode
        rows = [decode(inputs[f"{name}_input_ids"], skip_special_tokens=True) for name in ("query", "negative")]
        steps.append((self.state.global_step, set(zip(*rows, strict=True))))
        return train(self, model, inputs, *more)

    monkeypatch.setattr(TrainingLoop, "training_step", record)
    options = {"corpus": corpus, "rounds": 4, "max_steps": 8, "save_strategy": "no", **loader}
    trainer = make(**options).fit(topics, qrels)
    folder = trainer.output_dir / "checkpoints"
    tokenizer = trainer.encoder.model.tokenizer

    def as_trained(text):
        return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)

    for step, pairs in steps:
        if step < 2:
            continue
        mined = pd.read_parquet(folder / f"mined-{step - step % 2}.parquet")
        allowed = {(as_trained(row.query), as_trained(row.negative)) for row in mined.itertuples()}
        assert pairs <= allowed


@pytest.mark.parametrize("ended_at", [5, 6])
def test_a_run_resumed_at_a_mining_step_gives_the_same_model(make, collection, monkeypatch, ended_at):
    topics, qrels, corpus = collection.topics, collection.qrels, collection.corpus
    options = {"corpus": corpus, "rounds": 2, "num_train_epochs": 2, "save_steps": 1, "dataloader_num_workers": 1}
    whole = make("whole", **options).fit(topics, qrels)
    compute = SelfDistillationLoss.forward
    steps = count()

    def end(*arguments):
        if next(steps) == ended_at:
            raise KeyboardInterrupt
        return compute(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SelfDistillationLoss, "forward", end)
        with pytest.raises(KeyboardInterrupt):
            make("cut", **options).fit(topics, qrels)
    folder = make("cut").output_dir / "checkpoints"
    if ended_at == 5:
        # as if the process had been killed before it mined
        (folder / "mined-5.parquet").unlink()
    resumed = make("cut", resume=True, **options).fit(topics, qrels)
    assert resumed.encoder.model_name == whole.encoder.model_name


def test_a_run_without_what_it_mined_is_not_resumed(make, collection, interrupted):
    topics, qrels, corpus = collection.topics, collection.qrels, collection.corpus
    options = {"corpus": corpus, "rounds": 2, "num_train_epochs": 2, "save_steps": 1}
    with interrupted():
        make(**options).fit(topics, qrels)
    (make().output_dir / "checkpoints" / "mined-5.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="mined after 5 steps"):
        make(resume=True, **options).fit(topics, qrels)


def test_replace_keeps_the_negatives_of_positives_without_mined_ones(encoder, tmp_path):
    miner = HardNegativeMiner(encoder, queries=None, rounds=2, folder=tmp_path)
    miner.mined = {("sort", "sort rows"): ("mined 1", "mined 2")}
    rows = [
        {"query": "sort", "positive": "sort rows", "negative_1": "old 1", "negative_2": "old 2"},
        {"query": "sort", "positive": "sort files", "negative_1": "old 3", "negative_2": "old 4"},
    ]
    assert miner.replace(rows) == [{**rows[0], "negative_1": "mined 1", "negative_2": "mined 2"}, rows[1]]
    assert rows[0]["negative_1"] == "old 1"
