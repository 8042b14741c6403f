"""Read existing training triples: docpairs, identifiers or texts, in memory or in files.

Triples from files and from ir_datasets are cached in PyTerrier's home as Arrow files, which ``datasets`` maps into
memory. Triples of identifiers store row numbers of two tables of texts, and each batch looks up its texts there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import reprlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pyterrier as pt
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher
from ir_datasets.formats import GenericDocPair, TsvDocPairs
from more_itertools import always_iterable, chunked, spy

from ..utils.checks import FieldNames, PositiveInteger, Seed, checked, require_distinct_columns, require_topics
from ..utils.compat import progress_bar
from ..utils.folders import atomic_folder, checksum, folder_lock
from ..utils.processes import is_first
from .corpus import Corpus, Documents, join_texts

logger = logging.getLogger(__name__)
LABEL = "label"  # the column of numeric labels, with the name that sentence-transformers uses
# the accepted names of columns, in order of preference
QUERIES = ("query", "anchor", "question")
QUERY_IDENTIFIERS = ("qid", "query_id", "query")
POSITIVES = ("positive", "pos", "passage", "document", "answer", "positives", "positive_passages")
NEGATIVES = ("negative", "neg", "negatives", "negative_passages")
KNOWN = {*QUERIES, *QUERY_IDENTIFIERS, *POSITIVES, *NEGATIVES, LABEL}
ROWS = 20_000
LARGEST_ROW = 2**24
ODD = np.uint64(0x9E3779B97F4A7C15)
CACHE_FORMAT = 6
TrainingSet: TypeAlias = Dataset | DatasetDict  # the triples of one collection, or of several by name


class Triples(NamedTuple):
    """Training data and a summary of its origin.

    Attributes:
        dataset: The texts in the columns ``query``, ``positive``, ``negative`` or ``negative_1``, ..., ``negative_K``,
            and ``label`` if the source has it. Several collections are a ``DatasetDict``.
        summary: The source and settings; the numbers of rows ``read``, kept (``triples``) and ``dropped``; the numbers
            of distinct ``queries`` and ``positives``; the number of ``negatives`` per triple; and ``fingerprint``, a
            checksum of all texts and labels in order. For several collections, it has the totals, and the summary of
            each one in ``collections``.
    """

    dataset: TrainingSet
    summary: dict[str, Any]


@checked
def read_triples(
    source: Any,
    *,
    topics: pd.DataFrame | None = None,
    corpus: Corpus | None = None,
    fields: FieldNames = ("text",),
    max_pairs_per_query: PositiveInteger | None = None,
    limit: PositiveInteger | None = None,
    seed: Seed = 42,
    store_texts: bool = True,
    verbose: bool = False,
) -> Triples:
    """Read triples, or pairs without a negative, from texts, identifiers, or the docpairs of a dataset.

    Docpairs and identifiers are shuffled and deduplicated; texts keep their order. Name the columns ``query`` (or
    ``anchor``; ``qid`` for identifiers), ``positive`` (or ``pos``, ``passage``, ``document``), ``negative`` (or
    ``neg``) or ``negative_1``, ``negative_2``, ..., and ``label``. Other columns are ignored. Columns without names are
    read in this order. If positives or negatives are lists, as in the JSON lines of Tevatron, each pair of them becomes
    a triple. Rows that lack a text are dropped and counted.

    Args:
        source: A PyTerrier dataset with docpairs, such as ``irds:msmarco-passage/train``; a frame, a
            ``datasets.Dataset``, tuples or dictionaries; or the path of a TSV, CSV, JSON lines or Parquet file,
            optionally with ``.gz``. For several collections, pass a mapping from names to sources.
        topics: The queries, if the source holds identifiers.
        corpus: The documents, if the source holds identifiers.
        fields: The fields of a document to join by a space into its text.
        max_pairs_per_query: The maximum number of docpairs, or rows of identifiers, to keep per query.
        limit: The maximum number of triples to keep per collection.
        seed: The seed of the shuffle.
        store_texts: Whether to copy the documents. If False, each batch reads its documents from the corpus.
        verbose: Whether to show a progress bar.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If columns are missing, a file is damaged, no row is usable, or the options contradict the source.
        TypeError: If a text is not a string, or a label is not a number.

    Example:
        >>> read_triples([("sort", "sort rows", "plot a file")]).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    if isinstance(source, Mapping):
        require_names(source, "source")
        if isinstance(source, DatasetDict):
            raise ValueError(
                f"got the splits {list(source)}: pass one, such as source['train'], or dict(source) for collections"
            )
        settings: dict[str, Any] = {"limit": limit, "seed": seed, "store_texts": store_texts, "verbose": verbose}
        settings |= {"topics": topics, "corpus": corpus, "fields": fields, "max_pairs_per_query": max_pairs_per_query}
        parts = {}
        for name, part in source.items():
            with in_collection(name):
                parts[name] = read_triples(part, **settings)
        return join_collections(parts)
    queries: Any
    if isinstance(source, pt.datasets.Dataset):
        kinds = ("docs", "queries", "qrels", "scoreddocs", "docpairs")
        has = [kind for kind in kinds if hasattr(source, "irds_ref") and getattr(source.irds_ref(), f"has_{kind}")()]
        missing = sorted({"docs", "queries", "docpairs"}.difference(has))
        if missing:
            raise ValueError(
                f"expected a dataset with docs, queries and docpairs, got {source!r} with no {' or '.join(missing)} "
                f"(it has {has}); pass its topics and qrels to fit, behind a retriever or with corpus= at the trainer"
            )
        queries = ((query.query_id, query.default_text()) for query in cast(Any, source).irds_ref().queries_iter())
        identity, tables = [_part(source, "docpairs"), _part(source, "queries")], _docpairs(source)
        kind, corpus = "docpairs", source
    elif topics is None:
        if max_pairs_per_query is not None:
            raise ValueError(
                f"max_pairs_per_query={max_pairs_per_query} needs a PyTerrier dataset with docpairs, or topics= for "
                f"identifiers; the source is a {type(source).__name__}, whose triples have no query identifiers"
            )
        origin: dict[str, Any] = {"source": _name(source), "kind": "texts", "limit": limit}
        write = partial(write_triples, tables=_tables(source, fields, False), origin=origin)
        files, summary = kept([origin, list(fields), _identity(source)], write)
        return Triples(files["triples"], summary)
    elif corpus is None:
        raise ValueError("with topics=, the source holds identifiers; pass the documents as corpus=")
    else:
        require_topics(topics)
        queries = dict(zip(topics["qid"], topics["query"], strict=True))
        kind, identity, tables = "identifiers", [_identity(source), queries], _tables(source, fields, True)
    origin = {"source": _name(source), "kind": kind, "max_pairs_per_query": max_pairs_per_query, "limit": limit}
    origin |= {"seed": seed, "fields": list(fields)}
    documents = Documents(corpus, fields)
    options: dict[str, Any] = {"store_texts": store_texts, "verbose": verbose and is_first()}
    write = partial(_write_pairs, tables=tables, queries=queries, documents=documents, origin=origin, **options)
    files, summary = kept([origin, store_texts, *identity, _part(corpus, "docs")], write)
    lookup = _Lookup(files["queries"], files["documents"], None if store_texts else documents)
    return Triples(files["triples"].with_transform(lookup), summary)


def join_collections(parts: Mapping[str, Triples]) -> Triples:
    """Join the triples of several collections. Either all of them or none of them need labels."""
    labelled = [name for name, part in parts.items() if LABEL in part.dataset.column_names]
    others = [name for name in parts if name not in labelled]
    if labelled and others:
        raise ValueError(
            f"either all or none of the collections need a column {LABEL!r}, got it in {labelled} and not in "
            f"{others}; add or drop it"
        )
    summaries = {name: part.summary for name, part in parts.items()}
    counts = ("read", "triples", "dropped", "queries", "positives")
    totals = {count: sum(summary[count] for summary in summaries.values()) for count in counts}
    fingerprints = json.dumps([(name, summary["fingerprint"]) for name, summary in summaries.items()]).encode()
    summary = {"collections": summaries, **totals, "fingerprint": hashlib.sha256(fingerprints).hexdigest()[:16]}
    return Triples(DatasetDict({name: part.dataset for name, part in parts.items()}), summary)


def require_names(collections: Mapping[Any, Any], option: str) -> None:
    """Check that there is at least one collection, and that all names are nonempty strings."""
    wrong = [name for name in collections if not isinstance(name, str) or not name.strip()]
    if wrong or not collections:
        raise ValueError(
            f"{option} must name at least one collection with a string, such as {{'a': ...}}, got {wrong or 'none'}"
        )


@contextmanager
def in_collection(name: str) -> Iterator[None]:
    """Add the name of the collection to errors."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in the collection {name!r}")
        raise


def parts_of(dataset: TrainingSet) -> list[Dataset]:
    """Return the datasets that batches are drawn from."""
    return list(dataset.values()) if isinstance(dataset, DatasetDict) else [dataset]


def kept(identity: Sequence[Any], write: Callable[[Path], dict[str, Any]]) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Load the cached Arrow files and summary of an identity, or write them to a folder now."""
    if None in identity:
        with tempfile.TemporaryDirectory() as temporary:
            summary = write(Path(temporary))
            return _load(Path(temporary), in_memory=True), summary
    key = json.dumps([CACHE_FORMAT, *identity])
    folder = Path(pt.io.pyterrier_home()) / "selfdistill" / "triples" / hashlib.sha256(key.encode()).hexdigest()[:16]
    if folder.exists() and not _summary(folder):
        with folder_lock(folder, "removing damaged triples", wait=True):
            if not _summary(folder):
                shutil.rmtree(folder)
    if not folder.exists():
        # wait if another process makes the same triples
        with suppress(FileExistsError), atomic_folder(folder, doing="making triples", wait=True) as unfinished:
            summary = write(unfinished)
            summary["files"] = {path.name: checksum(path) for path in unfinished.glob("*.arrow")}
            (unfinished / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    logger.info("reading triples from %s", folder)
    return _load(folder, in_memory=False), _summary(folder)


def _summary(folder: Path) -> dict[str, Any]:
    """Read the summary of triples. It is empty if a file is missing or was changed."""
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        is_whole = all(checksum(folder / name) == saved for name, saved in summary.pop("files").items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return summary if is_whole else {}


def _load(folder: Path, *, in_memory: bool) -> dict[str, Dataset]:
    return {path.stem: Dataset.from_file(str(path), in_memory=in_memory) for path in folder.glob("*.arrow")}


def _identity(source: Any) -> Any:
    """Return a description of a source on disk that changes with its content, or None for a source in memory."""
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            found = ", but a folder" if path.is_dir() else ""
            raise FileNotFoundError(f"there is no file {str(path)!r} to read triples from{found}; check the path")
        return _file(path)
    if isinstance(source, Dataset) and source.cache_files and source.format["type"] != "custom":
        return Hasher.hash(source)
    return None


def _file(path: Path) -> list[Any]:
    """Describe a file, and include the content if it is small, since it may be written twice at the same moment."""
    status = path.stat()
    content = hashlib.sha256(path.read_bytes()).hexdigest() if status.st_size <= LARGEST_ROW else ""
    return [str(path.resolve()), status.st_size, status.st_mtime_ns, content]


def _part(dataset: Any, part: str) -> list[Any] | None:
    """Describe the docs, queries or docpairs of a dataset of ir_datasets, or return None if nothing identifies them."""
    if not isinstance(dataset, pt.datasets.Dataset) or not hasattr(dataset, "irds_ref"):
        return None
    reference = dataset.irds_ref()
    published: dict[str, Any] = getattr(reference, f"{part}_metadata", dict)()
    if published:
        # asking for the files would download them, and ir_datasets has already checked the ones it has
        return [repr(dataset), version("ir_datasets"), published]
    try:
        paths = getattr(reference, f"{part}_path")()
    except (AttributeError, NotImplementedError):
        return None
    return [repr(dataset), *map(_file, map(Path, always_iterable(paths, base_type=(str, Path))))]


def _name(source: Any) -> str:
    if isinstance(source, str | Path):
        return str(source)
    return repr(source) if isinstance(source, pt.datasets.Dataset) else type(source).__name__


def write_tables(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write tables with the same columns to an Arrow file. Without a table, no file is written."""
    first, tables = spy(tables)
    if first:
        with pa.ipc.new_stream(str(path), first[0].schema) as writer:
            for table in tables:
                writer.write_table(table)


def write_triples(
    folder: Path, tables: Iterable[pa.Table], origin: Mapping[str, Any], read: int | None = None
) -> dict[str, Any]:
    """Write the usable rows of tables, up to the limit in ``origin``, and return their summary."""
    columns: dict[str, list[np.ndarray]] = {}
    counted, room = 0, origin.get("limit") or sys.maxsize

    def usable_rows() -> Iterator[pa.Table]:
        nonlocal counted, room
        for table in tables:
            trimmed = [_trimmed_checksums(table[name]) for name in table.column_names if name != LABEL]
            rows = np.flatnonzero(_usable(*trimmed))[:room]
            usable = table.take(pa.array(rows))
            for name in table.column_names:
                columns.setdefault(name, []).append(checksums(usable[name]))
            yield usable
            room -= len(rows)
            counted += len(table) if room else int(rows[-1]) + 1
            if not room:
                return

    write_tables(folder / "triples.arrow", usable_rows())
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    return summarize(origin, counted if read is None else read, arrays)


def summarize(origin: Mapping[str, Any], read: int, columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Make the summary of triples from the checksums of their columns and the number of rows that were read."""
    triples = len(columns["query"]) if columns else 0
    if not triples:
        raise ValueError(
            f"{origin['source']}: expected triples to train with, got none in {read} rows; each needs a text for the "
            "query, the positive and any negatives, and a negative must differ from the positive"
        )
    if read > triples:
        is_limited = origin.get("limit") == triples and origin["kind"] != "texts"
        log = logger.info if is_limited or origin.get("max_pairs_per_query") else logger.warning
        reasons = "such as duplicates, rows with an empty text, and negatives with the text of the positive"
        log("%d of %d rows were dropped, %s", read - triples, read, reasons)
    fingerprint = hashlib.sha256()
    for name, values in columns.items():
        fingerprint.update(name.encode())
        fingerprint.update(np.ascontiguousarray(values).data)
    return {
        **origin,
        "read": read,
        "triples": triples,
        "dropped": read - triples,
        "queries": len(np.unique(columns["query"])),
        "positives": len(np.unique(columns["query"] * ODD + columns["positive"])),
        "negatives": sum(name.startswith("negative") for name in columns),
        "fingerprint": fingerprint.hexdigest()[:16],
    }


def checksums(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a checksum of each text, and return numbers unchanged."""
    values = column.to_numpy(zero_copy_only=False)
    return pd.util.hash_array(values, categorize=False) if pa.types.is_string(column.type) else values


def string_table(columns: Mapping[str, Sequence[str]]) -> pa.Table:
    """Make a table of string columns. Strings with half a character raise ``ValueError``."""
    try:
        return pa.table({name: pa.array(texts, pa.string()) for name, texts in columns.items()})
    except UnicodeEncodeError as error:
        raise ValueError(
            f"texts must hold whole characters, got half of one in {reprlib.repr(error.object)}; read texts as UTF-8"
        ) from None


def _trimmed_checksums(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a checksum of each stripped text, and 0 for an empty text."""
    texts = pc.utf8_trim_whitespace(column)
    return np.where(np.asarray(pc.equal(texts, "")), 0, checksums(texts))


def _usable(queries: np.ndarray, positives: np.ndarray, *negatives: np.ndarray) -> np.ndarray:
    """Mark the rows with a text in each column, whose negatives differ from the positive, by trimmed checksums."""
    usable = (queries != 0) & (positives != 0)
    for others in negatives:
        usable &= (others != 0) & (others != positives)
    return usable


def column_names(number: int) -> list[str]:
    """Name the columns of rows with a query, a positive and optional negatives."""
    if number < 2:
        raise ValueError(
            f"expected rows of a query, a positive and optional negatives, got rows of {number} texts; check the "
            "separator of the columns, or name them"
        )
    negatives = ["negative"] if number == 3 else [f"negative_{position}" for position in range(1, number - 1)]
    return ["query", "positive", *negatives]


def _columns(source: Any, names: Sequence[Any], identifiers: bool) -> dict[str, Any]:
    """Find the columns of triples among the names of a source. Columns without names are numbered."""
    require_distinct_columns(names, "triples")
    if all(str(name).isdecimal() for name in names):
        return dict(zip(column_names(len(names)), names, strict=True))
    of_queries = QUERY_IDENTIFIERS if identifiers else QUERIES
    columns: dict[str, Any] = {}
    for role, known in (("query", of_queries), ("positive", POSITIVES), ("negative", NEGATIVES)):
        number = r"(_\d+)?" if role == "negative" else "()"
        matches = [re.fullmatch(rf"({'|'.join(known)}){number}", str(name)) for name in names]
        # sort by number: as a string, negative_10 comes before negative_2
        order = {(known.index(match[1]), int((match[2] or "_0")[1:]), match[0]): match for match in matches if match}
        found = [order[key] for key in sorted(order)]
        columns |= {f"{role}{match[2] or ''}": match[0] for match in found if match[1] == found[0][1]}
    is_pair = columns.keys() == {"query", "positive"}
    # do not read triples as pairs if the negatives have another name
    if not columns.keys() >= {"query", "positive"} or (is_pair and any("neg" in str(name).lower() for name in names)):
        expected = "; ".join(" or ".join(map(repr, known)) for known in (of_queries, POSITIVES, NEGATIVES))
        raise ValueError(
            "triples must have a column for the query, one for the positive, and optionally one or more for negatives "
            f"({expected}, 'negative_1', 'negative_2', ...), got the columns {list(names)}; rename some, or "
            "pass topics and qrels to fit"
        )
    if LABEL in names and not identifiers:
        columns[LABEL] = LABEL
    unused = [name for name in names if name not in columns.values()]
    if unused or any(role != name for role, name in columns.items()):
        log = logger.warning if is_pair and unused else logger.info
        log("%s: the columns of triples are %s; not used: %s", _name(source), columns, unused)
    return columns


def _tables(source: Any, fields: Sequence[str], identifiers: bool, kind: str | None = None) -> Iterator[pa.Table]:
    """Read the columns of triples from any source, as strings without missing values, and labels as float32."""
    try:
        for table in _raw_tables(source, identifiers, kind):
            rows = _unfolded(table, fields)
            yield pa.table({name: _values(name, rows[name]) for name in rows.column_names})
    except (pa.ArrowException, OSError, TypeError, UnicodeError) as error:
        error_type = TypeError if isinstance(error, TypeError) else ValueError
        raise error_type(f"{_name(source)}: {error}; correct the data, or write it again") from error
    except ValueError as error:
        raise ValueError(f"{_name(source)}: {error}") from error


def _unfolded(table: pa.Table, fields: Sequence[str]) -> pa.Table:
    """Make one row per pair of positive and negative if columns hold lists of texts or documents."""
    lists = [one.name for one in table.schema if pa.types.is_list(one.type) and one.name not in ("qid", "query", LABEL)]
    if not lists:
        return table
    frame = table.to_pandas()
    for name in lists:
        # an empty list becomes a row without a text, which counts as dropped
        frame = frame.explode(name)
        texts = [join_texts(map(text.get, fields)) if isinstance(text, dict) else text for text in frame[name]]
        frame = frame.assign(**{name: texts})
    return pa.Table.from_pandas(frame, preserve_index=False)


def _values(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = kind in (pa.string(), pa.large_string(), pa.string_view(), pa.null())
    if name != LABEL and not is_text:
        raise TypeError(f"column {name!r} must hold texts, got {column.type}")
    if is_text:
        column = column.cast(pa.string()).fill_null("")
    if name != LABEL:
        return column
    try:
        numbers = (pc.utf8_trim_whitespace(column) if is_text else column).cast(pa.float32(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers = pa.nulls(len(column), pa.float32())
    if pa.types.is_boolean(kind) or not pc.all(pc.fill_null(pc.is_finite(numbers), False)).as_py():
        raise TypeError(f"column {LABEL!r} must hold a number in every row, got others among {kind}")
    return numbers


def _raw_tables(source: Any, identifiers: bool, kind: str | None) -> Iterator[pa.Table]:
    if isinstance(source, str | Path):
        yield from _read_file(Path(source), identifiers, kind)
    elif isinstance(source, Dataset):
        rows = source
        if source.format["type"] != "custom":
            shown = None if source.format["output_all_columns"] else source.format["columns"]
            rows = source.with_format("arrow", columns=shown)
        columns: dict[str, Any] = {}
        for batch in rows.iter(batch_size=ROWS):
            # a transform may compute texts from other columns
            names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
            columns = columns or _columns(source, names, identifiers)
            yield _chosen(batch, columns)
    elif isinstance(source, pd.DataFrame | Iterable):
        frame: Any = source
        if not isinstance(source, pd.DataFrame):
            rows = list(source)
            form = Mapping if rows and isinstance(rows[0], Mapping) else Sequence
            for position, row in enumerate(rows):
                if isinstance(row, str) or not isinstance(row, form) or (form is Sequence and len(row) != len(rows[0])):
                    raise TypeError(f"row {position} is {row!r}; expected tuples of one length, or dictionaries")
            frame = pd.DataFrame(rows)
        if len(frame):
            columns = _columns(source, list(frame.columns), identifiers)
            table = _chosen(pa.Table.from_pandas(frame[list(columns.values())], preserve_index=False), columns)
            yield from (table[start : start + ROWS] for start in range(0, len(table), ROWS))
    else:
        raise TypeError(f"expected a frame, a datasets.Dataset, an iterable of rows or a path, got {source!r}")


def _chosen(table: Mapping[str, Any], columns: Mapping[str, Any]) -> pa.Table:
    return pa.table({role: table[name] for role, name in columns.items()})


def _read_file(path: Path, identifiers: bool, kind: str | None) -> Iterator[pa.Table]:
    """Read a file with Arrow, since its errors name the row."""
    kind = kind or Path(path.name.lower().removesuffix(".gz")).suffix
    if kind == ".parquet":
        with pq.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, identifiers)
            for batch in file.iter_batches(ROWS, columns=list(columns.values())):
                # otherwise strings that are not UTF-8 would fail only when they are used
                batch.validate(full=True)
                yield _chosen(batch, columns)
    elif kind in (".json", ".jsonl"):
        yield from _read_json(path, identifiers)
    elif kind in (".tsv", ".csv"):
        # TSV has no quoting, as in the files of MS MARCO
        yield from _read_rows(path, identifiers, quoted=kind == ".csv")
    else:
        raise ValueError("expected a file named .tsv, .csv, .jsonl or .parquet (.gz may follow)")


def first_line(path: Path) -> str:
    """Read the first nonempty line of a file, or return ``""``."""
    with (gzip.open if _compression(path) else open)(path, "rt", encoding="utf-8-sig") as lines:
        return next(filter(str.strip, lines), "")


def _read_json(path: Path, identifiers: bool) -> Iterator[pa.Table]:
    """Read one JSON object per line, with the columns of the first one."""
    first = first_line(path)
    names = json.loads(first) if first.lstrip().startswith("{") else {}
    if not names:
        raise ValueError("expected one JSON object per line, such as {'query': ..., 'positive': ..., 'negative': ...}")
    # set the types, since Arrow would read some texts as times
    columns = _columns(path, list(names), identifiers)
    types = {
        name: pa.array([names[name]]).type if isinstance(names[name], list) else pa.string()
        for name in columns.values()
    }
    types |= {LABEL: pa.float64()} if LABEL in columns else {}
    options = pa.json.ParseOptions(explicit_schema=pa.schema(types), unexpected_field_behavior="ignore")
    with pa.input_stream(str(path), compression=_compression(path)) as file:
        for batch in pa.json.open_json(file, pa.json.ReadOptions(block_size=LARGEST_ROW), options):
            yield _chosen(batch, columns)


def _read_rows(path: Path, identifiers: bool, *, quoted: bool) -> Iterator[pa.Table]:
    """Read cells separated by tabs, or by commas with optional quotes. Columns without names are numbered."""
    options: dict[str, Any] = {"newlines_in_values": True} if quoted else {"delimiter": "\t", "quote_char": False}
    numbered = pa.csv.ReadOptions(autogenerate_column_names=True, block_size=LARGEST_ROW)
    types = pa.csv.ConvertOptions(column_types={f"f{number}": pa.string() for number in range(1_000)})
    columns: dict[str, str] = {}
    with pa.input_stream(str(path), compression=_compression(path)) as file:
        for batch in pa.csv.open_csv(file, numbered, pa.csv.ParseOptions(**options), types):
            if any(pc.any(pc.match_substring(column, "\0")).as_py() for column in batch.columns):
                raise ValueError("a text contains a NUL character; convert the file to UTF-8")
            start = 0
            if not columns:
                names = [column[0].as_py().strip().lower() for column in batch.columns]
                known = [name for name in names if re.sub(r"_\d+$", "", name) in KNOWN]
                start = int(len(known) > 1 or (len(known) == 1 and all(map(str.isidentifier, names))))
                names = names if start else list(map(str, range(len(names))))
                found = _columns(path, names, identifiers)
                columns = {role: batch.schema.names[names.index(name)] for role, name in found.items()}
            yield _chosen(batch[start:], columns)
    if quoted and len(batch) and batch.columns[-1][-1].as_py().endswith("\n"):
        raise ValueError("the quotes of the last row are not closed; close them")


def _compression(path: Path) -> str | None:
    with path.open("rb") as file:
        return "gzip" if file.read(2) == b"\x1f\x8b" else None


def _docpairs(dataset: pt.datasets.Dataset) -> Iterator[pa.Table]:
    """Read docpairs directly from a file with only docpairs, since ir_datasets is several times slower."""
    reference = cast(Any, dataset).irds_ref()
    handler = reference.docpairs_handler()
    if type(handler) is TsvDocPairs and handler.docpairs_cls() is GenericDocPair:
        path = Path(reference.docpairs_path())
        for table in _tables(path, [], True, ".tsv"):
            if table.num_columns != 3:
                raise ValueError(f"{path}: expected query, positive and negative per line, got {table.num_columns}")
            yield table
        return
    for chunk in chunked(reference.docpairs_iter(), ROWS):
        columns = zip(*map(attrgetter("query_id", "doc_id_a", "doc_id_b"), chunk), strict=True)
        yield string_table(dict(zip(column_names(3), columns, strict=True)))


@dataclass(eq=False)
class _Lookup:
    """Transform the row numbers of a batch to texts."""

    queries: Dataset
    documents: Dataset
    corpus: Documents | None  # where to read the texts of documents, if they are not stored

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
        texts = {}
        for name, rows in batch.items():
            found = (self.queries if name == "query" else self.documents)[rows]
            if name != "query" and self.corpus is not None:
                known = self.corpus.texts(set(found["docno"]))
                found["text"] = [known[docno] for docno in found["docno"]]
            texts[name] = list(found["text"])
        return texts

    def __deepcopy__(self, memo: dict[int, Any]) -> _Lookup:
        # datasets copies a transform with each view of a dataset, and the corpus may be in memory
        return self


def _numbered(tables: Iterable[pa.Table]) -> tuple[dict[str, np.ndarray], pa.Array, pa.Array]:
    """Replace identifiers by numbers, and return the columns with the identifiers of queries and documents."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs"
        write_tables(path, tables)
        pairs = string_table({name: [] for name in column_names(3)})
        if path.exists():
            pairs = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
        names = pairs.column_names
        qids = pairs["query"].dictionary_encode().combine_chunks()
        columns = [chunk for name in names[1:] for chunk in pairs[name].chunks]
        docnos = pa.chunked_array(columns, pa.string()).dictionary_encode().combine_chunks()
    numbers = [qids.indices.to_numpy(), *np.split(docnos.indices.to_numpy(), len(names) - 1)]
    return dict(zip(names, numbers, strict=True)), qids.dictionary, docnos.dictionary


def _write_pairs(
    folder: Path,
    tables: Iterable[pa.Table],
    queries: Any,
    documents: Documents,
    origin: Mapping[str, Any],
    *,
    store_texts: bool,
    verbose: bool,
) -> dict[str, Any]:
    """Write each text once and triples of their row numbers, and return the summary."""
    pairs, qids, docnos = _numbered(tables)
    query_of, *documents_of = pairs.values()
    number = len(query_of)
    limit, most = origin["limit"] or number or 1, origin["max_pairs_per_query"] or number
    order = np.random.default_rng(origin["seed"]).permutation(np.arange(number, dtype=np.int32))
    # checksums of pairs, since a frame of all identifiers takes several times the memory
    combined = query_of.astype(np.uint64)
    for column in documents_of:
        combined = combined * ODD + column.astype(np.uint64)
    order = order[~pd.Series(combined[order]).duplicated().to_numpy()]
    del combined
    texts = dict(queries)
    query_texts = pa.array([texts.get(qid) or "" for qid in qids.to_pylist()], pa.string())
    trimmed_queries = _trimmed_checksums(query_texts)
    # for each document: the row of its text (-1 until it is looked up), and checksums of the text
    row_of = np.full(len(docnos), -1, dtype=np.int32)
    exact, trimmed = np.zeros((2, len(docnos)), dtype=np.uint64)
    taken = np.zeros(len(qids), dtype=int)
    chosen = [np.empty(0, dtype=np.int32)]

    def documents_of_chosen() -> Iterator[pa.Table]:
        size = min(ROWS, 2 * limit)
        for start in range(0, len(order), size):
            block = order[start : start + size]
            block = block[taken[query_of[block]] < most]
            wanted = np.unique(np.concatenate([column[block] for column in documents_of]))
            wanted = wanted[row_of[wanted] < 0]
            if len(wanted):
                names = docnos.take(pa.array(wanted)).to_pylist()
                found = documents.texts(names)
                table = string_table({"docno": names, "text": [found.get(docno, "") for docno in names]})
                row_of[wanted] = np.arange(len(wanted)) + row_of.max() + 1
                exact[wanted], trimmed[wanted] = checksums(table["text"]), _trimmed_checksums(table["text"])
                yield table if store_texts else table.select(["docno"])
            usable = _usable(trimmed_queries[query_of[block]], *(trimmed[column[block]] for column in documents_of))
            block = block[usable]
            earlier = pd.Series(query_of[block]).groupby(query_of[block]).cumcount().to_numpy()
            block = block[taken[query_of[block]] + earlier < most]
            taken[:] += np.bincount(query_of[block], minlength=len(taken))
            chosen.append(block)
            bar.update(len(block))
            if sum(map(len, chosen)) >= limit:
                return

    with progress_bar(total=min(limit, number), desc="Making triples", unit="triple", disable=not verbose) as bar:
        write_tables(folder / "documents.arrow", documents_of_chosen())
    triples = np.concatenate(chosen)[:limit]
    chosen.clear()
    of_query, *of_documents = (numbers[triples] for numbers in pairs.values())
    rows = [of_query, *(row_of[numbers] for numbers in of_documents)]
    columns = [checksums(query_texts)[of_query], *(exact[numbers] for numbers in of_documents)]
    write_tables(folder / "queries.arrow", [pa.table({"text": query_texts})])
    write_tables(folder / "triples.arrow", [pa.table(dict(zip(pairs, rows, strict=True)))])
    return summarize(origin, number, dict(zip(pairs, columns, strict=True)))
