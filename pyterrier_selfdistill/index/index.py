"""FlexIndex bound to the encoder that built it, and its retrievers."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from pydantic import Field
from pyterrier_dr import FlexIndex, SimFn
from pyterrier_dr.flex import IndexingMode
from pyterrier_dr.flex.core import FlexIndexer
from pyterrier_dr.flex.faiss_retr import FaissRetriever
from pyterrier_dr.flex.np_retr import NumpyVectorLoader

from ..utils import compat
from ..utils.checks import (
    Count,
    Expected,
    FolderPath,
    PositiveInteger,
    Seed,
    checked,
    plain,
    require_column_names,
    require_identifiers,
    require_strings,
    require_vectors,
    without_rows,
)
from ..utils.folders import METADATA_FILE, artifact_kind, folder_lock, portable_name, recover
from . import small_vectors
from .files import (
    ComparedByKey,
    EncodedVector,
    EncoderIdentity,
    EncoderMismatchError,
    Indexer,
    Signature,
    encoders_of,
    open_index,
    signature_of,
)

SCORERS = ("np_scorer", "torch_scorer")

# the methods that FlexIndex lacks
OWN_METHODS: dict[str, Callable[..., Any]] = {
    "int8_retriever": small_vectors.int8_retriever,
    "binary_retriever": small_vectors.binary_retriever,
}

# the methods that keep their graph or their vectors in the folder of the index
WITH_GRAPHS = (
    *("faiss_hnsw_retriever", "faiss_ivf_retriever", "voyager_retriever"),
    *("gar", "ladr_proactive", "ladr_adaptive"),
    *OWN_METHODS,
)

SCORES = 2**26  # how many scores of 4 bytes the fastest retriever computes at once
LARGEST_QBATCH = 64  # how many queries it searches for at once, at most
FEWEST_CLUSTERS = 4  # the fewest clusters that pyterrier-dr makes, if it is not told how many
SPARE = 16  # how many results to search for in addition, to see whether documents at the cut are equal
ROUNDING = 1e-6  # scores that differ by less, or by less than this part of them, are equal
ATTEMPTS = 100  # how often to open an index that is replaced each time while it is opened


@checked
def _check_options(
    *,
    num_results: PositiveInteger | None = None,
    batch_size: PositiveInteger | None = None,
    qbatch: PositiveInteger = 64,
    drop_query_vec: bool = False,
    mask: np.ndarray | None = None,
    device: str | None = None,
    fp16: bool = False,
    gpu: bool = False,
    neighbours: Annotated[int, Field(ge=2), Expected("2 or a greater integer")] = 2,
    ef_construction: PositiveInteger = 1,
    ef_search: PositiveInteger = 1,
    cache: bool = True,
    search_bounded_queue: bool = True,
    train_sample: PositiveInteger | None = None,
    n_list: PositiveInteger | None = None,
    n_probe: PositiveInteger = 1,
    random_seed: Seed = 1,
    storage_data_type: Literal["float32", "float8", "e4m3"] = "float32",
    query_ef: PositiveInteger = 1,
    rescore: PositiveInteger = 1,
    k: PositiveInteger | pt.Artifact = 1,
    hops: Count = 1,
    depth: PositiveInteger = 1,
    max_hops: Count | None = None,
    dense_scorer: pt.Transformer | None = None,
    budget: bool | PositiveInteger = False,
) -> None:
    """Check the options of retrievers and scorers, which pyterrier-dr does not."""


def _method(name: str, docstring: str) -> Callable[..., IndexTransformer]:
    """Put a check in front of a method of FlexIndex, or of one of ours."""
    signature = inspect.signature(OWN_METHODS.get(name) or getattr(FlexIndex, name))

    def make(self: SelfDistillIndex, *arguments: Any, **options: Any) -> IndexTransformer:
        bound = signature.bind(self, *arguments, **options)
        bound.apply_defaults()
        _, *given = bound.arguments.items()
        checked_options = {option: plain(value) for option, value in given}
        _check_options(**checked_options)
        if checked_options.get("num_results", 1) is None and name not in SCORERS:
            raise ValueError("num_results must be a positive integer, got None")
        return IndexTransformer(self, name, checked_options)

    make.__signature__ = signature.replace(return_annotation=IndexTransformer)  # type: ignore[attr-defined]
    make.__name__, make.__qualname__, make.__doc__ = name, f"SelfDistillIndex.{name}", docstring
    return make


class IndexTransformer(ComparedByKey, pt.Transformer):
    """A retriever or a scorer of a :class:`SelfDistillIndex`: that of pyterrier-dr, with checked input."""

    def __init__(self, index: Any, method: str, options: dict[str, Any]) -> None:
        self.index = index
        self.method = method
        self.options = options
        self._make()

    def _make(self) -> None:
        """Have pyterrier-dr make the transformer, of the files that are there now."""
        folder = self.index.index_path.resolve()
        with ExitStack() as stack, compat.no_warning_of_mapped_vectors():
            if self.method in WITH_GRAPHS:
                # one process computes a graph and others read it; who may not write there can only read
                with suppress(PermissionError):
                    graphs = folder.with_name(f"{folder.name}.graphs")
                    stack.enter_context(folder_lock(graphs, "computing a graph of an index", wait=True))
            while True:
                self._signature = None
                # an index that is built later has its retrievers made again
                with suppress(FileNotFoundError):
                    self._signature = self.index.refresh()
                error = None
                try:
                    self.inner = self._make_inner()
                except Exception as raised:
                    error = raised
                if self.method not in WITH_GRAPHS or signature_of(folder) == self._signature:
                    break
                # a graph of the old index may lie in the folder of the new one
                compat.remove_files_of_retrievers(folder)
        if error is not None:
            raise error

    def _make_inner(self) -> Any:
        index, method, options = self.index, self.method, dict(self.options)
        self._fit_options(options)
        if method in OWN_METHODS:
            return OWN_METHODS[method](index, **options)
        if method == "voyager_retriever":
            shown = {name: options[name] for name in ("num_results", "drop_query_vec")}
            return FaissRetriever(index, compat.VoyagerSearch(index, options), **shown)
        if method == "retriever":
            method = "np_retriever"
            if options["batch_size"] is None and self._signature is not None and index.sim_fn is SimFn.dot:
                # all at once on a GPU or the CPU, or in parts from disk
                size = index.np_vecs().nbytes
                is_for_gpu = torch.cuda.is_available() and size < torch.cuda.mem_get_info()[0] / 2
                if is_for_gpu or size < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2:
                    del options["batch_size"]
                    method = "torch_retriever"
                    options["device"] = "cuda" if is_for_gpu else "cpu"
                    options["qbatch"] = min(max(SCORES // len(index), 1), LARGEST_QBATCH)
        if method == "np_retriever" and options["mask"] is not None:
            # pyterrier-dr 0.8.1 sets the scores of other documents to 0 here, which is above negative cosines
            del options["batch_size"]
            return FlexIndex.torch_retriever(index, device="cpu", **options)
        return getattr(FlexIndex, method)(index, **options)

    def _fit_options(self, options: dict[str, Any]) -> None:
        """Have options fit the documents of the index, or raise an error if they cannot."""
        index = self.index
        if options.get("mask") is not None and np.shape(options["mask"]) != (len(index),):
            raise ValueError(
                f"the mask has the shape {np.shape(options['mask'])}, and {index!r} has {len(index)} documents; "
                "index.mask(docnos) makes one"
            )
        if self.method in SCORERS:
            # see compat.score
            options["num_results"] = None
        if isinstance(options.get("k"), int):
            if len(index) == 1:
                raise ValueError(f"{index!r} has one document, which has no neighbours; use scorer()")
            # PyTerrier would load any artifact that lies there
            for metadata in index.index_path.glob(f"corpusgraph_k*/{METADATA_FILE}"):
                kind = artifact_kind(metadata.parent)
                if kind != ("corpus_graph", "np_topk"):
                    raise ValueError(f"{str(metadata.parent)!r} is no corpus graph, but has the kind {kind}; remove it")
            options["k"] = compat.make_corpus_graph(index, options["k"])
        if "n_list" in options:
            sample = min(len(index), options["train_sample"] or len(index))
            if options["n_list"] is None and sample < FEWEST_CLUSTERS:
                options["n_list"] = sample
            if (options["n_list"] or 0) > sample:
                raise ValueError(
                    f"n_list={options['n_list']} clusters cannot be learned from {sample} documents; take fewer"
                )

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Retrieve or score."""
        if self.index.refresh() != self._signature:
            self._make()
        require_column_names(inp, "the queries")
        if inp.empty:
            return without_rows(self._search(inp), inp)
        if "qid" in inp:
            require_identifiers(inp, "qid", "the queries")
        if "docno" in inp:
            inp = with_own_docids(self.index, inp)
        if "query_vec" in inp:
            require_comparable(self.index, inp)
        # under autocast, pyterrier-dr 0.8 multiplies vectors in 16 bits, and cannot make arrays of bfloat16
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return self._search(inp)

    def _search(self, inp: pd.DataFrame) -> pd.DataFrame:
        if self.method in SCORERS:
            return compat.score(self.inner, inp, self.options["num_results"])
        if not self.method.endswith("retriever"):
            return compat.transform_queries(self.inner, inp)
        # a copy, since threads share the transformer
        inner = copy.copy(self.inner)
        depth = inner.num_results
        most = depth if self.method in WITH_GRAPHS else max(len(self.index), depth)
        inner.num_results = min(depth + SPARE, most)
        while True:
            found = in_order(compat.transform_queries(inner, inp))
            scores = found["score"].to_numpy()
            last = np.flatnonzero(found["rank"] == inner.num_results - 1)
            # of equal documents at the cut, the first ones may be missing still
            if inner.num_results == most or (scores[last] < scores[last - inner.num_results + depth]).all():
                return found[found["rank"] < depth].reset_index(drop=True)
            inner.num_results = min(4 * inner.num_results, most)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Ask the index for ``k`` documents, where the backend then finds the same."""
        # approximate retrievers refuse, since they would find others
        fuse = getattr(self.inner, "fuse_rank_cutoff", None)
        if fuse is None or fuse(k) is None:
            return None
        return IndexTransformer(self.index, self.method, {**self.options, "num_results": k})

    def get_parameter(self, name: str) -> Any:
        """Return an option."""
        return self.options[name] if name in self.options else super().get_parameter(name)

    def set_parameter(self, name: str, value: Any) -> None:
        """Change an option, as a grid search does."""
        if name not in self.options:
            raise ValueError(f"{self.method} has no option {name!r}, only {', '.join(self.options)}")
        changed = getattr(self.index, self.method)(**{**self.options, name: value})
        self.options, self.inner = changed.options, changed.inner

    @property
    def schematic(self) -> dict[str, Any]:
        """The label of pyterrier-dr."""
        return compat.schematic(type(self.inner).__name__)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """Return no parts: the inner transformer is not a pipeline."""
        return {}

    def __getattr__(self, name: str) -> Any:
        # while unpickling, nothing is there
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # another process makes the transformer itself, over files that it opens itself
        return IndexTransformer, (self.index, self.method, self.options)

    def _key(self) -> tuple[Any, ...]:
        options = dict(self.options)
        # arrays do not compare as one value
        if options.get("mask") is not None:
            options["mask"] = np.asarray(options["mask"], dtype=np.int8).tobytes()
        return self.index, self.method, tuple(sorted(options.items()))

    def __hash__(self) -> int:
        # without the options, which change while a grid search holds the transformer as a key
        return hash((self.index, self.method))

    def __repr__(self) -> str:
        parameters = inspect.signature(getattr(type(self.index), self.method)).parameters
        given = [(name, value) for name, value in self.options.items() if value is not parameters[name].default]
        return f"{self.index!r}.{self.method}({', '.join(f'{name}={value!r}' for name, value in given)})"


class VectorLoader(NumpyVectorLoader):
    """Add ``doc_vec``, as the index has it, to frames with ``docno``."""

    schematic: ClassVar = compat.schematic("VecLoader")

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Load the vectors, which remember the encoder of the index."""
        self.flex_index.refresh()
        with pt.validate.any(inp) as validation:
            validation.columns(includes=["docno"])
            validation.columns(includes=["docid"])
        if inp.empty:
            return without_rows(inp.assign(doc_vec=None), inp)
        loaded = super().transform(with_own_docids(self.flex_index, inp))
        encoder = self.flex_index.encoder
        if encoder is None:
            return loaded
        return loaded.assign(doc_vec=EncodedVector.rows(np.stack(loaded["doc_vec"]), encoder))

    def __repr__(self) -> str:
        return f"{self.flex_index!r}.vec_loader()"


def in_order(found: pd.DataFrame) -> pd.DataFrame:
    """Order results by score, and those of equal documents, whose scores may differ by rounding, by position."""
    if found.empty:
        return found
    scores, ranks = found["score"].to_numpy(), found["rank"].to_numpy(dtype=int)
    is_lower = (ranks == 0) | (np.diff(scores, prepend=np.inf) < -ROUNDING * np.maximum(np.abs(scores), 1))
    group = is_lower.cumsum() - 1
    order = np.lexsort([found["docid"].to_numpy(dtype=int), group])
    return found.iloc[order].assign(score=scores[is_lower][group], rank=ranks)


def with_own_docids(index: FlexIndex, frame: pd.DataFrame) -> pd.DataFrame:
    """Have the ``docid`` of documents be that of the index, where a first stage has put its own."""
    require_identifiers(frame, "docno", "the documents")
    # pyterrier-dr would take the vectors at these positions, whatever is there
    if "docid" not in frame:
        return frame
    return frame.assign(docid=index.docnos().inv[frame["docno"]])


def require_comparable(index: FlexIndex, queries: pd.DataFrame) -> None:
    """Check that vectors of queries compare with those of an index."""
    require_vectors(queries, "query_vec", index.np_vecs().shape[1], "the vectors of the index")
    own = index.encoder
    if own is None or index.any_encoder:
        return
    for other in encoders_of(queries["query_vec"]):
        if other.checksum == own.checksum:
            continue
        remark = ""
        if portable_name(other.name) == own.name:
            remark = "; they have the same name, but not the same weights or settings"
        raise EncoderMismatchError(
            f"{index!r} was built by the encoder {own}, and the queries were encoded by {other}{remark}. Search with "
            "the encoder of the index, or build it again with this one and index.indexer(mode='overwrite'). If you "
            "mean it, SelfDistillIndex(path, any_encoder=True) goes ahead"
        )


Mode = Annotated[IndexingMode | Literal["create", "overwrite"], Expected("'create' or 'overwrite'")]


class SelfDistillIndex(ComparedByKey, FlexIndex):
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

    retriever = _method(
        "retriever",
        """Search all vectors, or those of a :meth:`mask`, with the fastest exact backend.

        That is :meth:`torch_retriever`: on a GPU with room for the vectors, else on the CPU, which maps them from disk,
        if they take less than half of the memory. Otherwise :meth:`np_retriever` searches them, and also vectors with
        another similarity than the dot product, or with a ``batch_size``.
        """,
    )
    np_retriever = _method(
        "np_retriever", "Search all vectors, or those of a :meth:`mask`, reading ``batch_size`` at once from disk."
    )
    torch_retriever = _method(
        "torch_retriever",
        "Search all vectors, or those of a :meth:`mask`, in the memory of ``device``; with ``fp16`` in half of it.",
    )
    faiss_flat_retriever = _method(
        "faiss_flat_retriever", "Search all vectors in memory with FAISS, on all GPUs if ``gpu``, for 1,000 results."
    )
    faiss_hnsw_retriever = _method(
        "faiss_hnsw_retriever",
        """Search a graph of FAISS in which each document has ``neighbours``.

        Higher ``ef_construction`` and ``ef_search`` improve recall and slow down building and searching.
        """,
    )
    faiss_ivf_retriever = _method(
        "faiss_ivf_retriever",
        """Search the ``n_probe`` nearest of ``n_list`` clusters with FAISS, learned from ``train_sample`` vectors.

        More clusters to search improve recall and slow down searching.
        """,
    )
    voyager_retriever = _method(
        "voyager_retriever",
        """Search a graph of Voyager in which each document has ``neighbours``.

        Higher ``ef_construction`` and ``query_ef`` improve recall and slow down building and searching. Vectors are
        stored as ``"float32"``, ``"float8"`` or ``"e4m3"``.
        """,
    )
    int8_retriever = _method(
        "int8_retriever",
        "Search vectors of 8 bits a number with FAISS, and score ``rescore`` times as many by the full ones.",
    )
    binary_retriever = _method(
        "binary_retriever",
        "Search vectors of a bit a number with FAISS, and score ``rescore`` times as many by the full ones.",
    )
    np_scorer = scorer = _method(
        "np_scorer", "Score the documents of results with their vectors from disk, and keep ``num_results``, or all."
    )
    torch_scorer = _method(
        "torch_scorer", "Score documents as :meth:`scorer` does, with all vectors in the memory of ``device``."
    )
    gar = _method(
        "gar", "Re-rank results and, in turns, the ``k`` neighbours of the best so far, ``batch_size`` at once."
    )
    ladr = pre_ladr = ladr_proactive = _method(
        "ladr_proactive",
        """Re-rank results and their ``k`` neighbours, ``hops`` far, until ``budget`` documents are scored.

        A corpus graph may stand for ``k``, and True for a budget of ``num_results``.
        """,
    )
    ada_ladr = ladr_adaptive = _method(
        "ladr_adaptive",
        "Re-rank as :meth:`ladr_proactive`, going on from the best ``depth`` until they stay, or for ``max_hops``.",
    )

    def vec_loader(self) -> pt.Transformer:
        """Make a transformer that adds ``doc_vec``, as the index has it, to frames with ``docno``."""
        return VectorLoader(self)

    np_vec_loader = vec_loader

    @checked
    def indexer(self, *, mode: Mode = IndexingMode.create) -> FlexIndexer:
        """Make an indexer: ``mode="overwrite"`` replaces an index that is there, once the new one is complete."""
        return Indexer(self, mode)

    def mask(self, docnos: Iterable[str]) -> np.ndarray:
        """Make the option ``mask`` of retrievers that find the given documents only: zeros and ones, ``(len(index),)``.

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

    @property
    def encoder(self) -> EncoderIdentity | None:
        """The encoder that built the index, if its vectors say so.

        Raises:
            FileNotFoundError: If there is no index.
            ValueError: If it is damaged.
        """
        stored = self.payload()[-1].get("encoder")
        return None if stored is None else EncoderIdentity(**stored)

    def built(self) -> bool:
        """Tell whether there is a complete index, which can be opened."""
        try:
            self.refresh()
        except (OSError, ValueError):
            return False
        return True

    def payload(self, return_dvecs: bool = True, return_docnos: bool = True) -> list[Any]:
        """Open the index, if it is complete, as :meth:`pyterrier_dr.FlexIndex.payload` does."""
        if self._signature is None:
            self.refresh()
        return super().payload(return_dvecs, return_docnos)

    def close(self) -> None:
        """Close the files; they are opened again when they are needed."""
        self.__dict__.update(compat.files_of_index(), _signature=None)

    def refresh(self) -> Signature:
        """Open the files, all of one index, unless they are open and still there, and return their signature."""
        for _ in range(ATTEMPTS):
            recover(self.index_path)
            signature = signature_of(self.index_path)
            if signature == self._signature:
                return signature
            self.close()
            try:
                self.__dict__.update(compat.files_of_index(*open_index(self.index_path)), _signature=signature)
            except Exception:
                # files of two indexes raise errors of all kinds
                if signature_of(self.index_path) == signature:
                    raise
        raise ValueError(f"{self!r} is replaced again and again; read it when that is done")

    def __getstate__(self) -> dict[str, Any]:
        # another process opens the files itself
        return {**vars(self), **compat.files_of_index(), "_signature": None}

    def _key(self) -> tuple[Any, ...]:
        encoder = self.encoder if self.built() else None
        return self.index_path, encoder, self.sim_fn, self.any_encoder

    def __repr__(self) -> str:
        return f"SelfDistillIndex({str(self.index_path)!r})"
