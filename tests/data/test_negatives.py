"""Judged queries: drawn negatives are never positives and the same each time; splits are the same everywhere."""

import zlib

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_selfdistill import Negatives, split_queries
from pyterrier_selfdistill.data.negatives import from_results, from_topics

identifiers = st.integers(0, 5).map(str)


def qrels_of(*rows):
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


@pytest.fixture
def qrels():
    return qrels_of(("1", "d1", 1), ("1", "d2", 2), ("1", "d3", 0), ("2", "d4", 1))


@pytest.fixture
def results(topics):
    """Twelve results for each query, in another order than by rank."""
    rows = [(q, t, f"d{i}", f"text {i}", i, 12.0 - i) for q, t in topics.to_numpy() for i in range(12)]
    frame = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "rank", "score"])
    return frame.sample(frac=1, random_state=0)


def drawn_over_seeds(results, qrels, negatives):
    """The texts that 8 seeds draw."""
    drawn = set()
    for seed in range(8):
        drawn.update(from_results(results, qrels, negatives=negatives, seed=seed).dataset["negative"])
    return drawn


@settings(deadline=None, max_examples=30)
@given(
    retrieved=st.lists(st.tuples(identifiers, identifiers, st.floats(-1, 1)), min_size=1, max_size=30),
    judged=st.lists(
        st.tuples(identifiers, identifiers, st.integers(-1, 3)), min_size=1, max_size=30, unique_by=lambda row: row[:2]
    ),
    copies=st.dictionaries(identifiers, identifiers, max_size=3),
    number=st.integers(1, 3),
    range_min=st.integers(0, 2),
    range_max=st.none() | st.integers(5, 8),
    relative_margin=st.none() | st.floats(0, 1),
    min_label=st.integers(1, 2),
    seed=st.integers(0, 3),
)
def test_from_results_never_draws_a_positive(
    texts_of, retrieved, judged, copies, number, range_min, range_max, relative_margin, min_label, seed
):
    """Nor another document with its text; and every judgement is accounted for."""
    text_of = {document: f"text {copies.get(document, document)}" for document in map(str, range(6))}
    rows = [(q, f"query {q}", d, text_of[d], score) for q, d, score in retrieved]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])
    with_text = set(results["docno"])
    relevant = {(q, d) for q, d, label in judged if label > 0}
    relevant_texts = {(f"query {q}", text_of[d]) for q, d in relevant if d in with_text}
    positives = {(f"query {q}", text_of[d]) for q, d, label in judged if label >= min_label}
    others = {(f"query {q}", text_of[d]) for q, d, _ in retrieved if (q, d) not in relevant}
    negatives = Negatives(number, range_min=range_min, range_max=range_max, relative_margin=relative_margin)
    try:
        triples = from_results(results, qrels_of(*judged), negatives=negatives, min_label=min_label, seed=seed)
    except ValueError:
        return  # there was nothing to make triples of
    for query, positive, *drawn in texts_of(triples):
        assert (query, positive) in positives
        assert len(set(drawn)) == number
        assert {(query, negative) for negative in drawn} <= others - relevant_texts
    assert triples.summary["triples"] + triples.summary["dropped"] == triples.summary["read"] == len(judged)


def test_draws_are_the_same_on_every_machine_and_with_every_release(topics, qrels, corpus, texts_of):
    results = topics.merge(pd.DataFrame(corpus[:30]), how="cross")
    drawn = {
        "topics": from_topics(topics, qrels, corpus, seed=42),
        "few documents": from_topics(topics, qrels, corpus[:8], seed=42),
        "results": from_results(results, qrels, seed=42),
    }
    expected = {"topics": [0, 23, 74], "few documents": [5, 4, 5], "results": [3, 29, 29]}
    for name, triples in drawn.items():
        texts = [f"text {number}" for number in expected[name]]
        assert texts_of(triples) == list(
            zip(["sort", "sort", "plot"], ["text 1", "text 2", "text 4"], texts, strict=True)
        )
    other = texts_of(from_topics(topics, qrels, corpus, seed=43))
    assert other != texts_of(drawn["topics"])
    part = texts_of(from_topics(topics.iloc[1:], qrels.iloc[::-1], iter(corpus)))
    assert part == [row for row in texts_of(drawn["topics"]) if row[0] == "plot"]


def test_summaries_count_judgements_that_are_no_triples(topics, results, qrels, corpus):
    triples = from_topics(topics, qrels, pd.DataFrame(corpus), negatives=Negatives(3))
    assert triples.dataset.column_names == ["query", "positive", "negative_1", "negative_2", "negative_3"]
    fingerprint = triples.summary.pop("fingerprint")
    assert fingerprint == from_topics(topics, qrels, corpus, negatives=Negatives(3)).summary["fingerprint"]
    nothing = {"number": 0, "share": 0.0}
    assert triples.summary == {
        "source": "topics",
        "seed": 42,
        "negatives_from": {"number": 3, "range_min": 0, "range_max": None, "relative_margin": None},
        "queries_without_positives": 0,
        "unmatched": {"queries": nothing, "judgements": nothing},
        **{"read": 4, "triples": 3, "dropped": 1, "queries": 2, "positives": 3, "negatives": 3},
    }
    other = qrels.replace({"qid": {"2": "3"}})
    unmatched = {"queries": {"number": 1, "share": 0.5}, "judgements": {"number": 1, "share": 0.25}}
    assert from_topics(topics, other, corpus).summary["unmatched"] == unmatched
    unmatched["results"] = {"number": 12, "share": 0.5}
    summary = from_results(results, other).summary
    assert (summary["unmatched"], summary["queries_without_positives"]) == (unmatched, 1)
    twice = qrels_of(("1", "d1", 1), ("1", "d1", 1), ("3", "d1", 1), ("2", "d2", 0))
    assert from_topics(topics, twice, corpus).summary["dropped"] == 3


def test_results_are_drawn_from_the_ranks_that_are_asked_for(results, topics, qrels):
    """Whatever the order of rows; judged documents take a rank, and the best rank of a duplicate counts."""
    negatives = Negatives(range_min=3, range_max=6)
    for frame in (results, results.drop(columns="rank"), pt.model.add_ranks(results).assign(score=np.nan)):
        assert drawn_over_seeds(frame, qrels, negatives) == {"text 3", "text 4", "text 5"}
    rows = pd.DataFrame([("d1", 9), ("d5", 8), ("d6", 7), ("d5", 6), ("d7", 5)], columns=["docno", "score"])
    twice = topics[:1].merge(rows, how="cross").assign(text=lambda frame: frame["docno"])
    assert drawn_over_seeds(twice, qrels[:1], Negatives(range_max=3)) == {"d5", "d6"}


def test_likely_false_negatives_are_never_drawn(topics, qrels):
    """Unless the positive was not retrieved and has no score."""
    rows = [("1", "sort", f"d{i}", f"text {i}", score) for i, score in enumerate([9.0, 10.0, 1.0, 9.6, 9.4])]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])
    margin = Negatives(relative_margin=0.05)
    assert drawn_over_seeds(results, qrels[:1], margin) == {"text 0", "text 2", "text 4"}
    without = results[results["docno"] != "d1"]
    triples = from_results(
        without, qrels[:1], negatives=Negatives(4, relative_margin=0), corpus=[{"docno": "d1", "text": "x"}]
    )
    assert set(triples.dataset[0].values()) == {"sort", "x", "text 0", "text 2", "text 3", "text 4"}
    with pytest.raises(ValueError, match="relative_margin=0.05 compares the scores"):
        from_results(results.drop(columns="score"), qrels, negatives=margin)


@pytest.mark.parametrize(("column", "unused"), [("rank", "score"), ("score", "rank")])
def test_ranks_and_scores_are_numbers(results, qrels, column, unused):
    """Also as strings, which a run has that is read with ``dtype=str``; as text, 10 would come before 2."""
    results = results.drop(columns=unused).reset_index(drop=True)
    for form in ("str", "Float64"):
        drawn = drawn_over_seeds(results.astype({column: form}), qrels, Negatives(range_min=3, range_max=6))
        assert drawn == {"text 3", "text 4", "text 5"}
    for wrong in ("first", None, [1]):
        faulty = results.astype({column: object})
        faulty.at[5, column] = wrong
        with pytest.raises(TypeError, match=f"the {column} of results .* in 1 of 24 rows"):
            from_results(faulty, qrels)


@pytest.mark.parametrize("columns", [[], ["text"], ["title", "text"]], ids=repr)
def test_all_documents_are_of_the_same_fields(results, qrels, columns):
    """Whatever columns the results have, for those that were retrieved and the one that was not."""
    titled = [{"docno": f"d{number}", "title": f"title {number}", "text": f"text {number}"} for number in range(13)]
    results = results.drop(columns="text").merge(pd.DataFrame(titled)[["docno", *columns]], on="docno")
    judged = pd.concat([qrels, qrels_of(("2", "d12", 1))])
    triples = from_results(results, judged, corpus=titled, fields=["title", "text"])
    assert set(triples.dataset["positive"]) == {f"title {number} text {number}" for number in (1, 2, 4, 12)}
    assert all(text.startswith("title ") and " text " in text for text in triples.dataset["negative"])
    if len(columns) < 2:
        with pytest.raises(ValueError, match="expected a column"):
            from_results(results, qrels, fields=["title", "text"])


def test_empty_texts_and_copies_of_relevant_documents_are_never_drawn(qrels, texts_of):
    texts = {"d0": "a", "d1": "b", "d2": "c", "d3": "d", "d7": "", "d8": None, "copy": "b "}
    rows = [("1", "sort", docno, text) for docno, text in texts.items()]
    rows += [("2", "plot", "d4", "e"), ("2", "plot", "d9", "f")]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text"])
    triples = from_results(results, qrels, negatives=Negatives(2))
    assert {frozenset(row[2:]) for row in texts_of(triples)} == {frozenset("ad")}
    assert (triples.summary["dropped"], triples.summary["documents_without_text"]) == (2, 2)


def test_frames_and_options_that_do_not_fit_are_errors(topics, results, qrels, corpus):
    with pytest.raises(ValueError, match="ranks 8 to 10"):
        Negatives(3, range_min=8, range_max=10)
    with pytest.raises(ValueError, match="put a retriever before"):
        from_topics(topics, qrels, corpus, negatives=Negatives(range_max=10))
    with pytest.raises(ValueError, match="'docno' and 'body'"):
        from_topics(topics, qrels, corpus, text_field="body")
    with pytest.raises(ValueError, match=r"'docno'.* missing"):
        from_results(topics, qrels)
    with pytest.raises(ValueError, match="label of 3 or more"):
        from_results(results, qrels, min_label=3)
    with pytest.raises(ValueError, match="3 x positive without text"):
        from_topics(topics, qrels, corpus[10:])


@pytest.mark.parametrize(("judged", "warns"), [(17, True), (18, False)])
def test_more_than_a_tenth_that_is_unmatched_is_a_warning(caplog, corpus, judged, warns):
    topics = pd.DataFrame({"qid": [str(number) for number in range(20)], "query": "sort"})
    from_topics(topics, qrels_of(*[(qid, "d1", 1) for qid in topics["qid"][:judged]]), corpus)
    assert ["% of the queries are left out" in record.message for record in caplog.records[:1]] == [True] * warns


FRAME = pd.DataFrame({"qid": [str(number % 500) for number in range(1000)]})


@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(0, 100), max_size=4))
def test_splits_by_whole_percents_go_by_the_checksum_modulo_100(cuts):
    """The same with every release, since models were evaluated with these splits."""
    bounds = [0, *sorted(cuts), 100]
    shares = {str(part): size / 100 for part, size in enumerate(np.diff(bounds).tolist())}
    percents = FRAME["qid"].map(lambda qid: zlib.crc32(qid.encode()) % 100)
    for part, rows in split_queries(FRAME, shares).items():
        start, end = bounds[int(part)], bounds[int(part) + 1]
        assert rows["qid"].tolist() == FRAME["qid"][(percents >= start) & (percents < end)].tolist()


def test_splits_give_what_is_known():
    frame = pd.DataFrame({"qid": [str(number) for number in range(1000)]})
    parts = split_queries(frame, {"train": 0.99, "valid": 0.0075, "test": 0.0025})
    assert parts["valid"]["qid"].tolist() == ["79", "178", "200", "578", "730", "793", "820", "919", "927", "959"]
    assert parts["test"]["qid"].tolist() == ["836"]
    assert (
        split_queries(frame, {"train": 0.99, "valid": 0.01}, seed=1)["valid"]["qid"].tolist()
        != parts["valid"]["qid"].tolist()
    )


@pytest.mark.parametrize("shares", [{"train": 0.6}, {"a": 1.5, "b": -0.5}, {"a": "0.9", "b": "0.1"}, {}, [0.9, 0.1]])
def test_shares_must_be_numbers_that_sum_up(shares):
    with pytest.raises(ValueError, match="shares must be numbers from 0 to 1 that sum up to 1"):
        split_queries(FRAME, shares)
    with pytest.raises(TypeError, match="in 1000 of 1000"):
        split_queries(FRAME.astype(int))
