"""Which share of a device's arithmetic training and encoding use, in the precision in which they run there.

    python -m benchmarks.arithmetic

The device is a GPU if there is one, and its rate is the rate of a large product of matrices in the same run. Torch
counts the arithmetic of a step, padding included. Next to all-MiniLM-L6-v2 there is an encoder of the size and shape
of BERT base, with random weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import batch_to_device, get_device_name
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from benchmarks.harness import DATA, LENGTHS, MINILM, draw_documents, draw_triples, seconds
from benchmarks.pages import table
from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillBiEncoder
from pyterrier_selfdistill.encoder.precision import has_bfloat16
from pyterrier_selfdistill.training.loop import sparse_embedding_gradients

BATCHES = {"cuda": (128, 1024), "cpu": (32,)}
ENCODED = {"cuda": 400, "cpu": 100}
MATRICES = {"cuda": 8192, "cpu": 2048}
"""The triples of a batch, the encoded documents and the rows of the timed matrices, by the type of the device."""


# makes an encoder on a device
EncoderMaker: TypeAlias = Callable[[torch.device], SelfDistillBiEncoder]


def arithmetic_table(data: Path) -> str:
    """Measure training and encoding, and write the device, its rate and the table."""
    return measured_table(data, {"all-MiniLM-L6-v2": (minilm, None), "BERT base, random": (bert_base, None)})


def measured_table(
    data: Path,
    encoders: Mapping[str, tuple[EncoderMaker, int | None]],
    batches: Sequence[int] | None = None,
    compiled: bool = False,
) -> str:
    """Measure encoders, each with its ``mini_batch_size`` if any, in batches of each size, also compiled by torch."""
    device = torch.device(get_device_name())
    precision = torch.bfloat16 if has_bfloat16(device) else torch.float32
    left, right = torch.randn(2, MATRICES[device.type], MATRICES[device.type], device=device, dtype=precision)
    product = partial(finish, lambda: left @ right, device)
    peak = count(product) / min(seconds(product) for _ in range(5))
    rows = []
    for name, (make, mini_batch_size) in encoders.items():
        encoder = make(device)
        for work, items, do, operations in works(encoder, data, batches, mini_batch_size, compiled):
            taken = seconds(partial(finish, do, device))
            rate = operations / taken
            rows.append([name, work, f"{items / taken:.1f}", f"{rate / 1e12:.2f}", f"{100 * rate / peak:.0f} %"])
    header = ["encoder", "work", "triples or documents/s", "TFLOP/s", "share of the product"]
    told = f"A product of matrices in {precision} on the {device.type} runs at {peak / 1e12:.2f} TFLOP/s."
    return f"{told}\n\n{table(header, rows)}"


def works(
    encoder: SelfDistillBiEncoder,
    data: Path,
    batches: Sequence[int] | None,
    mini_batch_size: int | None,
    compiled: bool,
) -> Iterator[tuple[str, int, Callable[[], Any], int]]:
    """Make the works to time, one after the other, since each training keeps a model of its own in memory.

    Yields:
        The name of a work, the number of its items, the work itself, which was done once before, and its operations.
    """
    device = encoder.device
    for size in batches or BATCHES[device.type]:
        step = training_step(encoder, data, size, mini_batch_size)
        operations = count(partial(finish, step, device))
        yield f"training, batch {size}", size, step, operations
        if compiled:
            step = training_step(encoder, data, size, mini_batch_size, compiled=True)
            finish(step, device)  # torch compiles at the first call
            yield f"training, batch {size}, compiled", size, step, operations
    texts = [record["text"] for record in draw_documents(data)[: ENCODED[device.type]]]
    encode = partial(encoder.encode_docs, texts)
    yield "encoding", len(texts), encode, count(encode, threads=1)


def count(work: Callable[[], Any], threads: int | None = None) -> int:
    """Count the floating point operations of a work in the thread that calls, by default with all threads of torch.

    Example:
        >>> left, right = torch.ones(2, 3), torch.ones(3, 4)
        >>> count(lambda: left @ right)
        48
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    with FlopCounterMode(display=False) as counter:
        work()
    torch.set_num_threads(before)
    return counter.get_total_flops()


def finish(work: Callable[[], Any], device: torch.device) -> None:
    """Do a work, and wait until its device has done it."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_step(
    encoder: SelfDistillBiEncoder, data: Path, batch: int, mini_batch_size: int | None = None, compiled: bool = False
) -> Callable[[], None]:
    """Make a training step on a batch, with the fused AdamW in mixed precision."""
    model = encoder.copy().model
    model.train()
    loss = SelfDistillationLoss(model, mini_batch_size=mini_batch_size)
    if compiled:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    columns = draw_triples(data, batch)
    tasks = {"query": "query", "positive": "document", "negative": "document"}
    features = [model.preprocess(columns[name].tolist(), task=task) for name, task in tasks.items()]

    def step() -> None:
        on_device = [batch_to_device(dict(column), model.device) for column in features]
        with sparse_embedding_gradients(model):
            with torch.autocast(model.device.type, torch.bfloat16, enabled=has_bfloat16(model.device)):
                value = loss(on_device)
            value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def minilm(device: torch.device) -> SelfDistillBiEncoder:
    """Load all-MiniLM-L6-v2."""
    return SelfDistillBiEncoder.from_pretrained(MINILM, device=device, **LENGTHS)


def bert_base(device: torch.device) -> SelfDistillBiEncoder:
    """Make an encoder of the shape of BERT base, 110 million parameters."""
    return random_encoder(device, BertModel, BertConfig())


def random_encoder(device: torch.device, make: Any, config: Any, pooling: str = "cls") -> SelfDistillBiEncoder:
    """Make an encoder with random weights and the words of MiniLM."""
    transformer: Any = minilm(torch.device("cpu")).model[0]
    config.vocab_size = len(transformer.tokenizer)
    transformer.model = make(config)
    model = SentenceTransformer(modules=[transformer, Pooling(config.hidden_size, pooling)], device="cpu")
    return SelfDistillBiEncoder(model, device=device)


def main() -> None:
    """Read the command line, measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arithmetic", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of collections")
    print(arithmetic_table(parser.parse_args().data))


if __name__ == "__main__":
    main()
