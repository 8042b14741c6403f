"""The folder of an index: built whole or not at all, bound to its encoder, opened only if it is complete."""

import itertools
import json
import multiprocessing
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
import pytest
import torch
from pyterrier.measures import RR
from pyterrier_dr import FlexIndex, VectorPrf

from pyterrier_selfdistill import EncoderMismatchError, RetrievalEvaluator, SelfDistillIndex, SelfDistillTrainer
from pyterrier_selfdistill.index.files import EncodedVector, EncoderIdentity, encoders_of

VECTORS = np.eye(8, dtype=np.float32)[:5]
DOCUMENTS = [{"docno": f"d{number}", "doc_vec": vector} for number, vector in enumerate(VECTORS)]
QUERIES = pd.DataFrame({"qid": ["a", "b"], "query_vec": list(VECTORS[:2])})


@pytest.fixture
def empty(tmp_path):
    """An index that is not built yet, alone in its folder."""
    return SelfDistillIndex(tmp_path / "index.flex", verbose=False)


@pytest.fixture
def built(empty):
    """An index of five documents, whose vectors do not say who made them."""
    return empty.index(DOCUMENTS)


# --- its encoder ----------------------------------------------------------------------------------------------------


def test_index_remembers_its_encoder(encoder, index):
    # a name that others know, and no folder of this machine
    assert index.encoder.name == Path(encoder.name).name
    assert index.encoder.checksum == encoder.identity.checksum
    assert SelfDistillIndex.load(str(index.index_path)).encoder == index.encoder
    assert encoder.name not in (index.index_path / "pt_meta.json").read_text()
    assert isinstance(pt.Artifact.load(str(index.index_path)), FlexIndex)


def test_vectors_keep_their_encoder_through_frames_records_and_pickles():
    identity = EncoderIdentity("my-model", "0123456789abcdef")
    vectors = EncodedVector.rows(np.eye(3, dtype=np.float32), identity)
    frame = pd.DataFrame({"qid": list("abc"), "query_vec": vectors})
    pickled = pickle.loads(pickle.dumps(frame))
    for each in [
        frame.merge(frame[["qid"]], on="qid"),
        pd.concat([part for _, part in frame.groupby("qid")]),
        pd.DataFrame(frame.to_dict(orient="records")),
        pickled,
        frame.assign(query_vec=[2 * vector + np.ones(3) for vector in vectors]),
    ]:
        assert [vector.encoder for vector in each["query_vec"]] == [identity] * 3
    np.testing.assert_array_equal(np.stack(pickled["query_vec"]), np.eye(3))
    assert type(vectors[0].sum()) is np.float32
    assert encoders_of([np.ones(2), np.ones(2).view(EncodedVector), *vectors]) == {identity}


PIPELINES = {
    "index": lambda e, i: e >> i,
    "a step between": lambda e, i: e >> pt.apply.generic(lambda frame: frame.iloc[::-1]) >> i,
    "compiled": lambda e, i: ((e >> i.retriever()) % 5).compile(),
    "scorer": lambda e, i: e.query_encoder() >> i.scorer(),
    "re-ranker": lambda e, i: e.query_encoder() >> i.ladr_proactive(4),
    "feedback": lambda e, i: (
        e >> SelfDistillIndex(i.index_path, any_encoder=True) >> i.vec_loader() >> VectorPrf() >> i
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_queries_of_another_encoder_are_refused(index, encoder, other, collection, name):
    topics = collection.topics
    if name in ("scorer", "re-ranker"):
        topics = topics.merge(pd.DataFrame({"docno": ["sort-table", "read-file"]}), how="cross").assign(score=1.0)
    assert len(PIPELINES[name](encoder, index)(topics))
    with pytest.raises(EncoderMismatchError) as error:
        PIPELINES[name](other, index)(topics)
    assert other.identity.checksum[:12] in str(error.value)
    if name != "feedback":
        assert index.encoder.checksum[:12] in str(error.value)


def test_encoders_that_are_taken(index, encoder, other, collection, tmp_path, ranking):
    topics = collection.topics
    expected = (encoder >> index)(topics)
    path = str(encoder.copy().save(tmp_path / "model"))
    plain = topics.assign(query_vec=list(encoder.encode_queries(topics["query"])))
    assert ranking((pt.Artifact.load(path) >> index)(topics)) == ranking(expected)
    assert ranking((pyterrier_dr.SBertBiEncoder(path) >> index)(topics)) == ranking(expected)
    assert ranking(index(plain)) == ranking(expected)
    willing = SelfDistillIndex(index.index_path, verbose=False, any_encoder=True)
    assert len((other >> willing)(topics)) == len(expected)
    with pytest.raises(ValueError, match=r"\b3 dimensions"):
        index(topics.assign(query_vec=[np.ones(3, dtype=np.float32)] * len(topics)))
    with torch.no_grad():
        next(encoder.model.parameters()).add_(0.1)
    with pytest.raises(EncoderMismatchError, match="same name"):
        (encoder >> index)(topics)


def test_loaded_vectors_are_of_the_encoder_of_the_index(encoder, other, index, collection):
    loaded = (encoder >> index >> index.vec_loader())(collection.topics)
    assert {vector.encoder for vector in loaded["doc_vec"]} == {index.encoder}
    with pytest.raises(EncoderMismatchError, match="doc_vec"):
        other(loaded)


def test_vectors_of_two_encoders_make_no_index(encoder, other, empty, collection):
    with pytest.raises(EncoderMismatchError, match="several"):
        empty.index([*encoder(collection.records[:3]), *other(collection.records[3:])])
    assert not empty.index_path.exists()


# --- its files ------------------------------------------------------------------------------------------------------


def test_folder_is_one_of_pyterrier_dr(encoder, index, collection, ranking, tmp_path):
    plain = FlexIndex(str(index.index_path), verbose=False)
    expected = (encoder >> index)(collection.topics)
    assert ranking((encoder >> plain)(collection.topics)) == ranking(expected)
    assert json.loads((index.index_path / "pt_meta.json").read_text())["format"] == "flex"
    theirs = FlexIndex(str(tmp_path / "theirs.flex"), verbose=False)
    (encoder >> theirs).index(collection.records)
    ours = SelfDistillIndex(theirs.index_path, verbose=False)
    assert ranking((encoder >> ours)(collection.topics)) == ranking(expected)
    assert list(ours.docnos()) == list(index.docnos())


def test_index_is_opened_by_each_process_itself(built):
    built(QUERIES)
    assert isinstance(built.np_vecs(), np.memmap)
    assert built.np_vecs().mode == "r"
    pickled = pickle.dumps(built)
    assert len(pickled) < 1000
    again = pickle.loads(pickled)
    assert again == built
    assert hash(again) == hash(built)
    assert str(built.index_path) in repr(again)
    built.close()
    assert len(built) == 5
    built.indexer(mode="overwrite").index(DOCUMENTS[:2])
    assert len(again(QUERIES)) == 4
    assert SelfDistillIndex(built.index_path, sim_fn="cos") != built


def with_metadata(**changes):
    return lambda content: json.dumps({**json.loads(content), **changes}).encode()


def cut(content):
    return content[:-4]


DAMAGES = [
    ("vecs.f4", None, "vecs.f4"),
    ("vecs.f4", cut, "vecs.f4.*156"),
    ("docnos.npids", cut, "docnos.npids"),
    ("docnos.npids", lambda content: content[:-20] + bytes([content[-20] ^ 1]) + content[-19:], "changed"),
    ("pt_meta.json", None, "pt_meta.json"),
    ("pt_meta.json", lambda content: b"[]", "pt_meta.json"),
    ("pt_meta.json", lambda content: b"[" * 100_000, "pt_meta.json"),
    ("pt_meta.json", with_metadata(type="biencoder"), "biencoder"),
    ("pt_meta.json", with_metadata(doc_count=None), "doc_count None"),
    ("pt_meta.json", with_metadata(doc_count=4), "160 .*128"),
    ("pt_meta.json", with_metadata(doc_count=8, vec_size=5), "5 .*8"),
    ("pt_meta.json", with_metadata(encoder="me"), "encoder 'me'"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_a_damaged_index_is_never_opened_and_may_be_replaced(built, name, damage, message):
    # open already, as it may be when it is damaged
    assert len(built(QUERIES)) == 10
    path = built.index_path / name
    content = path.read_bytes()
    path.unlink()
    if damage is not None:
        path.write_bytes(damage(content))
    for index in (built, SelfDistillIndex(built.index_path, verbose=False)):
        assert not index.built()
        with pytest.raises(ValueError, match=message):
            index(QUERIES)
    built.indexer(mode="overwrite").index(DOCUMENTS[:2])
    assert built.built()
    assert len(built) == 2


def test_an_index_of_nothing(empty):
    assert not empty.built()
    retriever = empty.retriever()
    for use in (lambda: retriever(QUERIES), lambda: len(empty), lambda: empty.encoder):
        with pytest.raises(FileNotFoundError, match=r"index\.flex"):
            use()
    empty.index(DOCUMENTS)
    assert len(retriever(QUERIES)) == 10


def test_an_index_that_a_killed_builder_moved_away_is_put_back(built):
    built.index_path.rename(built.index_path.with_name(".index.flex.replaced"))
    assert SelfDistillIndex(built.index_path).built()
    assert [path.name for path in built.index_path.parent.iterdir()] == ["index.flex"]


def generation(number):
    """An index of some generation, which its size, identifiers and scores say."""
    vectors = np.eye(8, dtype=np.float32) * number
    return [{"docno": f"{number}-{row}", "doc_vec": vectors[row]} for row in range(number)]


def rebuild(path, stop):
    for number in itertools.cycle(range(2, 9)):
        if stop.is_set():
            break
        SelfDistillIndex(path, verbose=False).indexer(mode="overwrite").index(generation(number))
        time.sleep(0.02)


def test_threads_get_answers_of_one_index_while_it_is_replaced(empty):
    index = empty.index(generation(2))
    methods = ["retriever", "np_retriever", "torch_retriever", "faiss_flat_retriever"]
    methods += ["faiss_hnsw_retriever", "faiss_ivf_retriever", "int8_retriever", "binary_retriever"]
    retrievers = [getattr(index, method)() for method in methods]
    context = multiprocessing.get_context("fork")
    stop = context.Event()
    builder = context.Process(target=rebuild, args=(index.index_path, stop), daemon=True)
    builder.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda retriever: retriever(QUERIES[:1]), [*retrievers, *retrievers[:4] * 9]))
    finally:
        stop.set()
        builder.join()
    found = set()
    for results in answers:
        docnos = {int(docno.partition("-")[0]) for docno in results["docno"]}
        # documents of one index, with the scores of the same one
        assert docnos == {int(results["score"].max())}
        assert set(results["docid"]) <= set(range(*docnos))
        found |= docnos
    assert len(found) > 1


# --- its identifiers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "docnos",
    [
        ["d\u00e9", "d\u00e8"],
        ["e8c5d3", "2301"],
        ["a", "b" * 10_000],
        [" 1", "1", "01", "+1", "-1", "1_0", "\u0661"],
        ["\u65e5\u672c", "\U0001f600", "a\nb", "a\tb", "ab" * 16, "550e8400-e29b-41d4-a716-446655440000"],
        [str(number) for number in range(300)] + ["x"],
        [f"d{number}" for number in range(5000)],
    ],
)
def test_docnos_are_any_strings(empty, docnos):
    empty.index({"docno": docno, "doc_vec": VECTORS[0]} for docno in docnos)
    for index in (SelfDistillIndex(empty.index_path), FlexIndex(str(empty.index_path))):
        lookup = index.docnos()
        assert list(lookup) == docnos
        assert lookup.fwd[list(range(len(docnos)))] == docnos
        assert list(lookup.inv[docnos]) == list(range(len(docnos)))


@pytest.mark.parametrize("place", [0, 999, 2999])
def test_duplicates_are_named_wherever_they_are(empty, place):
    docnos = [f"d{number}" for number in range(3000)]
    with pytest.raises(ValueError, match=f"duplicate docno '{docnos[place]}'"):
        empty.index({"docno": docno, "doc_vec": VECTORS[0]} for docno in [*docnos, docnos[place]])
    assert not list(empty.index_path.parent.iterdir())


# --- building it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        *(([DOCUMENTS[0], {"docno": "d2", "doc_vec": vector}], ValueError, "doc_vec of 'd2'") for vector in [
            *(np.full(8, value) for value in (np.nan, -np.inf, 1e300)),
            *(np.ones(3), np.ones((1, 8)), np.array(0.6), np.ones(8, dtype=int), np.ones(8, dtype=object)),
            *(np.array([]), [0.5] * 8, None),
        ]),
        *(([{"docno": docno, "doc_vec": VECTORS[0]}], ValueError, "docno") for docno in ("", "a\0", "\ud800")),
        *((records, TypeError, "documents") for records in (3, None, [3], ["d1"], [("d1", VECTORS[0])])),
        ([], ValueError, "no documents"),
        ([{"docno": "d1", "text": "sort"}], ValueError, "doc_vec"),
    ],
)  # fmt: skip
def test_bad_vectors_and_documents_change_nothing(built, documents, error, message):
    with pytest.raises(error, match=message):
        built.indexer(mode="overwrite").index(documents)
    assert list(SelfDistillIndex(built.index_path).docnos()) == ["d0", "d1", "d2", "d3", "d4"]
    assert [path.name for path in built.index_path.parent.iterdir()] == ["index.flex"]


@pytest.mark.parametrize("form", [list, iter, pd.DataFrame])
def test_documents_of_other_formats_get_one_error_everywhere(encoder, empty, collection, form):
    beir = [{"_id": "a1", "title": "Sorting", "text": "sort the rows of a table", "metadata": {}}]
    folder = empty.index_path.parent
    for read in (
        (encoder >> empty).index,
        lambda corpus: encoder.build_retriever(corpus, folder / "other.flex"),
        lambda corpus: SelfDistillTrainer(encoder, folder / "run", corpus=corpus),
        lambda corpus: RetrievalEvaluator(collection.topics, collection.qrels, [RR], corpus=corpus),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            read(form(beir))
        assert str(error.value) == (
            "documents must have 'docno' and 'text', got ['_id', 'title', 'text', 'metadata']: 'docno' missing; rename "
            "'_id' to 'docno'"
        )
    assert not list(folder.iterdir())


def test_frames_and_datasets_are_indexed(encoder, empty, collection, names):
    for corpus in (collection.corpus, names["dataset"]):
        (encoder >> empty.indexer(mode="overwrite")).index(corpus)
        assert list(empty.docnos()) == collection.corpus["docno"].tolist()


def test_modes(built):
    before = (built.index_path / "vecs.f4").read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        built.index(DOCUMENTS[:3])
    assert (built.index_path / "vecs.f4").read_bytes() == before
    (built.index_path / "hnsw_n-32_ef-40.faiss").write_text("computed from the index")
    (built.index_path / "notes.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.md, which .*move these"):
        built.indexer(mode="overwrite").index(DOCUMENTS[:3])
    (built.index_path / "notes.md").unlink()
    built.indexer(mode="overwrite").index(DOCUMENTS[:3])
    assert len(built) == 3
    assert [path.name for path in built.index_path.parent.iterdir()] == ["index.flex"]
    assert {path.name for path in built.index_path.iterdir()} == {"vecs.f4", "docnos.npids", "pt_meta.json"}


def test_folders_of_others_are_not_replaced(built):
    (built.index_path / "pt_meta.json").write_text("garbage")
    (built.index_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        built.indexer(mode="overwrite").index(DOCUMENTS[:1])
    assert (built.index_path / "thesis.tex").read_text() == "mine"
