"""Files of texts: the same rows from each kind, and errors that name the line."""

import pandas as pd
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"a\tb\tc\na\tb\n", "a.tsv, line 2 has 2 texts, the first one has 3"),
        ("a.tsv", b"Query\tPositive\tNegative\na\tb\tc\td\n", "a.tsv, line 2 has 4 columns, the header has 3"),
        ("a.tsv", b"a\tb\tc\n\xff\tb\tc\n", "a.tsv, line 2 is not UTF-8"),
        ("a.csv", b'a,b,c\na,b,"c"d\n', "a.csv, line 2: "),
        ("a.csv", b'a,"b\n",c\na,b\n', "a.csv, line 3 has 2 texts, the first one has 3"),
        ("a.jsonl", b'{"query": "a", "positive": "b", "negative": "c"}\n{"query"\n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", b'[{"query": "a", "positive": "b", "negative": "c"}]', "line 1 is a JSON array of rows"),
    ],
)
def test_read_tables_names_a_malformed_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / name)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
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
    rows = [("row 0", {"query": None, "score": 1}), ("row 1", {"query": float("nan"), "score": "b"})]
    assert next(tables_of(rows)).to_pylist() == [{"query": None, "score": None}, {"query": None, "score": "b"}]


def test_tables_of_no_rows_are_none():
    assert list(tables_of([])) == []
