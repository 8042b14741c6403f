"""Training with passages: of each document the passage that a query finds it by.

An index of passages has no whole documents, and a document scores as its best passage does (``pt.text.max_passage``).
So the documents of triples are divided by the transformer that divides those of the index, and each becomes its best
passage for the query, as an encoder scores them:

- of a positive, since a judgement says that the document answers the query, and not where;
- of a negative too: it is the passage by which the document would be ranked, and none of its passages is relevant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyterrier as pt
from more_itertools import chunked

from .triples import LABEL, DistinctCount, Fingerprint, TripleCache, Triples

ROWS = 2_048
"""Of how many triples the documents are divided and encoded at once."""

COUNTED = ("read", "triples", "dropped", "queries", "positives", "negatives", "fingerprint")
"""What the summary of triples says of their rows; the rest says where they come from."""


class Encoder(Protocol):
    """What scores passages: the vectors are unit vectors, so that dot products are cosines."""

    text_field: str

    @property
    def model_name(self) -> str:
        """The checksum of what is computed."""

    @property
    def precision(self) -> str:
        """The precision in which it is."""

    def encode_queries(self, texts: Any) -> np.ndarray:
        """Encode queries."""

    def encode_docs(self, texts: Any) -> np.ndarray:
        """Encode documents."""


class Division(NamedTuple):
    """What becomes of the documents of triples when they are divided.

    Attributes:
        documents: How many different ones there are.
        divided: How many of them have several passages.
        rows: How many triples have one of these.
        fingerprint: A checksum of all passages.
    """

    documents: int
    divided: int
    rows: int
    fingerprint: str


def choose_passages(triples: Triples, passages: pt.Transformer, encoder: Encoder, *, verbose: bool = False) -> Triples:
    """Replace the documents of triples by their best passages.

    The result is kept in PyTerrier's home, where the same triples, passages and encoder find it again.

    Args:
        triples: The triples.
        passages: What divides documents, such as ``pt.text.sliding("text", prepend_attr=None)``.
        encoder: What says which passage is best.
        verbose: Whether to show a progress bar.

    Returns:
        The triples. Their summary has ``passages``: the numbers of :class:`Division`, without the checksum.

    Raises:
        ValueError: If the transformer cannot divide documents that have nothing but a text.

    Example:
        >>> from pyterrier_selfdistill.data.triples import read_triples
        >>> triples = read_triples([("sort", "plot a file or sort rows", "read it")])
        >>> passages = pt.text.sliding("text", length=2, stride=2, prepend_attr=None)
        >>> chosen = choose_passages(triples, passages, encoder)
        >>> chosen.dataset[0]["positive"] in ("plot a", "file or", "sort rows"), chosen.dataset[0]["negative"]
        (True, 'read it')
        >>> chosen.summary["passages"]
        {'documents': 2, 'divided': 1, 'rows': 1}
    """
    division = survey(triples, passages, encoder.text_field)
    counts = division._asdict()
    checksum = counts.pop("fingerprint")
    origin = {name: value for name, value in triples.summary.items() if name not in COUNTED}
    signature = ["passages", triples.summary, checksum, encoder.model_name, encoder.precision]
    cache = TripleCache(signature, {**origin, "passages": counts})
    if not cache.exists():
        _write_best(triples, passages, encoder, cache, verbose)
    return cache.load()


def survey(triples: Triples, passages: pt.Transformer, text_field: str) -> Division:
    """Divide the documents of triples, and see what becomes of them.

    Args:
        triples: The triples.
        passages: What divides documents.
        text_field: The column with their text.

    Returns:
        The numbers and the checksum.
    """
    documents, divided, fingerprint = DistinctCount(), DistinctCount(), Fingerprint()
    rows = 0
    for columns in _blocks(triples):
        passages_of = divide(_documents_of(columns), passages, text_field)
        texts = np.array(list(passages_of), dtype=object)
        has_several = np.array([len(found) > 1 for found in passages_of.values()])
        checksums = pd.util.hash_array(texts, categorize=False)
        documents.add(checksums)
        divided.add(checksums[has_several])
        changed = np.zeros(len(columns["query"]), dtype=bool)
        for name in _document_columns(columns):
            changed |= np.array([len(passages_of[text]) > 1 for text in columns[name]])
        rows += int(changed.sum())
        # with a character between that texts do not have
        joined = ["\0".join(found) for found in passages_of.values()]
        fingerprint.update(pa.table({"passages": joined}))
    return Division(documents.number, divided.number, rows, fingerprint.hexdigest())


def divide(texts: Sequence[str], passages: pt.Transformer, text_field: str) -> dict[str, list[str]]:
    """Divide documents.

    Args:
        texts: The documents.
        passages: What divides them, and names a passage after its document and ``%p``, as PyTerrier does.
        text_field: The column with their text.

    Returns:
        The passages of each document, one or more; a document of which nothing is left is its own.

    Raises:
        ValueError: If it cannot divide them.

    Example:
        >>> passages = pt.text.sliding("text", length=2, stride=2, prepend_attr=None)
        >>> divide(["sort the rows now", "plot"], passages, "text")
        {'sort the rows now': ['sort the', 'rows now'], 'plot': ['plot']}
    """
    frame = pd.DataFrame({"docno": list(map(str, range(len(texts)))), text_field: texts})
    try:
        divided = pd.DataFrame(passages(frame))
        found = list(zip(divided["docno"], divided[text_field], strict=True))
    except Exception as error:
        raise ValueError(
            f"passages={passages!r} cannot divide documents with the columns {list(frame.columns)}, which is all that "
            f"triples have: {error}. Give what divides the text alone, such as "
            f"pt.text.sliding({text_field!r}, prepend_attr=None)"
        ) from error
    passages_of: dict[str, list[str]] = {text: [] for text in texts}
    for docno, passage in found:
        document = texts[int(document_of(docno))]
        if passage.strip():
            passages_of[document].append(passage)
    return {text: found or [text] for text, found in passages_of.items()}


def document_of(docno: str) -> str:
    """Return the identifier of the document of a passage.

    Args:
        docno: That of the passage.

    Returns:
        What stands before the last ``%p``.

    Example:
        >>> document_of("d1%p0"), document_of("d1")
        ('d1', 'd1')
    """
    document, mark, _ = docno.rpartition("%p")
    return document if mark else docno


def divide_results(results: pd.DataFrame, passages: pt.Transformer, text_field: str) -> pd.DataFrame:
    """Divide the documents of results.

    Args:
        results: Results with texts.
        passages: What divides documents.
        text_field: The column with their text.

    Returns:
        A row for each passage, otherwise like that of its document.

    Example:
        >>> results = pd.DataFrame([["1", "d1", "sort the rows now"]], columns=["qid", "docno", "text"])
        >>> passages = pt.text.sliding("text", length=2, stride=2, prepend_attr=None)
        >>> divide_results(results, passages, "text")["text"].tolist()
        ['sort the', 'rows now']
    """
    passages_of = divide(results[text_field].unique().tolist(), passages, text_field)
    divided = results.assign(**{text_field: results[text_field].map(passages_of)})
    return divided.explode(text_field, ignore_index=True)


def passage_records(
    records: Iterable[Mapping[str, str]], passages: pt.Transformer, text_field: str
) -> Iterator[dict[str, str]]:
    """Divide the documents of a corpus.

    Args:
        records: Records with ``docno`` and text.
        passages: What divides documents.
        text_field: The field with their text.

    Yields:
        Records of passages, in the order of their documents.

    Example:
        >>> passages = pt.text.sliding("text", length=2, stride=2, prepend_attr=None)
        >>> [record["docno"] for record in passage_records([{"docno": "d", "text": "a b c d"}], passages, "text")]
        ['d%p0', 'd%p1']
    """
    for block in chunked(records, ROWS):
        passages_of = divide([record[text_field] for record in block], passages, text_field)
        for record in block:
            for number, passage in enumerate(passages_of[record[text_field]]):
                yield {"docno": f"{record['docno']}%p{number}", text_field: passage}


def best_of_documents(results: pd.DataFrame) -> pd.DataFrame:
    """Keep of each document its best passage.

    Args:
        results: ``qid``, ``docno`` of documents, and ``score``; a document may have several rows.

    Returns:
        A row a document, with the ranks that they have then.

    Example:
        >>> rows = [["1", "d1", 0.5], ["1", "d2", 0.7], ["1", "d1", 0.9]]
        >>> best = best_of_documents(pd.DataFrame(rows, columns=["qid", "docno", "score"]))
        >>> best[["docno", "score"]].to_numpy().tolist()
        [['d1', 0.9], ['d2', 0.7]]
    """
    in_order = results.sort_values(["qid", "score"], ascending=[True, False], kind="stable")
    return pt.model.add_ranks(in_order.drop_duplicates(["qid", "docno"], ignore_index=True))


def best_passages(
    columns: Mapping[str, Sequence[str]], passages_of: Mapping[str, Sequence[str]], encoder: Encoder
) -> dict[str, list[str]]:
    """Choose of each document of some triples the passage with the highest cosine with the query.

    Args:
        columns: Columns of texts: ``query``, ``positive`` and those of negatives.
        passages_of: The passages of each document.
        encoder: What encodes queries and passages.

    Returns:
        The same columns, with passages in place of documents.

    Example:
        >>> columns = {"query": ["sort"], "positive": ["plot sort"], "negative": ["read"]}
        >>> best_passages(columns, {"plot sort": ["plot", "sort"], "read": ["a file"]}, encoder)["negative"]
        ['a file']
    """
    several = {text: found for text, found in passages_of.items() if len(found) > 1}
    vectors = _vectors_of(several, encoder)
    queries = np.empty((0, 0))
    if several:
        queries = encoder.encode_queries(list(columns["query"]))
    chosen = {"query": list(columns["query"])}
    for name in _document_columns(columns):
        chosen[name] = []
        for row, text in enumerate(columns[name]):
            best = 0
            if text in several:
                best = int((vectors[text] @ queries[row]).argmax())
            chosen[name].append(passages_of[text][best])
    return chosen


def _vectors_of(passages_of: Mapping[str, Sequence[str]], encoder: Encoder) -> dict[str, np.ndarray]:
    """Encode the passages of documents, all at once."""
    if not passages_of:
        return {}
    flat = [passage for found in passages_of.values() for passage in found]
    ends = np.cumsum([len(found) for found in passages_of.values()])
    parts = np.split(encoder.encode_docs(flat), ends[:-1])
    return dict(zip(passages_of, parts, strict=True))


def _write_best(
    triples: Triples, passages: pt.Transformer, encoder: Encoder, cache: TripleCache, verbose: bool
) -> None:
    """Write the triples with their best passages."""
    schema = triples.dataset.features.arrow_schema
    bar = pt.tqdm(total=len(triples.dataset), desc="Choosing passages", unit="triple", disable=not verbose)
    with cache.writer() as writer, bar:
        writer.read(triples.summary["read"])
        writer.drop("before", triples.summary["dropped"])
        for columns in _blocks(triples):
            passages_of = divide(_documents_of(columns), passages, encoder.text_field)
            chosen: dict[str, Sequence[Any]] = dict(best_passages(columns, passages_of, encoder))
            if LABEL in columns:
                chosen[LABEL] = columns[LABEL]
            writer.add(pa.table(chosen, schema=schema))
            bar.update(len(columns["query"]))


def _blocks(triples: Triples) -> Iterator[Mapping[str, Sequence[Any]]]:
    yield from triples.dataset.iter(batch_size=ROWS)


def _document_columns(columns: Mapping[str, Any]) -> list[str]:
    return [name for name in columns if name not in ("query", LABEL)]


def _documents_of(columns: Mapping[str, Sequence[str]]) -> list[str]:
    """List the different documents of some triples."""
    documents: dict[str, None] = {}  # a set that keeps the order
    for name in _document_columns(columns):
        documents |= dict.fromkeys(columns[name])
    return list(documents)
