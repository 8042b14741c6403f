"""An index in shards: searching them together, and joining them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, cast

import numpy as np
import pandas as pd
import pyterrier as pt
from pydantic import Field

from ..utils.checks import (
    Expected,
    FolderPath,
    PositiveInteger,
    checked,
    load_extra,
    require_column_names,
    require_identifiers,
    without_rows,
)
from ..utils.compat import schematic
from ..utils.folders import read_json
from .files import ComparedByKey, EncodedVector, EncoderIdentity, EncoderMismatchError, is_index
from .index import SelfDistillIndex, require_comparable

MANIFEST_FILE = "shards.json"  # the file in a folder of shards that lists them in the order of their documents


def load_ray() -> Any:
    """Import Ray, with Ray Data."""
    load_extra("ray.data")
    return load_extra("ray")


class Part(NamedTuple):
    """A shard as an index describes it."""

    name: str
    documents: int
    dimension: int
    encoder: EncoderIdentity | None


def write_manifest(folder: Path, names: Sequence[str]) -> None:
    """List the shards of a folder once all of them are complete, and remove other shards."""
    unfinished = folder / f".{MANIFEST_FILE}.unfinished"
    unfinished.write_text(json.dumps({"shards": list(names)}) + "\n")
    unfinished.replace(folder / MANIFEST_FILE)
    for path in folder.iterdir():
        if path.is_dir() and path.name not in names and is_index(path):
            shutil.rmtree(path)


def read_manifest(folder: Path) -> list[Path]:
    """List the paths of the shards of a folder."""
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {MANIFEST_FILE}; give the folder of complete shards, or a list of the paths of "
            "shards"
        )
    return [folder / name for name in read_json(path, shards=list[str])["shards"]]


# How many documents are scored at once. With shards of a multiple, scores are the same to the last bit.
DOCUMENTS = 1 << 14
QUERIES = 128  # for how many queries documents are scored at once

# what Ray does for an actor that dies: it starts another one, which opens the shard again
RESTARTS = {"max_restarts": -1, "max_task_retries": 3}
ActorOptions = dict[str, Any]
Folders = Annotated[
    FolderPath | Annotated[Sequence[FolderPath], Field(min_length=1)],
    Expected("the path of a folder of shards, or a list of the paths of shards"),
]

# The best documents of a shard, the best first: their scores, positions and identifiers
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


class ShardSearcher:
    """Searches one shard: in this process, or in a Ray actor on the machine that has it."""

    def __init__(self, path: str, any_encoder: bool) -> None:
        self.shard = SelfDistillIndex(path, verbose=False, any_encoder=any_encoder)

    def describe(self) -> Part:
        """Describe the shard."""
        count, dimension = self.shard.np_vecs().shape
        return Part(str(self.shard.index_path), count, dimension, self.shard.encoder)

    def search(self, queries: pd.DataFrame, num_results: int) -> Found:
        """Find the best documents."""
        require_comparable(self.shard, queries)
        vectors = np.stack(queries["query_vec"]).astype(np.float32)
        scores, positions = search_vectors(self.shard.np_vecs(), vectors, num_results)
        return scores, positions, self.shard.docnos().fwd[positions].astype(object)


def search_vectors(documents: np.ndarray, queries: np.ndarray, num_results: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the best documents for each query by the dot product, of equal ones those that come first."""
    found = []
    for first_query in range(0, len(queries), QUERIES):
        some_queries = queries[first_query : first_query + QUERIES]
        scores = np.empty((len(some_queries), 0), dtype=np.float32)
        positions = np.empty((len(some_queries), 0), dtype=np.int64)
        for start in range(0, len(documents), DOCUMENTS):
            more = some_queries @ documents[start : start + DOCUMENTS].T
            there = np.broadcast_to(np.arange(start, start + more.shape[1]), more.shape)
            scores = np.hstack([scores, more])
            positions = np.hstack([positions, there])
            best = best_columns(scores, positions, num_results)
            scores = np.take_along_axis(scores, best, axis=1)
            positions = np.take_along_axis(positions, best, axis=1)
        found.append((scores, positions))
    return np.vstack([scores for scores, _ in found]), np.vstack([positions for _, positions in found])


def best_columns(scores: np.ndarray, positions: np.ndarray, number: int) -> np.ndarray:
    """Choose the columns of the highest scores of each row, of equal scores those of the lowest positions."""
    # the bits of floats are ordered as the floats are, and backwards below zero; adding zero makes one of both zeros
    bits = (scores + np.float32(0)).view(np.int32)
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    # one number for both, so that no two are equal, and any way to choose the lowest gives the same
    keys = positions - (ordered.astype(np.int64) << 32)
    if number < keys.shape[1]:
        chosen = np.argpartition(keys, number - 1, axis=1)[:, :number]
        order = np.argsort(np.take_along_axis(keys, chosen, axis=1), axis=1)
        return np.take_along_axis(chosen, order, axis=1)
    return np.argsort(keys, axis=1)


class ShardedIndex(ComparedByKey):
    """An index in shards, searched as one.

    Documents have the scores, but for rounding, and the ranks that one index of all shards gives them, and ``docid`` is
    their position in it. Where scores are equal, the document that comes first in the shards has the better rank.

    Args:
        shards: The folder of shards that :meth:`RayIndexer.encode` wrote, or the paths of shards in their order.
        actors: If shards are to be searched by Ray actors, one each, rather than in this process: their options, such
            as ``{"num_cpus": 4}``, for all of them or a list with those of each, such as
            ``{"resources": {"node:10.0.0.7": 0.01}}`` for a shard on the disk of that machine.
        any_encoder: Whether to go ahead with queries of an encoder that did not build the shards.

    Raises:
        FileNotFoundError: If there is no such shard.
        EncoderMismatchError: If several encoders built the shards.
        ValueError: If a shard is damaged, or the options of actors are not as many as shards.
        ImportError: If there are to be actors, and Ray is not installed.

    Example:
        >>> import tempfile
        >>> documents = [{"docno": "d1", "text": "sort the rows"}, {"docno": "d2", "text": "plot a matrix"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = [f"{folder}/first.flex", f"{folder}/second.flex"]
        ...     for path, document in zip(paths, documents):
        ...         _ = (encoder >> SelfDistillIndex(path, verbose=False)).index([document])
        ...     (encoder >> ShardedIndex(paths).retriever(num_results=1)).search("plot a matrix")["docno"].tolist()
        ['d2']
    """

    @checked
    def __init__(
        self,
        shards: Folders,
        *,
        actors: ActorOptions | Sequence[ActorOptions] | None = None,
        any_encoder: bool = False,
    ) -> None:
        if isinstance(shards, str | Path):
            self.paths = read_manifest(Path(shards).expanduser())
        else:
            self.paths = [Path(path).expanduser() for path in shards]
        self.actors = actors
        self.any_encoder = any_encoder
        self._searchers = self._make_searchers()
        self.parts: list[Part] = self._ask("describe")
        first = self.parts[0]
        for part in self.parts:
            if getattr(part.encoder, "checksum", None) != getattr(first.encoder, "checksum", None):
                raise EncoderMismatchError(
                    f"the shard {first.name!r} was built by {first.encoder}, and {part.name!r} by {part.encoder}; "
                    "encode all documents with one encoder"
                )
            if part.dimension != first.dimension:
                raise ValueError(
                    f"the vectors of the shard {part.name!r} have {part.dimension} dimensions, and {first.name!r} has "
                    f"vectors of {first.dimension}; encode all documents with one encoder"
                )

    def _make_searchers(self) -> list[Any]:
        if self.actors is None:
            return [ShardSearcher(str(path), self.any_encoder) for path in self.paths]
        options = [self.actors] * len(self.paths) if isinstance(self.actors, Mapping) else self.actors
        if len(options) != len(self.paths):
            raise ValueError(
                f"actors must be the options of all actors, or a list with those of each of {len(self.paths)} shards, "
                f"got {len(options)}"
            )
        remote = load_ray().remote(ShardSearcher)
        # actors may have another working directory
        paths = [str(path.absolute()) for path in self.paths]
        return [
            remote.options(**{**RESTARTS, **own}).remote(path, self.any_encoder)
            for path, own in zip(paths, options, strict=True)
        ]

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all searchers: one after another in this process, or at once on Ray."""
        if self.actors is None:
            return [getattr(searcher, method)(*arguments) for searcher in self._searchers]
        ray = load_ray()
        shared = [ray.put(argument) for argument in arguments]
        return cast(list[Any], ray.get([getattr(searcher, method).remote(*shared) for searcher in self._searchers]))

    @property
    def encoder(self) -> EncoderIdentity | None:
        """The encoder that built the shards, if their vectors say so."""
        return self.parts[0].encoder

    def __len__(self) -> int:
        return sum(part.documents for part in self.parts)

    def search(self, queries: pd.DataFrame, num_results: int) -> Found:
        """Find the best documents of all shards for a frame with ``query_vec``, with their positions in all shards."""
        first = 0
        found = []
        for part, of_shard in zip(self.parts, self._ask("search", queries, num_results), strict=True):
            scores, positions, docnos = of_shard
            found.append((scores, positions + first, docnos))
            first += part.documents
        scores, positions, docnos = map(np.hstack, zip(*found, strict=True))
        best = best_columns(scores, positions, num_results)
        scores, positions, docnos = (np.take_along_axis(of, best, axis=1) for of in (scores, positions, docnos))
        return scores, positions, docnos

    @checked
    def retriever(self, *, num_results: PositiveInteger = 1000, drop_query_vec: bool = False) -> ShardedRetriever:
        """Make a retriever for frames with ``qid`` and ``query_vec``, which searches all vectors of all shards."""
        return ShardedRetriever(self, num_results=num_results, drop_query_vec=drop_query_vec)

    @checked
    def join(self, path: FolderPath, *, overwrite: bool = False) -> SelfDistillIndex:
        """Write one index of all shards, which stay; this process must see their folders.

        Raises:
            FileExistsError: If there is an index already and ``overwrite`` is not set, or something else.
            ValueError: If two documents have the same identifier.
        """
        mode: Literal["create", "overwrite"] = "overwrite" if overwrite else "create"
        index = SelfDistillIndex(path, verbose=False)
        index.indexer(mode=mode).index(self._documents())
        return index

    def _documents(self) -> Iterator[dict[str, Any]]:
        for path in self.paths:
            shard = SelfDistillIndex(path, verbose=False)
            vectors: Sequence[np.ndarray] = shard.np_vecs()
            if self.encoder is not None:
                vectors = EncodedVector.rows(shard.np_vecs(), self.encoder)
            for docno, vector in zip(shard.docnos(), vectors, strict=True):
                yield {"docno": docno, "doc_vec": vector}

    def _key(self) -> tuple[Any, ...]:
        return tuple(self.paths), tuple(self.parts), self.any_encoder

    def __repr__(self) -> str:
        return f"ShardedIndex({[str(path) for path in self.paths]})"


class ShardedRetriever(ComparedByKey, pt.Transformer):
    """Find documents in the shards of an index."""

    schematic: ClassVar = schematic("ShardedRetriever")

    def __init__(self, index: ShardedIndex, *, num_results: int, drop_query_vec: bool) -> None:
        self.index = index
        self.num_results = num_results
        self.drop_query_vec = drop_query_vec

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Retrieve."""
        require_column_names(inp, "the queries")
        pt.validate.query_frame(inp, extra_columns=["query_vec"])
        kept = inp.drop(columns="query_vec") if self.drop_query_vec else inp
        if inp.empty:
            added = dict.fromkeys(["docno", "docid", "score", "rank"])
            return without_rows(kept.assign(**added), inp)
        require_identifiers(inp, "qid", "the queries")
        scores, positions, docnos = self.index.search(inp[["query_vec"]], self.num_results)
        each = scores.shape[1]
        results = kept.iloc[np.repeat(np.arange(len(kept)), each)].reset_index(drop=True)
        return results.assign(
            docno=docnos.ravel(),
            docid=positions.ravel(),
            score=scores.ravel(),
            rank=np.tile(np.arange(each), len(kept)),
        )

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Ask the shards for ``k`` documents, if that is fewer."""
        if k >= self.num_results:
            return None
        return ShardedRetriever(self.index, num_results=k, drop_query_vec=self.drop_query_vec)

    def _key(self) -> tuple[Any, ...]:
        return self.index, self.num_results, self.drop_query_vec

    def __hash__(self) -> int:
        # without the options, which change while a grid search holds the transformer as a key
        return hash(self.index)

    def __repr__(self) -> str:
        return f"{self.index!r}.retriever(num_results={self.num_results}, drop_query_vec={self.drop_query_vec})"
