"""What a trainer is given: that it becomes the right triples, or an error that says what to give."""

import pandas as pd
import pytest

from pyterrier_selfdistill import Negatives
from pyterrier_selfdistill.data.triples import PairOptions
from pyterrier_selfdistill.training.sources import JudgedQueries, read_triples

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


def test_read_triples_tells_texts_identifiers_and_docpairs_apart(names, collection):
    topics = collection.topics
    identifiers = [("q0", "sort-table", "plot-file")]
    options = PairOptions()
    assert read_triples(TEXTS, None, None, options).summary["kind"] == "texts"
    assert read_triples(identifiers, topics, collection.corpus, options).summary["kind"] == "identifiers"
    assert read_triples(names["dataset"], None, None, options).summary["kind"] == "docpairs"


def test_read_triples_says_what_to_give(collection):
    with pytest.raises(ValueError, match="topics= says that the source holds identifiers.*corpus="):
        read_triples(TEXTS, collection.topics, None, PairOptions())
    frame = pd.DataFrame(TEXTS, columns=["query", "positive", "negative"])
    with pytest.raises(ValueError, match="max_pairs_per_query=2 needs .*the source is a DataFrame"):
        read_triples(frame, None, None, PairOptions(max_pairs_per_query=2))
