"""What needs a GPU: mixed precision with its scaler, pinned memory, and the same vectors and results as on the CPU."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer
from pyterrier_selfdistill.data.triples import read_triples
from pyterrier_selfdistill.training.arguments import PRESETS, make_training_arguments, mixed_precision

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


@pytest.fixture
def encoder_on_device(language_model) -> SelfDistillBiEncoder:
    """The tiny encoder, on the GPU."""
    return SelfDistillBiEncoder.from_pretrained(language_model, device=DEVICE, dtype="float32")


@pytest.fixture
def encoder_on_cpu(language_model) -> SelfDistillBiEncoder:
    """The tiny encoder, on the CPU."""
    return SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="float32")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "chosen"])
def test_mixed_precision_trains_weights_in_32_bits(encoder_on_device, collection, tmp_path, precision):
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("needs a GPU with bfloat16")
    options = {} if precision == "chosen" else {precision: True}
    trainer = SelfDistillTrainer(
        encoder_on_device,
        tmp_path / "run",
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        num_train_epochs=20,
        verbose=False,
        **options,
    )
    trainer.fit(collection.results, collection.qrels, collection.results, collection.qrels)
    losses = trainer.history["loss"].dropna()
    assert np.isfinite(losses).all()
    assert losses.iloc[-1] < losses.iloc[0] / 2
    assert trainer.history["nDCG@10"].dropna().between(0, 1).all()
    assert trainer.encoder.device.type == DEVICE
    assert trainer.encoder.training_summary["precision"] in ("fp16", "bf16")
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {weights.dtype for weights in saved.values()} == {torch.float32}
    # what was measured and saved is not what autocast computes
    loaded = SelfDistillBiEncoder(str(tmp_path / "run" / "model"), device=DEVICE, dtype="float32")
    texts = collection.corpus["text"].tolist()
    np.testing.assert_allclose(loaded.encode_docs(texts), trainer.encoder.encode_docs(texts), atol=1e-5)


def test_an_interrupted_run_goes_on(encoder_on_device, collection, tmp_path):
    """With the state of the optimizer on the GPU."""
    options = {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "save_steps": 2, "verbose": False}
    half = SelfDistillTrainer(encoder_on_device, tmp_path / "run", max_steps=4, **options)
    half.fit(collection.results, collection.qrels)
    # a run that has trained to its end is read, and trains no more
    again = SelfDistillTrainer(encoder_on_device, tmp_path / "run", max_steps=4, resume=True, **options)
    assert again.fit(collection.results, collection.qrels).encoder.model_name == half.encoder.model_name


def test_batches_are_pinned_where_they_are_copied_to_a_gpu(encoder_on_cpu, encoder_on_device, tmp_path):
    triples = read_triples([("sort", "sort the rows", "plot a file")]).dataset
    options = {"preset": PRESETS["default"], "seed": 42, "overrides": {}}
    on_device = make_training_arguments(encoder_on_device, triples, tmp_path, None, **options)
    assert (on_device.dataloader_pin_memory, on_device.device.type) == (True, DEVICE)
    on_cpu = make_training_arguments(encoder_on_cpu, triples, tmp_path, None, **options)
    assert (on_cpu.dataloader_pin_memory, on_cpu.device.type) == (False, "cpu")
    assert mixed_precision(encoder_on_device.device) in ({"bf16": True}, {"fp16": True})


def test_the_gpu_encodes_as_the_cpu_does(encoder_on_cpu, encoder_on_device, collection):
    texts = collection.corpus["text"].tolist()
    for method in ("encode_docs", "encode_queries"):
        on_cpu, on_device = getattr(encoder_on_cpu, method)(texts), getattr(encoder_on_device, method)(texts)
        assert on_device.dtype == np.float32
        np.testing.assert_allclose(on_device, on_cpu, atol=1e-3)


def test_16_bits_on_the_gpu_encode_to_the_same_cosines(language_model, encoder_on_cpu, collection):
    texts = collection.corpus["text"].tolist()
    fast = SelfDistillBiEncoder.from_pretrained(language_model, device=DEVICE)
    cosines = (fast.encode_docs(texts) * encoder_on_cpu.encode_docs(texts)).sum(axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_the_gpu_searches_as_the_cpu_does(encoder_on_cpu, collection, tmp_path, fp16, masked):
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (encoder_on_cpu >> index).index(collection.records)
    mask = index.mask(collection.corpus["docno"][::3].tolist()) if masked else None
    number = len(collection.corpus[::3]) if masked else len(collection.corpus)
    queries = encoder_on_cpu(collection.topics)
    expected = index.retriever(mask=mask)(queries)
    found = index.torch_retriever(device=DEVICE, fp16=fp16, mask=mask)(queries)
    assert len(found) == len(expected) == number * len(collection.topics)
    scores = found.set_index(["qid", "docno"])["score"].sort_index()
    of_cpu = expected.set_index(["qid", "docno"])["score"].sort_index()
    assert scores.index.equals(of_cpu.index)
    np.testing.assert_allclose(scores, of_cpu, atol=1e-3)
    for _, ranked in found.sort_values("rank").groupby("qid"):
        # pandas does not compare numbers of 16 bits
        assert (np.diff(ranked["score"].to_numpy(dtype=np.float32)) <= 0).all()


def test_the_gpu_finds_the_first_results_of_the_cpu(encoder_on_device, collection, tmp_path):
    """Vectors that were encoded there too."""
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (encoder_on_device >> index).index(collection.records)
    queries = encoder_on_device(collection.topics)
    expected = index.retriever(num_results=5)(queries)
    found = index.torch_retriever(device=DEVICE, num_results=5)(queries)
    for rank in range(5):
        scores = [results[results["rank"] == rank].sort_values("qid")["score"] for results in (found, expected)]
        np.testing.assert_allclose(*scores, atol=1e-3)
