"""Documents, whatever holds them: a PyTerrier dataset, a frame, or an iterable of records.

:class:`Documents` iterates over them, lists their identifiers and finds the texts of some; a dataset of ir_datasets
answers the last from its docstore; of other corpora all texts are kept in memory.
"""

from __future__ import annotations

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
            raise ValueError(f"fields={fields!r} is no list of field names; give some such as ['title', 'text']")
        # documents are read more than once
        self.corpus = list(corpus) if isinstance(corpus, Iterator) else corpus
        self.fields = list(fields)
        self._store: tuple[int, Any] | None = None
        self._texts: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Iterates over identifiers and texts."""
        for record in self._records():
            if missing := [name for name in ("docno", *self.fields) if name not in record]:
                raise ValueError(
                    f"a document of the corpus has {list(record)}; it needs 'docno' and {_listed(self.fields)}, "
                    f"and {_listed(missing)} is missing: choose among its fields with fields="
                )
            yield record["docno"], _joined(record[name] for name in self.fields)

    def docnos(self) -> list[str]:
        """Lists the identifiers, sorted."""
        return sorted({docno for docno, _ in self})

    def texts(self, docnos: Collection[str]) -> dict[str, str]:
        """Finds the texts of some documents; those that the corpus lacks are left out."""
        reference = self._reference()
        if reference is None:
            self._texts = self._texts or dict(self)
            return {docno: self._texts[docno] for docno in docnos if docno in self._texts}
        if missing := set(self.fields) - set(reference.docs_cls()._fields):
            raise ValueError(
                f"documents of {self.corpus!r} have the fields {list(reference.docs_cls()._fields)}, not "
                f"{_listed(sorted(missing))}; choose among them with fields="
            )
        if self._store is None or self._store[0] != os.getpid():  # a process of its own needs a file of its own
            self._store = os.getpid(), reference.docs_store()
        found = self._store[1].get_many(docnos)
        return {docno: _joined(getattr(doc, name) for name in self.fields) for docno, doc in found.items()}

    def _reference(self) -> Any:
        """Returns the dataset of ir_datasets, if it is one."""
        if not isinstance(self.corpus, pt.datasets.Dataset) or not hasattr(self.corpus, "irds_ref"):
            return None
        reference = self.corpus.irds_ref()
        return reference if reference.has_docs() else None

    def _records(self) -> Iterable[Mapping[str, Any]]:
        if isinstance(self.corpus, pt.datasets.Dataset):
            return self.corpus.get_corpus_iter(verbose=False)
        if isinstance(self.corpus, pd.DataFrame):
            return self.corpus.to_dict(orient="records")
        return self.corpus


def _joined(parts: Iterable[Any]) -> str:
    return " ".join(part for part in parts if isinstance(part, str) and part)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
