"""The precision of encoding: vectors are close, and all else is as in float32."""

import pickle
import sys

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer
from pyterrier_selfdistill.encoder.precision import has_bfloat16, to_int8

SIXTEEN_BITS = ["bfloat16", "float16"]
TOLERANCES = {"bfloat16": 1e-3, "float16": 1e-3, "int8": 2e-2}
"""By how much cosines with the vectors of float32 may differ from 1."""

DOCUMENTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]


@pytest.fixture
def load(language_model):
    """Load the tiny encoder in a precision."""

    def load(dtype):
        if dtype == "int8":
            pytest.importorskip("openvino")
        return SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype=dtype)

    return load


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# --- which precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_bfloat16_on_a_cpu_needs_its_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bfloat16(torch.device("cpu")) == expected
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_bfloat16(torch.device("cpu"))


def test_a_precision_may_be_auto_or_a_type_of_torch(load, tmp_path):
    encoder = load("auto")
    for each in (encoder, encoder.copy(), SelfDistillBiEncoder(encoder.copy().save(tmp_path / "model"), device="cpu")):
        # what conftest.py says is the fastest
        assert (each.dtype, each.precision) == ("auto", "float32")
    assert encoder.encoding_model is encoder.model
    bfloat16 = load(torch.bfloat16)
    assert bfloat16.dtype == bfloat16.precision == "bfloat16"
    assert next(bfloat16.encoding_model.parameters()).dtype == torch.bfloat16
    assert repr(bfloat16).endswith(", dtype='bfloat16')")


# --- vectors and identities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_vectors_are_close_to_those_of_float32(load, encoder, dtype):
    lower = load(dtype)
    assert lower.identity == encoder.identity
    assert lower != encoder
    assert lower.apply_attributes(batch_size=lower.batch_size) == lower == load(dtype)
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


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_an_index_of_one_precision_is_searched_in_another(load, encoder, collection, tmp_path, dtype):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (load(dtype) >> index).index(collection.records)
    found = (encoder >> index)(collection.topics).set_index(["qid", "docno"])["score"]
    expected = encoder(collection.results).set_index(["qid", "docno"])["score"]
    np.testing.assert_allclose(found, expected[found.index], atol=5e-2 if dtype == "int8" else 5e-3)


def test_models_in_16_bits_are_loaded_in_32(load, tmp_path):
    halved = load("float32")
    halved.model.bfloat16()
    in_memory = halved.model_name
    halved.model.save_pretrained(str(tmp_path / "halved"))
    loaded = [SelfDistillBiEncoder(tmp_path / "halved", device="cpu", dtype=dtype) for dtype in SIXTEEN_BITS]
    loaded.append(SelfDistillBiEncoder.from_pretrained(tmp_path / "halved", device="cpu"))
    assert {parameter.dtype for each in loaded for parameter in each.model.parameters()} == {torch.float32}
    assert {each.model_name for each in loaded} == {in_memory}


def test_buffers_that_are_not_saved_stay_float32(tiny_model):
    """As transformers leaves the frequencies of rotary embeddings, which 16 bits would blur."""
    tiny_model[0].register_buffer("frequencies", torch.tensor([1.001]), persistent=False)
    encoding = SelfDistillBiEncoder(tiny_model, dtype="bfloat16").encoding_model
    assert encoding[0].frequencies.dtype == torch.float32
    assert next(encoding.parameters()).dtype == torch.bfloat16


# --- the copy that encodes ------------------------------------------------------------------------------------------

CHANGES = {
    "weights": lambda encoder: next(encoder.model.parameters()).data.mul_(-1),
    "document length": lambda encoder: setattr(encoder.model[0], "document_length", 4),
    "prompt": lambda encoder: encoder.model.prompts.update(document="d: "),
    "pooling": lambda encoder: setattr(encoder.model[1], "pooling_mode", "mean"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_copy_is_made_again_only_after_a_change(load, name):
    encoder = load("bfloat16")
    before = encoder.encode_docs(DOCUMENTS)
    first = encoder.encoding_model
    encoder.encode_queries(DOCUMENTS)
    assert encoder.encoding_model is first
    CHANGES[name](encoder)
    vectors = encoder.encode_docs(DOCUMENTS)
    assert not np.allclose(vectors, before, atol=1e-2)
    in_float32 = encoder.apply_attributes(dtype="float32").encode_docs(DOCUMENTS)
    np.testing.assert_allclose((vectors * in_float32).sum(axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("options", [{"fused": True}, {"fused": False}])
def test_the_copy_follows_every_step_of_training(load, options):
    encoder = load("bfloat16")
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=1e-4, **options)
    copies = [encoder.encoding_model]
    for _ in range(2):
        encoder.encode_queries_torch(DOCUMENTS).sum().backward()
        optimizer.step()
        copies.append(encoder.encoding_model)
    assert len(set(map(id, copies))) == 3
    assert not any(parameter.requires_grad for parameter in copies[-1].parameters())
    assert not copies[-1].training


def test_the_copy_is_left_behind(load):
    encoder = load("bfloat16")
    without = len(pickle.dumps(encoder))
    vectors = encoder.encode_docs(DOCUMENTS)
    assert len(pickle.dumps(encoder)) <= without + 100
    for other in (encoder.copy(), pickle.loads(pickle.dumps(encoder))):
        assert other == encoder
        np.testing.assert_array_equal(other.encode_docs(DOCUMENTS), vectors)
        assert other.encoding_model is not encoder.encoding_model


def test_training_is_the_same_whatever_encodes(load, collection, tmp_path):
    trained = {}
    for dtype in ("float32", "bfloat16"):
        # without the encoder before training, so that a trained one is compared
        options = {"bf16": False, "verbose": False, "eval_steps": 2, "max_steps": 4, "eval_on_start": False}
        trainer = SelfDistillTrainer(load(dtype), tmp_path / dtype, **options)
        trained[dtype] = trainer.fit(collection.results, collection.qrels, collection.results, collection.qrels).encoder
    assert trained["bfloat16"].precision == "bfloat16"
    weights = weights_of(trained["float32"].model)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    torch.testing.assert_close(weights_of(trained["bfloat16"].model), weights, atol=0, rtol=0)
    saved = SentenceTransformer(str(tmp_path / "bfloat16" / "model"), device="cpu")
    torch.testing.assert_close(weights_of(saved), weights, atol=0, rtol=0)
    assert trained["bfloat16"].model_name != load("bfloat16").model_name


# --- int8 and OpenVINO ----------------------------------------------------------------------------------------------


def test_rows_are_rounded_to_their_own_scale():
    weights = np.random.default_rng(0).normal(size=(4, 6)) * [[1], [10], [0.1], [0]]
    for matrix, summed in ((weights, 1), (weights.T, 0)):
        numbers, scales = to_int8(matrix, summed)
        assert numbers.dtype == np.int8
        assert np.abs(numbers).max(axis=summed).tolist() == [127, 127, 127, 0]
        assert (np.abs(numbers * scales - matrix) <= scales / 2 + 1e-6).all()


def test_nothing_is_reported_to_a_server(load, monkeypatch):
    telemetry = pytest.importorskip("openvino_telemetry").Telemetry
    for name in ("__init__", "send_event", "start_session"):
        monkeypatch.setattr(telemetry, name, lambda self, *arguments, **options: pytest.fail("reported"))
    load("int8").encode_docs(DOCUMENTS)


def test_models_that_openvino_cannot_convert_are_refused(tiny_model, monkeypatch):
    pytest.importorskip("openvino")
    no_language_model = SentenceTransformer(modules=[tiny_model[1]], device="cpu")
    with pytest.raises(ValueError, match="language model.*Pooling"):
        SelfDistillBiEncoder(no_language_model, dtype="int8").encode_docs(DOCUMENTS)
    monkeypatch.setattr(type(tiny_model[0].model), "forward", lambda self, **tokens: 1 / 0)
    with pytest.raises(ValueError, match="OpenVINO .*division by zero"):
        SelfDistillBiEncoder(tiny_model, dtype="int8").encode_docs(DOCUMENTS)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_an_exported_model_is_read_by_openvino_and_by_us(load, encoder, tmp_path, dtype):
    openvino = pytest.importorskip("openvino")
    source = load(dtype)
    folder = source.export(tmp_path / "model")
    assert SelfDistillBiEncoder(folder, device="cpu").model_name == encoder.model_name
    assert source.path != folder
    [file] = folder.glob("openvino/*.xml")
    graph = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    features = encoder.model.preprocess(DOCUMENTS)
    outputs = graph({port.get_any_name(): features[port.get_any_name()].numpy() for port in graph.inputs})
    cosines = (outputs["sentence_embedding"] * encoder.encode_docs(DOCUMENTS)).sum(axis=1)
    np.testing.assert_allclose(cosines, 1, atol=2e-2 if dtype == "int8" else 1e-5)


def test_an_error_says_what_to_install(language_model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openvino", None)
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="int8")
    for call in (lambda: encoder.encode_docs(DOCUMENTS), lambda: encoder.export(tmp_path / "model")):
        with pytest.raises(ImportError, match=r"pyterrier-selfdistill\[int8\]"):
            call()
    assert not list(tmp_path.iterdir())
