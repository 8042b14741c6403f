"""The precision of encoding: vectors agree, and all else is as in float32."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer
from pyterrier_selfdistill.encoder.precision import EncodingCopy, fastest_precision, has_bfloat16

SIXTEEN_BITS = ["bfloat16", "float16"]
DOCUMENTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]


@pytest.fixture
def load(language_model):
    """Load the tiny encoder in a precision."""

    def load(dtype):
        return SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype=dtype)

    return load


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# --- which precision ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bfloat16"), ({"amx_bf16": True}, "bfloat16"), ({"avx512_f": True}, "float32")],
)
def test_the_fastest_precision_of_a_cpu_is_that_of_its_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert fastest_precision(torch.device("cpu")) == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_the_fastest_precision_of_a_gpu_is_not_emulated(monkeypatch, supported, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert fastest_precision(torch.device("cuda")) == expected


def test_a_cpu_that_torch_cannot_ask_has_no_bfloat16(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not has_bfloat16(torch.device("cpu"))


def test_auto_is_the_fastest_precision(load, monkeypatch, tmp_path):
    monkeypatch.setattr("pyterrier_selfdistill.encoder.biencoder.fastest_precision", lambda device: "bfloat16")
    encoder = load("auto")
    for each in (encoder, encoder.copy(), SelfDistillBiEncoder(encoder.copy().save(tmp_path / "model"), device="cpu")):
        assert (each.dtype, each.precision) == ("auto", "bfloat16")
        assert next(each.encoding_model.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_a_precision_may_be_a_type_of_torch(load, dtype):
    assert load(dtype).dtype == "bfloat16"
    assert repr(load(dtype)).endswith(", dtype='bfloat16')")


# --- vectors and identities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_vectors_of_all_precisions_agree(load, encoder, dtype):
    for encode in ("encode_docs", "encode_queries"):
        expected = getattr(encoder, encode)(DOCUMENTS)
        vectors = getattr(load(dtype), encode)(DOCUMENTS)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose((vectors * expected).sum(axis=1), 1, atol=1e-3)
        assert not np.array_equal(vectors, expected)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_an_index_of_one_precision_is_searched_in_another(load, encoder, collection, tmp_path, dtype):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (load(dtype) >> index).index(collection.records)
    found = (encoder >> index)(collection.topics).set_index(["qid", "docno"])["score"]
    expected = encoder(collection.results).set_index(["qid", "docno"])["score"]
    np.testing.assert_allclose(found, expected[found.index], atol=5e-3)


def test_precision_is_part_of_equality_and_not_of_identity(load, encoder):
    others = [load(dtype) for dtype in SIXTEEN_BITS]
    assert {other.identity for other in others} == {encoder.identity}
    assert encoder not in others
    assert load("float32") == encoder
    assert others[0].apply_attributes(batch_size=others[0].batch_size) == others[0]


def test_models_in_16_bits_are_loaded_in_32(load, tmp_path):
    halved = load("float32")
    halved.model.bfloat16()
    in_memory = halved.model_name
    halved.model.save_pretrained(str(tmp_path / "halved"))
    loaded = [SelfDistillBiEncoder(tmp_path / "halved", device="cpu", dtype=dtype) for dtype in SIXTEEN_BITS]
    loaded.append(SelfDistillBiEncoder.from_pretrained(tmp_path / "halved", device="cpu"))
    assert {parameter.dtype for each in loaded for parameter in each.model.parameters()} == {torch.float32}
    assert {each.model_name for each in loaded} == {in_memory}


def test_gradients_are_those_of_the_float32_weights(load, encoder):
    vectors = load("bfloat16").encode_queries_torch(DOCUMENTS)
    torch.testing.assert_close(vectors, encoder.encode_queries_torch(DOCUMENTS), atol=0, rtol=0)


# --- training and saving --------------------------------------------------------------------------------------------


def test_training_is_the_same_whatever_encodes(load, collection, tmp_path):
    trained = {}
    for dtype in ("float32", "bfloat16"):
        # without the encoder before training, so that what is compared was trained
        options = {"bf16": False, "verbose": False, "eval_steps": 2, "eval_on_start": False}
        trainer = SelfDistillTrainer(load(dtype), tmp_path / dtype, **options)
        trained[dtype] = trainer.fit(collection.results, collection.qrels, collection.results, collection.qrels).encoder
    assert trained["bfloat16"].precision == "bfloat16"
    weights = weights_of(trained["float32"].model)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    torch.testing.assert_close(weights_of(trained["bfloat16"].model), weights, atol=0, rtol=0)
    saved = SentenceTransformer(str(tmp_path / "bfloat16" / "model"), device="cpu")
    torch.testing.assert_close(weights_of(saved), weights, atol=0, rtol=0)
    assert trained["bfloat16"].model_name != load("bfloat16").model_name


# --- EncodingCopy ---------------------------------------------------------------------------------------------------


def test_the_model_itself_encodes_in_its_precision(encoder):
    assert encoder.encoding_model is encoder.model


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
    in_float32 = SelfDistillBiEncoder(copy.deepcopy(encoder.model), dtype="float32").encode_docs(DOCUMENTS)
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


def test_the_copy_is_left_behind(load):
    encoder = load("bfloat16")
    without = len(pickle.dumps(encoder))
    vectors = encoder.encode_docs(DOCUMENTS)
    assert len(pickle.dumps(encoder)) <= without + 100
    for other in (encoder.copy(), pickle.loads(pickle.dumps(encoder))):
        assert other == encoder
        np.testing.assert_array_equal(other.encode_docs(DOCUMENTS), vectors)
        assert other.encoding_model is not encoder.encoding_model


def test_the_copy_is_not_patched_by_training(load):
    """accelerate replaces ``forward``, by a function that a copy would take over with the first model in it."""
    model = load("float32").model
    model.forward = lambda *arguments, **options: pytest.fail("the first model was asked")
    duplicate = EncodingCopy().of(model, "bfloat16", ())
    assert not duplicate.training
    assert not any(parameter.requires_grad for parameter in duplicate.parameters())
    duplicate(duplicate.preprocess(DOCUMENTS))


def test_buffers_that_are_not_saved_stay_float32(tiny_model):
    """As transformers leaves the frequencies of rotary embeddings, which 16 bits would blur."""
    tiny_model[0].register_buffer("frequencies", torch.tensor([1.001]), persistent=False)
    duplicate = EncodingCopy().of(tiny_model, "bfloat16", ())
    assert duplicate[0].frequencies.dtype == torch.float32
