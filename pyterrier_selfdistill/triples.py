"""From what PyTerrier has to what a trainer needs: triples of query, positive and negative texts.

Whatever the source, the result is :class:`Triples`: a ``datasets.Dataset`` with the columns ``query``, ``positive`` and
``negative`` (``negative_1`` to ``negative_K`` for several), and a summary of what was read and what was left out.

===========================================  ============================
Source                                       Function
===========================================  ============================
results of a pipeline, and judgements        :func:`from_results`
topics, judgements and a corpus              :func:`from_topics`
an ``irds:`` dataset with docpairs           :func:`from_docpairs`
texts in a frame, a list, a file, ...        :func:`from_texts`
===========================================  ============================
"""

from __future__ import annotations

import csv
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyterrier as pt
from datasets import Dataset
from more_itertools import chunked

from .checks import require_columns, require_count, require_judged, require_texts

Corpus: TypeAlias = pt.datasets.Dataset | pd.DataFrame | Iterable[Mapping[str, Any]]
"""A PyTerrier dataset with a corpus, a frame with ``docno`` and text, or an iterable of such records."""


class Triples(NamedTuple):
    """Training data and where it came from.

    Attributes:
        dataset: The texts, in the columns ``query``, ``positive``, ``negative`` or ``negative_1``, ..., ``negative_K``.
        summary: The source, the number of triples, and what was left out, by reason.
    """

    dataset: Dataset
    summary: dict[str, Any]


def from_results(
    results: pd.DataFrame,
    qrels: pd.DataFrame,
    *,
    negatives: int = 1,
    seed: int = 42,
    text_field: str = "text",
    corpus: Corpus | None = None,
) -> Triples:
    """Makes triples of judged positives and retrieved negatives.

    Every relevant document of a query (label 1 or more) makes one triple, with negatives drawn at random from the
    results of that query that are not judged relevant.

    Args:
        results: Retrieved documents: ``qid``, ``query``, ``docno`` and the text field.
        qrels: Judgements: ``qid``, ``docno``, ``label``.
        negatives: K, the number of negatives of a triple.
        seed: Which negatives are drawn. The draw for one positive does not depend on the other rows.
        text_field: The column with the text of documents.
        corpus: Where to find the text of relevant documents that were not retrieved; without it they are left out.

    Returns:
        The triples.

    Raises:
        ValueError: If texts are missing, topics and judgements share no query, or nothing is left to train with.

    Example:
        >>> results = pd.DataFrame([["1", "sort", "d1", "sort rows"], ["1", "sort", "d2", "plot a file"]],
        ...                        columns=["qid", "query", "docno", "text"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> from_results(results, qrels).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    require_columns(results, ["qid", "query", "docno"], "results")
    relevant = _relevant(results, qrels)
    require_texts(results, text_field, "docno")
    require_texts(results, "query", "qid")
    texts = dict(zip(results["docno"], results[text_field], strict=True))
    if corpus is not None:
        texts |= _texts(corpus, text_field, {docno for docnos in relevant.values() for docno in docnos} - texts.keys())
    retrieved = {qid: docnos.drop_duplicates().tolist() for qid, docnos in results.groupby("qid")["docno"]}
    return _draw(results, relevant, retrieved, texts, negatives, seed, source="results")


def from_topics(
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    corpus: Corpus,
    *,
    negatives: int = 1,
    seed: int = 42,
    text_field: str = "text",
) -> Triples:
    """Makes triples of judged positives and negatives drawn at random from a corpus.

    Args:
        topics: Queries: ``qid``, ``query``.
        qrels: Judgements: ``qid``, ``docno``, ``label``.
        corpus: All documents.
        negatives: K, the number of negatives of a triple.
        seed: Which negatives are drawn.
        text_field: The field with the text of documents.

    Returns:
        The triples.

    Raises:
        ValueError: As :func:`from_results`.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> from_topics(topics, qrels, corpus).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    relevant = _relevant(topics, qrels)
    require_texts(topics, "query", "qid")
    texts = _texts(corpus, text_field)
    docnos = sorted(texts)
    return _draw(topics, relevant, dict.fromkeys(topics["qid"], docnos), texts, negatives, seed, source="topics")


def from_docpairs(
    dataset: pt.datasets.Dataset,
    *,
    max_pairs_per_query: int | None = None,
    limit: int | None = None,
    text_field: str = "text",
) -> Triples:
    """Makes triples of a dataset's own training pairs.

    Args:
        dataset: A PyTerrier dataset from ir_datasets that has docpairs, such as ``irds:msmarco-passage/train``.
        max_pairs_per_query: How many pairs to keep of each query, the first ones.
        limit: How many pairs to keep in all, the first ones.
        text_field: The field with the text of documents.

    Returns:
        The triples.

    Raises:
        ValueError: If the dataset has no docpairs.

    Example:
        ::

            from_docpairs(pt.get_dataset("irds:msmarco-passage/train"), max_pairs_per_query=128)
    """
    reference = dataset.irds_ref() if hasattr(dataset, "irds_ref") else None
    if reference is None or not reference.has_docpairs():
        kinds = ("docs", "queries", "qrels", "scoreddocs")
        has = [kind for kind in kinds if reference is not None and getattr(reference, f"has_{kind}")()]
        raise ValueError(
            f"{dataset!r} has no docpairs{f' (it has {has})' if has else ''}; give its topics and qrels to fit, behind "
            "a retriever or with corpus= at the trainer"
        )
    queries = {query.query_id: query.default_text() for query in reference.queries_iter()}
    dropped: Counter[str] = Counter()
    kept = islice(_first_of_each_query(reference.docpairs_iter(), max_pairs_per_query, dropped), limit)
    rows: dict[str, list[str]] = {"query": [], "positive": [], "negative": []}
    store = reference.docs_store()
    for pairs in chunked(kept, 10_000):
        documents = store.get_many({docno for pair in pairs for docno in (pair.doc_id_a, pair.doc_id_b)})
        for pair in pairs:
            if pair.query_id not in queries:
                dropped["query without text"] += 1
            elif pair.doc_id_a not in documents or pair.doc_id_b not in documents:
                dropped["document without text"] += 1
            else:
                rows["query"].append(queries[pair.query_id])
                rows["positive"].append(getattr(documents[pair.doc_id_a], text_field))
                rows["negative"].append(getattr(documents[pair.doc_id_b], text_field))
    return _checked(Dataset.from_dict(rows), dropped, source=repr(dataset))


def from_texts(source: pd.DataFrame | Dataset | str | Path | Iterable[Any], *, limit: int | None = None) -> Triples:
    """Makes triples of texts that are there already.

    The columns are ``query`` (or ``anchor``), ``positive``, and ``negative`` or ``negative_1``, ``negative_2``, ...;
    others are left out. Rows without names are taken in this order.

    Args:
        source: A frame, a ``datasets.Dataset``, an iterable of tuples or dictionaries, or a file: TSV (with a header
            or without), CSV, JSON lines or Parquet, the text formats also with ``.gz``.
        limit: How many triples to keep, the first ones.

    Returns:
        The triples.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the columns are not those above, or texts are missing.
        TypeError: If a column holds something else than texts.

    Example:
        >>> from_texts([("sort", "sort rows", "plot a file")]).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    name = str(source) if isinstance(source, str | Path) else type(source).__name__
    if isinstance(source, str | Path):
        dataset = _read_file(Path(source))
    elif isinstance(source, Dataset):
        dataset = source
    elif isinstance(source, pd.DataFrame):
        dataset = Dataset.from_pandas(source, preserve_index=False)
    else:
        dataset = _from_records(source)
    return _checked(dataset if limit is None else dataset.take(limit), {}, source=name)


def _relevant(topics: pd.DataFrame, qrels: pd.DataFrame) -> dict[str, list[str]]:
    """Maps the queries that have topics to their relevant documents."""
    require_judged(topics, qrels)
    judged = qrels[qrels["qid"].isin(topics["qid"])]
    positive = judged[judged["label"] >= 1]
    if positive.empty:
        raise ValueError(
            f"none of the {len(judged)} judgements of these topics is of a relevant document, with a label of 1 or "
            f"more (labels are {sorted(judged['label'].unique().tolist())[:10]}); training needs some"
        )
    return {qid: docnos.drop_duplicates().tolist() for qid, docnos in positive.groupby("qid")["docno"]}


def _draw(
    topics: pd.DataFrame,
    relevant: Mapping[str, list[str]],
    candidates: Mapping[str, list[str]],
    texts: Mapping[str, str],
    negatives: int,
    seed: int,
    source: str,
) -> Triples:
    """Makes one triple of every relevant document, its negatives drawn from the candidates of its query."""
    require_count("negatives", negatives)
    rows: dict[str, list[str]] = {name: [] for name in _column_names(negatives + 2)}
    dropped: Counter[str] = Counter()
    queries = topics.drop_duplicates("qid")
    for qid, query in zip(queries["qid"], queries["query"], strict=True):
        if qid not in relevant:
            dropped["query without a relevant document"] += 1
        for docno in relevant.get(qid, []):
            generator = np.random.default_rng([seed, zlib.crc32(qid.encode()), zlib.crc32(docno.encode())])
            if docno not in texts:
                dropped["relevant document without text"] += 1
            elif not (drawn := _sample(candidates[qid], set(relevant[qid]), negatives, generator)):
                dropped[f"relevant document with fewer than {negatives} negatives"] += 1
            else:
                for name, text in zip(rows, [query, texts[docno], *(texts[other] for other in drawn)], strict=True):
                    rows[name].append(text)
    if not rows["query"]:
        raise ValueError(
            f"no triples can be made of {len(queries)} queries: {_counts(dropped)}. Retrieve more documents, or give "
            "corpus= for the text of relevant documents that are not retrieved"
        )
    return _checked(Dataset.from_dict(rows), dropped, source=source, seed=seed)


def _sample(
    candidates: Sequence[str], excluded: Collection[str], number: int, generator: np.random.Generator
) -> list[str]:
    """Draws distinct candidates that are not excluded; none if there are fewer."""
    if len(candidates) < 4 * (len(excluded) + number):
        allowed = [candidate for candidate in candidates if candidate not in excluded]
        if len(allowed) < number:
            return []
        return [allowed[index] for index in generator.choice(len(allowed), number, replace=False)]
    drawn: dict[str, None] = {}  # so few are excluded that drawing again is quicker than listing the allowed
    while len(drawn) < number:
        candidate = candidates[int(generator.integers(len(candidates)))]
        if candidate not in excluded:
            drawn[candidate] = None
    return list(drawn)


def corpus_records(corpus: Corpus) -> Iterator[Mapping[str, Any]]:
    """Iterates over the documents of a corpus, whatever its form."""
    if isinstance(corpus, pt.datasets.Dataset):
        return iter(corpus.get_corpus_iter(verbose=False))
    if isinstance(corpus, pd.DataFrame):
        return iter(corpus.to_dict(orient="records"))
    return iter(corpus)


def _texts(corpus: Corpus, text_field: str, docnos: Collection[str] | None = None) -> dict[str, str]:
    """Reads the texts of a corpus, or of some of its documents."""
    texts = {}
    for record in corpus_records(corpus):
        if "docno" not in record or text_field not in record:
            raise ValueError(f"a document of the corpus has {list(record)}; it needs 'docno' and {text_field!r}")
        if docnos is None or record["docno"] in docnos:
            texts[record["docno"]] = record[text_field]
    return texts


def _first_of_each_query(pairs: Iterable[Any], number: int | None, dropped: Counter[str]) -> Iterator[Any]:
    seen: Counter[str] = Counter()
    for pair in pairs:
        seen[pair.query_id] += 1
        if number is None or seen[pair.query_id] <= number:
            yield pair
        else:
            dropped[f"pair beyond the first {number} of its query"] += 1


def _read_file(path: Path) -> Dataset:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r} to read triples from")
    match [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]:
        case [*_, ".parquet"]:
            frame = pd.read_parquet(path)
        case [*_, ".jsonl" | ".json"]:
            frame = pd.read_json(path, lines=True, dtype=False)
        case [*_, ".csv"]:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        case [*_, ".tsv"]:
            frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE, header=None)
            header = frame.iloc[0].tolist()
            if "positive" in header:
                frame = frame.iloc[1:].set_axis(header, axis=1)
            else:
                frame = frame.set_axis(_column_names(frame.shape[1]), axis=1)
        case _:
            raise ValueError(f"{str(path)!r} is none of .tsv, .csv, .jsonl and .parquet (.gz may follow)")
    return Dataset.from_pandas(frame, preserve_index=False)


def _from_records(records: Iterable[Any]) -> Dataset:
    records = list(records)
    if not records:
        raise ValueError("the iterable of triples is empty; give (query, positive, negative) texts")
    if strange := [
        record for record in records if isinstance(record, str) or not isinstance(record, Mapping | Sequence)
    ]:
        raise TypeError(
            f"a triple is {strange[0]!r}; give tuples or dictionaries of query, positive and negative texts"
        )
    if not all(isinstance(record, Mapping) for record in records):
        if len({len(record) for record in records}) > 1:
            raise ValueError(f"the triples have different lengths: {sorted({len(record) for record in records})}")
        names = _column_names(len(records[0]))
        records = [dict(zip(names, record, strict=True)) for record in records]
    return Dataset.from_list(records)


def _column_names(number: int) -> list[str]:
    """Names columns that come without names."""
    if number < 3:
        raise ValueError(f"rows of {number} texts; triples are a query, a positive and one or more negatives")
    return ["query", "positive", *(["negative"] if number == 3 else [f"negative_{i}" for i in range(1, number - 1)])]


def _checked(dataset: Dataset, dropped: Mapping[str, int], **origin: Any) -> Triples:
    """Brings columns into the order that losses expect and checks that every text is there."""
    if "anchor" in dataset.column_names and "query" not in dataset.column_names:
        dataset = dataset.rename_column("anchor", "query")
    negatives = [name for name in dataset.column_names if re.fullmatch(r"negative(_\d+)?", name)]
    columns = ["query", "positive", *sorted(negatives, key=lambda name: int(name.partition("_")[2] or 0))]
    if not negatives or not set(columns) <= set(dataset.column_names):
        raise ValueError(
            f"triples have the columns {dataset.column_names}; they need 'query' (or 'anchor'), 'positive', and "
            "'negative' or 'negative_1', 'negative_2', ..."
        )
    dataset = dataset.select_columns(columns)
    if not len(dataset):
        raise ValueError(f"no triples are there to train with{f': {_counts(dropped)}' if dropped else ''}")
    table = dataset.with_format("arrow")[:]  # unlike dataset.data, only the rows that were selected
    for name in columns:
        column = table.column(name)
        if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            raise TypeError(f"column {name!r} holds {column.type}; training needs texts in {columns}")
        empty = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(column, ""))), 0)
        if rows := pc.indices_nonzero(empty).to_pylist():
            raise ValueError(
                f"column {name!r} has no text in {len(rows)} of {len(dataset)} triples (rows {rows[:3]}); add the "
                "texts or drop these rows"
            )
    return Triples(dataset, {**origin, "triples": len(dataset), "dropped": dict(dropped)})


def _counts(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{number} x {reason}" for reason, number in dropped.items())
