"""The building of an index: what is refused, and what is left then."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillIndex
from pyterrier_selfdistill.utils.folders import FolderInUseError

# --- index and indexer ----------------------------------------------------------------------------------------------


def test_indexer_replaces_an_index_only_if_told_to(encoder, index, collection):
    before = (index.index_path / "vecs.f4").read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        (encoder >> index).index(collection.records[:5])
    assert (index.index_path / "vecs.f4").read_bytes() == before
    (encoder >> index.indexer(mode="overwrite")).index(collection.records[:5])
    assert len(index) == 5
    assert [path.name for path in index.index_path.parent.iterdir()] == ["index.flex"]


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ({"docno": "sort-table", "text": "again"}, ValueError, "duplicate docno 'sort-table'"),
        ({"docno": "d1", "text": None}, TypeError, "'text' must hold a string.*'d1'"),
        ({"docno": "d1"}, TypeError, "'text' must hold a string.*'d1'"),
        ({"docno": 7, "text": "seven"}, TypeError, "docno 7 is of type int"),
        ({"text": "nobody"}, TypeError, "docno nan is of type float"),
    ],
)
def test_indexer_leaves_nothing_of_an_index_with_a_bad_document(
    encoder, collection, tmp_path, document, error, message
):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    with pytest.raises(error, match=message):
        (encoder >> index).index([*collection.records, document])
    assert not index.built()
    assert not list(tmp_path.iterdir())


def test_indexer_keeps_the_index_that_is_there_if_a_document_is_bad(encoder, index, collection):
    with pytest.raises(ValueError, match="duplicate"):
        (encoder >> index.indexer(mode="overwrite")).index(collection.records * 2)
    assert len(SelfDistillIndex(index.index_path)) == len(collection.corpus)


def test_indexer_refuses_no_documents_and_documents_without_vectors(encoder, tmp_path, collection):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    with pytest.raises(ValueError, match="no documents"):
        (encoder >> index).index([])
    with pytest.raises(ValueError, match="doc_vec missing.*encoder before the index"):
        index.index(collection.records)
    assert not list(tmp_path.iterdir())


def test_indexer_refuses_vectors_of_two_encoders(encoder, other, tmp_path, collection):
    records = [*encoder(collection.records[:3]), *other(collection.records[3:])]
    with pytest.raises(EncoderMismatchError, match="several encoders"):
        SelfDistillIndex(tmp_path / "index.flex", verbose=False).index(records)


def test_indexer_that_is_killed_leaves_no_index(language_model, tmp_path):
    program = """
import sys, time
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex
encoder = SelfDistillBiEncoder.from_pretrained(sys.argv[1], device="cpu")
def corpus():
    for i in range(5000):
        yield {"docno": str(i), "text": f"plot {i}"}
    print("indexing", flush=True)
    time.sleep(60)
(encoder >> SelfDistillIndex(sys.argv[2], verbose=False)).index(corpus())
"""
    path = tmp_path / "index.flex"
    process = subprocess.Popen(
        [sys.executable, "-c", program, language_model, str(path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout.readline().strip() == b"indexing"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not path.exists()
    assert not SelfDistillIndex(path).built()


# --- vectors and identifiers ----------------------------------------------------------------------------------------


VECTOR = np.array([0.6, 0.8], dtype=np.float32)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (np.array([0.6, np.nan]), "NaN or infinite"),
        (np.array([0.6, -np.inf]), "NaN or infinite"),
        (np.array([0.6, 1e300]), "NaN or infinite"),
        (np.array([0.6, 0.8, 0.0]), "has 3 dimensions, and those before have 2"),
        (np.array([[0.6, 0.8]]), r"floats of shape \(dimension,\), got float64 of shape \(1, 2\)"),
        (np.array(0.6), r"floats of shape \(dimension,\), got float64 of shape \(\)"),
        (np.array([1, 0]), "got int64 of shape"),
        (np.array([0.6, 0.8], dtype=object), "got object of shape"),
        (np.array([]), r"got float64 of shape \(0,\)"),
        ([0.6, 0.8], "got a list"),
        (None, "got a NoneType"),
    ],
)
def test_indexer_names_the_document_of_a_vector_that_is_none(tmp_path, vector, message):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    with pytest.raises(ValueError, match=f"doc_vec of 'd2' .*{message}"):
        index.index([{"docno": "d1", "doc_vec": VECTOR}, {"docno": "d2", "doc_vec": vector}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("records", [3, None, [3], ["d1"], [("d1", VECTOR)]])
def test_indexer_names_what_are_no_documents(tmp_path, records):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    with pytest.raises(TypeError, match="expected documents, records with docno and doc_vec, got .*; give"):
        index.index(records)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [True, None, "append", 3])
def test_indexer_names_a_mode_that_there_is_not(tmp_path, mode):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    with pytest.raises(ValueError, match=f"mode must be 'create' or 'overwrite', got {mode!r}"):
        index.indexer(mode=mode)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_indexer_takes_floats_of_any_size(tmp_path, dtype):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    index.index([{"docno": "d1", "doc_vec": VECTOR.astype(dtype)}])
    np.testing.assert_allclose(index.np_vecs(), [VECTOR], atol=1e-3)


@pytest.mark.parametrize("docno", ["", "a\0", "\ud800"])
def test_indexer_refuses_a_docno_that_cannot_be_stored(tmp_path, docno):
    with pytest.raises(ValueError, match="choose another"):
        SelfDistillIndex(tmp_path / "index.flex", verbose=False).index([{"docno": docno, "doc_vec": VECTOR}])


# --- several builders -----------------------------------------------------------------------------------------------


def test_indexer_is_refused_while_another_builds(tmp_path):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    refused = []

    def build_too():
        for mode in ("create", "overwrite"):
            try:
                SelfDistillIndex(index.index_path).indexer(mode=mode).index([{"docno": "late", "doc_vec": VECTOR}])
            except FolderInUseError as error:
                refused.append(str(error))

    def documents():
        yield {"docno": "d1", "doc_vec": VECTOR}
        thread = threading.Thread(target=build_too)
        thread.start()
        thread.join()

    index.index(documents())
    assert len(refused) == 2
    assert f"process {os.getpid()} on" in refused[0]
    assert "is building an index" in refused[0]
    assert list(index.docnos()) == ["d1"]


def test_indexer_does_not_replace_an_index_that_was_built_meanwhile(tmp_path):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)

    def documents():
        (index.index_path).mkdir()
        (index.index_path / "vecs.f4").write_text("theirs")
        yield {"docno": "d1", "doc_vec": VECTOR}

    with pytest.raises(FileExistsError, match="there already"):
        index.index(documents())
    assert (index.index_path / "vecs.f4").read_text() == "theirs"


def test_indexer_replaces_nothing_but_an_index(tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="holds thesis.tex"):
        SelfDistillIndex(folder, verbose=False).indexer(mode="overwrite").index([{"docno": "d1", "doc_vec": VECTOR}])
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
