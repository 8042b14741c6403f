"""Pairs of identifiers become triples of texts.

All pairs are shuffled by a checksum of the seed and the identifiers, whatever their order. Those that are kept, of a
query and in all, are the first that can be trained with: a uniform sample, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyterrier as pt

from ..options import FieldNames, PositiveInteger, Seed, checked
from .cache import TripleCache, Triples, TripleWriter, find_faults
from .corpus import Documents
from .shuffle import BUCKETS, ExternalShuffle, Part
from .signatures import Signature, part_signature, texts_signature
from .text_table import TextTable

TEXTS = 20_000
"""How many triples get their texts at once."""

LOOKUPS = 200_000
"""Of how many pairs the texts are looked up at once."""

MARGIN = 2
"""How many times as many pairs as triples are wanted are shuffled, at least: some have no text, or too many others."""

NO_TEXT = pa.scalar(0, pa.uint64())
"""What stands for no text where checksums stand for texts."""


@checked
@dataclass(frozen=True)
class PairOptions:
    """How pairs of identifiers become triples.

    Args:
        max_pairs_per_query: How many pairs to keep of each query, of those that can be trained with; all if None.
        limit: How many triples to keep in all; all if None.
        seed: Which pairs are kept, and their order.
        fields: The fields that make the text of a document, such as ``("title", "text")``, joined by a space.
        store_texts: Whether the texts are stored. If not, only identifiers are, and each batch looks its texts up while
            training goes on: the same triples, from a tenth of the disk and less.
        verbose: Whether to show progress bars.

    Raises:
        ValueError: If an option is not of its type, or a number not positive.

    Example:
        >>> PairOptions(limit=0)
        Traceback (most recent call last):
        ValueError: limit must be a positive integer, got 0
    """

    max_pairs_per_query: PositiveInteger | None = None
    limit: PositiveInteger | None = None
    seed: Seed = 42
    fields: FieldNames = ("text",)
    store_texts: bool = True
    verbose: bool = False

    def settings(self) -> dict[str, Any]:
        """Return what the triples depend on, for their summary."""
        return {
            "max_pairs_per_query": self.max_pairs_per_query,
            "limit": self.limit,
            "seed": self.seed,
            "fields": list(self.fields),
        }


ALL_PAIRS = PairOptions()
"""All pairs, in the order of the default seed."""


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
                known = self.queries
            texts[name] = list(map(known.get, identifiers))
        return texts

    def signature(self) -> Signature:
        """Describe queries and documents by what changes when they do; None if nothing says what the documents are."""
        documents = part_signature(self.documents.corpus, "docs")
        if documents is None:
            return None
        queries = part_signature(self.topics, "queries")
        if queries is None:
            queries = texts_signature(self.queries)
        return [queries, documents]

    def __deepcopy__(self, memo: dict[int, Any]) -> TextLookup:
        # datasets copies a transform with each view of a dataset; a corpus in memory is not to be copied
        return self

    @cached_property
    def queries(self) -> dict[str, str]:
        """The texts of all queries."""
        if isinstance(self.topics, pd.DataFrame):
            return dict(zip(self.topics["qid"], self.topics["query"], strict=True))
        reference = cast(Any, self.topics).irds_ref()
        return {query.query_id: query.default_text() for query in reference.queries_iter()}


def triples_of_pairs(
    tables: Iterable[pa.Table], pairs: Signature, lookup: TextLookup, options: PairOptions, origin: Mapping[str, Any]
) -> Triples:
    """Make triples of pairs of identifiers, or find those that were made of the same pairs and texts.

    Args:
        tables: The pairs: ``query``, ``positive`` and the columns of negatives. Those of an iterator all go to disk;
            what can be read again is read more than once if need be, so that a ``limit`` needs little disk.
        pairs: What identifies the pairs; None if nothing does.
        lookup: The texts.
        options: Which pairs to keep, and how.
        origin: The source and the settings, with which the summary begins.

    Returns:
        The triples.

    Raises:
        ValueError: If no pair has all its texts.

    Example:
        >>> pairs = pa.table({"query": ["1", "1"], "positive": ["d1", "d1"], "negative": ["d2", "d9"]})
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> lookup = TextLookup(topics, Documents(corpus, ["text"]))
        >>> triples = triples_of_pairs([pairs], None, lookup, PairOptions(), {"source": "a table"})
        >>> triples.dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
        >>> triples.summary["dropped"]
        {"no text in 'negative'": 1}
    """
    cache = _find_cache(pairs, lookup, options, origin)
    if not cache.exists():
        # a docstore is built, and documents downloaded, only now that they are needed; then it has a signature
        lookup.documents.texts([])
        cache = _find_cache(pairs, lookup, options, origin)
    if not cache.exists():
        _write_pairs(tables, lookup, options, cache)
    triples = cache.load()
    if options.store_texts:
        return triples
    return Triples(triples.dataset.with_transform(lookup), triples.summary)


def _find_cache(pairs: Signature, lookup: TextLookup, options: PairOptions, origin: Mapping[str, Any]) -> TripleCache:
    texts = lookup.signature()
    if pairs is None or texts is None:
        return TripleCache(None, origin)
    return TripleCache([origin, options.store_texts, pairs, texts], origin)


def _write_pairs(tables: Iterable[pa.Table], lookup: TextLookup, options: PairOptions, cache: TripleCache) -> None:
    """Sample and shuffle pairs of identifiers, look up their texts, and write them."""
    with cache.writer(options.limit) as writer, PairTexts(lookup) as texts:
        sample = QuerySample(options.max_pairs_per_query)
        start = 0
        while start < BUCKETS and not writer.full:
            with ExternalShuffle(options.seed, start=start, enough=_enough(writer, tables)) as shuffle:
                for table in tables:
                    shuffle.add(table)
                if start == 0:
                    writer.read(shuffle.rows)
                _write_parts(shuffle, texts, sample, writer, options)
            # where the limit is not reached yet, the pairs are read again
            start = shuffle.stop


def _enough(writer: TripleWriter, tables: Iterable[pa.Table]) -> int | None:
    """Return how many pairs will probably do; all, if there is no limit, or they cannot be read again."""
    if writer.room is None or isinstance(tables, Iterator):
        return None
    return MARGIN * writer.room


def _write_parts(
    shuffle: ExternalShuffle, texts: PairTexts, sample: QuerySample, writer: TripleWriter, options: PairOptions
) -> None:
    with pt.tqdm(total=shuffle.kept, desc="Making triples", unit="pair", disable=not options.verbose) as bar:
        for part in shuffle.parts():
            # equal rows are in the same part, so that no other needs to be looked at
            distinct = part.distinct()
            writer.drop("duplicate row", len(part.rows) - len(distinct.rows))
            for start in range(0, len(distinct.rows), LOOKUPS):
                _write_rows(distinct.slice(start, LOOKUPS), texts, sample, writer, options)
                if writer.full:
                    return
            bar.update(len(part.rows))


def _write_rows(part: Part, texts: PairTexts, sample: QuerySample, writer: TripleWriter, options: PairOptions) -> None:
    """Write the rows of a part, and count those that are not kept."""
    queries = texts.find("query", part)
    has_room = sample.has_room(queries)
    positions = {"query": queries}
    for name in part.rows.column_names[1:]:
        positions[name] = np.zeros(len(queries), dtype=np.int32)
        # reading documents takes most of the time
        positions[name][has_room] = texts.find(name, part.take(np.flatnonzero(has_room)))
    for start in range(0, len(queries), TEXTS):
        block = np.arange(start, min(start + TEXTS, len(queries)))
        wanted = block[has_room[block]]
        is_first = sample.take(queries[wanted], texts.usable(positions, wanted))
        writer.drop(f"pair beyond {sample.number} of its query", len(block) - int(is_first.sum()))
        first = wanted[is_first]
        # identifiers without a text are dropped now, not while training
        usable = writer.find_usable(texts.trimmed(positions, first), NO_TEXT)
        kept = first[usable][: writer.room]
        identifiers = None
        if not options.store_texts:
            identifiers = part.rows.take(pa.array(kept))
        query_checksums = texts.checksums("query", queries[kept])
        positive_checksums = texts.checksums("positive", positions["positive"][kept])
        writer.keep(texts.take(positions, kept), query_checksums, positive_checksums, identifiers)
        if writer.full:
            break


class PairTexts:
    """The texts of pairs, each looked up once; the files that they are in go with the context.

    A text of a pair has a position, an integer. ``positions`` are those of each column, of shape ``(pairs,)``.

    Args:
        lookup: What looks them up.
    """

    def __init__(self, lookup: TextLookup) -> None:
        self._queries = TextTable(lambda identifiers: lookup.queries)
        self._documents = TextTable(lookup.documents.texts)

    def __enter__(self) -> PairTexts:
        self._stack = ExitStack()
        self._stack.enter_context(self._queries)
        self._stack.enter_context(self._documents)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def find(self, name: str, part: Part) -> np.ndarray:
        """Find the positions of the texts of a column."""
        return self._table(name).find(part.rows[name], part.checksums[name])

    def checksums(self, name: str, positions: np.ndarray) -> np.ndarray:
        """Return the checksums of texts of a column."""
        return self._table(name).checksums[positions]

    def trimmed(self, positions: Mapping[str, np.ndarray], rows: np.ndarray) -> pa.Table:
        """Return the checksums of the texts of some rows, without white space around; :data:`NO_TEXT` if none is."""
        columns = {name: self._table(name).trimmed[column[rows]] for name, column in positions.items()}
        return pa.table(columns)

    def usable(self, positions: Mapping[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Mark those of some rows that can be trained with."""
        usable = np.ones(len(rows), dtype=bool)
        for _, is_faulty in find_faults(self.trimmed(positions, rows), NO_TEXT):
            usable &= ~is_faulty
        return usable

    def take(self, positions: Mapping[str, np.ndarray], rows: np.ndarray) -> pa.Table:
        """Return the texts of some rows."""
        return pa.table({name: self._table(name).take(column[rows]) for name, column in positions.items()})

    def _table(self, name: str) -> TextTable:
        if name == "query":
            return self._queries
        return self._documents


class QuerySample:
    """The first pairs of each query that can be trained with, over all parts.

    Queries are integers from 0.

    Args:
        number: How many pairs to keep of each; all if None.

    Example:
        >>> sample = QuerySample(1)
        >>> sample.take(np.array([0, 1, 0, 1]), np.array([True, False, True, True])).tolist()
        [True, True, False, True]
        >>> sample.has_room(np.array([0, 1, 2])).tolist()
        [False, False, True]
    """

    def __init__(self, number: int | None) -> None:
        self.number = number
        self._taken = np.zeros(0, dtype=int)

    def has_room(self, queries: np.ndarray) -> np.ndarray:
        """Mark the pairs of queries that do not have enough yet."""
        if self.number is None:
            return np.ones(len(queries), dtype=bool)
        return self._count_taken(queries) < self.number

    def take(self, queries: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Mark the pairs up to those with which their queries have enough, usable or not."""
        if self.number is None:
            return np.ones(len(queries), dtype=bool)
        number = pd.Series(usable.astype(int))
        before = self._count_taken(queries) + (number.groupby(queries).cumsum() - number).to_numpy()
        is_first = before < self.number
        np.add.at(self._taken, queries[is_first & usable], 1)
        return is_first

    def _count_taken(self, queries: np.ndarray) -> np.ndarray:
        size = int(queries.max(initial=-1)) + 1
        if size > len(self._taken):
            self._taken = np.append(self._taken, np.zeros(size - len(self._taken), dtype=int))
        return self._taken[queries]
