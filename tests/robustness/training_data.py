"""Entry points that make triples of frames: from results, from topics, from identifiers and from docpairs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pandas as pd

from pyterrier_selfdistill import Negatives, split_queries
from pyterrier_selfdistill.data.negatives import from_results, from_topics
from pyterrier_selfdistill.data.triples import PairOptions, from_docpairs, from_identifiers

from . import worlds
from .exploring import EntryPoint, Mutation, Refusal
from .mutations import (
    HALF_A_CHARACTER,
    OF_ANOTHER_TYPE,
    Mutations,
    cell,
    column,
    equivalent_corpus,
    equivalent_frame,
    malformed_corpus,
    malformed_frame,
    mutation,
    no_rows,
    number_types,
    replace,
)

NOT_LABELS = [None, math.nan, "relevant", "", [1], pd.NA]

equivalent_qrels = st.one_of(
    equivalent_frame("qrels", ["qid", "docno"], any_order=True),
    number_types("qrels", "label"),
)

malformed_qrels = st.one_of(
    malformed_frame("qrels", ["qid", "docno"]),
    no_rows("qrels", "judgements"),
    cell("qrels", "label", NOT_LABELS),
    column("qrels", "label", "names", lambda labels: "relevant"),
    column("qrels", "qid", "of other queries", lambda qids: [f"of {qid}" for qid in qids]),
)


no_positives = column("qrels", "label", "0", lambda labels: 0)

equivalent_results = st.one_of(
    equivalent_frame("results", ["qid", "query", "docno", "text"], any_order=True),
    number_types("results", "rank"),
    column("results", "rank", "ranks from -7 on", lambda ranks: [int(float(rank)) - 14 for rank in ranks]),
)


def other_text(argument: str, name: str, key: str) -> Mutations:
    """Give a query or a document two texts."""

    def repeat(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([frame, frame[:1].assign(**{name: "return the value"})], ignore_index=True)

    return st.just(mutation(argument, f"a {key} with two texts", repeat, name, key))


class Drawn(NamedTuple):
    """Triples of which negatives are drawn: what they must have in common, however they are drawn.

    Attributes:
        negatives: For each query and positive, of which there is one triple, the texts to draw from.
        number: How many are drawn.
    """

    negatives: dict[tuple[str, str], set[str]]
    number: int

    def allows(self, columns: dict[str, list[str]]) -> bool:
        """Say whether triples may have been drawn so."""
        query, positive, *negatives = columns.values()
        pairs = list(zip(query, positive, strict=True))
        drawn = list(zip(*negatives, strict=True))
        are_distinct = all(len(set(texts)) == self.number for texts in drawn)
        allowed = all(set(texts) <= self.negatives[pair] for pair, texts in zip(pairs, drawn, strict=True))
        return sorted(pairs) == sorted(self.negatives) and are_distinct and allowed


class FromResults(EntryPoint):
    """One triple for each relevant document; negatives are results at the ranks asked for that are not relevant."""

    name = "fit, of results"

    @staticmethod
    @st.composite
    def _valid(draw: st.DrawFn) -> dict[str, Any]:
        topics, documents = draw(worlds.topics()), draw(worlds.corpus())
        results = draw(worlds.results(topics, documents))
        margin = draw(st.sampled_from([None, None, 0.1]))
        negatives = Negatives(draw(st.integers(1, 2)), range_min=draw(st.integers(0, 1)), relative_margin=margin)
        corpus = draw(st.sampled_from([None, documents]))
        return {
            "results": results,
            "qrels": draw(worlds.judgements(topics, documents)),
            "negatives": negatives,
            "min_label": draw(st.integers(1, 2)),
            "seed": draw(st.integers(0, 9)),
            "corpus": corpus,
        }

    valid = _valid()
    equivalent = (equivalent_results, equivalent_qrels)
    damaged = (cell("results", "query", HALF_A_CHARACTER), cell("results", "text", HALF_A_CHARACTER))
    malformed = (
        malformed_frame("results", ["qid", "docno"], ["query"]),
        # a text may be missing
        cell("results", "text", OF_ANOTHER_TYPE),
        no_rows("results", "topics"),
        other_text("results", "query", "qid"),
        other_text("results", "text", "docno"),
        cell("results", "rank", [None, math.nan, "first", [1]]),
        column("results", "rank", "nothing", lambda ranks: math.nan),
        malformed_qrels,
        no_positives,
    )

    def call(self, **arguments: Any) -> Any:
        """Return the columns of the triples."""
        return from_results(**arguments).dataset[:]

    def expected(
        self,
        results: pd.DataFrame,
        qrels: pd.DataFrame,
        negatives: Negatives,
        min_label: int,
        corpus: list[dict[str, str]] | None,
        seed: int,
    ) -> Any:
        """Follow the definition, one judgement at a time."""
        retrieved = results.to_dict(orient="records")
        texts = {row["docno"]: row["text"] for row in corpus or retrieved}
        allowed = {}
        for qid, docno, label in qrels.itertuples(index=False):
            ranked = [row for row in retrieved if row["qid"] == qid]
            relevant = set(qrels[(qrels["qid"] == qid) & (qrels["label"] > 0)]["docno"])
            scores = {row["docno"]: row["score"] for row in ranked}
            most = math.inf
            if negatives.relative_margin is not None and docno in scores:
                most = (1 - negatives.relative_margin) * scores[docno]
            drawable = set()
            for row in ranked[negatives.range_min :]:
                if row["docno"] not in relevant and row["score"] <= most:
                    drawable.add(row["text"])
            if label >= min_label and docno in texts and len(drawable) >= negatives.number:
                allowed[ranked[0]["query"], texts[docno]] = drawable
        if not allowed:
            return Refusal(["no triples", "label of"])
        return Drawn(allowed, negatives.number)

    def is_right(self, answer: Any, expected: Drawn) -> bool:
        """Say whether the triples may have been drawn so."""
        return expected.allows(answer)


class FromTopics(EntryPoint):
    """One triple for each relevant document; negatives are documents of the corpus that are not relevant."""

    name = "fit, of topics and a corpus"

    @staticmethod
    @st.composite
    def _valid(draw: st.DrawFn) -> dict[str, Any]:
        topics, corpus = draw(worlds.topics()), draw(worlds.corpus())
        qrels = draw(worlds.judgements(topics, corpus))
        return {"topics": topics, "qrels": qrels, "corpus": corpus, "seed": draw(st.integers(0, 9))}

    valid = _valid()
    equivalent = (
        equivalent_frame("topics", ["qid", "query"], any_order=True),
        equivalent_qrels,
        equivalent_corpus("corpus"),
    )
    damaged = (cell("topics", "query", HALF_A_CHARACTER),)
    malformed = (
        malformed_frame("topics", ["qid"], ["query"]),
        no_rows("topics"),
        other_text("topics", "query", "qid"),
        malformed_qrels,
        no_positives,
        malformed_corpus("corpus", texts=OF_ANOTHER_TYPE),
    )

    def call(self, **arguments: Any) -> Any:
        """Return the columns of the triples."""
        return from_topics(**arguments).dataset[:]

    def expected(self, topics: pd.DataFrame, qrels: pd.DataFrame, corpus: list[dict[str, str]], seed: int) -> Any:
        """Follow the definition, one judgement at a time."""
        queries = dict(topics.itertuples(index=False))
        texts = {document["docno"]: document["text"] for document in corpus}
        allowed = {}
        for qid, docno, label in qrels.itertuples(index=False):
            relevant = set(qrels[(qrels["qid"] == qid) & (qrels["label"] > 0)]["docno"])
            if label > 0 and texts.keys() > relevant:
                allowed[queries[qid], texts[docno]] = {texts[other] for other in texts.keys() - relevant}
        return Drawn(allowed, number=1)

    def is_right(self, answer: Any, expected: Drawn) -> bool:
        """Say whether the triples may have been drawn so."""
        return expected.allows(answer)


class FromIdentifiers(EntryPoint):
    """The texts of each distinct row of identifiers, in any order, as many of a query and in all as asked for."""

    name = "fit_triples, of identifiers"

    @staticmethod
    @st.composite
    def _valid(draw: st.DrawFn) -> dict[str, Any]:
        topics, corpus = draw(worlds.topics()), draw(worlds.corpus())
        docnos = [document["docno"] for document in corpus]
        row = st.tuples(st.sampled_from(list(topics["qid"])), worlds.some_of(docnos, 2)).map(
            lambda drawn: (drawn[0], *drawn[1])
        )
        rows = draw(st.lists(row, min_size=1, max_size=6, unique=True))
        return {
            "source": pd.DataFrame(rows, columns=["qid", "positive", "negative"]),
            "topics": topics,
            "corpus": corpus,
            "max_pairs_per_query": draw(st.none() | st.integers(1, 2)),
            "limit": draw(st.none() | st.integers(1, 3)),
            "store_texts": draw(st.booleans()),
        }

    valid = _valid()
    equivalent = (
        equivalent_frame("source", ["qid", "positive", "negative"], any_order=True),
        equivalent_frame("topics", ["qid", "query"], any_order=True),
        equivalent_corpus("corpus"),
        st.just(mutation("source", "as tuples", lambda rows: list(_in_order(rows).itertuples(index=False)))),
        st.just(mutation("source", "as records", lambda rows: _in_order(rows).to_dict(orient="records"))),
    )
    malformed = (
        cell("source", "positive", OF_ANOTHER_TYPE),
        cell("source", "negative", OF_ANOTHER_TYPE),
        malformed_frame("topics", ["qid"], ["query"]),
        no_rows("topics"),
        other_text("topics", "query", "qid"),
        malformed_corpus("corpus", texts=OF_ANOTHER_TYPE),
        replace("source", [None, 3, [], [("1", "2")], [3], "", object()], "source", "triples", "row", "no file"),
    )

    def call(self, source: Any, topics: Any, corpus: Any, **options: Any) -> Any:
        """Return the triples as tuples."""
        columns = from_identifiers(source, topics, corpus, PairOptions(**options)).dataset[:]
        return list(zip(columns["query"], columns["positive"], columns["negative"], strict=True))

    def expected(self, source: pd.DataFrame, topics: pd.DataFrame, corpus: list[dict[str, str]], **options: Any) -> Any:
        """Return all that may be kept, and of how many of each query and in all."""
        queries = dict(topics.itertuples(index=False))
        texts = {document["docno"]: document["text"] for document in corpus}
        triples = {(queries[qid], texts[first], texts[second]) for qid, first, second in source.itertuples(index=False)}
        return triples, options["max_pairs_per_query"] or len(triples), options["limit"] or len(triples)

    def is_right(self, answer: Any, expected: Any) -> bool:
        """Say whether this is a sample of the triples."""
        triples, of_a_query, in_all = expected
        kept = pd.Series([query for query, _, _ in answer]).value_counts()
        there = pd.Series([query for query, _, _ in triples]).value_counts()
        may_be_kept = there.clip(upper=of_a_query)
        are_distinct = len(set(answer)) == len(answer)
        as_many = len(answer) == min(may_be_kept.sum(), in_all)
        return triples >= set(answer) and are_distinct and as_many and (kept <= may_be_kept[kept.index]).all()


def _in_order(rows: Any) -> pd.DataFrame:
    return pd.DataFrame(rows)[["qid", "positive", "negative"]]


class FromDocpairs(EntryPoint):
    """The texts of each distinct docpair whose identifiers are known."""

    name = "fit_triples, of docpairs"
    milliseconds = 50

    @staticmethod
    @st.composite
    def _valid(draw: st.DrawFn) -> dict[str, Any]:
        topics, corpus = draw(worlds.topics()), draw(worlds.corpus())
        pair = worlds.some_of([document["docno"] for document in corpus], 2)
        pairs = draw(st.lists(pair, min_size=1, max_size=4))
        qids = draw(st.lists(st.sampled_from(list(topics["qid"])), min_size=len(pairs), max_size=len(pairs)))
        return {
            "queries": topics.to_numpy().tolist(),
            "docs": [list(document.values()) for document in corpus],
            "docpairs": [(qid, *docnos) for qid, docnos in zip(qids, pairs, strict=True)],
            "fields": ["text"],
        }

    @staticmethod
    def _without(part: str) -> Mutation:
        return Mutation(f"no {part}", lambda given: {**given, part: None}, (part,))

    @staticmethod
    def _with_more(part: str, rows: Sequence[Any]) -> Mutation:
        return mutation(part, f"{rows} more", lambda given: [*given, *rows])

    valid = _valid()
    equivalent = (
        st.just(_with_more("docpairs", [("unknown", "1", "2")])),
        st.just(_with_more("docpairs", [("1", "unknown", "2")])),
        st.just(mutation("docpairs", "rows twice", lambda rows: rows * 2)),
        st.just(mutation("docpairs", "in the other order", lambda rows: rows[::-1])),
        st.just(mutation("docs", "in the other order", lambda rows: rows[::-1])),
    )
    malformed = (
        st.sampled_from(["queries", "docs", "docpairs"]).map(_without),
        st.just(mutation("docpairs", "no rows", lambda rows: [], "no triples")),
        st.just(mutation("docpairs", "of other queries", lambda rows: [("unknown", "1", "2")], "no triples")),
        replace("fields", [["title"], ["text", "title"], ["docno"]], "title", "docno"),
    )

    def call(self, fields: Sequence[str], **parts: Any) -> Any:
        """Return the triples, sorted."""
        there = {name: rows for name, rows in parts.items() if rows is not None}
        dataset = self.tools.register(**there)
        columns = from_docpairs(dataset, PairOptions(fields=fields)).dataset[:]
        return sorted(zip(columns["query"], columns["positive"], columns["negative"], strict=True))

    def expected(self, queries: Any, docs: Any, docpairs: Any, fields: Any) -> Any:
        """Replace identifiers by texts."""
        texts_of_queries, texts = dict(queries), dict(docs)
        triples = {(texts_of_queries[qid], texts[first], texts[second]) for qid, first, second in docpairs}
        return sorted(triples)


class SplitQueries(EntryPoint):
    """Each query is in the part into which the checksum of its identifier falls, of a hundred places."""

    name = "split_queries"

    @staticmethod
    @st.composite
    def _valid(draw: st.DrawFn) -> dict[str, Any]:
        percents = draw(st.lists(st.integers(0, 50), min_size=1, max_size=3))
        percents.append(100 - sum(percents) if sum(percents) <= 100 else 0)
        total = sum(percents)
        shares = {f"part {number}": percent / total for number, percent in enumerate(percents)}
        if total != 100:
            shares = {"train": 0.7, "valid": 0.1, "test": 0.2}
        frame = pd.DataFrame({"qid": draw(st.lists(st.text("0123456789é", min_size=1), min_size=1, max_size=8))})
        return {"frame": frame.astype({"qid": object}).assign(docno="d1"), "shares": shares}

    valid = _valid()
    equivalent = (
        equivalent_frame("frame", ["qid", "docno"]),
        st.just(mutation("shares", "float32", lambda shares: pd.Series(shares, dtype="float32").to_dict(), "shares")),
        st.just(mutation("shares", "a Series", pd.Series, "shares")),
    )
    malformed = (
        malformed_frame("frame", ["qid"]),
        replace(
            "shares",
            [
                {},
                None,
                0.9,
                [0.9, 0.1],
                {"train": 0.9},
                {"train": 1.2, "valid": -0.2},
                {"train": "0.9", "valid": "0.1"},
                {"train": math.nan, "valid": 0.1},
                {"train": None, "valid": 1.0},
            ],
            "shares",
        ),
    )

    def call(self, frame: Any, shares: Any) -> Any:
        """Return the identifiers of each part."""
        return {name: part["qid"].tolist() for name, part in split_queries(frame, shares).items()}

    def expected(self, frame: pd.DataFrame, shares: dict[str, float]) -> Any:
        """Count places, each a hundredth."""
        names = [name for name, share in shares.items() for _ in range(round(100 * share))]
        parts: dict[str, list[str]] = {name: [] for name in shares}
        for qid in frame["qid"]:
            parts[names[zlib.crc32(qid.encode()) % 100]].append(qid)
        return parts
