"""The index: bound to its encoder, and one of its files."""

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
import pytest
import torch
from pyterrier_dr import FlexIndex, VectorPrf

from pyterrier_selfdistill import EncoderMismatchError, SelfDistillIndex
from pyterrier_selfdistill.index.identity import EncoderIdentity

METHODS = [
    *("retriever", "np_retriever", "torch_retriever", "faiss_flat_retriever"),
    *("faiss_hnsw_retriever", "faiss_ivf_retriever", "voyager_retriever", "int8_retriever", "binary_retriever"),
]


# --- encoder --------------------------------------------------------------------------------------------------------


def test_index_remembers_its_encoder(encoder, index):
    # a name that others know, and no folder of this machine
    expected = EncoderIdentity(Path(encoder.name).name, encoder.identity.checksum)
    assert index.encoder == expected
    assert SelfDistillIndex.load(str(index.index_path)).encoder == expected
    assert encoder.name not in (index.index_path / "pt_meta.json").read_text()
    assert isinstance(pt.Artifact.load(str(index.index_path)), FlexIndex)


@pytest.mark.parametrize("method", METHODS)
def test_retrievers_refuse_queries_of_another_encoder(index, encoder, other, collection, method):
    retriever = getattr(index, method)()
    with pytest.raises(EncoderMismatchError) as error:
        (other >> retriever)(collection.topics)
    for identity in (index.encoder, other.identity):
        assert identity.checksum[:12] in str(error.value)
    assert "same name" in str(error.value)
    assert "any_encoder=True" in str(error.value)


PIPELINES = {
    "index": lambda e, i: e >> i,
    "rewritten queries": lambda e, i: pt.apply.query(lambda row: row["query"] + " file") >> e >> i,
    "a step between": lambda e, i: e >> pt.apply.generic(lambda frame: frame.iloc[::-1]) >> i,
    "cut-off": lambda e, i: (e >> i) % 5,
    "compiled": lambda e, i: ((e >> i.retriever()) % 5).compile(),
    "scorer": lambda e, i: e.query_encoder() >> i.scorer(),
    "re-ranker": lambda e, i: e.query_encoder() >> i.ladr_proactive(4),
    "feedback": lambda e, i: (
        e >> SelfDistillIndex(i.index_path, any_encoder=True) >> i.vec_loader() >> VectorPrf() >> i
    ),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_refuse_queries_of_another_encoder(index, encoder, other, collection, name):
    pipeline, topics = PIPELINES[name], collection.topics
    candidates = topics.merge(pd.DataFrame({"docno": ["sort-table", "read-file"]}), how="cross").assign(score=1.0)
    for inp in (topics, candidates):
        try:
            pt.inspect.transformer_outputs(pipeline(encoder, index), list(inp.columns))
        except pt.validate.InputValidationError:
            continue
        assert len(pipeline(encoder, index)(inp))
        with pytest.raises(EncoderMismatchError):
            pipeline(other, index)(inp)


def test_index_refuses_its_own_encoder_after_training_in_place(index, encoder, collection):
    assert len((encoder >> index)(collection.topics))
    with torch.no_grad():
        next(encoder.model.parameters()).add_(0.1)
    with pytest.raises(EncoderMismatchError, match="not the same weights"):
        (encoder >> index)(collection.topics)


def test_index_takes_any_encoder_if_told_to(index, encoder, other, collection):
    willing = SelfDistillIndex(index.index_path, verbose=False, any_encoder=True)
    assert len((other >> willing)(collection.topics)) == len((encoder >> index)(collection.topics))


def test_index_takes_its_encoder_saved_and_loaded(index, encoder, collection, tmp_path, ranking):
    loaded = pt.Artifact.load(str(encoder.copy().save(tmp_path / "model")))
    assert ranking((loaded >> index)(collection.topics)) == ranking((encoder >> index)(collection.topics))


def test_index_trusts_vectors_that_do_not_say_who_made_them(index, encoder, collection, ranking):
    topics = collection.topics
    plain = topics.assign(query_vec=list(encoder.encode_queries(topics["query"])))
    assert ranking(index(plain)) == ranking((encoder >> index)(topics))
    with pytest.raises(ValueError, match="3 dimensions.* have 32"):
        index(topics.assign(query_vec=[np.ones(3, dtype=np.float32)] * len(topics)))


def test_index_takes_queries_of_pyterrier_dr(encoder, index, collection, tmp_path, ranking):
    sbert = pyterrier_dr.SBertBiEncoder(str(encoder.copy().save(tmp_path / "model")))
    assert ranking((sbert >> index)(collection.topics)) == ranking((encoder >> index)(collection.topics))


def test_vec_loader_loads_vectors_of_the_encoder_of_the_index(encoder, other, index, collection):
    loaded = (encoder >> index >> index.vec_loader())(collection.topics)
    assert {vector.encoder for vector in loaded["doc_vec"]} == {index.encoder}
    assert len(encoder(loaded)) == len(loaded)
    with pytest.raises(EncoderMismatchError, match="doc_vec"):
        other(loaded)


# --- the folder of an index -----------------------------------------------------------------------------------------


def test_index_that_was_built_again_is_another(encoder, other, index, collection):
    before = hash(index.retriever())
    (other >> index.indexer(mode="overwrite")).index(collection.records)
    assert hash(index.retriever()) != before


def test_index_is_pickled_without_its_vectors(encoder, index, collection):
    """Other processes open the files themselves."""
    (encoder >> index)(collection.topics)
    assert len(pickle.dumps(index)) < 1000


def test_vectors_are_mapped_from_disk(index):
    assert isinstance(index.np_vecs(), np.memmap)
    assert index.np_vecs().mode == "r"


def test_folder_is_one_of_a_plain_flexindex(encoder, index, collection, ranking):
    plain = FlexIndex(str(index.index_path), verbose=False)
    assert ranking((encoder >> plain)(collection.topics)) == ranking((encoder >> index)(collection.topics))
    assert json.loads((index.index_path / "pt_meta.json").read_text())["format"] == "flex"


def test_encoder_indexes_into_a_plain_flexindex(encoder, collection, tmp_path):
    index = FlexIndex(str(tmp_path / "index.flex"), verbose=False)
    (encoder >> index).index(collection.records)
    found = (encoder >> index)(collection.topics)
    merged = found.merge(encoder(collection.results), on=["qid", "docno"])
    assert len(merged) == len(collection.results)
    np.testing.assert_allclose(merged["score_x"], merged["score_y"], atol=1e-6)


# --- mask -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["retriever", "np_retriever", "torch_retriever"])
def test_mask_leaves_the_given_documents_only(tmp_path, method, ranking):
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    index.index([{"docno": f"d{number}", "doc_vec": vector} for number, vector in enumerate(vectors[5:])])
    queries = pd.DataFrame({"qid": list("abcde"), "query_vec": list(vectors[:5])})
    chosen = [f"d{number}" for number in range(0, 35, 3)]
    masked = getattr(index, method)(mask=index.mask(chosen), num_results=len(chosen))
    everything = index(queries)
    expected = everything[everything["docno"].isin(chosen)]
    # where documents with a score of 0 would be above them
    assert expected["score"].min() < 0
    assert ranking(masked(queries)) == ranking(expected)
    assert ranking((masked % 2).compile()(queries)) == ranking(expected.groupby("qid").head(2))
    assert masked != getattr(index, method)(mask=index.mask(chosen[1:]), num_results=len(chosen))
    with pytest.raises(KeyError, match="'nobody' is not in"):
        index.mask(["nobody"])
    with pytest.raises(TypeError, match="docnos must be a list of strings, got 3"):
        index.mask(3)
    with pytest.raises(TypeError, match=r"docnos\[0\] is 3, of type int; give strings"):
        index.mask([3])
    with pytest.raises(ValueError, match=r"shape \(3,\).* has 35 documents"):
        index.retriever(mask=np.ones(3))
    with pytest.raises(ValueError, match="the mask must hold zeros and ones, got array"):
        index.retriever(mask=np.full(35, 2))
