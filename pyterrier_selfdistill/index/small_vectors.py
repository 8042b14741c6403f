"""Small vectors: search copies of the vectors of an index in int8 or bits, and score what they find by the full ones.

FAISS searches the copies, which are made once and kept in the folder of the index, a quarter and a thirty-second of its
size. They are mapped from disk as the full vectors are, so that what is read again and again is small. Of the full
vectors only those of ``rescore`` times as many documents as are asked for are read: their scores are the exact ones.

- ``int8``: a number of 8 bits for each dimension, between the smallest and the largest of that dimension, which scores
  with the full vector of the query (asymmetric);
- ``binary``: the sign of each dimension, in a bit. Documents are nearest that have most signs of the query.

References:
    Guo et al.: Quantization based Fast Inner Product Search. AISTATS 2016. https://arxiv.org/abs/1509.01469 (documents
    are compressed, and queries are not). Yamada et al.: Efficient Passage Retrieval with Hashing for Open-domain
    Question Answering. ACL 2021. https://arxiv.org/abs/2106.00882 (bits find candidates, which are scored again)
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyterrier as pt
from pyterrier_dr import FlexIndex, SimFn
from pyterrier_dr.flex.faiss_retr import FaissRetriever
from pyterrier_dr.util import assert_faiss

from ..utils.folders import atomic_file

Kind: TypeAlias = Literal["int8", "binary"]
CHUNK = 4096  # how many vectors are copied at once
SAMPLE = 100_000  # of how many vectors, at least, the smallest and the largest number of each dimension is taken


def make_retriever(
    index: FlexIndex, kind: Kind, *, rescore: int, num_results: int, qbatch: int, drop_query_vec: bool
) -> pt.Transformer:
    """Make a retriever that searches small vectors, making these if they are not there."""
    assert_faiss()
    if index.sim_fn is not SimFn.dot:
        raise ValueError(
            f"small vectors are searched by their dot product, and {index!r} has the similarity {index.sim_fn}; make "
            "it with sim_fn='dot' if its vectors are of unit length, or use np_retriever"
        )
    vectors = index.np_vecs()
    small = open_small_vectors(index.index_path, vectors, kind)
    search = RescoredSearch(small, kind, vectors, rescore)
    options: dict[str, Any] = {"num_results": num_results, "qbatch": qbatch, "drop_query_vec": drop_query_vec}
    return FaissRetriever(index, search, index_spec=(kind, rescore), **options)


class RescoredSearch:
    """Search as an index of FAISS does, with candidates from small vectors."""

    def __init__(self, small: Any, kind: Kind, vectors: np.ndarray, rescore: int) -> None:
        self.small = small
        self.kind = kind
        self.vectors = vectors
        self.rescore = rescore

    def search(self, queries: np.ndarray, k: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Search."""
        number = min(k * self.rescore, len(self.vectors))
        _, candidates = self.small.search(_encode(queries, self.kind), number)
        scores = []
        found = []
        # in the order of the file that vectors are mapped from
        for query, positions in zip(queries, np.sort(candidates), strict=True):
            exact = self.vectors[positions] @ query
            best = np.argsort(-exact, kind="stable")[:k]
            scores.append(exact[best])
            found.append(positions[best])
        return scores, found


def open_small_vectors(folder: Path, vectors: np.ndarray, kind: Kind) -> Any:
    """Open the small vectors of an index, or make and keep them if they are not there or are others."""
    faiss = importlib.import_module("faiss")
    read, write = faiss.read_index, faiss.write_index
    if kind == "binary":
        read, write = faiss.read_index_binary, faiss.write_index_binary
    # FAISS maps from 1.11 on; before, it reads
    mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
    path = folder / f"{kind}.faiss"
    try:
        small = read(str(path), mapped)
    except RuntimeError:
        small = None
    if small is None or (small.ntotal, small.d) != (len(vectors), _dimension(vectors, kind)):
        with atomic_file(path, overwrite=True) as unfinished:
            write(make_small_vectors(vectors, kind), str(unfinished))
        small = read(str(path), mapped)
    if kind == "binary":
        # counting distances is faster than a heap, but not kept in the file
        small.use_heap = False
    return small


def make_small_vectors(vectors: np.ndarray, kind: Kind) -> Any:
    """Make small vectors."""
    faiss = importlib.import_module("faiss")
    dimension = _dimension(vectors, kind)
    if kind == "binary":
        small = faiss.IndexBinaryFlat(dimension)
    else:
        small = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        small.train(np.array(vectors[:: max(len(vectors) // SAMPLE, 1)]))
    for start in range(0, len(vectors), CHUNK):
        small.add(_encode(np.array(vectors[start : start + CHUNK]), kind))
    return small


def _encode(vectors: np.ndarray, kind: Kind) -> np.ndarray:
    """Give vectors as FAISS takes them: as their signs, for bits."""
    if kind == "binary":
        return np.packbits(vectors > 0, axis=1)
    return vectors


def _dimension(vectors: np.ndarray, kind: Kind) -> int:
    """Count the dimensions of small vectors: bits fill whole bytes."""
    if kind == "binary":
        return 8 * math.ceil(vectors.shape[1] / 8)
    return vectors.shape[1]
