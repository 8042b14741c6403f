import itertools
import json
import os

import numpy as np
import pytest

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillIndex
from pyterrier_selfdistill.index.shards import append_file, describe, join_shards, read_manifest, write_manifest


@pytest.fixture
def make(tmp_path):
    """Makes a shard of some vectors."""

    def make(name, docnos, vectors):
        shard = SelfDistillIndex(tmp_path / name, verbose=False)
        vectors = np.asarray(vectors, dtype=np.float32)
        return shard.index([{"docno": d, "doc_vec": v} for d, v in zip(docnos, vectors, strict=True)])

    return make


@pytest.fixture
def parts(encoder, collection, tmp_path):
    """The small collection in three shards, of 20, 13 and 7 documents."""
    shards = []
    for start, end in [(0, 20), (20, 33), (33, 40)]:
        shard = SelfDistillIndex(tmp_path / f"{start}.flex", verbose=False)
        (encoder >> shard).index(collection.records[start:end])
        shards.append(shard)
    return shards


@pytest.mark.parametrize("system", ["copies", "cannot copy", "has no such call"])
def test_joined_shards_are_one_index(index, parts, tmp_path, monkeypatch, system):
    def fail(*arguments):
        raise OSError("between two file systems")

    if system == "cannot copy":
        monkeypatch.setattr(os, "copy_file_range", fail)
    elif system == "has no such call":
        monkeypatch.delattr(os, "copy_file_range")
    join_shards(parts, tmp_path / "joined.flex")
    joined = SelfDistillIndex(tmp_path / "joined.flex", verbose=False)
    assert list(joined.docnos()) == list(index.docnos())
    np.testing.assert_allclose(joined.np_vecs(), index.np_vecs(), atol=1e-6)
    for name in ("docnos.npids", "pt_meta.json"):
        assert (joined.index_path / name).read_bytes() == (index.index_path / name).read_bytes()
    assert all(part.built() for part in parts)


def test_a_copy_that_stops_in_the_middle_goes_on(tmp_path, monkeypatch):
    (tmp_path / "source").write_bytes(b"0123456789")
    copy = os.copy_file_range
    calls = []

    def copy_some(source, target, count):
        calls.append(count)
        if len(calls) > 1:
            raise OSError("no more")
        return copy(source, target, 4)

    monkeypatch.setattr(os, "copy_file_range", copy_some)
    with (tmp_path / "target").open("wb", buffering=0) as target:
        append_file(tmp_path / "source", target)
        monkeypatch.undo()
        append_file(tmp_path / "source", target)
    assert (tmp_path / "target").read_bytes() == b"01234567890123456789"


def test_a_duplicate_across_shards_is_an_error(make, tmp_path):
    shards = [make("a", ["d1", "d2"], np.eye(2)), make("b", ["d3", "d1"], np.eye(2))]
    with pytest.raises(ValueError, match="^duplicate docno 'd1'"):
        join_shards(shards, tmp_path / "joined.flex")
    assert not (tmp_path / "joined.flex").exists()


def test_many_shards_with_all_kinds_of_identifiers(make, tmp_path):
    docnos = [["007", "7", "dé"], ["e8c5d3"], ["dè", "文", "a" * 300, "008"]]
    shards = [make(f"{number}", names, np.ones((len(names), 2))) for number, names in enumerate(docnos)]
    join_shards(shards, tmp_path / "joined.flex")
    assert list(SelfDistillIndex(tmp_path / "joined.flex").docnos()) == [*itertools.chain(*docnos)]


def test_shards_of_one_encoder_and_one_length(parts, other, make, collection, tmp_path):
    foreign = SelfDistillIndex(tmp_path / "foreign.flex", verbose=False)
    (other >> foreign).index(collection.records[:2])
    unknown = make("unknown", ["d1"], np.ones((1, 32)))
    for shard in (foreign, unknown):
        with pytest.raises(EncoderMismatchError, match="was built by"):
            join_shards([parts[0], shard], tmp_path / "joined.flex")
    with pytest.raises(ValueError, match="have 2 dimensions"):
        join_shards([unknown, make("short", ["d2"], np.ones((1, 2)))], tmp_path / "joined.flex")


def test_an_index_that_is_there(index, parts):
    with pytest.raises(FileExistsError, match="there already"):
        join_shards(parts[:1], index.index_path)
    join_shards(parts[:1], index.index_path, overwrite=True)
    index.refresh()
    assert len(index) == describe(parts[0]).documents == 20


def test_a_manifest_keeps_the_order_and_nothing_else(make, tmp_path):
    for name in ("a", "b", "c"):
        make(name, ["d1"], np.eye(1))
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "thesis.tex").touch()
    write_manifest(tmp_path, ["b", "a"])
    assert read_manifest(tmp_path) == [tmp_path / "b", tmp_path / "a"]
    assert {path.name for path in tmp_path.glob("*/")} == {"a", "b", "others"}
    for content in ("{", json.dumps([1]), json.dumps({"shards": 1})):
        (tmp_path / "shards.json").write_text(content)
        with pytest.raises(ValueError, match="is damaged"):
            read_manifest(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no shards\.json"):
        read_manifest(tmp_path / "elsewhere")
