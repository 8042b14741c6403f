"""Drawn negatives: never a positive, the same ones each time, and no judgement lost without a word."""

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyterrier_selfdistill import Negatives
from pyterrier_selfdistill.data import negatives as module
from pyterrier_selfdistill.data.negatives import from_results, from_topics

identifiers = st.integers(0, 5).map(str)


@pytest.fixture
def qrels():
    rows = [("1", "d1", 1), ("1", "d2", 2), ("1", "d3", 0), ("2", "d4", 1)]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


def drawn_over_seeds(results, qrels, negatives):
    """The texts that 20 seeds draw."""
    drawn = set()
    for seed in range(20):
        drawn.update(from_results(results, qrels, negatives=negatives, seed=seed).dataset["negative"])
    return drawn


@settings(deadline=None, max_examples=300)
@given(
    retrieved=st.lists(st.tuples(identifiers, identifiers, st.floats(-1, 1)), min_size=1, max_size=30),
    judged=st.lists(st.tuples(identifiers, identifiers, st.integers(0, 3)), min_size=1, max_size=30),
    copies=st.dictionaries(identifiers, identifiers, max_size=3),
    number=st.integers(1, 3),
    range_min=st.integers(0, 2),
    range_max=st.none() | st.integers(5, 8),
    relative_margin=st.none() | st.floats(0, 1),
    min_label=st.integers(1, 2),
    seed=st.integers(0, 3),
)
def test_from_results_never_draws_a_positive(
    texts_of, is_accounted, retrieved, judged, copies, number, range_min, range_max, relative_margin, min_label, seed
):
    """Nor another document with its text; and every judgement is accounted for."""
    text_of = {}
    for document in map(str, range(6)):
        text_of[document] = f"text {copies.get(document, document)}"
    rows = [(q, f"query {q}", d, text_of[d], score) for q, d, score in retrieved]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])
    qrels = pd.DataFrame(judged, columns=["qid", "docno", "label"])
    with_text = set(results["docno"])
    relevant, relevant_texts, positives, others = set(), set(), set(), set()
    for q, d, label in judged:
        pair = (f"query {q}", text_of[d])
        if label > 0:
            relevant.add((q, d))
        if label > 0 and d in with_text:
            relevant_texts.add(pair)
        if label >= min_label:
            positives.add(pair)
    for q, d, _ in retrieved:
        if (q, d) not in relevant:
            others.add((f"query {q}", text_of[d]))
    negatives = Negatives(number, range_min=range_min, range_max=range_max, relative_margin=relative_margin)
    try:
        triples = from_results(results, qrels, negatives=negatives, min_label=min_label, seed=seed)
    except ValueError:
        return  # there was nothing to make triples of
    for query, positive, *drawn in texts_of(triples):
        assert (query, positive) in positives
        assert len(set(drawn)) == number
        for negative in drawn:
            assert (query, negative) in others - relevant_texts
    assert is_accounted(triples.summary)
    assert triples.summary["read"] == len(judged)


def test_from_topics_draws_the_same_with_the_same_seed(topics, qrels, corpus, texts_of):
    def draw(seed):
        return texts_of(from_topics(topics, qrels, corpus, negatives=Negatives(3), seed=seed))

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_from_topics_draws_whatever_the_other_rows(topics, qrels, corpus, texts_of):
    whole = texts_of(from_topics(topics, qrels, corpus))
    part = texts_of(from_topics(topics.iloc[1:], qrels.iloc[::-1], corpus))
    assert part == [row for row in whole if row[0] == "plot"]


def test_from_topics_draws_what_is_known(topics, qrels, corpus, texts_of):
    """The same on every machine and with every release."""
    assert texts_of(from_topics(topics, qrels, corpus, seed=42)) == [
        ("sort", "text 1", "text 0"),
        ("sort", "text 2", "text 23"),
        ("plot", "text 4", "text 74"),
    ]


def test_from_topics_draws_what_is_known_from_few_documents(topics, qrels, corpus, texts_of):
    """Where most are excluded, the others are listed."""
    assert texts_of(from_topics(topics, qrels, corpus[:8], seed=42)) == [
        ("sort", "text 1", "text 5"),
        ("sort", "text 2", "text 4"),
        ("plot", "text 4", "text 5"),
    ]


def test_from_results_draws_what_is_known(topics, qrels, corpus, texts_of):
    results = topics.merge(pd.DataFrame(corpus[:30]), how="cross")
    assert texts_of(from_results(results, qrels, seed=42)) == [
        ("sort", "text 1", "text 3"),
        ("sort", "text 2", "text 29"),
        ("plot", "text 4", "text 29"),
    ]


@pytest.mark.parametrize("form", [list, pd.DataFrame, iter])
def test_from_topics_takes_each_form_of_a_corpus(topics, qrels, corpus, form):
    assert len(from_topics(topics, qrels, form(corpus)).dataset) == 3


def test_from_topics_with_several_negatives(topics, qrels, corpus):
    triples = from_topics(topics, qrels, corpus, negatives=Negatives(3))
    assert triples.dataset.column_names == ["query", "positive", "negative_1", "negative_2", "negative_3"]
    assert triples.summary == {
        "source": "topics",
        "seed": 42,
        "negatives_from": {"number": 3, "range_min": 0, "range_max": None, "relative_margin": None},
        "queries_without_positives": 0,
        "unmatched": {"queries": {"number": 0, "share": 0.0}, "judgements": {"number": 0, "share": 0.0}},
        "read": 4,
        "triples": 3,
        "dropped": {"judgement with a label below 1": 1},
        "queries": 2,
        "positives": 3,
        "negatives": 3,
        "fingerprint": "a129e31b824a4d96",
    }


def test_from_topics_counts_documents_that_the_corpus_lacks(topics, qrels, corpus):
    triples = from_topics(topics, qrels, corpus[:2] + corpus[10:])
    assert triples.summary["triples"] == 1
    assert triples.summary["dropped"] == {"judgement with a label below 1": 1, "positive without text": 2}
    with pytest.raises(ValueError, match="3 x positive without text"):
        from_topics(topics, qrels, corpus[10:])


def test_from_topics_counts_judgements_that_are_no_triples(topics, corpus):
    rows = [("1", "d1", 1), ("1", "d1", 1), ("3", "d1", 1), ("2", "d2", 0)]
    triples = from_topics(topics, pd.DataFrame(rows, columns=["qid", "docno", "label"]), corpus)
    assert triples.summary["dropped"] == {
        "judgement of an unknown query": 1,
        "judgement with a label below 1": 1,
        "duplicate judgement": 1,
    }
    assert triples.summary["queries_without_positives"] == 1


def test_from_topics_needs_a_relevant_document(topics, qrels, corpus):
    with pytest.raises(ValueError, match=r"label of 3 or more, got none among the 4 .* labels \[0, 1, 2\]"):
        from_topics(topics, qrels, corpus, min_label=3)


def test_from_results_draws_from_the_ranks_that_are_asked_for(topics, qrels):
    """Whatever the order of rows; judged documents take a rank but are not drawn."""
    rows = [(q, t, f"d{i}", f"text {i}", 10.0 - i) for q, t in topics.to_numpy() for i in range(10)]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"]).sample(frac=1, random_state=0)
    ranked = pt.model.add_ranks(results).sample(frac=1, random_state=1)
    negatives = Negatives(range_min=3, range_max=6)
    for frame in (results, ranked):
        assert drawn_over_seeds(frame, qrels, negatives) == {"text 3", "text 4", "text 5"}


def test_from_results_takes_the_best_rank_of_a_duplicate(topics, qrels):
    rows = [("d1", 9), ("d5", 8), ("d6", 7), ("d5", 6), ("d7", 5)]
    results = topics[:1].merge(pd.DataFrame(rows, columns=["docno", "score"]), how="cross")
    results["text"] = results["docno"]
    assert drawn_over_seeds(results, qrels[:1], Negatives(range_max=3)) == {"d5", "d6"}


def test_from_results_never_draws_likely_false_negatives(qrels):
    rows = [("1", "sort", f"d{i}", f"text {i}", score) for i, score in enumerate([9.0, 10.0, 1.0, 9.6, 9.4])]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])
    drawn = drawn_over_seeds(results, qrels[:1], Negatives(relative_margin=0.05))
    assert drawn == {"text 0", "text 2", "text 4"}


def test_from_results_suspects_nothing_where_the_positive_was_not_retrieved(topics, qrels):
    results = topics[:1].merge(pd.DataFrame({"docno": ["d5", "d6"], "score": [9.0, 8.0]}), how="cross")
    results["text"] = results["docno"]
    corpus = [{"docno": "d1", "text": "d1"}]
    not_retrieved = from_results(results, qrels[:1], negatives=Negatives(2, relative_margin=0.0), corpus=corpus)
    assert set(not_retrieved.dataset[0].values()) == {"sort", "d1", "d5", "d6"}


@pytest.fixture
def results(topics):
    """Twelve results for each query, in another order than that of their ranks."""
    rows = [(q, t, f"d{i}", f"text {i}", i, 12.0 - i) for q, t in topics.to_numpy() for i in range(12)]
    frame = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "rank", "score"])
    return frame.sample(frac=1, random_state=0)


@pytest.mark.parametrize(("column", "unused"), [("rank", "score"), ("score", "rank")])
@pytest.mark.parametrize("form", ["str", "string[pyarrow]", "object", "Float64", "float32"])
def test_from_results_takes_ranks_and_scores_that_are_strings_for_numbers(results, qrels, column, unused, form):
    """As a run has them that is read with ``dtype=str``; as text, 10 would come before 2."""
    results = results.drop(columns=unused).astype({column: form})
    assert drawn_over_seeds(results, qrels, Negatives(range_min=3, range_max=6)) == {"text 3", "text 4", "text 5"}


def test_from_results_compares_scores_that_are_strings_as_numbers(results, qrels):
    """Of the twelve, those with more than 9 score about as much as the positive does."""
    negatives = Negatives(9, relative_margin=0.18)
    triples = from_results(results.astype({"score": str}), qrels[:1], negatives=negatives)
    assert set(triples.dataset[0].values()) == {"sort", "text 1", *(f"text {number}" for number in range(3, 12))}


@pytest.mark.parametrize(("column", "unused"), [("rank", "score"), ("score", "rank")])
@pytest.mark.parametrize("wrong", ["first", "", None, np.nan, [1]], ids=repr)
def test_from_results_rejects_ranks_and_scores_that_are_no_numbers_or_missing(results, qrels, column, unused, wrong):
    results = results.drop(columns=unused).astype({column: object}).reset_index(drop=True)
    results.at[5, column] = wrong
    with pytest.raises(
        TypeError, match=f"the {column} of results must be a number in every row, got .* in 1 of 24 rows"
    ):
        from_results(results, qrels)


def test_from_results_checks_no_scores_where_ranks_decide(results, qrels):
    """But where they are compared."""
    results = results.assign(score=np.nan)
    assert drawn_over_seeds(results, qrels, Negatives(range_min=3, range_max=5)) == {"text 3", "text 4"}
    with pytest.raises(TypeError, match="the score of results must be a number in every row, got .* in 24 of 24 rows"):
        from_results(results, qrels, negatives=Negatives(relative_margin=0.05))


def test_from_results_rejects_a_relative_margin_without_scores(results, qrels):
    with pytest.raises(
        ValueError, match=r"relative_margin=0.05 compares the scores of results, got none in .*'rank'\]"
    ):
        from_results(results.drop(columns="score"), qrels, negatives=Negatives(relative_margin=0.05))


@pytest.fixture
def titled():
    """Documents with titles, as records: of the first twelve, and a thirteenth."""
    return [{"docno": f"d{number}", "title": f"title {number}", "text": f"text {number}"} for number in range(13)]


def is_titled(texts):
    return all(text.startswith("title ") and " text " in text for text in texts)


@pytest.mark.parametrize("columns", [[], ["text"], ["title"], ["title", "text"]], ids=repr)
def test_from_results_joins_the_same_fields_of_all_documents(results, qrels, titled, columns, texts_of):
    """Whatever columns the results have, for those that were retrieved and the one that was not."""
    qrels = pd.concat([qrels, pd.DataFrame([("2", "d12", 1)], columns=qrels.columns)])
    kept = pd.DataFrame(titled)[["docno", *columns]]
    results = results.drop(columns="text").merge(kept, on="docno")
    triples = from_results(results, qrels, corpus=titled, fields=["title", "text"])
    positives, negatives = triples.dataset["positive"], triples.dataset["negative"]
    assert set(positives) == {f"title {number} text {number}" for number in (1, 2, 4, 12)}
    assert is_titled(negatives)


def test_from_results_joins_the_fields_of_results_without_a_corpus(results, qrels, titled):
    results = results.drop(columns="text").merge(pd.DataFrame(titled), on="docno")
    triples = from_results(results, qrels, fields=("title", "text"))
    assert is_titled([*triples.dataset["positive"], *triples.dataset["negative"]])
    with pytest.raises(ValueError, match="expected a column 'title', got"):
        from_results(results.drop(columns="title"), qrels, fields=["title", "text"])


def test_from_results_looks_up_no_more_than_what_results_lack(results, qrels, titled):
    results = results.drop(columns="text").merge(pd.DataFrame(titled), on="docno")
    triples = from_results(results, qrels, corpus=titled[:1], fields=["title", "text"])
    assert triples.summary["triples"] == 3


def test_summaries_count_what_is_unmatched(results, topics, qrels, corpus):
    other = qrels.replace({"qid": {"2": "3"}})
    queries, judgements = {"number": 1, "share": 0.5}, {"number": 1, "share": 0.25}
    drawn = from_topics(topics, other, corpus)
    assert drawn.summary["unmatched"] == {"queries": queries, "judgements": judgements}
    retrieved = from_results(results, other)
    results_left_out = {"number": 12, "share": 0.5}
    assert retrieved.summary["unmatched"] == {
        "queries": queries, "judgements": judgements, "results": results_left_out
    }  # fmt: skip


def test_from_results_with_fewer_candidates_than_negatives_and_empty_texts(qrels, texts_of):
    texts = {"d0": "a", "d1": "b", "d2": "c", "d3": "d", "d7": "", "d8": None, "copy": "b"}
    rows = [("1", "sort", docno, text) for docno, text in texts.items()]
    rows += [("2", "plot", "d4", "e"), ("2", "plot", "d9", "f")]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text"])
    triples = from_results(results, qrels, negatives=Negatives(2))
    assert {frozenset(row[2:]) for row in texts_of(triples)} == {frozenset("ad")}
    assert triples.summary["dropped"] == {
        "judgement with a label below 1": 1,
        "positive with fewer than 2 negatives": 1,
    }
    assert triples.summary["documents_without_text"] == 2


def test_neither_draws_copies_of_documents_with_any_label(texts_of):
    """Even where only the corpus has the texts, and though they are no positives themselves."""
    texts = {"d1": "a", "d2": "b", "copy": "b", "d3": "c"}
    corpus = [{"docno": docno, "text": text} for docno, text in texts.items()]
    qrels = pd.DataFrame([("1", "d1", 2), ("1", "d2", 1)], columns=["qid", "docno", "label"])
    topics = pd.DataFrame([("1", "sort")], columns=["qid", "query"])
    results = topics.merge(pd.DataFrame({"docno": ["copy", "d3"]}), how="cross")
    for seed in range(10):
        options = {"min_label": 2, "seed": seed, "corpus": corpus}
        assert texts_of(from_results(results, qrels, **options)) == [("sort", "a", "c")]
        assert texts_of(from_topics(topics, qrels, **options)) == [("sort", "a", "c")]


def test_from_results_looks_texts_up_in_a_dataset(dataset, texts_of):
    results = pd.DataFrame([("1", "sort", "d2"), ("1", "sort", "d3")], columns=["qid", "query", "docno"])
    qrels = pd.DataFrame([("1", "d1", 1)], columns=["qid", "docno", "label"])
    assert texts_of(from_results(results[:1], qrels, corpus=dataset)) == [("sort", "text 1", "text 2")]
    with pytest.raises(ValueError, match=r"fields \['doc_id', 'text'\], not 'title'; choose .* fields="):
        from_results(results, qrels, corpus=dataset, fields=["title", "text"])


def test_from_results_checks_each_frame_once(topics, qrels, corpus, monkeypatch):
    """Checks read whole columns, which takes time with many results."""
    checked = []

    def record(frame, column, *names, **options):
        checked.append(column)

    monkeypatch.setattr(module, "require_texts", record)
    from_results(topics.merge(pd.DataFrame(corpus), how="cross"), qrels)
    assert checked == ["query", "text"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, "number must be a positive integer, got 0"),
        ({"number": 1.0}, "number must be a positive integer, got 1.0"),
        ({"number": True}, "number must be a positive integer, got True"),
        ({"range_min": -1}, "range_min must be 0 or a positive integer, got -1"),
        ({"range_min": "1"}, "range_min must be 0 or a positive integer, got '1'"),
        ({"range_max": 0}, "range_max must be a positive integer, got 0"),
        ({"number": 3, "range_min": 8, "range_max": 10}, "fewer than 3 results"),
        ({"relative_margin": 5}, "relative_margin must be a number from 0 to 1, got 5"),
        ({"relative_margin": float("nan")}, "relative_margin must be a number from 0 to 1, got nan"),
        ({"relative_margin": "0.1"}, "relative_margin must be a number from 0 to 1, got '0.1'"),
    ],
)
def test_negatives_reject_what_is_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Negatives(**options)


def test_negatives_take_numbers_of_numpy(topics, qrels, corpus, texts_of):
    chosen = Negatives(np.int64(2), range_min=np.int32(1), range_max=np.uint8(9), relative_margin=np.float32(0.5))
    assert chosen == Negatives(2, range_min=1, range_max=9, relative_margin=0.5)
    options = {"min_label": np.int64(2), "seed": np.int64(7)}
    assert texts_of(from_topics(topics, qrels, corpus, **options)) == texts_of(
        from_topics(topics, qrels, corpus, min_label=2, seed=7)
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"min_label": 0}, ValueError, "min_label must be a positive integer, got 0"),
        ({"min_label": True}, ValueError, "min_label must be a positive integer, got True"),
        ({"seed": -1}, ValueError, "seed must be 0 or a positive integer, got -1"),
        ({"text_field": 0}, ValueError, "text_field must be a valid string, got 0"),
        ({"fields": 0}, TypeError, "fields must be a list of field names .*, got 0"),
        ({"fields": ""}, ValueError, "fields must be a list of field names .*, got ''"),
        ({"fields": []}, ValueError, r"fields must be a list of field names .*, got \[\]"),
        ({"fields": "text"}, ValueError, "fields must be a list of field names .*, got 'text'"),
        ({"negatives": 3}, TypeError, "negatives must be an instance of Negatives, got 3"),
        ({"qrels": [("1", "d1", 1)]}, TypeError, "qrels must be an instance of DataFrame, got"),
        ({"corpus": "d1"}, TypeError, "corpus must be a PyTerrier dataset"),
    ],
)
def test_neither_takes_options_of_another_type(results, topics, qrels, corpus, options, error, message):
    options = {"qrels": qrels, "corpus": corpus, **options}
    for make, frame in [(from_results, results), (from_topics, topics)]:
        with pytest.raises(error, match=message):
            make(frame, **options)


def test_from_topics_rejects_ranks(topics, qrels, corpus):
    with pytest.raises(ValueError, match="put a retriever before"):
        from_topics(topics, qrels, corpus, negatives=Negatives(range_max=10))


def test_from_topics_rejects_a_corpus_without_texts(topics, qrels, corpus):
    with pytest.raises(ValueError, match="'docno' and 'body'"):
        from_topics(topics, qrels, corpus, text_field="body")


@pytest.mark.parametrize("query", [None, 3, ""])
def test_from_topics_rejects_a_query_without_text(topics, qrels, corpus, query):
    topics = topics.astype(object)
    topics.loc[1, "query"] = query
    with pytest.raises((TypeError, ValueError), match="'query' must hold .* in 1 of 2 rows \\('2'"):
        from_topics(topics, qrels, corpus)


def test_from_results_rejects_frames_without_documents(topics, qrels):
    with pytest.raises(ValueError, match="results must have .*'docno'.* missing"):
        from_results(topics, qrels)
