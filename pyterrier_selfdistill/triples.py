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
import re
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyterrier as pt
from datasets import Dataset
from more_itertools import chunked

from .checks import require_columns, require_count, require_distinct_columns, require_judged, require_texts
from .corpus import Corpus, Documents
from .files import read_tables, tables_of
from .ledger import LABEL, Ledger, Triples, counts, stamp, store

CHUNK = 20_000
"""How many triples get their texts at once."""

BUCKETS = 256
"""Into how many parts pairs are sorted on disk; each part is in memory at once."""

SPARE = 8
"""How many more negatives than needed are drawn from a corpus, for those that turn out to repeat a positive's text."""


@dataclass(frozen=True)
class Negatives:
    """Which of the results of a query become negatives.

    Args:
        number: K, the number of negatives of a triple.
        range_min: How many of the best results never to draw, since they are often relevant without being judged so.
        range_max: The rank after which results are not drawn.
        relative_margin: Leaves suspects out: results that score more than (1 - ``relative_margin``) of what the
            positive scores. A positive that was not retrieved has no score and suspects nothing.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> Negatives(4, range_min=10, range_max=100, relative_margin=0.05)
        Negatives(number=4, range_min=10, range_max=100, relative_margin=0.05)
    """

    number: int = 1
    range_min: int = 0
    range_max: int | None = None
    relative_margin: float | None = None

    def __post_init__(self) -> None:
        require_count("negatives", self.number)
        if self.range_min != 0:
            require_count("range_min", self.range_min)
        if self.range_max is not None:
            require_count("range_max", self.range_max)
            if self.range_max < self.range_min + self.number:
                raise ValueError(
                    f"ranks {self.range_min} to {self.range_max} have fewer than {self.number} results; widen them"
                )
        if self.relative_margin is not None and not 0 <= self.relative_margin <= 1:
            raise ValueError(f"relative_margin={self.relative_margin!r} is no share; give a number from 0 to 1")


def from_results(
    results: pd.DataFrame,
    qrels: pd.DataFrame,
    *,
    negatives: Negatives = Negatives(),
    min_label: int = 1,
    seed: int = 42,
    text_field: str = "text",
    corpus: Corpus | None = None,
    fields: Sequence[str] | None = None,
) -> Triples:
    """Makes triples of judged positives and retrieved negatives.

    Every relevant document of a query makes one triple, with negatives drawn at random from the results of that query.
    Documents with any label above 0, and those with the text of a positive, are never drawn.

    Args:
        results: Retrieved documents: ``qid``, ``query``, ``docno``, the text field unless there is a ``corpus``, and
            ``score`` or ``rank`` where the order of rows is not that of ranks.
        qrels: Judgements: ``qid``, ``docno``, ``label``. Their number is the ``read`` of the summary.
        negatives: How many negatives, and which.
        min_label: The lowest label of a positive.
        seed: Which negatives are drawn. The draw for one positive does not depend on the other rows.
        text_field: The column with the text of documents.
        corpus: Where to find texts that the results lack, as of relevant documents that were not retrieved.
        fields: The fields of the corpus that make a text, if not the text field alone.

    Returns:
        The triples.

    Raises:
        ValueError: If there are no texts, topics and judgements share no query, or nothing is left to train with.
        TypeError: If identifiers or texts are no strings, or labels no numbers.

    Example:
        >>> results = pd.DataFrame([["1", "sort", "d1", "sort rows"], ["1", "sort", "d2", "plot a file"]],
        ...                        columns=["qid", "query", "docno", "text"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> from_results(results, qrels).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    require_columns(results, ["qid", "query", "docno"], "results")
    judged = _Judged(results, qrels, min_label)
    require_texts(results, "query", "qid")
    texts: dict[str, str] = {}
    if text_field in results or corpus is None:
        require_texts(results, text_field, "docno", empty=True, missing=True)
        with_text = results[[isinstance(text, str) and bool(text.strip()) for text in results[text_field]]]
        if corpus is None and with_text.empty:
            require_texts(results, text_field, "docno")
        texts = dict(zip(with_text["docno"], with_text[text_field], strict=True))
    if corpus is not None:
        wanted = set(results["docno"]).union(*judged.relevant.values())
        texts |= Documents(corpus, fields or [text_field]).texts(sorted(wanted - texts.keys()))

    scores = _scores(results)
    window = slice(negatives.range_min, negatives.range_max)
    drawn: dict[tuple[str, str], list[str]] = {}
    for qid, docnos in judged.positives.items():
        ranked = list(scores[qid])[window]
        for docno in docnos:
            allowed = [
                other
                for other in ranked
                if other in texts
                and other not in judged.relevant[qid]
                and not _suspect(scores[qid], docno, other, negatives.relative_margin)
            ]
            order = _generator(seed, qid, docno).permutation(len(allowed))
            drawn[qid, docno] = [allowed[index] for index in order]
    without = len(set(results["docno"]) - texts.keys())
    return _assemble(judged, drawn, texts, negatives, seed=seed, source="results", documents_without_text=without)


def from_topics(
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    corpus: Corpus,
    *,
    negatives: Negatives = Negatives(),
    min_label: int = 1,
    seed: int = 42,
    text_field: str = "text",
    fields: Sequence[str] | None = None,
) -> Triples:
    """Makes triples of judged positives and negatives drawn at random from a corpus.

    Args:
        topics: Queries: ``qid``, ``query``.
        qrels: As in :func:`from_results`.
        corpus: All documents.
        negatives: How many negatives.
        min_label: The lowest label of a positive.
        seed: Which negatives are drawn.
        text_field: The field with the text of documents.
        fields: The fields of the corpus that make a text, if not the text field alone.

    Returns:
        The triples.

    Raises:
        ValueError: As :func:`from_results`; or if ranks are given, which a corpus has not.
        TypeError: As :func:`from_results`.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> from_topics(topics, qrels, corpus).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    if negatives != Negatives(negatives.number):
        raise ValueError(f"{negatives} chooses among ranks and scores, which a corpus has not; put a retriever before")
    judged = _Judged(topics, qrels, min_label)
    require_texts(topics, "query", "qid")
    documents = Documents(corpus, fields or [text_field])
    docnos = documents.docnos()
    drawn = {
        (qid, docno): _sample(docnos, judged.relevant[qid], negatives.number + SPARE, _generator(seed, qid, docno))
        for qid, positives in judged.positives.items()
        for docno in positives
    }
    wanted = {docno for order in drawn.values() for docno in order}.union(*judged.relevant.values())
    return _assemble(judged, drawn, documents.texts(sorted(wanted)), negatives, seed=seed, source="topics")


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
    state = [source, stamp(path)]

    def tables() -> Iterator[pa.Table]:
        pairs = reference.docpairs_iter()
        for chunk in chunked(pt.tqdm(pairs, desc="Reading docpairs", unit="pair", disable=not verbose), 200_000):
            columns = zip(*((pair.query_id, pair.doc_id_a, pair.doc_id_b) for pair in chunk), strict=True)
            yield _table(dict(zip(_column_names(3), columns, strict=True)))

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
            stamp(Path(name)),
            repr(corpus),
            hashlib.sha256(topics[["qid", "query"]].to_json().encode()).hexdigest(),
        ]
        if keep
        else None
    )
    return _from_pairs(
        (_named_columns(table, ("qid", "query")) for table in tables),
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
    described = [ledger.origin, stamp(Path(name))] if isinstance(source, str | Path) else None

    def checked() -> Iterator[tuple[pa.Table, pa.Table]]:
        for table in tables:
            texts = _named_columns(table)
            ledger.read += len(texts)
            yield ledger.usable(texts, _with_label(texts, table))

    return store(checked, ledger, limit, described, texts=False)


def split_queries(
    frame: pd.DataFrame,
    shares: Mapping[str, float] = {"train": 0.9, "valid": 0.1},
) -> dict[str, pd.DataFrame]:
    """Splits topics, results or judgements by query.

    A checksum of the ``qid`` says where a query belongs, so that all of its rows stay together, topics and judgements
    are split alike, and a query keeps its place when others come or go.

    Args:
        frame: Rows with ``qid``.
        shares: The names of the parts and their shares, which sum up to 1.

    Returns:
        The parts by name.

    Raises:
        ValueError: If the shares do not sum up to 1, or there is no ``qid``.
        TypeError: If a ``qid`` is no string.

    Example:
        >>> topics = pd.DataFrame({"qid": [str(i) for i in range(100)]})
        >>> {name: len(part) for name, part in split_queries(topics, {"train": 0.8, "valid": 0.2}).items()}
        {'train': 78, 'valid': 22}
    """
    require_columns(frame, ["qid"], "rows to split")
    if not np.isclose(sum(shares.values()), 1) or min(shares.values()) < 0:
        raise ValueError(f"shares={dict(shares)} do not sum up to 1; give some such as {{'train': 0.9, 'valid': 0.1}}")
    if wrong := [qid for qid in frame["qid"] if not isinstance(qid, str)]:
        raise TypeError(f"the qid is no string in {len(wrong)} of {len(frame)} rows ({wrong[:3]}); make it one")
    places = np.array([zlib.crc32(qid.encode()) % 100 for qid in frame["qid"]], dtype=float)
    bounds = np.round(100 * np.cumsum([0, *shares.values()]), 6)
    return {
        name: frame[(places >= low) & (places < high)]
        for name, low, high in zip(shares, bounds[:-1], bounds[1:], strict=True)
    }


class _Judged:
    """The positives of each topic, and what became of the judgements that are none."""

    def __init__(self, topics: pd.DataFrame, qrels: pd.DataFrame, min_label: int) -> None:
        require_judged(topics, qrels)
        require_count("min_label", min_label)
        self.queries = dict(zip(topics["qid"], topics["query"], strict=True))
        self.dropped: Counter[str] = Counter()
        self.read = len(qrels)
        judged = self._keep(qrels, qrels["qid"].isin(self.queries), "judgement of a query that is not there")
        self.relevant = {qid: set(docnos) for qid, docnos in judged[judged["label"] > 0].groupby("qid")["docno"]}
        positives = self._keep(judged, judged["label"] >= min_label, f"judgement with a label below {min_label}")
        positives = self._keep(positives, ~positives.duplicated(["qid", "docno"]), "judgement that stands there twice")
        if positives.empty:
            raise ValueError(
                f"none of the {len(judged)} judgements of these topics is of a relevant document, with a label of "
                f"{min_label} or more (labels are {sorted(judged['label'].unique().tolist())[:10]}); training needs "
                "some"
            )
        found = {qid: docnos.tolist() for qid, docnos in positives.groupby("qid")["docno"]}
        self.positives = {qid: found[qid] for qid in self.queries if qid in found}

    def _keep(self, rows: pd.DataFrame, kept: pd.Series, reason: str) -> pd.DataFrame:
        if lost := len(rows) - int(kept.sum()):
            self.dropped[reason] += lost
        return rows[kept]


def _generator(seed: int, qid: str, docno: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(qid.encode()), zlib.crc32(docno.encode())])


def _scores(results: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Maps each query to its results in the order of their ranks, with their scores (NaN without)."""
    if "rank" in results:
        results = results.sort_values(["qid", "rank"], kind="stable")
    elif "score" in results:
        results = results.sort_values(["qid", "score"], ascending=[True, False], kind="stable")
    results = results.drop_duplicates(["qid", "docno"])
    scores = results["score"] if "score" in results else pd.Series(np.nan, index=results.index)
    ranked: dict[str, dict[str, float]] = {}
    for qid, docno, score in zip(results["qid"], results["docno"], scores, strict=True):
        ranked.setdefault(qid, {})[docno] = score
    return ranked


def _suspect(scores: Mapping[str, float], positive: str, negative: str, relative_margin: float | None) -> bool:
    if relative_margin is None or positive not in scores:
        return False
    return scores[negative] > scores[positive] - relative_margin * abs(scores[positive])


def _sample(
    candidates: Sequence[str], excluded: Collection[str], number: int, generator: np.random.Generator
) -> list[str]:
    """Draws distinct candidates that are not excluded, as many as asked for or as there are."""
    if len(candidates) < 4 * (len(excluded) + number):
        allowed = [candidate for candidate in candidates if candidate not in excluded]
        return [allowed[index] for index in generator.permutation(len(allowed))[:number]]
    drawn: dict[str, None] = {}  # so few are excluded that drawing again is quicker than listing the allowed
    while len(drawn) < number:
        candidate = candidates[int(generator.integers(len(candidates)))]
        if candidate not in excluded:
            drawn[candidate] = None
    return list(drawn)


def _assemble(
    judged: _Judged,
    drawn: Mapping[tuple[str, str], list[str]],
    texts: Mapping[str, str],
    negatives: Negatives,
    **origin: Any,
) -> Triples:
    """Makes one triple of every positive, of the first drawn whose text is no positive's and not taken yet."""
    rows = []
    dropped = judged.dropped
    for qid, docnos in judged.positives.items():
        known = {texts[docno].strip() for docno in judged.relevant[qid] if docno in texts}
        for docno in docnos:
            if not texts.get(docno, "").strip():
                dropped["positive without text"] += 1
                continue
            found: dict[str, str] = {}
            for other in drawn[qid, docno]:
                if len(found) < negatives.number and (text := texts.get(other, "")).strip() not in known | {""}:
                    found.setdefault(text.strip(), text)
            if len(found) < negatives.number:
                dropped[f"positive with fewer than {negatives.number} negatives"] += 1
                continue
            rows.append((judged.queries[qid], texts[docno], *found.values()))
    without = len(judged.queries) - len(judged.positives)
    ledger = Ledger({**origin, "negatives_from": asdict(negatives), "queries_without_positives": without})
    ledger.read, ledger.dropped = judged.read, dropped
    if not rows:
        raise ValueError(
            f"no triples can be made of {judged.read} judgements: {counts(dropped)}. Retrieve more documents, widen "
            "the ranks, or give corpus= for the text of relevant documents that are not retrieved"
        )
    names = _column_names(negatives.number + 2)
    table = _table(dict(zip(names, zip(*rows, strict=True), strict=True)))
    return store(lambda: iter([ledger.usable(table, table)]), ledger, None, None)


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


def _column_names(number: int) -> list[str]:
    """Names columns that come without names."""
    if number < 3:
        raise ValueError(f"rows of {number} texts; triples are a query, a positive and one or more negatives")
    return ["query", "positive", *(["negative"] if number == 3 else [f"negative_{i}" for i in range(1, number - 1)])]


def _named_columns(table: pa.Table, query: Sequence[str] = ("query", "anchor")) -> pa.Table:
    """Brings columns of strings into the order that losses expect; ``query`` are names of the first, best first."""
    if all(name.isdecimal() for name in table.column_names):
        table = table.rename_columns(_column_names(table.num_columns))
    if present := [name for name in query if name in table.column_names]:
        others = [name for name in table.column_names if name != "query" or present[0] == "query"]
        table = table.select(others).rename_columns(["query" if name == present[0] else name for name in others])
    negatives = [name for name in table.column_names if re.fullmatch(r"negative(_\d+)?", name)]
    columns = ["query", "positive", *sorted(negatives, key=lambda name: int(name.partition("_")[2] or 0))]
    if not negatives or not set(columns) <= set(table.column_names):
        raise ValueError(
            f"triples have the columns {table.column_names}; they need 'query' (or 'anchor'; 'qid' for identifiers), "
            "'positive', and 'negative' or 'negative_1', 'negative_2', ..."
        )
    table = table.select(columns)
    for name in columns:
        kind = table.column(name).type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
            raise TypeError(f"column {name!r} holds {kind}; training needs texts in {columns}")
    return table.cast(pa.schema([(name, pa.string()) for name in columns]))


def _with_label(texts: pa.Table, table: pa.Table) -> pa.Table:
    """Puts the labels of a table beside its texts, if it has some."""
    if LABEL not in table.column_names:
        return texts
    labels = table.column(LABEL)
    try:
        numbers = labels.cast(pa.float32())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = None
    if numbers is None or numbers.null_count or pc.any(pc.is_nan(numbers)).as_py():
        raise TypeError(
            f"column {LABEL!r} holds {labels.type}, {labels.null_count} missing; a loss needs a number in every row: "
            "drop the rows without one, or the column if the loss needs none"
        )
    return texts.append_column(LABEL, numbers)


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
            ledger.read = _sort_into_buckets(tables, settings["seed"], Path(folder))
            seen: Counter[str] = Counter()
            bar = pt.tqdm(total=ledger.read, desc="Making triples", unit="pair", disable=not verbose)
            for path in sorted(Path(folder).iterdir()):
                frame = _read_bucket(path)
                size = len(frame)
                frame = ledger.keep(frame, ~frame.duplicated(), "row that stands there twice")
                if (most := settings["max_pairs_per_query"]) is not None:
                    place = frame.groupby("query").cumcount() + frame["query"].map(seen).fillna(0)
                    seen.update(frame["query"].value_counts().to_dict())
                    frame = ledger.keep(frame, place < most, f"pair beyond {most} of its query")
                for start in range(0, len(frame), CHUNK):
                    identifiers = frame.iloc[start : start + CHUNK].to_dict(orient="list")
                    yield ledger.usable(_table(look_up(identifiers)), _table(identifiers))
                bar.update(size)
            bar.close()

    key = None if described is None else [described, ledger.origin, store_texts]
    made = store(checked, ledger, settings["limit"], key, texts=store_texts)
    return made if store_texts else Triples(made.dataset.with_transform(look_up), made.summary)


def _sort_into_buckets(tables: Iterable[pa.Table], seed: int, folder: Path) -> int:
    """Writes rows to files by the first bits of a checksum of them and the seed, and counts them."""
    files: dict[int, Any] = {}
    number = 0
    with ExitStack() as stack:
        for table in tables:
            number += len(table)
            table = pa.table({name: pc.fill_null(table.column(name), "") for name in table.column_names})
            checksums = pd.util.hash_pandas_object(table.to_pandas(), index=False, hash_key=f"{seed:016d}"[-16:])
            buckets = (checksums.to_numpy() // np.uint64(2**64 // BUCKETS)).astype(int)
            table = table.append_column("checksum", pa.array(checksums)).take(np.argsort(buckets, kind="stable"))
            start = 0
            for bucket, size in enumerate(np.bincount(buckets)):
                if size and bucket not in files:
                    files[bucket] = stack.enter_context(pa.ipc.new_stream(folder / f"{bucket:03}.arrow", table.schema))
                if size:
                    files[bucket].write_table(table.slice(start, size))
                start += size
    return number


def _read_bucket(path: Path) -> pd.DataFrame:
    """Reads a file of :func:`_sort_into_buckets` in the order of the checksums, and removes it."""
    with pa.ipc.open_stream(path) as stream:
        frame = stream.read_pandas()
    path.unlink()
    return frame.sort_values(["checksum", *frame.columns.drop("checksum")]).drop(columns="checksum")


def _table(columns: Mapping[str, Sequence[str | None]]) -> pa.Table:
    return pa.table({name: pa.array(column, pa.string()) for name, column in columns.items()})


def _require_limit(name: str, value: int | None) -> None:
    if value is not None:
        require_count(name, value)
