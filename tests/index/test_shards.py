"""Indexes in shards: searched together, joined, and encoded on Ray."""

import csv
import itertools
import json
import os
import pickle
import shutil
import signal

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from pyterrier_selfdistill import EncoderMismatchError, FolderInUseError, RayIndexer, SelfDistillIndex, ShardedIndex
from pyterrier_selfdistill.index.ray import ShardEncoder, read_files

FILES = ("docnos.npids", "pt_meta.json")


def build(path, docnos, vectors):
    documents = [{"docno": docno, "doc_vec": vector} for docno, vector in zip(docnos, vectors, strict=True)]
    SelfDistillIndex(path, verbose=False).index(documents)
    return path


@pytest.fixture
def paths(encoder, collection, tmp_path):
    """The small collection in three shards, of 20, 13 and 7 documents."""
    paths = []
    for start, end in [(0, 20), (20, 33), (33, 40)]:
        paths.append(tmp_path / f"{start}.flex")
        (encoder >> SelfDistillIndex(paths[-1], verbose=False)).index(collection.records[start:end])
    return paths


def assert_equal(found, expected):
    """The results are the same, but for the order of documents whose scores are equal."""
    assert list(found.columns) == list(expected.columns)
    assert list(found["rank"]) == list(expected["rank"])
    ordered = []
    for results in (found, expected):
        assert results.groupby("qid", sort=False)["score"].apply(lambda scores: scores.is_monotonic_decreasing).all()
        ordered.append(results.drop(columns="rank").sort_values(["qid", "docno"]).reset_index(drop=True))
    pd.testing.assert_frame_equal(*ordered, atol=1e-6, check_dtype=False)


# --- searching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [7, 1000])
def test_shards_find_what_one_index_finds(encoder, index, paths, collection, number):
    shards = ShardedIndex(paths)
    assert len(shards) == 40
    expected = (encoder >> index.retriever(num_results=number))(collection.topics)
    assert_equal((encoder >> shards.retriever(num_results=number))(collection.topics), expected)


def test_ties_are_in_the_order_of_documents_however_they_are_sharded(tmp_path):
    vectors = np.random.default_rng(0).integers(-1, 2, size=(300, 4)).astype(np.float32)
    docnos = [f"d{row}" for row in range(300)]
    queries = pd.DataFrame({"qid": ["1", "2"], "query_vec": [vectors[0], -vectors[1]]})
    scores = np.stack(queries["query_vec"]) @ vectors.T
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :100]
    for number, cuts in enumerate([[0, 300], [0, 1, 120, 300], [0, 100, 200, 300]]):
        paths = []
        for start, end in itertools.pairwise(cuts):
            paths.append(build(tmp_path / f"{number}-{start}.flex", docnos[start:end], vectors[start:end]))
        found = ShardedIndex(paths).retriever(num_results=100)(queries)
        assert found["docid"].to_numpy().reshape(2, 100).tolist() == expected.tolist()
        assert found["docno"].tolist() == [f"d{row}" for row in expected.ravel()]


def test_retrievers_as_pyterrier_uses_them(encoder, paths, collection, conforms):
    shards = ShardedIndex(paths)
    retriever = shards.retriever(num_results=10)
    conforms(retriever)
    conforms(encoder >> retriever)
    topics = collection.topics
    assert retriever == ShardedIndex(paths).retriever(num_results=10) != shards.retriever(num_results=9)
    assert retriever != ShardedIndex(paths[::-1]).retriever(num_results=10)
    assert_equal(pickle.loads(pickle.dumps(encoder >> retriever))(topics), (encoder >> retriever)(topics))
    assert ((encoder >> retriever) % 3).compile()[-1] == shards.retriever(num_results=3)
    queries = encoder.query_encoder()(topics)
    without = shards.retriever(num_results=2, drop_query_vec=True)(queries)
    assert list(without.columns) == ["qid", "query", "docno", "docid", "score", "rank"]
    retriever.set_parameter("num_results", 4)
    assert len(retriever(queries)) == 4 * len(topics)
    assert not len(retriever(queries[:0]))


def test_other_encoders_are_refused(encoder, other, paths, collection, tmp_path):
    with pytest.raises(EncoderMismatchError):
        (other >> ShardedIndex(paths).retriever())(collection.topics)
    assert len((other >> ShardedIndex(paths, any_encoder=True).retriever())(collection.topics))
    foreign, unknown = tmp_path / "foreign.flex", build(tmp_path / "unknown.flex", ["d1"], np.ones((1, 32)))
    (other >> SelfDistillIndex(foreign, verbose=False)).index(collection.records[:3])
    for path in (foreign, unknown):
        with pytest.raises(EncoderMismatchError, match=path.name):
            ShardedIndex([*paths, path])
    with pytest.raises(ValueError, match="2 dimensions"):
        ShardedIndex([unknown, build(tmp_path / "short.flex", ["d2"], np.ones((1, 2)))])
    assert ShardedIndex(paths).encoder.checksum == encoder.identity.checksum


def test_what_there_is_not(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"shards\.json"):
        ShardedIndex(tmp_path)
    for content in ("{", json.dumps({"shards": 1})):
        (tmp_path / "shards.json").write_text(content)
        with pytest.raises(ValueError, match=r"shards\.json"):
            ShardedIndex(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing"):
        ShardedIndex([tmp_path / "nothing"])
    paths = [build(tmp_path / name, docnos, np.eye(2)) for name, docnos in [("a", "12"), ("b", "34")]]
    for same in (paths[0], shutil.copytree(paths[0], tmp_path / "c")):
        with pytest.raises(ValueError, match=f"{same.name}' was given twice"):
            ShardedIndex([*paths, same])
    with pytest.raises(ValueError, match=r"actors .*2 shards.* 1"):
        ShardedIndex([tmp_path, tmp_path], actors=[{}])
    with pytest.raises(ValueError, match="shards must be"):
        ShardedIndex([])


# --- joining --------------------------------------------------------------------------------------------------------


def test_joined_shards_are_one_index(index, paths, tmp_path):
    joined = ShardedIndex(paths).join(tmp_path / "joined.flex")
    assert list(joined.docnos()) == list(index.docnos())
    np.testing.assert_allclose(joined.np_vecs(), index.np_vecs(), atol=1e-6)
    for name in FILES:
        assert (joined.index_path / name).read_bytes() == (index.index_path / name).read_bytes()
    assert all(SelfDistillIndex(path).built() for path in paths)
    with pytest.raises(FileExistsError):
        ShardedIndex(paths[:1]).join(index.index_path)
    ShardedIndex(paths[:1]).join(index.index_path, overwrite=True)
    index.refresh()
    assert len(index) == 20


# --- on Ray ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path):
    return SelfDistillIndex(tmp_path / "on-ray.flex", verbose=False)


def make_shard(ray, encoder, folder, records, fields=("text",)):
    """Encode a shard in this process, since a worker takes long to start, and return its name."""
    worker = ShardEncoder(ray.put(encoder), str(folder), list(fields), "cpu", torch.get_num_threads())
    return worker(pa.Table.from_pylist(records))["shard"][0]


@pytest.mark.ray
def test_indexing_on_ray_is_resumed_and_its_worker_is_killed(ray_cluster, encoder, index, target, collection, tmp_path):
    corpus = collection.records
    indexer = RayIndexer(encoder, target, workers=1, shard_size=20)
    make_shard(ray_cluster, encoder, indexer.folder, corpus[:20])
    encoded, one_died = tmp_path / "encoded", tmp_path / "one-died"

    def note(module, arguments):
        if not one_died.exists():
            one_died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with encoded.open("a") as file:
            file.write(f"{len(arguments[0]['input_ids'])}\n")

    encoder.model.register_forward_pre_hook(note)
    for start in (0, 16, 32):
        lines = [json.dumps({**record, "year": 2024}) for record in corpus[start : start + 16]]
        (tmp_path / f"{start:02}.jsonl").write_text("\n".join(lines))
    assert indexer.index(str(tmp_path / "*.jsonl")) is target
    # the shard that was missing, and no more
    assert encoded.read_text().split() == ["20"]
    np.testing.assert_allclose(target.np_vecs(), index.np_vecs(), atol=1e-6)
    for name in FILES:
        assert (target.index_path / name).read_bytes() == (index.index_path / name).read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.suffix == ".shards"]


@pytest.mark.ray
def test_shards_are_searched_by_actors(ray_cluster, encoder, index, collection):
    queries = encoder.query_encoder()(collection.topics)
    # a single actor, since each takes ten seconds to start
    here, there = ShardedIndex([index.index_path]), ShardedIndex([index.index_path], actors=[{"num_cpus": 0}])
    found = there.retriever(num_results=7)(queries)
    pd.testing.assert_frame_equal(found, here.retriever(num_results=7)(queries), atol=1e-6)
    with pytest.raises(ValueError, match="3 dimensions"):
        there.retriever()(queries.assign(query_vec=[np.ones(3, dtype=np.float32)] * len(queries)))


@pytest.mark.ray
def test_shards_are_of_their_documents_and_their_encoder(ray_cluster, encoder, other, tmp_path):

    def encode(model=encoder, fields=("text",), docno="d1"):
        return make_shard(ray_cluster, model, tmp_path, [{"docno": docno, "text": "sort", "title": "rows"}], fields)

    first = encode()
    names = {first, encode(other), encode(fields=["title", "text"]), encode(docno="d2")}
    assert len(names) == 4
    vectors = tmp_path / first / "vecs.f4"
    content, written = vectors.read_bytes(), vectors.stat().st_mtime_ns
    # one that is there is taken, and a damaged one is encoded again
    assert encode() == first
    assert vectors.stat().st_mtime_ns == written
    vectors.write_bytes(content[:8])
    assert encode() == first
    assert vectors.read_bytes() == content


@pytest.mark.ray
@pytest.mark.parametrize("suffix", ["tsv.gz", "jsonl.gz"])
def test_files_hold_strings(ray_cluster, suffix, tmp_path):
    frame = pd.DataFrame({"docno": ["007", "2024-01-31"], "title": ["1", ""], "text": ['a "quote', "NA"]})
    path = tmp_path / f"corpus.{suffix}"
    if suffix == "jsonl.gz":
        frame.assign(more=1).to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, sep="\t", header=False, index=False, quoting=csv.QUOTE_NONE, quotechar="\0")
    assert read_files([path], ["title", "text"]).take_all() == frame.to_dict(orient="records")


@pytest.mark.ray
def test_what_is_refused_before_anything_is_encoded(ray_cluster, encoder, index, target, tmp_path):
    indexer = RayIndexer(encoder, target, workers=1)
    for name in ("a.tsv", "b.jsonl"):
        (tmp_path / name).write_text("d1\tsort\n")
    (tmp_path / "beir.jsonl").write_text('{"_id": "d1", "text": "sort"}')
    pd.DataFrame([{"_id": "d1", "text": "sort"}]).to_parquet(tmp_path / "beir.parquet")
    for corpus, error, message in [
        (str(tmp_path / "*.csv"), FileNotFoundError, "csv"),
        ([tmp_path / "a.tsv", tmp_path / "b.jsonl"], ValueError, r"\.jsonl"),
        (tmp_path / "b.jsonl", ValueError, r"b\.jsonl' must have one document per line"),
        (iter([]), ValueError, "no documents"),
        ({"docno": "d1"}, TypeError, "corpus"),
        ([{"docno": "d1"}], ValueError, "text"),
        *(
            (beir, ValueError, r"\['_id', 'text'\]: 'docno' missing; rename '_id' to 'docno'$")
            for beir in (
                [{"_id": "d1", "text": "sort"}],
                tmp_path / "beir.jsonl",
                tmp_path / "beir.parquet",
                ray_cluster.data.from_items([{"_id": "d1", "text": "sort"}]),
            )
        ),
    ]:
        with pytest.raises(error, match=message):
            indexer.index(corpus)
        assert not target.built()
    with pytest.raises(FileExistsError, match="overwrite"):
        RayIndexer(encoder, index, workers=1).index([])

    def documents():
        with pytest.raises(FolderInUseError, match="shards"):
            RayIndexer(encoder, target, workers=1).encode([{"docno": "d2", "text": "sort"}])
        # and no worker starts
        yield {"docno": 7, "text": "sort"}

    with pytest.raises(TypeError, match="7"):
        indexer.encode(documents())
