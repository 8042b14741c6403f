"""Pairs of identifiers become triples of texts.

All pairs are shuffled by a checksum of the seed and the identifiers, whatever their order. Those that are kept, of a
query and in all, are the first that can be trained with: a uniform sample, the same on every machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyterrier as pt

from ..options import FieldNames, PositiveInteger, Seed, checked
from .cache import TripleCache, Triples, TripleWriter, usable_rows
from .columns import string_table
from .corpus import Documents
from .shuffle import ExternalShuffle
from .signatures import Signature, part_signature, texts_signature

TEXTS = 20_000
"""How many triples get their texts at once."""


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
                known = self._queries
            texts[name] = list(map(known.get, identifiers))
        return texts

    def signature(self) -> Signature:
        """Describe queries and documents by what changes when they do; None if nothing says what the documents are."""
        documents = part_signature(self.documents.corpus, "docs")
        if documents is None:
            return None
        queries = part_signature(self.topics, "queries")
        if queries is None:
            queries = texts_signature(self._queries)
        return [queries, documents]

    def __deepcopy__(self, memo: dict[int, Any]) -> TextLookup:
        # datasets copies a transform with each view of a dataset; a corpus in memory is not to be copied
        return self

    @cached_property
    def _queries(self) -> dict[str, str]:
        if isinstance(self.topics, pd.DataFrame):
            return dict(zip(self.topics["qid"], self.topics["query"], strict=True))
        reference = cast(Any, self.topics).irds_ref()
        return {query.query_id: query.default_text() for query in reference.queries_iter()}


def triples_of_pairs(
    tables: Iterable[pa.Table], pairs: Signature, lookup: TextLookup, options: PairOptions, origin: Mapping[str, Any]
) -> Triples:
    """Make triples of pairs of identifiers, or find those that were made of the same pairs and texts.

    Args:
        tables: The pairs: ``query``, ``positive`` and the columns of negatives.
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
    with cache.writer(options.limit) as writer, ExternalShuffle(options.seed) as shuffle:
        for table in tables:
            writer.read(len(table))
            shuffle.add(table)
        sample = _QuerySample(options.max_pairs_per_query)
        with pt.tqdm(total=shuffle.rows, desc="Making triples", unit="pair", disable=not options.verbose) as bar:
            for part in shuffle.parts():
                # equal rows are in the same part, so that no other needs to be looked at
                distinct = part.drop_duplicates()
                writer.drop("duplicate row", len(part) - len(distinct))
                _write_part(distinct, lookup, sample, writer, store_texts=options.store_texts)
                bar.update(len(part))
                if writer.full:
                    break


def _write_part(
    pairs: pd.DataFrame, lookup: TextLookup, sample: _QuerySample, writer: TripleWriter, *, store_texts: bool
) -> None:
    for start in range(0, len(pairs), TEXTS):
        some = pairs.iloc[start : start + TEXTS]
        wanted = some[sample.has_room(some["query"])]
        texts = string_table(lookup(wanted.to_dict(orient="list")))
        is_first = sample.take(wanted["query"], usable_rows(texts))
        writer.drop(f"pair beyond {sample.number} of its query", len(some) - int(is_first.sum()))
        texts = texts.filter(pa.array(is_first))
        # looked up in any case: identifiers without a text are dropped now, not while training
        if store_texts:
            writer.add(texts)
        else:
            writer.add(texts, string_table(wanted[is_first].to_dict(orient="list")))
        if writer.full:
            break


class _QuerySample:
    """The first pairs of each query that can be trained with, over all parts."""

    def __init__(self, number: int | None) -> None:
        self.number = number
        self._taken: Counter[str] = Counter()

    def has_room(self, queries: pd.Series) -> np.ndarray:
        """Mark the pairs of queries that do not have enough yet."""
        if self.number is None:
            return np.ones(len(queries), dtype=bool)
        return self._count_taken(queries) < self.number

    def take(self, queries: pd.Series, usable: np.ndarray) -> np.ndarray:
        """Mark the pairs up to those with which their queries have enough, usable or not."""
        if self.number is None:
            return np.ones(len(queries), dtype=bool)
        number = pd.Series(usable.astype(int), index=queries.index)
        before = self._count_taken(queries) + (number.groupby(queries).cumsum() - number).to_numpy()
        is_first = before < self.number
        self._taken.update(queries[is_first & usable])
        return is_first

    def _count_taken(self, queries: pd.Series) -> np.ndarray:
        return np.array([self._taken[query] for query in queries], dtype=int)
