"""Entry points that encode, score and evaluate, against sentence-transformers encoding each text by itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import pandas as pd
from ir_measures import RR, P, ScoredDoc, calc_aggregate

from pyterrier_selfdistill import RetrievalEvaluator

from . import worlds
from .exploring import EntryPoint, WrongAnswerError
from .mutations import (
    HALF_A_CHARACTER,
    MISSING,
    NOT_TEXTS,
    POSITIVE,
    cell,
    column,
    column_twice,
    equivalent_corpus,
    equivalent_frame,
    malformed_corpus,
    malformed_frame,
    mutation,
    no_rows,
    replace,
    without,
)
from .options import FIELDS, MEASURES
from .training_data import equivalent_qrels, malformed_qrels

# words that the tiny language model does not know have all the same vector
some_topics = worlds.topics(worlds.TEXTS)
some_documents = worlds.corpus(worlds.TEXTS)


class EncodeTexts(EntryPoint):
    """A unit vector for each text, in their order."""

    role: ClassVar[str]
    method: ClassVar[str]

    def __init_subclass__(cls) -> None:
        cls.name = f"encoder.{cls.method}"

    FORMS: ClassVar[dict[str, Callable[[Sequence[str]], Any]]] = {
        "a tuple": tuple,
        "a Series": lambda texts: pd.Series(texts, index=range(len(texts))[::-1], dtype=object),
        "an array": lambda texts: np.array(texts, dtype=object),
        "an array of fixed length": lambda texts: np.array(texts, dtype=str),
        "a generator": lambda texts: (text for text in texts),
        "numpy.str_": lambda texts: list(map(np.str_, texts)),
        "categories": lambda texts: pd.Series(texts, dtype="category"),
    }
    valid = st.fixed_dictionaries(
        {"texts": st.lists(st.sampled_from([*worlds.TEXTS, *worlds.OTHER_TEXTS, "", " "]), max_size=5)},
        optional={"batch_size": POSITIVE.valid | st.none()},
    )
    equivalent = (
        st.sampled_from(list(FORMS)).map(
            lambda name: mutation("texts", f"as {name}", lambda texts: EncodeTexts.FORMS[name](list(texts)))
        ),
        replace("batch_size", [np.int64(2), 10**6]),
    )
    malformed = (
        replace("texts", ["sort", "", None, 3, b"sort", {"sort": 1}, object()]),
        st.sampled_from([*NOT_TEXTS, *HALF_A_CHARACTER]).map(
            lambda value: mutation("texts", f"and {value!r}", lambda texts: [*texts, value], "texts")
        ),
        replace("batch_size", [value for value in POSITIVE.malformed if value is not None]),
    )

    def call(self, **arguments: Any) -> Any:
        """Return the vectors."""
        return getattr(self.tools.encoder, self.method)(**arguments)

    def expected(self, texts: Sequence[str], batch_size: int | None = None) -> Any:
        """Encode each text by itself."""
        if not texts:
            return np.empty((0, 32), dtype=np.float32)
        return self.tools.vectors(self.role, texts)


class EncodeQueries(EncodeTexts):
    """A unit vector for each query."""

    role, method = "query", "encode_queries"


class EncodeDocuments(EncodeTexts):
    """A unit vector for each document."""

    role, method = "document", "encode_docs"


def frame_and_records(argument: str) -> Any:
    """Give a frame as records, which PyTerrier takes too."""
    return st.just(mutation(argument, "as records", lambda frame: pd.DataFrame(frame).to_dict(orient="records")))


class TransformQueries(EntryPoint):
    """The frame, with a vector for each query; something else than a frame gets no further than PyTerrier."""

    name = "encoder(queries)"
    valid = st.fixed_dictionaries({"frame": some_topics})
    equivalent = (
        equivalent_frame("frame", ["qid", "query"], any_order=True),
        frame_and_records("frame"),
    )
    damaged = (no_rows("frame"),)
    malformed = (
        without("frame", ["query"]),
        column_twice("frame", ["qid", "query"]),
        cell("frame", "query", [*NOT_TEXTS, *HALF_A_CHARACTER]),
        column("frame", "query", "numbers", lambda queries: 3),
    )

    def call(self, frame: Any) -> Any:
        """Return the vector of each query."""
        encoded = pd.DataFrame(self.tools.encoder(frame))
        if len(encoded) != len(frame):
            raise WrongAnswerError(f"{len(encoded)} rows of {len(frame)}")
        return dict(zip(encoded["query"], encoded["query_vec"], strict=True))

    def expected(self, frame: pd.DataFrame) -> Any:
        """Encode each query by itself."""
        return dict(zip(frame["query"], self.tools.vectors("query", frame["query"]), strict=True))

    def is_right(self, answer: Any, expected: Any) -> bool:
        """Compare the vectors of the queries that were given."""
        return super().is_right(answer, {query: expected[query] for query in answer})


class TransformDocuments(TransformQueries):
    """The frame, with a vector for each document."""

    name = "encoder(documents)"
    valid = some_documents.map(lambda documents: {"frame": pd.DataFrame(documents)})
    equivalent = (
        equivalent_frame("frame", ["docno", "text"], any_order=True),
        frame_and_records("frame"),
    )
    damaged = (no_rows("frame"),)
    malformed = (
        without("frame", ["text"]),
        column_twice("frame", ["docno", "text"]),
        cell("frame", "text", [*NOT_TEXTS, *HALF_A_CHARACTER]),
        column("frame", "text", "numbers", lambda texts: 3),
    )

    def call(self, frame: Any) -> Any:
        """Return the vector of each text."""
        encoded = pd.DataFrame(self.tools.encoder(frame))
        if len(encoded) != len(frame):
            raise WrongAnswerError(f"{len(encoded)} rows of {len(frame)}")
        return dict(zip(encoded["text"], encoded["doc_vec"], strict=True))

    def expected(self, frame: pd.DataFrame) -> Any:
        """Encode each text by itself."""
        return dict(zip(frame["text"], self.tools.vectors("document", frame["text"]), strict=True))


class TransformResults(EntryPoint):
    """The cosine of each query and document, and its rank among those of the query."""

    name = "encoder(results)"
    valid = st.tuples(some_topics, some_documents).flatmap(
        lambda world: st.fixed_dictionaries({"frame": worlds.results(*world)})
    )
    equivalent = (
        equivalent_frame("frame", ["qid", "query", "docno", "text"]),
        frame_and_records("frame"),
        st.just(mutation("frame", "rows reversed", lambda frame: pd.DataFrame(frame)[::-1])),
    )
    malformed = (
        # with a column less it is no result: its queries or its documents are encoded
        column_twice("frame", ["qid", "query", "docno", "text"]),
        cell("frame", "query", [*NOT_TEXTS, *HALF_A_CHARACTER]),
        cell("frame", "text", [*NOT_TEXTS, *HALF_A_CHARACTER]),
        cell("frame", "qid", MISSING),
        column("frame", "query_vec", "text", lambda vectors: "vector"),
        column("frame", "query_vec", "numbers", lambda vectors: 3.0),
        column("frame", "query_vec", "too short", lambda vectors: [np.ones(3, dtype=np.float32)] * len(vectors)),
        column("frame", "query_vec", "NaN", lambda vectors: [np.full(32, math.nan)] * len(vectors)),
    )

    def call(self, frame: Any) -> Any:
        """Return the score and the rank of each query and document."""
        scored = pd.DataFrame(self.tools.encoder(frame))
        keys = zip(scored["qid"], scored["docno"], strict=True)
        return dict(zip(keys, zip(map(float, scored["score"]), map(int, scored["rank"]), strict=True), strict=True))

    def expected(self, frame: pd.DataFrame) -> Any:
        """Score each row by itself, and rank."""
        rows = frame.to_dict(orient="records")
        scores = {}
        for row in rows:
            scores[row["qid"], row["docno"]] = float(self.tools.scores([row["query"]], [row["text"]])[0, 0])
        ranks: dict[tuple[str, str], int] = {}
        for _, of_query in itertools.groupby(sorted(scores), key=lambda pair: pair[0]):
            best_first = sorted(of_query, key=lambda pair: -scores[pair])
            ranks |= {pair: rank for rank, pair in enumerate(best_first)}
        return {pair: (scores[pair], ranks[pair]) for pair in scores}


@st.composite
def evaluations(draw: st.DrawFn) -> dict[str, Any]:
    """Make results, or queries and a corpus to search."""
    topics, documents = draw(some_topics), draw(some_documents)
    searches = draw(st.booleans())
    results = topics if searches else draw(worlds.results(topics, documents))
    return {
        "topics_or_results": results,
        "qrels": draw(worlds.judgements(topics, documents)),
        "measures": draw(st.sampled_from([[RR], [P @ 2, RR]])),
        "corpus": documents if searches else draw(st.sampled_from([None, documents])),
        "num_results": draw(st.sampled_from([2, 1000])),
    }


class Evaluate(EntryPoint):
    """The measures of the results in the order of their cosines."""

    name = "RetrievalEvaluator"
    milliseconds = 35
    valid = evaluations()
    equivalent = (
        equivalent_frame("topics_or_results", ["qid", "query"]),
        equivalent_qrels,
        st.just(mutation("measures", "as a tuple", tuple)),
        st.just(mutation("num_results", "as NumPy's", np.int64)),
    )
    malformed = (
        malformed_frame("topics_or_results", ["qid"], ["query"]).map(
            lambda change: change._replace(names=[*change.names, "topics", "results"])
        ),
        no_rows("topics_or_results", "topics"),
        malformed_qrels,
        cell("qrels", "label", [0.5]),
        replace("measures", MEASURES.malformed, "measure", "Measure"),
        replace("num_results", [value for value in POSITIVE.malformed if value is not None]),
        replace("fields", [value for value in FIELDS.malformed if value is not None]),
        replace("corpus", [3, "docs.tsv", b"docs", True]),
    )

    def call(self, topics_or_results: Any, qrels: Any, measures: Any, **options: Any) -> Any:
        """Return the measures by name."""
        return RetrievalEvaluator(topics_or_results, qrels, measures, **options)(self.tools.encoder.model)

    def expected(self, topics_or_results: Any, qrels: Any, measures: Any, corpus: Any, num_results: int) -> Any:
        """Score each query and document by itself, and measure."""
        rows = topics_or_results
        if "docno" not in topics_or_results:
            rows = topics_or_results.merge(pd.DataFrame(corpus), how="cross")
        run = []
        for qid, of_query in rows.groupby("qid"):
            scores = self.tools.scores(of_query["query"][:1], of_query["text"])[0]
            scored = sorted(zip(scores, of_query["docno"], strict=True), reverse=True)
            if "docno" not in topics_or_results:
                scored = scored[:num_results]
            run += [ScoredDoc(qid, docno, float(score)) for score, docno in scored]
        judged = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
        return {str(measure): value for measure, value in calc_aggregate(measures, judged, run).items()}


class BuildRetriever(EntryPoint):
    """A retriever that finds all documents of the corpus in the order of their cosines."""

    name = "encoder.build_retriever"
    milliseconds = 35
    valid = st.fixed_dictionaries({"corpus": some_documents, "query": st.sampled_from(worlds.TEXTS)})
    equivalent = (
        equivalent_corpus("corpus"),
        replace("num_results", [1000, np.int64(50)]),
        replace("fields", [["text"], ("text",)]),
        replace("overwrite", [True, False, np.True_]),
    )
    malformed = (
        malformed_corpus("corpus"),
        replace("num_results", POSITIVE.malformed),
        replace("fields", [value for value in FIELDS.malformed if value is not None]),
        replace("fields", [["title"], ["text", "title"]], "title", "fields"),
        replace("overwrite", ["no", None, 2]),
        replace("path", [None, 3, "", b"index", True]),
    )

    def call(self, corpus: Any, query: str, **options: Any) -> Any:
        """Return the documents and their scores, best first."""
        options.setdefault("path", self.tools.path())
        found = self.tools.encoder.build_retriever(corpus, **options).search(query)
        return dict(zip(found["docno"], map(float, found["score"]), strict=True))

    def expected(self, corpus: Any, query: str) -> Any:
        """Return the documents and their cosines, best first."""
        scores = self.tools.scores([query], [document["text"] for document in corpus])[0]
        found = zip([document["docno"] for document in corpus], map(float, scores), strict=True)
        return dict(sorted(found, key=lambda pair: -pair[1]))

    def is_right(self, answer: Any, expected: Any) -> bool:
        """Compare scores and order."""
        return list(answer) == list(expected) and super().is_right(answer, expected)
