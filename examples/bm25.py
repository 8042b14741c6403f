"""BM25 by PISA, without what it writes while it builds an index."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyterrier as pt
from pyterrier_pisa import PisaIndex


def build_bm25(folder: Path, corpus: pt.model.IterDict, num_results: int) -> Any:
    """Index documents with PISA.

    Args:
        folder: The folder of the index.
        corpus: Documents with ``docno`` and ``text``.
        num_results: How many documents to find for a query.

    Returns:
        A retriever.
    """
    with hidden_output():
        index = PisaIndex(str(folder), text_field="text").index(corpus)
        # which computes bounds of scores
        return index.bm25(num_results=num_results)


@contextmanager
def hidden_output() -> Iterator[None]:
    """Hide what native code writes; PISA logs each step to the standard output, and each percent to that of errors."""
    streams = [1, 2]
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in streams]
    with open(os.devnull, "wb") as nowhere:
        for stream in streams:
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in zip(streams, kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
