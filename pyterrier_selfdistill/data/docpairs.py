"""Read the training pairs of a dataset of ir_datasets.

They come from the dataset's own file where that holds the same pairs, at millions a second. Where ir_datasets chooses
among the lines of a file, or makes pairs itself, they come from its iterator.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyterrier as pt
from ir_datasets.formats import GenericDocPair, TsvDocPairs
from more_itertools import chunked

from .columns import column_names, string_table
from .readers import is_gzip

DOCPAIRS = 200_000
"""How many docpairs of an iterator are read at once."""

BLOCK = 2**23
"""How many bytes of a file are read at once."""


class Docpairs:
    """The training pairs of a dataset, in parts, which can be read again.

    Args:
        reference: The dataset of ir_datasets, which has docpairs.
        verbose: Whether to show a progress bar.
    """

    def __init__(self, reference: Any, *, verbose: bool = False) -> None:
        self._reference = reference
        self._verbose = verbose

    def __iter__(self) -> Iterator[pa.Table]:
        """Read all pairs, from the first one on.

        Yields:
            Tables of identifiers: ``query``, ``positive``, ``negative``.

        Raises:
            ValueError: If the file of the pairs is damaged.
        """
        tables = self._tables_of_iterator()
        if has_own_file(self._reference):
            tables = _tables_of_file(Path(self._reference.docpairs_path()))
        with pt.tqdm(desc="Reading docpairs", unit="pair", disable=not self._verbose) as bar:
            for table in tables:
                yield table
                bar.update(len(table))

    def _tables_of_iterator(self) -> Iterator[pa.Table]:
        identifiers = attrgetter("query_id", "doc_id_a", "doc_id_b")
        names = column_names(3)
        for chunk in chunked(self._reference.docpairs_iter(), DOCPAIRS):
            columns = zip(*map(identifiers, chunk), strict=True)
            yield string_table(dict(zip(names, columns, strict=True)))


def has_own_file(reference: Any) -> bool:
    """Say whether a dataset's pairs are the lines of a file, all of them and as they are.

    Args:
        reference: The dataset of ir_datasets, which has docpairs.

    Returns:
        True for the class of ir_datasets that reads such files. A class that is made of it may leave lines out, and
        ``msmarco-passage/train/medical`` has no such class.
    """
    handler = reference.docpairs_handler()
    return type(handler) is TsvDocPairs and handler.docpairs_cls() is GenericDocPair


def _tables_of_file(path: Path) -> Iterator[pa.Table]:
    """Read lines of three identifiers, compressed or not."""
    if path.stat().st_size == 0:
        return
    names = column_names(3)
    compression = None
    if is_gzip(path):
        compression = "gzip"
    try:
        with (
            pa.input_stream(path, compression=compression) as stream,
            pyarrow.csv.open_csv(
                stream,
                pyarrow.csv.ReadOptions(column_names=names, block_size=BLOCK),
                # quotes are part of identifiers, as for ir_datasets
                pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
                pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            ) as batches,
        ):
            for batch in batches:
                yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as lines of query, positive and negative with tabs between ({error}); remove it, "
            "so that ir_datasets downloads it again"
        ) from None
