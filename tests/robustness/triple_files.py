"""Entry points that read triples of texts: from what is in memory, and from files."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from pyterrier_selfdistill.data.triples import from_texts

from . import worlds
from .exploring import EntryPoint, Mutation
from .mutations import (
    HALF_A_CHARACTER,
    OF_ANOTHER_TYPE,
    POSITIVE,
    cell,
    column_twice,
    equivalent_frame,
    frame_mutation,
    mutation,
    no_rows,
    replace,
    without,
)

GZIP = b"\x1f\x8b"
"""How a compressed file begins."""

TEXT_COLUMNS = ["query", "positive", "negative"]

NO_TRIPLES = ["triples", "positive", "negative"]
"""What errors say of data that has no triples."""


@st.composite
def triples(draw: st.DrawFn, *, labels: bool = True) -> pd.DataFrame:
    """Make one to five triples, perhaps with labels, some of them without a text."""
    rows = draw(st.lists(worlds.texts(3), min_size=1, max_size=5))
    frame = pd.DataFrame(rows, columns=TEXT_COLUMNS)
    if draw(st.booleans()):
        frame.loc[len(frame)] = ["sort", draw(st.sampled_from(["", " "])), "plot"]
    if labels and draw(st.booleans()):
        frame["label"] = [number - 1.5 for number in range(len(frame))]
    return frame


def first_with_texts(frame: pd.DataFrame, limit: int | None) -> dict[str, list[Any]]:
    """Return the columns of the first rows that have a text in each."""
    has_texts = frame["positive"].str.strip() != ""
    return frame[has_texts][:limit].to_dict(orient="list")


class FromMemory(EntryPoint):
    """The rows that have all texts, in their order, up to the limit."""

    name = "fit_triples, of rows in memory"

    valid = st.fixed_dictionaries({"source": triples(), "limit": st.none() | st.integers(1, 4)})

    @staticmethod
    def _as(name: str, convert: Callable[[pd.DataFrame], Any]) -> Mutation:
        def change(rows: Any) -> Any:
            if isinstance(rows, pa.Table | Dataset):
                rows = rows.to_pandas()
            return convert(pd.DataFrame(rows))

        return mutation("source", f"as {name}", change, "row", "columns")

    equivalent = (
        equivalent_frame("source", TEXT_COLUMNS),
        st.just(_as("records", lambda frame: frame.to_dict(orient="records"))),
        st.just(_as("a generator", lambda frame: (record for record in frame.to_dict(orient="records")))),
        st.just(_as("a Dataset", lambda frame: Dataset.from_pandas(frame.reset_index(drop=True)))),
        st.just(_as("an Arrow table", pa.Table.from_pandas)),
    )
    damaged = (
        st.just(
            frame_mutation("source", "anchor for query", lambda frame: frame.rename(columns={"query": "anchor"}), "")
        ),
    )
    malformed = (
        without("source", ["positive", "negative"]),
        column_twice("source", TEXT_COLUMNS),
        *[cell("source", name, [*OF_ANOTHER_TYPE, *HALF_A_CHARACTER]) for name in TEXT_COLUMNS],
        st.sampled_from(["x", None, math.nan, [1]]).map(
            lambda label: frame_mutation(
                "source",
                f"a label {label!r}",
                lambda frame: frame.assign(label=pd.Series([label] * len(frame), index=frame.index, dtype=object)),
                "label",
            )
        ),
        no_rows("source", *NO_TRIPLES),
        replace("source", [None, 3, "", [], {}, [3], ["sort"], [("sort", "plot")], [()], object()], "row", *NO_TRIPLES),
        replace("limit", [value for value in POSITIVE.malformed if value is not None]),
    )

    def call(self, source: Any, limit: Any) -> Any:
        """Return the columns of the triples."""
        return from_texts(source, limit=limit).dataset[:]

    def expected(self, source: pd.DataFrame, limit: int | None) -> Any:
        """Return the first rows that have a text in each column."""
        return first_with_texts(source, limit)


def _tsv(frame: pd.DataFrame, header: bool) -> bytes:
    rows = frame.to_numpy().tolist()
    if header:
        rows = [list(frame.columns), *rows]
    lines = ["\t".join(map(str, row)) + "\n" for row in rows]
    return "".join(lines).encode()


def _csv(frame: pd.DataFrame, header: bool) -> bytes:
    return frame.to_csv(index=False, header=header, quoting=csv.QUOTE_ALL).encode()


def _jsonl(frame: pd.DataFrame, header: bool) -> bytes:
    rows = frame.to_dict(orient="records") if header else frame.to_numpy().tolist()
    lines = [json.dumps(row) + "\n" for row in rows]
    return "".join(lines).encode()


def _parquet(frame: pd.DataFrame, header: bool) -> bytes:
    file = io.BytesIO()
    frame.to_parquet(file, index=False)
    return file.getvalue()


FORMATS = {"tsv": _tsv, "csv": _csv, "jsonl": _jsonl, "parquet": _parquet}


def content_mutation(description: str, change: Callable[[bytes], bytes], *names: str) -> Mutation:
    """Change what a file holds; what is compressed stays so."""

    def change_content(arguments: Any) -> dict[str, Any]:
        content = arguments["content"]
        if content.startswith(GZIP):
            content = gzip.compress(change(gzip.decompress(content)))
        else:
            content = change(content)
        return {**arguments, "content": content}

    return Mutation(description, change_content, names or ("line", ".parquet", *NO_TRIPLES))


def table_mutation(description: str, change: Callable[[pa.Table], pa.Table], *names: str) -> Mutation:
    """Change the table in a Parquet file."""

    def change_content(arguments: Any) -> dict[str, Any]:
        file = io.BytesIO()
        pq.write_table(change(pq.read_table(io.BytesIO(arguments["content"]))), file)
        return {**arguments, "content": file.getvalue()}

    return Mutation(description, change_content, names or ("column",))


def of_type(kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    """Give the texts of a table another type."""

    def change(table: pa.Table) -> pa.Table:
        names = [name for name in table.column_names if name != "label"]
        for name in names:
            texts = pa.array(table[name].to_pylist(), pa.string())
            table = table.set_column(table.column_names.index(name), name, texts.cast(kind))
        return table

    return change


def another_line(description: str, line: bytes, *names: str) -> Mutation:
    """Add a line to a text file."""
    return content_mutation(description, lambda content: content.rstrip(b"\r\n") + b"\n" + line + b"\n", *names)


class FromFile(EntryPoint):
    """The same as of the rows that were written to the file."""

    name: str
    suffix: str
    headers: Sequence[bool] = (True, False)
    compressed: Sequence[str] = ("", ".gz")

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.name = f"fit_triples, of a {cls.suffix} file"
        cls.valid = cls._valid()
        cls.equivalent = (
            *cls.equivalent,
            st.just(Mutation("suffix in capitals", lambda given: {**given, "name": given["name"].upper()}, ("named",))),
        )
        cls.malformed = (
            *cls.malformed,
            st.just(content_mutation("an empty file", lambda content: b"", *NO_TRIPLES, "empty", "triples.")),
            st.sampled_from(["triples", "triples.txt", "triples.gz", "triples.zip", ".tsv.bz2"]).map(
                lambda name: Mutation(f"named {name}", lambda given: {**given, "name": name}, ("named",))
            ),
            st.sampled_from(["missing", "a folder"]).map(
                lambda what: Mutation(what, lambda given: {**given, "content": what}, ("there is no file", "folder"))
            ),
            replace("limit", [value for value in POSITIVE.malformed if value is not None]),
        )

    @classmethod
    def _valid(cls) -> st.SearchStrategy[dict[str, Any]]:
        @st.composite
        def valid(draw: st.DrawFn) -> dict[str, Any]:
            header = draw(st.sampled_from(cls.headers))
            rows = draw(triples(labels=header))
            compressed = draw(st.sampled_from(cls.compressed))
            content = FORMATS[cls.suffix](rows, header)
            return {
                "rows": rows,
                "limit": draw(st.none() | st.integers(1, 4)),
                "name": f"triples.{cls.suffix}{compressed}",
                "content": gzip.compress(content) if compressed else content,
            }

        return valid()

    def call(self, rows: pd.DataFrame, limit: Any, name: str, content: Any) -> Any:
        """Write the file, and return the columns of its triples."""
        path = self.tools.path(name)
        if content == "a folder":
            path.mkdir()
        elif content != "missing":
            path.write_bytes(content)
        return from_texts(path, limit=limit).dataset[:]

    def expected(self, rows: pd.DataFrame, limit: int | None, **_: Any) -> Any:
        """Return the first rows that have a text in each column."""
        return first_with_texts(rows, limit)


def _half(arguments: Any) -> dict[str, Any]:
    content = arguments["content"]
    return {**arguments, "content": content[: len(content) // 2]}


def _compress(arguments: Any) -> dict[str, Any]:
    content = arguments["content"]
    if not content.startswith(GZIP):
        content = gzip.compress(content)
    return {**arguments, "content": content}


def _gz_without_gzip(arguments: Any) -> dict[str, Any]:
    name, content = arguments["name"], arguments["content"]
    if content.startswith(GZIP):
        return {**arguments, "content": gzip.decompress(content)}
    return {**arguments, "name": f"{name}.gz"}


ANY_PLACE = ("line", "triples.", *NO_TRIPLES)
"""What errors may name of a file that is damaged somewhere: a line, the file, or what is missing."""

equivalent_lines = (
    st.just(content_mutation("ends of lines of Windows", lambda content: content.replace(b"\n", b"\r\n"))),
    st.just(content_mutation("a byte order mark", lambda content: b"\xef\xbb\xbf" + content)),
    st.just(content_mutation("no end of the last line", lambda content: content.removesuffix(b"\n"))),
    st.just(content_mutation("an empty line at the end", lambda content: content + b"\n")),
    st.just(Mutation("compressed, but not named so", _compress, ANY_PLACE)),
    st.just(Mutation("named .gz, but not compressed", _gz_without_gzip, ANY_PLACE)),
)

malformed_lines = (
    st.just(content_mutation("not UTF-8", lambda content: content + b"\xff\xfe", "line")),
    st.just(content_mutation("in UTF-16", lambda content: content.decode().encode("utf-16"), *ANY_PLACE)),
)


class FromTSV(FromFile):
    """Texts between tabs, in quotes or not; with a header or without."""

    suffix = "tsv"
    equivalent = equivalent_lines
    malformed = (
        *malformed_lines,
        st.just(another_line("a line with one text", b"sort", "line")),
        st.just(another_line("a line with a text too many", b"sort\tplot\tread\t1.5\twrite", "line", "row")),
    )


class FromCSV(FromFile):
    """Texts between commas, in quotes where they need it."""

    suffix = "csv"
    equivalent = equivalent_lines
    malformed = (
        *malformed_lines,
        st.just(another_line("a line with one text", b"sort", "line")),
        st.just(another_line("a line with a text too many", b"sort,plot,read,1.5,write", "line", "row")),
        st.just(another_line("a quote that is not closed", b'"sort,plot,read', "line")),
        st.just(another_line("text after a quote", b'"a"b,c,d', "line")),
    )


class FromJSONL(FromFile):
    """Objects or arrays, one a line."""

    suffix = "jsonl"
    equivalent = (
        *equivalent_lines,
        st.just(
            Mutation("named .json", lambda given: {**given, "name": given["name"].replace("jsonl", "json")}, ("",))
        ),
    )
    malformed = (
        *malformed_lines,
        st.sampled_from(
            [b"null", b"3", b'"sort"', b"{}", b"[]", b"{", b"[1, 2, 3]", b"NaN", b"sort\tplot", b"[[1]]"]
        ).map(lambda line: another_line(f"a line {line!r}", line, "line")),
        st.sampled_from([b"3", b"true", b'["sort"]', b'{"text": "sort"}', b'"\\ud800"', b"1e999"]).map(
            lambda value: another_line(
                f"a query {value!r}",
                b'{"query": ' + value + b', "positive": "sort", "negative": "plot", "label": 1}',
                "line",
            )
        ),
    )


class FromParquet(FromFile):
    """Columns of strings of any type that Arrow has for them."""

    suffix = "parquet"
    headers = (True,)
    compressed = ("",)
    equivalent = (
        st.just(table_mutation("large strings", of_type(pa.large_string()))),
        st.just(table_mutation("a dictionary", of_type(pa.dictionary(pa.int32(), pa.string())))),
        st.just(table_mutation("string views", of_type(pa.string_view()))),
        st.just(table_mutation("columns reversed", lambda table: table.select(table.column_names[::-1]))),
    )
    malformed = (
        st.just(Mutation("half of the file", _half, ("triples.parquet",))),
        st.just(Mutation("gzipped", _compress, ("triples.parquet",))),
        st.just(table_mutation("bytes", of_type(pa.binary()))),
        st.just(table_mutation("no rows", lambda table: table[:0], *NO_TRIPLES)),
        st.sampled_from(TEXT_COLUMNS).map(
            lambda name: table_mutation(f"no {name}", lambda table: table.drop_columns(name), name)
        ),
        st.sampled_from(TEXT_COLUMNS).map(
            lambda name: table_mutation(
                f"numbers for {name}",
                lambda table: table.drop_columns(name).append_column(name, pa.array(range(len(table)))),
                name,
            )
        ),
        st.just(
            table_mutation(
                "texts for label",
                lambda table: table.select(TEXT_COLUMNS).append_column("label", pa.array(["x"] * len(table))),
                "label",
            )
        ),
    )
