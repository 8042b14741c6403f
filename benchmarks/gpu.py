"""What a GPU gives: its tests, training, encoding, exact search, and two processes where there are two GPUs.

    python -m benchmarks.gpu

It needs no network and at most eight minutes, and writes the section on GPUs of ``benchmarks/SPEED.md``. Models have
random weights, which need the same time as others.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.util import get_device_name
from transformers import Qwen3Config, Qwen3Model

from benchmarks.arithmetic import bert_base, measured_table, random_encoder
from benchmarks.harness import DATA, draw_triples
from benchmarks.pages import SPEED, records_table, section, write_section
from benchmarks.retrieval import measure_searching
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.utils.processes import is_first

BATCHES = (128, 1024)
SIZES = (1_000_000, 10_000_000)
DIMENSION = 128
"""How many vectors of how many dimensions are searched."""

DECODER: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 3072,
}
"""The layers of Qwen3-0.6B, whose vocabulary of 151,669 tokens is replaced by the one of MiniLM."""


def decoder(device: torch.device) -> SelfDistillBiEncoder:
    """Make a decoder-only encoder, which pools the last token."""
    return random_encoder(device, Qwen3Model, Qwen3Config(**DECODER), "lasttoken")


ENCODERS = {"BERT base, random": (bert_base, None), "decoder of 0.6 B, random": (decoder, 64)}
"""Each encoder, and its mini-batches: the activations of a batch of 1,024 would not fit."""


def processes_table(data: Path, number: int, batch: int = 128) -> str:
    """Train with one process and with one for each GPU, in global batches of the same size."""
    records = []
    for processes in sorted({1, number}):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command = [*launch, "-m", "benchmarks.gpu", "--train", str(batch // processes), "--data", str(data)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        records.append({"processes": processes, "triples/s": json.loads(done.stdout.splitlines()[-1])})
    return records_table(records)


def train(data: Path, batch: int, triples: int = 1024) -> float:
    """Train BERT base, and return how many triples a second."""
    encoder = bert_base(torch.device(get_device_name()))  # each process has its own GPU
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {"per_device_train_batch_size": batch, "save_strategy": "no", "verbose": False}
        trainer = SelfDistillTrainer(encoder, f"{folder}/run", **options).fit_triples(draw_triples(data, triples))
        return triples / trainer.encoder.training_summary["seconds"]


def summary_of_tests() -> str:
    """Run the tests for GPUs, and return their summary."""
    command = [sys.executable, "-m", "pytest", "tests/test_cuda.py"]
    tests = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    return f"`pytest tests/test_cuda.py`: {tests.stdout.splitlines()[-1].strip('= ')}."


def measured_parts(
    data: Path, batches: Sequence[int] = BATCHES, sizes: Sequence[int] = SIZES, compiled: bool = True
) -> list[str]:
    """Measure training, encoding and searching, and write a table of each."""
    searched = measure_searching(sizes, ("retriever",), dimension=DIMENSION)
    return [measured_table(data, ENCODERS, batches, compiled), records_table(searched)]


def main() -> None:
    """Read the command line, measure, and write the section."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of collections")
    parser.add_argument("--page", type=Path, default=SPEED, help="the page whose section is written")
    parser.add_argument("--train", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        rate = train(options.data, options.train)
        if is_first():
            print(json.dumps(rate))
        return
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU; python -m benchmarks.throughput measures the processor")
    parts = [summary_of_tests(), *measured_parts(options.data)]
    if torch.cuda.device_count() > 1:
        parts.append(processes_table(options.data, 2))
    write_section("gpu", section("python -m benchmarks.gpu", *parts), options.page)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    main()
