"""Indexes in shards, which can be searched together or joined."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, cast

import numpy as np
import pandas as pd
import pyterrier as pt
from more_itertools import duplicates_everseen
from pydantic import Field

from ..utils.checks import (
    Expected,
    FolderPath,
    PositiveInteger,
    checked,
    load_extra,
    require_column_names,
    require_identifiers,
)
from ..utils.compat import schematic
from ..utils.folders import atomic_file, files_of_others, read_json
from .files import ComparedByKey, EncodedVector, EncoderIdentity, EncoderMismatchError, own_files
from .index import Found, SelfDistillIndex, require_comparable, retrieved

MANIFEST_FILE = "shards.json"  # lists the shards of a folder in the order of their documents


def load_ray() -> Any:
    """Import Ray with Ray Data."""
    load_extra("ray.data")
    return load_extra("ray")


class Part(NamedTuple):
    """The description of a shard."""

    name: str
    documents: int
    dimension: int
    encoder: EncoderIdentity | None
    docnos_checksum: int


def write_manifest(folder: Path, names: Sequence[str]) -> None:
    """List the shards of a folder once all of them are complete, and remove other shards."""
    with atomic_file(folder / MANIFEST_FILE, overwrite=True) as unfinished:
        unfinished.write_text(json.dumps({"shards": list(names)}) + "\n")
    for path in folder.iterdir():
        if path.is_dir() and path.name not in names and (own := own_files(path)) and not files_of_others(path, own):
            shutil.rmtree(path)


def read_manifest(folder: Path) -> list[Path]:
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} has no {MANIFEST_FILE}; give the folder of complete shards, or a list of their paths"
        )
    return [folder / name for name in read_json(path, shards=list[str])["shards"]]


# if an actor dies, Ray starts another one, which opens the shard again
RESTARTS = {"max_restarts": -1, "max_task_retries": 3}
ActorOptions = dict[str, Any]
Folders = Annotated[
    FolderPath | Annotated[Sequence[FolderPath], Field(min_length=1)],
    Expected("the path of a folder of shards, or a list of the paths of shards"),
]


class ShardSearcher:
    """Searches one shard, in this process or in a Ray actor on the machine that stores it."""

    def __init__(self, path: str, any_encoder: bool) -> None:
        self.shard = SelfDistillIndex(path, verbose=False, any_encoder=any_encoder)
        # a snapshot of the files, even if they are replaced
        self.searching = self.shard.np_retriever()

    def describe(self) -> Part:
        _, vectors, metadata = self.shard.payload()
        count, dimension = vectors.shape
        return Part(str(self.shard.index_path), count, dimension, self.shard.encoder, metadata["docnos_checksum"])

    def search(self, queries: pd.DataFrame, num_results: int) -> Found:
        require_comparable(self.shard, queries)
        scores, positions, docnos = map(np.stack, self.searching.inner.search(queries, num_results))
        return scores, positions, docnos.astype(object)


class ShardedIndex(ComparedByKey):
    """An index in several shards that you search like a single index.

    You get the same ranks, scores (up to rounding) and positions (``docid``) as from a single index of all shards. On
    ties, the document that comes first in the shards ranks higher.

    Args:
        shards: The folder of shards that :meth:`RayIndexer.encode` wrote, or the paths of shards in their order.
        actors: Options of Ray actors, such as ``{"num_cpus": 4}``, to search each shard in a separate actor instead of
            this process. Pass a list to give each actor its options: for example, ``{"resources": {"node:10.0.0.7":
            0.01}}`` for a shard on the disk of that machine.
        any_encoder: Whether to allow queries of an encoder that did not build the shards.

    Raises:
        FileNotFoundError: If a shard does not exist.
        EncoderMismatchError: If several encoders built the shards.
        ValueError: If a shard is damaged or given twice, or the numbers of shards and actor options differ.
        ImportError: If you pass ``actors`` and Ray is not installed.

    Example:
        >>> import tempfile
        >>> documents = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot"}]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = [f"{folder}/first.flex", f"{folder}/second.flex"]
        ...     for path, document in zip(paths, documents):
        ...         _ = (encoder >> SelfDistillIndex(path, verbose=False)).index([document])
        ...     retriever = encoder >> ShardedIndex(paths).retriever(num_results=1)
        ...     retriever.search("plot")["docno"].tolist()
        ['d2']
    """

    @checked
    def __init__(
        self, shards: Folders, *, actors: ActorOptions | Sequence[ActorOptions] | None = None, any_encoder: bool = False
    ) -> None:
        if isinstance(shards, str | Path):
            self.paths = read_manifest(Path(shards).expanduser())
        else:
            self.paths = [Path(path).expanduser() for path in shards]
        self.actors, self.any_encoder = actors, any_encoder
        self._searchers = self._make_searchers()
        self.parts: list[Part] = self._ask("describe")
        first = self.parts[0]
        # compare documents, since a path may name different folders on different machines
        for part in duplicates_everseen(self.parts, key=lambda part: (part.documents, part.docnos_checksum)):
            raise ValueError(
                f"the shard {part.name!r} was given twice, or another shard has the same documents, which would be "
                "listed twice in results; give each shard once"
            )
        for part in self.parts:
            if getattr(part.encoder, "checksum", None) != getattr(first.encoder, "checksum", None):
                raise EncoderMismatchError(
                    f"the shard {first.name!r} was built by {first.encoder}, and {part.name!r} by {part.encoder}; "
                    "encode all documents with one encoder"
                )
            if part.dimension != first.dimension:
                raise ValueError(
                    f"the vectors of the shard {part.name!r} have {part.dimension} dimensions, but the vectors of "
                    f"{first.name!r} have {first.dimension}; encode all documents with one encoder"
                )

    def _make_searchers(self) -> list[Any]:
        if self.actors is None:
            return [ShardSearcher(str(path), self.any_encoder) for path in self.paths]
        options = [self.actors] * len(self.paths) if isinstance(self.actors, Mapping) else self.actors
        if len(options) != len(self.paths):
            raise ValueError(
                f"actors must be the options of all actors, or a list with options for each of {len(self.paths)} "
                f"shards, got {len(options)}; give one for each"
            )
        remote = load_ray().remote(ShardSearcher)
        # actors may have another working directory
        paths = [str(path.absolute()) for path in self.paths]
        return [
            remote.options(**{**RESTARTS, **own}).remote(path, self.any_encoder)
            for path, own in zip(paths, options, strict=True)
        ]

    def _ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of all searchers, one by one in this process or in parallel on Ray."""
        if self.actors is None:
            return [getattr(searcher, method)(*arguments) for searcher in self._searchers]
        ray = load_ray()
        shared = [ray.put(argument) for argument in arguments]
        return cast(list[Any], ray.get([getattr(searcher, method).remote(*shared) for searcher in self._searchers]))

    @property
    def encoder(self) -> EncoderIdentity | None:
        """The encoder that built the shards, if it is known."""
        return self.parts[0].encoder

    def __len__(self) -> int:
        return sum(part.documents for part in self.parts)

    def search(self, queries: pd.DataFrame, num_results: int) -> Found:
        """Find the best documents of all shards for a frame with ``query_vec``; positions count over all shards."""
        firsts = accumulate((part.documents for part in self.parts[:-1]), initial=0)
        of_shards = zip(firsts, self._ask("search", queries, num_results), strict=True)
        found = [(scores, positions + first, docnos) for first, (scores, positions, docnos) in of_shards]
        scores, positions, docnos = map(np.hstack, zip(*found, strict=True))
        best = np.lexsort((positions, -scores))[:, :num_results]
        return cast(Found, tuple(np.take_along_axis(of, best, axis=1) for of in (scores, positions, docnos)))

    @checked
    def retriever(self, *, num_results: PositiveInteger = 1000, drop_query_vec: bool = False) -> ShardedRetriever:
        """Make a retriever for frames with ``qid`` and ``query_vec`` that searches all vectors of all shards."""
        return ShardedRetriever(self, num_results=num_results, drop_query_vec=drop_query_vec)

    @checked
    def join(self, path: FolderPath, *, overwrite: bool = False) -> SelfDistillIndex:
        """Join the shards into a single index and keep them. This process must have access to their folders.

        Raises:
            FileExistsError: If the path exists and ``overwrite`` is not set, or it is not an index.
            ValueError: If two documents have the same identifier.
        """
        index = SelfDistillIndex(path, verbose=False)
        index.indexer(mode="overwrite" if overwrite else "create").index(self._documents())
        return index

    def _documents(self) -> Iterator[dict[str, Any]]:
        for path in self.paths:
            shard = SelfDistillIndex(path, verbose=False)
            vectors: Any = np.asarray(shard.np_vecs())
            if self.encoder is not None:
                vectors = EncodedVector.rows(vectors, self.encoder)
            for docno, vector in zip(shard.docnos(), vectors, strict=True):
                yield {"docno": docno, "doc_vec": vector}

    def _key(self) -> tuple[Any, ...]:
        return tuple(self.paths), tuple(self.parts), self.any_encoder

    def __repr__(self) -> str:
        return f"ShardedIndex({[str(path) for path in self.paths]})"


class ShardedRetriever(ComparedByKey, pt.Transformer):
    """Retriever over the shards of an index."""

    schematic: ClassVar = schematic("ShardedRetriever")

    def __init__(self, index: ShardedIndex, *, num_results: int, drop_query_vec: bool) -> None:
        self.index, self.num_results, self.drop_query_vec = index, num_results, drop_query_vec

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        require_column_names(inp, "the queries")
        if not inp.empty:
            require_identifiers(inp, "qid", "the queries")
        return retrieved(inp, partial(self.index.search, num_results=self.num_results), self.drop_query_vec)

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        if k >= self.num_results:
            return None
        return ShardedRetriever(self.index, num_results=k, drop_query_vec=self.drop_query_vec)

    def _key(self) -> tuple[Any, ...]:
        return self.index, self.num_results, self.drop_query_vec

    def __hash__(self) -> int:
        # without the options, which a grid search changes while it uses the transformer as a key
        return hash(self.index)

    def __repr__(self) -> str:
        return f"{self.index!r}.retriever(num_results={self.num_results}, drop_query_vec={self.drop_query_vec})"
