"""The trainer: what it learns, what it leaves alone, and what it says when it cannot train."""

import json
from functools import partial
from itertools import count

import numpy as np
import pandas as pd
import peft
import pyterrier as pt
import pyterrier_dr
import pytest
import torch
from ir_measures import RR, nDCG
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MarginMSELoss
from torch import nn

from pyterrier_selfdistill import NotFittedError, SelfDistillationLoss, SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.training.loop import mean_cosine
from pyterrier_selfdistill.training.run_folder import PROGRESS
from tests.training.together import ROWS

ONE, TWO = [row[:3] for row in ROWS], ROWS[:14]
"""Two data sets: 21 triples with one negative, and 14 with two."""


def test_fit_learns_in_a_pipeline(make, encoder, collection, capsys):
    topics, qrels, results = collection.topics, collection.qrels, collection.results
    retriever = pt.Transformer.from_df(results.drop(columns="query").assign(score=0.0, rank=0))
    trainer = make(num_train_epochs=12, eval_steps=30, target="adaptive", measures=[nDCG @ 10, RR], verbose=True)
    (retriever >> trainer).fit(topics, qrels, topics, qrels)
    history = trainer.history
    assert list(history.columns) == [*PROGRESS, "nDCG@10", "RR"]
    gap = history["target"] - history["margin"]
    for falling in (history["loss"].dropna(), gap.dropna()):
        assert falling.iloc[-1] < falling.iloc[0] / 2
    before, after = pt.Experiment([encoder, trainer.encoder], results, qrels, ["ndcg"])["ndcg"]
    assert after > before + 0.1
    pd.testing.assert_frame_equal(trainer(results), trainer.encoder(results))
    bar = capsys.readouterr()
    assert bar.out == ""
    for shown in ("Training", "loss=", "margin=", "target=", "nDCG@10="):
        assert shown in bar.err


def test_the_same_seed_gives_the_same_model_and_the_first_encoder_stays(make, encoder, collection, capsys):
    frames = collection.results, collection.qrels
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    trainers = [make(max_steps=2)] * 2 + [make("other", max_steps=2, seed=2)]
    first, same, other = [trainer.fit(*frames).encoder.model_name for trainer in trainers]
    assert first == same != other
    assert not encoder.training_summary
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    silent = capsys.readouterr()
    assert silent.out == ""
    assert "Training" not in silent.err


def test_fit_writes_the_model_and_its_history(whole):
    folder = whole.output_dir
    assert {path.name for path in folder.iterdir()} == {"model", "history.csv", "history.png", "checkpoints"}
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), whole.history)
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "model" / "pt_meta.json").read_text())["training"]
    assert summary["data"]["triples"] == 40
    assert summary["loss"]["target"] == "listwise"
    assert (summary["precision"], summary["mining"]) == ("float32", None)
    assert summary["similarity"]["before"] == whole.history["similarity"][0]
    assert not {"valid_share", "adapter", "prompts", "processes", "collections"} & set(summary)


def test_three_libraries_read_the_model(whole, collection):
    folder = str(whole.output_dir / "model")
    texts = ["sort the table", "plot"]
    expected = whole.encoder.encode_docs(texts)
    for reader in (pt.Artifact.load(folder), pyterrier_dr.SBertBiEncoder(folder)):
        np.testing.assert_allclose(reader.encode_docs(texts), expected, atol=1e-5)
    np.testing.assert_allclose(SentenceTransformer(folder).encode_document(texts), expected, atol=1e-5)
    assert pt.Artifact.load(folder).model_name == whole.encoder.model_name


def test_a_trainer_is_a_transformer_and_says_what_needs_training(make, collection, conforms):
    trainer = make()
    conforms(trainer)
    for use in (lambda: trainer.encoder, trainer.plot, lambda: trainer(collection.results)):
        with pytest.raises(NotFittedError, match="fit_triples"):
            use()
    assert trainer.history.empty


def test_topics_draw_from_a_corpus_and_search_it(make, collection):
    """Also from a corpus that can be read only once."""
    topics, qrels = collection.topics, collection.qrels
    trainer = make(corpus=iter(collection.records), negatives=2).fit(topics, qrels, topics, qrels)
    summary = trainer.encoder.training_summary
    assert summary["data"]["triples"] == 40
    assert summary["evaluation"]["corpus"]
    assert (trainer.history["nDCG@10"].dropna() > 0).all()


def test_lengths_and_prompts_apply_in_training(language_model, tmp_path, seen):
    options = {"query_length": 4, "document_length": 6, "query_prompt": "query: ", "device": "cpu"}
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, **options)
    row = ("sort the rows of a table", "sort the rows of a table by column", "plot the mean of a matrix")
    SelfDistillTrainer(encoder, tmp_path / "run", verbose=False).fit_triples([row])
    assert seen[0] == [["query :"], ["sort the rows of"], ["plot the mean of"]]


def test_no_batch_mixes_data_sets_and_each_has_its_prompts(make, seen):
    prompts = {"one": {"query": "read: ", "document": "write: "}, "two": {"query": "plot: "}}
    trainer = make(prompts=prompts).fit_triples({"one": ONE, "two": TWO})
    assert sorted((len(batch), len(batch[0])) for batch in seen) == [(3, 5), (3, 8), (3, 8), (4, 6), (4, 8)]
    starts = {3: ["read :", "write :", "write :"], 4: ["plot :", "", "", ""]}
    for batch in seen:
        for texts, start in zip(batch, starts[len(batch)], strict=True):
            assert all(text.startswith(start) and text.count(":") == start.count(":") for text in texts)
    assert trainer.encoder.training_summary["data"]["triples"] == 35
    assert trainer.encoder.training_summary["prompts"] == prompts


def test_docpairs_train_with_texts_that_are_looked_up(make, encoder, collection, register, seen):
    """sentence-transformers adds the name of the data set to each row, which is not a text to monitor."""
    things = collection.things
    pairs = [(f"q{number}", f"sort-{thing}", f"plot-{things[number - 1]}") for number, thing in enumerate(things)]
    parts = {"docs": collection.corpus.to_numpy(), "queries": collection.topics.to_numpy(), "docpairs": pairs}
    sources = {name: register(name, **parts) for name in ("one", "two")}
    trainer = make(prompts={"one": {"query": "read: "}}).fit_triples(sources, store_texts=False)
    summary = trainer.encoder.training_summary
    assert summary["data"]["triples"] == 16
    assert {text for batch in seen for text in batch[1]} == {f"sort the {thing} by mean" for thing in things}
    texts = [f"{verb} the {thing} by mean" for verb in ("sort", "plot") for thing in things]
    assert summary["similarity"]["before"] == pytest.approx(mean_cosine(encoder.encode_docs(texts)), abs=1e-3)


SLIDING = pt.text.sliding("text", length=3, stride=2, prepend_attr=None)


def test_documents_become_their_best_passages(make, encoder, seen):
    """Each data set chooses with its prompts."""
    prompts = {"two": {"query": "write: read: plot: "}}
    trainer = make(passages=SLIDING, prompts=prompts).fit_triples({"one": ONE, "two": TWO})
    for part in trainer.encoder.training_summary["data"]["collections"].values():
        assert 0 < part["passages"]["divided"] <= part["passages"]["documents"]
    best = []
    for columns, rows, chooser in [(3, ONE, encoder), (4, TWO, encoder.with_prompts(**prompts["two"]))]:
        expected = set()
        for query, positive, *_ in rows:
            passages = SLIDING(pd.DataFrame([["d", positive]], columns=["docno", "text"]))["text"].tolist()
            scores = chooser.encode_docs(passages) @ chooser.encode_queries([query])[0]
            expected.add(passages[scores.argmax()])
        assert {text for batch in seen if len(batch) == columns for text in batch[1]} == expected
        best.append(expected)
    assert best[0] != best[1]


def test_labels_reach_the_loss(encoder, tmp_path):
    """The margins of a teacher decide what MarginMSELoss learns."""
    rows = [("sort", "sort the rows", "read a file"), ("plot", "plot a matrix", "write a table")] * 8
    margins = {}
    for teacher in (1.5, -1.5):
        frame = pd.DataFrame(rows, columns=["query", "positive", "negative"]).assign(label=teacher)
        options = {"loss": MarginMSELoss, "learning_rate": 1e-3, "num_train_epochs": 3, "verbose": False}
        trained = SelfDistillTrainer(encoder, tmp_path / str(teacher), **options).fit_triples(frame).encoder
        query, positive, negative = trained.encode_docs(rows[0])
        margins[teacher] = query @ positive - query @ negative
    assert margins[1.5] > margins[-1.5] + 0.1


# transformers 5.23 renames it, and 5.0 does not know the new name
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("adapter", [None, peft.LoraConfig(r=2)], ids=["all weights", "adapter"])
def test_less_memory_trains_the_same_model(make, encoder, adapter):
    for module in encoder.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    options = {"max_steps": 2, "logging_steps": 1, "learning_rate": 1e-4, "adapter": adapter}
    results = []
    for name, more in {"whole": {}, "less": {"mini_batch_size": 3, "gradient_checkpointing": True}}.items():
        trainer = make(name, **options, **more).fit_triples(TWO)
        vectors = trainer.encoder.encode_docs(["sort the rows", "plot"])
        results.append((trainer.history[["loss", "margin", "target"]].to_numpy(), vectors))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_an_adapter_is_trained_merged_and_written_alone(make, encoder, collection, satisfied, tmp_path):
    results, qrels = collection.results, collection.qrels
    options = {"adapter": peft.LoraConfig(r=2, lora_dropout=0.1), "learning_rate": 1e-2, "overwrite": True}
    before, weights = encoder.model_name, encoder.model.state_dict()
    trained = make(**options).fit(results, qrels, results, qrels).encoder
    assert encoder.model_name == before
    assert trained.training_summary["best_step"] > 0
    assert trained.training_summary["adapter"] == {"type": "LORA", "r": 2, "lora_dropout": 0.1}
    changed = [name for name, tensor in trained.model.state_dict().items() if not torch.equal(tensor, weights[name])]
    assert changed
    assert all("query" in name or "value" in name for name in changed)
    adapted = pt.Artifact.load(tmp_path / "run/adapter", dtype="float32")
    assert adapted.merge_adapter().model_name == trained.model_name
    assert pt.Artifact.load(tmp_path / "run/model").model_name == trained.model_name
    with pytest.raises(ValueError, match="merge_adapter"):
        SelfDistillTrainer(adapted, tmp_path / "again")
    # the untrained encoder competes too, and a run without an adapter leaves none
    assert make(max_steps=1, **options).fit(results, qrels, results, satisfied).encoder.model_name == before
    make(max_steps=1, overwrite=True).fit_triples(ONE)
    assert not (tmp_path / "run/adapter").exists()


class Harm(nn.Module):
    """A loss that nobody would train: it pulls all documents to one place, or pushes similar documents apart."""

    def __init__(self, harm, model):
        super().__init__()
        self.harm, self.model = harm, model

    def forward(self, features, labels=None):
        _, positive, negative = [self.model(column)["sentence_embedding"] for column in features]
        if self.harm == "collapse":
            return -(positive @ negative.T).mean()
        return (positive @ negative.T).diagonal().mean() - (positive @ positive.T).mean()


@pytest.mark.parametrize(
    ("harm", "learning_rate", "warnings"),
    [("collapse", 1e-2, ["collapse"]), ("forgetting", 1e-2, ["forgetting"]), ("forgetting", 1e-4, [])],
)
def test_the_monitor_warns_once_of_collapse_and_of_forgetting(make, collection, caplog, harm, learning_rate, warnings):
    rows = [(f"sort {thing}", f"sort the {thing}", f"sort a {thing}") for thing in collection.things] * 16
    trainer = make(loss=partial(Harm, harm), learning_rate=learning_rate, save_strategy="no").fit_triples(rows)
    similarity = trainer.encoder.training_summary["similarity"]
    assert similarity["before"] != similarity["after"]
    counts = {kind: caplog.text.count(f"{kind}: ") for kind in ("collapse", "forgetting")}
    assert max(counts.values()) == len(warnings)
    assert all(counts[kind] == 1 for kind in warnings)


@pytest.mark.parametrize(
    ("broken", "message"), [("loss", "nan in step 4.*lower learning_rate"), ("weights", "after step 5|nan in step 5")]
)
def test_what_is_not_finite_is_not_saved(make, collection, monkeypatch, broken, message):
    """A loss in the middle, or weights in the last step, after which no loss follows. Earlier results stay."""
    frames = collection.results, collection.qrels
    earlier = make(max_steps=1).fit(*frames)
    compute, steps = SelfDistillationLoss.forward, count(1)

    def forward(self, *arguments):
        step = next(steps)
        loss = compute(self, *arguments)
        if broken == "loss":
            return loss * float("nan") if step == 4 else loss
        if step == 5:
            next(self.model.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        return loss

    monkeypatch.setattr(SelfDistillationLoss, "forward", forward)
    with pytest.raises(FloatingPointError, match=message):
        make(overwrite=True, max_grad_norm=0, save_steps=2).fit(*frames)
    assert pt.Artifact.load(str(earlier.output_dir / "model")) == earlier.encoder
    last = earlier.output_dir / "checkpoints" / ("checkpoint-2" if broken == "loss" else "checkpoint-4")
    assert max(last.parent.glob("checkpoint-*")) == last
    assert all(weights.isfinite().all() for weights in SelfDistillBiEncoder(last).model.parameters())
