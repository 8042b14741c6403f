import importlib
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyterrier_selfdistill import FolderInUseError, RayIndexer, SelfDistillIndex, ShardedIndex
from pyterrier_selfdistill.io import folder_lock
from pyterrier_selfdistill.ray_indexing import ShardEncoder, read_corpus, read_files
from pyterrier_selfdistill.shards import read_manifest


@pytest.fixture(scope="module")
def ray_cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def target(tmp_path) -> SelfDistillIndex:
    return SelfDistillIndex(tmp_path / "on-ray.flex", verbose=False)


def rows(index):
    return list(index.docnos()), np.array(index.np_vecs())


def written(folder):
    return {path.name: (path / "vecs.f4").stat().st_mtime_ns for path in read_manifest(folder)}


def kill_one(encoder, folder):
    """Has one worker die in the middle of a shard, after another shard is complete."""

    def die_once(*arguments):
        marker = folder.with_name("one-was-killed")
        if not marker.exists() and any(folder.glob("*/vecs.f4")):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    encoder.model.register_forward_hook(die_once)
    return folder.with_name("one-was-killed")


def test_two_workers_of_which_one_is_killed(ray_cluster, encoder, index, target, collection, tmp_path):
    marker = kill_one(encoder, tmp_path / "on-ray.flex.shards")
    found = RayIndexer(encoder, target, workers=2, shard_size=15).index(iter(collection.records))
    assert marker.exists()
    assert found is target
    docnos, vectors = rows(target)
    assert docnos == rows(index)[0]
    np.testing.assert_allclose(vectors, rows(index)[1], atol=1e-6)
    assert target.encoder == index.encoder
    assert (target.index_path / "docnos.npids").read_bytes() == (index.index_path / "docnos.npids").read_bytes()
    assert not (tmp_path / "on-ray.flex.shards").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_files_that_workers_read_and_a_shard_that_is_missing(ray_cluster, encoder, index, target, collection, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, start in enumerate(range(0, 40, 16)):
        lines = [json.dumps({**record, "year": 2024}) for record in collection.records[start : start + 16]]
        (corpus / f"{number}.jsonl").write_text("\n".join(lines))
    indexer = RayIndexer(encoder, target, workers=2, shard_size=7)
    # as if all had been killed after some shards, in another order than that of the corpus
    work = ShardEncoder(ray_cluster.put(encoder), str(indexer.folder), ["text"], 1)
    for start in (14, 0, 35, 7):
        work(pa.Table.from_pylist(collection.records[start : start + 7]))
    there = {path.name: (path / "vecs.f4").stat().st_mtime_ns for path in indexer.folder.iterdir()}
    # and a shard of another corpus
    work(pa.Table.from_pylist(collection.records[3:5]))
    shards = indexer.encode(str(corpus / "*.jsonl"))
    now = written(indexer.folder)
    assert there.items() <= now.items()
    assert len(now) == 6
    assert {path.name for path in indexer.folder.glob("*/")} == now.keys()
    assert [part.documents for part in shards.parts] == [7] * 5 + [5]
    joined = shards.join(tmp_path / "joined.flex")
    assert rows(joined)[0] == rows(index)[0]
    np.testing.assert_allclose(rows(joined)[1], rows(index)[1], atol=1e-6)


def test_errors_of_documents(ray_cluster, encoder, target, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"docno": "d1", "text": "sort"}\n{"docno": "d1", "text": "plot"}\n')
    with pytest.raises(ValueError, match="^duplicate docno 'd1'"):
        RayIndexer(encoder, target, workers=1).index(tmp_path / "corpus.jsonl")
    assert not target.built()


def test_a_shard_is_of_its_documents_and_its_encoder(encoder, other, tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "get", lambda reference: reference)
    block = pa.table({"docno": ["d1"], "text": ["sort"], "title": ["rows"]})
    names = []
    for model, fields in [(encoder, ["text"]), (other, ["text"]), (encoder, ["title", "text"])]:
        names += ShardEncoder(model, str(tmp_path), fields, 1)(block)["shard"]
    names += ShardEncoder(encoder, str(tmp_path), ["text"], 1)(pa.table({"docno": ["d2"], "text": ["sort"]}))["shard"]
    assert len(set(names)) == 4
    # a damaged one is encoded again
    vectors = tmp_path / names[0] / "vecs.f4"
    content = vectors.read_bytes()
    vectors.write_bytes(content[:8])
    assert ShardEncoder(encoder, str(tmp_path), ["text"], 1)(block)["shard"] == names[:1]
    assert vectors.read_bytes() == content


def test_blocks_that_are_encoded_alike_give_equal_bytes(encoder, tmp_path, monkeypatch, collection):
    import ray

    monkeypatch.setattr(ray, "get", lambda reference: reference)
    monkeypatch.setattr("pyterrier_selfdistill.encoders.READ_AHEAD", 8)
    plain = SelfDistillIndex(tmp_path / "plain.flex", verbose=False)
    (encoder >> plain).index(collection.records)
    paths = []
    for table in read_corpus(collection.corpus, ["text"], 16):
        paths.append(tmp_path / ShardEncoder(encoder, str(tmp_path), ["text"], 1)(table)["shard"][0])
    joined = ShardedIndex(paths).join(tmp_path / "joined.flex")
    for name in ("vecs.f4", "docnos.npids", "pt_meta.json"):
        assert (joined.index_path / name).read_bytes() == (plain.index_path / name).read_bytes()


def test_what_is_refused_before_anything_is_encoded(encoder, index, target, monkeypatch, tmp_path):
    with pytest.raises(FileExistsError, match="overwrite=True"):
        RayIndexer(encoder, index, workers=1).index([])
    indexer = RayIndexer(encoder, target, workers=1)
    with pytest.raises(FileNotFoundError, match="no file"):
        indexer.index(str(tmp_path / "*.tsv"))
    with folder_lock(indexer.folder, "encoding shards"), pytest.raises(FolderInUseError, match="encoding shards"):
        indexer.index([{"docno": "d1", "text": "sort"}])
    with pytest.raises(ValueError, match="workers must be a positive integer"):
        RayIndexer(encoder, target, workers=0)
    with pytest.raises(ValueError, match="there are no documents"):
        indexer.index(iter([]))
    assert indexer.index_inputs() == [["docno", "text"]]
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-selfdistill\[ray\]'"):
        RayIndexer(encoder, target, workers=1)


def test_a_corpus_is_read_in_blocks(register, collection):
    expected = collection.corpus[["docno", "text"]]
    dataset = register("local", docs=collection.corpus.to_numpy())
    for corpus in (collection.corpus, collection.records, iter(collection.records), dataset):
        tables = list(read_corpus(corpus, ["text"], 15))
        assert [len(table) for table in tables] == [15, 15, 10]
        pd.testing.assert_frame_equal(pa.concat_tables(tables).to_pandas(), expected, check_dtype=False)
    with pytest.raises(TypeError, match="corpus must be"):
        list(read_corpus({"docno": "d1"}, ["text"], 15))
    with pytest.raises(ValueError, match="'title' missing"):
        list(read_corpus(collection.records, ["title"], 15))


@pytest.mark.parametrize("suffix", ["tsv", "tsv.gz", "jsonl.gz", "parquet"])
def test_files_hold_strings(ray_cluster, suffix, tmp_path):
    frame = pd.DataFrame({"docno": ["007", "2024-01-31"], "title": ["1", ""], "text": ['a "quote', "NA"]})
    path = tmp_path / f"corpus.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pandas(frame.assign(more=1)), path)
    elif suffix == "jsonl.gz":
        frame.assign(more=1).to_json(path, orient="records", lines=True)
    else:
        path.write_bytes(b"")
        lines = ["\t".join(row) for row in frame.to_numpy()]
        content = ("\n".join(lines) + "\n").encode()
        opened = importlib.import_module("gzip").open if suffix.endswith("gz") else open
        with opened(path, "wb") as file:
            file.write(content)
    dataset = read_files([path], ["title", "text"])
    assert dataset.take_all() == frame.to_dict(orient="records")


def test_files_of_one_known_kind(tmp_path):
    for name in ("a.tsv", "b.jsonl", "c.xml", "d[1].tsv"):
        Path(tmp_path / name).write_text("d1\tsort\n")
    for names in (["a.tsv", "b.jsonl"], ["c.xml"]):
        with pytest.raises(ValueError, match="expected files named .jsonl, .tsv"):
            read_files([tmp_path / name for name in names], ["text"])
