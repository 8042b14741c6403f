import csv
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pyterrier_selfdistill import FolderInUseError, RayIndexer, SelfDistillIndex, ShardedIndex
from pyterrier_selfdistill.index.ray import ShardEncoder, read_corpus, read_files
from pyterrier_selfdistill.utils.folders import folder_lock

# reading with Ray Data starts Ray too
pytestmark = pytest.mark.ray


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


def write_files(records, folder):
    folder.mkdir()
    for number, start in enumerate(range(0, len(records), 16)):
        lines = [json.dumps({**record, "year": 2024}) for record in records[start : start + 16]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines))
    return str(folder / "*.jsonl")


def test_interrupted_resumed_and_killed(ray_cluster, encoder, index, target, collection, tmp_path):
    encoded, one_may_die, one_died = tmp_path / "encoded", tmp_path / "one-may-die", tmp_path / "one-died"

    def note(module, arguments):
        if one_may_die.exists() and not one_died.exists():
            one_died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with encoded.open("a") as file:
            file.write(f"{len(arguments[0]['input_ids'])}\n")

    encoder.model.register_forward_pre_hook(note)
    corpus = collection.records
    indexer = RayIndexer(encoder, target, workers=1, shard_size=7)
    with pytest.raises(ValueError, match=f"^duplicate docno '{corpus[-1]['docno']}'; each document"):
        indexer.index(iter([*corpus, corpus[-1]]))
    assert not target.built()
    shards = list(indexer.folder.glob("*/vecs.f4"))
    assert len(shards) == 5
    # lost for another reason
    shutil.rmtree(shards[0].parent)
    encoded.unlink()

    one_may_die.touch()
    indexer = RayIndexer(encoder, target, workers=2, shard_size=7)
    assert indexer.index(write_files(corpus, tmp_path / "corpus")) is target
    assert one_died.exists()
    # the two shards that were missing, and no more
    assert sorted(encoded.read_text().split()) == ["5", "7"]
    docnos, vectors = rows(target)
    assert docnos == rows(index)[0]
    np.testing.assert_allclose(vectors, rows(index)[1], atol=1e-6)
    for name in ("docnos.npids", "pt_meta.json"):
        assert (target.index_path / name).read_bytes() == (index.index_path / name).read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".") or path.suffix == ".shards"]


def test_shards_on_ray_find_what_those_of_one_process_find(ray_cluster, encoder, collection, tmp_path):
    paths = [tmp_path / "first.flex", tmp_path / "second.flex"]
    (encoder >> SelfDistillIndex(paths[0], verbose=False)).index(collection.records[:25])
    (encoder >> SelfDistillIndex(paths[1], verbose=False)).index(collection.records[25:])
    here = ShardedIndex(paths)
    there = ShardedIndex(paths, actors=[{"num_cpus": 0}, {"num_cpus": 1}])
    queries = encoder.query_encoder()(collection.topics)
    for number in (7, 1000):
        expected = here.retriever(num_results=number)(queries)
        pd.testing.assert_frame_equal(there.retriever(num_results=number)(queries), expected, atol=1e-6)
    with pytest.raises(ValueError, match="has 3 dimensions"):
        there.retriever()(queries.assign(query_vec=[np.ones(3, dtype=np.float32)] * len(queries)))


@pytest.fixture
def here(monkeypatch):
    """Has a worker encode in this process, with its device and threads."""
    import ray

    monkeypatch.setattr(ray, "get", lambda reference: reference)
    return "cpu", torch.get_num_threads()


def test_a_shard_is_of_its_documents_and_its_encoder(encoder, other, tmp_path, here):
    block = pa.table({"docno": ["d1"], "text": ["sort"], "title": ["rows"]})
    names = []
    for model, fields in [(encoder, ["text"]), (other, ["text"]), (encoder, ["title", "text"])]:
        names += ShardEncoder(model, str(tmp_path), fields, *here)(block)["shard"]
    names += ShardEncoder(encoder, str(tmp_path), ["text"], *here)(pa.table({"docno": ["d2"], "text": ["sort"]}))[
        "shard"
    ]
    assert len(set(names)) == 4
    assert ShardEncoder(encoder, str(tmp_path), ["text"], *here)(block[:0]) == {"shard": [], "host": []}
    # a damaged one is encoded again
    vectors = tmp_path / names[0] / "vecs.f4"
    content = vectors.read_bytes()
    vectors.write_bytes(content[:8])
    assert ShardEncoder(encoder, str(tmp_path), ["text"], *here)(block)["shard"] == names[:1]
    assert vectors.read_bytes() == content


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_worker_encodes_on_its_gpu(encoder, tmp_path, here):
    worker = ShardEncoder(encoder, str(tmp_path), ["text"], "cuda", here[1])
    name = worker(pa.table({"docno": ["d1"], "text": ["sort"]}))["shard"][0]
    assert worker.encoder.device.type == "cuda"
    assert np.linalg.norm(SelfDistillIndex(tmp_path / name).np_vecs()[0]) == pytest.approx(1, abs=1e-3)


def test_blocks_that_are_encoded_alike_give_equal_bytes(encoder, tmp_path, monkeypatch, collection, here):
    monkeypatch.setattr("pyterrier_selfdistill.encoder.steps.READ_AHEAD", 8)
    plain = SelfDistillIndex(tmp_path / "plain.flex", verbose=False)
    (encoder >> plain).index(collection.records)
    paths = []
    for table in read_corpus(collection.corpus, ["text"], 16):
        paths.append(tmp_path / ShardEncoder(encoder, str(tmp_path), ["text"], *here)(table)["shard"][0])
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
    with pytest.raises(ValueError, match="num_gpus must be 0 or a positive number"):
        RayIndexer(encoder, target, workers=1, num_gpus=-0.5)
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


@pytest.mark.parametrize("suffix", ["tsv.gz", "jsonl.gz", "parquet"])
def test_files_hold_strings(ray_cluster, suffix, tmp_path):
    frame = pd.DataFrame({"docno": ["007", "2024-01-31"], "title": ["1", ""], "text": ['a "quote', "NA"]})
    path = tmp_path / f"corpus.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pandas(frame.assign(more=1)), path)
    elif suffix == "jsonl.gz":
        frame.assign(more=1).to_json(path, orient="records", lines=True)
    else:
        frame.to_csv(path, sep="\t", header=False, index=False, quoting=csv.QUOTE_NONE, quotechar="\0")
    dataset = read_files([path], ["title", "text"])
    assert dataset.take_all() == frame.to_dict(orient="records")


def test_files_of_one_known_kind(tmp_path):
    for name in ("a.tsv", "b.jsonl", "c.xml", "d[1].tsv"):
        Path(tmp_path / name).write_text("d1\tsort\n")
    for names in (["a.tsv", "b.jsonl"], ["c.xml"]):
        with pytest.raises(ValueError, match="expected files named .jsonl, .tsv"):
            read_files([tmp_path / name for name in names], ["text"])
