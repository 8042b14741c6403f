"""The trainer: what it learns, what it leaves alone, and what it says when it cannot train."""

import json

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from ir_measures import RR, nDCG
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MarginMSELoss, MultipleNegativesRankingLoss

from pyterrier_selfdistill import (
    AdaptiveMarginLoss,
    SelfDistillationLoss,
    SelfDistillBiEncoder,
    SelfDistillTrainer,
)
from pyterrier_selfdistill.training.history import PROGRESS
from pyterrier_selfdistill.training.mining import JudgedQueries


def test_fit_learns_in_a_pipeline(make, encoder, collection):
    topics, qrels, results = collection.topics, collection.qrels, collection.results
    retriever = pt.Transformer.from_df(results.drop(columns="query").assign(score=0.0, rank=0))
    trainer = make(num_train_epochs=20, target="adaptive", measures=[nDCG @ 10, RR])
    (retriever >> trainer).fit(topics, qrels, topics, qrels)

    history = trainer.history
    assert list(history.columns) == [*PROGRESS, "nDCG@10", "RR"]
    losses = history["loss"].dropna()
    assert losses.iloc[-1] < losses.iloc[0] / 2
    assert history["target"].dropna().between(0, 1).all()
    gap = (history["target"] - history["margin"]).dropna()
    assert gap.iloc[-1] < gap.iloc[0] / 2

    before, after = pt.Experiment([encoder, trainer.encoder], results, qrels, ["ndcg"])["ndcg"]
    assert after > before + 0.1
    pd.testing.assert_frame_equal(trainer(results), trainer.encoder(results))


def test_matryoshka_dims_are_trained_and_recorded(make, collection):
    results, qrels = collection.results, collection.qrels
    options = {"max_steps": 2, "logging_steps": 1, "bf16": False}
    nested = make("nested", matryoshka_dims=[32, 4], matryoshka_weights=[1, 2], **options).fit(results, qrels)
    plain = make("plain", **options).fit(results, qrels)
    # of the same first batch: the whole vectors' scale, and a loss more
    first, same = (trainer.history.dropna(subset="loss").iloc[0] for trainer in (nested, plain))
    assert first["scale"] == pytest.approx(same["scale"], rel=1e-4)
    assert first["loss"] > same["loss"] * 1.5
    loss = nested.encoder.training_summary["loss"]
    assert (loss["matryoshka_dims"], loss["matryoshka_weights"]) == ([32, 4], [1, 2])
    assert not [name for name in plain.encoder.training_summary["loss"] if "matryoshka" in name]


def test_fit_leaves_the_first_encoder_as_it_was(make, encoder, collection):
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    trainer = make().fit(collection.results, collection.qrels)
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert trainer.encoder != encoder
    assert not encoder.training_summary


def test_fit_gives_the_same_model_for_the_same_seed(make, collection):
    results, qrels = collection.results, collection.qrels
    first = make("first", seed=1).fit(results, qrels).encoder
    same = make("same", seed=1).fit(results, qrels).encoder
    other = make("other", seed=2).fit(results, qrels).encoder
    assert first.model_name == same.model_name
    assert first.model_name != other.model_name


def test_fit_again_starts_anew(make, collection):
    trainer = make().fit(collection.results, collection.qrels)
    first = trainer.encoder.model_name
    assert trainer.fit_triples([("sort", "sort the rows", "plot")] * 50).encoder.model_name != first
    assert trainer.fit(collection.results, collection.qrels).encoder.model_name == first


def test_fit_writes_the_model_and_its_history(make, collection, tmp_path):
    results, qrels = collection.results, collection.qrels
    trainer = make().fit(results, qrels, results, qrels)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {"model", "history.csv", "history.png", "checkpoints"}
    assert pd.read_csv(folder / "history.csv")["step"].tolist() == trainer.history["step"].tolist()
    assert (folder / "history.png").read_bytes().startswith(b"\x89PNG")
    loaded = pt.Artifact.load(str(folder / "model"))
    assert loaded.model_name == trainer.encoder.model_name
    summary = json.loads((folder / "model" / "pt_meta.json").read_text())["training"]
    assert summary["data"]["triples"] == 40
    assert summary["loss"]["target"] == "calibrated"
    assert summary["best_measure"]["name"] == "nDCG@10"
    assert "Adaptive Relevance Margins" in (folder / "model" / "README.md").read_text()
    assert [axes.get_title() for axes in trainer.plot().axes] == [
        "Loss",
        "Margin against target",
        "Scale",
        "Evaluation",
    ]


@pytest.mark.parametrize("bf16", [False, True])
def test_the_saved_model_computes_what_the_trained_encoder_does(make, collection, tmp_path, bf16):
    """Whatever the precision in which it was trained."""
    encoder = make(bf16=bf16).fit(collection.results, collection.qrels).encoder
    texts = ["sort the table"]
    model = SentenceTransformer(str(tmp_path / "run" / "model"))
    np.testing.assert_allclose(model.encode_document(texts), encoder.encode_docs(texts), atol=1e-6)


def test_weights_in_16_bits_are_trained_in_32(encoder, collection, tmp_path):
    encoder.model.bfloat16()
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", verbose=False)
    trainer.fit(collection.results, collection.qrels)
    assert {parameter.dtype for parameter in trainer.encoder.model.parameters()} == {torch.float32}
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.bfloat16}


# --- data -----------------------------------------------------------------------------------------------------------


def test_fit_topics_draws_from_the_corpus_and_searches_it(make, collection):
    topics, qrels = collection.topics, collection.qrels
    trainer = make(corpus=collection.corpus, negatives=2).fit(topics, qrels, topics, qrels)
    assert trainer.encoder.training_summary["data"]["triples"] == 40
    assert trainer.history["nDCG@10"].notna().sum() > 5


def test_fit_takes_a_corpus_that_can_be_read_once(make, collection):
    topics, qrels = collection.topics, collection.qrels
    trainer = make(corpus=iter(collection.records)).fit(topics, qrels, topics, qrels)
    assert trainer.history["nDCG@10"].dropna().iloc[-1] > 0


def test_fit_takes_the_text_of_positives_that_were_not_retrieved_from_the_corpus(make, collection):
    results, qrels = collection.results, collection.qrels
    few = results[~results["docno"].str.startswith("plot-")]
    data = make("without").fit(few, qrels).encoder.training_summary["data"]
    assert (data["triples"], data["dropped"]) == (32, 288)
    data = make("with", corpus=collection.corpus).fit(few, qrels).encoder.training_summary["data"]
    assert data["triples"] == 40


def test_fit_takes_labels_of_min_label_and_more_for_positive(make, collection):
    qrels = collection.qrels
    is_plot = qrels["docno"].str.startswith("plot-")
    graded = qrels.assign(label=qrels["label"].where(is_plot, qrels["label"] // 2))
    summary = make(min_label=2).fit(collection.results, graded).encoder.training_summary["data"]
    assert (summary["read"], summary["triples"]) == (320, 8)


def test_lengths_and_prompts_apply_in_training(language_model, tmp_path, monkeypatch):
    encoder = SelfDistillBiEncoder.from_pretrained(
        language_model, query_length=4, document_length=6, query_prompt="query: ", device="cpu"
    )
    seen = []
    forward = SelfDistillationLoss.forward

    def record(self, features, labels=None):
        seen.append(features)
        return forward(self, features, labels)

    monkeypatch.setattr(SelfDistillationLoss, "forward", record)
    query = "sort the rows of a table"
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", verbose=False)
    trainer.fit_triples([(query, "sort the rows of a table by column", "plot the mean of a matrix")])
    widths = [features["input_ids"].shape[1] for features in seen[0]]
    assert widths == [4, 6, 6]
    tokens = encoder.model.tokenizer.convert_ids_to_tokens(seen[0][0]["input_ids"][0])
    assert tokens[1:3] == ["query", ":"]


@pytest.mark.parametrize("kind", ["results", "topics"])
def test_valid_share_trains_without_the_queries_that_it_evaluates_with(make, collection, kind):
    """Candidates are ranked if there are results, and the corpus is searched if not."""
    frame, qrels = getattr(collection, kind), collection.qrels
    trainer = make(valid_share=0.4, corpus=collection.corpus, rounds=2).fit(frame, qrels)
    training, valid, valid_qrels = JudgedQueries(frame, qrels).hold_out(0.4)
    summary = trainer.encoder.training_summary
    assert summary["valid_share"] == 0.4
    assert summary["data"]["queries"] == training.topics_or_results["qid"].nunique() < 8
    assert summary["evaluation"]["queries"] == valid["qid"].nunique() == 8 - summary["data"]["queries"]
    assert ("corpus" in summary["evaluation"]) == (kind == "topics")
    given = make("given", corpus=collection.corpus, rounds=2)
    given.fit(training.topics_or_results, training.qrels, valid, valid_qrels)
    assert given.encoder == trainer.encoder
    pd.testing.assert_frame_equal(given.history, trainer.history)


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"target": 0.3}, {"target": "adaptive", "in_batch": True}, {"target": "distributed", "error": "soft"}],
    ids=str,
)
def test_options_of_the_loss(make, collection, options):
    trainer = make(**options).fit(collection.results, collection.qrels)
    used = trainer.encoder.training_summary["loss"]
    assert options.items() <= used.items()


def test_loss_takes_any_options_of_the_adaptive_margin_loss(make, collection):
    loss = AdaptiveMarginLoss("adaptive", detach_target=True)
    trainer = make(loss=loss).fit(collection.results, collection.qrels)
    assert trainer.encoder.training_summary["loss"]["detach_target"] is True


def test_loss_takes_losses_of_sentence_transformers(make, collection):
    trainer = make(loss=MultipleNegativesRankingLoss).fit(collection.results, collection.qrels)
    assert trainer.encoder.training_summary["loss"]["name"] == "MultipleNegativesRankingLoss"
    assert trainer.history["margin"].isna().all()
    assert trainer.history["loss"].notna().any()
    assert trainer.plot().axes[-1].get_title() == "Loss"


def test_labels_of_triples_reach_the_loss(encoder, tmp_path):
    """A teacher's margins decide what MarginMSELoss learns."""
    rows = [("sort", "sort the rows", "read a file"), ("plot", "plot a matrix", "write a table")] * 8
    margins = {}
    for teacher in (1.5, -1.5):
        frame = pd.DataFrame(rows, columns=["query", "positive", "negative"]).assign(label=teacher)
        options = {"loss": MarginMSELoss, "learning_rate": 1e-3, "num_train_epochs": 3, "verbose": False}
        trained = SelfDistillTrainer(encoder, tmp_path / str(teacher), **options).fit_triples(frame).encoder
        query, positive, negative = trained.encode_docs(rows[0])
        margins[teacher] = query @ positive - query @ negative
    assert margins[1.5] > margins[-1.5] + 0.1


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r, q: (r.drop(columns="text"), q), ValueError, "expected a column 'text'.*get_text"),
        (lambda r, q: (r, q.assign(qid=7)), ValueError, "got none: 8 topics.*'q0'.*strings"),
        (lambda r, q: (r.assign(qid=7), q.assign(qid=7)), TypeError, "topics must be a string.*in 320"),
        (lambda r, q: (r, q.assign(docno=7)), TypeError, "docno of qrels must be a string.*in 320"),
        (lambda r, q: (r, q.assign(label="1")), TypeError, "labels of qrels must be numbers.*got (str|object)"),
        (lambda r, q: (r, q.assign(label=[None] + [1.0] * 319)), TypeError, "1 of 320 missing"),
        (lambda r, q: (r, q.assign(label=0)), ValueError, "label of 1 or more, got none among the 320.*relevant"),
        (lambda r, q: (r, q.drop(columns="label")), ValueError, r"\['label'\] missing"),
        (lambda r, q: (r.assign(text=7), q), TypeError, "'text' must hold a string.* in 320 of 320 rows"),
        (lambda r, q: (r.assign(text=None), q), TypeError, "'text' must hold a string.* in 320 of 320 rows"),
        (lambda r, q: (r.assign(text="  "), q), ValueError, "'text' must hold a text.* in 320 of 320 rows"),
        (lambda r, q: (r, q.assign(label=1)), ValueError, "no triples.*320 x positive with fewer than 1 neg"),
        (lambda r, q: (r[r.docno == "x"], q), ValueError, "got none: 0 topics"),
        (
            lambda r, q: (r[(r.qid == "q0") & ~r.docno.str.endswith("-table")], q),
            ValueError,
            "no triples.*5 x positive without text.*corpus=",
        ),
        (lambda r, q: (r[["qid", "query"]].drop_duplicates(), q), ValueError, "no negatives.*corpus="),
    ],
)
def test_fit_says_what_cannot_be_trained_with(make, collection, change, error, message, tmp_path):
    with pytest.raises(error, match=message):
        make().fit(*change(collection.results, collection.qrels))
    assert not (tmp_path / "run").exists()


def test_fit_triples_does_not_mine(make, collection):
    with pytest.raises(ValueError, match="rounds=2 mines hard negatives.*give topics and qrels to fit"):
        make(rounds=2, corpus=collection.corpus).fit_triples([("sort", "sort the rows", "plot")])


def test_valid_share_says_what_it_cannot_hold_out(make, collection, tmp_path):
    results, qrels = collection.results, collection.qrels
    for frames in ((results, qrels), (results, None), (None, qrels)):
        with pytest.raises(ValueError, match=r"valid_share=0.5 holds out.*were given too; leave one of them out"):
            make(valid_share=0.5).fit(results, qrels, *frames)
    with pytest.raises(
        ValueError, match=r"valid_share=0.5 .*triples do not say.*give validation topics.*split_queries"
    ):
        make(valid_share=0.5).fit_triples([("sort", "sort the rows", "plot")])
    one = results[results["qid"] == "q0"]
    with pytest.raises(ValueError, match=r"leaves [01] queries .* and [01] to evaluate with.*more queries"):
        make(valid_share=0.5).fit(one, qrels)
    for share in (0, 1, -0.1, "0.1", True, float("nan")):
        with pytest.raises(ValueError, match="valid_share must be a number between 0 and 1, such as 0.1, got"):
            make(valid_share=share)
    assert not (tmp_path / "run").exists()
