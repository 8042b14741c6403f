"""The index: pyterrier-dr's FlexIndex, bound to the encoder that built it.

A :class:`SelfDistillIndex` is built whole or not at all, remembers its encoder, and refuses queries that another one
encoded. The folder is an ordinary :class:`pyterrier_dr.FlexIndex` with the encoder's identity in its metadata, and all
of FlexIndex's retrievers and re-rankers are there, as :class:`IndexTransformer`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier_dr import FlexIndex, SimFn
from pyterrier_dr.flex import IndexingMode
from pyterrier_dr.flex.core import FlexIndexer
from pyterrier_dr.flex.np_retr import NumpyScorer, NumpyVectorLoader

from .identity import EncodedVector, EncoderIdentity, EncoderMismatchError, encoders_of
from .io import atomic_folder

METADATA_FILE = "pt_meta.json"
VECTORS_FILE = "vecs.f4"


class SelfDistillIndex(FlexIndex):
    """A dense index that knows which encoder built it.

    Used as :class:`pyterrier_dr.FlexIndex` is. What it adds: while it is built, another name holds what there is; a
    document without identifier or vector, and one that comes twice, is an error; an index that is not whole is never
    opened; and queries of another encoder than its own are refused. Vectors that do not say which encoder made them
    (those of other packages) are trusted. Vectors are memory-mapped: :meth:`retriever` reads them in parts, so that an
    index may be larger than memory.

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
        self,
        path: str | Path,
        *,
        sim_fn: SimFn | str = SimFn.dot,
        verbose: bool = True,
        any_encoder: bool = False,
    ) -> None:
        super().__init__(str(path), sim_fn=sim_fn, verbose=verbose)
        self.any_encoder = any_encoder

    @property
    def encoder(self) -> EncoderIdentity | None:
        """The encoder that built the index, if its vectors say so.

        Raises:
            FileNotFoundError: If there is no index.
            ValueError: If it is not whole.
        """
        stored = self.payload(return_dvecs=False, return_docnos=False)[0].get("encoder")
        return None if stored is None else EncoderIdentity(**stored)

    def built(self) -> bool:
        """Returns whether there is an index, and it is whole."""
        return (self.index_path / METADATA_FILE).is_file()

    def payload(self, return_dvecs: bool = True, return_docnos: bool = True) -> list[Any]:
        """Opens the index, as :meth:`pyterrier_dr.FlexIndex.payload` does.

        Raises:
            FileNotFoundError: If there is no index.
            ValueError: If it is not whole, or something else.
        """
        if self._meta is None:
            self._check_files()
        return super().payload(return_dvecs, return_docnos)

    def indexer(self, *, mode: IndexingMode | str = IndexingMode.create) -> FlexIndexer:
        """Returns an indexer: ``mode="overwrite"`` replaces an index that is there, once the new one is whole."""
        return _Indexer(self, mode)

    def mask(self, docnos: Iterable[str]) -> np.ndarray:
        """Returns the mask with which retrievers find the given documents only.

        Args:
            docnos: The identifiers of documents.

        Returns:
            Zeros and ones, of shape ``(len(index),)``, for the option ``mask`` of :meth:`retriever` and
            :meth:`torch_retriever`.

        Raises:
            KeyError: If a document is not in the index.

        Example:
            Search some of the documents::

                encoder >> index.retriever(mask=index.mask(docs_of_2024))
        """
        mask = np.zeros(len(self), dtype=np.int8)
        lookup = self.docnos()
        for docno in docnos:
            try:
                mask[lookup.inv[docno]] = 1
            except (KeyError, LookupError):
                raise KeyError(f"document {docno!r} is not in {self!r}") from None
        return mask

    def vec_loader(self) -> pt.Transformer:
        """Returns a transformer that adds ``doc_vec``, of the index, to frames with ``docno``."""
        return _VectorLoader(self)

    np_vec_loader = vec_loader

    def require_vectors(self, vectors: Iterable[Any]) -> None:
        """Checks that vectors of queries compare with those of the index.

        Args:
            vectors: The vectors of queries.

        Raises:
            EncoderMismatchError: If another encoder made one, and ``any_encoder`` is not set.
            ValueError: If one has another dimension.
        """
        vectors = list(vectors)
        dimension = self.payload(return_dvecs=False, return_docnos=False)[0]["vec_size"]
        if wrong := {len(vector) for vector in vectors if len(vector) != dimension}:
            raise ValueError(
                f"query_vec has {sorted(wrong)[0]} dimensions, and the vectors of {self!r} have {dimension}; encode "
                "the queries with the encoder of the index"
            )
        own = self.encoder
        if own is None or self.any_encoder:
            return
        for other in encoders_of(vectors):
            if other.checksum != own.checksum:
                same_name = "; they have the same name, but not the same weights or settings" * (other.name == own.name)
                raise EncoderMismatchError(
                    f"{self!r} was built by the encoder {own}, and the queries were encoded by {other}{same_name}. "
                    "Search with the encoder of the index, or build it again with this one and index.indexer(mode="
                    "'overwrite'). If you mean it, SelfDistillIndex(path, any_encoder=True) goes ahead"
                )

    def _check_files(self) -> None:
        path, metadata = self.index_path, self.index_path / METADATA_FILE
        if not path.exists():
            raise FileNotFoundError(f"there is no index at {str(path)!r}; build it: (encoder >> index).index(corpus)")
        again = "build it again: (encoder >> index.indexer(mode='overwrite')).index(corpus)"
        if not metadata.is_file():
            raise ValueError(f"{str(path)!r} is no index, or building it was interrupted: no {METADATA_FILE}; {again}")
        meta = json.loads(metadata.read_text())
        kind = meta.get("type"), meta.get("format")
        if kind != (self.ARTIFACT_TYPE, self.ARTIFACT_FORMAT):
            raise ValueError(f"{str(path)!r} is a {kind[0]} of format {kind[1]}, no {self.ARTIFACT_TYPE} of FlexIndex")
        expected = meta["doc_count"] * meta["vec_size"] * np.dtype(np.float32).itemsize
        if (path / VECTORS_FILE).stat().st_size != expected:
            raise ValueError(f"{str(path / VECTORS_FILE)!r} has not the {expected} bytes of all vectors; {again}")

    def _forget(self) -> None:
        self.__dict__.update(self._closed())

    def __getstate__(self) -> dict[str, Any]:
        # opened files stay here: another process maps them itself
        return {name: value for name, value in self.__dict__.items() if name != "transform_iter"} | self._closed()

    @staticmethod
    def _closed() -> dict[str, Any]:
        return {"_meta": None, "_docnos": None, "_dvecs": None, "_cache": {}}

    def _key(self) -> tuple[Any, ...]:
        return self.index_path, self.encoder if self.built() else None, self.sim_fn, self.any_encoder

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, SelfDistillIndex) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"SelfDistillIndex({str(self.index_path)!r})"


class IndexTransformer(pt.Transformer):
    """A retriever or a re-ranker of a :class:`SelfDistillIndex`.

    It is made by the index's methods, such as :meth:`~SelfDistillIndex.retriever`, and does what the transformer of
    pyterrier-dr does, for queries of the index's own encoder. It is identified by what it is made of (index, encoder,
    method, options, masks too), so that it can be compared, sent to other processes and tuned with any backend.

    Args:
        index: The index.
        method: The name of FlexIndex's method that makes the transformer.
        options: The arguments of the method, all of them.
    """

    def __init__(self, index: SelfDistillIndex, method: str, options: dict[str, Any]) -> None:
        self.index, self.method, self.options = index, method, options
        self.inner = self._make()

    def _make(self) -> pt.Transformer:
        options = self.options
        if (mask := options.get("mask")) is not None:
            if np.shape(mask) != (len(self.index),):
                raise ValueError(
                    f"the mask has the shape {np.shape(mask)}, and {self.index!r} has {len(self.index)} documents; "
                    "index.mask(docnos) makes one"
                )
            if self.method == "np_retriever":
                # NumpyRetriever gives masked documents the score 0, which is above that of negative cosines
                common = {name: options[name] for name in ("num_results", "mask", "drop_query_vec")}
                return FlexIndex.torch_retriever(self.index, device="cpu", **common)
        inner = getattr(FlexIndex, self.method)(self.index, **options)
        if self.method == "voyager_retriever":
            inner.num_results = options["num_results"]  # which pyterrier-dr does not pass on
            inner.voyager_index = _VoyagerIndex(inner.voyager_index)
        return inner

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Retrieves or scores.

        Raises:
            EncoderMismatchError: If another encoder than the index's made the query vectors.
            ValueError: If they have another dimension.
        """
        if inp.empty:
            return self._transform_nothing(inp)
        if "query_vec" in inp:
            self.index.require_vectors(inp["query_vec"])
        return _without_arrays(self.inner.transform(inp))

    def _transform_nothing(self, inp: pd.DataFrame) -> pd.DataFrame:
        # which Voyager and scorers fail on
        if isinstance(self.inner, NumpyScorer):
            with pt.validate.any(inp) as v:
                v.columns(includes=["qid", "query_vec", "docno"])
                v.columns(includes=["qid", "query_vec", "docid"])
            return inp.assign(score=pd.Series(dtype=float), rank=pd.Series(dtype=int))
        if self.method == "voyager_retriever":
            drop_query_vec = self.options["drop_query_vec"]
            return FlexIndex.np_retriever(self.index, drop_query_vec=drop_query_vec).transform(inp)
        return self.inner.transform(inp)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Asks the index for ``k`` documents, where the backend then finds the same."""
        fuse = getattr(self.inner, "fuse_rank_cutoff", None)
        if fuse is None or fuse(k) is None:
            return None
        return IndexTransformer(self.index, self.method, {**self.options, "num_results": k})

    def get_parameter(self, name: str) -> Any:
        """Returns an option."""
        return self.options[name] if name in self.options else super().get_parameter(name)

    def set_parameter(self, name: str, value: Any) -> None:
        """Changes an option, as a grid search does."""
        if name not in self.options:
            raise ValueError(f"{self.method} has no option {name!r}, only {', '.join(self.options)}")
        self.options = {**self.options, name: value}
        self.inner = self._make()

    @property
    def schematic(self) -> dict[str, str]:
        """The label is pyterrier-dr's."""
        return {"label": type(self.inner).__name__}

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """What does the work is no pipeline of its own."""
        return {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return IndexTransformer, (self.index, self.method, self.options)

    def _key(self) -> tuple[Any, ...]:
        options = {name: value for name, value in self.options.items() if name != "mask"}
        mask = self.options.get("mask")
        return (
            self.index,
            self.method,
            tuple(sorted(options.items())),
            None if mask is None else np.asarray(mask, dtype=np.int8).tobytes(),
        )

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, IndexTransformer) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key()[:2])

    def __repr__(self) -> str:
        defaults = inspect.signature(getattr(FlexIndex, self.method)).parameters
        given = [f"{k}={v!r}" for k, v in self.options.items() if v is not defaults[k].default]
        return f"{self.index!r}.{self.method}({', '.join(given)})"


class _VoyagerIndex:
    """Voyager's index, as pyterrier-dr 0.8 means to query it.

    That passes ``query_ef`` as the number of threads, and asks for more documents than there are or than ``query_ef``,
    which Voyager refuses. It also takes the distance, 1 - similarity, for the negative similarity.
    """

    def __init__(self, index: Any) -> None:
        self.index = index

    def query(self, vectors: np.ndarray, k: int, query_ef: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, len(self.index))
        docids, distances = self.index.query(vectors, k, query_ef=max(query_ef, k))
        return docids, distances - 1


def _without_arrays(results: pd.DataFrame) -> pd.DataFrame:
    """Takes values out of the arrays of length 1 in which pyterrier-dr puts them when a query has one result."""
    if results["rank"].dtype != object:
        return results
    columns = [name for name in ("docno", "docid", "score", "rank") if name in results]
    return results.assign(**{name: [np.asarray(value).item() for value in results[name]] for name in columns})


def _bound(name: str, method: str) -> Callable[..., IndexTransformer]:
    signature = inspect.signature(getattr(FlexIndex, method))

    @functools.wraps(getattr(FlexIndex, method))
    def make(self: SelfDistillIndex, *args: Any, **options: Any) -> IndexTransformer:
        given = signature.bind(self, *args, **options)
        given.apply_defaults()
        return IndexTransformer(self, method, dict(list(given.arguments.items())[1:]))

    make.__name__, make.__qualname__ = name, f"SelfDistillIndex.{name}"
    return make


METHODS = {
    **{"retriever": "np_retriever", "np_retriever": "np_retriever", "torch_retriever": "torch_retriever"},
    **{f"faiss_{kind}_retriever": f"faiss_{kind}_retriever" for kind in ("flat", "hnsw", "ivf")},
    **{f"{name}_retriever": f"{name}_retriever" for name in ("flatnav", "kannolo_hnsw", "scann", "voyager")},
    **{"scorer": "np_scorer", "np_scorer": "np_scorer", "torch_scorer": "torch_scorer", "gar": "gar"},
    **{"ladr": "pre_ladr", "pre_ladr": "pre_ladr", "ladr_proactive": "pre_ladr"},
    **{"ada_ladr": "ada_ladr", "ladr_adaptive": "ada_ladr"},
}
"""The methods of an index that make an :class:`IndexTransformer`, and the method of FlexIndex that each stands for."""

for _name, _method in METHODS.items():
    if hasattr(FlexIndex, _method):
        setattr(SelfDistillIndex, _name, _bound(_name, _method))


class _VectorLoader(NumpyVectorLoader):
    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        with pt.validate.any(inp) as v:
            v.columns(includes=["docno"])
            v.columns(includes=["docid"])
        if inp.empty:
            return inp.assign(doc_vec=pd.Series(dtype=object))
        out = super().transform(inp)
        encoder = self.flex_index.encoder
        if encoder is None:
            return out
        return out.assign(doc_vec=EncodedVector.rows(np.stack(out["doc_vec"]), encoder))

    def __repr__(self) -> str:
        return f"{self.flex_index!r}.vec_loader()"


class _Indexer(FlexIndexer):
    """Builds an index beside the place where it will be, and moves it there when it is whole."""

    schematic = {"label": "Indexer"}  # noqa: RUF012

    def index(self, inp: Iterable[dict[str, Any]]) -> SelfDistillIndex:
        index: SelfDistillIndex = self._index
        records = iter(inp.to_dict(orient="records") if isinstance(inp, pd.DataFrame) else inp)
        encoders: set[EncoderIdentity] = set()
        path, mode = index.index_path, self.mode
        if path.exists() and mode is IndexingMode.create:
            raise FileExistsError(
                f"there is an index at {str(path)!r} already; search it, choose another path, or replace it with "
                "index.indexer(mode='overwrite')"
            )
        first = list(itertools.islice(records, 1))
        if not first:
            raise ValueError("there are no documents to index; the iterable is empty, or was read before")
        with atomic_folder(path, overwrite=True) as folder:
            part = FlexIndex(str(folder), verbose=index.verbose)
            part.indexer(mode="overwrite").index(_checked(itertools.chain(first, records), encoders))
            metadata = folder / METADATA_FILE
            stored = json.loads(metadata.read_text())
            if encoders:
                stored["encoder"] = next(iter(encoders))._asdict()
            metadata.write_text(json.dumps(stored) + "\n")
        index._forget()
        return index


def _checked(records: Iterable[dict[str, Any]], encoders: set[EncoderIdentity]) -> Iterator[dict[str, Any]]:
    """Checks records as they pass, and collects the encoders of their vectors."""
    seen: set[str] = set()
    for record in records:
        if missing := [name for name in ("docno", "doc_vec") if name not in record]:
            raise ValueError(
                f"a document has {list(record)}, and {' and '.join(missing)} missing; documents need a docno, and an "
                "encoder before the index: (encoder >> index).index(corpus)"
            )
        docno, vector = record["docno"], record["doc_vec"]
        if not isinstance(docno, str):
            raise TypeError(f"the docno {docno!r} is of type {type(docno).__name__}; identifiers are strings")
        if docno in seen:
            raise ValueError(f"the docno {docno!r} comes twice; each document needs an identifier of its own")
        seen.add(docno)
        encoders |= encoders_of([vector])
        if len({encoder.checksum for encoder in encoders}) > 1:
            raise EncoderMismatchError(f"vectors of several encoders: {' and '.join(map(str, encoders))}; use one")
        yield record
