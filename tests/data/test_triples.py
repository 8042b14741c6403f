"""Triples from each source: the right ones, the same ones each time, and no row lost without a count."""

import copy
import gzip
import logging
import os
import shutil
from pathlib import Path

import dill
import ir_datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyterrier as pt
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_datasets.datasets.base import FilteredDocPairs
from ir_datasets.formats import TsvDocPairs
from ir_datasets.util import GzipExtract, LocalDownload

from pyterrier_selfdistill.data.triples import parts_of, read_triples

COLUMNS = ["query", "positive", "negative"]
ROWS = [("sort", "sort rows", "plot a file"), ("plot", "plot a matrix", "read a value")]
FRAME = pd.DataFrame(ROWS, columns=COLUMNS)
TEXTS_OF_PAIRS = {
    ("sort", "text 1", "text 2"),
    ("sort", "text 1", "text 3"),
    ("plot", "text 4", "text 5"),
    ("sort", "text 1", "text 0"),
}


def passage(text):
    return {"docid": "d1", "title": "", "text": text}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A home of PyTerrier without triples; the folder that they will be in."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "selfdistill" / "triples"


def write(path, frame=FRAME):
    """Write a frame to a file of the kind that its name says."""
    if ".parquet" in path.name:
        frame.to_parquet(path)
    elif ".json" in path.name:
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, index=False, sep="," if ".csv" in path.name else "\t")
    return path


@pytest.mark.parametrize(
    "source",
    [
        ROWS,
        iter(ROWS),
        [{"positive": b, "anchor": a, "negative": c} for a, b, c in ROWS],
        FRAME.assign(score=1, qid="1", anchor="x"),
        FRAME.astype("category"),
        Dataset.from_pandas(FRAME.rename(columns={"negative": "negative_1"})),
        Dataset.from_pandas(FRAME[::-1]).select([1, 0]),
        Dataset.from_dict({"row": [0, 1]}).with_transform(lambda batch: FRAME.iloc[batch["row"]].to_dict("list")),
        Dataset.from_pandas(FRAME.map(str.upper)).with_transform(
            lambda batch: {name: [text.lower() for text in texts] for name, texts in batch.items()}
        ),
        Dataset.from_pandas(FRAME.assign(neg="x", pos="x")).with_format("numpy", columns=COLUMNS),
        FRAME.set_axis(["question", "passage", "neg"], axis=1).assign(query_id=[1, 2], document=[None, {}], nég=b""),
        [{"query": a, "pos": [b], "neg": [c], "neg_scores": [0.5]} for a, b, c in ROWS],
        [{"query": a, "positive_passages": [passage(b)], "negative_passages": [passage(c)]} for a, b, c in ROWS],
    ],
)
def test_texts_of_each_form_keep_their_order(source, texts_of):
    triples = read_triples(source)
    assert triples.dataset.column_names[:2] == ["query", "positive"] or triples.summary["source"] == "Dataset"
    assert texts_of(triples) == ROWS


def test_negatives_are_sorted_by_number():
    names = ["negative_10", "negative_2", "positive", "query"]
    dataset = read_triples(pd.DataFrame([["c", "b", "a", "q"]], columns=names)).dataset
    assert dataset.column_names == ["query", "positive", "negative_2", "negative_10"]
    names = [read_triples([row]).dataset.column_names for row in (("q", "a"), ("q", "a", "b", "c"))]
    assert names == [["query", "positive"], ["query", "positive", "negative_1", "negative_2"]]


def test_rows_without_a_text_of_their_own_are_dropped_and_counted(texts_of, caplog):
    faulty = [("a", "b", None), ("a", " ", "c"), (float("nan"), "b", "c"), ("a", "b", "b "), ("", "b", "c")]
    with caplog.at_level(logging.WARNING):
        triples = read_triples([faulty[0], *ROWS, *faulty, *ROWS])
    assert texts_of(triples) == ROWS * 2
    assert (triples.summary["read"], triples.summary["dropped"]) == (10, 6)
    assert (triples.summary["queries"], triples.summary["positives"], triples.summary["negatives"]) == (2, 2, 1)
    assert "6 of 10 rows were dropped" in caplog.text
    limited = read_triples([faulty[0], *ROWS, ("a", "b", "c")], limit=2)
    assert texts_of(limited) == ROWS
    assert (limited.summary["read"], limited.summary["dropped"]) == (3, 1)


def test_the_fingerprint_is_of_texts_and_labels_in_their_order(tmp_path):
    """However they are stored and divided."""

    def fingerprint(source):
        return read_triples(source).summary["fingerprint"]

    rows = [(f"query {number}", f"text {number}", "plot") for number in range(25_000)]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    assert fingerprint(frame) == fingerprint(write(tmp_path / "a.csv", frame)) != fingerprint(rows[:-1])
    others = [[("query 0t", "ext 0", "plot"), rows[1]], [("query 0 ", "text 0", "plot"), rows[1]]]
    others += [rows[:2], rows[1::-1], frame[:2].assign(label=1.0), frame[:2].assign(label=0.5)]
    others += [frame[:2].rename(columns={"negative": "negative_1"})]
    assert len(set(map(fingerprint, others))) == len(others)


@pytest.mark.parametrize("form", ["frame", "dataset", "records", "a.tsv", "a.csv", "a.jsonl", "a.parquet"])
def test_labels_stay_next_to_their_texts(form, tmp_path, texts_of):
    frame = pd.DataFrame([*ROWS, ("read", "", "plot")], columns=COLUMNS).assign(label=[0.25, -1.5, 7.0])
    sources = {"frame": frame, "dataset": Dataset.from_pandas(frame), "records": frame.to_dict(orient="records")}
    triples = read_triples(sources[form] if form in sources else write(tmp_path / form, frame))
    assert texts_of(triples) == [(*ROWS[0], 0.25), (*ROWS[1], -1.5)]
    assert triples.summary["negatives"] == 1


@pytest.mark.parametrize("labels", [[1.0, None], [1.0, 1e300], ["nan", "1"], [True, False], [1, "x"]], ids=repr)
@pytest.mark.parametrize("name", [None, "a.tsv", "a.jsonl"])
def test_labels_that_are_not_numbers_are_errors(name, tmp_path, labels):
    frame = FRAME.assign(label=pd.Series(labels, dtype=object))
    with pytest.raises((TypeError, ValueError), match="label"):
        read_triples(write(tmp_path / name, frame) if name else frame)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ([("a", "b", "c"), "abc"], TypeError, "row 1 is 'abc'"),
        ([("a",)], ValueError, "rows of 1 texts"),
        ([("a", "b", 3)], TypeError, "'negative' must hold texts"),
        (pd.DataFrame([("a", "b", "c", "d")], columns=[*COLUMNS, "query"]), ValueError, r"\['query'\] more than once"),
        (FRAME.rename(columns={"query": "text"}), ValueError, r"'query' or .*got the columns \['text', 'positive'"),
        (FRAME.rename(columns={"negative": "hard_neg"}), ValueError, "'negative' or .*'hard_neg'"),
        (pd.DataFrame([("a", "b", "\ud800")], columns=COLUMNS, dtype=object), ValueError, "ud800"),
        ("nowhere.tsv", FileNotFoundError, "nowhere.tsv"),
    ],
    ids=str,
)
def test_bad_texts_are_errors(source, error, message):
    with pytest.raises(error, match=message):
        read_triples(source)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet", ".tsv.gz", ".csv.gz", ".json", ".TSV"])
def test_each_kind_of_file(tmp_path, texts_of, suffix):
    path = write(tmp_path / f"my.triples [1] a::b{suffix}")
    assert texts_of(read_triples(path)) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.tsv", 'a "b\t\'c\tNA\n"x"\tnull\t7\n', [('a "b', "'c", "NA"), ('"x"', "null", "7")]),
        ("a.tsv", "\ufeffNegative\tQuery \tPOSITIVE\nc\ta\tb\n", [("a", "b", "c")]),
        ("a.tsv", " a \tb\tc\r\nd\te\tf\r\n", [(" a ", "b", "c"), ("d", "e", "f")]),
        ("a.tsv", "a\tb\u2028\x0b\x0c\x85b\tc\n", [("a", "b\u2028\x0b\x0c\x85b", "c")]),
        ("a.tsv", f"a\tb\t{'text ' * 100_000}x\n", [("a", "b", "text " * 100_000 + "x")]),
        ("a.csv", 'a,"b\nc",d\n"e, f",g,"h ""i"""\n', [("a", "b\nc", "d"), ("e, f", "g", 'h "i"')]),
        ("a.jsonl", '{"query": "2020-01-01", "positive": "b", "negative": "12:00", "x": 1}\n{"negative": "c", '
         '"query": "a", "positive": "b", "x": [2]}\n', [("2020-01-01", "b", "12:00"), ("a", "b", "c")]),
        ("a.csv", "query,pos,neg\na,b,c\n", [("a", "b", "c")]),
        ("a.tsv", "a\tquery\tpos it\n", [("a", "query", "pos it")]),
        ("a.jsonl", '{"query": "a", "pos": ["b", "c"], "neg": ["d", "e"]}\n{"query": "a", "pos": ["b"], "neg": []}\n',
         [("a", "b", "d"), ("a", "b", "e"), ("a", "c", "d"), ("a", "c", "e")]),
        ("a.jsonl", '{"query_id": 1, "query": "a", "positive_passages": [{"docid": "1", "title": "t", "text": "b"}]}\n',
         [("a", "b")]),
        ("a.jsonl", '\n{"query": "a", "positive": "b", "negative": "c"}\n{"query": "a"}\nnull\n', [("a", "b", "c")]),
    ],
)  # fmt: skip
def test_files_give_the_texts_that_are_in_them(tmp_path, name, content, rows, texts_of):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert texts_of(read_triples(tmp_path / name)) == rows


COMPRESSED = gzip.compress(b"a\tb\tc\n" * 1000, mtime=0)
OBJECT = b'{"query": "a", "positive": "b", "negative": "c"}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", b"a\tb\tc\na\tb\n"),
        ("a.tsv", b"a\tb\tc\na\tb\rx\tc\n"),
        ("a.tsv", b"a\tb\0x\tc\n"),
        ("a.tsv", "a\tb\tc".encode("utf-16-le")),
        ("a.tsv", COMPRESSED[:-10]),
        ("a.tsv", COMPRESSED[:-8] + bytes(8)),
        ("a.csv", b'a,b,c\na,b,"c\nd\n'),
        ("a.csv", b"query,label\na,1\n"),
        ("a.tsv", b"query\trelevant\tother\na\tb\tc\n"),
        ("a.jsonl", OBJECT + b'{"query": "a", "positive": "b", "negative": 3}'),
        ("a.parquet", b"PAR1"),
    ],
)
def test_damaged_files_are_errors_that_name_the_file_and_leave_nothing(tmp_path, cache, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: "):
        read_triples(tmp_path / name)
    assert not list(cache.glob("*"))


def test_parquet_must_hold_texts(tmp_path):
    path = tmp_path / "a.parquet"
    for negative, error in (([3], TypeError), ([b"c"], TypeError), (pa.array([b"\xff"]).view(pa.string()), ValueError)):
        pq.write_table(pa.table({"query": ["a"], "positive": ["b"], "negative": negative}), path)
        with pytest.raises(error, match="a.parquet: "):
            read_triples(path)


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_a_file_is_read_once_until_it_changes(tmp_path, cache, suffix, texts_of):
    """Also if its size and its time stay the same."""
    path = write(tmp_path / f"a{suffix}")
    first = read_triples(path)
    times = path.stat()
    again = read_triples(path)
    assert again.summary == first.summary
    assert again.dataset.cache_files == first.dataset.cache_files != []
    assert len(list(cache.iterdir())) == 1
    changed = [(row[0], row[1].replace("rows", "row!"), row[2]) for row in ROWS]
    write(path, pd.DataFrame(changed, columns=COLUMNS))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert texts_of(read_triples(path)) == changed
    assert len(read_triples(path, limit=1).dataset) == 1
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("name", ["triples.arrow", "summary.json"])
def test_triples_that_were_changed_or_cut_are_made_again(tmp_path, cache, texts_of, name):
    path = write(tmp_path / "a.tsv")
    summary = read_triples(path).summary
    (file,) = cache.glob(f"*/{name}")
    content = file.read_bytes()
    for damaged in (content.replace(b"rows", b"row!").replace(b"files", b"file!"), content[:-40], b""):
        assert damaged != content
        file.write_bytes(damaged)
        assert texts_of(read_triples(path)) == ROWS
        assert read_triples(path).summary == summary
        assert file.read_bytes() == content


def test_a_dataset_on_the_disk_is_read_once(tmp_path, cache):
    Dataset.from_pandas(FRAME).save_to_disk(tmp_path / "saved")
    first, again = (read_triples(load_from_disk(str(tmp_path / "saved"))).dataset.cache_files for _ in range(2))
    assert first == again != []


def test_an_interrupted_writer_leaves_nothing_that_looks_whole(tmp_path, cache, monkeypatch, texts_of):
    path = write(tmp_path / "a.tsv")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            read_triples(path)
    assert not [folder for folder in cache.glob("*") if (folder / "summary.json").exists()]
    assert texts_of(read_triples(path)) == ROWS


@pytest.mark.parametrize("store_texts", [True, False])
@pytest.mark.parametrize("form", ["rows", "file of a dataset", "corpus in a frame", "dataset"])
def test_identifiers_and_docpairs_give_the_same(form, store_texts, dataset, tmp_path, topics, corpus, pairs, texts_of):
    """With texts stored and looked up."""
    frame = pd.DataFrame(pairs, columns=["qid", "positive", "negative"]).assign(label="x")
    frame.drop(columns="label").to_csv(tmp_path / "a.tsv", sep="\t", index=False, header=False)
    sources = {
        "rows": (pairs, corpus),
        "file of a dataset": (tmp_path / "a.tsv", dataset),
        "corpus in a frame": (frame, pd.DataFrame(corpus)),
    }
    expected = read_triples(pairs, topics=topics, corpus=corpus)
    if form == "dataset":
        triples = read_triples(dataset, store_texts=store_texts)
    else:
        source, documents = sources[form]
        triples = read_triples(source, topics=topics, corpus=documents, store_texts=store_texts)
    assert texts_of(triples) == texts_of(expected)
    assert set(texts_of(triples)) == TEXTS_OF_PAIRS
    assert triples.dataset[1:3] == expected.dataset[1:3]
    assert triples.dataset.column_names == COLUMNS
    assert {**triples.summary, "source": "", "kind": ""} == {**expected.summary, "source": "", "kind": ""}
    assert triples.summary["dropped"] == 1
    assert read_triples(texts_of(triples)).summary["fingerprint"] == triples.summary["fingerprint"]
    for copied in (copy.deepcopy(triples.dataset), dill.loads(dill.dumps(triples.dataset))):
        assert copied[:] == expected.dataset[:]


identifiers = st.integers(0, 5).map("d{}".format)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(st.tuples(st.sampled_from("129"), identifiers, identifiers), min_size=1, max_size=60),
    number=st.none() | st.integers(1, 4),
    limit=st.none() | st.integers(1, 10),
    store_texts=st.booleans(),
)
def test_the_kept_pairs_of_a_query_are_the_first_that_can_be_trained_with(texts_of, rows, number, limit, store_texts):
    """Neither duplicates nor pairs without a text, nor those of two equal texts, count."""
    topics = pd.DataFrame({"qid": ["1", "2"], "query": ["sort", "plot"]})
    corpus = [{"docno": f"d{number}", "text": text} for number, text in enumerate(["a", "b", "b ", "", "c"])]
    texts = {document["docno"]: document["text"] for document in corpus}
    usable = {row for row in rows if row[0] != "9" and all(texts.get(docno, "") for docno in row[1:])}
    usable = {row for row in usable if texts[row[1]].strip() != texts[row[2]].strip()}
    options = {"topics": topics, "corpus": corpus, "store_texts": store_texts}
    if not usable:
        with pytest.raises(ValueError, match=f"in {len(rows)} rows"):
            read_triples(rows, **options)
        return
    everything = texts_of(read_triples(rows, **options))
    assert len(everything) == len(usable)
    expected = []
    for row in everything:
        if number is None or sum(other[0] == row[0] for other in expected) < number:
            expected.append(row)
    triples = read_triples(rows, max_pairs_per_query=number, limit=limit, **options)
    assert texts_of(triples) == expected[:limit]
    assert triples.summary["triples"] + triples.summary["dropped"] == triples.summary["read"] == len(rows)


def test_the_sample_depends_on_the_seed_only(dataset, texts_of, caplog):
    read_triples(dataset, limit=2)
    assert "dropped" not in caplog.text  # they were asked to be
    samples = [texts_of(read_triples(dataset, max_pairs_per_query=1, seed=seed)) for seed in (*range(10), 3)]
    assert samples[-1] == samples[3]
    assert len(set(map(frozenset, samples))) == 3


def test_many_pairs_with_several_negatives_in_blocks(topics, corpus):
    """More than are looked up at once."""
    generator = np.random.default_rng(0)
    rows = [("1", *(f"d{number}" for number in numbers)) for numbers in generator.integers(0, 100, (45_000, 3))]
    triples = read_triples(rows, topics=topics, corpus=corpus)
    usable = {row for row in rows if row[1] not in row[2:]}
    assert len(triples.dataset) == len(usable)
    assert triples.dataset.column_names == ["query", "positive", "negative_1", "negative_2"]
    capped = read_triples(rows, topics=topics, corpus=corpus, max_pairs_per_query=41_000)
    assert len(capped.dataset) == 41_000
    assert capped.dataset[:1000] == triples.dataset[:1000]


@pytest.mark.parametrize("part", ["docs", "queries", "docpairs"])
def test_docpairs_are_made_anew_when_a_part_changes(part, dataset, tmp_path, texts_of, cache):
    first = set(texts_of(read_triples(dataset)))
    read_triples(dataset)
    assert len(list(cache.iterdir())) == 1
    path = tmp_path / "irds" / "tiny" / "pairs" / part
    replacements = {"docs": ("text", "plan"), "queries": ("sort", "rank"), "docpairs": ("d1\td", "d2\td")}
    path.write_text(path.read_text().replace(*replacements[part]))
    # ir_datasets keeps it whatever becomes of the documents
    shutil.rmtree(dataset.irds_ref().docs_store().path)
    changed = {
        "docs": {tuple(text.replace("text", "plan") for text in row) for row in first},
        "queries": {(query.replace("sort", "rank"), *texts) for query, *texts in first},
        "docpairs": {("plot", "text 4", "text 5"), ("sort", "text 2", "text 3"), ("sort", "text 2", "text 0")},
    }
    assert set(texts_of(read_triples(dataset))) == changed[part]


def test_other_topics_and_other_corpora_give_other_triples(dataset, tmp_path, topics, corpus, pairs):
    path = tmp_path / "a.tsv"
    pd.DataFrame(pairs).to_csv(path, sep="\t", index=False, header=False)
    first = read_triples(path, topics=topics, corpus=dataset)
    assert set(read_triples(path, topics=topics.assign(query="read"), corpus=dataset).dataset["query"]) == {"read"}
    titled = read_triples(path, topics=topics, corpus=corpus, fields=["docno", "text"])
    assert set(titled.dataset["positive"]) == {"d1 text 1", "d4 text 4"}
    assert read_triples(path, topics=topics, corpus=dataset).summary == first.summary


LINES = '1\td1\td2\n\n007\t"d1\tNA\n2\t\td5 \né\td1\td2'


@pytest.mark.parametrize("kind", ["file", "gzip", "chosen"])
def test_docpairs_are_those_of_ir_datasets(dataset, tmp_path, kind, texts_of, cache):
    """Quotes, zeros and what looks like a missing value are parts of identifiers."""
    (tmp_path / "lines").write_text(LINES)
    (tmp_path / "lines.gz").write_bytes(gzip.compress(LINES.encode(), mtime=0))
    handlers = {
        "file": TsvDocPairs(LocalDownload(tmp_path / "lines")),
        "gzip": TsvDocPairs(GzipExtract(LocalDownload(tmp_path / "lines.gz"))),
        "chosen": FilteredDocPairs(TsvDocPairs(LocalDownload(tmp_path / "lines")), lambda: {"1", "2"}),
    }
    reference = dataset.irds_ref()
    parts = reference.docs_handler(), reference.queries_handler(), handlers[kind]
    ir_datasets.registry._registered["tiny/pairs"] = ir_datasets.Dataset(*parts)
    triples = read_triples(pt.get_dataset("irds:tiny/pairs"))
    assert texts_of(triples) == [("sort", "text 1", "text 2")]
    assert triples.summary["read"] == len(list(handlers[kind].docpairs_iter()))
    assert cache.exists() == (kind != "chosen")


def test_sources_and_options_that_do_not_fit_are_errors(register, topics, corpus, pairs):
    judged = register("t", docs=[("d1", "x")], queries=topics.to_numpy(), qrels=[("1", 0, "d1", 1)])
    with pytest.raises(ValueError, match=r"no docpairs \(it has \['docs', 'queries', 'qrels'\]\)"):
        read_triples(judged)
    with pytest.raises(ValueError, match="corpus="):
        read_triples(pairs, topics=topics)
    with pytest.raises(ValueError, match="max_pairs_per_query=2"):
        read_triples(ROWS, max_pairs_per_query=2)
    with pytest.raises(ValueError, match="limit must be a positive integer, got 0"):
        read_triples(ROWS, limit=0)
    with pytest.raises(ValueError, match="in 1 rows"):
        read_triples([("1", "d998", "d999")], topics=topics, corpus=corpus)


ONE = [*ROWS, ("", "sort", "read")]
TWO = [("plot", "plot a matrix", "sort", "read"), ("read", "read a file", "sort", "plot")]


def test_collections_are_counted_one_by_one_and_in_sum():
    triples = read_triples({"one": ONE, "two": TWO})
    summary = triples.summary
    assert summary["collections"]["one"] == read_triples(ONE).summary
    assert (summary["read"], summary["triples"], summary["dropped"], summary["queries"]) == (5, 4, 1, 4)
    assert triples.dataset["two"].column_names == ["query", "positive", "negative_1", "negative_2"]
    assert [len(part) for part in parts_of(triples.dataset)] == [2, 2]
    assert len(read_triples({"one": ONE, "two": TWO}, limit=1).dataset["two"]) == 1


def test_the_fingerprint_of_collections_is_of_names_texts_and_their_order():
    sources = [{"one": ONE, "two": TWO}, {"two": TWO, "one": ONE}, {"one": ONE, "2": TWO}, {"one": ONE}]
    sources += [{"one": ONE, "two": TWO[::-1]}]
    fingerprints = [read_triples(source).summary["fingerprint"] for source in [*sources, sources[0]]]
    assert len(set(fingerprints)) == len(sources)
    assert fingerprints[0] == fingerprints[-1]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, "source must name at least one collection"),
        (DatasetDict(train=Dataset.from_list([])), r"source\['train'\]"),
        ({"one": ONE, "two": []}, "(?s)in 0 rows.*in the collection 'two'"),
        ({"one": ONE, "two": FRAME.assign(label=0.5)}, r"got it in \['two'\] and not in \['one'\]"),
    ],
)
def test_bad_collections_are_errors(sources, message):
    with pytest.raises(ValueError, match=message):
        read_triples(sources)
