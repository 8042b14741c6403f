"""The files of an index: complete, damaged, or replaced while they are opened."""

import json
import multiprocessing
import shutil
import time

import numpy as np
import pandas as pd
import pytest
from pyterrier_dr import FlexIndex

from pyterrier_selfdistill import SelfDistillIndex, index_files
from pyterrier_selfdistill.index.files import is_index, open_index, signature_of

VECTORS = np.eye(8, dtype=np.float32)[[0, 1, 2, 3, 4]]
DOCUMENTS = [{"docno": f"d{number}", "doc_vec": vector} for number, vector in enumerate(VECTORS)]
QUERIES = pd.DataFrame({"qid": ["a", "b"], "query_vec": list(VECTORS[:2])})


@pytest.fixture
def built(tmp_path):
    """An index without an encoder, of five documents."""
    return SelfDistillIndex(tmp_path / "index.flex", verbose=False).index(DOCUMENTS)


def change_metadata(**changes):
    def change(folder):
        file = folder / "pt_meta.json"
        metadata = {**json.loads(file.read_text()), **changes}
        file.write_text(json.dumps({name: value for name, value in metadata.items() if value is not None}))

    return change


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-4])


def remove(name):
    return lambda folder: (folder / name).unlink()


def put_a_folder(name):
    return lambda folder: [(folder / name).unlink(), (folder / name).mkdir()]


def put_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("a file")


def flip_a_bit(folder):
    content = bytearray((folder / "docnos.npids").read_bytes())
    content[-20] ^= 1
    (folder / "docnos.npids").write_bytes(content)


DAMAGES = {
    "vectors missing": (remove("vecs.f4"), "it has no vecs.f4"),
    "vectors cut off": (cut("vecs.f4"), "vecs.f4 has 156 bytes, not the 160 of 5 vectors"),
    "vectors empty": (write("vecs.f4", b""), "vecs.f4 has 0 bytes"),
    "vectors a folder": (put_a_folder("vecs.f4"), "it has no vecs.f4"),
    "identifiers missing": (remove("docnos.npids"), "it has no docnos.npids"),
    "identifiers cut off": (cut("docnos.npids"), "docnos.npids was changed or cut off"),
    "identifiers empty": (write("docnos.npids", b""), "docnos.npids was changed or cut off"),
    "identifiers garbage": (write("docnos.npids", b"\xff" * 300), "docnos.npids was changed or cut off"),
    "identifiers changed": (flip_a_bit, "docnos.npids was changed or cut off"),
    "metadata missing": (remove("pt_meta.json"), "interrupted: it has no pt_meta.json"),
    "metadata empty": (write("pt_meta.json", b""), "pt_meta.json is not a JSON object"),
    "metadata cut off": (cut("pt_meta.json"), "pt_meta.json is not a JSON object"),
    "metadata garbage": (write("pt_meta.json", b"\xff\xfe{"), "pt_meta.json is not a JSON object"),
    "metadata a list": (write("pt_meta.json", b"[]"), "pt_meta.json is not a JSON object"),
    "metadata nested deep": (write("pt_meta.json", b"[" * 100_000), "pt_meta.json is not a JSON object"),
    "metadata without a kind": (change_metadata(type=None), "pt_meta.json does not say that it is one"),
    "metadata of a model": (change_metadata(type="biencoder"), "expected an index, .*'biencoder'"),
    "no count": (change_metadata(doc_count=None), "has the doc_count None"),
    "another count": (change_metadata(doc_count=4), "vecs.f4 has 160 bytes, not the 128 of 4 vectors"),
    "count below zero": (change_metadata(doc_count=-5), "has the doc_count -5"),
    "count of another type": (change_metadata(doc_count="5"), "has the doc_count '5'"),
    "no dimension": (change_metadata(vec_size=None), "has the vec_size None"),
    "counts of the same product": (change_metadata(doc_count=8, vec_size=5), "5 identifiers for 8 documents"),
    "encoder of another type": (change_metadata(encoder="me"), "has the encoder 'me'"),
    "a file": (put_a_file, "expected the folder of an index, got the file"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_index_is_not_built_and_says_what_is_wrong(built, name):
    damage, message = DAMAGES[name]
    # open already, as it may be when it is damaged
    assert built.built()
    built(QUERIES)
    damage(built.index_path)
    for index in (built, SelfDistillIndex(built.index_path, verbose=False)):
        assert not index.built()
        with pytest.raises(ValueError, match=message):
            index(QUERIES)
        if not message.startswith("expected"):
            with pytest.raises(ValueError, match="build it again: .*mode='overwrite'"):
                len(index)


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in ("a file", "metadata of a model")])
def test_a_damaged_index_is_replaced_by_overwriting(built, name):
    DAMAGES[name][0](built.index_path)
    built.indexer(mode="overwrite").index(DOCUMENTS[:2])
    assert built.built()
    assert len(built) == 2


def test_open_index_takes_an_index_of_pyterrier_dr(tmp_path):
    FlexIndex(str(tmp_path / "plain.flex"), verbose=False).index(DOCUMENTS)
    files = open_index(tmp_path / "plain.flex")
    np.testing.assert_array_equal(files.vectors, VECTORS)
    assert list(files.docnos) == ["d0", "d1", "d2", "d3", "d4"]
    (tmp_path / "plain.flex" / "docnos.npids").write_bytes(b"\xff" * 300)
    with pytest.raises(ValueError, match="docnos.npids cannot be read"):
        open_index(tmp_path / "plain.flex")


def test_open_index_of_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no index at .*nothing"):
        open_index(tmp_path / "nothing")


def test_open_index_puts_back_what_a_killed_builder_moved_away(built):
    built.index_path.rename(built.index_path.parent / ".index.flex.replaced")
    assert SelfDistillIndex(built.index_path).built()
    assert [path.name for path in built.index_path.parent.iterdir()] == ["index.flex"]


def test_open_index_opens_files_of_one_index(built, tmp_path, monkeypatch):
    """Between the vectors and the identifiers, another index takes the place of the first."""
    newer = SelfDistillIndex(tmp_path / "newer.flex", verbose=False)
    newer.index([{"docno": f"n{number}", "doc_vec": -vector} for number, vector in enumerate(VECTORS)])
    open_docnos = index_files.open_docnos
    replacements = [newer.index_path]

    def replace(path):
        if replacements:
            shutil.rmtree(built.index_path)
            replacements.pop().rename(built.index_path)
        return open_docnos(path)

    monkeypatch.setattr(index_files, "open_docnos", replace)
    files = open_index(built.index_path)
    assert next(iter(files.docnos)) == "n0"
    assert files.vectors[0, 0] == -1


def test_open_index_gives_up_if_it_is_replaced_again_and_again(built, monkeypatch):
    signatures = iter(range(1000))
    monkeypatch.setattr(index_files, "signature_of", lambda folder: next(signatures))
    with pytest.raises(ValueError, match="replaced again and again"):
        open_index(built.index_path)


def test_signature_changes_when_an_index_is_replaced(built):
    before = signature_of(built.index_path)
    built(QUERIES)
    (built.index_path / "graph.faiss").write_text("computed from the index")
    assert signature_of(built.index_path) == before
    built.indexer(mode="overwrite").index(DOCUMENTS)
    assert signature_of(built.index_path) != before


def test_is_index_recognizes_nothing_else(built, tmp_path):
    assert is_index(built.index_path)
    (built.index_path / "pt_meta.json").write_text("garbage")
    (built.index_path / "hnsw_n-32_ef-40.faiss").write_text("computed from the index")
    assert is_index(built.index_path)
    (built.index_path / "thesis.tex").write_text("mine")
    assert not is_index(built.index_path)
    assert not is_index(tmp_path)


# --- many processes -------------------------------------------------------------------------------------------------


def documents_of(generation):
    """Make an index whose size, identifiers and scores all say which one it is."""
    vectors = np.eye(8, dtype=np.float32) * generation
    return [
        {"docno": f"{generation}-{number}", "doc_vec": vector} for number, vector in enumerate(vectors[:generation])
    ]


def generations(results):
    """Return the generations that the documents and the scores of results are of."""
    first = results[results["rank"] == 0]
    return {int(docno.partition("-")[0]) for docno in results["docno"]} | {int(score) for score in first["score"]}


def search(path, stop, answers):
    """Search an index that is replaced, until it is told to stop."""
    found = set()
    while not stop.is_set():
        retriever = SelfDistillIndex(path, verbose=False).retriever()
        for _ in range(3):
            results = retriever(QUERIES[:1])
            of = generations(results)
            # all documents of one index, and the scores of the same one
            assert len(of) == 1, of
            assert {len(results)} == of
            found |= of
    answers.put(found)


def test_searchers_get_answers_of_one_index_while_it_is_replaced(tmp_path):
    path = tmp_path / "index.flex"
    index = SelfDistillIndex(path, verbose=False).index(documents_of(2))
    context = multiprocessing.get_context("fork")
    stop, answers = context.Event(), context.Queue()
    searchers = [context.Process(target=search, args=(path, stop, answers), daemon=True) for _ in range(8)]
    for searcher in searchers:
        searcher.start()
    for replacement in range(30):
        index.indexer(mode="overwrite").index(documents_of(2 + replacement % 7))
        time.sleep(0.05)
    stop.set()
    found = [answers.get(timeout=60) for _ in searchers]
    for searcher in searchers:
        searcher.join()
    assert [searcher.exitcode for searcher in searchers] == [0] * 8
    assert len(set.union(*found)) > 1
