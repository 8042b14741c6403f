"""Entry points of an index: building it, and searching it, against the products of all vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import torch

from pyterrier_selfdistill import SelfDistillIndex

from . import worlds
from .exploring import EntryPoint, Mutation, WrongAnswerError
from .mutations import (
    FLAG,
    HALF_A_CHARACTER,
    MISSING,
    NOT_TEXTS,
    POSITIVE,
    cell,
    column,
    equivalent_frame,
    frame_mutation,
    malformed_options,
    mutation,
    no_rows,
    other_types,
    replace,
    shown,
    valid_options,
    without,
)

DOCNOS = list(worlds.INDEXED)

VECTOR_TYPES: dict[str, Callable[[np.ndarray], Any]] = {
    "lists": lambda vector: np.asarray(vector).tolist(),
    "float64": lambda vector: np.asarray(vector, dtype=np.float64),
    "tensors": lambda vector: torch.tensor(np.asarray(vector)),
    "read-only": lambda vector: np.frombuffer(np.asarray(vector).tobytes(), dtype=np.asarray(vector).dtype),
}

NOT_VECTORS = [
    *MISSING,
    3,
    "0.5",
    [],
    {},
    np.ones(3, dtype=np.float32),
    np.ones((1, 32), dtype=np.float32),
    np.full(32, math.nan, dtype=np.float32),
    np.full(32, math.inf, dtype=np.float32),
    ["x"] * 32,
    [None] * 32,
]


@st.composite
def encoded_documents(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Make documents with vectors that no encoder made."""
    docnos = draw(worlds.identifiers(draw(st.integers(1, 6))))
    vectors = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(len(docnos), 32)).astype(np.float32)
    return [{"docno": docno, "doc_vec": vector} for docno, vector in zip(docnos, vectors, strict=True)]


def _last_record(description: str, change: Callable[[Any], Any], *names: str) -> Mutation:
    """Change the last record."""

    def change_last(records: Any) -> list[Any]:
        *others, last = _as_records(records)
        return [*others, change(last)]

    return mutation("records", description, change_last, *names)


def _as_records(records: Any) -> list[Any]:
    if isinstance(records, pd.DataFrame):
        return records.to_dict(orient="records")
    return list(records)


def _put(name: str, values: list[Any]) -> st.SearchStrategy[Mutation]:
    """Put a value into the last record, beside another one, so that it is not all that there is."""
    return st.sampled_from(values).map(
        lambda value: _last_record(f"{name} = {shown(value)}", lambda record: {**record, name: value}, name)
    )


class BuildIndex(EntryPoint):
    """An index with the vector of each document."""

    name = "index.index"
    valid = st.fixed_dictionaries({"records": encoded_documents()})
    equivalent = (
        st.just(mutation("records", "an iterator", lambda records: iter(_as_records(records)))),
        st.just(mutation("records", "a frame", lambda records: pd.DataFrame(_as_records(records)))),
        st.just(
            mutation("records", "with more", lambda records: [{"more": 3, **record} for record in _as_records(records)])
        ),
        st.sampled_from(list(VECTOR_TYPES)).map(
            lambda name: _last_record(
                f"{name}", lambda record: {**record, "doc_vec": VECTOR_TYPES[name](record["doc_vec"])}, "doc_vec"
            )
        ),
        replace("mode", ["create", "overwrite"]),
    )
    malformed = (
        _put("docno", [*NOT_TEXTS, *HALF_A_CHARACTER]),
        _put("doc_vec", NOT_VECTORS),
        st.sampled_from(["docno", "doc_vec"]).map(
            lambda name: _last_record(
                f"no {name}", lambda record: {other: record[other] for other in record if other != name}, name
            )
        ),
        st.sampled_from([None, 3, "d1", ("d1", [0.5]), []]).map(
            lambda value: _last_record(f"a record {value!r}", lambda record: value, "document", "record")
        ),
        st.just(mutation("records", "all twice", lambda records: _as_records(records) * 2, "docno")),
        st.sampled_from([[], None, 3, "docs", {}, pd.DataFrame()]).map(
            lambda value: mutation("records", f"{value!r}", lambda records: value, "document", "record")
        ),
        replace("mode", ["Create", None, 3, "", "append", True], "mode"),
    )

    def call(self, records: Any, **options: Any) -> Any:
        """Return the documents and vectors of the index."""
        index = SelfDistillIndex(self.tools.path(), verbose=False)
        index.indexer(**options).index(records)
        docnos, vectors, _ = index.payload()
        return dict(zip(map(str, docnos), np.array(vectors), strict=True))

    def expected(self, records: list[dict[str, Any]]) -> Any:
        """Return the documents and their vectors."""
        return {record["docno"]: record["doc_vec"] for record in records}


class QueryText:
    """Stands for the vector of a query, until there is an encoder.

    Args:
        text: The query.
        convert: Gives the vector another type.
    """

    def __init__(self, text: str, convert: Callable[[np.ndarray], Any] = np.asarray) -> None:
        self.text = text
        self.convert = convert

    def __repr__(self) -> str:
        return f"vector of {self.text!r}"


def _with_query_texts(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(query_vec=[QueryText(query) for query in frame["query"]])


def _vectors_as(name: str) -> Mutation:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(query_vec=[QueryText(vector.text, VECTOR_TYPES[name]) for vector in frame["query_vec"]])

    return frame_mutation("frame", f"vectors as {name}", change, "query_vec")


def _option(change: Mutation) -> Mutation:
    """Change one of the options, which are an argument of their own here."""

    def change_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {**arguments, "options": change.change(arguments["options"])}

    return Mutation(change.description, change_options, change.names)


RETRIEVER_OPTIONS = {
    "num_results": POSITIVE,
    "batch_size": POSITIVE.or_none(),
    "drop_query_vec": FLAG,
}

SCORER_OPTIONS = {"num_results": POSITIVE.or_none()}


class Search(EntryPoint):
    """What an index does with vectors of queries."""

    def encoded(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Put vectors into the places of texts."""
        if "query_vec" not in frame:
            return frame
        vectors = []
        for value in frame["query_vec"]:
            if isinstance(value, QueryText):
                value = value.convert(self.tools.vectors("query", [value.text])[0])  # noqa: PLW2901
            vectors.append(value)
        return frame.assign(query_vec=pd.Series(vectors, index=frame.index, dtype=object))

    def products(self, queries: list[str]) -> pd.DataFrame:
        """Return the products of queries and all documents, one row a query."""
        return pd.DataFrame(self.tools.scores(queries, worlds.TEXTS), index=queries, columns=DOCNOS)


class Retrieve(Search):
    """The best documents of each query: their scores, in the order of their ranks."""

    name = "index.retriever"
    valid = st.fixed_dictionaries(
        {
            "frame": worlds.topics(worlds.TEXTS).map(_with_query_texts),
            "options": valid_options(RETRIEVER_OPTIONS),
            "mask": st.none() | st.lists(st.sampled_from(DOCNOS), min_size=1, max_size=4, unique=True),
        }
    )

    equivalent = (
        equivalent_frame("frame", ["qid", "query"]),
        st.sampled_from(list(VECTOR_TYPES)).map(_vectors_as),
        other_types().map(_option),
    )
    damaged = (without("frame", ["query"]),)
    malformed = (
        without("frame", ["qid", "query_vec"]),
        cell("frame", "query_vec", NOT_VECTORS),
        cell("frame", "qid", MISSING),
        column("frame", "query_vec", "numbers", lambda vectors: 0.5),
        malformed_options(RETRIEVER_OPTIONS).map(_option),
        replace("mask", [["unknown"], "d1", 3, [3], [None]], "mask", "document", "docnos"),
        replace("mask", [np.ones(3), np.full(12, math.nan), np.array(["1"] * 12), np.full(12, 2), [True]], "mask"),
    )

    def call(self, frame: Any, options: dict[str, Any], mask: Any) -> Any:
        """Return the documents of each query and their scores, in the order of their ranks."""
        index = SelfDistillIndex(self.tools.indexed, verbose=False)
        if isinstance(mask, list | str | int) and mask != [True]:
            mask = index.mask(mask)
        if mask is not None:
            options = {**options, "mask": mask}
        found = index.retriever(**options)(self.encoded(frame))
        if options.get("drop_query_vec", False) == ("query_vec" in found):
            raise WrongAnswerError(f"columns {list(found.columns)} with the options {options}")
        by_query: dict[str, dict[str, float]] = {qid: {} for qid in frame["qid"]}
        for qid, docno, score in found.sort_values("rank")[["qid", "docno", "score"]].itertuples(index=False):
            by_query.setdefault(qid, {})[docno] = float(score)
        return by_query

    def expected(self, frame: pd.DataFrame, options: dict[str, Any], mask: Any) -> Any:
        """Sort the products."""
        products = self.products(list(frame["query"]))[mask or DOCNOS]
        best = {}
        for qid, query in zip(frame["qid"], frame["query"], strict=True):
            scores = products.loc[query].sort_values(ascending=False)[: options.get("num_results", 1000)]
            best[qid] = {docno: float(score) for docno, score in scores.items()}
        return best

    def is_right(self, answer: Any, expected: Any) -> bool:
        """Compare scores and order."""
        in_order = all(list(answer[qid]) == list(expected[qid]) for qid in expected)
        return in_order and super().is_right(answer, expected)


class ScoreResults(Search):
    """The products of the vectors of the query and the documents of each row."""

    name = "index.scorer"

    @staticmethod
    @st.composite
    def _valid(draw: st.DrawFn) -> dict[str, Any]:
        documents = [{"docno": docno, "text": text} for docno, text in worlds.INDEXED.items()]
        results = draw(worlds.results(draw(worlds.topics(worlds.TEXTS)), documents))
        return {"frame": _with_query_texts(results), "options": draw(valid_options(SCORER_OPTIONS))}

    valid = _valid()
    equivalent = (
        equivalent_frame("frame", ["qid", "docno", "query"]),
        st.sampled_from(list(VECTOR_TYPES)).map(_vectors_as),
    )
    malformed = (
        without("frame", ["qid", "docno", "query_vec"]),
        cell("frame", "query_vec", NOT_VECTORS),
        cell("frame", "docno", [*NOT_TEXTS, "unknown"]),
        cell("frame", "qid", MISSING),
        malformed_options(SCORER_OPTIONS).map(_option),
    )

    def call(self, frame: Any, options: dict[str, Any]) -> Any:
        """Return the scores in the order of ranks."""
        scored = SelfDistillIndex(self.tools.indexed, verbose=False).scorer(**options)(self.encoded(frame))
        rows = scored.sort_values(["qid", "rank"])[["qid", "docno", "score"]]
        return [(qid, docno, float(score)) for qid, docno, score in rows.itertuples(index=False)]

    def expected(self, frame: pd.DataFrame, options: dict[str, Any]) -> Any:
        """Take the products of each query and its documents, the best ones of each."""
        products = self.products(list(frame["query"].unique()))
        scores = []
        for qid, of_query in frame.groupby("qid"):
            row = products.loc[of_query["query"].iloc[0], list(of_query["docno"])].sort_values(ascending=False)
            for docno, score in row[: options.get("num_results")].items():
                scores.append((qid, docno, float(score)))
        return scores


class EncodeAndRetrieve(EntryPoint):
    """What the pipeline of an encoder and a retriever finds for a query."""

    name = "(encoder >> index.retriever())"
    valid = st.fixed_dictionaries({"frame": worlds.topics(worlds.TEXTS)})
    equivalent = (equivalent_frame("frame", ["qid", "query"]),)
    damaged = (no_rows("frame"),)
    malformed = (
        without("frame", ["qid", "query"]),
        cell("frame", "query", [*NOT_TEXTS, *HALF_A_CHARACTER]),
        cell("frame", "qid", MISSING),
    )

    def call(self, frame: Any) -> Any:
        """Return the best document of each query."""
        index = SelfDistillIndex(self.tools.indexed, verbose=False)
        found = (self.tools.encoder >> index.retriever(num_results=1))(frame)
        return dict(zip(found["qid"], found["docno"], strict=True))

    def expected(self, frame: pd.DataFrame) -> Any:
        """Return the document with the highest product."""
        products = self.tools.scores(list(frame["query"]), worlds.TEXTS)
        return {qid: DOCNOS[best] for qid, best in zip(frame["qid"], products.argmax(axis=1), strict=True)}

    def is_right(self, answer: Any, expected: Any) -> bool:
        """Compare; there is nothing to find for no queries."""
        return answer in (expected, {})
