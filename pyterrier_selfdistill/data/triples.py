"""From what PyTerrier has to what a trainer needs: triples of query, positive and negative texts.

Whatever the source, the result is :class:`Triples`: a ``datasets.Dataset`` with the columns ``query``, ``positive`` and
``negative`` (``negative_1`` to ``negative_K`` for several), and a summary that accounts for every row that was read.

===========================================  ============================
Source                                       Function
===========================================  ============================
results of a pipeline, and judgements        :func:`from_results`
topics, judgements and a corpus              :func:`from_topics`
an ``irds:`` dataset with docpairs           :func:`from_docpairs`
identifiers in a frame or a file             :func:`from_identifiers`
texts in a frame, a list, a file, ...        :func:`from_texts`
===========================================  ============================

Draws depend on a seed and on identifiers alone, never on the order of rows: each positive draws its negatives with a
generator of its own, and pairs are sampled and shuffled by a checksum. What comes from files and docpairs flows through
in parts, in memory that does not grow with their number, into an Arrow file that is kept for the next time.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyterrier as pt
from datasets import Dataset
from more_itertools import chunked

from ..validate import require_columns, require_distinct_columns, require_positive_integer, require_texts
from .cache import Ledger, Triples, file_signature, store
from .columns import column_names, named_columns, string_table, with_label
from .corpus import Corpus, Documents
from .readers import read_tables, tables_of
from .shuffle import read_bucket, sort_into_buckets

CHUNK = 20_000
"""How many triples get their texts at once."""


def from_docpairs(
    dataset: pt.datasets.Dataset,
    *,
    max_pairs_per_query: int | None = None,
    limit: int | None = None,
    seed: int = 42,
    text_field: str = "text",
    fields: Sequence[str] | None = None,
    store_texts: bool = True,
    verbose: bool = False,
) -> Triples:
    """Makes triples of a dataset's own training pairs, in a shuffled order.

    All pairs are read once and sorted by a checksum of seed and identifiers; those kept, of a query and in all, are the
    first in this order: a uniform sample, the same on every machine. The texts then go into an Arrow file in
    PyTerrier's home, which the same call finds again.

    Args:
        dataset: A PyTerrier dataset from ir_datasets that has docpairs, such as ``irds:msmarco-passage/train``.
        max_pairs_per_query: How many pairs to keep of each query.
        limit: How many triples to keep in all.
        seed: Which pairs are kept, and their order.
        text_field: The field with the text of documents.
        fields: The fields that make a text, such as ``["title", "text"]``, if not the text field alone.
        store_texts: Whether the texts are stored. If not, only identifiers are, and each batch looks its texts up while
            training goes on: the same triples, from a tenth of the disk and less.
        verbose: Whether to show progress bars.

    Returns:
        The triples.

    Raises:
        ValueError: If the dataset has no docpairs, or its documents lack a field.

    Example:
        ::

            from_docpairs(pt.get_dataset("irds:msmarco-passage/train"), max_pairs_per_query=128)
    """
    reference = dataset.irds_ref() if hasattr(dataset, "irds_ref") else None
    kinds = ("docs", "queries", "qrels", "scoreddocs", "docpairs")
    has = [kind for kind in kinds if reference is not None and getattr(reference, f"has_{kind}")()]
    if reference is None or not {"docs", "queries", "docpairs"} <= set(has):
        raise ValueError(
            f"{dataset!r} has no {'docpairs' if 'docpairs' not in has else 'docs or queries'}"
            f"{f' (it has {has})' if has else ''}; give its topics and qrels to fit, behind "
            "a retriever or with corpus= at the trainer"
        )
    path = Path(reference.docpairs_path()) if hasattr(reference, "docpairs_path") else None
    source = {"source": repr(dataset), "kind": "docpairs"}
    state = [source, file_signature(path)]

    def tables() -> Iterator[pa.Table]:
        pairs = reference.docpairs_iter()
        for chunk in chunked(pt.tqdm(pairs, desc="Reading docpairs", unit="pair", disable=not verbose), 200_000):
            columns = zip(*((pair.query_id, pair.doc_id_a, pair.doc_id_b) for pair in chunk), strict=True)
            yield string_table(dict(zip(column_names(3), columns, strict=True)))

    def queries() -> dict[str, str]:
        return {query.query_id: query.default_text() for query in reference.queries_iter()}

    return _from_pairs(
        tables(),
        queries,
        Documents(dataset, fields or [text_field]),
        state,
        {**source, "max_pairs_per_query": max_pairs_per_query, "limit": limit, "seed": seed},
        store_texts=store_texts,
        verbose=verbose,
    )


def from_identifiers(
    source: pd.DataFrame | str | Path | Iterable[Any],
    topics: pd.DataFrame,
    corpus: Corpus,
    *,
    max_pairs_per_query: int | None = None,
    limit: int | None = None,
    seed: int = 42,
    text_field: str = "text",
    fields: Sequence[str] | None = None,
    store_texts: bool = True,
    verbose: bool = False,
) -> Triples:
    """Makes triples of identifiers: of a query, its positive and its negatives, in a shuffled order.

    Args:
        source: Rows of identifiers, as :func:`from_texts` takes texts: without names in the order query, positive,
            negatives; with names in ``qid`` (or ``query``), ``positive`` and ``negative`` or ``negative_1``, ...
        topics: The queries: ``qid``, ``query``.
        corpus: The documents.
        max_pairs_per_query: As in :func:`from_docpairs`, and so are the other options.
        limit: How many triples to keep in all.
        seed: Which rows are kept, and their order.
        text_field: The field with the text of documents.
        fields: The fields that make a text, if not the text field alone.
        store_texts: Whether the texts are stored.
        verbose: Whether to show progress bars.

    Returns:
        The triples.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If columns are missing, a line is malformed, or no row has all its texts.
        TypeError: If an identifier is no string.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> from_identifiers([("1", "d1", "d2")], topics, corpus, store_texts=False).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    require_columns(topics, ["qid", "query"], "topics")
    require_texts(topics, "query", "qid")
    name, tables = _tables(source)
    origin = {"source": name, "kind": "identifiers"}
    keep = isinstance(source, str | Path) and isinstance(corpus, pt.datasets.Dataset)
    described = (
        [
            origin,
            file_signature(Path(name)),
            repr(corpus),
            hashlib.sha256(topics[["qid", "query"]].to_json().encode()).hexdigest(),
        ]
        if keep
        else None
    )
    return _from_pairs(
        (named_columns(table, ("qid", "query")) for table in tables),
        lambda: dict(zip(topics["qid"], topics["query"], strict=True)),
        Documents(corpus, fields or [text_field]),
        described,
        {**origin, "max_pairs_per_query": max_pairs_per_query, "limit": limit, "seed": seed},
        store_texts=store_texts,
        verbose=verbose,
    )


def from_texts(source: pd.DataFrame | Dataset | str | Path | Iterable[Any], *, limit: int | None = None) -> Triples:
    """Makes triples of texts that are there already, in their order.

    The columns are ``query`` (or ``anchor``), ``positive``, and ``negative`` or ``negative_1``, ``negative_2``, ...; a
    column ``label`` of numbers is kept for losses that need one, such as a teacher's margins for ``MarginMSELoss``;
    others are left out. Rows without names are taken in this order. Rows without a text are dropped and counted;
    equal rows are kept as they are.

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
    _require_limit("limit", limit)
    name, tables = _tables(source)
    ledger = Ledger({"source": name, "kind": "texts", "limit": limit})
    described = [ledger.origin, file_signature(Path(name))] if isinstance(source, str | Path) else None

    def checked() -> Iterator[tuple[pa.Table, pa.Table]]:
        for table in tables:
            texts = named_columns(table)
            ledger.read += len(texts)
            yield ledger.usable(texts, with_label(texts, table))

    return store(checked, ledger, limit, described, texts=False)


def _tables(source: Any) -> tuple[str, Iterator[pa.Table]]:
    """Names a source and reads it in parts."""
    if isinstance(source, str | Path):
        return str(source), read_tables(Path(source))
    name = type(source).__name__
    if isinstance(source, pd.DataFrame):
        require_distinct_columns(source, "triples")
        return name, iter([pa.Table.from_pandas(source, preserve_index=False)])
    if isinstance(source, Dataset):
        return name, iter(source.with_format("arrow").iter(batch_size=CHUNK))
    return name, tables_of((f"row {position}", row) for position, row in enumerate(source))


def _from_pairs(
    tables: Iterable[pa.Table],
    queries: Callable[[], Mapping[str, str]],
    documents: Documents,
    described: list[Any] | None,
    settings: dict[str, Any],
    *,
    store_texts: bool,
    verbose: bool,
) -> Triples:
    """Samples, shuffles and looks up what comes as identifiers."""
    for name in ("max_pairs_per_query", "limit"):
        _require_limit(name, settings[name])
    ledger = Ledger({**settings, "fields": documents.fields})
    found: dict[str, str] = {}

    def look_up(rows: Mapping[str, Sequence[str]]) -> dict[str, list[str | None]]:
        found.update({} if found else queries())
        others = [name for name in rows if name != "query"]
        texts = documents.texts({docno for name in others for docno in rows[name]})
        return {"query": [found.get(qid) for qid in rows["query"]]} | {
            name: [texts.get(docno) for docno in rows[name]] for name in others
        }

    def checked() -> Iterator[tuple[pa.Table, pa.Table]]:
        with tempfile.TemporaryDirectory(prefix="triples-") as folder:
            ledger.read = sort_into_buckets(tables, settings["seed"], Path(folder))
            seen: Counter[str] = Counter()
            bar = pt.tqdm(total=ledger.read, desc="Making triples", unit="pair", disable=not verbose)
            for path in sorted(Path(folder).iterdir()):
                frame = read_bucket(path)
                size = len(frame)
                frame = ledger.keep(frame, ~frame.duplicated(), "row that stands there twice")
                if (most := settings["max_pairs_per_query"]) is not None:
                    place = frame.groupby("query").cumcount() + frame["query"].map(seen).fillna(0)
                    seen.update(frame["query"].value_counts().to_dict())
                    frame = ledger.keep(frame, place < most, f"pair beyond {most} of its query")
                for start in range(0, len(frame), CHUNK):
                    identifiers = frame.iloc[start : start + CHUNK].to_dict(orient="list")
                    yield ledger.usable(string_table(look_up(identifiers)), string_table(identifiers))
                bar.update(size)
            bar.close()

    key = None if described is None else [described, ledger.origin, store_texts]
    made = store(checked, ledger, settings["limit"], key, texts=store_texts)
    return made if store_texts else Triples(made.dataset.with_transform(look_up), made.summary)


def _require_limit(name: str, value: int | None) -> None:
    if value is not None:
        require_positive_integer(name, value)
