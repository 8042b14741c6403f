"""What becomes of rows on their way to triples: checked, counted, fingerprinted, and stored.

A :class:`Ledger` accounts for every row that is read; :func:`store` writes those that are kept to an Arrow file that
the same source and settings find again, and returns them as :class:`Triples`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyterrier as pt
from datasets import Dataset

from .columns import LABEL

logger = logging.getLogger(__name__)

CACHE_FORMAT = 2
"""Changes when the same source and settings give other triples."""


class Triples(NamedTuple):
    """Training data and where it came from.

    Attributes:
        dataset: The texts, in the columns ``query``, ``positive``, ``negative`` or ``negative_1``, ..., ``negative_K``;
            and ``label``, if the source has it.
        summary: Where the triples come from and what became of every row of it:

            - ``source`` and the settings;
            - ``read``, how many rows there were, which is the sum of
            - ``triples``, how many became triples, and
            - ``dropped``, how many did not, by reason;
            - ``queries``, ``positives`` (of a query) and ``negatives`` (of a triple);
            - ``fingerprint``, a checksum of all texts, and labels, in their order.
    """

    dataset: Dataset
    summary: dict[str, Any]


class Ledger:
    """Accounts for every row: what was read, what was dropped and why, and what was kept.

    Args:
        summary: The source and the settings; what is counted comes after them.
    """

    def __init__(self, summary: dict[str, Any]) -> None:
        self.origin = summary
        self.read = 0
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self._queries, self._positives = Distinct(), Distinct()
        self._negatives = 0
        self._checksums: dict[str, Any] = {}

    def keep(self, rows: pd.DataFrame, kept: pd.Series, reason: str) -> pd.DataFrame:
        """Drops rows of identifiers."""
        self._drop(reason, len(rows) - int(kept.sum()))
        return rows[kept]

    def usable(self, texts: pa.Table, rows: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Drops rows with texts that cannot be trained with."""
        trimmed = {name: pc.utf8_trim_whitespace(pc.fill_null(texts[name], "")) for name in texts.column_names}
        faults = [(f"no text in {name!r}", pc.equal(column, "")) for name, column in trimmed.items()]
        faults += [
            ("negative with the text of the positive", pc.equal(trimmed[name], trimmed["positive"]))
            for name in texts.column_names[2:]
        ]
        kept = np.ones(len(texts), dtype=bool)
        for reason, fault in faults:
            wrong = kept & fault.to_numpy()
            self._drop(reason, int(wrong.sum()))
            kept &= ~wrong
        return texts.filter(pa.array(kept)), rows.filter(pa.array(kept))

    def count(self, texts: pa.Table, rows: pa.Table) -> None:
        """Counts rows that are kept, and adds their texts and labels to the fingerprint."""
        self.kept += len(texts)
        self._negatives = texts.num_columns - 2
        pairs = texts.select(["query", "positive"]).to_pandas()
        self._queries.add(pd.util.hash_array(pairs["query"].to_numpy(), categorize=False))
        self._positives.add(pd.util.hash_pandas_object(pairs, index=False, categorize=False).to_numpy())
        for name in texts.column_names:
            checksums = self._checksums.setdefault(name, (hashlib.sha256(), hashlib.sha256()))
            for checksum, part in zip(checksums, _bytes_and_lengths(texts[name]), strict=True):
                checksum.update(part)
        if LABEL in rows.column_names:
            checksums = self._checksums.setdefault(LABEL, (hashlib.sha256(),))
            checksums[0].update(rows[LABEL].to_numpy().tobytes())

    def summary(self) -> dict[str, Any]:
        """Says it all, once everything was read."""
        fingerprint = hashlib.sha256()
        for name, checksums in self._checksums.items():
            fingerprint.update(name.encode() + b"".join(checksum.digest() for checksum in checksums))
        return {
            **self.origin,
            "read": self.read,
            "triples": self.kept,
            "dropped": dict(self.dropped),
            "queries": self._queries.number,
            "positives": self._positives.number,
            "negatives": self._negatives,
            "fingerprint": fingerprint.hexdigest()[:16],
        }

    def _drop(self, reason: str, number: int) -> None:
        if number:
            self.dropped[reason] += number


class Distinct:
    """Counts distinct checksums, at 8 bytes each."""

    def __init__(self) -> None:
        self._seen = np.empty(0, dtype=np.uint64)
        self._new: list[np.ndarray] = []

    def add(self, checksums: np.ndarray) -> None:
        """Adds checksums, of type uint64."""
        self._new.append(np.unique(checksums))
        if sum(map(len, self._new)) > max(len(self._seen), 100_000):  # merged rarely, since it sorts
            self._merge()

    @property
    def number(self) -> int:
        """How many distinct ones there were."""
        self._merge()
        return len(self._seen)

    def _merge(self) -> None:
        self._seen, self._new = np.unique(np.concatenate([self._seen, *self._new])), []


def _bytes_and_lengths(column: pa.ChunkedArray) -> tuple[bytes, bytes]:
    """Returns the texts one after another, and how long each is."""
    data, lengths = [], []
    for chunk in column.chunks:
        _, offsets, texts = chunk.buffers()
        places = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        lengths.append(np.diff(places).astype("<i4").tobytes())
        data.append(b"" if texts is None else texts.to_pybytes()[places[0] : places[-1]])
    return b"".join(data), b"".join(lengths)


def store(
    parts: Callable[[], Iterator[tuple[pa.Table, pa.Table]]],
    ledger: Ledger,
    limit: int | None,
    key: list[Any] | None,
    *,
    texts: bool = True,
) -> Triples:
    """Writes what is usable into a folder below PyTerrier's home that the same key finds again.

    The folder is complete or not there at all.

    Args:
        parts: Reads the source in parts: texts, and beside them what to write in their place.
        ledger: The accounts of the source.
        limit: How many rows to keep.
        key: The source and the settings; None keeps the rows in memory.
        texts: Whether to write the texts, or what stands beside them.

    Returns:
        The rows that were kept, and the accounts.

    Raises:
        ValueError: If no row was kept.
    """
    if key is None:
        tables = [pair[0 if texts else 1] for pair in _up_to(limit, parts(), ledger)]
        summary = _complete(ledger)
        return Triples(Dataset(pa.concat_tables(tables)), summary)
    checksum = hashlib.sha256(json.dumps([CACHE_FORMAT, key], default=str).encode()).hexdigest()[:16]
    folder = Path(pt.io.pyterrier_home()) / "selfdistill" / "triples" / checksum
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pt.io.finalized_directory(str(folder)) as unfinished:
                _write(Path(unfinished), (pair[0 if texts else 1] for pair in _up_to(limit, parts(), ledger)))
                (Path(unfinished) / "summary.json").write_text(json.dumps(_complete(ledger), indent=2) + "\n")
        except OSError:
            if not folder.exists():  # otherwise another process was quicker with the same
                raise
    logger.info("reading triples from %s", folder)
    summary = json.loads((folder / "summary.json").read_text())
    return Triples(Dataset.from_file(str(folder / "triples.arrow")), summary)


def _write(folder: Path, tables: Iterator[pa.Table]) -> None:
    with ExitStack() as stack:
        stream = None
        for table in tables:
            stream = stream or stack.enter_context(pa.ipc.new_stream(folder / "triples.arrow", table.schema))
            stream.write_table(table)


def _up_to(
    limit: int | None, parts: Iterator[tuple[pa.Table, pa.Table]], ledger: Ledger
) -> Iterator[tuple[pa.Table, pa.Table]]:
    for texts, rows in parts:
        left = len(texts) if limit is None else limit - ledger.kept
        ledger.count(texts.slice(0, left), rows.slice(0, left))
        yield texts.slice(0, left), rows.slice(0, left)
        if limit is not None and ledger.kept == limit:
            parts.close()  # type: ignore[attr-defined]
            break
    if lost := ledger.read - ledger.kept - ledger.dropped.total():
        ledger.dropped[f"row beyond the first {limit}"] += lost


def _complete(ledger: Ledger) -> dict[str, Any]:
    if not ledger.kept:
        reasons = f": {counts(ledger.dropped)}" if ledger.dropped else ""
        raise ValueError(f"no triples are there to train with, of {ledger.read} rows{reasons}")
    if ledger.dropped:
        logger.warning("%d of %d rows were dropped: %s", ledger.dropped.total(), ledger.read, counts(ledger.dropped))
    return ledger.summary()


def file_signature(path: Path | None) -> list[Any]:
    """Says of a file what changes when its content does."""
    if path is None or not path.is_file():
        return []
    status = path.stat()
    return [str(path.resolve()), status.st_size, status.st_mtime_ns]


def counts(dropped: Mapping[str, int]) -> str:
    """Says how many rows were dropped, and why."""
    return ", ".join(f"{number} x {reason}" for reason, number in dropped.items())
