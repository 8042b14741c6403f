"""Make what a trainer needs: triples of query, positive and negative texts.

Whatever the source, the result is :class:`Triples`: a ``datasets.Dataset`` with the columns ``query``, ``positive`` and
``negative`` (``negative_1`` to ``negative_K`` for several), and a summary that accounts for every row that was read.

===========================================  ========================================
Source                                       Function
===========================================  ========================================
results of a pipeline, and judgements        :func:`.negatives.from_results`
topics, judgements and a corpus              :func:`.negatives.from_topics`
an ``irds:`` dataset with docpairs           :func:`from_docpairs`
identifiers in a frame or a file             :func:`from_identifiers`
texts in a frame, a list, a file, ...        :func:`from_texts`
===========================================  ========================================

Pairs of identifiers are sampled and shuffled by a checksum of the seed and the identifiers, whatever their order. Files
and docpairs flow through in parts, in memory that does not grow with their number, into an Arrow file that the same
call finds again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyterrier as pt
from datasets import Dataset
from more_itertools import chunked

from ..validate import require_columns, require_distinct_columns, require_positive_integer, require_texts
from .cache import TripleCache, Triples, TripleWriter, file_signature
from .columns import IDENTIFIER_QUERY, add_label, column_names, select_columns, string_table
from .corpus import Corpus, Documents
from .readers import read_tables, tables_of
from .shuffle import ExternalShuffle

DOCPAIRS = 200_000
"""How many docpairs are read at once."""

TEXTS = 20_000
"""How many triples get their texts at once."""


@dataclass(frozen=True)
class PairOptions:
    """How pairs of identifiers become triples.

    Args:
        max_pairs_per_query: How many pairs to keep of each query; all if None.
        limit: How many triples to keep in all; all if None.
        seed: Which pairs are kept, and their order.
        fields: The fields that make the text of a document, such as ``("title", "text")``, joined by a space.
        store_texts: Whether the texts are stored. If not, only identifiers are, and each batch looks its texts up while
            training goes on: the same triples, from a tenth of the disk and less.
        verbose: Whether to show progress bars.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> PairOptions(limit=0)
        Traceback (most recent call last):
        ValueError: limit must be a positive integer, got 0
    """

    max_pairs_per_query: int | None = None
    limit: int | None = None
    seed: int = 42
    fields: Sequence[str] = ("text",)
    store_texts: bool = True
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.max_pairs_per_query is not None:
            require_positive_integer("max_pairs_per_query", self.max_pairs_per_query)
        if self.limit is not None:
            require_positive_integer("limit", self.limit)

    def settings(self) -> dict[str, Any]:
        """Return what the triples depend on, for their summary."""
        return {
            "max_pairs_per_query": self.max_pairs_per_query,
            "limit": self.limit,
            "seed": self.seed,
            "fields": list(self.fields),
        }


def from_docpairs(dataset: pt.datasets.Dataset, options: PairOptions = PairOptions()) -> Triples:
    """Make triples of a dataset's own training pairs, in a shuffled order.

    All pairs are read once and shuffled; those kept, of a query and in all, are the first in this order: a uniform
    sample, the same on every machine. The texts then go into an Arrow file in PyTerrier's home, which the same call
    finds again.

    Args:
        dataset: A PyTerrier dataset from ir_datasets that has docpairs, such as ``irds:msmarco-passage/train``.
        options: Which pairs to keep, and how.

    Returns:
        The triples.

    Raises:
        ValueError: If the dataset has no docpairs, or its documents lack a field.

    Example:
        ::

            options = PairOptions(max_pairs_per_query=128)
            from_docpairs(pt.get_dataset("irds:msmarco-passage/train"), options)
    """
    reference = _docpairs_reference(dataset)
    origin = {"source": repr(dataset), "kind": "docpairs", **options.settings()}
    signature = [origin, options.store_texts]
    if hasattr(reference, "docpairs_path"):
        signature.append(file_signature(Path(reference.docpairs_path())))
    cache = TripleCache(signature, origin)
    lookup = TextLookup(dataset, Documents(dataset, options.fields))
    if not cache.exists():
        _write_pairs(_read_docpairs(reference, options.verbose), lookup, options, cache)
    return _load(cache, lookup, options)


def from_identifiers(
    source: pd.DataFrame | str | Path | Iterable[Any],
    topics: pd.DataFrame,
    corpus: Corpus,
    options: PairOptions = PairOptions(),
) -> Triples:
    """Make triples of identifiers, of a query, its positive and its negatives, in a shuffled order.

    A file of identifiers of a PyTerrier dataset is kept in PyTerrier's home, as by :func:`from_docpairs`.

    Args:
        source: Rows of identifiers, as :func:`from_texts` takes texts: without names in the order query, positive,
            negatives; with names in ``qid`` (or ``query``), ``positive`` and ``negative`` or ``negative_1``, ...
        topics: The queries: ``qid``, ``query``.
        corpus: The documents.
        options: Which rows to keep, and how.

    Returns:
        The triples.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If columns are missing, a line is malformed, or no row has all its texts.
        TypeError: If an identifier is not a string.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> from_identifiers([("1", "d1", "d2")], topics, corpus, PairOptions(store_texts=False)).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    require_columns(topics, ["qid", "query"], "topics")
    require_texts(topics, "query", "qid")
    tables = _read_source(source)
    origin = {"source": _source_name(source), "kind": "identifiers", **options.settings()}
    # what is in memory has no signature that is quicker than making the triples again
    signature = None
    if isinstance(source, str | Path) and isinstance(corpus, pt.datasets.Dataset):
        queries = hashlib.sha256(topics[["qid", "query"]].to_json().encode()).hexdigest()
        signature = [origin, options.store_texts, file_signature(Path(source)), repr(corpus), queries]
    cache = TripleCache(signature, origin)
    lookup = TextLookup(topics, Documents(corpus, options.fields))
    if not cache.exists():
        _write_pairs(tables, lookup, options, cache)
    return _load(cache, lookup, options)


def from_texts(source: pd.DataFrame | Dataset | str | Path | Iterable[Any], *, limit: int | None = None) -> Triples:
    """Make triples of texts, in their order.

    The columns are ``query`` (or ``anchor``), ``positive``, and ``negative`` or ``negative_1``, ``negative_2``, ...; a
    column ``label`` of numbers is kept for losses that need one, such as a teacher's margins for ``MarginMSELoss``;
    others are left out. Rows without names are taken in this order. Rows without a text are dropped and counted;
    duplicate rows are kept as they are.

    Args:
        source: A frame, a ``datasets.Dataset``, an iterable of tuples or dictionaries, or a file: TSV (with a header
            or without), CSV, JSON lines or Parquet, the text formats also with ``.gz``. A file is read in parts and
            stored as Arrow in PyTerrier's home, where the same call finds it again.
        limit: How many triples to keep, the first ones.

    Returns:
        The triples.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the columns are not those above, a line is malformed, or no row has all its texts.
        TypeError: If a column holds something else than texts, or ``label`` something else than numbers.

    Example:
        >>> from_texts([("sort", "sort rows", "plot a file")]).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    if limit is not None:
        require_positive_integer("limit", limit)
    tables = _read_source(source)
    origin = {"source": _source_name(source), "kind": "texts", "limit": limit}
    signature = None
    if isinstance(source, str | Path):
        signature = [origin, file_signature(Path(source))]
    cache = TripleCache(signature, origin)
    if not cache.exists():
        with cache.writer(limit) as writer:
            for table in tables:
                writer.read(len(table))
                writer.add(add_label(select_columns(table), table))
                if writer.full:
                    break
    return cache.load()


class TextLookup:
    """Replaces identifiers by texts.

    It is also the transform of a dataset whose texts are not stored. Queries are read, and a docstore is opened, when
    the first batch needs them.

    Args:
        topics: The queries: a frame with ``qid`` and ``query``, or a dataset of ir_datasets.
        documents: The documents.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> lookup = TextLookup(topics, Documents([{"docno": "d1", "text": "sort rows"}], ["text"]))
        >>> lookup({"query": ["1"], "positive": ["d1"], "negative": ["d2"]})
        {'query': ['sort'], 'positive': ['sort rows'], 'negative': [None]}
    """

    def __init__(self, topics: pd.DataFrame | pt.datasets.Dataset, documents: Documents) -> None:
        self.topics = topics
        self.documents = documents

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, list[str | None]]:
        """Look up the texts of a batch of identifiers.

        Args:
            batch: Columns of identifiers: ``query``, ``positive`` and those of negatives.

        Returns:
            The same columns of texts; None for what is not known.
        """
        docnos: set[str] = set()
        for name, identifiers in batch.items():
            if name != "query":
                docnos.update(identifiers)
        # once for all columns, since reading the docstore takes most of the time
        documents = self.documents.texts(docnos)
        texts = {}
        for name, identifiers in batch.items():
            known = documents
            if name == "query":
                known = self._queries
            texts[name] = list(map(known.get, identifiers))
        return texts

    def __deepcopy__(self, memo: dict[int, Any]) -> TextLookup:
        # datasets copies a transform with each view of a dataset; a corpus in memory is not to be copied
        return self

    @cached_property
    def _queries(self) -> dict[str, str]:
        if isinstance(self.topics, pd.DataFrame):
            return dict(zip(self.topics["qid"], self.topics["query"], strict=True))
        reference = cast(Any, self.topics).irds_ref()
        return {query.query_id: query.default_text() for query in reference.queries_iter()}


def _docpairs_reference(dataset: pt.datasets.Dataset) -> Any:
    """Return the dataset of ir_datasets, which must have docpairs and their texts."""
    parts = []
    if hasattr(dataset, "irds_ref"):
        reference = dataset.irds_ref()
        kinds = ("docs", "queries", "qrels", "scoreddocs", "docpairs")
        parts = [kind for kind in kinds if getattr(reference, f"has_{kind}")()]
    missing = sorted({"docs", "queries", "docpairs"} - set(parts))
    if missing:
        raise ValueError(
            f"expected a dataset with docs, queries and docpairs, got {dataset!r} with no {' or '.join(missing)} "
            f"(it has {parts}); give its topics and qrels to fit, behind a retriever or with corpus= at the trainer"
        )
    return reference


def _read_docpairs(reference: Any, verbose: bool) -> Iterator[pa.Table]:
    identifiers = attrgetter("query_id", "doc_id_a", "doc_id_b")
    names = column_names(3)
    pairs = pt.tqdm(reference.docpairs_iter(), desc="Reading docpairs", unit="pair", disable=not verbose)
    for chunk in chunked(pairs, DOCPAIRS):
        columns = zip(*map(identifiers, chunk), strict=True)
        yield string_table(dict(zip(names, columns, strict=True)))


def _source_name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return type(source).__name__


def _read_source(source: Any) -> Iterator[pa.Table]:
    """Read rows in parts, whatever holds them; a file that is not there is an error at once."""
    if isinstance(source, str | Path):
        return read_tables(Path(source))
    if isinstance(source, pd.DataFrame):
        require_distinct_columns(source, "triples")
        return iter([pa.Table.from_pandas(source, preserve_index=False)])
    if isinstance(source, Dataset):
        return iter(source.with_format("arrow").iter(batch_size=TEXTS))
    return tables_of(_number_rows(source))


def _number_rows(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for position, row in enumerate(rows):
        yield f"row {position}", row


def _write_pairs(tables: Iterable[pa.Table], lookup: TextLookup, options: PairOptions, cache: TripleCache) -> None:
    """Sample and shuffle pairs of identifiers, look up their texts, and write them."""
    with cache.writer(options.limit) as writer, ExternalShuffle(options.seed) as shuffle:
        for table in tables:
            writer.read(len(table))
            shuffle.add(select_columns(table, IDENTIFIER_QUERY))
        sample = _QuerySample(options.max_pairs_per_query)
        with pt.tqdm(total=shuffle.rows, desc="Making triples", unit="pair", disable=not options.verbose) as bar:
            for part in shuffle.parts():
                _write_part(sample.first(part, writer), lookup, options, writer)
                bar.update(len(part))
                if writer.full:
                    break


def _write_part(pairs: pd.DataFrame, lookup: TextLookup, options: PairOptions, writer: TripleWriter) -> None:
    for start in range(0, len(pairs), TEXTS):
        identifiers = pairs.iloc[start : start + TEXTS].to_dict(orient="list")
        texts = string_table(lookup(identifiers))
        # looked up in any case: identifiers without a text are dropped now, not while training
        if options.store_texts:
            writer.add(texts)
        else:
            writer.add(texts, string_table(identifiers))
        if writer.full:
            break


class _QuerySample:
    """The first distinct pairs of each query, over all parts."""

    def __init__(self, number: int | None) -> None:
        self._number = number
        self._seen: Counter[str] = Counter()

    def first(self, pairs: pd.DataFrame, writer: TripleWriter) -> pd.DataFrame:
        """Drop duplicates, and pairs of queries that have enough."""
        # equal rows are in the same part, so that no other needs to be looked at
        is_duplicate = pairs.duplicated()
        writer.drop("duplicate row", int(is_duplicate.sum()))
        pairs = pairs[~is_duplicate]
        if self._number is None:
            return pairs
        before = pairs["query"].map(self._seen)
        is_beyond = before + pairs.groupby("query").cumcount() >= self._number
        writer.drop(f"pair beyond {self._number} of its query", int(is_beyond.sum()))
        self._seen.update(pairs["query"].value_counts().to_dict())
        return pairs[~is_beyond]


def _load(cache: TripleCache, lookup: TextLookup, options: PairOptions) -> Triples:
    """Load triples; where only identifiers are stored, their texts are looked up as they are used."""
    triples = cache.load()
    if options.store_texts:
        return triples
    return Triples(triples.dataset.with_transform(lookup), triples.summary)
