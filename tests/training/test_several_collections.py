"""Training with several collections at once: batches, validation, resuming, the monitor and the summary."""

import numpy as np
import pyterrier as pt
import pytest
import torch
from pyterrier.measures import nDCG

from pyterrier_selfdistill import SelfDistillationLoss
from pyterrier_selfdistill.data.triples import read_triples
from pyterrier_selfdistill.training import callbacks
from pyterrier_selfdistill.training.callbacks import _first_documents
from tests.training.together import PAIRS, QRELS, ROWS

ONE = [row[:3] for row in ROWS]
TWO = ROWS[:14]
SOURCES = {"one": ONE, "two": TWO}


@pytest.fixture
def seen(monkeypatch):
    """The number of columns and of rows of each batch that is trained with; TWO has a column more."""
    seen = []
    forward = SelfDistillationLoss.forward

    def record(self, features, labels=None):
        seen.append((len(features), len(features[0]["input_ids"])))
        return forward(self, features, labels)

    monkeypatch.setattr(SelfDistillationLoss, "forward", record)
    return seen


def test_no_batch_mixes_collections_and_all_rows_train(make, seen):
    trainer = make().fit_triples(SOURCES)
    assert sorted(seen) == [(3, 5), (3, 8), (3, 8), (4, 6), (4, 8)]
    assert trainer.encoder.training_summary["data"]["triples"] == 35
    assert trainer.encoder.training_summary["steps"] == 5


def test_round_robin_takes_turns_until_one_is_used_up(make, seen):
    make(multi_dataset_batch_sampler="round_robin").fit_triples(SOURCES)
    assert [columns for columns, _ in seen] == [3, 4, 3, 4]


@pytest.mark.parametrize("sampler", ["proportional", "round_robin"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(make, interrupted, sampler):
    options = {"num_train_epochs": 3, "save_steps": 2, "multi_dataset_batch_sampler": sampler}
    whole = make("whole", **options).fit_triples(SOURCES)
    with interrupted():
        make(**options).fit_triples(SOURCES)
    resumed = make(**options, resume=True).fit_triples(SOURCES)
    for name, weights in whole.encoder.model.state_dict().items():
        assert torch.equal(resumed.encoder.model.state_dict()[name], weights)
    with pytest.raises(ValueError, match="other settings: data was"):
        make(**options, resume=True).fit_triples({"one": ONE})


def test_the_mean_over_collections_chooses_the_best_step(make, satisfied, collection):
    """One collection cannot get better, the other has a query less."""
    fewer = QRELS[QRELS["qid"] != "table"]
    results = {"one": PAIRS, "out of domain": collection.results}
    trainer = make(num_train_epochs=2).fit_triples(SOURCES, results, {"one": fewer, "out of domain": satisfied})
    history = trainer.history.dropna(subset="nDCG@10")
    assert list(history.columns[-3:]) == ["nDCG@10", "nDCG@10 (one)", "nDCG@10 (out of domain)"]
    np.testing.assert_allclose(history["nDCG@10"], history[history.columns[-2:]].mean(axis=1))
    assert history["nDCG@10 (out of domain)"].iloc[0] == 1
    summary = trainer.encoder.training_summary
    assert summary["best_step"] == history["step"][history["nDCG@10"].idxmax()]
    assert summary["evaluation"]["collections"]["one"]["queries"] == 6
    assert summary["evaluation"]["collections"]["out of domain"]["queries"] == 8
    card = (trainer.output_dir / "model" / "README.md").read_text()
    assert "| Data, one | 21 triples of 21 queries, from list, 1 negatives each" in card
    assert f"at step {summary['best_step']} (mean over collections) |" in card
    assert "| Data, two | 14 triples of 14 queries, from list, 2 negatives each" in card


def test_one_collection_has_no_names_in_what_is_recorded(make):
    trainer = make().fit_triples(ONE, PAIRS, QRELS)
    summary = trainer.encoder.training_summary
    assert "collections" not in summary["data"]
    assert "collections" not in summary["evaluation"]
    assert trainer.history.columns[-1] == "nDCG@10"


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (({"one": PAIRS}, QRELS), "must both be of one collection, or both name collections"),
        (({"one": PAIRS}, {"two": QRELS}), r"of the same collections, got \['one'\] and \['two'\]"),
        (({}, {}), "valid_topics_or_results must name at least one collection"),
        (({"one": PAIRS.head(0)}, {"one": QRELS}), "(?s).*in the collection 'one'"),
    ],
)
def test_bad_validation_is_an_error_before_training(make, tmp_path, validation, message):
    with pytest.raises(ValueError, match=message):
        make().fit_triples(SOURCES, *validation)
    assert not (tmp_path / "run").exists()


def test_a_collection_that_makes_no_batch_is_an_error(make):
    with pytest.raises(ValueError, match="dataloader_drop_last=True leaves nothing of 2 triples"):
        make(dataloader_drop_last=True).fit_triples({"one": ONE, "two": TWO[:2]})


def test_the_monitor_has_documents_of_all_collections():
    triples = read_triples({"one": ONE, "two": [("plot", "plot a matrix", "query a value")]})
    documents = _first_documents(triples.dataset, 8)
    assert len(documents) == 6
    assert {"plot a matrix", "query a value"} < set(documents)


# --- prompts of collections -----------------------------------------------------------------------------------------

PROMPTS = {"one": {"query": "read: ", "document": "write: "}, "two": {"query": "plot: "}}


def first_words(encoder, monkeypatch):
    """Record the first two words of the first row of each column, by the number of columns."""
    seen = {}
    forward = SelfDistillationLoss.forward

    def record(self, features, labels=None):
        words = [encoder.model.tokenizer.decode(column["input_ids"][0][1:3]) for column in features]
        seen.setdefault(len(features), set()).update(enumerate(words))
        return forward(self, features, labels)

    monkeypatch.setattr(SelfDistillationLoss, "forward", record)
    return seen


def test_each_collection_trains_and_is_evaluated_with_its_prompts(make, encoder, monkeypatch):
    seen = first_words(encoder, monkeypatch)
    validation = {"one": PAIRS, "three": PAIRS}, {"one": QRELS, "three": QRELS}
    trainer = make(prompts=PROMPTS, load_best_model_at_end=False).fit_triples(SOURCES, *validation)
    assert seen[3] == {(0, "read :"), (1, "write :"), (2, "write :")}
    assert {words for column, words in seen[4] if column == 0} == {"plot :"}
    assert {words.split()[1] for column, words in seen[4] if column > 0} == {"the"}
    measures = trainer.history.iloc[-1]
    for name, prompts in {"one": PROMPTS["one"], "three": {}}.items():
        ranked = trainer.encoder.with_prompts(**prompts)(PAIRS)
        measured = pt.Evaluate(ranked, QRELS, [nDCG @ 10])["nDCG@10"]
        assert measures[f"nDCG@10 ({name})"] == pytest.approx(measured, abs=1e-9)
    assert trainer.encoder.training_summary["prompts"] == PROMPTS


def test_names_of_collections_are_no_texts(make, names, monkeypatch):
    """sentence-transformers adds them to rows, also to those whose texts are looked up."""
    sources = {"one": names["dataset"], "two": names["dataset"]}
    trainer = make(prompts={"one": PROMPTS["one"]}, verbose=True)
    texts = []

    def record(dataset, number):
        texts.extend(_first_documents(dataset, number))
        return texts

    monkeypatch.setattr(callbacks, "_first_documents", record)
    trainer.fit_triples(sources, store_texts=False)
    assert texts
    assert all(" the " in text for text in texts)
    assert trainer.encoder.training_summary["data"]["triples"] == 16


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"query": "read: "}, "prompts must be prompts by collection and role"),
        ({"one": {"positive": "read: "}}, "prompts must be prompts by collection and role"),
        ({"three": {"query": "read: "}}, r"got those of \['three'\], and .* the collections \['one', 'two'\]"),
    ],
)
def test_bad_prompts_are_errors(make, prompts, message):
    with pytest.raises(ValueError, match=message):
        make(prompts=prompts).fit_triples(SOURCES)


def test_prompts_of_collections_need_collections(make, collection):
    with pytest.raises(ValueError, match=r"got those of \['one', 'two'\].*query_prompt and document_prompt"):
        make(prompts=PROMPTS).fit(collection.results, collection.qrels)
