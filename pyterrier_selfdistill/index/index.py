"""FlexIndex bound to the encoder that built it, and its retrievers."""

from __future__ import annotations

import importlib
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
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
from pyterrier_dr.flex.np_retr import NumpyVectorLoader

from ..utils import compat
from ..utils.checks import (
    Count,
    Expected,
    FolderPath,
    PositiveInteger,
    Seed,
    bind,
    checked,
    plain,
    require_column_names,
    require_identifiers,
    require_strings,
    require_vectors,
    without_rows,
)
from ..utils.folders import folder_lock, portable_name, recover
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
    sound_graphs,
)

logger = logging.getLogger(__name__)

EXACT = ("retriever", "np_retriever", "torch_retriever")
SCORERS = ("np_scorer", "torch_scorer")
LADR = ("ladr_proactive", "ladr_adaptive")
RERANKERS = (*SCORERS, *LADR, "gar")

# the methods that store a graph or vectors in the folder of the index, and their files; other methods store corpus
# graphs, and FAISS reads flat vectors by their path
GRAPHS = {
    "faiss_hnsw_retriever": "hnsw_n-{neighbours}_ef-{ef_construction}.faiss",
    "faiss_ivf_retriever": "ivf_nlist-*.faiss",
    "voyager_retriever": "voyager-*.voyager",
    "int8_retriever": "int8.faiss",
    "binary_retriever": "binary.faiss",
}
WITH_GRAPHS = (*GRAPHS, "gar", *LADR, "faiss_flat_retriever")

# the best documents of each query, best first: their scores, positions and identifiers
Found = tuple[Any, Any, Any]

SCORES = 2**26  # how many scores of 4 bytes the fastest retriever computes at once
LARGEST_QBATCH = 64  # how many queries it searches at once, at most
FEWEST_CLUSTERS = 4  # the fewest clusters that pyterrier-dr makes by default
ATTEMPTS = 100  # how often to retry opening an index that is replaced meanwhile
SPARE = 16  # how many extra documents a backend finds, so that most ties are among them
ROWS = 4096  # how many documents are scored at once if vectors are read from disk
OPENING = threading.RLock()  # held by the thread that opens an index or makes a searcher for it


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
    """Check the options of retrievers and scorers, since pyterrier-dr does not check them."""


def _method(name: str, docstring: str) -> Callable[..., IndexTransformer]:
    """Make a method that checks its options and then wraps a method of FlexIndex or of this package."""
    signature = inspect.signature(getattr(OpenedIndex, name))

    def make(self: SelfDistillIndex, *arguments: Any, **options: Any) -> IndexTransformer:
        bound = bind(signature, self, *arguments, **options)
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
    """A retriever, a scorer or a re-ranker of a :class:`SelfDistillIndex`."""

    def __init__(self, index: Any, method: str, options: dict[str, Any]) -> None:
        self.index = index
        self.method = method
        self.options = options
        # a snapshot of the files, and the searcher that reads it
        self._made: tuple[OpenedIndex | None, Any] = None, None
        # the index may be built later
        with suppress(FileNotFoundError):
            self._make()

    def _make(self) -> tuple[OpenedIndex, Any]:
        folder = self.index.index_path.resolve()
        with OPENING, ExitStack() as stack, compat.quiet_backends():
            if self.method in WITH_GRAPHS:
                # one process computes a graph and others read it; a process without write permission only reads
                with suppress(PermissionError):
                    graphs = folder.with_name(f"{folder.name}.graphs")
                    stack.enter_context(folder_lock(graphs, "computing a graph of an index", wait=True))
            while True:
                opened, inner = self.index.refresh(), self.inner
                error = None
                if opened is not self._made[0]:
                    try:
                        kept = GRAPHS.get(self.method, "").format(**self.options)
                        with sound_graphs(opened, kept) if kept else nullcontext():
                            inner = self.make_inner(opened)
                    except Exception as raised:
                        error = raised
                if self.method not in WITH_GRAPHS or signature_of(folder) == opened.signature:
                    break
            if error is not None:
                raise error
            self._made = opened, inner
        return opened, inner

    def make_inner(self, index: OpenedIndex) -> Any:
        """Make the searcher for a snapshot of the files: a :class:`Search`, or a re-ranker of pyterrier-dr."""
        method, options = self.method, dict(self.options)
        self._fit_options(index, options)
        if method in SCORERS:
            return Search(index, None, vectors=index.torch_vecs(**options) if options else None)
        if method in LADR:
            # let it return all scored documents, then keep the best
            budget = options["num_results"] if options["budget"] is True else options["budget"]
            scorer = options["dense_scorer"]
            is_own = isinstance(scorer, IndexTransformer) and scorer.index.index_path == index.index_path
            scorer = scorer.make_inner(index) if is_own else scorer or Search(index, None)
            options |= {"num_results": len(index), "budget": budget, "dense_scorer": scorer}
        if method in RERANKERS:
            inner = getattr(FlexIndex, method)(index, **options)
            # open it now: it is opened on first use, when the index may have been replaced
            getattr(inner.graph, "edges_data", None)
            return inner
        if method == "voyager_retriever":
            return Search(index, compat.VoyagerSearch(index, options).search)
        qbatch = options.get("qbatch")
        if method not in EXACT:
            made = getattr(OpenedIndex, method)(index, **options)
            is_own = isinstance(made, small_vectors.RescoredSearch)
            find = made.search if is_own else partial(search_faiss, made.faiss_index, options)
            # among documents with equally many matching signs, FAISS drops the last ones itself
            return Search(index, find, qbatch=qbatch, is_stable=method == "binary_retriever")
        device, rows = options.get("device", "cpu"), options.get("batch_size")
        if method == "torch_retriever":
            rows = len(index)
        elif method == "retriever" and rows is None and index.sim_fn is SimFn.dot:
            # all vectors at once on a GPU or the CPU, or in parts from disk
            size = index.np_vecs().nbytes
            is_for_gpu = torch.cuda.is_available() and size < torch.cuda.mem_get_info()[0] / 2
            if is_for_gpu or size < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2:
                device, rows = "cuda" if is_for_gpu else "cpu", len(index)
                qbatch = min(max(SCORES // len(index), 1), LARGEST_QBATCH)
        vectors = index.torch_vecs(device=device, fp16=options.get("fp16", False))
        find = partial(
            search_vectors, vectors, rows=rows or ROWS, mask=options["mask"], is_cosine=index.sim_fn is SimFn.cos
        )
        return Search(index, find, qbatch=qbatch, vectors=vectors)

    def _fit_options(self, index: OpenedIndex, options: dict[str, Any]) -> None:
        if options.get("mask") is not None:
            mask = np.asarray(options["mask"])
            if mask.shape != (len(index),) or not np.isin(mask, (0, 1)).all():
                raise ValueError(
                    f"mask must be 0 or 1 for each of the {len(index)} documents of {index!r}, got an array of shape "
                    f"{mask.shape}; index.mask(docnos) makes one"
                )
            options["mask"] = torch.from_numpy(mask == 0)
        if self.method in SCORERS:
            del options["num_results"]
        if isinstance(options.get("k"), int):
            if len(index) == 1:
                raise ValueError(f"{index!r} has only one document, so it has no neighbours; use scorer()")
            options["k"] = compat.make_corpus_graph(index, options["k"])
        if "n_list" in options:
            sample = min(len(index), options["train_sample"] or len(index))
            if options["n_list"] is None and sample < FEWEST_CLUSTERS:
                options["n_list"] = sample
            if (options["n_list"] or 0) > sample:
                raise ValueError(
                    f"cannot learn n_list={options['n_list']} clusters from {sample} documents; use fewer clusters"
                )

    @property
    def inner(self) -> Any:
        return self._made[1]

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        # use one snapshot of the files throughout
        index, inner = self._made
        if index is None or self.index.refresh() is not index:
            index, inner = self._make()
        require_column_names(inp, "the queries")
        if not inp.empty:
            if "qid" in inp:
                require_identifiers(inp, "qid", "the queries")
            if "docno" in inp:
                inp = with_own_docids(index, inp)
            if "query_vec" in inp:
                require_comparable(index, inp)
        # disable autocast, which would multiply vectors in 16 bits
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            if self.method in RERANKERS:
                return self._rerank(index, inner, inp)
            number = min(self.options.get("num_results", 1000), len(index))
            found = retrieved(inp, partial(inner.search, num_results=number), self.options["drop_query_vec"])
        if len(found) < number * len(inp) and self.method in WITH_GRAPHS:
            few = "%r found fewer than %d documents for a query; raise ef_search, n_probe or query_ef"
            logger.warning(few, self, number)
        return found

    def _rerank(self, index: OpenedIndex, inner: Any, inp: pd.DataFrame) -> pd.DataFrame:
        is_scorer = self.method in SCORERS
        if is_scorer:
            with pt.validate.any(inp) as validation:
                validation.columns(includes=["qid", "query_vec", "docno"])
                validation.columns(includes=["qid", "query_vec", "docid"])
            found = inp.drop(columns=["score", "rank"], errors="ignore")
        else:
            found = compat.transform_queries(inner, inp)
        if inp.empty:
            return without_rows(found.assign(score=None, rank=None), inp)
        positions = np.asarray(found["docid"] if "docid" in found else index.docnos().inv[found["docno"].to_numpy()])
        scores = np.empty(len(found), dtype=np.float32)
        scorer = inner if is_scorer else getattr(inner, "dense_scorer", None) or Search(index, None)
        queries = inp.drop_duplicates("qid").set_index("qid")["query_vec"]
        for qid, rows in found.groupby("qid").indices.items():
            scores[rows] = np.ravel(scorer.score(np.reshape(queries[qid], (1, -1)), positions[rows].astype(np.int64)))
        order = np.lexsort((positions, -scores, pd.factorize(found["qid"], sort=True)[0]))
        found = found.assign(score=scores).iloc[order].reset_index(drop=True)
        found = found.assign(rank=found.groupby("qid").cumcount())
        number = self.options["num_results"]
        return found if number is None else found[found["rank"] < number].reset_index(drop=True)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Limit the search to ``k`` documents, if the backend then finds the same ones."""
        # other backends would search less thoroughly
        is_same = self.method in EXACT or (self.method in LADR and not self.options["budget"])
        if not is_same or k >= self.options["num_results"]:
            return None
        return IndexTransformer(self.index, self.method, {**self.options, "num_results": k})

    def set_parameter(self, name: str, value: Any) -> None:
        if name not in self.options:
            raise ValueError(f"{self.method} has no option {name!r}, only {', '.join(self.options)}")
        other = getattr(self.index, self.method)(**{**self.options, name: value})
        self.options, self._made = other.options, other._made

    @property
    def schematic(self) -> dict[str, Any]:
        return compat.schematic(self.method)

    def subtransformers(self) -> dict[str, pt.Transformer]:
        return {}

    def __getattr__(self, name: str) -> Any:
        # options, for get_parameter; while unpickling, the object has no attributes yet
        if name.startswith("_"):
            raise AttributeError(name)
        return self.options[name] if name in self.options else getattr(self.inner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # another process makes its own transformer with its own open files
        return IndexTransformer, (self.index, self.method, self.options)

    def _key(self) -> tuple[Any, ...]:
        options = dict(self.options)
        # comparing arrays does not give a single value
        if options.get("mask") is not None:
            options["mask"] = np.asarray(options["mask"], dtype=np.int8).tobytes()
        return self.index, self.method, tuple(sorted(options.items()))

    def __hash__(self) -> int:
        # without the options, which a grid search changes while it uses the transformer as a key
        return hash((self.index, self.method))

    def __repr__(self) -> str:
        parameters = inspect.signature(getattr(type(self.index), self.method)).parameters
        given = [(name, value) for name, value in self.options.items() if value is not parameters[name].default]
        return f"{self.index!r}.{self.method}({', '.join(f'{name}={value!r}' for name, value in given)})"


class Search:
    """Finds documents in the same order with every backend and depth: by score, then by position.

    Backends round differently, even for equal documents. So their results are scored again by a single function, and
    more results are requested as long as a missing document could score as high as the last result.
    """

    def __init__(
        self, index: FlexIndex, find: Any, *, qbatch: int | None = None, vectors: Any = None, is_stable: bool = False
    ) -> None:
        self.index = index
        self.find = find
        self.qbatch = qbatch
        self.vectors = np.asarray(index.np_vecs()) if vectors is None else vectors
        self.is_cosine = index.sim_fn is SimFn.cos
        # the largest error of the scores of a backend, for a query of unit length
        longest = 1 if self.is_cosine else norms(np.asarray(index.np_vecs()[:SPARE])).max()
        self.slack = -np.inf if is_stable else longest * (1e-3 if self.vectors.dtype == torch.float16 else 2e-6)

    def score(self, query: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Score documents for a query of shape (1, dimension), as pyterrier-dr's LADR expects."""
        vectors = self.vectors[positions]
        if isinstance(vectors, torch.Tensor):
            vectors = vectors.float().cpu().numpy()
        # a matrix product may round equal rows differently
        scores = np.einsum("d,nd->n", np.asarray(query[0], dtype=np.float32), vectors)
        return scores / (norms(query) * norms(vectors)) if self.is_cosine else scores

    def search(self, queries: pd.DataFrame, num_results: int) -> Found:
        vectors = np.stack(queries["query_vec"]).astype(np.float32)
        if self.is_cosine:
            vectors /= norms(vectors)[:, None]
        number = min(num_results + SPARE, len(self.vectors))
        starts = range(0, len(vectors), self.qbatch or len(vectors))
        found = []
        shows = self.index.verbose and len(starts) > 1
        for start in compat.progress_bar(starts, desc="Searching", unit="batch", delay=1, disable=not shows):
            some = vectors[start : start + starts.step]
            for query, scores, positions in zip(some, *self.find(some, number), strict=True):
                found.append(self._best(query[None], num_results, scores, positions))
        best_scores, best = zip(*found, strict=True)
        return best_scores, best, [self.index.docnos().fwd[positions] for positions in best]

    def _best(self, query: np.ndarray, k: int, rough: np.ndarray, positions: np.ndarray) -> tuple[Any, Any]:
        while True:
            asked = len(positions)
            # FAISS returns -1 if it finds no more documents, and masked documents score -inf
            is_there = (positions >= 0) & (rough > -np.inf)
            order = np.argsort(positions[is_there])
            rough, positions = rough[is_there][order], positions[is_there][order]
            scores = self.score(query, positions)
            best = np.argsort(-scores, kind="stable")[:k]
            is_all = len(positions) < asked or asked == len(self.vectors)
            if is_all or rough[best].min() > rough.min() + self.slack * norms(query[0]):
                return scores[best], positions[best]
            (rough,), (positions,) = self.find(query, min(4 * asked, len(self.vectors)))


def norms(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("...d,...d->...", vectors, vectors))


def search_vectors(
    vectors: torch.Tensor, queries: np.ndarray, number: int, *, rows: int, mask: Any, is_cosine: bool
) -> tuple[np.ndarray, np.ndarray]:
    asked = torch.from_numpy(queries).to(vectors)
    scores, positions = asked.new_empty((len(asked), 0)), asked.new_empty((len(asked), 0), dtype=torch.long)
    for start in range(0, len(vectors), rows):
        part = vectors[start : start + rows]
        more = asked @ part.T
        if is_cosine:
            more /= part.norm(dim=1)
        if mask is not None:
            more[:, mask[start : start + rows]] = -torch.inf
        best, places = more.topk(min(number, len(part)))
        scores, chosen = torch.hstack([scores, best]).topk(min(number, scores.shape[1] + best.shape[1]))
        positions = torch.hstack([positions, places + start]).gather(1, chosen)
    return scores.float().cpu().numpy(), positions.cpu().numpy()


def search_faiss(graph: Any, options: Mapping[str, Any], queries: np.ndarray, number: int) -> tuple[Any, Any]:
    """Search an index of FAISS with parameters per call, since threads and retrievers share its settings."""
    faiss: Any = importlib.import_module("faiss")
    parameters = faiss.SearchParametersIVF(nprobe=options["n_probe"]) if "n_probe" in options else None
    if "ef_search" in options:
        ef, queue = max(options["ef_search"], number), options["search_bounded_queue"]
        parameters = faiss.SearchParametersHNSW(efSearch=ef, bounded_queue=queue)
    return graph.search(queries, number, params=parameters)


def retrieved(queries: pd.DataFrame, find: Callable[[pd.DataFrame], Found], drop_query_vec: bool) -> pd.DataFrame:
    pt.validate.query_frame(queries, extra_columns=["query_vec"])
    kept = queries.drop(columns="query_vec") if drop_query_vec else queries
    if queries.empty:
        return without_rows(kept.assign(**dict.fromkeys(["docno", "docid", "score", "rank"])), queries)
    scores, positions, docnos = find(queries)
    numbers = [len(of_query) for of_query in scores]
    results = kept.iloc[np.repeat(np.arange(len(kept)), numbers)].reset_index(drop=True)
    return results.assign(
        docno=np.concatenate(docnos).astype(object),
        docid=np.concatenate(positions),
        score=np.concatenate(scores),
        rank=np.concatenate([np.arange(number) for number in numbers]),
    )


class VectorLoader(NumpyVectorLoader):
    """Add the stored vectors, as ``doc_vec``, to frames with ``docno``."""

    schematic: ClassVar = compat.schematic("VecLoader")

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        index = self.flex_index.refresh()
        with pt.validate.any(inp) as validation:
            validation.columns(includes=["docno"])
            validation.columns(includes=["docid"])
        if inp.empty:
            return without_rows(inp.assign(doc_vec=None), inp)
        loaded = NumpyVectorLoader(index).transform(with_own_docids(index, inp))
        vectors = np.stack(loaded["doc_vec"])
        return loaded if index.encoder is None else loaded.assign(doc_vec=EncodedVector.rows(vectors, index.encoder))

    def __repr__(self) -> str:
        return f"{self.flex_index!r}.vec_loader()"


def with_own_docids(index: FlexIndex, frame: pd.DataFrame) -> pd.DataFrame:
    require_identifiers(frame, "docno", "the documents")
    # otherwise, pyterrier-dr would use the positions of a first stage
    return frame.assign(docid=index.docnos().inv[frame["docno"]]) if "docid" in frame else frame


def require_comparable(index: OpenedIndex, queries: pd.DataFrame) -> None:
    require_vectors(queries, "query_vec", index.np_vecs().shape[1], "the vectors of the index")
    own = index.encoder
    for other in encoders_of(queries["query_vec"]):
        if own is not None and not index.any_encoder and other.checksum != own.checksum:
            is_namesake = portable_name(other.name) == own.name
            remark = "; they have the same name, but not the same weights or settings" if is_namesake else ""
            raise EncoderMismatchError(
                f"{index!r} was built by the encoder {own}, but the queries were encoded by {other}{remark}. Use the "
                "encoder of the index, or rebuild the index with this encoder and index.indexer(mode='overwrite'). To "
                "allow the mismatch, set any_encoder=True in SelfDistillIndex"
            )


class OpenedIndex(FlexIndex):
    """A snapshot of an index, whose files stay open and unchanged if the index is replaced."""

    signature: Signature
    any_encoder: bool
    int8_retriever: Any = small_vectors.int8_retriever
    binary_retriever: Any = small_vectors.binary_retriever

    @property
    def encoder(self) -> EncoderIdentity | None:
        """The encoder that built the index, if it is known."""
        stored = self.payload()[-1].get("encoder")
        return None if stored is None else EncoderIdentity(**stored)

    def corpus_graph(self, k: int = 16, *, batch_size: int = 8192) -> pt.Artifact:
        """Compute the graph of the ``k`` nearest neighbours of each document, or load it from the index folder."""
        with sound_graphs(self, "corpusgraph_k*"):
            return super().corpus_graph(k, batch_size=batch_size)

    def __repr__(self) -> str:
        return f"SelfDistillIndex({str(self.index_path)!r})"


Mode = Annotated[IndexingMode | Literal["create", "overwrite"], Expected("'create' or 'overwrite'")]


class SelfDistillIndex(ComparedByKey, OpenedIndex):
    """A dense index that knows which encoder built it.

    Use it like :class:`pyterrier_dr.FlexIndex`. In addition, you get these checks: opening an incomplete or damaged
    index raises ``ValueError``, and so does indexing a document that is a duplicate or lacks an identifier or a vector.
    Searching with queries of another encoder raises :class:`EncoderMismatchError`. Vectors of other packages, which
    do not record their encoder, are accepted.

    Retrievers find ``num_results`` documents for frames with ``qid`` and ``query_vec``. Scorers and re-rankers also
    need ``docno``. Pass ``drop_query_vec=True`` to omit query vectors from the results. The data structures of
    approximate retrievers are stored in the folder of the index.

    Args:
        path: The folder of the index.
        sim_fn: The similarity function. :class:`SelfDistillBiEncoder` makes unit vectors, so the default dot product is
            their cosine.
        verbose: Whether to show progress bars.
        any_encoder: Whether to allow queries of an encoder that did not build the index.

    Example:
        >>> import tempfile
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index = SelfDistillIndex(f"{folder}/index.flex", verbose=False)
        ...     _ = (encoder >> index).index(corpus)
        ...     (encoder >> index.retriever(num_results=1)).search("plot")["docno"].tolist()
        ['d2']
    """

    schematic: ClassVar = compat.schematic("SelfDistillIndex")

    @checked
    def __init__(
        self, path: FolderPath, *, sim_fn: SimFn | str = SimFn.dot, verbose: bool = True, any_encoder: bool = False
    ) -> None:
        FlexIndex.__init__(self, str(Path(path).expanduser()), sim_fn=sim_fn, verbose=verbose)
        self.any_encoder = any_encoder
        self._opened: OpenedIndex | None = None

    retriever = _method(
        "retriever",
        """Search all vectors, or only the documents of a :meth:`mask`, with the fastest exact backend.

        Uses :meth:`torch_retriever` on a GPU, or else on the CPU, if the vectors fit into half of its memory. Uses
        :meth:`np_retriever` otherwise, and if you set ``batch_size`` or a similarity other than the dot product.
        """,
    )
    np_retriever = _method("np_retriever", "Search all vectors on disk, or only the documents of a :meth:`mask`.")
    torch_retriever = _method(
        "torch_retriever", "Search all vectors on ``device``; ``fp16=True`` halves the memory that you need."
    )
    faiss_flat_retriever = _method("faiss_flat_retriever", "Search all vectors in memory, or on all GPUs, with FAISS.")
    faiss_hnsw_retriever = _method(
        "faiss_hnsw_retriever",
        "Search a FAISS graph; higher ``neighbours``, ``ef_construction`` and ``ef_search`` find more but are slower.",
    )
    faiss_ivf_retriever = _method(
        "faiss_ivf_retriever",
        "Search the ``n_probe`` nearest of ``n_list`` clusters with FAISS, learned from ``train_sample`` vectors.",
    )
    voyager_retriever = _method(
        "voyager_retriever",
        "Search a Voyager graph; higher ``neighbours``, ``ef_construction`` and ``query_ef`` find more but are slower.",
    )
    int8_retriever = _method("int8_retriever", "Search int8 vectors, then rescore ``rescore * num_results`` documents.")
    binary_retriever = _method("binary_retriever", "Search binary vectors, then rescore ``rescore * num_results``.")
    np_scorer = scorer = _method("np_scorer", "Score documents by their vectors; keep ``num_results`` of them, or all.")
    torch_scorer = _method("torch_scorer", "Score documents as :meth:`scorer` does, in the memory of ``device``.")
    gar = _method("gar", "Re-rank results, alternating with the ``k`` neighbours of the best documents so far.")
    ladr = pre_ladr = ladr_proactive = _method(
        "ladr_proactive",
        "Re-rank results and their ``k`` neighbours (or a corpus graph's), up to ``hops`` away, within ``budget``.",
    )
    ada_ladr = ladr_adaptive = _method(
        "ladr_adaptive",
        "Re-rank as :meth:`ladr_proactive`, but follow the best ``depth`` until they are stable or for ``max_hops``.",
    )

    def vec_loader(self) -> pt.Transformer:
        """Make a transformer that adds the stored vectors, as ``doc_vec``, to frames with ``docno``."""
        return VectorLoader(self)

    np_vec_loader = vec_loader

    @checked
    def indexer(self, *, mode: Mode = IndexingMode.create) -> FlexIndexer:
        """Make an indexer; ``mode="overwrite"`` replaces an existing index once the new one is complete."""
        return Indexer(self, mode)

    def mask(self, docnos: Iterable[str]) -> np.ndarray:
        """Make a ``mask``, ``(len(index),)`` zeros and ones, with which retrievers find only the given documents.

        Raises:
            KeyError: If a document is not in the index.
            TypeError: If an identifier is not a string.
        """
        lookup = self.docnos()
        mask = np.zeros(len(lookup), dtype=np.int8)
        for docno in require_strings(docnos, "docnos"):
            try:
                mask[lookup.inv[docno]] = 1
            except LookupError:
                raise KeyError(f"document {docno!r} is not in {self!r}") from None
        return mask

    def built(self) -> bool:
        """Tell whether a complete index exists that can be opened."""
        with suppress(OSError, ValueError):
            return bool(self.refresh())
        return False

    def payload(self, return_dvecs: bool = True, return_docnos: bool = True) -> list[Any]:
        """Open the index like :meth:`pyterrier_dr.FlexIndex.payload`, if it is complete."""
        return (self._opened or self.refresh()).payload(return_dvecs, return_docnos)

    def close(self) -> None:
        """Close the files, which are opened again when needed."""
        self.__dict__.update(compat.files_of_index(), _opened=None)

    def refresh(self) -> OpenedIndex:
        """Open the files of the current index, unless they are open already."""
        opened = self._opened
        if opened is not None and opened.signature == signature_of(self.index_path):
            return opened
        with OPENING:
            for _ in range(ATTEMPTS):
                recover(self.index_path)
                signature = signature_of(self.index_path)
                if self._opened is not None and self._opened.signature == signature:
                    return self._opened
                self.close()
                try:
                    files = compat.files_of_index(*open_index(self.index_path))
                except Exception:
                    # files of two indexes raise errors of all kinds
                    if signature_of(self.index_path) == signature:
                        raise
                    continue
                opened = OpenedIndex(str(self.index_path), sim_fn=self.sim_fn, verbose=self.verbose)
                opened.__dict__.update(files, signature=signature, any_encoder=self.any_encoder)
                self._opened = opened
            raise ValueError(f"{self!r} keeps being replaced; open it after that has stopped")

    def __getstate__(self) -> dict[str, Any]:
        # another process opens its own files
        return {**vars(self), **compat.files_of_index(), "_opened": None}

    def _key(self) -> tuple[Any, ...]:
        return self.index_path, self.encoder if self.built() else None, self.sim_fn, self.any_encoder
