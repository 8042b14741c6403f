"""How fast documents are encoded into an index, and how fast vectors are made, beside the peers.

    python -m benchmarks.encoding_speed

Our encoder in each precision against pyterrier-dr's encoders before a FlexIndex, and against the ``encode`` of
sentence-transformers, with the same model, documents and lengths, in turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyterrier as pt
import torch
from pyterrier_dr import FlexIndex, HgfBiEncoder, SBertBiEncoder
from sentence_transformers import SentenceTransformer

from benchmarks.materials import LENGTHS, MINILM, draw_documents
from benchmarks.pages import table
from benchmarks.turns import Rates, in_turns
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex

PRECISIONS = ("auto", "float32", "int8")
"""The precisions of our encoder."""

INTO_INDEX = "SBertBiEncoder >> FlexIndex"
ONLY_VECTORS = "SentenceTransformer.encode, bfloat16 weights"


def main() -> None:
    """Read the command line, measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoding_speed", description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="the folder of collections")
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    print(encoding_tables(options.data, options.turns))


def encoding_tables(data: Path, turns: int = 3) -> str:
    """Measure encoding, and write the tables.

    Args:
        data: The folder of collections.
        turns: How often each is timed.

    Returns:
        Two tables in Markdown.
    """
    records = draw_documents(data)
    indexing = in_turns(indexing_works(records), len(records), turns)
    vectors = in_turns(vector_works(records), len(records), turns)
    return "\n\n".join(
        [rates_table("into an index", indexing, INTO_INDEX), rates_table("vectors", vectors, ONLY_VECTORS)]
    )


def rates_table(work: str, rates: Mapping[str, Rates], peer: str) -> str:
    """Write rates and their ratios to those of a peer."""
    rows = [(name, str(own), own.over(rates[peer])) for name, own in rates.items()]
    return table([work, "documents/s (spread)", f"against {peer}"], rows)


def indexing_works(records: list[dict[str, str]]) -> dict[str, Callable[[], Any]]:
    """List the encoders before an index, each with a function that indexes all documents."""
    peers = {INTO_INDEX: sbert_encoder(), "HgfBiEncoder >> FlexIndex": hgf_encoder()}
    works: dict[str, Callable[[], Any]] = {}
    for name, encoder in peers.items():
        works[name] = partial(index_all, encoder, FlexIndex, records)
    for precision in PRECISIONS:
        encoder = SelfDistillBiEncoder.from_pretrained(MINILM, dtype=precision, **LENGTHS)
        works[f"SelfDistillBiEncoder >> SelfDistillIndex, {precision}"] = partial(
            index_all, encoder, SelfDistillIndex, records
        )
    return works


def vector_works(records: list[dict[str, str]]) -> dict[str, Callable[[], Any]]:
    """List what encodes texts, each with a function that encodes all."""
    texts = [record["text"] for record in records]
    works: dict[str, Callable[[], Any]] = {}
    for name, dtype in {"float32 weights": torch.float32, "bfloat16 weights": torch.bfloat16}.items():
        model = SentenceTransformer(MINILM, model_kwargs={"dtype": dtype})
        model.max_seq_length = LENGTHS["document_length"]
        works[f"SentenceTransformer.encode, {name}"] = partial(model.encode, texts, show_progress_bar=False)
    for precision in PRECISIONS:
        encoder = SelfDistillBiEncoder.from_pretrained(MINILM, dtype=precision, **LENGTHS)
        works[f"SelfDistillBiEncoder.encode_docs, {precision}"] = partial(encoder.encode_docs, texts)
    return works


def index_all(encoder: pt.Transformer, make_index: Callable[..., Any], records: Iterable[dict[str, str]]) -> None:
    """Index documents in a folder that is removed."""
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(f"{folder}/index.flex", verbose=False)
        (encoder >> index).index(iter(records))


def sbert_encoder() -> SBertBiEncoder:
    """Make pyterrier-dr's encoder of sentence-transformers, cut at the same length."""
    encoder = SBertBiEncoder(MINILM)
    encoder.model.max_seq_length = LENGTHS["document_length"]
    return encoder


def hgf_encoder() -> HgfBiEncoder:
    """Make pyterrier-dr's encoder of plain language models, cut at the same length; it takes the [CLS] vector."""
    encoder = HgfBiEncoder.from_pretrained(MINILM)
    encoder.tokenizer.model_max_length = LENGTHS["document_length"]
    return encoder


if __name__ == "__main__":
    main()
