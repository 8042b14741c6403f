"""Documents of a PyTerrier dataset, a frame, or an iterable of records.

:class:`Documents` iterates over a corpus, lists its identifiers and looks up texts by identifier. Datasets of
ir_datasets look up texts in their docstore; the texts of other corpora stay in memory.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd
import pyterrier as pt
from pydantic import SkipValidation

from ..utils.checks import FieldNames, checked, require_distinct_columns

# a PyTerrier dataset, a frame with ``docno`` and text, or records; unchecked, since a check would consume an iterable
Corpus: TypeAlias = SkipValidation[pt.datasets.Dataset | pd.DataFrame | Iterable[Mapping[str, Any]]]

# the names that BEIR, Pyserini and others use for the columns that PyTerrier expects
OTHER_NAMES = {"docno": ("_id", "id", "doc_id", "docid"), "text": ("contents", "content", "body", "passage")}


def require_document(record: Any, fields: Sequence[str]) -> None:
    """Check that a document is a record with an identifier and the given fields."""
    if not isinstance(record, Mapping):
        raise TypeError(f"documents must be records with a 'docno', got {reprlib.repr(record)} among them")
    missing = [name for name in ("docno", *fields) if name not in record]
    if missing:
        others = [(name, other) for name in missing for other in OTHER_NAMES.get(name, ()) if other in record]
        advice = [f"rename {other!r} to {name!r}" for name, other in others]
        if "doc_vec" in missing:
            advice.append("put an encoder before the index: (encoder >> index).index(corpus)")
        raise ValueError(
            f"documents must have 'docno' and {_listed(fields)}, got {list(record)}: {_listed(missing)} missing; "
            f"{', '.join(advice) or 'choose from the fields with fields='}"
        )


def records_of(corpus: Corpus) -> Iterable[Any]:
    """Iterate over the documents of a corpus."""
    if isinstance(corpus, pt.datasets.Dataset):
        try:
            return corpus.get_corpus_iter(verbose=False)
        except NotImplementedError:
            raise ValueError(f"corpus must have documents, got {corpus!r} without any; pass another dataset") from None
    if not isinstance(corpus, Iterable):
        raise TypeError(f"documents must be an iterable of records with a 'docno', got {corpus!r}; pass a list")
    return corpus.to_dict(orient="records") if isinstance(corpus, pd.DataFrame) else corpus


def reusable(corpus: Corpus, fields: Sequence[str]) -> Corpus:
    """Check the first document, and return a corpus that can be read more than once."""
    if isinstance(corpus, pd.DataFrame):
        require_distinct_columns(corpus, "corpus")
        require_document(dict.fromkeys(corpus.columns), fields)
    if isinstance(corpus, pt.datasets.Dataset | pd.DataFrame):
        return corpus
    first = None
    if isinstance(corpus, Iterable) and not isinstance(corpus, str | bytes | Mapping):
        if not (hasattr(type(corpus), "__len__") and hasattr(type(corpus), "__getitem__")):
            corpus = list(corpus)
        first = next(iter(corpus), {})
    if not isinstance(first, Mapping):
        raise TypeError(
            "corpus must be a PyTerrier dataset, a frame, or an iterable of records such as {'docno': 'd1', 'text': "
            f"'sort rows'}}, got {reprlib.repr(corpus)}, a {type(corpus).__name__}"
        )
    if first:
        require_document(first, fields)
    return corpus


@checked
class Documents:
    """A corpus with one text per document.

    A text may be empty. If it joins several fields, some of their values may be missing.

    Args:
        corpus: The documents.
        fields: The fields whose values are joined by a space into the text of a document.

    Raises:
        ValueError: If a document lacks ``docno`` or a field. The first document is checked at once, and the others when
            they are read.
        TypeError: If ``corpus`` is not a corpus, or a ``docno`` or text that is read is not a string.

    Example:
        >>> documents = Documents([{"docno": "d1", "title": "Plots", "text": "draw a file"}], ["title", "text"])
        >>> documents.texts(["d1", "d2"])
        {'d1': 'Plots draw a file'}
    """

    def __init__(self, corpus: Corpus, fields: FieldNames) -> None:
        self.corpus = reusable(corpus, fields)
        self.fields = list(fields)
        self._store: tuple[int, Any] | None = None  # the process that opened it, and the docstore
        self._texts: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Iterate over pairs of identifier and text."""
        for record in records_of(self.corpus):
            require_document(record, self.fields)
            yield record["docno"], self._join(record["docno"], [record[name] for name in self.fields])

    def docnos(self) -> list[str]:
        """Return the sorted identifiers."""
        return sorted({docno for docno, _ in self})

    def fingerprint(self) -> str:
        """Compute a checksum of the documents and the fields, with 16 characters."""
        checksum = hashlib.sha256(repr(self.fields).encode())
        published: dict[str, Any] = getattr(self._reference(), "docs_metadata", dict)()
        # the name identifies published documents, which may be too many to read again
        for part in [(self.corpus, published)] if published else self:
            checksum.update("{}\0{}\0".format(*part).encode(errors="surrogatepass"))
        return checksum.hexdigest()[:16]

    def texts(self, docnos: Collection[str]) -> dict[str, str]:
        """Look up texts by identifier, and omit documents that the corpus lacks."""
        reference = self._reference()
        if reference is None:
            self._texts = self._texts or one_text_each(self, "give each document a different identifier")
            return {docno: self._texts[docno] for docno in docnos if docno in self._texts}
        known = reference.docs_cls()._fields
        missing = sorted(set(self.fields) - set(known))
        if missing:
            raise ValueError(
                f"documents of {self.corpus!r} have the fields {list(known)}, not {_listed(missing)}; choose from "
                "them with fields="
            )
        # a forked process would move the position in the file that its parent reads
        if self._store is None or self._store[0] != os.getpid():
            self._store = os.getpid(), reference.docs_store()
        found = self._store[1].get_many(docnos).items()
        return {docno: self._join(docno, [getattr(doc, name) for name in self.fields]) for docno, doc in found}

    def __getstate__(self) -> dict[str, Any]:
        # open files cannot be pickled
        return {**self.__dict__, "_store": None}

    def _reference(self) -> Any:
        """Return the dataset of ir_datasets if the corpus is one with documents, and None otherwise."""
        if not isinstance(self.corpus, pt.datasets.Dataset) or not hasattr(self.corpus, "irds_ref"):
            return None
        reference = self.corpus.irds_ref()
        return reference if reference.has_docs() else None

    def _join(self, docno: str, values: Sequence[Any]) -> str:
        """Check the fields of a document and join them."""
        if not isinstance(docno, str):
            raise TypeError(f"docno must be a string, got {docno!r} of type {type(docno).__name__}; convert with str")
        if len(values) == 1 and isinstance(values[0], str):
            return values[0]
        others = [value for value in values if not isinstance(value, str)]
        if len(others) == len(values) or not all(pd.api.types.is_scalar(value) and pd.isna(value) for value in others):
            raise TypeError(
                f"document {docno!r} must have a string in {_listed(self.fields)}, got {reprlib.repr(values)}; convert "
                "texts to strings, and drop documents without one"
            )
        return join_texts(values)


def join_texts(values: Iterable[Any]) -> str:
    """Join the nonempty strings among the fields of a document."""
    return " ".join(value for value in values if isinstance(value, str) and value)


def one_text_each(documents: Iterable[tuple[str, str]], advice: str) -> dict[str, str]:
    """Collect texts by identifier. A document may occur more than once if its text is the same each time."""
    texts: dict[str, str] = {}
    for docno, text in documents:
        if texts.setdefault(docno, text) != text:
            raise ValueError(f"a document must have one text, got {texts[docno]!r} and {text!r} of {docno!r}; {advice}")
    return texts


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
