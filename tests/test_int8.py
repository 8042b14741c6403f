"""Encoding in int8: vectors rank alike, and the graph of a model computes what it does."""

import importlib

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex
from pyterrier_selfdistill.encoder.precision import quantize, to_int8

TEXTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]


@pytest.fixture(scope="module")
def int8(language_model):
    """The tiny encoder in int8."""
    pytest.importorskip("openvino")
    return SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="int8")


def test_rows_are_rounded_to_their_own_scale():
    weights = np.random.default_rng(0).normal(size=(4, 6)) * [[1], [10], [0.1], [0]]
    for matrix, summed in ((weights, 1), (weights.T, 0)):
        numbers, scales = to_int8(matrix, summed)
        assert numbers.dtype == np.int8
        assert np.abs(numbers).max(axis=summed).tolist() == [127, 127, 127, 0]
        assert (np.abs(numbers * scales - matrix) <= scales / 2 + 1e-6).all()


def test_vectors_are_close_to_those_of_float32(int8, encoder):
    for encode in ("encode_docs", "encode_queries"):
        expected = getattr(encoder, encode)(TEXTS)
        vectors = getattr(int8, encode)([*TEXTS, *TEXTS], batch_size=3)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors[:4], vectors[4:], atol=1e-6)
        np.testing.assert_allclose((vectors[:4] * expected).sum(axis=1), 1, atol=2e-2)
        assert not np.allclose(vectors[:4], expected, atol=1e-4)


def test_an_index_is_built_and_searched(int8, encoder, collection, tmp_path):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (int8 >> index).index(collection.records)
    expected = encoder(collection.results).set_index(["qid", "docno"])["score"]
    for each in (int8, encoder):
        assert each.identity == encoder.identity
        found = (each >> index)(collection.topics).set_index(["qid", "docno"])["score"]
        np.testing.assert_allclose(found, expected[found.index], atol=5e-2)


def test_weights_stay_float32(int8, encoder):
    assert {parameter.dtype for parameter in int8.model.parameters()} == {torch.float32}
    torch.testing.assert_close(int8.encode_queries_torch(TEXTS), encoder.encode_queries_torch(TEXTS), atol=0, rtol=0)


def test_nothing_is_reported_to_a_server(int8, monkeypatch):
    telemetry = pytest.importorskip("openvino_telemetry").Telemetry
    for name in ("__init__", "send_event", "start_session"):
        monkeypatch.setattr(telemetry, name, lambda self, *arguments, **options: pytest.fail("reported"))
    int8.copy().encode_docs(TEXTS)


def test_models_that_do_not_begin_with_a_language_model_are_refused(tiny_model):
    with pytest.raises(ValueError, match="language models, and the model starts with Pooling.*another dtype"):
        quantize(SentenceTransformer(modules=[tiny_model[1]], device="cpu"))


def test_a_gpu_is_refused(tiny_model):
    with pytest.raises(ValueError, match="dtype='int8' encodes on a CPU, and the model is on meta; give device='cpu'"):
        quantize(tiny_model.to("meta"))


def test_an_error_says_what_to_install(language_model, monkeypatch):
    def fail(name):
        raise ImportError(name)

    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="int8")
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"pip install 'pyterrier-selfdistill\[int8\]"):
        encoder.encode_docs(TEXTS)


def test_what_openvino_cannot_convert_is_refused(tiny_model, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(type(tiny_model[0].model), "forward", lambda self, **tokens: 1 / 0)
    with pytest.raises(
        ValueError, match="OpenVINO .* cannot convert the model: division by zero; choose another dtype"
    ):
        quantize(tiny_model)
