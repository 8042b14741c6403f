"""Which share of a device's bfloat16 arithmetic training and encoding use.

    python -m benchmarks.arithmetic

The rate of the device, a GPU if there is one, is that of a large product of matrices, measured in the same run; torch
counts the arithmetic of a step, padding included. Next to all-MiniLM-L6-v2 there is an encoder of the size and shape of
BERT base, with random weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import batch_to_device, get_device_name
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from benchmarks.harness import DATA, LENGTHS, MINILM, draw_documents, draw_triples
from benchmarks.pages import table
from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillBiEncoder

BATCHES = {"cuda": (128, 1024), "cpu": (32,)}
ENCODED = {"cuda": 400, "cpu": 100}
MATRICES = {"cuda": 8192, "cpu": 2048}
"""The triples of a batch, the encoded documents and the rows of the timed matrices, by the type of the device."""


def arithmetic_table(data: Path) -> str:
    """Measure training and encoding, and write the device, its rate and the table."""
    device = torch.device(get_device_name())
    left, right = torch.randn(2, MATRICES[device.type], MATRICES[device.type], device=device, dtype=torch.bfloat16)
    operations, taken = measure(lambda: left @ right, device)
    peak = operations / taken
    minilm = SelfDistillBiEncoder.from_pretrained(MINILM, device=device, **LENGTHS)
    texts = [record["text"] for record in draw_documents(data)[: ENCODED[device.type]]]
    rows = []
    for name, encoder in {"all-MiniLM-L6-v2": minilm, "BERT base, random": bert_base(device)}.items():
        works: list[tuple[str, int, Callable[[], Any]]] = []
        for size in BATCHES[device.type]:
            works.append((f"training, batch {size}", size, training_step(encoder, data, size)))
        works.append(("encoding", len(texts), partial(encoder.encode_docs, texts)))
        for work, items, do in works:
            operations, taken = measure(do, device)
            rate = operations / taken
            rows.append([name, work, f"{items / taken:.1f}", f"{rate / 1e12:.2f}", f"{100 * rate / peak:.0f} %"])
    header = ["encoder", "work", "triples or documents/s", "TFLOP/s", "share of the product"]
    return f"A product of matrices on the {device.type} runs at {peak / 1e12:.2f} TFLOP/s.\n\n{table(header, rows)}"


def measure(work: Callable[[], Any], device: torch.device) -> tuple[int, float]:
    """Count the floating point operations of a work, and take the seconds of the fastest of three times.

    Example:
        >>> left, right = torch.ones(2, 3), torch.ones(3, 4)
        >>> measure(lambda: left @ right, torch.device("cpu"))[0]
        48
    """
    counter = FlopCounterMode(display=False)
    with counter:
        work()
    times = []
    for _ in range(3):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return counter.get_total_flops(), min(times)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_step(encoder: SelfDistillBiEncoder, data: Path, batch: int) -> Callable[[], None]:
    """Make a training step on a batch, with the fused AdamW in mixed precision."""
    model = encoder.copy().model
    model.train()
    loss = SelfDistillationLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    columns = draw_triples(data, batch)
    tasks = {"query": "query", "positive": "document", "negative": "document"}
    features = [model.preprocess(columns[name].tolist(), task=task) for name, task in tasks.items()]

    def step() -> None:
        on_device = [batch_to_device(dict(column), model.device) for column in features]
        with torch.autocast(model.device.type, torch.bfloat16):
            value = loss(on_device)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bert_base(device: torch.device) -> SelfDistillBiEncoder:
    """Make an encoder of the shape of BERT base, 110 million parameters, with random weights and MiniLM's words."""
    transformer: Any = SelfDistillBiEncoder.from_pretrained(MINILM, device="cpu", **LENGTHS).model[0]
    config = BertConfig(vocab_size=len(transformer.tokenizer))
    transformer.model = BertModel(config)
    model = SentenceTransformer(modules=[transformer, Pooling(config.hidden_size)], device="cpu")
    return SelfDistillBiEncoder(model, device=device)


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arithmetic", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of collections")
    print(arithmetic_table(parser.parse_args().data))


if __name__ == "__main__":
    main()
