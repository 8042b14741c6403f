"""Documents, whatever holds them: a PyTerrier dataset, a frame, or an iterable of records.

:class:`Documents` iterates over them, lists their identifiers and looks up the texts of some. Datasets of ir_datasets
have a docstore for the last; the texts of other corpora are kept in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd
import pyterrier as pt

Corpus: TypeAlias = pt.datasets.Dataset | pd.DataFrame | Iterable[Mapping[str, Any]]
"""A PyTerrier dataset with a corpus, a frame with ``docno`` and text, or an iterable of such records."""


class Documents:
    """A corpus with one text a document.

    Args:
        corpus: The documents.
        fields: The fields that make the text of a document, joined by a space.

    Raises:
        ValueError: When documents are read that lack ``docno`` or a field.

    Example:
        >>> documents = Documents([{"docno": "d1", "title": "Plots", "text": "draw a file"}], ["title", "text"])
        >>> documents.texts(["d1", "d2"])
        {'d1': 'Plots draw a file'}
    """

    def __init__(self, corpus: Corpus, fields: Sequence[str]) -> None:
        if isinstance(fields, str) or not fields:
            raise ValueError(f"fields must be a list of field names such as ['title', 'text'], got {fields!r}")
        # documents are read more than once
        if isinstance(corpus, Iterator):
            corpus = list(corpus)
        self.corpus = corpus
        self.fields = list(fields)
        self._store: Any = None
        self._store_process: int | None = None
        self._texts: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Iterate over identifiers and texts."""
        for record in self._records():
            self._require_fields(record)
            yield record["docno"], _join(record[name] for name in self.fields)

    def docnos(self) -> list[str]:
        """List the identifiers, sorted."""
        return sorted({docno for docno, _ in self})

    def fingerprint(self) -> str:
        """Identify the documents: datasets by their name, others by a checksum of all identifiers and texts."""
        checksum = hashlib.sha256(repr(self.fields).encode())
        if isinstance(self.corpus, pt.datasets.Dataset):
            checksum.update(repr(self.corpus).encode())
            return checksum.hexdigest()[:16]
        for docno, text in self:
            checksum.update(f"{docno}\0{text}\0".encode())
        return checksum.hexdigest()[:16]

    def texts(self, docnos: Collection[str]) -> dict[str, str]:
        """Look up the texts of some documents.

        Args:
            docnos: Their identifiers.

        Returns:
            The texts by identifier; documents that the corpus lacks are left out.
        """
        reference = self._reference()
        if reference is not None:
            # the docstore has an index, while a corpus iterator reads all documents
            return self._texts_of_docstore(reference, docnos)
        if not self._texts:
            self._texts = dict(self)
        return {docno: self._texts[docno] for docno in docnos if docno in self._texts}

    def __getstate__(self) -> dict[str, Any]:
        # open files cannot be pickled; a process that gets a copy opens its own
        return {**self.__dict__, "_store": None, "_store_process": None}

    def _texts_of_docstore(self, reference: Any, docnos: Collection[str]) -> dict[str, str]:
        known = reference.docs_cls()._fields
        missing = sorted(set(self.fields) - set(known))
        if missing:
            raise ValueError(
                f"documents of {self.corpus!r} have the fields {list(known)}, not {_listed(missing)}; choose among "
                "them with fields="
            )
        # a forked process would move the place at which its parent reads the same file
        if self._store_process != os.getpid():
            self._store = reference.docs_store()
            self._store_process = os.getpid()
        found = self._store.get_many(docnos)
        texts = {}
        for docno, document in found.items():
            # attributes, since a dictionary of each document would slow the making of triples
            texts[docno] = _join(getattr(document, name) for name in self.fields)
        return texts

    def _reference(self) -> Any:
        """Return the dataset of ir_datasets, if the corpus is one that has documents."""
        if not isinstance(self.corpus, pt.datasets.Dataset) or not hasattr(self.corpus, "irds_ref"):
            return None
        reference = self.corpus.irds_ref()
        if not reference.has_docs():
            return None
        return reference

    def _records(self) -> Iterable[Mapping[str, Any]]:
        if isinstance(self.corpus, pt.datasets.Dataset):
            return self.corpus.get_corpus_iter(verbose=False)
        if isinstance(self.corpus, pd.DataFrame):
            return self.corpus.to_dict(orient="records")
        return self.corpus

    def _require_fields(self, record: Mapping[str, Any]) -> None:
        missing = sorted({"docno", *self.fields} - record.keys())
        if missing:
            raise ValueError(
                f"documents must have 'docno' and {_listed(self.fields)}, got {list(record)}: {_listed(missing)} "
                "missing; choose among the fields with fields="
            )


def _join(values: Iterable[Any]) -> str:
    """Join the values of fields that are texts."""
    return " ".join(value for value in values if isinstance(value, str) and value)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
