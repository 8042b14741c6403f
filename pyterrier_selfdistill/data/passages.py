"""Training with passages: replace each document of a triple by its best passage for the query.

A document gets the score of its best passage (``pt.text.max_passage``). So the transformer that splits documents for
the index splits the documents of triples too. The untrained encoder scores their passages and keeps the best one for
the query, since a judgement does not say where the positive answers the query.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, starmap
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyterrier as pt
from datasets import Dataset
from more_itertools import chunked

from ..utils.compat import progress_bar
from .triples import LABEL, Triples, kept, write_triples

ROWS = 2_048  # how many triples to split and encode at once
Columns: TypeAlias = Mapping[str, list[Any]]


def choose_passages(triples: Triples, passages: pt.Transformer, encoder: Any, *, verbose: bool = False) -> Triples:
    """Replace the documents in the triples of one collection by their best passages."""
    divided: dict[int, bool] = {}
    checksum, rows = hashlib.sha256(), 0
    for _, documents, passages_of in _blocks(triples.dataset, passages, encoder.text_field):
        divided |= {hash(text): len(found) > 1 for text, found in passages_of.items()}
        rows += sum(any(len(passages_of[text]) > 1 for text in row) for row in zip(*documents.values(), strict=True))
        for found in passages_of.values():
            # separated by a character that texts do not contain
            checksum.update("\0".join([*found, "\0"]).encode())
    counts = {"documents": len(divided), "divided": sum(divided.values()), "rows": rows}
    identity = ["passages", triples.summary, checksum.hexdigest(), encoder.model_name, encoder.precision]

    def write(folder: Path) -> dict[str, Any]:
        bar = progress_bar(total=len(triples.dataset), desc="Choosing passages", unit="triple", disable=not verbose)

        def tables() -> Iterator[pa.Table]:
            for columns, documents, passages_of in _blocks(triples.dataset, passages, encoder.text_field):
                yield pa.table({**columns, **_best_passages(columns["query"], documents, passages_of, encoder)})
                bar.update(len(columns["query"]))

        with bar:
            return write_triples(folder, tables(), {**triples.summary, "passages": counts}, triples.summary["read"])

    files, summary = kept(identity, write)
    return Triples(files["triples"], summary)


def _blocks(dataset: Dataset, passages: pt.Transformer, text_field: str) -> Iterator[tuple[Columns, Columns, Columns]]:
    """Read triples in blocks, as all columns, the document columns, and the passages of each document."""
    for columns in dataset.iter(batch_size=ROWS):
        documents = {name: texts for name, texts in columns.items() if name not in ("query", LABEL)}
        distinct = dict.fromkeys(chain.from_iterable(documents.values()))
        yield columns, documents, divide(list(distinct), passages, text_field)


def _best_passages(queries: Sequence[str], documents: Columns, passages_of: Columns, encoder: Any) -> Columns:
    """Choose the passage of each document with the highest cosine similarity to the query."""
    several = {text: found for text, found in passages_of.items() if len(found) > 1}
    vectors = {}
    if several:
        encoded = encoder.encode_docs([passage for found in several.values() for passage in found])
        ends = np.cumsum([len(found) for found in several.values()])
        vectors = dict(zip(several, np.split(encoded, ends[:-1]), strict=True))
        of_queries = encoder.encode_queries(list(queries))

    def best(row: int, text: str) -> str:
        return passages_of[text][int((vectors[text] @ of_queries[row]).argmax()) if text in vectors else 0]

    return {name: list(starmap(best, enumerate(texts))) for name, texts in documents.items()}


def divide(texts: Sequence[str], passages: pt.Transformer, text_field: str) -> dict[str, list[str]]:
    """Split documents into passages. A document without any passage left becomes a single passage."""
    documents = {f"document-{number}": text for number, text in enumerate(texts)}
    frame = pd.DataFrame({"docno": list(documents), text_field: texts})
    try:
        divided = pd.DataFrame(passages(frame))
        found = list(zip(divided["docno"], divided[text_field], strict=True))
    except Exception as error:
        raise ValueError(
            f"passages={passages!r} cannot split documents with the columns {list(frame.columns)}, the only ones of "
            f"triples: {error}. Pass a transformer that reads the text alone, such as "
            f"pt.text.sliding({text_field!r}, prepend_attr=None)"
        ) from error
    passages_of: dict[str, list[str]] = {text: [] for text in texts}
    for docno, passage in found:
        document = documents.get(document_of(str(docno)))
        if document is None or not isinstance(passage, str):
            raise ValueError(
                f"passages={passages!r} must give each passage a text and the docno of its document, optionally with "
                f"'%p' and a number, such as 'document-0%p1'; got {passage!r} with the docno {docno!r}"
            )
        if passage.strip():
            passages_of[document].append(passage)
    return {text: found or [text] for text, found in passages_of.items()}


def document_of(docno: str) -> str:
    """Return the docno of the document that a passage belongs to, the part before the last ``%p``."""
    document, mark, _ = docno.rpartition("%p")
    return document if mark else docno


def divide_results(results: pd.DataFrame, passages: pt.Transformer, text_field: str) -> pd.DataFrame:
    """Split the documents of results, with one row per passage that copies the row of its document."""
    passages_of = divide(results[text_field].unique().tolist(), passages, text_field)
    divided = results.assign(**{text_field: results[text_field].map(passages_of)})
    return divided.explode(text_field, ignore_index=True)


def passage_records(
    records: Iterable[Mapping[str, str]], passages: pt.Transformer, text_field: str
) -> Iterator[dict[str, str]]:
    """Split the documents of a corpus into records of passages, in the order of the documents."""
    for block in chunked(records, ROWS):
        passages_of = divide([record[text_field] for record in block], passages, text_field)
        for record in block:
            for number, passage in enumerate(passages_of[record[text_field]]):
                yield {"docno": f"{record['docno']}%p{number}", text_field: passage}


def best_of_documents(results: pd.DataFrame) -> pd.DataFrame:
    """Keep the best passage of each document and rank the documents again."""
    in_order = results.sort_values(["qid", "score"], ascending=[True, False], kind="stable")
    return pt.model.add_ranks(in_order.drop_duplicates(["qid", "docno"], ignore_index=True))
