"""Triples from each source: the right ones, the same ones each time, and no row lost without a word."""

import shutil
from pathlib import Path

import ir_datasets
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from datasets import Dataset

from pyterrier_selfdistill import SelfDistillTrainer
from pyterrier_selfdistill.data import triples as module
from pyterrier_selfdistill.data.triples import (
    ExternalShuffle,
    PairOptions,
    TripleWriter,
    from_docpairs,
    from_identifiers,
    from_texts,
)

COLUMNS = ["query", "positive", "negative"]
ROWS = [("sort", "sort rows", "plot a file"), ("plot", "plot a matrix", "read a value")]

TEXTS_OF_PAIRS = {
    ("sort", "text 1", "text 2"),
    ("sort", "text 1", "text 3"),
    ("plot", "text 4", "text 5"),
    ("sort", "text 1", "text 0"),
}


@pytest.fixture
def frame():
    return pd.DataFrame(ROWS, columns=COLUMNS)


@pytest.fixture
def cache_folder():
    """Where triples are kept."""
    return Path(pt.io.pyterrier_home()) / "selfdistill" / "triples"


def fail_to_read(*_):
    pytest.fail("the source was read again")


# texts


def test_from_texts_of_each_form(frame, texts_of):
    records = [{"positive": b, "anchor": a, "negative": c} for a, b, c in ROWS]
    dataset = Dataset.from_pandas(frame.rename(columns={"negative": "negative_1"}))
    for source in [ROWS, iter(ROWS), records, frame.assign(score=1), dataset]:
        triples = from_texts(source)
        assert triples.dataset.column_names[:2] == ["query", "positive"]
        assert texts_of(triples) == ROWS


@pytest.mark.parametrize("suffix", [".tsv", ".csv.gz", ".jsonl", ".parquet"])
def test_from_texts_of_a_file(tmp_path, frame, write_frame, texts_of, suffix):
    path = tmp_path / f"my.triples{suffix}"
    write_frame(frame, path)
    assert texts_of(from_texts(path)) == ROWS
    assert texts_of(from_texts(str(path))) == ROWS


def test_from_texts_of_a_file_without_a_header(tmp_path, texts_of):
    rows = [('the "sort', "sort 'rows", "NA"), *ROWS]
    lines = map("\t".join, rows)
    (tmp_path / "triples.tsv").write_text("\n".join(lines))
    assert texts_of(from_texts(tmp_path / "triples.tsv")) == rows


def test_from_texts_of_a_file_with_a_header_in_capitals(tmp_path, texts_of):
    (tmp_path / "a.tsv").write_text("Negative\tQuery\tPositive\nc\ta\tb\n")
    assert texts_of(from_texts(tmp_path / "a.tsv")) == [("a", "b", "c")]


def test_from_texts_reads_a_file_once_until_it_changes(tmp_path, frame, texts_of, monkeypatch):
    path = tmp_path / "triples.tsv"
    frame.to_csv(path, sep="\t", index=False)
    first = from_texts(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "select_columns", fail_to_read)
        again = from_texts(path)
    assert again.summary == first.summary
    assert texts_of(again) == ROWS
    assert again.dataset.cache_files
    frame[:1].to_csv(path, sep="\t", index=False)
    assert texts_of(from_texts(path)) == ROWS[:1]


def test_from_texts_of_a_malformed_file_leaves_nothing(tmp_path, cache_folder):
    """Not even the rows before the malformed one."""
    before = set(cache_folder.glob("*"))
    (tmp_path / "a.tsv").write_text("a\tb\tc\na\tb\n")
    with pytest.raises(ValueError, match="line 2 has 2 texts, the first one has 3"):
        from_texts(tmp_path / "a.tsv")
    assert set(cache_folder.glob("*")) == before
    assert not list(cache_folder.glob(".*"))


@pytest.mark.parametrize("form", ["frame", "dataset", "records", "a.tsv", "a.jsonl", "a.parquet"])
def test_from_texts_keeps_labels_beside_their_texts(form, folder, texts_of):
    frame = pd.DataFrame([*ROWS, ("read", "", "plot")], columns=COLUMNS).assign(label=[0.25, -1.5, 7.0])
    frame.to_csv("a.tsv", sep="\t", index=False)
    frame.to_json("a.jsonl", orient="records", lines=True)
    frame.to_parquet("a.parquet")
    sources = {"frame": frame, "dataset": Dataset.from_pandas(frame), "records": frame.to_dict(orient="records")}
    triples = from_texts(sources.get(form, form))
    assert texts_of(triples) == [(*ROWS[0], 0.25), (*ROWS[1], -1.5)]
    assert triples.summary["negatives"] == 1
    fingerprints = {
        triples.summary["fingerprint"],
        from_texts(frame.assign(label=[0.5, -1.5, 7.0])).summary["fingerprint"],
        from_texts(frame[COLUMNS]).summary["fingerprint"],
    }
    assert len(fingerprints) == 3


@pytest.mark.parametrize("number", [1, 0.5, np.float32(0.5), np.int64(-1)], ids=repr)
def test_from_texts_takes_labels_of_any_type_of_numbers(number):
    (row,) = from_texts([dict(zip([*COLUMNS, "label"], [*ROWS[0], number], strict=True))]).dataset
    assert row["label"] == float(number)


@pytest.mark.parametrize("labels", [[1.0, None], ["high", "low"], [True, False], [[1.0], [2.0]]], ids=repr)
@pytest.mark.parametrize("form", ["frame", "records", "a.tsv", "a.jsonl"])
def test_from_texts_rejects_labels_that_are_not_numbers(form, folder, frame, labels):
    frame = frame.assign(label=labels)
    frame.to_csv("a.tsv", sep="\t", index=False)
    frame.to_json("a.jsonl", orient="records", lines=True)
    sources = {"frame": frame, "records": frame.to_dict(orient="records")}
    with pytest.raises(TypeError, match="column 'label' must hold a number in every row"):
        from_texts(sources.get(form, form))


def test_from_texts_leaves_out_identifiers_beside_texts(frame, texts_of):
    assert texts_of(from_texts(frame.assign(qid=["1", "2"], anchor="x"))) == ROWS


def test_from_texts_of_a_selection_checks_only_what_is_selected(texts_of):
    dataset = Dataset.from_pandas(pd.DataFrame([*ROWS, ("a", "", "c")], columns=COLUMNS))
    assert texts_of(from_texts(dataset.select([1, 0]))) == ROWS[::-1]


def test_from_texts_keeps_the_first_ones_up_to_the_limit(texts_of):
    assert texts_of(from_texts(ROWS, limit=1)) == ROWS[:1]
    with pytest.raises(ValueError, match="limit must be a positive integer, got 0"):
        from_texts(ROWS, limit=0)


def test_from_texts_stops_reading_at_the_limit(monkeypatch, texts_of):
    monkeypatch.setattr("pyterrier_selfdistill.data.triples.ROWS", 2)
    read = []

    def rows():
        for number in range(100):
            read.append(number)
            yield "sort", f"text {number}", "plot"

    assert len(from_texts(rows(), limit=3).dataset) == 3
    assert len(read) == 4


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
        (pd.DataFrame([("a", "b", 3)], columns=COLUMNS), TypeError, "'negative' must hold texts, got int64"),
        (pd.DataFrame({"query": ["a"], "positive": ["b"]}), ValueError, r"must have .* got \['query', 'positive'\]"),
        (pd.DataFrame([("a", "b", "c", "d")], columns=[*COLUMNS, "query"]), ValueError, "distinct columns"),
        (pd.DataFrame(columns=COLUMNS, dtype=str), ValueError, "no triples are there"),
        (pd.DataFrame([("a", "b", "c"), ("a", "b", 3)], columns=COLUMNS), TypeError, "columns of one type each"),
        (pd.DataFrame([("a", "b", "\ud800")], columns=COLUMNS, dtype=object), TypeError, "surrogates"),
        (7, TypeError, "source must be a frame, a datasets.Dataset, an iterable of rows, or the path .* got 7"),
        ("nowhere.tsv", FileNotFoundError, "nowhere.tsv"),
        ("triples.xml", FileNotFoundError, "triples.xml"),
    ],
    ids=str,
)
def test_from_texts_rejects_bad_texts(source, error, message):
    with pytest.raises(error, match=message):
        from_texts(source)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.tsv", "", ValueError, "no triples are there to train with, of 0 rows; give rows of a query, a positive"),
        ("a.tsv", "query\tpositive\tnegative\n", ValueError, "no triples are there to train with, of 0 rows; give"),
        ("a.tsv", "a\tb\t\n", ValueError, "of 1 rows: 1 x no text in 'negative'"),
        ("a.tsv", "a b c\n", ValueError, "got rows of 1 texts; check what separates the columns"),
        ("a.csv", "query,positive\na,b\n", ValueError, "must have the columns .* got .'query', 'positive'.$"),
        (
            "a.jsonl",
            '{"query": "a", "positive": "b"}',
            ValueError,
            "must have the columns .* got .'query', 'positive'.$",
        ),
    ],
)
def test_from_texts_names_the_file_whose_columns_are_wrong(tmp_path, name, content, error, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=f"{name}: .*{message}"):
        from_texts(tmp_path / name)


def test_from_texts_names_the_file_whose_types_are_wrong(tmp_path, frame):
    frame.assign(negative=3).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(TypeError, match="a.parquet: column 'negative' must hold texts, got int64"):
        from_texts(tmp_path / "a.parquet")


def test_from_texts_takes_categories(frame, texts_of):
    assert texts_of(from_texts(frame.astype("category"))) == ROWS


def test_from_texts_counts_rows_without_text(texts_of, is_accounted):
    rows = [*ROWS, ("a", "b", None), ("a", " ", "c"), (float("nan"), "b", "c"), ("a", "b", "b ")]
    triples = from_texts(rows)
    assert texts_of(triples) == ROWS
    assert triples.summary["dropped"] == {
        "no text in 'query'": 1,
        "no text in 'positive'": 1,
        "no text in 'negative'": 1,
        "negative with the text of the positive": 1,
    }
    assert is_accounted(triples.summary)
    assert from_texts(rows, limit=1).summary["dropped"]["row beyond the first 1"] == 1


def test_from_texts_fingerprints_texts_in_their_order(monkeypatch):
    whole = from_texts(ROWS * 50).summary["fingerprint"]
    monkeypatch.setattr("pyterrier_selfdistill.data.triples.ROWS", 7)
    assert from_texts(ROWS * 50).summary["fingerprint"] == whole
    assert from_texts(ROWS[::-1] * 50).summary["fingerprint"] != whole
    assert from_texts([("sor", "tsort rows", "plot a file")]).summary["fingerprint"] != whole


# docpairs


def test_from_docpairs(dataset, texts_of, is_accounted):
    triples = from_docpairs(dataset)
    assert set(texts_of(triples)) == TEXTS_OF_PAIRS
    assert triples.summary["dropped"] == {"no text in 'query'": 1}
    assert is_accounted(triples.summary)
    assert (triples.summary["queries"], triples.summary["positives"], triples.summary["negatives"]) == (2, 2, 1)


def test_from_docpairs_keeps_as_many_of_each_query_as_asked_for(dataset, texts_of):
    triples = from_docpairs(dataset, PairOptions(max_pairs_per_query=1))
    assert sorted(triples.dataset["query"]) == ["plot", "sort"]
    assert triples.summary["dropped"] == {"pair beyond 1 of its query": 2, "no text in 'query'": 1}


def test_from_docpairs_keeps_as_many_in_all_as_asked_for(dataset, is_accounted):
    for _ in range(2):  # made, then found
        assert len(from_docpairs(dataset, PairOptions(limit=3)).dataset) == 3
    assert is_accounted(from_docpairs(dataset, PairOptions(limit=2)).summary)


def test_from_docpairs_samples_by_the_seed(dataset, texts_of):
    samples = set()
    for seed in range(20):
        options = PairOptions(max_pairs_per_query=1, seed=seed)
        samples.add(frozenset(texts_of(from_docpairs(dataset, options))))
    assert len(samples) == 3


def test_from_docpairs_without_stored_texts_gives_the_same(dataset, texts_of):
    stored = from_docpairs(dataset)
    looked_up = from_docpairs(dataset, PairOptions(store_texts=False))
    assert looked_up.summary == stored.summary
    assert texts_of(looked_up) == texts_of(stored)
    assert looked_up.dataset[1:3] == stored.dataset[1:3]
    assert looked_up.dataset.column_names == COLUMNS


def test_from_docpairs_makes_triples_once(dataset, monkeypatch):
    first = from_docpairs(dataset, PairOptions(seed=7))
    monkeypatch.setattr(ExternalShuffle, "add", fail_to_read)
    assert from_docpairs(dataset, PairOptions(seed=7)).dataset[:] == first.dataset[:]


def test_from_docpairs_that_is_interrupted_leaves_nothing(dataset, cache_folder, monkeypatch):
    before = set(cache_folder.glob("*"))
    monkeypatch.setattr(TripleWriter, "finish", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        from_docpairs(dataset, PairOptions(seed=8))
    assert set(cache_folder.glob("*")) == before
    assert not list(cache_folder.glob(".*"))


def test_from_docpairs_rejects_a_dataset_without_docpairs(register, topics, corpus):
    documents = pd.DataFrame(corpus).to_numpy()
    judged = register("tiny", docs=documents, queries=topics.to_numpy(), qrels=[("1", 0, "d1", 1)])
    with pytest.raises(ValueError, match=r"no docpairs \(it has \['docs', 'queries', 'qrels'\]\); give its topics"):
        from_docpairs(judged)
    with pytest.raises(ValueError, match="no docpairs or docs or queries"):
        from_docpairs(pt.datasets.Dataset())


@pytest.mark.parametrize("part", ["docs", "queries", "docpairs"])
def test_from_docpairs_makes_triples_anew_when_a_part_changes(part, dataset, tmp_path, texts_of):
    """Though the name of the dataset is the same, and the size and maybe the time of its files."""
    first = set(texts_of(from_docpairs(dataset)))
    path = tmp_path / "irds" / "tiny" / "pairs" / part
    replacements = {"docs": ("text", "plan"), "queries": ("sort", "rank"), "docpairs": ("d1\td", "d2\td")}
    path.write_text(path.read_text().replace(*replacements[part]))
    # ir_datasets keeps it whatever becomes of the documents
    shutil.rmtree(dataset.irds_ref().docs_store().path)
    again = set(texts_of(from_docpairs(dataset)))
    changed = {
        "docs": {tuple(text.replace("text", "plan") for text in row) for row in first},
        "queries": {(query.replace("sort", "rank"), *texts) for query, *texts in first},
        "docpairs": {("plot", "text 4", "text 5"), ("sort", "text 2", "text 3"), ("sort", "text 2", "text 0")},
    }
    assert again == changed[part]


class PairsWithoutAFile(ir_datasets.formats.BaseDocPairs):
    """As those of ``irds:msmarco-passage/train/split200-train``, which are taken from others."""

    def __init__(self, rows):
        self.rows = rows

    def docpairs_iter(self):
        pair = self.docpairs_cls()
        return iter([pair(*row) for row in self.rows])


def test_from_docpairs_keeps_nothing_that_it_cannot_identify(dataset, pairs, cache_folder, texts_of):
    before = set(cache_folder.glob("*"))
    reference = dataset.irds_ref()
    docs, queries = reference.docs_handler(), reference.queries_handler()
    for rows in (pairs[:1], pairs[1:2]):
        ir_datasets.registry._registered["tiny/pairs"] = ir_datasets.Dataset(docs, queries, PairsWithoutAFile(rows))
        triples = from_docpairs(pt.get_dataset("irds:tiny/pairs"))
        assert texts_of(triples) == [("sort", "text 1", f"text {rows[0][2][1:]}")]
    assert set(cache_folder.glob("*")) == before


# identifiers


@pytest.mark.parametrize("form", ["rows", "frame backwards", "file of a dataset", "corpus in a frame"])
def test_from_identifiers_gives_the_same_as_from_docpairs(form, dataset, tmp_path, topics, corpus, pairs, texts_of):
    """In the same shuffled order, whatever that of the source."""
    frame = pd.DataFrame(pairs, columns=["qid", "positive", "negative"])
    path = tmp_path / "identifiers.tsv"
    frame.to_csv(path, sep="\t", index=False, header=False)
    sources = {
        "rows": (pairs, corpus),
        "frame backwards": (frame[::-1], corpus),
        "file of a dataset": (path, dataset),
        "corpus in a frame": (frame, pd.DataFrame(corpus)),
    }
    source, documents = sources[form]
    expected = from_docpairs(dataset)
    triples = from_identifiers(source, topics, documents)
    assert texts_of(triples) == texts_of(expected)
    assert triples.summary["fingerprint"] == expected.summary["fingerprint"]


def test_from_identifiers_reads_a_file_once(dataset, tmp_path, topics, pairs, monkeypatch):
    """For the same topics and settings."""
    path = tmp_path / "identifiers.tsv"
    pd.DataFrame(pairs).to_csv(path, sep="\t", index=False, header=False)
    first = from_identifiers(path, topics, dataset)
    other = from_identifiers(path, topics.assign(query="read"), dataset)
    assert set(other.dataset["query"]) == {"read"}
    monkeypatch.setattr(ExternalShuffle, "add", fail_to_read)
    assert from_identifiers(path, topics, dataset).summary == first.summary


class Corpus(pt.datasets.Dataset):
    """A dataset that is not of ir_datasets."""

    def __init__(self, records):
        self.records = records

    def get_corpus_iter(self, *, verbose=True):
        return iter(self.records)

    def __repr__(self):
        return "Corpus()"


def test_from_identifiers_keeps_nothing_of_a_corpus_that_it_cannot_identify(tmp_path, topics, corpus, pairs):
    path = tmp_path / "identifiers.tsv"
    pd.DataFrame(pairs).to_csv(path, sep="\t", index=False, header=False)
    for word in ("text", "plot"):
        records = [{"docno": record["docno"], "text": record["text"].replace("text", word)} for record in corpus]
        triples = from_identifiers(path, topics, Corpus(records))
        assert all(text.startswith(word) for text in triples.dataset["positive"])


def test_from_identifiers_needs_no_part_of_a_dataset_but_documents(register, tmp_path, topics, corpus, pairs):
    """Neither to make triples nor to find them."""
    dataset = register("tiny/corpus", docs=pd.DataFrame(corpus).to_numpy(), queries=[], docpairs=[])
    for part in ("queries", "docpairs"):
        (tmp_path / "irds" / "tiny" / "corpus" / part).unlink()
    path = tmp_path / "identifiers.tsv"
    pd.DataFrame(pairs).to_csv(path, sep="\t", index=False, header=False)
    first = from_identifiers(path, topics, dataset)
    # what was downloaded may be gone
    (tmp_path / "irds" / "tiny" / "corpus" / "docs").unlink()
    assert from_identifiers(path, topics, dataset).dataset.cache_files == first.dataset.cache_files != []


def test_from_identifiers_drops_duplicate_rows(topics, corpus, pairs, texts_of):
    twice = from_identifiers(pairs * 2, topics, corpus)
    assert texts_of(twice) == texts_of(from_identifiers(pairs, topics, corpus))
    assert twice.summary["dropped"] == {"duplicate row": 5, "no text in 'query'": 1}


def test_from_identifiers_counts_unknown_documents(topics, corpus, pairs, is_accounted):
    missing = from_identifiers([*pairs, ("1", "d999", "d1"), ("1", None, "d1")], topics, corpus)
    assert missing.summary["dropped"] == {"no text in 'query'": 1, "no text in 'positive'": 2}
    assert is_accounted(missing.summary)


def test_from_identifiers_rejects_numbers(topics, corpus):
    with pytest.raises(TypeError, match="holds 7"):
        from_identifiers([("1", 7, "d1")], topics, corpus)


def test_from_identifiers_rejects_topics_without_text(topics, corpus, pairs):
    with pytest.raises(ValueError, match="topics must have the columns"):
        from_identifiers(pairs, topics[["qid"]], corpus)
    with pytest.raises(ValueError, match="'query' must hold a text"):
        from_identifiers(pairs, topics.assign(query=""), corpus)
    with pytest.raises(TypeError, match="the qid of topics must be a string"):
        from_identifiers(pairs, topics.astype({"qid": int}), corpus)


@pytest.mark.parametrize("label", ["high", None])
def test_from_identifiers_leaves_labels_out(topics, corpus, label):
    record = {"qid": "1", "positive": "d1", "negative": "d2", "label": label}
    assert from_identifiers([record], topics, corpus).dataset.column_names == COLUMNS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topics": [("1", "sort")]}, "topics must be an instance of DataFrame"),
        ({"corpus": 7}, "corpus must be a PyTerrier dataset"),
        ({"options": {"limit": 3}}, "options must be an instance of PairOptions"),
        ({"source": 7}, "source must be a frame"),
    ],
)
def test_from_identifiers_rejects_what_is_of_another_type(topics, corpus, pairs, options, message):
    with pytest.raises(TypeError, match=message):
        from_identifiers(**{"source": pairs, "topics": topics, "corpus": corpus, **options})


# training


def test_fit_triples_with_docpairs(dataset, encoder, tmp_path, pairs):
    trainer = SelfDistillTrainer(encoder, tmp_path / "run", verbose=False)
    trainer.fit_triples(dataset, max_pairs_per_query=2)
    assert trainer.encoder.training_summary["data"]["triples"] == 3
    with pytest.raises(ValueError, match="topics= says"):
        trainer.fit_triples(pairs, topics=dataset.get_topics())
    with pytest.raises(ValueError, match="max_pairs_per_query=2 needs a PyTerrier dataset"):
        trainer.fit_triples(ROWS, max_pairs_per_query=2)


def test_fit_triples_with_texts_that_are_looked_up_gives_the_same_model(dataset, encoder, tmp_path, pairs):
    """With workers of a data loader too."""
    models = set()
    for store_texts, workers in [(True, 0), (False, 0), (False, 2)]:
        run = tmp_path / f"{store_texts}{workers}"
        trainer = SelfDistillTrainer(encoder, run, corpus=dataset, dataloader_num_workers=workers, verbose=False)
        trainer.fit_triples(pairs, topics=dataset.get_topics(), store_texts=store_texts)
        models.add(trainer.encoder.model_name)
    assert len(models) == 1
