"""Entry points that read training data: triples in memory and in files, results, topics, identifiers and docpairs."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from pyterrier_selfdistill import Negatives, split_queries
from pyterrier_selfdistill.data.negatives import from_results, from_topics
from pyterrier_selfdistill.data.triples import read_triples

from . import changes as c
from .engine import Change, Changes, Entry, Refusal

COLUMNS = ["query", "positive", "negative"]
NO_TRIPLES = ("triples", "positive", "negative", "row", "line")
LIMIT = c.options(limit=c.POSITIVE.or_none())
FORMS: dict[str, Callable[[pd.DataFrame], Any]] = {
    "records": lambda frame: frame.to_dict(orient="records"),
    "a generator": lambda frame: (record for record in frame.to_dict(orient="records")),
    "a Dataset": lambda frame: Dataset.from_pandas(frame.reset_index(drop=True)),
    "an Arrow table": pa.Table.from_pandas,
}


def some_triples(rng: Random) -> pd.DataFrame:
    """Draw one to five triples, perhaps with labels, perhaps a row without a text, which is dropped."""
    frame = pd.DataFrame([rng.sample(c.ALL_TEXTS, 3) for _ in range(rng.randint(1, 5))], columns=COLUMNS)
    if rng.random() < 0.5:
        frame.loc[len(frame)] = ["sort", rng.choice(["", " "]), "plot"]
    return frame.assign(label=[row - 1.5 for row in range(len(frame))]) if rng.random() < 0.5 else frame


class TriplesInMemory(Entry):
    name = "read_triples, rows in memory"
    not_rows = (None, 3, "", [], {}, [3], ["sort"], [("sort",)], [()], object())
    changes: tuple[Changes, ...] = (
        c.equivalent_frame("source", COLUMNS),
        LIMIT,
        Changes(
            [c.each("source", "{}", FORMS, lambda form, frame: FORMS[form](frame), "row", "columns")],
            [[c.on_frame("source", "anchor", lambda frame: frame.rename(columns={"query": "anchor"}), "")]],
            [
                [*c.without("source", "positive", "negative"), *c.twice("source", *COLUMNS)],
                *[c.cell("source", name, [*c.OF_ANOTHER_TYPE, c.HALF_A_CHARACTER]) for name in COLUMNS],
                c.cell("source", "label", ["x", [1]]),
                c.no_rows("source", *NO_TRIPLES),
                c.replace("source", not_rows, *NO_TRIPLES),
            ],
        ),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        return {"source": some_triples(rng), "limit": rng.choice([None, 1, 2, 3, 4])}

    def call(self, source: Any, limit: Any) -> Any:
        return read_triples(source, limit=limit).dataset[:]

    def expected(self, source: pd.DataFrame, limit: int | None, **_: Any) -> Any:
        return source[source["positive"].str.strip() != ""][:limit].to_dict(orient="list")


def as_parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def as_lines(frame: pd.DataFrame, header: bool, suffix: str) -> bytes:
    if suffix == "csv":
        return frame.to_csv(index=False, header=header, quoting=csv.QUOTE_ALL).encode()
    rows = frame.to_numpy().tolist()
    if suffix == "tsv":
        lines = ["\t".join(map(str, row)) for row in ([list(frame)] if header else []) + rows]
    else:
        lines = list(map(json.dumps, frame.to_dict(orient="records")))
    return "".join(f"{line}\n" for line in lines).encode()


def content(text: str, function: Callable[[bytes], bytes], *names: str) -> Change:
    """Change the content of a file; a compressed one stays compressed."""

    def apply(given: bytes) -> bytes:
        is_packed = given.startswith(b"\x1f\x8b")
        return gzip.compress(function(gzip.decompress(given))) if is_packed else function(given)

    return c.change("content", text, apply, *(names or ("triples.", *NO_TRIPLES)))


def table(text: str, function: Callable[[pa.Table], pa.Table], *names: str) -> Change:
    """Change the table in a Parquet file."""
    return content(text, lambda given: as_parquet(function(pq.read_table(io.BytesIO(given)))), *names, "column")


def cast(kind: pa.DataType) -> Change:
    """Give the texts in a Parquet file another type."""

    def apply(given: pa.Table) -> pa.Table:
        others = [given.column(name) for name in given.column_names[3:]]
        texts = [pa.array(given[name].to_pylist(), pa.string()).cast(kind) for name in COLUMNS]
        return pa.table([*texts, *others], names=given.column_names)

    return table(str(kind), apply)


def another_line(line: bytes) -> Change:
    return content(f"a line {line!r}", lambda given: given.rstrip(b"\r\n") + b"\n" + line + b"\n", "line", "row")


QUERIES = [b"3", b"true", b'["sort"]', b'{"text": "sort"}', b'"\\ud800"', b"1e999"]
BAD_LINES = {
    "tsv": [b"sort", b"sort\tplot\tread\t1.5\twrite"],
    "csv": [b"sort", b"sort,plot,read,1.5,write", b'"sort,plot,read'],
    "jsonl": [b"null", b"3", b'"sort"', b"{}", b"[]", b"{", b"[1, 2, 3]", b"NaN", b"sort\tplot", b"[[1]]"]
    + [b'{"query": %s, "positive": "sort", "negative": "plot", "label": 1}' % query for query in QUERIES],
}
LINES = [
    content("ends of lines of Windows", lambda given: given.replace(b"\n", b"\r\n")),
    content("a byte order mark", lambda given: b"\xef\xbb\xbf" + given),
    content("no end of the last line", lambda given: given.removesuffix(b"\n")),
    content("an empty line at the end", lambda given: given + b"\n"),
    c.change("content", "compressed, but not named so", gzip.compress, "line", "triples.", *NO_TRIPLES),
    c.change("name", "named .gz, but not compressed", "{}.gz".format, "line", "triples.", *NO_TRIPLES),
]
NO_LINES = [
    content("not UTF-8", lambda given: given + b"\xff\xfe"),
    content("in UTF-16", lambda given: given.decode().encode("utf-16")),
]
TABLES = [cast(pa.large_string()), cast(pa.dictionary(pa.int32(), pa.string())), cast(pa.string_view())]
TABLES.append(table("columns reversed", lambda given: given.select(given.column_names[::-1])))
NO_TABLES = [cast(pa.binary()), table("no rows", lambda given: given[:0], *NO_TRIPLES)]
NO_TABLES += [table(f"no {name}", lambda given, name=name: given.drop_columns(name), name) for name in COLUMNS]
NO_TABLES.append(c.change("content", "half", lambda given: given[: len(given) // 2], "triples.parquet"))
BAD_FILES = [
    [content("an empty file", lambda given: b"", "empty", "triples.", *NO_TRIPLES)],
    c.replace("name", ["triples", "triples.txt", "triples.gz", "triples.zip", "triples.tsv.bz2"], "named"),
    c.replace("content", ["missing", "a folder"], "no file", "folder"),
]


class TriplesInFile(TriplesInMemory):
    suffix: str

    def valid(self, rng: Random) -> dict[str, Any]:
        rows, is_table, header = some_triples(rng), self.suffix == "parquet", rng.random() < 0.5
        rows = rows if header or is_table else rows[COLUMNS]
        packed = rng.random() < 0.5 and not is_table
        given = as_parquet(pa.Table.from_pandas(rows)) if is_table else as_lines(rows, header, self.suffix)
        name = f"triples.{self.suffix}{'.gz' if packed else ''}"
        limit = rng.choice([None, 1, 3])
        return {"source": rows, "limit": limit, "name": name, "content": gzip.compress(given) if packed else given}

    def call(self, source: Any, limit: Any, name: str, content: Any) -> Any:
        path = self.tools.path(name)
        if content == "a folder":
            path.mkdir()
        elif content != "missing":
            path.write_bytes(content)
        return read_triples(path, limit=limit).dataset[:]


def triples_in_file(suffix: str) -> type[TriplesInFile]:
    equivalent, malformed = (TABLES, NO_TABLES) if suffix == "parquet" else (LINES, NO_LINES)
    bad_lines = [list(map(another_line, BAD_LINES[suffix]))] if suffix in BAD_LINES else []
    capitals = [c.change("name", "in capitals", str.upper, "named")]
    changes = LIMIT, Changes([equivalent, capitals], malformed=[malformed, *bad_lines, *BAD_FILES])
    return type(
        suffix, (TriplesInFile,), {"suffix": suffix, "name": f"read_triples, a {suffix} file", "changes": changes}
    )


NO_POSITIVES = Changes(malformed=[c.column("qrels", "label", "0", lambda labels: 0)])


def two_texts(argument: str, name: str, key: str) -> Changes:
    """Give a query or a document two texts."""

    def repeat(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([frame, frame[:1].assign(**{name: "return the value"})], ignore_index=True)

    return Changes(malformed=[[c.on_frame(argument, f"a {key} with two texts", repeat, name, key)]])


class Results(Entry):
    """Triples with drawn negatives: the right answer has the texts to draw from for each query and positive."""

    name = "fit, results"
    changes: tuple[Changes, ...] = (
        c.frame("results", "qid query docno", "topics", any_order=True, more="text"),
        c.qrels("qrels"),
        NO_POSITIVES,
        two_texts("results", "query", "qid"),
        two_texts("results", "text", "docno"),
        Changes(
            [
                c.numbers("results", "rank"),
                c.column("results", "rank", "less", lambda ranks: [int(float(rank)) - 14 for rank in ranks]),
            ],
            [c.cell("results", name, [c.HALF_A_CHARACTER]) for name in ("query", "text")],
            [
                c.cell("results", "text", c.OF_ANOTHER_TYPE),
                c.cell("results", "rank", [None, math.nan, "first", [1]]),
                c.column("results", "rank", "nothing", lambda ranks: math.nan),
            ],
        ),
    )

    def valid(self, rng: Random, texts: Any = c.ALL_TEXTS) -> dict[str, Any]:
        topics, documents, margin = c.some_topics(rng, texts), c.some_documents(rng, texts), rng.choice([None, 0.1])
        return {
            "results": c.some_results(rng, topics, documents),
            "qrels": c.some_qrels(rng, topics, documents),
            "negatives": Negatives(rng.randint(1, 2), range_min=rng.randint(0, 1), relative_margin=margin),
            "min_label": rng.randint(1, 2),
            "corpus": rng.choice([None, documents]),
        }

    def call(self, **arguments: Any) -> Any:
        return from_results(**arguments, seed=3).dataset[:]

    def expected(self, results: Any, qrels: Any, negatives: Negatives, min_label: int, corpus: Any, **_: Any) -> Any:
        retrieved = results.to_dict(orient="records")
        texts = {row["docno"]: row["text"] for row in corpus or retrieved}
        allowed = {}
        for qid, docno, label in qrels.itertuples(index=False):
            ranked = [row for row in retrieved if row["qid"] == qid]
            relevant = set(qrels[(qrels["qid"] == qid) & (qrels["label"] > 0)]["docno"])
            scores = {row["docno"]: row["score"] for row in ranked}
            most = math.inf if negatives.relative_margin is None else 0.9 * scores.get(docno, math.inf)
            below = [row for row in ranked[negatives.range_min :] if row["score"] <= most]
            drawable = {row["text"] for row in below if row["docno"] not in relevant}
            if label >= min_label and docno in texts and len(drawable) >= negatives.number:
                allowed[ranked[0]["query"], texts[docno]] = drawable
        return allowed or Refusal(["no triples", "label of"])

    def is_right(self, answer: Any, expected: Any) -> bool:
        pairs = list(zip(answer.pop("query"), answer.pop("positive"), strict=True))
        drawn = list(zip(*answer.values(), strict=True))
        allowed = all(set(texts) <= expected[pair] for pair, texts in zip(pairs, drawn, strict=True))
        return sorted(pairs) == sorted(expected) and allowed and all(len(set(texts)) == len(texts) for texts in drawn)


CORPUS = c.records("corpus", docno=c.NOT_TEXTS, text=c.OF_ANOTHER_TYPE)
TOPICS = (c.frame("topics", "qid query", any_order=True), two_texts("topics", "query", "qid"))


class Topics(Results):
    name = "fit, topics and a corpus"
    half = Changes(damaged=[c.cell("topics", "query", [c.HALF_A_CHARACTER])])
    changes = (*TOPICS, c.qrels("qrels"), NO_POSITIVES, CORPUS, half)

    def valid(self, rng: Random, texts: Any = None) -> dict[str, Any]:
        topics, corpus = c.some_topics(rng), c.some_documents(rng)
        return {"topics": topics, "qrels": c.some_qrels(rng, topics, corpus), "corpus": corpus}

    def call(self, **arguments: Any) -> Any:
        return from_topics(**arguments, seed=3).dataset[:]

    def expected(self, topics: Any, qrels: Any, corpus: Any) -> Any:
        results = topics.merge(pd.DataFrame(corpus), how="cross").assign(score=1.0)
        return super().expected(results, qrels, Negatives(), 1, corpus)


class Identifiers(Entry):
    name = "read_triples, identifiers"
    not_rows = (None, 3, [], [("1", "2")], [3], "", object())
    changes = (
        *TOPICS,
        CORPUS,
        LIMIT,
        c.equivalent_frame("source", ["qid", "positive", "negative"], any_order=True),
        c.options(max_pairs_per_query=c.POSITIVE.or_none(), store_texts=c.FLAG, fields=c.FIELDS, verbose=c.FLAG),
        Changes(
            [[c.on_frame("source", "records", lambda frame: frame.to_dict(orient="records"))]],
            malformed=[
                *[c.cell("source", name, c.OF_ANOTHER_TYPE) for name in ("positive", "negative")],
                c.replace("source", not_rows, "source", "no file", *NO_TRIPLES),
            ],
        ),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        topics, corpus = c.some_topics(rng), c.some_documents(rng)
        docnos, qids = [each["docno"] for each in corpus], list(topics["qid"])
        rows = {(rng.choice(qids), *rng.sample(docnos, 2)): None for _ in range(rng.randint(1, 6))}
        source = pd.DataFrame(list(rows), columns=["qid", "positive", "negative"])
        options = {"max_pairs_per_query": rng.choice([None, 1, 2]), "limit": rng.choice([None, 1, 3])}
        return {"source": source, "topics": topics, "corpus": corpus, "store_texts": rng.random() < 0.5, **options}

    def call(self, source: Any, **options: Any) -> Any:
        columns = read_triples(source, **options).dataset[:]
        return list(zip(*[columns[name] for name in COLUMNS], strict=True))

    def expected(self, source: Any, topics: Any, corpus: Any, max_pairs_per_query: Any, limit: Any, **_: Any) -> Any:
        queries, texts = dict(topics.itertuples(index=False)), {each["docno"]: each["text"] for each in corpus}
        triples = {(queries[qid], texts[first], texts[second]) for qid, first, second in source.itertuples(index=False)}
        return triples, max_pairs_per_query or len(triples), limit or len(triples)

    def is_right(self, answer: Any, expected: Any) -> bool:
        triples, of_a_query, in_all = expected
        kept, there = (pd.Series([query for query, _, _ in rows]).value_counts() for rows in (answer, triples))
        most = there.clip(upper=of_a_query)
        is_subset = len(set(answer)) == len(answer) and set(answer) <= triples and (kept <= most[kept.index]).all()
        return is_subset and len(answer) == min(most.sum(), in_all)


class Docpairs(Identifiers):
    name = "read_triples, docpairs"
    milliseconds = 50
    equivalent = (
        *c.each(
            "docpairs", "and {}", [("?", "1", "2"), ("1", "?", "2")], lambda row, given: [*given, row], on=c.change
        ),
        c.change("docpairs", "rows twice", lambda rows: rows * 2),
        c.change("docpairs", "reversed", lambda rows: rows[::-1]),
    )
    malformed = (
        c.replace("fields", [["title"], ["text", "title"], ["docno"]], "title", "docno"),
        c.replace("docpairs", [[], [("unknown", "1", "2")]], "triples", "docpairs"),
        *[c.replace(part, [None]) for part in ("queries", "docs", "docpairs")],
    )
    changes = (Changes([equivalent], malformed=malformed),)

    def valid(self, rng: Random) -> dict[str, Any]:
        given = super().valid(rng)
        docs, queries = [list(each.values()) for each in given["corpus"]], given["topics"].to_numpy().tolist()
        return {"queries": queries, "docs": docs, "docpairs": given["source"].to_numpy().tolist(), "fields": ["text"]}

    def call(self, fields: Any, **parts: Any) -> Any:
        dataset = self.tools.register(**{name: rows for name, rows in parts.items() if rows is not None})
        return super().call(dataset, fields=fields)

    def expected(self, queries: Any, docs: Any, docpairs: Any, fields: Any) -> Any:
        corpus = [dict(zip(["docno", "text"], row, strict=True)) for row in docs]
        return super().expected(pd.DataFrame(docpairs), pd.DataFrame(queries), corpus, None, None)


class SplitQueries(Entry):
    name = "split_queries"
    bad = (
        {},
        None,
        0.9,
        [0.9, 0.1],
        {"a": 0.9},
        {"a": 1.2, "b": -0.2},
        {"a": "0.9", "b": "0.1"},
        {"a": None, "b": 1.0},
    )
    forms = (c.change("shares", "a Series", pd.Series), c.change("shares", "tuples", lambda given: {**given}))
    changes = (
        c.frame("frame", "qid", may_be_empty=True),
        Changes([forms], malformed=[c.replace("shares", [*bad, {"a": math.nan, "b": 0.1}])]),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        qids = ["".join(rng.choices("0123456789é", k=rng.randint(1, 5))) for _ in range(rng.randint(1, 8))]
        first, second = rng.randint(0, 50), rng.randint(0, 50)
        shares = {"train": first / 100, "valid": second / 100, "test": (100 - first - second) / 100}
        return {"frame": pd.DataFrame({"qid": qids}).astype({"qid": object}).assign(docno="d1"), "shares": shares}

    def call(self, frame: Any, shares: Any) -> Any:
        return {name: part["qid"].tolist() for name, part in split_queries(frame, shares).items()}

    def expected(self, frame: pd.DataFrame, shares: dict[str, float]) -> Any:
        names = [name for name, share in shares.items() for _ in range(round(100 * share))]
        placed = [(names[zlib.crc32(qid.encode()) % 100], qid) for qid in frame["qid"]]
        return {name: [qid for part, qid in placed if part == name] for name in shares}
