"""Quantization: search int8 or binary copies of the vectors of an index, and rescore the results with full vectors.

FAISS searches the copies, which are stored in the folder of the index. For exact scores, ``rescore * num_results`` full
vectors are read per query.

- ``int8``: 8 bits per dimension, scaled between the smallest and the largest value of the dimension. Scores use the
  full vector of the query (asymmetric search);
- ``binary``: the sign of each dimension, in one bit. The nearest documents share the most signs with the query.

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
SAMPLE = 100_000  # how many vectors, at least, determine the smallest and the largest value of each dimension


def int8_retriever(
    index: FlexIndex, *, num_results: int = 1000, rescore: int = 2, qbatch: int = 64, drop_query_vec: bool = False
) -> RescoredSearch:
    return RescoredSearch(index, "int8", rescore)


def binary_retriever(
    index: FlexIndex, *, num_results: int = 1000, rescore: int = 10, qbatch: int = 64, drop_query_vec: bool = False
) -> RescoredSearch:
    return RescoredSearch(index, "binary", rescore)


class RescoredSearch:
    """Finds candidates with quantized vectors, made if missing, so that the full vectors can rescore them."""

    def __init__(self, index: FlexIndex, kind: Literal["int8", "binary"], rescore: int) -> None:
        assert_faiss()
        if index.sim_fn is not SimFn.dot:
            raise ValueError(
                f"quantized vectors need the dot product, but {index!r} has the similarity {index.sim_fn}; make the "
                "index with sim_fn='dot' if its vectors have unit length, or use np_retriever"
            )
        self.vectors = index.np_vecs()
        self.is_binary = kind == "binary"
        self.rescore = rescore
        # bits are padded to whole bytes
        self.dimension = 8 * math.ceil(self.vectors.shape[1] / 8) if self.is_binary else self.vectors.shape[1]
        faiss: Any = importlib.import_module("faiss")
        suffix = "_binary" if self.is_binary else ""
        # FAISS maps files from version 1.11 on, and reads them before
        mapped = getattr(faiss, "IO_FLAG_MMAP_IFC", 0)
        path = index.index_path / f"{kind}.faiss"
        if not path.exists():
            with atomic_file(path) as unfinished:
                getattr(faiss, f"write_index{suffix}")(self._make_small_vectors(faiss), str(unfinished))
        self.small = getattr(faiss, f"read_index{suffix}")(str(path), mapped)
        if self.is_binary:
            # counting distances is faster than a heap, but the file does not store this setting
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
        # binary search returns distances, of which the smallest is best
        return -distances if self.is_binary else distances, candidates
