"""The index: pyterrier-dr's FlexIndex, bound to the encoder that built it.

A :class:`SelfDistillIndex` is built atomically, remembers its encoder, and refuses queries that another one encoded.
The folder is an ordinary :class:`pyterrier_dr.FlexIndex` with the encoder's identity in its metadata.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np
import pyterrier as pt
from pydantic import Field
from pyterrier_dr import FlexIndex, SimFn
from pyterrier_dr.flex import IndexingMode
from pyterrier_dr.flex.core import FlexIndexer

from . import compat
from .identity import ComparedByKey, EncoderIdentity
from .index_files import Signature, open_index, signature_of
from .indexer import Indexer
from .options import Count, Expected, FolderPath, PositiveInteger, Seed, checked
from .packages import LocalPackages
from .retrievers import IndexTransformer, VectorLoader
from .validate import require_strings

Mode = Annotated[IndexingMode | Literal["create", "overwrite"], Expected("'create' or 'overwrite'")]
Neighbours = Annotated[int, Field(ge=2), Expected("2 or a greater integer")]


class SearchesSmallVectors:
    """An index that is searched by small copies of its vectors, with the scores of the full ones.

    What the retrievers of :class:`SelfDistillIndex` have in common, these have too.
    """

    @checked
    def int8_retriever(
        self,
        *,
        num_results: PositiveInteger = 1000,
        rescore: PositiveInteger = 2,
        qbatch: PositiveInteger = 64,
        drop_query_vec: bool = False,
    ) -> IndexTransformer:
        """Search vectors of 8 bits a number with FAISS, and score ``rescore`` times as many by the full ones."""
        return IndexTransformer.make("int8_retriever", **locals())

    @checked
    def binary_retriever(
        self,
        *,
        num_results: PositiveInteger = 1000,
        rescore: PositiveInteger = 10,
        qbatch: PositiveInteger = 64,
        drop_query_vec: bool = False,
    ) -> IndexTransformer:
        """Search vectors of a bit a number with FAISS, and score ``rescore`` times as many by the full ones.

        The shorter the vectors, the less do bits say, and the more is to be scored again.
        """
        return IndexTransformer.make("binary_retriever", **locals())


class SelfDistillIndex(ComparedByKey, LocalPackages, SearchesSmallVectors, FlexIndex):
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

    schematic: ClassVar = compat.schematic("SelfDistillIndex")

    @checked
    def __init__(
        self, path: FolderPath, *, sim_fn: SimFn | str = SimFn.dot, verbose: bool = True, any_encoder: bool = False
    ) -> None:
        FlexIndex.__init__(self, str(Path(path).expanduser()), sim_fn=sim_fn, verbose=verbose)
        self.any_encoder = any_encoder
        self._signature: Signature | None = None

    @property
    def signature(self) -> Signature:
        """What tells the files that are open from those of an index that replaced them."""
        self.payload()
        return cast(Signature, self._signature)

    @property
    def encoder(self) -> EncoderIdentity | None:
        """The encoder that built the index, if its vectors say so.

        Raises:
            FileNotFoundError: If there is no index.
            ValueError: If it is damaged.
        """
        stored = self.payload(return_dvecs=False, return_docnos=False)[0].get("encoder")
        return None if stored is None else EncoderIdentity(**stored)

    def built(self) -> bool:
        """Tell whether there is a complete index, which can be opened."""
        if self._signature == signature_of(self.index_path):
            return True
        try:
            open_index(self.index_path)
        except (OSError, ValueError):
            return False
        return True

    def payload(self, return_dvecs: bool = True, return_docnos: bool = True) -> list[Any]:
        """Open the index, if it is complete, as :meth:`pyterrier_dr.FlexIndex.payload` does."""
        if self._signature is None:
            files = open_index(self.index_path)
            self.__dict__.update(compat.opened_files(files.metadata, files.vectors, files.docnos))
            self._signature = files.signature
        return super().payload(return_dvecs, return_docnos)

    @checked
    def indexer(self, *, mode: Mode = IndexingMode.create) -> FlexIndexer:
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
            TypeError: If an identifier is not a string.

        Example:
            ``encoder >> index.retriever(mask=index.mask(docs_of_2024))``
        """
        mask = np.zeros(len(self), dtype=np.int8)
        lookup = self.docnos()
        for docno in require_strings(docnos, "docnos"):
            try:
                mask[lookup.inv[docno]] = 1
            except LookupError:
                raise KeyError(f"document {docno!r} is not in {self!r}") from None
        return mask

    def vec_loader(self) -> pt.Transformer:
        """Make a transformer that adds ``doc_vec``, of the index, to frames with ``docno``."""
        return VectorLoader(self)

    @checked
    def retriever(
        self,
        *,
        num_results: PositiveInteger = 1000,
        batch_size: PositiveInteger | None = None,
        drop_query_vec: bool = False,
        mask: np.ndarray | None = None,
    ) -> IndexTransformer:
        """Search all vectors, or those of a :meth:`mask`, with the fastest exact backend.

        That is :meth:`torch_retriever`: on a GPU if there is one with room for the vectors, and else on the CPU, which
        maps them from disk, if they take less than half of the machine's memory. Larger indexes, those of another
        similarity than the dot product, and a ``batch_size`` have :meth:`np_retriever` search them.
        """
        return IndexTransformer.make("retriever", **locals())

    @checked
    def np_retriever(
        self,
        *,
        num_results: PositiveInteger = 1000,
        batch_size: PositiveInteger | None = None,
        drop_query_vec: bool = False,
        mask: np.ndarray | None = None,
    ) -> IndexTransformer:
        """Search all vectors, or those of a :meth:`mask`, reading ``batch_size`` at once from disk."""
        return IndexTransformer.make("np_retriever", **locals())

    @checked
    def torch_retriever(
        self,
        *,
        num_results: PositiveInteger = 1000,
        device: str | None = None,
        fp16: bool = False,
        qbatch: PositiveInteger = 64,
        drop_query_vec: bool = False,
        mask: np.ndarray | None = None,
    ) -> IndexTransformer:
        """Search all vectors, or those of a :meth:`mask`, in the memory of ``device``; with ``fp16`` in half of it."""
        return IndexTransformer.make("torch_retriever", **locals())

    @checked
    def faiss_flat_retriever(
        self, *, gpu: bool = False, qbatch: PositiveInteger = 64, drop_query_vec: bool = False
    ) -> IndexTransformer:
        """Search all vectors in memory with FAISS, on all GPUs if ``gpu``, for 1,000 results."""
        return IndexTransformer.make("faiss_flat_retriever", **locals())

    @checked
    def faiss_hnsw_retriever(
        self,
        neighbours: Neighbours = 32,
        *,
        num_results: PositiveInteger = 1000,
        ef_construction: PositiveInteger = 40,
        ef_search: PositiveInteger = 16,
        cache: bool = True,
        search_bounded_queue: bool = True,
        qbatch: PositiveInteger = 64,
        drop_query_vec: bool = False,
    ) -> IndexTransformer:
        """Search a graph of FAISS in which each document has ``neighbours``.

        The higher ``ef_construction`` and ``ef_search``, the better and the slower are building and searching.
        """
        return IndexTransformer.make("faiss_hnsw_retriever", **locals())

    @checked
    def faiss_ivf_retriever(
        self,
        *,
        num_results: PositiveInteger = 1000,
        train_sample: PositiveInteger | None = None,
        n_list: PositiveInteger | None = None,
        cache: bool = True,
        n_probe: PositiveInteger = 1,
        drop_query_vec: bool = False,
    ) -> IndexTransformer:
        """Search the ``n_probe`` nearest of ``n_list`` clusters with FAISS.

        Clusters are learned from ``train_sample`` vectors. The more are searched, the better and the slower it is.
        """
        return IndexTransformer.make("faiss_ivf_retriever", **locals())

    @checked
    def voyager_retriever(
        self,
        neighbours: Neighbours = 12,
        *,
        num_results: PositiveInteger = 1000,
        ef_construction: PositiveInteger = 200,
        random_seed: Seed = 1,
        storage_data_type: Literal["float32", "float8", "e4m3"] = "float32",
        query_ef: PositiveInteger = 10,
        drop_query_vec: bool = False,
    ) -> IndexTransformer:
        """Search a graph of Voyager in which each document has ``neighbours``.

        The higher ``ef_construction`` and ``query_ef``, the better and the slower are building and searching. Vectors
        are stored as ``"float32"``, ``"float8"`` or ``"e4m3"``.
        """
        return IndexTransformer.make("voyager_retriever", **locals())

    @checked
    def scorer(self, *, num_results: PositiveInteger | None = None) -> IndexTransformer:
        """Score the documents of results with their vectors, read from disk, and keep ``num_results``, or all."""
        return IndexTransformer.make("np_scorer", **locals())

    @checked
    def torch_scorer(
        self, *, num_results: PositiveInteger | None = None, device: str | None = None, fp16: bool = False
    ) -> IndexTransformer:
        """Score the documents of results as :meth:`scorer` does, with all vectors in the memory of ``device``."""
        return IndexTransformer.make("torch_scorer", **locals())

    @checked
    def gar(
        self, k: PositiveInteger = 16, *, batch_size: PositiveInteger = 128, num_results: PositiveInteger = 1000
    ) -> IndexTransformer:
        """Re-rank results and, in turns, the ``k`` nearest neighbours of the best so far, ``batch_size`` at once."""
        return IndexTransformer.make("gar", **locals())

    @checked
    def ladr_proactive(
        self,
        k: PositiveInteger | pt.Artifact = 16,
        *,
        hops: Count = 1,
        num_results: PositiveInteger = 1000,
        dense_scorer: pt.Transformer | None = None,
        drop_query_vec: bool = False,
        budget: bool | PositiveInteger = False,
    ) -> IndexTransformer:
        """Re-rank results and their ``k`` neighbours, ``hops`` far, until ``budget`` documents are scored.

        A corpus graph may stand for ``k``, and True for a budget of ``num_results``.
        """
        return IndexTransformer.make("ladr_proactive", **locals())

    @checked
    def ladr_adaptive(
        self,
        k: PositiveInteger | pt.Artifact = 16,
        *,
        depth: PositiveInteger = 100,
        num_results: PositiveInteger = 1000,
        dense_scorer: pt.Transformer | None = None,
        max_hops: Count | None = None,
        drop_query_vec: bool = False,
        budget: bool | PositiveInteger = False,
    ) -> IndexTransformer:
        """Re-rank as :meth:`ladr_proactive`, going on from the best ``depth`` until they stay, or for ``max_hops``."""
        return IndexTransformer.make("ladr_adaptive", **locals())

    # the other names that FlexIndex has for the same
    np_scorer = scorer
    np_vec_loader = vec_loader
    ladr = pre_ladr = ladr_proactive
    ada_ladr = ladr_adaptive

    def close(self) -> None:
        """Close the files; they are opened again when they are needed."""
        self.__dict__.update(self.__getstate__())

    def refresh(self) -> None:
        """Close the files, if others are there by now."""
        if self._signature != signature_of(self.index_path):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        # another process opens the files itself
        return {**vars(self), **compat.closed_files(), "_signature": None}

    def _key(self) -> tuple[Any, ...]:
        self.refresh()
        encoder = self.encoder if self.built() else None
        return self.index_path, encoder, self.sim_fn, self.any_encoder

    def __repr__(self) -> str:
        return f"SelfDistillIndex({str(self.index_path)!r})"
