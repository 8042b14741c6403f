"""What share of a device's bfloat16 arithmetic training and encoding use.

    python -m benchmarks.arithmetic

The device is a GPU if there is one, and the CPU if not. Its rate is that of a large product of matrices, measured in
the same run; the arithmetic of a step is counted by torch, padding included. Besides all-MiniLM-L6-v2 there is an
encoder of the size and shape of BERT base, with random weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import batch_to_device, get_device_name
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from benchmarks.materials import LENGTHS, MINILM, draw_documents, draw_triples
from benchmarks.pages import table
from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillBiEncoder

BATCHES = {"cuda": (128, 1024), "cpu": (32,)}
"""How many triples are in a batch, by the type of the device."""

ENCODED = {"cuda": 400, "cpu": 100}
"""How many documents are encoded."""

MATRICES = {"cuda": 8192, "cpu": 2048}
"""How many rows and columns the matrices have whose product is timed."""

STEPS = 3
"""How many steps are timed, after one that is not."""


class Work(NamedTuple):
    """What a step does.

    Attributes:
        name: What it is called.
        items: How many triples or documents it takes.
        do: Does it.
    """

    name: str
    items: int
    do: Callable[[], Any]


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arithmetic", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of collections")
    options = parser.parse_args()
    print(arithmetic_table(options.data))


def arithmetic_table(data: Path) -> str:
    """Measure training and encoding, and write the table.

    Args:
        data: The folder of collections.

    Returns:
        A table in Markdown, with the device and its rate before it.
    """
    device = torch.device(get_device_name())
    peak = matrix_product_rate(device, MATRICES[device.type])
    rows = []
    for name, encoder in {"all-MiniLM-L6-v2": minilm(device), "BERT base, random": bert_base(device)}.items():
        works = [training(encoder, data, batch) for batch in BATCHES[device.type]]
        works.append(encoding(encoder, data))
        for work in works:
            operations, seconds = measure(work.do, device)
            rate = operations / seconds
            share = f"{100 * rate / peak:.0f} %"
            rows.append([name, work.name, f"{work.items / seconds:.1f}", f"{rate / 1e12:.2f}", share])
    header = ["encoder", "work", "triples or documents/s", "TFLOP/s", "share of the product's"]
    return f"Device: {device.type}. A product of matrices: {peak / 1e12:.2f} TFLOP/s.\n\n{table(header, rows)}"


def matrix_product_rate(device: torch.device, size: int) -> float:
    """Time the product of two square matrices of bfloat16.

    Args:
        device: The device.
        size: How many rows and columns they have.

    Returns:
        Floating point operations a second.
    """
    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    operations, seconds = measure(lambda: left @ right, device)
    return operations / seconds


def measure(work: Callable[[], Any], device: torch.device) -> tuple[int, float]:
    """Count the operations of a work, and time it.

    Args:
        work: What to do.
        device: Where it is done.

    Returns:
        The floating point operations, and the seconds of the fastest time.

    Example:
        >>> left, right = torch.ones(2, 3), torch.ones(3, 4)
        >>> measure(lambda: left @ right, torch.device("cpu"))[0]
        48
    """
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    times = []
    for _ in range(STEPS):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return counter.get_total_flops(), min(times)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training(encoder: SelfDistillBiEncoder, data: Path, batch: int) -> Work:
    """Make a training step on a batch, with the fused AdamW in mixed precision."""
    model = encoder.copy().model
    model.train()
    loss = SelfDistillationLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    columns = draw_triples(data, batch)
    features = []
    for name, task in {"query": "query", "positive": "document", "negative": "document"}.items():
        features.append(model.preprocess(columns[name].tolist(), task=task))

    def step() -> None:
        on_device = [batch_to_device(dict(column), model.device) for column in features]
        with torch.autocast(model.device.type, torch.bfloat16):
            value = loss(on_device)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Work(f"training, batch {batch}", batch, step)


def encoding(encoder: SelfDistillBiEncoder, data: Path) -> Work:
    """Make the encoding of documents."""
    number = ENCODED[encoder.device.type]
    texts = [record["text"] for record in draw_documents(data)[:number]]
    return Work("encoding", len(texts), lambda: encoder.encode_docs(texts))


def minilm(device: torch.device) -> SelfDistillBiEncoder:
    """Load all-MiniLM-L6-v2."""
    return SelfDistillBiEncoder.from_pretrained(MINILM, device=device, **LENGTHS)


def bert_base(device: torch.device) -> SelfDistillBiEncoder:
    """Make an encoder of the shape of BERT base, 110 million parameters, with random weights and MiniLM's words."""
    transformer: Any = minilm(torch.device("cpu")).model[0]
    config = BertConfig(vocab_size=len(transformer.tokenizer))
    transformer.model = BertModel(config)
    model = SentenceTransformer(modules=[transformer, Pooling(config.hidden_size)], device="cpu")
    return SelfDistillBiEncoder(model, device=device)


if __name__ == "__main__":
    main()
