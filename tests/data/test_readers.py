"""Files of texts: the same rows from each kind, and errors that name the line."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pyterrier_selfdistill.data import readers
from pyterrier_selfdistill.data.readers import read_tables, tables_of

ROWS = [("sort", "sort rows", "plot a file"), ("plot", "plot a matrix", "read a value")]
COLUMNS = ["query", "positive", "negative"]


@pytest.fixture
def frame():
    return pd.DataFrame(ROWS, columns=COLUMNS)


def rows_of(path):
    rows = []
    for table in read_tables(path):
        rows.extend(table.to_pylist())
    return rows


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet", ".TSV"])
def test_read_tables_of_each_kind_of_file(tmp_path, frame, suffix):
    path = tmp_path / f"my.triples{suffix}"
    if ".parquet" in suffix:
        frame.to_parquet(path)
    elif ".jsonl" in suffix:
        frame.to_json(path, orient="records", lines=True)
    elif ".csv" in suffix:
        frame.to_csv(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="\t")
    assert rows_of(path) == frame.to_dict(orient="records")


def test_read_tables_numbers_columns_without_a_header(tmp_path):
    """Quotes and ``NA`` are texts in TSV."""
    rows = [('the "sort', "sort 'rows", "NA"), *ROWS]
    lines = map("\t".join, rows)
    (tmp_path / "triples.tsv").write_text("\n".join(lines))
    assert rows_of(tmp_path / "triples.tsv") == [dict(zip("012", row, strict=True)) for row in rows]


def test_read_tables_of_a_csv_with_quotes_over_lines(tmp_path):
    (tmp_path / "a.csv").write_text('a,"b\nc",d\n"e, f",g,"h ""i"""\n')
    assert rows_of(tmp_path / "a.csv") == [{"0": "a", "1": "b\nc", "2": "d"}, {"0": "e, f", "1": "g", "2": 'h "i"'}]


def test_read_tables_lowers_a_header(tmp_path):
    """Also after a byte order mark."""
    (tmp_path / "a.tsv").write_text("\ufeffNegative\tQuery\tPositive\nc\ta\tb\n", encoding="utf-8")
    assert rows_of(tmp_path / "a.tsv") == [{"negative": "c", "query": "a", "positive": "b"}]


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_read_tables_reads_in_parts(tmp_path, monkeypatch, frame, write_frame, suffix):
    monkeypatch.setattr(readers, "ROWS", 1)
    path = tmp_path / f"a{suffix}"
    write_frame(frame, path)
    assert [len(table) for table in read_tables(path)] == [1, 1]


def test_read_tables_rejects_a_file_of_another_kind(tmp_path):
    (tmp_path / "triples.xml").write_text("<a/>")
    with pytest.raises(ValueError, match=r"named \.tsv, \.csv, \.jsonl or \.parquet .*got .*triples\.xml"):
        read_tables(tmp_path / "triples.xml")


def test_read_tables_rejects_a_file_that_is_not_there(tmp_path):
    """At once, not with the first table."""
    with pytest.raises(FileNotFoundError, match="nowhere.tsv"):
        read_tables(tmp_path / "nowhere.tsv")
    (tmp_path / "folder.tsv").mkdir()
    with pytest.raises(IsADirectoryError, match="expected a file to read triples from, got the folder .*folder.tsv"):
        read_tables(tmp_path / "folder.tsv")


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_read_tables_tells_gzip_by_what_a_file_begins_with(tmp_path, frame, write_frame, suffix):
    """Whatever its name says."""
    write_frame(frame, tmp_path / f"plain{suffix}")
    content = (tmp_path / f"plain{suffix}").read_bytes()
    (tmp_path / f"plain{suffix}.gz").write_bytes(content)
    (tmp_path / f"compressed{suffix}").write_bytes(gzip.compress(content))
    assert rows_of(tmp_path / f"plain{suffix}.gz") == frame.to_dict(orient="records")
    assert rows_of(tmp_path / f"compressed{suffix}") == frame.to_dict(orient="records")


COMPRESSED = gzip.compress(b"a\tb\tc\n" * 1000)


@pytest.mark.parametrize(
    "content",
    [
        COMPRESSED[:-10],
        COMPRESSED[:5],
        COMPRESSED[:-8] + bytes(8),
        COMPRESSED + b"more",
        COMPRESSED[:12] + b"\xff\xff\xff" + COMPRESSED[15:],
    ],
    ids=["cut off", "cut off in its head", "another checksum", "something after it", "damaged"],
)
def test_read_tables_names_a_gzip_file_that_is_damaged(tmp_path, content):
    (tmp_path / "a.tsv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.tsv.gz is damaged or cut off after line \d+ \(.*\); compress it anew"):
        rows_of(tmp_path / "a.tsv.gz")


def damaged_parquet(kind, path):
    """Write a file and return its bytes, with a fault."""
    numbers = [str(number) for number in range(100_000)]
    pq.write_table(pa.table(dict.fromkeys(COLUMNS, numbers)), path)
    content = path.read_bytes()
    not_utf8 = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
    pq.write_table(pa.table(dict.fromkeys(COLUMNS, not_utf8)), path)
    contents = {
        "empty": b"",
        "no Parquet": b"a\tb\tc\n" * 10,
        "cut off": content[:5000],
        "damaged": content[:2000] + bytes(2000) + content[4000:],
        "not UTF-8": path.read_bytes(),
    }
    return contents[kind]


@pytest.mark.parametrize("kind", ["empty", "no Parquet", "cut off", "damaged", "not UTF-8"])
def test_read_tables_names_a_parquet_file_that_is_damaged(tmp_path, kind):
    path = tmp_path / "a.parquet"
    path.write_bytes(damaged_parquet(kind, path))
    with pytest.raises(ValueError, match=r"a.parquet cannot be read as Parquet \(.*\); write it anew"):
        rows_of(path)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_read_tables_of_a_file_without_rows(tmp_path, suffix):
    for content in ["", "\n\n", "\ufeff"]:
        (tmp_path / f"a{suffix}").write_text(content, encoding="utf-8")
        assert rows_of(tmp_path / f"a{suffix}") == []


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_read_tables_leaves_out_empty_lines(tmp_path, frame, write_frame, suffix):
    path = tmp_path / f"a{suffix}"
    write_frame(frame, path)
    path.write_text(path.read_text().replace("\n", "\n\n") + "\r\n\n")
    assert rows_of(path) == frame.to_dict(orient="records")


def test_read_tables_of_a_csv_with_a_cell_as_long_as_a_document(tmp_path):
    long = "text " * 100_000
    (tmp_path / "a.csv").write_text(f"a,b,{long}\n")
    assert rows_of(tmp_path / "a.csv") == [{"0": "a", "1": "b", "2": long}]


@pytest.mark.parametrize("header", ["query,positive", "anchor,negative", "qid,pos,negative_1"])
def test_read_tables_takes_a_header_for_one_though_columns_are_missing(tmp_path, header):
    (tmp_path / "a.csv").write_text(f"{header}\n{header.upper()}\n")
    names = header.split(",")
    assert rows_of(tmp_path / "a.csv") == [{name: name.upper() for name in names}]


def test_read_tables_takes_texts_for_a_row_though_one_is_a_name(tmp_path):
    (tmp_path / "a.csv").write_text("query,what to ask,a plot\n")
    assert rows_of(tmp_path / "a.csv") == [{"0": "query", "1": "what to ask", "2": "a plot"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"a\tb\tc\na\tb\n", "a.tsv, line 2 has 2 texts, the first one has 3"),
        ("a.tsv", b"Query\tPositive\tNegative\na\tb\tc\td\n", "a.tsv, line 2 has 4 columns, the header has 3"),
        ("a.tsv", b"a\tb\tc\n\xff\tb\tc\n", "a.tsv, line 2 is not UTF-8"),
        ("a.tsv", "a\tb\tc\n".encode("utf-16"), "a.tsv, line 1 is not UTF-8 .*; convert"),
        ("a.tsv", "a\tb\tc\n".encode("utf-16-le"), "a.tsv, line 1 has a NUL, .*; convert"),
        ("a.csv", b"a,b,c\na,b,c\0\n", "a.csv, line 2 has a NUL, .*; convert"),
        ("a.csv", b'a,b,c\na,b,"c"d\n', "a.csv, line 2: not CSV .*; quote cells with"),
        ("a.csv", b'a,b,c\na,b,"c\nd\n', "a.csv, line 2: not CSV .unexpected end of data.; quote"),
        ("a.csv", b"a,b,c\rd,e,f\r", "a.csv, line 1: not CSV .*; quote"),
        (
            "a.csv",
            b"query,positive,negative,Negative\n",
            r"a.csv, line 1, the header, has \['negative'\] more than once",
        ),
        ("a.csv", b'a,"b\n",c\na,b\n', "a.csv, line 3 has 2 texts, the first one has 3"),
        ("a.jsonl", b'{"query": "a", "positive": "b", "negative": "c"}\n{"query"\n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'[{"query": "a", "positive": "b", "negative": "c"}]', "line 1 is a JSON array of rows"),
        ("a.jsonl", b'{"query": "a", "query": "b"}', r"line 1 is not JSON .*\['query', 'query'\] are not distinct"),
        (
            "a.jsonl",
            b'{"query": "a"}\n{"positive": "b"}',
            r"line 2 has \['positive'\]; \['query'\] of the first .* missing",
        ),
        (
            "a.jsonl",
            b'{"query": "a", "positive": "b\\ud800"}',
            "line 1, column 'positive', has half a character, '.ud800'",
        ),
        ("a.jsonl", b"{}", "line 1 is empty; give a query"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON .*recursion"),
        ("a.jsonl", b'{"query": %s}' % (b"9" * 5000), "line 1 is not JSON .*digits"),
    ],
)
def test_read_tables_names_a_malformed_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("value", [b"3", b"2.5", b"true", b"Infinity", b"[1]", b'{"a": "b"}'])
def test_read_tables_names_a_line_of_json_with_something_else_than_a_text(tmp_path, value):
    (tmp_path / "a.jsonl").write_bytes(b'{"query": "a", "positive": "b", "negative": %s}' % value)
    with pytest.raises(TypeError, match="a.jsonl, line 1, column 'negative', holds .*; training needs texts"):
        rows_of(tmp_path / "a.jsonl")


@pytest.mark.parametrize("row", [b"3", b'"abc"', b"null", b"true"])
def test_read_tables_names_a_line_of_json_that_is_no_row(tmp_path, row):
    (tmp_path / "a.jsonl").write_bytes(b'["a", "b", "c"]\n' + row)
    with pytest.raises(TypeError, match="a.jsonl, line 2 is .*; give tuples or dictionaries"):
        rows_of(tmp_path / "a.jsonl")


def test_read_tables_of_labels(tmp_path):
    (tmp_path / "a.tsv").write_text("query\tlabel\tpositive\na\t 1e-1\tb\nc\t-2\td\n")
    (tmp_path / "a.jsonl").write_text(
        '{"query": "a", "label": 0.1, "positive": "b"}\n{"query": "c", "label": -2, "positive": "d"}'
    )
    for name in ["a.tsv", "a.jsonl"]:
        (table,) = read_tables(tmp_path / name)
        assert table["label"].to_pylist() == [0.1, -2.0]
        (table,) = read_tables(tmp_path / name, labels=False)
        assert table.column_names == ["query", "positive"]


def test_read_tables_names_a_line_with_a_label_that_is_not_a_number(tmp_path):
    (tmp_path / "a.tsv").write_text("query\tpositive\tlabel\na\tb\t1\na\tb\thigh\n")
    with pytest.raises(
        TypeError, match="a.tsv, line 3, column 'label' must hold a number in every row, got 'high'; drop"
    ):
        rows_of(tmp_path / "a.tsv")


@pytest.mark.parametrize(
    "label", [1, 1.5, np.float32(1.5), np.float64(1.5), np.int64(1), np.uint8(1), "1.5", " 2 "], ids=repr
)
def test_tables_of_takes_labels_of_numbers(label):
    (table,) = tables_of([("row 0", {"query": "a", "label": label})])
    assert table["label"].to_pylist() == [float(label)]


@pytest.mark.parametrize(
    "label",
    [None, "", "high", True, np.bool_(True), np.nan, np.inf, "nan", 10**400, [1.0], b"1"],
    ids=lambda label: repr(label)[:9],
)
def test_tables_of_rejects_labels_that_are_not_numbers(label):
    with pytest.raises(TypeError, match="row 0, column 'label' must hold a number in every row, got .*; drop the rows"):
        list(tables_of([("row 0", {"query": "a", "label": label})]))


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{}, {"query": "a"}], ValueError, "row 0 is empty"),
        ([()], ValueError, "row 0 is empty"),
        ([("a", "b\udfff")], ValueError, "row 0, column '1', has half a character, '.udfff', at position 1"),
        (["abc", "def"], TypeError, "row 0 is 'abc'"),
        ([7], TypeError, "row 0 is 7"),
        ([("a", "b", "c"), ("a", "b", "c", "d")], ValueError, "row 1 has 4 texts, the first one has 3"),
        ([("a", "b", 3)], TypeError, "row 0, column '2', holds 3, a int"),
        ([{"query": "a", "positive": "b"}, {"query": "a"}], ValueError, r"row 1 has .*\['positive'\] .* missing"),
        ([{"query": "a", "positive": ["b"]}], TypeError, "row 0, column 'positive', holds"),
    ],
    ids=str,
)
def test_tables_of_names_a_row_that_is_not_as_the_others(rows, error, message):
    named = [(f"row {position}", row) for position, row in enumerate(rows)]
    with pytest.raises(error, match=message):
        list(tables_of(named))


def test_tables_of_leaves_out_columns_that_the_first_row_lacks():
    rows = [("row 0", {"query": "a"}), ("row 1", {"score": 1, "query": "b"})]
    assert next(tables_of(rows)).to_pylist() == [{"query": "a"}, {"query": "b"}]


def test_tables_of_takes_missing_values_and_other_columns_of_any_type():
    values = [(None, 1), (float("nan"), "b"), (pd.NA, ["c"])]
    rows = [("row", {"query": query, "score": score}) for query, score in values]
    expected = [{"query": None, "score": None}, {"query": None, "score": "b"}, {"query": None, "score": None}]
    assert next(tables_of(rows)).to_pylist() == expected


def test_tables_of_no_rows_are_none():
    assert list(tables_of([])) == []
