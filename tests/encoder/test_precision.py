"""The precision of encoding: vectors are close, and all else is as in float32."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer
from pyterrier_selfdistill.encoder.precision import has_bfloat16, to_int8

TOLERANCES = {"bfloat16": 1e-3, "float16": 1e-3, "int8": 2e-2}  # of cosines with the vectors of float32

DOCUMENTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]


@pytest.fixture
def load(language_model):
    """Load the tiny encoder in a precision."""

    def load(dtype, **options):
        if dtype == "int8" or "backend" in options:
            pytest.importorskip("openvino")
        return SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype=dtype, **options)

    return load


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_bfloat16_on_a_cpu_needs_its_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bfloat16(torch.device("cpu")) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_vectors_are_close_to_those_of_float32(load, encoder, dtype):
    lower = load(dtype)
    assert lower.identity == encoder.identity
    for encode in ("encode_docs", "encode_queries"):
        expected = getattr(encoder, encode)(DOCUMENTS)
        vectors = getattr(lower, encode)([*DOCUMENTS, *DOCUMENTS], batch_size=3)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        np.testing.assert_array_equal(vectors[:4], vectors[4:])
        np.testing.assert_allclose((vectors[:4] * expected).sum(axis=1), 1, atol=TOLERANCES[dtype])
        assert not np.allclose(vectors[:4], expected, atol=1e-5)
    # gradients are of the weights, which stay
    torch.testing.assert_close(lower.encode_queries_torch(DOCUMENTS), encoder.encode_queries_torch(DOCUMENTS))
    assert {parameter.dtype for parameter in lower.model.parameters()} == {torch.float32}


def test_openvino_encodes_like_torch_until_the_model_changes(load, encoder):
    graph = load("float32", backend="openvino")
    assert repr(graph).endswith(", dtype='float32', backend='openvino')")
    assert graph.identity == encoder.identity
    for texts in (DOCUMENTS, DOCUMENTS[2:3]):
        np.testing.assert_allclose(graph.encode_docs(texts), encoder.encode_docs(texts), atol=1e-5)
    assert graph.encoding_model is not graph.model
    CHANGES[0](graph)
    in_torch = graph.apply_attributes(backend="torch")
    np.testing.assert_allclose(graph.encode_queries(DOCUMENTS), in_torch.encode_queries(DOCUMENTS), atol=1e-5)
    assert graph != in_torch == in_torch.copy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "openvino"])
def test_threads_get_the_vectors_and_the_scores_of_serial_calls(load, collection, dtype):
    options = {"dtype": "auto", "backend": "openvino"} if dtype == "openvino" else {"dtype": dtype}
    serial, encoder = (load(**options, query_length=4, document_length=32) for _ in range(2))
    results = collection.results.assign(text=collection.results["text"] + " return the mean value of the array")
    texts = results["text"].tolist()[:40]
    expected = [serial.encode_queries(texts), serial.encode_docs(texts), serial(results)["score"]]
    calls = [partial(encoder.encode_queries, texts), partial(encoder.encode_docs, texts), partial(encoder, results)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda call: call(), 15 * calls))
    for number, of_call in enumerate(found):
        values = of_call["score"] if number % 3 == 2 else of_call
        np.testing.assert_array_equal(values, expected[number % 3])


def test_an_index_of_one_precision_is_searched_in_another(load, encoder, collection, tmp_path):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (load("bfloat16") >> index).index(collection.records)
    found = (encoder >> index)(collection.topics).set_index(["qid", "docno"])["score"]
    expected = encoder(collection.results).set_index(["qid", "docno"])["score"]
    np.testing.assert_allclose(found, expected[found.index], atol=5e-3)


def test_models_in_16_bits_are_loaded_in_32(load, tmp_path):
    halved = load("float32")
    halved.model.bfloat16()
    in_memory = halved.model_name
    halved.model.save_pretrained(str(tmp_path / "halved"))
    loaded = SelfDistillBiEncoder(tmp_path / "halved", device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert (loaded.model_name, loaded.precision) == (in_memory, "bfloat16")


def test_buffers_that_are_not_saved_stay_float32(tiny_model):
    """As transformers leaves the frequencies of rotary embeddings, which 16 bits would blur."""
    tiny_model[0].register_buffer("frequencies", torch.tensor([1.001]), persistent=False)
    encoding = SelfDistillBiEncoder(tiny_model, dtype="bfloat16").encoding_model
    assert encoding[0].frequencies.dtype == torch.float32
    assert next(encoding.parameters()).dtype == torch.bfloat16


CHANGES = [
    lambda encoder: next(encoder.model.parameters()).data.mul_(-1),
    lambda encoder: setattr(encoder.model[0], "document_length", 4),
    lambda encoder: encoder.model.prompts.update(document="d: "),
    lambda encoder: setattr(encoder.model[1], "pooling_mode", "mean"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_copy_is_made_again_only_after_a_change(load, change):
    encoder = load("bfloat16")
    before = encoder.encode_docs(DOCUMENTS)
    first = encoder.encoding_model
    encoder.encode_queries(DOCUMENTS)
    assert encoder.encoding_model is first
    change(encoder)
    vectors = encoder.encode_docs(DOCUMENTS)
    assert not np.allclose(vectors, before, atol=1e-2)
    in_float32 = encoder.apply_attributes(dtype="float32").encode_docs(DOCUMENTS)
    np.testing.assert_allclose((vectors * in_float32).sum(axis=1), 1, atol=1e-3)


def test_the_copy_is_left_behind(load):
    encoder = load("bfloat16")
    without = len(pickle.dumps(encoder))
    vectors = encoder.encode_docs(DOCUMENTS)
    assert len(pickle.dumps(encoder)) <= without + 100
    for other in (encoder.copy(), pickle.loads(pickle.dumps(encoder))):
        np.testing.assert_array_equal(other.encode_docs(DOCUMENTS), vectors)
        assert other.encoding_model is not encoder.encoding_model


def test_training_is_the_same_whatever_encodes(load, collection, tmp_path):
    trained = []
    for name, encodes in {"f32": {}, "bf16": {"dtype": "bfloat16"}, "graph": {"backend": "openvino"}}.items():
        # without the encoder before training, so that a trained one is compared
        options = {"bf16": False, "verbose": False, "eval_steps": 3, "max_steps": 3, "eval_on_start": False}
        trainer = SelfDistillTrainer(load(**{"dtype": "float32", **encodes}), tmp_path / name, **options)
        trainer.fit(collection.results, collection.qrels, collection.results, collection.qrels)
        trained.append(trainer.encoder)
    assert (trained[1].precision, trained[2].backend) == ("bfloat16", "openvino")
    assert {encoder.model_name for encoder in trained} == {trained[0].model_name} != {load("float32").model_name}


def test_rows_are_rounded_to_their_own_scale():
    weights = np.random.default_rng(0).normal(size=(4, 6)) * [[1], [10], [0.1], [0]]
    for matrix, summed in ((weights, 1), (weights.T, 0)):
        numbers, scales = to_int8(matrix, summed)
        assert numbers.dtype == np.int8
        assert np.abs(numbers).max(axis=summed).tolist() == [127, 127, 127, 0]
        assert (np.abs(numbers * scales - matrix) <= scales / 2 + 1e-6).all()


def test_models_that_openvino_cannot_convert_are_refused(tiny_model):
    pytest.importorskip("openvino")
    no_language_model = SentenceTransformer(modules=[tiny_model[1]], device="cpu")
    with pytest.raises(ValueError, match="language model.*Pooling"):
        SelfDistillBiEncoder(no_language_model, dtype="int8").encode_docs(DOCUMENTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_an_exported_model_is_read_by_openvino_and_by_us(load, encoder, tmp_path, dtype):
    openvino = pytest.importorskip("openvino")
    source = load(dtype)
    folder = source.export(tmp_path / "model")
    assert SelfDistillBiEncoder(folder, device="cpu").model_name == encoder.model_name
    [file] = folder.glob("openvino/*.xml")
    graph = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    features = encoder.model.preprocess(DOCUMENTS)
    outputs = graph({port.get_any_name(): features[port.get_any_name()].numpy() for port in graph.inputs})
    cosines = (outputs["sentence_embedding"] * encoder.encode_docs(DOCUMENTS)).sum(axis=1)
    np.testing.assert_allclose(cosines, 1, atol=2e-2 if dtype == "int8" else 1e-5)
