"""Small vectors: search copies of the vectors of an index in int8 or bits, and score the results by the full ones.

FAISS searches the copies, which are kept in the folder of the index. Of the full vectors, ``rescore * num_results`` for
each query are read, for exact scores.

- ``int8``: a number of 8 bits for each dimension, between the smallest and the largest of that dimension, which scores
  with the full vector of the query (asymmetric);
- ``binary``: the sign of each dimension, in a bit. Documents are nearest that have most signs of the query.

References:
    Guo et al.: Quantization based Fast Inner Product Search. AISTATS 2016. https://arxiv.org/abs/1509.01469
    Yamada et al.: Efficient Passage Retrieval with Hashing. ACL 2021. https://arxiv.org/abs/2106.00882
"""

from __future__ import annotations

import importlib
import math
from typing import Any, Literal

import numpy as np
from pyterrier_dr import FlexIndex, SimFn
from pyterrier_dr.util import assert_faiss

from ..utils.folders import atomic_file

CHUNK = 4096  # how many vectors are copied at once
SAMPLE = 100_000  # of how many vectors, at least, the smallest and the largest number of each dimension is taken


def int8_retriever(
    index: FlexIndex, *, num_results: int = 1000, rescore: int = 2, qbatch: int = 64, drop_query_vec: bool = False
) -> RescoredSearch:
    return RescoredSearch(index, "int8", rescore)


def binary_retriever(
    index: FlexIndex, *, num_results: int = 1000, rescore: int = 10, qbatch: int = 64, drop_query_vec: bool = False
) -> RescoredSearch:
    return RescoredSearch(index, "binary", rescore)


class RescoredSearch:
    """Finds candidates in small vectors, which are made if they are missing; the full vectors score them."""

    def __init__(self, index: FlexIndex, kind: Literal["int8", "binary"], rescore: int) -> None:
        assert_faiss()
        if index.sim_fn is not SimFn.dot:
            raise ValueError(
                f"small vectors are searched by their dot product, and {index!r} has the similarity {index.sim_fn}; "
                "make it with sim_fn='dot' if its vectors are of unit length, or use np_retriever"
            )
        self.vectors = index.np_vecs()
        self.is_binary = kind == "binary"
        self.rescore = rescore
        # bits fill whole bytes
        self.dimension = 8 * math.ceil(self.vectors.shape[1] / 8) if self.is_binary else self.vectors.shape[1]
        faiss: Any = importlib.import_module("faiss")
        suffix = "_binary" if self.is_binary else ""
        # FAISS maps from 1.11 on; before, it reads
        mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        path = index.index_path / f"{kind}.faiss"
        if not path.exists():
            with atomic_file(path) as unfinished:
                getattr(faiss, f"write_index{suffix}")(self._make_small_vectors(faiss), str(unfinished))
        self.small = getattr(faiss, f"read_index{suffix}")(str(path), mapped)
        if self.is_binary:
            # counting distances is faster than a heap, but not kept in the file
            self.small.use_heap = False

    def _make_small_vectors(self, faiss: Any) -> Any:
        vectors = self.vectors
        if self.is_binary:
            small = faiss.IndexBinaryFlat(self.dimension)
        else:
            kind = faiss.ScalarQuantizer.QT_8bit
            small = faiss.IndexScalarQuantizer(self.dimension, kind, faiss.METRIC_INNER_PRODUCT)
            small.train(np.array(vectors[:: max(len(vectors) // SAMPLE, 1)]))
        for start in range(0, len(vectors), CHUNK):
            small.add(self._encode(np.array(vectors[start : start + CHUNK])))
        return small

    def _encode(self, vectors: np.ndarray) -> np.ndarray:
        return np.packbits(vectors > 0, axis=1) if self.is_binary else vectors

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find ``rescore`` times as many candidates."""
        distances, candidates = self.small.search(self._encode(queries), min(k * self.rescore, len(self.vectors)))
        # bits have distances, and the nearest are the best
        return -distances if self.is_binary else distances, candidates
