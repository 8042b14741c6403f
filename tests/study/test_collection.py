import pandas as pd
import pytest

from benchmarks.study.collection import (
    judged_positives,
    load_collection,
    load_split,
    pool_documents,
    sample_positives,
)


def test_load_collection_reads_a_folder(data, collection):
    loaded = load_collection("tiny", data)
    pd.testing.assert_frame_equal(loaded.documents, collection.corpus)
    assert loaded.splits.keys() == {"train", "dev", "test"}
    topics, qrels = loaded.splits["test"]
    assert topics.columns.tolist() == ["qid", "query"]
    assert qrels.columns.tolist() == ["qid", "docno", "label"]
    assert topics["qid"].tolist() == [f"plot-{thing}" for thing in collection.things]


def test_load_collection_names_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere.*--data"):
        load_collection("nowhere", tmp_path)


def test_load_collection_reads_the_splits_of_ir_datasets(collection, register, folder):
    register("local", docs=collection.corpus.to_numpy())
    for split in ("train", "dev", "test"):
        register(f"local/{split}", queries=collection.topics.to_numpy(), qrels=[("q0", 0, "sort-table", 1)])
    loaded = load_collection("irds:local", folder)
    assert list(loaded.documents.columns) == ["docno", "text"]
    assert len(loaded.documents) == 40
    assert loaded.splits.keys() == {"train", "dev", "test"}
    for topics, qrels in loaded.splits.values():
        assert topics["qid"].tolist() == collection.topics["qid"].tolist()
        assert qrels[["qid", "docno", "label"]].to_numpy().tolist() == [["q0", "sort-table", 1]]


def test_positives_are_relevant_and_in_the_collection():
    rows = [("q1", "d1", 2), ("q1", "d2", 1), ("q1", "d3", 0), ("q2", "gone", 2)]
    qrels = pd.DataFrame(rows, columns=["qid", "docno", "label"])
    documents = pd.DataFrame({"docno": ["d1", "d2", "d3"]})
    assert judged_positives(qrels, documents)["docno"].tolist() == ["d1", "d2"]
    assert judged_positives(qrels, documents, min_label=2)["docno"].tolist() == ["d1"]


def test_sample_positives_refuses_more_than_there_are():
    positives = pd.DataFrame({"docno": ["d1"]})
    with pytest.raises(ValueError, match="triples=2, and the collection has 1 relevant"):
        sample_positives(positives, 2, seed=1)


def test_pool_documents_keeps_what_is_relevant():
    documents = pd.DataFrame({"docno": list("abcdef"), "text": list("uvwxyz")})
    qrels = pd.DataFrame({"qid": ["1", "1"], "docno": ["b", "c"], "label": [1, 0]})
    pool = pool_documents(documents, qrels, 3)
    assert "b" in pool["docno"].tolist()
    assert len(pool) == 3
    assert pool.equals(pool_documents(documents, qrels, 3))
    assert pool_documents(documents, qrels, 0)["docno"].tolist() == ["b"]
    assert len(pool_documents(documents, qrels, 99)) == 6


def test_load_collection_takes_a_dataset_for_each_split(collection, register, folder):
    register("documents", docs=collection.corpus.to_numpy())
    source = {"corpus": "irds:documents"}
    for split, name in {"train": "a", "dev": "b", "test": "c"}.items():
        register(name, queries=[(name, "sort")], qrels=[(name, 0, "sort-table", 1)])
        source[split] = f"irds:{name}"
    loaded = load_collection(source, folder)
    assert len(loaded.documents) == 40
    assert {split: topics["qid"].tolist() for split, (topics, _) in loaded.splits.items()} == {
        "train": ["a"],
        "dev": ["b"],
        "test": ["c"],
    }


def test_load_collection_names_the_split_that_a_dataset_lacks(collection, register, folder):
    register("half", docs=collection.corpus.to_numpy())
    register("half/train", queries=[("a", "sort")], qrels=[("a", 0, "sort-table", 1)])
    with pytest.raises(ValueError, match=r"'irds:half' has no split 'dev': .*; name a dataset for each"):
        load_collection("irds:half", folder)


def test_load_collection_needs_a_text(monkeypatch):
    class Titled:
        def get_corpus_iter(self, verbose):
            return iter([{"docno": "d1", "title": "Sorting"}])

        def get_topicsqrels(self):
            return pd.DataFrame(), pd.DataFrame()

    monkeypatch.setattr("pyterrier.get_dataset", lambda name: Titled())
    source = dict.fromkeys(("corpus", "train", "dev", "test"), "titled")
    with pytest.raises(ValueError, match=r"'titled' have the fields \['docno', 'title'\], and no text"):
        load_collection(source, None)


def test_load_split_takes_the_split_of_a_dataset_as_an_argument():
    topics, qrels = load_split("docstrings:more-itertools", "test")
    assert set(qrels["qid"]) == set(topics["qid"])
