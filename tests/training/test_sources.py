"""What a trainer is given: that it becomes the right triples, or an error that says what to give."""

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_selfdistill import Negatives
from pyterrier_selfdistill.data.triples import read_triples
from pyterrier_selfdistill.training.mining import JudgedQueries, with_passages
from tests.training.together import ROWS

TEXTS = [("sort", "sort the rows", "plot a matrix")]


def positives_of(collection):
    """The texts of the relevant documents of each query."""
    relevant = collection.qrels[collection.qrels["label"] > 0].merge(collection.results, on=["qid", "docno"])
    return set(zip(relevant["query"], relevant["text"], strict=True))


def test_draw_from_results_needs_no_corpus(collection):
    triples = JudgedQueries(collection.results, collection.qrels).draw()
    assert triples.summary["source"] == "results"
    assert set(zip(triples.dataset["query"], triples.dataset["positive"], strict=True)) == positives_of(collection)


def test_draw_from_topics_takes_the_corpus(collection):
    triples = JudgedQueries(collection.topics, collection.qrels, collection.corpus).draw()
    assert triples.summary["source"] == "topics"
    assert set(zip(triples.dataset["query"], triples.dataset["positive"], strict=True)) == positives_of(collection)


def test_draw_from_topics_without_a_corpus_says_what_to_give(collection):
    with pytest.raises(ValueError, match="no negatives.*put a retriever.*corpus="):
        JudgedQueries(collection.topics, collection.qrels).draw()


def test_mine_draws_from_what_the_encoder_finds(collection, encoder):
    """Of the first eight results; another step draws other ones."""
    negatives = Negatives(2, range_max=8)
    queries = JudgedQueries(collection.topics, collection.qrels, collection.corpus, negatives=negatives)
    mined = queries.mine(encoder, step=1)
    assert mined.summary["source"] == "results"
    scored = encoder(collection.results)
    first = scored[scored["rank"] < 8]
    allowed = set(zip(first["query"], first["text"], strict=True)) - positives_of(collection)
    for name in ("negative_1", "negative_2"):
        assert set(zip(mined.dataset["query"], mined.dataset[name], strict=True)) <= allowed
    assert queries.mine(encoder, step=1).summary["fingerprint"] == mined.summary["fingerprint"]
    assert queries.mine(encoder, step=2).summary["fingerprint"] != mined.summary["fingerprint"]


def test_mine_takes_queries_of_the_same_text_for_one(collection, encoder):
    """A triple does not say which of them it is of: what is relevant to either is drawn for none."""
    twin = collection.topics[collection.topics["qid"] == "q0"].assign(qid="twin")
    topics = pd.concat([collection.topics, twin])
    qrels = collection.qrels
    relevant = qrels[(qrels["qid"] == "q0") & (qrels["label"] > 0)]
    other = pd.DataFrame([["twin", "plot-file", 1], ["twin", relevant["docno"].iloc[0], 1]], columns=list(relevant))
    judged = pd.concat([qrels, other])
    queries = JudgedQueries(topics, judged, collection.corpus, negatives=Negatives(20))
    mined = queries.mine(encoder, step=1).dataset.to_pandas()
    of_both = mined[mined["query"] == "mean table"]
    assert set(of_both["positive"]) == {f"{verb} the table by mean" for verb in collection.verbs} | {
        "plot the file by mean"
    }
    negatives = set(of_both.filter(like="negative").to_numpy().ravel())
    assert not negatives & set(of_both["positive"])


def test_mine_passes_over_as_many_results_as_are_never_to_be_drawn(encoder):
    """With more results never to draw than are searched for by default."""
    corpus = [{"docno": f"d{number}", "text": f"sort the table {number}"} for number in range(150)]
    topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
    qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
    queries = JudgedQueries(topics, qrels, corpus, negatives=Negatives(range_min=110))
    assert queries.mine(encoder, step=1).summary["triples"] == 1


def test_hold_out_divides_queries_and_their_judgements(collection):
    results, qrels = collection.results, collection.qrels
    # of no query, and of another label
    qrels = pd.concat([qrels, pd.DataFrame([["q99", "plot-file", 1]], columns=list(qrels))])
    training, valid, valid_qrels = JudgedQueries(results, qrels, min_label=2).hold_out(0.4)
    held_out = set(valid["qid"])
    assert 0 < len(held_out) < 8
    assert set(training.topics_or_results["qid"]) == set(results["qid"]) - held_out
    assert len(training.topics_or_results) + len(valid) == len(results)
    assert set(valid_qrels["qid"]) == held_out
    assert set(training.qrels["qid"]) == set(qrels["qid"]) - held_out
    trained = set(training.draw().dataset["query"])
    assert trained.isdisjoint(valid["query"])
    assert training.min_label == 2


def test_hold_out_goes_by_the_seed(collection):
    topics = pd.DataFrame({"qid": [str(number) for number in range(200)]}).assign(
        query=lambda frame: "q" + frame["qid"]
    )
    qrels = topics[["qid"]].assign(docno="d1", label=1)
    held_out = []
    for seed in (42, 42, 7):
        _, valid, _ = JudgedQueries(topics, qrels, seed=seed).hold_out(0.1)
        held_out.append(set(valid["qid"]))
    assert held_out[0] == held_out[1]
    assert len(held_out[0] & held_out[2]) < len(held_out[0]) / 2
    assert 10 <= len(held_out[0]) <= 30


def test_hold_out_keeps_queries_of_the_same_text_together():
    """Else what is evaluated with would be trained with too."""
    topics = pd.DataFrame({"qid": [str(number) for number in range(60)]})
    topics["query"] = [f"sort {number % 20}" for number in range(60)]
    qrels = topics[["qid"]].assign(docno="d1", label=1)
    training, valid, _ = JudgedQueries(topics, qrels).hold_out(0.3)
    assert len(valid) % 3 == 0
    assert not set(valid["query"]) & set(training.topics_or_results["query"])


def test_hold_out_needs_relevant_documents_on_both_sides(collection):
    topics, qrels = collection.topics, collection.qrels
    of_one = qrels[qrels["qid"] == "q0"]
    with pytest.raises(ValueError, match=r"valid_share=0.4 leaves [01] queries.*another share or seed, more queries"):
        JudgedQueries(topics, of_one).hold_out(0.4)
    with pytest.raises(ValueError, match="leaves 0 queries with relevant documents to train with and 0 to evaluate"):
        JudgedQueries(topics, qrels, min_label=3).hold_out(0.4)


def test_read_triples_tells_texts_identifiers_and_docpairs_apart(names, collection):
    topics = collection.topics
    identifiers = [("q0", "sort-table", "plot-file")]
    assert read_triples(TEXTS).summary["kind"] == "texts"
    assert read_triples(identifiers, topics=topics, corpus=collection.corpus).summary["kind"] == "identifiers"
    assert read_triples(names["dataset"]).summary["kind"] == "docpairs"


def test_read_triples_says_what_to_give(collection):
    with pytest.raises(ValueError, match="topics= says that the source holds identifiers.*corpus="):
        read_triples(TEXTS, topics=collection.topics)
    frame = pd.DataFrame(TEXTS, columns=["query", "positive", "negative"])
    with pytest.raises(ValueError, match="max_pairs_per_query=2 needs .*the source is a DataFrame"):
        read_triples(frame, max_pairs_per_query=2)


SLIDING = pt.text.sliding("text", length=3, stride=2, prepend_attr=None)


@pytest.mark.parametrize("kind", ["judged", "triples", "several"])
def test_passages_are_trained_with(make, encoder, collection, kind):
    trainer = make(passages=SLIDING, max_steps=1)
    if kind == "judged":
        trainer.fit(collection.results, collection.qrels)
    elif kind == "triples":
        trainer.fit_triples(ROWS)
    else:
        trainer.fit_triples({"one": ROWS, "two": ROWS[:9]})
    data = trainer.encoder.training_summary["data"]
    for part in data.get("collections", {"": data}).values():
        assert 0 < part["passages"]["divided"] <= part["passages"]["documents"]
        assert part["passages"]["rows"] == part["triples"]


def test_each_collection_chooses_passages_with_its_prompts(encoder):
    data = read_triples({"one": ROWS, "two": ROWS})
    prompts = {"two": {"query": "write: read: plot: "}}
    chosen = with_passages(data, SLIDING, encoder, prompts).dataset
    for name, dataset in chosen.items():
        prompted = encoder.with_prompts(**prompts.get(name, {}))
        row, (query, positive, *_) = dataset[0], ROWS[0]
        passages = SLIDING(pd.DataFrame([["d", positive]], columns=["docno", "text"]))["text"].tolist()
        scores = prompted.encode_docs(passages) @ prompted.encode_queries([query])[0]
        assert row["positive"] == passages[scores.argmax()]
    assert chosen["one"][:] != chosen["two"][:]


def test_passages_are_no_rounds(make, collection):
    with pytest.raises(ValueError, match="rounds=2 mines whole documents"):
        make(passages=SLIDING, rounds=2, corpus=collection.corpus)
    with pytest.raises(TypeError, match="passages must be an instance of Transformer"):
        make(passages="sliding")
