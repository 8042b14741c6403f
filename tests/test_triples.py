"""Triples from each source: the right ones, the same ones each time, and no row lost without a word."""

import ir_datasets
import pandas as pd
import pyterrier as pt
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_datasets.formats import TrecQrels, TsvDocPairs, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload

from pyterrier_selfdistill.triples import from_docpairs, from_results, from_texts, from_topics

ROWS = [("sort", "sort rows", "plot a file"), ("plot", "plot a matrix", "read a value")]


def texts_of(triples):
    return [tuple(row.values()) for row in triples.dataset]


identifiers = st.integers(0, 5).map(str)


@settings(deadline=None, max_examples=200)
@given(
    retrieved=st.lists(st.tuples(identifiers, identifiers), min_size=1, max_size=30),
    judged=st.lists(st.tuples(identifiers, identifiers, st.integers(0, 2)), min_size=1, max_size=30),
    negatives=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_no_known_positive_is_drawn_as_a_negative(retrieved, judged, negatives, seed):
    results = pd.DataFrame(
        [(q, f"query {q}", d, f"text {d}") for q, d in retrieved], columns=["qid", "query", "docno", "text"]
    )
    qrels = pd.DataFrame(judged, columns=["qid", "docno", "label"])
    relevant = {(f"query {q}", f"text {d}") for q, d, label in judged if label >= 1}
    found = {(f"query {q}", f"text {d}") for q, d in retrieved}
    try:
        triples = from_results(results, qrels, negatives=negatives, seed=seed)
    except ValueError:
        return  # there was nothing to make triples of
    for query, positive, *drawn in texts_of(triples):
        assert (query, positive) in relevant
        assert len(set(drawn)) == negatives
        assert all((query, negative) in found - relevant for negative in drawn)
    asked = {(q, d) for q, d, label in judged if label >= 1 and q in results["qid"].tolist()}
    lost = {reason: number for reason, number in triples.summary["dropped"].items() if reason.startswith("relevant")}
    assert triples.summary["triples"] + sum(lost.values()) == len(asked)


@pytest.fixture
def topics():
    return pd.DataFrame({"qid": ["1", "2"], "query": ["sort", "plot"]})


@pytest.fixture
def corpus():
    return [{"docno": f"d{i}", "text": f"text {i}"} for i in range(100)]


@pytest.fixture
def qrels():
    rows = [("1", "d1", 1), ("1", "d2", 2), ("1", "d3", 0), ("2", "d4", 1)]
    return pd.DataFrame(rows, columns=["qid", "docno", "label"])


def test_the_same_seed_draws_the_same(topics, qrels, corpus):
    first, again, other = (texts_of(from_topics(topics, qrels, corpus, negatives=3, seed=s)) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_draw_does_not_depend_on_the_other_rows(topics, qrels, corpus):
    whole = texts_of(from_topics(topics, qrels, corpus))
    part = texts_of(from_topics(topics.iloc[1:], qrels.iloc[::-1], corpus))
    assert part == [row for row in whole if row[0] == "plot"]


def test_known_draw(topics, qrels, corpus):
    """The same on every machine and with every release."""
    assert texts_of(from_topics(topics, qrels, corpus, seed=42)) == [
        ("sort", "text 1", "text 0"),
        ("sort", "text 2", "text 23"),
        ("plot", "text 4", "text 74"),
    ]


@pytest.mark.parametrize("form", [list, pd.DataFrame, iter])
def test_forms_of_a_corpus(topics, qrels, corpus, form):
    assert len(from_topics(topics, qrels, form(corpus)).dataset) == 3


def test_columns_of_several_negatives(topics, qrels, corpus):
    triples = from_topics(topics, qrels, corpus, negatives=3)
    assert triples.dataset.column_names == ["query", "positive", "negative_1", "negative_2", "negative_3"]
    assert triples.summary == {"source": "topics", "seed": 42, "triples": 3, "dropped": {}}


def test_documents_that_the_corpus_lacks_are_counted(topics, qrels, corpus):
    triples = from_topics(topics, qrels, corpus[:2] + corpus[10:])
    assert triples.summary["triples"] == 1
    assert triples.summary["dropped"] == {"relevant document without text": 2}


def test_a_corpus_without_texts(topics, qrels, corpus):
    with pytest.raises(ValueError, match="'docno' and 'body'"):
        from_topics(topics, qrels, corpus, text_field="body")


@pytest.mark.parametrize("query", [None, 3, ""])
def test_a_query_without_text(topics, qrels, corpus, query):
    topics = topics.astype(object)
    topics.loc[1, "query"] = query
    with pytest.raises((TypeError, ValueError), match="'query' has .* in 1 of 2 rows \\('2'"):
        from_topics(topics, qrels, corpus)


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        iter(ROWS),
        [dict(zip(("positive", "anchor", "negative"), (b, a, c), strict=True)) for a, b, c in ROWS],
        pd.DataFrame(ROWS, columns=["query", "positive", "negative"]).assign(score=1),
        Dataset.from_list([dict(zip(("query", "positive", "negative_1"), row, strict=True)) for row in ROWS]),
    ],
    ids=lambda source: type(source).__name__,
)
def test_texts_in_memory(source):
    triples = from_texts(source)
    assert triples.dataset.column_names[:2] == ["query", "positive"]
    assert texts_of(triples) == ROWS


def test_rows_that_were_not_selected_are_not_checked():
    dataset = Dataset.from_pandas(pd.DataFrame([*ROWS, ("a", "", "c")], columns=["query", "positive", "negative"]))
    assert texts_of(from_texts(dataset.select([1, 0]))) == ROWS[::-1]


def test_limit():
    assert texts_of(from_texts(ROWS, limit=1)) == ROWS[:1]


def write(path, rows, *, header=True):
    frame = pd.DataFrame(rows, columns=["query", "positive", "negative"])
    if ".parquet" in path.name:
        frame.to_parquet(path)
    elif ".jsonl" in path.name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, header=header, sep="\t" if ".tsv" in path.name else ",")
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet"])
def test_files(tmp_path, suffix):
    assert texts_of(from_texts(write(tmp_path / f"my.triples{suffix}", ROWS))) == ROWS
    assert texts_of(from_texts(str(tmp_path / f"my.triples{suffix}"))) == ROWS


def test_tsv_without_a_header_and_with_quotes(tmp_path):
    rows = [('the "sort', "sort 'rows", "NA"), *ROWS]
    (tmp_path / "triples.tsv").write_text("\n".join("\t".join(row) for row in rows))
    assert texts_of(from_texts(tmp_path / "triples.tsv")) == rows


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([], ValueError, "empty"),
        (["abc", "def"], TypeError, "a triple is 'abc'"),
        ([("a", "b")], ValueError, "rows of 2 texts"),
        ([("a", "b", "c"), ("a", "b", "c", "d")], ValueError, r"different lengths: \[3, 4\]"),
        ([("a", "b", None), ("a", "b", "c")], ValueError, r"'negative' has no text in 1 of 2 triples \(rows \[0\]\)"),
        ([("a", "b", "c"), ("a", " ", "c")], ValueError, r"'positive' has no text in 1 of 2 triples \(rows \[1\]\)"),
        ([("a", "b", 3)], TypeError, "'negative' holds int64"),
        (pd.DataFrame({"query": ["a"], "positive": ["b"]}), ValueError, r"\['query', 'positive'\]; they need"),
        (pd.DataFrame(columns=["query", "positive", "negative"], dtype=str), ValueError, "no triples are there"),
        ("nowhere.tsv", FileNotFoundError, "nowhere.tsv"),
    ],
    ids=str,
)
def test_bad_texts(source, error, message):
    with pytest.raises(error, match=message):
        from_texts(source)


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "triples.xml").write_text("<a/>")
    with pytest.raises(ValueError, match=r"none of \.tsv, \.csv, \.jsonl and \.parquet"):
        from_texts(tmp_path / "triples.xml")


@pytest.fixture
def irds(tmp_path):
    """A local dataset of ir_datasets with docpairs, of its real classes."""
    files = {
        "docs": [(f"d{i}", f"text {i}") for i in range(6)],
        "queries": [("q1", "sort"), ("q2", "plot")],
        "docpairs": [
            ("q1", "d1", "d2"),
            ("q1", "d1", "d3"),
            ("q2", "d4", "d5"),
            ("q1", "d1", "d0"),
            ("q3", "d1", "d2"),
        ],
        "qrels": [("q1", "0", "d1", "1"), ("q2", "0", "d4", "1")],
    }
    sources = {}
    for name, rows in files.items():
        path = tmp_path / f"{name}.tsv"
        path.write_text("".join((" " if name == "qrels" else "\t").join(row) + "\n" for row in rows))
        sources[name] = LocalDownload(path)
    docs, queries = TsvDocs(sources["docs"], namespace="tiny"), TsvQueries(sources["queries"])
    qrels = TrecQrels(sources["qrels"], {1: "relevant"})
    with_pairs = ir_datasets.Dataset(docs, queries, TsvDocPairs(sources["docpairs"]))
    without = ir_datasets.Dataset(docs, queries, qrels)
    names = {f"tiny-{tmp_path.name}/pairs": with_pairs, f"tiny-{tmp_path.name}": without}
    for name, dataset in names.items():
        ir_datasets.registry._registered[name] = dataset
    yield [pt.get_dataset(f"irds:{name}") for name in names]
    for name in names:
        del ir_datasets.registry._registered[name]


def test_docpairs(irds):
    triples = from_docpairs(irds[0])
    assert texts_of(triples) == [
        ("sort", "text 1", "text 2"),
        ("sort", "text 1", "text 3"),
        ("plot", "text 4", "text 5"),
        ("sort", "text 1", "text 0"),
    ]
    assert triples.summary["dropped"] == {"query without text": 1}


def test_docpairs_of_each_query_and_in_all(irds):
    triples = from_docpairs(irds[0], max_pairs_per_query=1)
    assert texts_of(triples) == [("sort", "text 1", "text 2"), ("plot", "text 4", "text 5")]
    assert triples.summary["dropped"] == {"pair beyond the first 1 of its query": 2, "query without text": 1}
    assert len(from_docpairs(irds[0], limit=3).dataset) == 3


def test_a_dataset_without_docpairs(irds):
    with pytest.raises(ValueError, match=r"no docpairs \(it has \['docs', 'queries', 'qrels'\]\); give its topics"):
        from_docpairs(irds[1])
    with pytest.raises(ValueError, match="no docpairs"):
        from_docpairs(pt.datasets.Dataset())


def test_training_with_docpairs(irds, encoder, tmp_path):
    from pyterrier_selfdistill import SelfDistillTrainer

    trainer = SelfDistillTrainer(encoder, tmp_path / "run", verbose=False)
    trainer.fit_triples(irds[0], max_pairs_per_query=2)
    assert trainer.encoder.training_summary["data"]["triples"] == 3
    with pytest.raises(ValueError, match="max_pairs_per_query=2 needs a PyTerrier dataset"):
        trainer.fit_triples(ROWS, max_pairs_per_query=2)
