"""The index: pyterrier-dr's FlexIndex, bound to the encoder that built it.

A :class:`SelfDistillIndex` is built atomically, remembers its encoder, and refuses queries that another one encoded.
The folder is an ordinary :class:`pyterrier_dr.FlexIndex` with the encoder's identity in its metadata.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier_dr import FlexIndex, SimFn
from pyterrier_dr.flex import IndexingMode
from pyterrier_dr.flex.core import FlexIndexer

from . import compat
from .identity import ComparedByKey, EncoderIdentity, EncoderMismatchError, encoders_of
from .io import METADATA_FILE, artifact_kind, atomic_folder
from .retrievers import IndexTransformer, VectorLoader

VECTORS_FILE = "vecs.f4"


class SelfDistillIndex(ComparedByKey, compat.LocalPackages, FlexIndex):
    """A dense index that knows which encoder built it.

    Used as :class:`pyterrier_dr.FlexIndex` is. What it adds: while it is built, another name holds what there is; a
    document without identifier or vector, and a duplicate one, is an error; an incomplete index is never opened; and
    queries of another encoder than its own are refused. Vectors that do not say which encoder made them (those of other
    packages) are trusted.

    Retrievers find ``num_results`` documents for frames with ``qid`` and ``query_vec``; scorers and re-rankers take
    ``docno`` too. With ``drop_query_vec`` the vectors of queries are not in the results. What pyterrier-dr builds for
    the approximate ones is kept in the folder of the index.

    Args:
        path: The folder of the index.
        sim_fn: The similarity of vectors; :class:`SelfDistillBiEncoder` makes unit vectors, whose dot product is their
            cosine.
        verbose: Whether to show progress bars.
        any_encoder: Whether to go ahead with queries of an encoder that did not build the index.

    Example:
        >>> import tempfile
        >>> corpus = [{"docno": "d1", "text": "sort the rows"}, {"docno": "d2", "text": "plot a matrix"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index = SelfDistillIndex(f"{folder}/index.flex", verbose=False)
        ...     _ = (encoder >> index).index(corpus)
        ...     (encoder >> index.retriever(num_results=1)).search("plot a matrix")["docno"].tolist()
        ['d2']
    """

    def __init__(
        self, path: str | Path, *, sim_fn: SimFn | str = SimFn.dot, verbose: bool = True, any_encoder: bool = False
    ) -> None:
        FlexIndex.__init__(self, str(path), sim_fn=sim_fn, verbose=verbose)
        self.any_encoder = any_encoder
        self._is_complete = False

    @property
    def encoder(self) -> EncoderIdentity | None:
        """The encoder that built the index, if its vectors say so.

        Raises:
            FileNotFoundError: If there is no index.
            ValueError: If it is incomplete.
        """
        stored = self.payload(return_dvecs=False, return_docnos=False)[0].get("encoder")
        return None if stored is None else EncoderIdentity(**stored)

    def built(self) -> bool:
        """Tell whether there is a complete index."""
        return (self.index_path / METADATA_FILE).is_file()

    def payload(self, return_dvecs: bool = True, return_docnos: bool = True) -> list[Any]:
        """Open the index, if it is complete, as :meth:`pyterrier_dr.FlexIndex.payload` does."""
        # checked once: retrievers call this for every batch
        if not self._is_complete:
            _require_complete(self.index_path)
            self._is_complete = True
        return super().payload(return_dvecs, return_docnos)

    def indexer(self, *, mode: IndexingMode | str = IndexingMode.create) -> FlexIndexer:
        """Make an indexer: ``mode="overwrite"`` replaces an index that is there, once the new one is complete."""
        return Indexer(self, mode)

    def mask(self, docnos: Iterable[str]) -> np.ndarray:
        """Make the mask with which retrievers find the given documents only.

        Args:
            docnos: The identifiers of documents.

        Returns:
            Zeros and ones, of shape ``(len(index),)``, for the option ``mask`` of :meth:`retriever` and
            :meth:`torch_retriever`.

        Raises:
            KeyError: If a document is not in the index.

        Example:
            ``encoder >> index.retriever(mask=index.mask(docs_of_2024))``
        """
        mask = np.zeros(len(self), dtype=np.int8)
        lookup = self.docnos()
        for docno in docnos:
            try:
                mask[lookup.inv[docno]] = 1
            except LookupError:
                raise KeyError(f"document {docno!r} is not in {self!r}") from None
        return mask

    def vec_loader(self) -> pt.Transformer:
        """Make a transformer that adds ``doc_vec``, of the index, to frames with ``docno``."""
        return VectorLoader(self)

    def retriever(
        self,
        *,
        num_results: int = 1000,
        batch_size: int | None = None,
        drop_query_vec: bool = False,
        mask: np.ndarray | None = None,
    ) -> IndexTransformer:
        """Search all vectors, or those of a :meth:`mask`, reading ``batch_size`` at once from disk."""
        options = {"num_results": num_results, "batch_size": batch_size, "drop_query_vec": drop_query_vec, "mask": mask}
        return IndexTransformer(self, "np_retriever", options)

    def torch_retriever(
        self,
        *,
        num_results: int = 1000,
        device: str | None = None,
        fp16: bool = False,
        qbatch: int = 64,
        drop_query_vec: bool = False,
        mask: np.ndarray | None = None,
    ) -> IndexTransformer:
        """Search all vectors, or those of a :meth:`mask`, in the memory of ``device``; with ``fp16`` in half of it."""
        options: dict[str, Any] = {
            "num_results": num_results,
            "device": device,
            "fp16": fp16,
            "qbatch": qbatch,
            "drop_query_vec": drop_query_vec,
            "mask": mask,
        }
        return IndexTransformer(self, "torch_retriever", options)

    def faiss_flat_retriever(
        self, *, gpu: bool = False, qbatch: int = 64, drop_query_vec: bool = False
    ) -> IndexTransformer:
        """Search all vectors in memory with FAISS, on all GPUs if ``gpu``, for 1,000 results."""
        options = {"gpu": gpu, "qbatch": qbatch, "drop_query_vec": drop_query_vec}
        return IndexTransformer(self, "faiss_flat_retriever", options)

    def faiss_hnsw_retriever(
        self,
        neighbours: int = 32,
        *,
        num_results: int = 1000,
        ef_construction: int = 40,
        ef_search: int = 16,
        cache: bool = True,
        search_bounded_queue: bool = True,
        qbatch: int = 64,
        drop_query_vec: bool = False,
    ) -> IndexTransformer:
        """Search a graph of FAISS in which each document has ``neighbours``.

        The higher ``ef_construction`` and ``ef_search``, the better and the slower are building and searching.
        """
        options: dict[str, Any] = {
            "neighbours": neighbours,
            "num_results": num_results,
            "ef_construction": ef_construction,
            "ef_search": ef_search,
            "cache": cache,
            "search_bounded_queue": search_bounded_queue,
            "qbatch": qbatch,
            "drop_query_vec": drop_query_vec,
        }
        return IndexTransformer(self, "faiss_hnsw_retriever", options)

    def faiss_ivf_retriever(
        self,
        *,
        num_results: int = 1000,
        train_sample: int | None = None,
        n_list: int | None = None,
        cache: bool = True,
        n_probe: int = 1,
        drop_query_vec: bool = False,
    ) -> IndexTransformer:
        """Search the ``n_probe`` nearest of ``n_list`` clusters with FAISS.

        Clusters are learned from ``train_sample`` vectors. The more are searched, the better and the slower it is.
        """
        options: dict[str, Any] = {
            "num_results": num_results,
            "train_sample": train_sample,
            "n_list": n_list,
            "cache": cache,
            "n_probe": n_probe,
            "drop_query_vec": drop_query_vec,
        }
        return IndexTransformer(self, "faiss_ivf_retriever", options)

    def voyager_retriever(
        self,
        neighbours: int = 12,
        *,
        num_results: int = 1000,
        ef_construction: int = 200,
        random_seed: int = 1,
        storage_data_type: str = "float32",
        query_ef: int = 10,
        drop_query_vec: bool = False,
    ) -> IndexTransformer:
        """Search a graph of Voyager in which each document has ``neighbours``.

        The higher ``ef_construction`` and ``query_ef``, the better and the slower are building and searching. Vectors
        are stored as ``"float32"``, ``"float8"`` or ``"e4m3"``.
        """
        options: dict[str, Any] = {
            "neighbours": neighbours,
            "num_results": num_results,
            "ef_construction": ef_construction,
            "random_seed": random_seed,
            "storage_data_type": storage_data_type,
            "query_ef": query_ef,
            "drop_query_vec": drop_query_vec,
        }
        return IndexTransformer(self, "voyager_retriever", options)

    def scorer(self, *, num_results: int | None = None) -> IndexTransformer:
        """Score the documents of results with their vectors, read from disk, and keep ``num_results``, or all."""
        return IndexTransformer(self, "np_scorer", {"num_results": num_results})

    def torch_scorer(
        self, *, num_results: int | None = None, device: str | None = None, fp16: bool = False
    ) -> IndexTransformer:
        """Score the documents of results as :meth:`scorer` does, with all vectors in the memory of ``device``."""
        options = {"num_results": num_results, "device": device, "fp16": fp16}
        return IndexTransformer(self, "torch_scorer", options)

    def gar(self, k: int = 16, *, batch_size: int = 128, num_results: int = 1000) -> IndexTransformer:
        """Re-rank results and, in turns, the ``k`` nearest neighbours of the best so far, ``batch_size`` at once."""
        return IndexTransformer(self, "gar", {"k": k, "batch_size": batch_size, "num_results": num_results})

    def ladr_proactive(
        self,
        k: int | pt.Artifact = 16,
        *,
        hops: int = 1,
        num_results: int = 1000,
        dense_scorer: pt.Transformer | None = None,
        drop_query_vec: bool = False,
        budget: bool | int = False,
    ) -> IndexTransformer:
        """Re-rank results and their ``k`` neighbours, ``hops`` far, until ``budget`` documents are scored.

        A corpus graph may stand for ``k``, and True for a budget of ``num_results``.
        """
        options: dict[str, Any] = {
            "k": k,
            "hops": hops,
            "num_results": num_results,
            "dense_scorer": dense_scorer,
            "drop_query_vec": drop_query_vec,
            "budget": budget,
        }
        return IndexTransformer(self, "ladr_proactive", options)

    def ladr_adaptive(
        self,
        k: int | pt.Artifact = 16,
        *,
        depth: int = 100,
        num_results: int = 1000,
        dense_scorer: pt.Transformer | None = None,
        max_hops: int | None = None,
        drop_query_vec: bool = False,
        budget: bool | int = False,
    ) -> IndexTransformer:
        """Re-rank as :meth:`ladr_proactive`, going on from the best ``depth`` until they stay, or for ``max_hops``."""
        options: dict[str, Any] = {
            "k": k,
            "depth": depth,
            "num_results": num_results,
            "dense_scorer": dense_scorer,
            "max_hops": max_hops,
            "drop_query_vec": drop_query_vec,
            "budget": budget,
        }
        return IndexTransformer(self, "ladr_adaptive", options)

    # the other names that FlexIndex has for the same
    np_retriever = retriever
    np_scorer = scorer
    np_vec_loader = vec_loader
    ladr = pre_ladr = ladr_proactive
    ada_ladr = ladr_adaptive

    def close(self) -> None:
        """Close the files; they are opened again when they are needed."""
        self.__dict__.update(self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        # another process opens the files itself
        return {**vars(self), **compat.closed_files(), "_is_complete": False}

    def _key(self) -> tuple[Any, ...]:
        encoder = self.encoder if self.built() else None
        return self.index_path, encoder, self.sim_fn, self.any_encoder

    def __repr__(self) -> str:
        return f"SelfDistillIndex({str(self.index_path)!r})"


class Indexer(FlexIndexer):
    """Builds an index beside the place where it will be, and moves it there when it is complete.

    Args:
        index: The index to build.
        mode: Whether to replace an index that is there.
    """

    schematic: ClassVar = {"label": "Indexer"}

    def __init__(self, index: SelfDistillIndex, mode: IndexingMode | str) -> None:
        super().__init__(index, mode=mode)
        self.target = index

    def index(self, inp: Iterable[dict[str, Any]]) -> SelfDistillIndex:
        """Build the index.

        Args:
            inp: Records with ``docno`` and ``doc_vec``, or a frame.

        Returns:
            The index.

        Raises:
            FileExistsError: If there is an index already, and it is not to be replaced.
            ValueError: If a document has no identifier or vector, or is a duplicate, or there are no documents.
            TypeError: If an identifier is not a string.
            EncoderMismatchError: If several encoders made the vectors.
        """
        path = self.target.index_path
        if path.exists() and self.mode is IndexingMode.create:
            raise FileExistsError(
                f"there is an index at {str(path)!r} already; search it, choose another path, or replace it with "
                "index.indexer(mode='overwrite')"
            )
        if isinstance(inp, pd.DataFrame):
            inp = inp.to_dict(orient="records")
        records = iter(inp)
        # an error before there is a folder, rather than an index of nothing
        first = list(itertools.islice(records, 1))
        if not first:
            raise ValueError("there are no documents to index; the iterable is empty, or was read before")
        encoders: set[EncoderIdentity] = set()
        overwrite = self.mode is IndexingMode.overwrite
        with atomic_folder(path, overwrite=overwrite, recognize=is_index, doing="building an index") as folder:
            # pyterrier-dr replaces the temporary folder, which is there already
            part = FlexIndex(str(folder), verbose=self.target.verbose)
            part.indexer(mode="overwrite").index(_checked(itertools.chain(first, records), encoders))
            metadata = folder / METADATA_FILE
            stored = json.loads(metadata.read_text())
            # vectors of other packages do not say who made them
            if encoders:
                stored["encoder"] = next(iter(encoders))._asdict()
            metadata.write_text(json.dumps(stored) + "\n")
        self.target.close()
        return self.target


def _checked(records: Iterable[dict[str, Any]], encoders: set[EncoderIdentity]) -> Iterator[dict[str, Any]]:
    """Check records as they pass, and collect the encoders of their vectors."""
    seen: set[str] = set()
    for record in records:
        missing = [name for name in ("docno", "doc_vec") if name not in record]
        if missing:
            raise ValueError(
                f"a document has {list(record)}, and {' and '.join(missing)} missing; documents need a docno, and an "
                "encoder before the index: (encoder >> index).index(corpus)"
            )
        docno = record["docno"]
        if not isinstance(docno, str):
            raise TypeError(f"the docno {docno!r} is of type {type(docno).__name__}; identifiers are strings")
        if docno in seen:
            raise ValueError(f"duplicate docno {docno!r}; each document needs an identifier of its own")
        seen.add(docno)
        encoders |= encoders_of([record["doc_vec"]])
        checksums = {encoder.checksum for encoder in encoders}
        if len(checksums) > 1:
            raise EncoderMismatchError(f"vectors of several encoders: {' and '.join(map(str, encoders))}; use one")
        yield record


def is_index(folder: Path) -> bool:
    """Tell whether a folder is an index."""
    return artifact_kind(folder) == (FlexIndex.ARTIFACT_TYPE, FlexIndex.ARTIFACT_FORMAT)


def _require_complete(path: Path) -> None:
    """Check the files of an index, before they are opened.

    Args:
        path: The folder of the index.

    Raises:
        FileNotFoundError: If there is no index.
        ValueError: If it is incomplete, or something else.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no index at {str(path)!r}; build it: (encoder >> index).index(corpus)")
    again = "build it again: (encoder >> index.indexer(mode='overwrite')).index(corpus)"
    metadata = path / METADATA_FILE
    if not metadata.is_file():
        raise ValueError(f"{str(path)!r} is not an index, or building it was interrupted: no {METADATA_FILE}; {again}")
    stored = json.loads(metadata.read_text())
    kind = stored.get("type"), stored.get("format")
    if kind != (FlexIndex.ARTIFACT_TYPE, FlexIndex.ARTIFACT_FORMAT):
        raise ValueError(
            f"expected a {FlexIndex.ARTIFACT_TYPE} of FlexIndex, got {str(path)!r}: a {kind[0]} of format {kind[1]}"
        )
    vectors = path / VECTORS_FILE
    expected = stored["doc_count"] * stored["vec_size"] * np.dtype(np.float32).itemsize
    if vectors.stat().st_size != expected:
        raise ValueError(f"{str(vectors)!r} has not the {expected} bytes of all vectors; {again}")
