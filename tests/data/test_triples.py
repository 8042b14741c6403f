"""Triples from each source: the right ones, the same ones each time, and no row lost without a word."""

from pathlib import Path

import ir_datasets
import pandas as pd
import pyterrier as pt
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_datasets.formats import TrecQrels, TsvDocPairs, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload

from pyterrier_selfdistill import Negatives, split_queries
from pyterrier_selfdistill.data import triples as module
from pyterrier_selfdistill.data.negatives import from_results, from_topics
from pyterrier_selfdistill.data.triples import from_docpairs, from_identifiers, from_texts

ROWS = [("sort", "sort rows", "plot a file"), ("plot", "plot a matrix", "read a value")]


def texts_of(triples):
    return [tuple(row.values()) for row in triples.dataset]


identifiers = st.integers(0, 5).map(str)


def accounted(summary):
    return summary["triples"] + sum(summary["dropped"].values()) == summary["read"]


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
def test_no_known_positive_is_drawn_as_a_negative(
    retrieved, judged, copies, number, range_min, range_max, relative_margin, min_label, seed
):
    """Nor another document with its text; and every judgement is accounted for."""
    text_of = {str(i): f"text {copies.get(str(i), i)}" for i in range(6)}
    rows = [(q, f"query {q}", d, text_of[d], score) for q, d, score in retrieved]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])
    qrels = pd.DataFrame(judged, columns=["qid", "docno", "label"])
    relevant = {(q, d) for q, d, label in judged if label > 0}
    with_text = {d for _, d, _ in retrieved}
    known = {(f"query {q}", text_of[d]) for q, d in relevant if d in with_text}
    positives = {(f"query {q}", text_of[d]) for q, d, label in judged if label >= min_label}
    others = {(f"query {q}", text_of[d]) for q, d, _ in retrieved if (q, d) not in relevant}
    negatives = Negatives(number, range_min=range_min, range_max=range_max, relative_margin=relative_margin)
    try:
        triples = from_results(results, qrels, negatives=negatives, min_label=min_label, seed=seed)
    except ValueError:
        return  # there was nothing to make triples of
    for query, positive, *drawn in texts_of(triples):
        assert (query, positive) in positives
        assert len(set(drawn)) == number
        assert all((query, negative) in others - known for negative in drawn)
    assert accounted(triples.summary)
    assert triples.summary["read"] == len(judged)


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
    first, again, other = (
        texts_of(from_topics(topics, qrels, corpus, negatives=Negatives(3), seed=s)) for s in (1, 1, 2)
    )
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
    triples = from_topics(topics, qrels, corpus, negatives=Negatives(3))
    assert triples.dataset.column_names == ["query", "positive", "negative_1", "negative_2", "negative_3"]
    assert triples.summary == {
        "source": "topics",
        "seed": 42,
        "negatives_from": {"number": 3, "range_min": 0, "range_max": None, "relative_margin": None},
        "queries_without_positives": 0,
        "read": 4,
        "triples": 3,
        "dropped": {"judgement with a label below 1": 1},
        "queries": 2,
        "positives": 3,
        "negatives": 3,
        "fingerprint": "a129e31b824a4d96",
    }


def test_documents_that_the_corpus_lacks_are_counted(topics, qrels, corpus):
    triples = from_topics(topics, qrels, corpus[:2] + corpus[10:])
    assert triples.summary["triples"] == 1
    assert triples.summary["dropped"] == {"judgement with a label below 1": 1, "positive without text": 2}
    with pytest.raises(ValueError, match="3 x positive without text"):
        from_topics(topics, qrels, corpus[10:])


def test_ranks_that_negatives_are_drawn_from(topics, qrels):
    """Whatever the order of rows; judged documents take a rank but are not drawn."""
    rows = [(q, t, f"d{i}", f"text {i}", 10.0 - i) for q, t in topics.to_numpy() for i in range(10)]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"]).sample(frac=1, random_state=0)
    for frame in (results, pt.model.add_ranks(results).sample(frac=1, random_state=1)):
        drawn = {
            row[-1]
            for seed in range(20)
            for row in texts_of(from_results(frame, qrels, negatives=Negatives(range_min=3, range_max=6), seed=seed))
        }
        assert drawn == {"text 3", "text 4", "text 5"}


def test_suspects_are_not_drawn(topics, qrels):
    rows = [("1", "sort", f"d{i}", f"text {i}", score) for i, score in enumerate([9.0, 10.0, 1.0, 9.6, 9.4])]
    results = pd.DataFrame(rows, columns=["qid", "query", "docno", "text", "score"])
    one = qrels[:1]
    drawn = {
        row[-1]
        for seed in range(20)
        for row in texts_of(from_results(results, one, negatives=Negatives(relative_margin=0.05), seed=seed))
    }
    assert drawn == {"text 0", "text 2", "text 4"}


def test_fewer_candidates_than_negatives_and_empty_texts(topics, qrels):
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


def test_judgements_that_are_no_triples(topics, corpus):
    rows = [("1", "d1", 1), ("1", "d1", 1), ("3", "d1", 1), ("2", "d2", 0)]
    triples = from_topics(topics, pd.DataFrame(rows, columns=["qid", "docno", "label"]), corpus)
    assert triples.summary["dropped"] == {
        "judgement of a query that is not there": 1,
        "judgement with a label below 1": 1,
        "judgement that stands there twice": 1,
    }
    assert triples.summary["queries_without_positives"] == 1


def test_texts_come_from_a_dataset(irds):
    dataset = irds[0]
    results = pd.DataFrame([("q1", "sort", "d2"), ("q1", "sort", "d3")], columns=["qid", "query", "docno"])
    qrels = pd.DataFrame([("q1", "d1", 1)], columns=["qid", "docno", "label"])
    assert texts_of(from_results(results[:1], qrels, corpus=dataset)) == [("sort", "text 1", "text 2")]
    with pytest.raises(ValueError, match=r"fields \['doc_id', 'text'\], not 'title'; choose .* fields="):
        from_results(results, qrels, corpus=dataset, fields=["title", "text"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0}, "negatives must be a positive integer, got 0"),
        ({"range_min": -1}, "range_min must be a positive integer, got -1"),
        ({"number": 3, "range_min": 8, "range_max": 10}, "fewer than 3 results"),
        ({"relative_margin": 5}, "relative_margin=5"),
    ],
)
def test_bad_choices_of_negatives(options, message):
    with pytest.raises(ValueError, match=message):
        Negatives(**options)


def test_a_corpus_has_no_ranks(topics, qrels, corpus):
    with pytest.raises(ValueError, match="put a retriever before"):
        from_topics(topics, qrels, corpus, negatives=Negatives(range_max=10))


def test_queries_are_split_whole_and_alike(qrels):
    frame = pd.DataFrame({"qid": [str(i % 500) for i in range(1000)]})
    shares = {"train": 0.6, "dev": 0.2, "test": 0.2}
    parts = split_queries(frame, shares)
    assert sum(map(len, parts.values())) == 1000
    for name, part in parts.items():
        assert len(part) == pytest.approx(1000 * shares[name], rel=0.3)
        assert part["qid"].value_counts().eq(2).all()
        assert set(split_queries(frame[::3], shares)[name]["qid"]) <= set(part["qid"])
    with pytest.raises(ValueError, match="do not sum up to 1"):
        split_queries(frame, {"train": 0.6})
    with pytest.raises(TypeError, match="no string in 1000"):
        split_queries(frame.astype(int))


def test_a_corpus_without_texts(topics, qrels, corpus):
    with pytest.raises(ValueError, match="'docno' and 'body'"):
        from_topics(topics, qrels, corpus, text_field="body")


@pytest.mark.parametrize("query", [None, 3, ""])
def test_a_query_without_text(topics, qrels, corpus, query):
    topics = topics.astype(object)
    topics.loc[1, "query"] = query
    with pytest.raises((TypeError, ValueError), match="'query' must hold .* in 1 of 2 rows \\('2'"):
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


@pytest.mark.parametrize("form", [pd.DataFrame, Dataset.from_pandas, "labels.tsv", "labels.parquet"])
def test_labels_stay_beside_their_texts(form, folder):
    frame = pd.DataFrame([*ROWS, ("read", "", "plot")], columns=["query", "positive", "negative"])
    frame["label"] = [0.25, -1.5, 7.0]
    source = form if isinstance(form, str) else form(frame)
    if form == "labels.tsv":
        frame.to_csv(form, sep="\t", index=False)
    elif form == "labels.parquet":
        frame.to_parquet(form)
    triples = from_texts(source)
    assert [(*row[:3], row[3]) for row in texts_of(triples)] == [(*ROWS[0], 0.25), (*ROWS[1], -1.5)]
    assert triples.summary["negatives"] == 1
    other = from_texts(frame.assign(label=[0.5, -1.5, 7.0])).summary["fingerprint"]
    assert other not in (triples.summary["fingerprint"], from_texts(frame.iloc[:, :3]).summary["fingerprint"])


@pytest.mark.parametrize("labels", [[1.0, None], ["high", "low"]])
def test_labels_that_are_no_numbers(labels):
    frame = pd.DataFrame(ROWS, columns=["query", "positive", "negative"]).assign(label=labels)
    with pytest.raises(TypeError, match="column 'label' holds .*a number in every row"):
        from_texts(frame)


def test_identifiers_beside_texts_are_left_out():
    frame = pd.DataFrame(ROWS, columns=["query", "positive", "negative"]).assign(qid=["1", "2"], anchor="x")
    assert texts_of(from_texts(frame)) == ROWS


def test_copies_of_documents_with_any_label_are_not_drawn():
    """Even where only the corpus has the texts, and though they are no positives themselves."""
    corpus = [{"docno": d, "text": t} for d, t in [("d1", "a"), ("d2", "b"), ("copy", "b"), ("d3", "c")]]
    qrels = pd.DataFrame([("1", "d1", 2), ("1", "d2", 1)], columns=["qid", "docno", "label"])
    topics = pd.DataFrame([("1", "sort")], columns=["qid", "query"])
    results = topics.merge(pd.DataFrame({"docno": ["copy", "d3"]}), how="cross")
    for seed in range(10):
        options = {"min_label": 2, "seed": seed, "corpus": corpus}
        assert texts_of(from_results(results, qrels, **options)) == [("sort", "a", "c")]
        assert texts_of(from_topics(topics, qrels, **options)) == [("sort", "a", "c")]


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
        ([], ValueError, "no triples are there to train with, of 0 rows"),
        (["abc", "def"], TypeError, "row 0 is 'abc'"),
        ([("a", "b")], ValueError, "rows of 2 texts"),
        ([("a", "b", "c"), ("a", "b", "c", "d")], ValueError, "row 1 has 4 texts, the first one has 3"),
        ([("a", "b", None), ("a", "b", "")], ValueError, "of 2 rows: 2 x no text in 'negative'"),
        ([("a", "b", 3)], TypeError, "row 0, column '2', holds 3"),
        ([{"query": "a", "positive": "b", "negative": "c"}, {"query": "a"}], ValueError, "row 1 has .* missing"),
        (pd.DataFrame([("a", "b", 3)], columns=["query", "positive", "negative"]), TypeError, "'negative' holds int64"),
        (pd.DataFrame({"query": ["a"], "positive": ["b"]}), ValueError, r"\['query', 'positive'\]; they need"),
        (pd.DataFrame(columns=["query", "positive", "negative"], dtype=str), ValueError, "no triples are there"),
        ("nowhere.tsv", FileNotFoundError, "nowhere.tsv"),
    ],
    ids=str,
)
def test_bad_texts(source, error, message):
    with pytest.raises(error, match=message):
        from_texts(source)


def test_rows_without_text_are_counted():
    rows = [*ROWS, ("a", "b", None), ("a", " ", "c"), (float("nan"), "b", "c"), ("a", "b", "b ")]
    triples = from_texts(rows)
    assert texts_of(triples) == ROWS
    assert triples.summary["dropped"] == {
        "no text in 'query'": 1,
        "no text in 'positive'": 1,
        "no text in 'negative'": 1,
        "negative with the text of the positive": 1,
    }
    assert accounted(triples.summary)
    assert from_texts(rows, limit=1).summary["dropped"]["row beyond the first 1"] == 1


def test_the_fingerprint_is_of_the_texts(tmp_path, monkeypatch):
    whole = from_texts(ROWS * 50).summary["fingerprint"]
    monkeypatch.setattr("pyterrier_selfdistill.data.readers.ROWS", 7)
    assert from_texts(ROWS * 50).summary["fingerprint"] == whole
    assert from_texts(ROWS[::-1] * 50).summary["fingerprint"] != whole
    assert from_texts([("sor", "tsort rows", "plot a file")]).summary["fingerprint"] != whole


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"a\tb\tc\na\tb\n", "a.tsv, line 2 has 2 texts, the first one has 3"),
        ("a.tsv", b"Query\tPositive\tNegative\na\tb\tc\td\n", "a.tsv, line 2 has 4 columns, the header has 3"),
        ("a.tsv", b"a\tb\tc\n\xff\tb\tc\n", "a.tsv, line 2 is not UTF-8"),
        ("a.csv", b'a,b,c\na,b,"c"d\n', "a.csv, line 2: "),
        ("a.jsonl", b'{"query": "a", "positive": "b", "negative": "c"}\n{"query"\n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'[{"query": "a", "positive": "b", "negative": "c"}]', "line 1 is a JSON array of rows"),
    ],
)
def test_malformed_lines(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        from_texts(tmp_path / name)
    (tmp_path / name).write_bytes(b"\n".join(content.split(b"\n")[:1]))  # and no half of it is found again
    assert not [path for path in cache().glob("*") if not (path / "summary.json").exists()]


def cache():
    return Path(pt.io.pyterrier_home()) / "selfdistill" / "triples"


def test_headers_in_capitals(tmp_path):
    (tmp_path / "a.tsv").write_text("Negative\tQuery\tPositive\nc\ta\tb\n")
    assert texts_of(from_texts(tmp_path / "a.tsv")) == [("a", "b", "c")]


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    path = write(tmp_path / "triples.tsv", ROWS)
    first = from_texts(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "named_columns", lambda _: pytest.fail("the file was read again"))
        again = from_texts(path)
    assert again.summary == first.summary
    assert texts_of(again) == ROWS
    assert again.dataset.cache_files
    write(path, ROWS[:1])
    assert texts_of(from_texts(path)) == ROWS[:1]


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


PAIRS = {
    ("sort", "text 1", "text 2"),
    ("sort", "text 1", "text 3"),
    ("plot", "text 4", "text 5"),
    ("sort", "text 1", "text 0"),
}


def test_docpairs(irds):
    triples = from_docpairs(irds[0])
    assert set(texts_of(triples)) == PAIRS
    assert triples.summary["dropped"] == {"no text in 'query'": 1}
    assert accounted(triples.summary)
    assert (triples.summary["queries"], triples.summary["positives"], triples.summary["negatives"]) == (2, 2, 1)


def test_docpairs_of_each_query_and_in_all(irds):
    triples = from_docpairs(irds[0], max_pairs_per_query=1)
    assert sorted(row[0] for row in texts_of(triples)) == ["plot", "sort"]
    assert triples.summary["dropped"] == {"pair beyond 1 of its query": 2, "no text in 'query'": 1}
    assert {len(from_docpairs(irds[0], limit=n).dataset) for n in (3, 3)} == {3}
    limited = from_docpairs(irds[0], limit=2).summary
    assert accounted(limited)
    samples = {frozenset(texts_of(from_docpairs(irds[0], max_pairs_per_query=1, seed=seed))) for seed in range(20)}
    assert len(samples) == 3
    with pytest.raises(ValueError, match="limit must be a positive integer, got -1"):
        from_docpairs(irds[0], limit=-1)


def test_docpairs_without_stored_texts(irds):
    stored, looked_up = (from_docpairs(irds[0], store_texts=s) for s in (True, False))
    assert looked_up.summary == stored.summary
    assert texts_of(looked_up) == texts_of(stored)
    assert looked_up.dataset[1:3] == stored.dataset[1:3]
    assert looked_up.dataset.column_names == ["query", "positive", "negative"]


def test_docpairs_are_made_once(irds, monkeypatch):
    first = from_docpairs(irds[0], seed=7)
    monkeypatch.setattr(module, "sort_into_buckets", lambda *_: pytest.fail("the pairs were read again"))
    assert from_docpairs(irds[0], seed=7).dataset[:] == first.dataset[:]


def test_an_interrupted_preparation_leaves_nothing(irds, monkeypatch):
    before = set(cache().glob("*"))
    monkeypatch.setattr(module.Ledger, "summary", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        from_docpairs(irds[0], seed=8)
    assert set(cache().glob("*")) == before
    assert not list(cache().glob(".*"))


IDENTIFIERS = [("q1", "d1", "d2"), ("q1", "d1", "d3"), ("q2", "d4", "d5"), ("q1", "d1", "d0"), ("q3", "d1", "d2")]


def test_identifiers(irds, tmp_path, corpus):
    topics = pd.DataFrame([("q1", "sort"), ("q2", "plot")], columns=["qid", "query"])
    expected = from_docpairs(irds[0])
    frame = pd.DataFrame(IDENTIFIERS, columns=["qid", "positive", "negative"])
    (tmp_path / "ids.tsv").write_text("".join("\t".join(row) + "\n" for row in IDENTIFIERS))
    for source, documents in [
        (IDENTIFIERS, corpus),
        (frame[::-1], corpus),
        (tmp_path / "ids.tsv", irds[0]),
        (frame, pd.DataFrame(corpus)),
    ]:
        triples = from_identifiers(source, topics, documents)
        assert texts_of(triples) == texts_of(expected)  # in the same shuffled order, whatever that of the source
        assert triples.summary["fingerprint"] == expected.summary["fingerprint"]
    twice = from_identifiers(IDENTIFIERS * 2, topics, corpus)
    assert texts_of(twice) == texts_of(expected)
    assert twice.summary["dropped"] == {"row that stands there twice": 5, "no text in 'query'": 1}
    missing = from_identifiers([*IDENTIFIERS, ("q1", "d999", "d1"), ("q1", None, "d1")], topics, corpus)
    assert missing.summary["dropped"] == {"no text in 'query'": 1, "no text in 'positive'": 2}
    assert accounted(missing.summary)
    with pytest.raises(TypeError, match="holds 7"):
        from_identifiers([("q1", 7, "d1")], topics, corpus)


def test_pairs_sorted_in_parts(topics, corpus, monkeypatch):
    """Reading and looking up in parts of any size gives the same."""
    rows = [(str(1 + i % 2), f"d{i % 7}", f"d{10 + i % 83}") for i in range(500)]
    whole = from_identifiers(rows, topics, corpus, max_pairs_per_query=100, limit=150)
    monkeypatch.setattr(module, "CHUNK", 3)
    monkeypatch.setattr("pyterrier_selfdistill.data.readers.ROWS", 11)
    parts = from_identifiers(rows, topics, corpus, max_pairs_per_query=100, limit=150)
    assert texts_of(parts) == texts_of(whole)
    assert parts.summary == whole.summary
    assert whole.summary["triples"] == 150
    assert accounted(whole.summary)


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
    with pytest.raises(ValueError, match="topics= says"):
        trainer.fit_triples(IDENTIFIERS, topics=irds[0].get_topics())
    with pytest.raises(ValueError, match="max_pairs_per_query=2 needs a PyTerrier dataset"):
        trainer.fit_triples(ROWS, max_pairs_per_query=2)


def test_training_with_identifiers_whose_texts_are_looked_up(irds, encoder, tmp_path):
    from pyterrier_selfdistill import SelfDistillTrainer

    models = {
        SelfDistillTrainer(
            encoder, tmp_path / f"{store}{workers}", corpus=irds[0], dataloader_num_workers=workers, verbose=False
        )
        .fit_triples(IDENTIFIERS, topics=irds[0].get_topics(), store_texts=store)
        .encoder.model_name
        for store, workers in [(True, 0), (False, 0), (False, 2)]
    }
    assert len(models) == 1
    with pytest.raises(ValueError, match="not mined again"):
        SelfDistillTrainer(encoder, tmp_path / "r", corpus=irds[0], rounds=2).fit_triples(ROWS)
