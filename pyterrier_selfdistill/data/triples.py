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

Pairs of identifiers are sampled and shuffled, and get their texts, in :mod:`.pairs`. Files and docpairs flow through in
parts, in memory that does not grow with their number, into an Arrow file that the same call finds again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyterrier as pt
from datasets import Dataset

from ..options import PositiveInteger, checked
from ..validate import require_distinct_columns, require_topics
from .cache import TripleCache, Triples
from .columns import IDENTIFIER_QUERY, TEXT_QUERY, add_label, select_columns
from .corpus import Corpus, Documents
from .docpairs import Docpairs
from .pairs import ALL_PAIRS, PairOptions, TextLookup, triples_of_pairs
from .readers import ROWS, read_tables, tables_of
from .signatures import file_signature, part_signature


@checked
def from_docpairs(dataset: pt.datasets.Dataset, options: PairOptions = ALL_PAIRS) -> Triples:
    """Make triples of a dataset's own training pairs, in a shuffled order.

    All pairs are read once and shuffled; those kept, of a query and in all, are the first in this order: a uniform
    sample, the same on every machine. The texts then go into an Arrow file in PyTerrier's home, which the same call
    finds again, until pairs, queries or documents change.

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
    lookup = TextLookup(dataset, Documents(dataset, options.fields))
    tables = Docpairs(reference, verbose=options.verbose)
    return triples_of_pairs(tables, part_signature(dataset, "docpairs"), lookup, options, origin)


@checked
def from_identifiers(
    source: Any,
    topics: pd.DataFrame,
    corpus: Corpus,
    options: PairOptions = ALL_PAIRS,
) -> Triples:
    """Make triples of identifiers, of a query, its positive and its negatives, in a shuffled order.

    Triples of a file are kept in PyTerrier's home, as by :func:`from_docpairs`, where the corpus is of ir_datasets.

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
        TypeError: If an identifier or a text is not a string.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> from_identifiers([("1", "d1", "d2")], topics, corpus, PairOptions(store_texts=False)).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    require_topics(topics)
    tables = _read_source(source, identifiers=True)
    origin = {"source": _source_name(source), "kind": "identifiers", **options.settings()}
    lookup = TextLookup(topics, Documents(corpus, options.fields))
    # what is in memory has no signature that is quicker than making the triples again
    signature = None
    if isinstance(source, str | Path):
        signature = file_signature(Path(source))
    return triples_of_pairs(tables, signature, lookup, options, origin)


@checked
def from_texts(source: Any, *, limit: PositiveInteger | None = None) -> Triples:
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
                writer.add(table)
                if writer.full:
                    break
    return cache.load()


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


def _source_name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return type(source).__name__


def _read_source(source: Any, *, identifiers: bool = False) -> Iterator[pa.Table]:
    """Read the columns of triples in parts, whatever holds them; a file that is not there is an error at once."""
    if isinstance(source, str | Path):
        tables = read_tables(Path(source), labels=not identifiers)
    elif isinstance(source, pd.DataFrame):
        require_distinct_columns(source, "triples")
        if source.empty:
            raise ValueError(f"no triples are there to train with: the frame has no rows, of {list(source.columns)}")
        tables = iter([_table_of_frame(source)])
    elif isinstance(source, Dataset):
        tables = iter(source.with_format("arrow").iter(batch_size=ROWS))
    elif isinstance(source, Iterable):
        tables = tables_of(_number_rows(source), labels=not identifiers)
    else:
        raise TypeError(
            f"source must be a frame, a datasets.Dataset, an iterable of rows, or the path of a file, got {source!r}"
        )
    return _select(tables, _source_name(source), identifiers)


def _select(tables: Iterable[pa.Table], name: str, identifiers: bool) -> Iterator[pa.Table]:
    """Select the columns of triples; errors begin with the name of the source."""
    for table in tables:
        try:
            if identifiers:
                selected = select_columns(table, IDENTIFIER_QUERY)
            else:
                selected = add_label(select_columns(table, TEXT_QUERY), table)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: {error}") from None
        yield selected


def _table_of_frame(frame: pd.DataFrame) -> pa.Table:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, UnicodeEncodeError) as error:
        raise TypeError(
            f"triples must have columns of one type each, such as texts, got {list(frame.columns)} with others: {error}"
        ) from None


def _number_rows(rows: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for position, row in enumerate(rows):
        yield f"row {position}", row
