"""Entry points that read training data: triples in memory and in files, results, topics, identifiers and docpairs."""

import csv
import gzip
import io
import math
from functools import partial

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from pyterrier_selfdistill import split_queries
from pyterrier_selfdistill.data.negatives import from_results, from_topics
from pyterrier_selfdistill.data.triples import read_triples

from . import changes as c
from .engine import entry

COLUMNS = ["query", "positive", "negative"]
NO_TRIPLES = ("triples", "positive", "negative", "row", "line")
LIMIT = c.options(limit=[0, -1, "3", True])
RECORDS = {"records": lambda frame: frame.to_dict(orient="records")}
FORMS = RECORDS | {
    "a generator": lambda frame: (record for record in frame.to_dict(orient="records")),
    "a Dataset": lambda frame: Dataset.from_pandas(frame.reset_index(drop=True)),
    "an Arrow table": pa.Table.from_pandas,
}


def some_triples(tools, rng):
    """Draw one to five triples, perhaps with labels, perhaps a row without a text, which is dropped."""
    frame = pd.DataFrame([rng.sample(c.ALL_TEXTS, 3) for _ in range(rng.randint(1, 5))], columns=COLUMNS)
    if rng.random() < 0.5:
        frame.loc[len(frame)] = ["sort", rng.choice(["", " "]), "plot"]
    if rng.random() < 0.5:
        frame["label"] = [row - 1.5 for row in range(len(frame))]
    return {"source": frame, "limit": rng.choice([None, 1, 2, 3, 4])}


def has_rows(answer, arguments):
    rows = arguments["source"][arguments["source"]["positive"].str.strip() != ""][: arguments["limit"]]
    return answer == rows.to_dict(orient="list")


entry(
    "read_triples, rows in memory",
    [
        *c.same_frame("source", *COLUMNS),
        *LIMIT,
        c.on_frame("source", FORMS, "row", "columns"),
        c.on_frame("source", {"anchor": lambda frame: frame.rename(columns={"query": "anchor"})}, "", effect=c.UNSURE),
        *c.without("source", "positive"),
        c.cell("source", "query", [*c.OF_ANOTHER_TYPE, c.HALF_A_CHARACTER]),
        # a list of texts is read as several positives or negatives of its query
        *[c.cell("source", name, [3, 2.5, True, b"sort", c.HALF_A_CHARACTER]) for name in COLUMNS[1:]],
        c.cell("source", "label", ["x", [1]]),
        c.no_rows("source", *NO_TRIPLES),
        c.replace("source", [None, 3, "", [], {}, [3], ["sort"], [("sort",)], [()], object()], *NO_TRIPLES),
    ],
    some_triples,
    lambda tools, source, limit: read_triples(source, limit=limit).dataset[:],
    has_rows,
)


def as_parquet(rows):
    file = io.BytesIO()
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pandas(rows), file)
    return file.getvalue()


def cast(kind, content):
    """Give the texts in a Parquet file another type."""
    table = pq.read_table(io.BytesIO(content))
    texts = [pa.array(table[name].to_pylist(), pa.string()).cast(kind) for name in COLUMNS]
    return as_parquet(pa.table([*texts, *table.columns[3:]], names=table.column_names))


WRITERS = {
    "tsv": lambda rows: rows.to_csv(index=False, sep="\t", quoting=csv.QUOTE_NONE).encode(),
    "csv": lambda rows: rows.to_csv(index=False, quoting=csv.QUOTE_ALL).encode(),
    "jsonl": lambda rows: rows.to_json(orient="records", lines=True).encode(),
    "parquet": as_parquet,
}
BAD_LINES = {
    "tsv": [b"sort", b"sort\tplot\tread\t1.5\twrite"],
    "csv": [b"sort", b"sort,plot,read,1.5,write", b'"sort,plot,read'],
    "jsonl": [
        b"3",
        b"{",
        b"[1, 2, 3]",
        b"NaN",
        b"[[1]]",
        b'{"query": 3, "positive": "", "negative": ""}',
    ],
}
SAME_LINES = {
    "ends of lines of Windows": lambda content: content.replace(b"\n", b"\r\n"),
    "a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "an empty line at the end": lambda content: content + b"\n",
}
NO_LINES = {
    "not UTF-8": lambda content: content + b"\xff\xfe",
    "in UTF-16": lambda content: content.decode().encode("utf-16"),
}
SAME_TABLES = {str(kind): partial(cast, kind) for kind in (pa.large_string(), pa.string_view())}
NO_TABLES = {"binary": partial(cast, pa.binary()), "half": lambda content: content[: len(content) // 2]}
NO_NAMES = ["triples", "triples.txt", "triples.gz", "triples.zip", "triples.tsv.bz2"]
ERRORS = ("column", "empty", "triples.", *NO_TRIPLES)


def triples_in_file(tools, source, limit, name, content):
    path = tools.path(name)
    if content == "a folder":
        path.mkdir()
    elif content != "missing":
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return read_triples(path, limit=limit).dataset[:]


def some_file(suffix, tools, rng):
    valid = some_triples(tools, rng)
    packing = rng.choice(["", ".gz"]) if suffix != "parquet" else ""
    return {**valid, "limit": None, "name": f"triples.{suffix}{packing}", "content": WRITERS[suffix](valid["source"])}


for suffix in WRITERS:
    lines = {f"and {line}": lambda content, line=line: content + line + b"\n" for line in BAD_LINES.get(suffix, [])}
    equal, malformed = (SAME_LINES, NO_LINES | lines) if lines else (SAME_TABLES, NO_TABLES)
    changes = [
        *LIMIT,
        c.each("content", equal, *ERRORS),
        # of JSON lines, a row without texts, which is dropped
        c.each("content", {"and null": lambda content: content + b"null\n"}, *ERRORS, "line", effect=c.UNSURE),
        c.each("content", malformed | {"an empty file": lambda content: b""}, *ERRORS, effect=c.NONE),
        c.replace("name", NO_NAMES, "named"),
        c.replace("content", ["missing", "a folder"], "no file", "folder"),
    ]
    entry(f"read_triples, a {suffix} file", changes, partial(some_file, suffix), triples_in_file, has_rows)


def two_texts(argument, name, key):
    """Give a query or a document two texts."""

    def repeat(frame):
        return pd.concat([frame, frame[:1].assign(**{name: "return the value"})], ignore_index=True)

    return c.on_frame(argument, {f"a {key} with two texts": repeat}, name, key, effect=c.NONE)


NO_POSITIVES = c.column("qrels", "label", {"0": lambda labels: 0}, c.NONE)
TOPICS = [*c.frame("topics", ["qid", "query"], any_order=True), c.no_rows("topics")]
TOPICS.append(two_texts("topics", "query", "qid"))
CORPUS = c.records("corpus", docno=c.NOT_TEXTS, text=c.OF_ANOTHER_TYPE)
RESULTS = [
    *c.frame("results", ["qid", "query", "docno"], "topics", any_order=True),
    *c.qrels("qrels"),
    NO_POSITIVES,
    c.no_rows("results"),
    two_texts("results", "query", "qid"),
    two_texts("results", "text", "docno"),
    c.numbers("results", "rank"),
    c.cell("results", "text", c.OF_ANOTHER_TYPE),
    c.cell("results", "rank", [None, math.nan, "first", [1]]),
    *[c.cell("results", name, [c.HALF_A_CHARACTER], c.UNSURE) for name in ("query", "text")],
]


def some_judged(rng, prefix="", pool=c.ALL_TEXTS):
    results = c.some_results(rng, pool)
    return {f"{prefix}results": results, f"{prefix}qrels": c.some_qrels(rng, results, results)}


def some_topics_and_corpus(tools, rng):
    topics, corpus = c.some_topics(rng), c.some_documents(rng)
    return {"topics": topics, "qrels": c.some_qrels(rng, topics, corpus), "corpus": corpus}


def pairs(triples):
    """The queries with their positives; negatives are drawn, in the order of rows."""
    columns = triples.dataset[:]
    return sorted(zip(columns["query"], columns["positive"], strict=True))


entry(
    "fit, results",
    RESULTS,
    lambda tools, rng: some_judged(rng),
    lambda tools, results, qrels: pairs(from_results(results, qrels)),
)

entry(
    "fit, topics and a corpus",
    [*TOPICS, *c.qrels("qrels"), NO_POSITIVES, *CORPUS],
    some_topics_and_corpus,
    lambda tools, topics, qrels, corpus: pairs(from_topics(topics, qrels, corpus)),
)


def some_identifiers(tools, rng):
    topics, corpus = c.some_topics(rng), c.some_documents(rng)
    rows = {(rng.choice(topics["qid"]), *rng.sample(list(corpus["docno"]), 2)) for _ in range(rng.randint(1, 6))}
    return {"source": pd.DataFrame(sorted(rows), columns=["qid", *COLUMNS[1:]]), "topics": topics, "corpus": corpus}


def identifiers(tools, source, **options):
    columns = read_triples(source, **options).dataset[:]
    return sorted(zip(*[columns[name] for name in COLUMNS], strict=True))


entry(
    "read_triples, identifiers",
    [
        *TOPICS,
        *CORPUS,
        *LIMIT,
        *c.options("store_texts", "verbose", max_pairs_per_query=[0, "3"], fields=[[], "text", ["text", 3]]),
        *c.same_frame("source", "qid", "positive", "negative", any_order=True),
        c.on_frame("source", RECORDS),
        *[c.cell("source", name, c.OF_ANOTHER_TYPE) for name in COLUMNS[1:]],
        c.replace("source", [None, 3, [], [("1", "2")], [3], "", object()], "source", "no file", *NO_TRIPLES),
    ],
    some_identifiers,
    identifiers,
)

SAME_DOCPAIRS = {
    "and an unknown query": lambda rows: [*rows, ("?", "1", "2")],
    "and an unknown document": lambda rows: [*rows, ("1", "?", "2")],
    "rows twice": lambda rows: rows * 2,
    "reversed": lambda rows: rows[::-1],
}


def some_dataset(tools, rng):
    parts = some_identifiers(tools, rng)
    rows = [parts[name].to_numpy().tolist() for name in ("topics", "corpus", "source")]
    return {**dict(zip(["queries", "docs", "docpairs"], rows, strict=True)), "fields": ["text"]}


def docpairs(tools, fields, **parts):
    dataset = tools.register(**{name: rows for name, rows in parts.items() if rows is not None})
    return identifiers(tools, dataset, fields=fields)


entry(
    "read_triples, docpairs",
    [
        c.each("docpairs", SAME_DOCPAIRS),
        c.replace("fields", [["title"], ["text", "title"], ["docno"]], "title", "docno"),
        c.replace("docpairs", [[], [("unknown", "1", "2")]], "triples", "docpairs"),
        *[c.replace(part, [None]) for part in ("queries", "docs", "docpairs")],
    ],
    some_dataset,
    docpairs,
    milliseconds=80,
)

BAD_SHARES = ({}, None, 0.9, [0.9, 0.1], {"a": 0.9}, {"a": 1.2, "b": -0.2}, {"a": "0.9", "b": "0.1"}, {"a": math.nan})

entry(
    "split_queries",
    [*c.frame("frame", ["qid"]), c.each("shares", {"a Series": pd.Series}), c.replace("shares", BAD_SHARES)],
    lambda tools, rng: {"frame": c.some_results(rng), "shares": rng.choice([{"a": 0.5, "b": 0.5}, {"a": 1, "b": 0}])},
    lambda tools, frame, shares: {name: part["qid"].tolist() for name, part in split_queries(frame, shares).items()},
)
