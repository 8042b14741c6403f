"""Mixed precision with its scaler on a GPU, and the same vectors and results as on the CPU."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")


@pytest.fixture
def load(language_model):
    """Load the tiny encoder onto a device."""

    def load(device=DEVICE, dtype="float32"):
        return SelfDistillBiEncoder.from_pretrained(language_model, device=device, dtype=dtype)

    return load


@pytest.mark.parametrize("precision", ["fp16", "bf16", "chosen"])
def test_mixed_precision_trains_weights_in_32_bits(load, collection, tmp_path, precision):
    options = {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "num_train_epochs": 20, "verbose": False}
    options |= {} if precision == "chosen" else {precision: True}
    trainer = SelfDistillTrainer(load(), tmp_path / "run", **options)
    trainer.fit(collection.results, collection.qrels, collection.results, collection.qrels)
    losses = trainer.history["loss"].dropna()
    assert losses.tail(5).mean() < losses.head(5).mean()
    assert trainer.encoder.device.type == DEVICE
    assert trainer.encoder.training_summary["precision"] in ("fp16", "bf16")
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {weights.dtype for weights in saved.values()} == {torch.float32}
    # the trained encoder computes without autocast again
    loaded = SelfDistillBiEncoder(str(tmp_path / "run" / "model"), device=DEVICE, dtype="float32")
    texts = collection.corpus["text"].tolist()
    np.testing.assert_allclose(loaded.encode_docs(texts), trainer.encoder.encode_docs(texts), atol=1e-5)


def test_a_run_is_resumed_with_the_optimizer_on_the_gpu(load, collection, tmp_path):
    options = {"learning_rate": 1e-3, "per_device_train_batch_size": 8, "save_steps": 2, "max_steps": 4}
    first = SelfDistillTrainer(load(), tmp_path / "run", verbose=False, **options)
    first.fit(collection.results, collection.qrels)
    # as if it had been interrupted after two steps
    (tmp_path / "run" / "checkpoints" / "log.json").unlink()
    for made_last in ("model", "checkpoints/checkpoint-4"):
        shutil.rmtree(tmp_path / "run" / made_last)
    again = SelfDistillTrainer(load(), tmp_path / "run", resume=True, verbose=False, **options)
    assert again.fit(collection.results, collection.qrels).encoder.model_name == first.encoder.model_name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_gpu_encodes_as_the_cpu_does(load, collection, dtype):
    texts = collection.corpus["text"].tolist()
    for method in ("encode_docs", "encode_queries"):
        expected, found = (getattr(load(*where), method)(texts) for where in [("cpu",), (DEVICE, dtype)])
        assert found.dtype == np.float32
        # 16 bits round vectors to 1e-2, and cosines to its square
        np.testing.assert_allclose((found * expected).sum(axis=1), 1, atol=1e-3)


@pytest.mark.parametrize("fp16", [False, True])
@pytest.mark.parametrize("step", [1, 3])
def test_the_gpu_searches_as_the_cpu_does(load, collection, tmp_path, fp16, step):
    encoder = load("cpu")
    index = SelfDistillIndex(tmp_path / "index.flex", verbose=False)
    (encoder >> index).index(collection.records)
    documents = collection.corpus["docno"].tolist()[::step]
    mask = index.mask(documents) if step > 1 else None
    queries = encoder(collection.topics)
    found = index.torch_retriever(device=DEVICE, fp16=fp16, mask=mask)(queries)
    expected = index.retriever(mask=mask)(queries)
    assert len(found) == len(documents) * len(collection.topics)
    scores, expected = (part.set_index(["qid", "docno"])["score"].sort_index() for part in (found, expected))
    assert scores.index.equals(expected.index)
    np.testing.assert_allclose(scores, expected, atol=1e-3)
    for _, ranked in found.sort_values("rank").groupby("qid"):
        # pandas does not compare numbers of 16 bits
        assert (np.diff(ranked["score"].to_numpy(dtype=np.float32)) <= 0).all()
