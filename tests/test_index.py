"""The index: bound to its encoder, built whole, and searched with every backend that is installed."""

import json
import os
import pickle
import signal
import subprocess
import sys
import unittest

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
import pytest
import torch
from pyterrier_dr import FlexIndex, VectorPrf

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillBiEncoder, SelfDistillIndex
from pyterrier_selfdistill.index import METHODS

VERBS, THINGS = ["sort", "read", "write", "plot", "return"], ["table", "matrix", "file", "array", "column", "rows"]
EXACT = ["np_retriever", "torch_retriever", "faiss_flat_retriever"]
APPROXIMATE = ["faiss_hnsw_retriever", "faiss_ivf_retriever", "voyager_retriever"]


@pytest.fixture
def corpus():
    return [{"docno": f"{v}-{t}", "text": f"{v} the {t} by mean"} for v in VERBS for t in THINGS]


@pytest.fixture
def topics():
    return pd.DataFrame([(f"q{i}", f"mean {t}") for i, t in enumerate(THINGS)], columns=["qid", "query"])


@pytest.fixture
def index(encoder, corpus, tmp_path):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (encoder >> index).index(corpus)
    return index


@pytest.fixture
def other(encoder):
    """The same encoder after one more step of training: same name, other weights."""
    other = encoder.copy()
    with torch.no_grad():
        next(other.model.parameters()).add_(0.1)
    return other


def ranking(results):
    return results.sort_values(["qid", "rank"])[["qid", "docno"]].to_numpy().tolist()


# --- the encoder ----------------------------------------------------------------------------------------------------


def test_index_remembers_its_encoder(encoder, index):
    assert index.encoder == encoder.identity
    assert SelfDistillIndex.load(str(index.index_path)).encoder == encoder.identity
    assert isinstance(pt.Artifact.load(str(index.index_path)), FlexIndex)


@pytest.mark.parametrize("method", EXACT + APPROXIMATE)
def test_queries_of_another_encoder(index, encoder, other, topics, method):
    retriever = getattr(index, method)()
    with pytest.raises(EncoderMismatchError) as error:
        (other >> retriever)(topics)
    for identity in (encoder.identity, other.identity):
        assert identity.checksum[:12] in str(error.value)
    assert "same name" in str(error.value)
    assert "any_encoder=True" in str(error.value)


@pytest.mark.parametrize(
    "pipeline",
    [
        lambda e, i: e >> i,
        lambda e, i: pt.apply.query(lambda row: row["query"] + " file") >> e >> i,
        lambda e, i: e >> pt.apply.generic(lambda df: df.iloc[::-1]) >> i,
        lambda e, i: (e >> i) % 5,
        lambda e, i: ((e >> i.retriever()) % 5).compile(),
        lambda e, i: e.query_encoder() >> i.scorer(),
        lambda e, i: e.query_encoder() >> i.ladr_proactive(4),
        lambda e, i: e >> SelfDistillIndex(i.index_path, any_encoder=True) >> i.vec_loader() >> VectorPrf() >> i,
    ],
)
def test_queries_of_another_encoder_in_pipelines(index, encoder, other, topics, pipeline):
    candidates = topics.merge(pd.DataFrame({"docno": ["sort-table", "read-file"]}), how="cross").assign(score=1.0)
    for inp in (topics, candidates):
        try:
            pt.inspect.transformer_outputs(pipeline(encoder, index), list(inp.columns))
        except pt.validate.InputValidationError:
            continue
        assert len(pipeline(encoder, index)(inp))
        with pytest.raises(EncoderMismatchError):
            pipeline(other, index)(inp)


def test_training_that_goes_on_in_place(index, encoder, topics):
    assert len((encoder >> index)(topics))
    with torch.no_grad():
        next(encoder.model.parameters()).add_(0.1)
    with pytest.raises(EncoderMismatchError, match="not the same weights"):
        (encoder >> index)(topics)


def test_going_ahead_all_the_same(index, encoder, other, topics):
    willing = SelfDistillIndex(index.index_path, verbose=False, any_encoder=True)
    assert len((other >> willing)(topics)) == len((encoder >> index)(topics))


def test_saved_and_loaded_encoders_are_the_same(index, encoder, topics, tmp_path):
    loaded = pt.Artifact.load(str(encoder.copy().save(tmp_path / "model")))
    assert ranking((loaded >> index)(topics)) == ranking((encoder >> index)(topics))


def test_vectors_that_do_not_say_who_made_them_are_trusted(index, encoder, topics):
    plain = topics.assign(query_vec=list(encoder.encode_queries(topics["query"])))
    assert ranking(index(plain)) == ranking((encoder >> index)(topics))
    with pytest.raises(ValueError, match="3 dimensions.* have 32"):
        index(topics.assign(query_vec=[np.ones(3, dtype=np.float32)] * len(topics)))


def test_vectors_keep_their_encoder_through_frames_records_and_pickles(encoder, topics):
    encoded = encoder(topics)
    frames = [
        encoded,
        encoded.merge(topics, on="qid"),
        pd.concat([frame for _, frame in encoded.groupby("qid")]),
        pd.DataFrame(encoded.to_dict(orient="records")),
        pickle.loads(pickle.dumps(encoded)),
        pd.DataFrame(encoder(topics.to_dict(orient="records"))),
        encoded.assign(query_vec=[2 * v + np.ones(32) for v in encoded["query_vec"]]),
    ]
    for frame in frames:
        assert {vector.encoder for vector in frame["query_vec"]} == {encoder.identity}
    assert isinstance(encoded["query_vec"][0].sum(), np.float32)


def test_scoring_does_not_mix_encoders(encoder, other, corpus, topics):
    results = topics.merge(pd.DataFrame(corpus), how="cross")
    expected = other(results)
    encoded = encoder.doc_encoder()(encoder.query_encoder()(results))
    scored = other(encoded)
    np.testing.assert_allclose(scored["score"], expected["score"], atol=1e-6)
    assert scored["query_vec"][0].encoder == encoder.identity  # what it was given, it gives on
    for texts, vectors in {"query": "query_vec", "text": "doc_vec"}.items():
        with pytest.raises(EncoderMismatchError, match=f"{vectors} was made by .*no '{texts}' to encode"):
            other(encoded.drop(columns=texts))


def test_loaded_vectors_are_those_of_the_encoder_of_the_index(encoder, other, index, topics):
    loaded = (encoder >> index >> index.vec_loader())(topics)
    assert {vector.encoder for vector in loaded["doc_vec"]} == {encoder.identity}
    assert len(encoder(loaded)) == len(loaded)
    with pytest.raises(EncoderMismatchError, match="doc_vec"):
        other(loaded)


# --- building -------------------------------------------------------------------------------------------------------


def test_building_over_an_index(encoder, index, corpus):
    before = (index.index_path / "vecs.f4").read_bytes()
    with pytest.raises(FileExistsError, match="overwrite"):
        (encoder >> index).index(corpus[:5])
    assert (index.index_path / "vecs.f4").read_bytes() == before
    (encoder >> index.indexer(mode="overwrite")).index(corpus[:5])
    assert len(index) == 5
    assert [path.name for path in index.index_path.parent.iterdir()] == ["index.flex"]


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        ({"docno": "sort-table", "text": "again"}, ValueError, "'sort-table' comes twice"),
        ({"docno": "d1", "text": None}, TypeError, "'text' must hold a string.*'d1'"),
        ({"docno": "d1"}, TypeError, "'text' must hold a string.*'d1'"),
        ({"docno": 7, "text": "seven"}, TypeError, "docno 7 is of type int"),
        ({"text": "nobody"}, TypeError, "docno nan is of type float"),
    ],
)
def test_bad_documents_leave_no_index(encoder, corpus, tmp_path, document, error, message):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    with pytest.raises(error, match=message):
        (encoder >> index).index([*corpus, document])
    assert not index.built()
    assert not list(tmp_path.iterdir())


def test_bad_documents_keep_the_index_that_is_there(encoder, index, corpus):
    with pytest.raises(ValueError, match="twice"):
        (encoder >> index.indexer(mode="overwrite")).index(corpus * 2)
    assert len(SelfDistillIndex(index.index_path)) == len(corpus)


def test_no_documents_and_no_vectors(encoder, tmp_path, corpus):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    with pytest.raises(ValueError, match="no documents"):
        (encoder >> index).index([])
    with pytest.raises(ValueError, match="doc_vec missing.*encoder before the index"):
        index.index(corpus)
    assert not list(tmp_path.iterdir())


def test_vectors_of_two_encoders_make_no_index(encoder, other, tmp_path, corpus):
    records = [*encoder(corpus[:3]), *other(corpus[3:])]
    with pytest.raises(EncoderMismatchError, match="several encoders"):
        SelfDistillIndex(tmp_path / "index.flex", verbose=False).index(records)


def test_no_index_and_broken_ones(encoder, index, topics, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no index at .*nothing"):
        (encoder >> SelfDistillIndex(tmp_path / "nothing"))(topics)
    vectors = index.index_path / "vecs.f4"
    vectors.write_bytes(vectors.read_bytes()[:-4])
    with pytest.raises(ValueError, match="has not the 3840 bytes of all vectors"):
        (encoder >> SelfDistillIndex(index.index_path))(topics)
    (index.index_path / "pt_meta.json").unlink()
    broken = SelfDistillIndex(index.index_path)
    assert not broken.built()
    with pytest.raises(ValueError, match="interrupted.*overwrite"):
        (encoder >> broken)(topics)
    model = encoder.save(tmp_path / "model")
    with pytest.raises(ValueError, match="is a biencoder"):
        (encoder >> SelfDistillIndex(model))(topics)


def test_killed_build_leaves_no_index(language_model, tmp_path):
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
    process.wait()
    assert not path.exists()
    assert not SelfDistillIndex(path).built()


def test_texts_of_like_length_are_encoded_together(encoder, tmp_path, monkeypatch):
    documents = [{"docno": str(i), "text": "plot " * (1 + i % 7)} for i in range(500)]
    chunks = []
    encode = encoder.encode_docs
    monkeypatch.setattr(encoder, "encode_docs", lambda texts, **k: chunks.append(len(texts)) or encode(texts, **k))
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (encoder >> index).index(iter(documents))
    assert chunks == [500]
    assert list(index.docnos()) == [document["docno"] for document in documents]
    np.testing.assert_allclose(index.np_vecs(), encode([d["text"] for d in documents]), atol=1e-6)
    chunks.clear()
    (encoder.doc_encoder() >> FlexIndex(str(tmp_path / "plain.flex"), verbose=False)).index(documents, batch_size=200)
    assert chunks == [200, 200, 100]


@pytest.mark.parametrize("form", [list, iter, pd.DataFrame])
def test_index_and_retriever_in_one_call(encoder, corpus, topics, tmp_path, form):
    retriever = encoder.build_retriever(form(corpus), tmp_path / "index.flex", num_results=3)
    found = retriever(topics)
    assert found.groupby("qid").size().unique().tolist() == [3]
    assert ranking(found) == ranking(((encoder >> SelfDistillIndex(tmp_path / "index.flex")) % 3)(topics))
    with pytest.raises(FileExistsError, match="already"):
        encoder.build_retriever(form(corpus), tmp_path / "index.flex")
    encoder.build_retriever(form(corpus[:2]), tmp_path / "index.flex", overwrite=True)
    assert len(SelfDistillIndex(tmp_path / "index.flex")) == 2


def test_fields_of_documents(encoder, tmp_path):
    corpus = [{"docno": str(i), "title": "plot", "body": f"a {t}"} for i, t in enumerate(THINGS)]
    retriever = encoder.build_retriever(corpus, tmp_path / "index.flex", fields=["title", "body"])
    (_, index) = retriever
    np.testing.assert_allclose(index.index.np_vecs(), encoder.encode_docs([f"plot a {t}" for t in THINGS]), atol=1e-6)


# --- searching ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", EXACT)
def test_exact_backends_agree(encoder, index, corpus, topics, method):
    scored = encoder(topics.merge(pd.DataFrame(corpus), how="cross"))
    found = (encoder >> getattr(index, method)())(topics)
    assert len(found) == len(scored)
    merged = found.merge(scored, on=["qid", "docno"])
    np.testing.assert_allclose(merged["score_x"], merged["score_y"], atol=1e-6)
    for _, group in found.groupby("qid"):
        assert group["rank"].tolist() == list(range(len(corpus)))
        assert (np.diff(group["score"]) <= 0).all()


@pytest.mark.parametrize("method", APPROXIMATE)
def test_approximate_backends_find_most(encoder, index, topics, method):
    exact = (encoder >> index)(topics)
    options = {"n_probe": 4} if method == "faiss_ivf_retriever" else {}
    found = (encoder >> getattr(index, method)(**options) >> pt.RankCutoff(5))(topics)
    both = found.merge(exact, on=["qid", "docno"])
    assert len(both) == len(found)
    assert (both["rank_y"] < 5).mean() > 0.5
    np.testing.assert_allclose(both["score_x"], both["score_y"], atol=1e-5)


def test_voyager_searches_as_widely_as_asked(index, encoder, topics):
    retriever = index.voyager_retriever(num_results=20, query_ef=25)
    voyager, asked = retriever.inner.voyager_index.index, []

    class Spy:
        def __len__(self):
            return len(voyager)

        def query(self, vectors, k, **options):
            asked.append((k, options))
            return voyager.query(vectors, k, **options)

    retriever.inner.voyager_index.index = Spy()
    assert (encoder >> retriever)(topics).groupby("qid").size().unique().tolist() == [20]
    assert asked == [(20, {"query_ef": 25})]


@pytest.mark.parametrize("method", EXACT + APPROXIMATE)
@pytest.mark.parametrize("k", [1, 3, 1000])
def test_rank_cutoff(encoder, index, topics, method, k):
    options = {"n_probe": 8} if method == "faiss_ivf_retriever" else {}
    pipeline = (encoder >> getattr(index, method)(**options)) % k
    expected = pipeline(topics)
    assert expected.groupby("qid").size().max() == min(k, len(index))
    assert ranking(pipeline.compile()(topics)) == ranking(expected)


@pytest.mark.parametrize("method", ["retriever", "torch_retriever"])
def test_rank_cutoff_asks_the_index_for_less(index, method):
    fused = (getattr(index, method)() % 10).compile()
    assert fused == getattr(index, method)(num_results=10)
    assert fused.num_results == 10
    assert (getattr(index, method)(num_results=5) % 10).compile()[0].num_results == 5


def test_one_result_a_query_is_a_value_not_an_array(encoder, index, topics):
    found = (encoder >> index.retriever(num_results=1))(topics)
    assert found["rank"].tolist() == [0] * len(topics)
    assert all(isinstance(docno, str) for docno in found["docno"])


@pytest.mark.parametrize("method", ["retriever", "torch_retriever"])
def test_mask(tmp_path, method):
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    index.index([{"docno": f"d{i}", "doc_vec": vector} for i, vector in enumerate(vectors[5:])])
    queries = pd.DataFrame({"qid": list("abcde"), "query_vec": list(vectors[:5])})
    chosen = [f"d{i}" for i in range(0, 35, 3)]
    masked = getattr(index, method)(mask=index.mask(chosen), num_results=len(chosen))
    everything = index(queries)
    expected = everything[everything["docno"].isin(chosen)]
    assert expected["score"].min() < 0  # where documents with a score of 0 would be above them
    assert ranking(masked(queries)) == ranking(expected)
    assert ranking((masked % 2).compile()(queries)) == ranking(expected.groupby("qid").head(2))
    assert masked != getattr(index, method)(mask=index.mask(chosen[1:]), num_results=len(chosen))
    with pytest.raises(KeyError, match="'nobody' is not in"):
        index.mask(["nobody"])
    with pytest.raises(ValueError, match=r"shape \(3,\).* has 35 documents"):
        index.retriever(mask=np.ones(3))


@pytest.mark.parametrize("method", [*EXACT, *APPROXIMATE, "scorer", "gar", "ladr_proactive", "ladr_adaptive"])
def test_transformers_are_identified_by_what_they_are_made_of(encoder, index, corpus, method):
    options = {"k": 4} if "ladr" in method or method == "gar" else {}
    transformer = getattr(index, method)(**options)
    again = getattr(SelfDistillIndex(index.index_path, verbose=False), method)(**options)
    assert transformer == again
    assert hash(transformer) == hash(again)
    assert transformer != getattr(index, method)(**options, num_results=7) if "flat" not in method else True
    assert pickle.loads(pickle.dumps(transformer)) == transformer
    assert "index.flex" in repr(transformer)


def test_index_that_was_built_again_is_another(encoder, other, index, corpus):
    before = hash(index.retriever())
    (other >> index.indexer(mode="overwrite")).index(corpus)
    assert hash(index.retriever()) != before


@pytest.mark.parametrize("method", EXACT + APPROXIMATE)
def test_parallel(encoder, index, topics, method):
    pipeline = encoder >> getattr(index, method)()
    with pytest.warns(UserWarning, match="experimental"):
        parallel = pipeline.parallel(2)
    assert ranking(parallel(topics)) == ranking(pipeline(topics))


def test_other_processes_open_the_files_themselves(encoder, index, topics):
    (encoder >> index)(topics)
    assert len(pickle.dumps(index)) < 1000


def test_options_can_be_tuned(encoder, index, topics):
    retriever = index.retriever()
    retriever.set_parameter("num_results", 2)
    assert retriever.get_parameter("num_results") == 2
    assert len((encoder >> retriever)(topics)) == 2 * len(topics)
    with pytest.raises(ValueError, match="no option 'ef_search'"):
        retriever.set_parameter("ef_search", 2)


def test_vectors_are_mapped_from_disk(index):
    assert isinstance(index.np_vecs(), np.memmap)
    assert index.np_vecs().mode == "r"


def test_plain_flexindex_reads_and_searches_the_same_folder(encoder, index, topics):
    plain = FlexIndex(str(index.index_path), verbose=False)
    assert ranking((encoder >> plain)(topics)) == ranking((encoder >> index)(topics))
    assert json.loads((index.index_path / "pt_meta.json").read_text())["format"] == "flex"


def test_all_methods_of_flexindex_are_bound():
    transformers = {name for name in vars(FlexIndex) if name.endswith(("retriever", "scorer", "ladr", "gar"))}
    assert transformers <= METHODS.keys()


def test_sbert_encoder_searches_too(encoder, index, topics, tmp_path):
    sbert = pyterrier_dr.SBertBiEncoder(str(encoder.copy().save(tmp_path / "model")))
    assert ranking((sbert >> index)(topics)) == ranking((encoder >> index)(topics))


@pytest.fixture(scope="module")
def built(language_model, tmp_path_factory):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu")
    index = SelfDistillIndex(tmp_path_factory.mktemp("conformance") / "index.flex", verbose=False)
    documents = [{"docno": str(i), "text": f"plot {i}"} for i in range(50)]
    (encoder >> index).index(documents)
    return encoder, index


ROLES = {
    "retriever": lambda e, i: e >> i,
    **{method: lambda e, i, method=method: getattr(i, method)() for method in EXACT + APPROXIMATE},
    "np_scorer": lambda e, i: i.scorer(),
    "torch_scorer": lambda e, i: i.torch_scorer(),
    "gar": lambda e, i: i.gar(4),
    "ladr": lambda e, i: i.ladr_proactive(4),
    "vec_loader": lambda e, i: i.vec_loader(),
    "index": lambda e, i: i,
}


@pytest.mark.parametrize("role", ROLES)
def test_conformance(built, role):
    case = pt.testing.transformer_test_class(lambda: ROLES[role](*built))
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun
    assert not [trace for _, trace in result.failures + result.errors]
