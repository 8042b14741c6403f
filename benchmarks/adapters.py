"""What training an adapter costs and gives, beside training all weights.

    python -m benchmarks.adapters memory    # the peak for a model as large as BERT-large
    python -m benchmarks.adapters memory --layers 6
    python -m benchmarks.adapters quality   # MiniLM with docstrings: nDCG@10, seconds, megabytes
    python -m benchmarks.adapters quality --rates 1e-4 1e-3

Each training is in a process of its own, whose memory is only its own. Quality is of one seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pyterrier as pt
from ir_measures import nDCG
from transformers import AutoTokenizer, BertConfig, BertModel

from benchmarks.materials import DOCSTRINGS, MINILM, random_triples
from benchmarks.pages import table
from benchmarks.study.collection import load_collection
from benchmarks.study.memory import PeakMemory
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.training.trainer import make_start
from pyterrier_selfdistill.utils.checks import load_extra

LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
"""The layers of BERT-large, which has 24 of them and 335 million weights."""

STEPS = 2
"""Over how many steps memory is measured; the optimizer has all that it needs before the second."""

LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}

FULL_RATE = 2e-5
"""The learning rate of the trainer's own preset."""

RATES = (2e-5, 5e-4)
"""Learning rates to try for the adapter."""

TRIPLES = 512
"""How many triples to train with for quality."""


class Quality(NamedTuple):
    """What came of a training.

    Attributes:
        measure: nDCG@10 on the test queries, of all documents.
        seconds: How long the training took.
        size: The megabytes of the folder that has to be kept.
    """

    measure: float
    seconds: float
    size: float


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adapters", description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=["memory", "quality"])
    parser.add_argument("--layers", type=int, default=24, help="how many layers the model has for memory")
    parser.add_argument("--collection", default=DOCSTRINGS, help="what to train on and search for quality")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of collections")
    parser.add_argument("--rates", type=float, nargs="*", default=RATES, help="learning rates of the adapter")
    options = parser.parse_args()
    if options.part == "memory":
        print(memory_table(options.layers))
    else:
        print(quality_table(options.collection, options.data, options.rates))


def memory_table(layers: int) -> str:
    """Measure the memory of each way to train, and write it."""
    lora = {"adapter": load_extra("peft").LoraConfig(**LORA)}
    ways: dict[str, dict[str, Any]] = {
        "all weights": {},
        "LoRA": lora,
        "LoRA, gradient_checkpointing": {**lora, "gradient_checkpointing": True},
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        apart(partial(write_model, model, layers))
        for name, options in ways.items():
            peak, trained = apart(partial(peak_of_training, model, options))
            rows.append((name, f"{trained / 1e6:,.1f}", f"{peak:,.0f}"))
    return table(["trained", "million weights", "peak, MB"], rows)


def quality_table(collection: str, data: Path, rates: Sequence[float]) -> str:
    """Train and search in each way, and write what came of it."""
    ways: dict[str, dict[str, Any]] = {
        "nothing": {"max_steps": 0},
        f"all weights, {FULL_RATE:g}": {"learning_rate": FULL_RATE},
    }
    for rate in rates:
        ways[f"LoRA, {rate:g}"] = {"learning_rate": rate, "adapter": load_extra("peft").LoraConfig(**LORA)}
    rows = []
    for name, options in ways.items():
        reached = apart(partial(quality_of_training, collection, data, options))
        rows.append((name, f"{reached.measure:.4f}", f"{reached.seconds:.0f}", f"{reached.size:.1f}"))
    return table(["trained, learning rate", "nDCG@10", "seconds", "folder, MB"], rows)


def apart(work: Callable[[], Any]) -> Any:
    """Do something in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work).result()


def write_model(folder: str, layers: int) -> None:
    """Write a language model with random weights, and the vocabulary of MiniLM."""
    BertModel(BertConfig(num_hidden_layers=layers, **LARGE)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MINILM).save_pretrained(folder)


def peak_of_training(model: str, options: dict[str, Any]) -> tuple[float, int]:
    """Train some steps in batches of 4, and find how much memory that takes at most, with the encoder that is given.

    Args:
        model: The folder of a language model.
        options: Options of the trainer.

    Returns:
        The peak in MB, and how many weights were trained.
    """
    encoder = SelfDistillBiEncoder.from_pretrained(model, document_length=64, device="cpu", dtype="float32")
    triples = [("what to sort", "sort " * 64, "read " * 64)] * (4 * STEPS)
    arguments: dict[str, Any] = {"per_device_train_batch_size": 4, "save_strategy": "no", "verbose": False}
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        trainer = SelfDistillTrainer(encoder, f"{folder}/run", **arguments, **options)
        trainer.fit_triples(triples)
    weights = make_start(encoder, trainer.adapter, seed=0).encoder.model.parameters()
    trained = sum(tensor.numel() for tensor in weights if tensor.requires_grad)
    return memory.peak, trained


def quality_of_training(collection_name: str, data: Path, options: dict[str, Any]) -> Quality:
    """Train MiniLM with random negatives, and search all documents for the test queries.

    Args:
        collection_name: The name of the collection.
        data: The folder of collections.
        options: Options of the trainer; with ``max_steps=0`` nothing is trained.

    Returns:
        What came of it.
    """
    collection = load_collection(collection_name, data)
    training_topics, training_qrels = collection.splits["train"]
    triples = random_triples(collection, training_topics, training_qrels, TRIPLES)
    encoder = SelfDistillBiEncoder.from_pretrained(MINILM, query_length=20, document_length=64, dtype="float32")
    topics, qrels = collection.splits["test"]
    seconds, size = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        if options.get("max_steps") != 0:
            trainer = SelfDistillTrainer(encoder, f"{folder}/run", bf16=False, verbose=False, **options)
            encoder = trainer.fit_triples(triples).encoder
            seconds = encoder.training_summary["seconds"]
            kept = "model"
            if trainer.adapter is not None:
                kept = "adapter"
            files = Path(folder, "run", kept).rglob("*")
            size = sum(file.stat().st_size for file in files if file.is_file()) / 2**20
        retriever = encoder.build_retriever(collection.documents, f"{folder}/index.flex", num_results=10)
        measured = pt.Evaluate(retriever(topics), qrels, [nDCG @ 10])["nDCG@10"]
    return Quality(measured, seconds, size)


if __name__ == "__main__":
    main()
