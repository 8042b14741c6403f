"""Triples of judged positives and drawn negatives."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..validate import require_columns, require_judged, require_positive_integer, require_texts
from .cache import Ledger, Triples, counts, store
from .columns import column_names, string_table
from .corpus import Corpus, Documents

SPARE = 8
"""How many more negatives than needed are drawn from a corpus, for those that turn out to repeat a positive's text."""


@dataclass(frozen=True)
class Negatives:
    """Which of the results of a query become negatives.

    Args:
        number: K, the number of negatives of a triple.
        range_min: How many of the best results never to draw, since they are often relevant without being judged so.
        range_max: The rank after which results are not drawn.
        relative_margin: Leaves suspects out: results that score more than (1 - ``relative_margin``) of what the
            positive scores. A positive that was not retrieved has no score and suspects nothing.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> Negatives(4, range_min=10, range_max=100, relative_margin=0.05)
        Negatives(number=4, range_min=10, range_max=100, relative_margin=0.05)
    """

    number: int = 1
    range_min: int = 0
    range_max: int | None = None
    relative_margin: float | None = None

    def __post_init__(self) -> None:
        require_positive_integer("negatives", self.number)
        if self.range_min != 0:
            require_positive_integer("range_min", self.range_min)
        if self.range_max is not None:
            require_positive_integer("range_max", self.range_max)
            if self.range_max < self.range_min + self.number:
                raise ValueError(
                    f"ranks {self.range_min} to {self.range_max} have fewer than {self.number} results; widen them"
                )
        if self.relative_margin is not None and not 0 <= self.relative_margin <= 1:
            raise ValueError(f"relative_margin={self.relative_margin!r} is no share; give a number from 0 to 1")


def from_results(
    results: pd.DataFrame,
    qrels: pd.DataFrame,
    *,
    negatives: Negatives = Negatives(),
    min_label: int = 1,
    seed: int = 42,
    text_field: str = "text",
    corpus: Corpus | None = None,
    fields: Sequence[str] | None = None,
) -> Triples:
    """Makes triples of judged positives and retrieved negatives.

    Every relevant document of a query makes one triple, with negatives drawn at random from the results of that query.
    Documents with any label above 0, and those with the text of a positive, are never drawn.

    Args:
        results: Retrieved documents: ``qid``, ``query``, ``docno``, the text field unless there is a ``corpus``, and
            ``score`` or ``rank`` where the order of rows is not that of ranks.
        qrels: Judgements: ``qid``, ``docno``, ``label``. Their number is the ``read`` of the summary.
        negatives: How many negatives, and which.
        min_label: The lowest label of a positive.
        seed: Which negatives are drawn. The draw for one positive does not depend on the other rows.
        text_field: The column with the text of documents.
        corpus: Where to find texts that the results lack, as of relevant documents that were not retrieved.
        fields: The fields of the corpus that make a text, if not the text field alone.

    Returns:
        The triples.

    Raises:
        ValueError: If there are no texts, topics and judgements share no query, or nothing is left to train with.
        TypeError: If identifiers or texts are no strings, or labels no numbers.

    Example:
        >>> results = pd.DataFrame([["1", "sort", "d1", "sort rows"], ["1", "sort", "d2", "plot a file"]],
        ...                        columns=["qid", "query", "docno", "text"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> from_results(results, qrels).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    require_columns(results, ["qid", "query", "docno"], "results")
    judged = _Judged(results, qrels, min_label)
    require_texts(results, "query", "qid")
    texts: dict[str, str] = {}
    if text_field in results or corpus is None:
        require_texts(results, text_field, "docno", empty=True, missing=True)
        with_text = results[[isinstance(text, str) and bool(text.strip()) for text in results[text_field]]]
        if corpus is None and with_text.empty:
            require_texts(results, text_field, "docno")
        texts = dict(zip(with_text["docno"], with_text[text_field], strict=True))
    if corpus is not None:
        wanted = set(results["docno"]).union(*judged.relevant.values())
        texts |= Documents(corpus, fields or [text_field]).texts(sorted(wanted - texts.keys()))

    scores = _scores(results)
    window = slice(negatives.range_min, negatives.range_max)
    drawn: dict[tuple[str, str], list[str]] = {}
    for qid, docnos in judged.positives.items():
        ranked = list(scores[qid])[window]
        for docno in docnos:
            allowed = [
                other
                for other in ranked
                if other in texts
                and other not in judged.relevant[qid]
                and not _suspect(scores[qid], docno, other, negatives.relative_margin)
            ]
            order = _generator(seed, qid, docno).permutation(len(allowed))
            drawn[qid, docno] = [allowed[index] for index in order]
    without = len(set(results["docno"]) - texts.keys())
    return _assemble(judged, drawn, texts, negatives, seed=seed, source="results", documents_without_text=without)


def from_topics(
    topics: pd.DataFrame,
    qrels: pd.DataFrame,
    corpus: Corpus,
    *,
    negatives: Negatives = Negatives(),
    min_label: int = 1,
    seed: int = 42,
    text_field: str = "text",
    fields: Sequence[str] | None = None,
) -> Triples:
    """Makes triples of judged positives and negatives drawn at random from a corpus.

    Args:
        topics: Queries: ``qid``, ``query``.
        qrels: As in :func:`from_results`.
        corpus: All documents.
        negatives: How many negatives.
        min_label: The lowest label of a positive.
        seed: Which negatives are drawn.
        text_field: The field with the text of documents.
        fields: The fields of the corpus that make a text, if not the text field alone.

    Returns:
        The triples.

    Raises:
        ValueError: As :func:`from_results`; or if ranks are given, which a corpus has not.
        TypeError: As :func:`from_results`.

    Example:
        >>> topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
        >>> qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
        >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot a file"}]
        >>> from_topics(topics, qrels, corpus).dataset[0]
        {'query': 'sort', 'positive': 'sort rows', 'negative': 'plot a file'}
    """
    if negatives != Negatives(negatives.number):
        raise ValueError(f"{negatives} chooses among ranks and scores, which a corpus has not; put a retriever before")
    judged = _Judged(topics, qrels, min_label)
    require_texts(topics, "query", "qid")
    documents = Documents(corpus, fields or [text_field])
    docnos = documents.docnos()
    drawn = {
        (qid, docno): _sample(docnos, judged.relevant[qid], negatives.number + SPARE, _generator(seed, qid, docno))
        for qid, positives in judged.positives.items()
        for docno in positives
    }
    wanted = {docno for order in drawn.values() for docno in order}.union(*judged.relevant.values())
    return _assemble(judged, drawn, documents.texts(sorted(wanted)), negatives, seed=seed, source="topics")


class _Judged:
    """The positives of each topic, and what became of the judgements that are none."""

    def __init__(self, topics: pd.DataFrame, qrels: pd.DataFrame, min_label: int) -> None:
        require_judged(topics, qrels)
        require_positive_integer("min_label", min_label)
        self.queries = dict(zip(topics["qid"], topics["query"], strict=True))
        self.dropped: Counter[str] = Counter()
        self.read = len(qrels)
        judged = self._keep(qrels, qrels["qid"].isin(self.queries), "judgement of a query that is not there")
        self.relevant = {qid: set(docnos) for qid, docnos in judged[judged["label"] > 0].groupby("qid")["docno"]}
        positives = self._keep(judged, judged["label"] >= min_label, f"judgement with a label below {min_label}")
        positives = self._keep(positives, ~positives.duplicated(["qid", "docno"]), "judgement that stands there twice")
        if positives.empty:
            raise ValueError(
                f"none of the {len(judged)} judgements of these topics is of a relevant document, with a label of "
                f"{min_label} or more (labels are {sorted(judged['label'].unique().tolist())[:10]}); training needs "
                "some"
            )
        found = {qid: docnos.tolist() for qid, docnos in positives.groupby("qid")["docno"]}
        self.positives = {qid: found[qid] for qid in self.queries if qid in found}

    def _keep(self, rows: pd.DataFrame, kept: pd.Series, reason: str) -> pd.DataFrame:
        if lost := len(rows) - int(kept.sum()):
            self.dropped[reason] += lost
        return rows[kept]


def _generator(seed: int, qid: str, docno: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(qid.encode()), zlib.crc32(docno.encode())])


def _scores(results: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Maps each query to its results in the order of their ranks, with their scores (NaN without)."""
    if "rank" in results:
        results = results.sort_values(["qid", "rank"], kind="stable")
    elif "score" in results:
        results = results.sort_values(["qid", "score"], ascending=[True, False], kind="stable")
    results = results.drop_duplicates(["qid", "docno"])
    scores = results["score"] if "score" in results else pd.Series(np.nan, index=results.index)
    ranked: dict[str, dict[str, float]] = {}
    for qid, docno, score in zip(results["qid"], results["docno"], scores, strict=True):
        ranked.setdefault(qid, {})[docno] = score
    return ranked


def _suspect(scores: Mapping[str, float], positive: str, negative: str, relative_margin: float | None) -> bool:
    if relative_margin is None or positive not in scores:
        return False
    return scores[negative] > scores[positive] - relative_margin * abs(scores[positive])


def _sample(
    candidates: Sequence[str], excluded: Collection[str], number: int, generator: np.random.Generator
) -> list[str]:
    """Draws distinct candidates that are not excluded, as many as asked for or as there are."""
    if len(candidates) < 4 * (len(excluded) + number):
        allowed = [candidate for candidate in candidates if candidate not in excluded]
        return [allowed[index] for index in generator.permutation(len(allowed))[:number]]
    drawn: dict[str, None] = {}  # so few are excluded that drawing again is quicker than listing the allowed
    while len(drawn) < number:
        candidate = candidates[int(generator.integers(len(candidates)))]
        if candidate not in excluded:
            drawn[candidate] = None
    return list(drawn)


def _assemble(
    judged: _Judged,
    drawn: Mapping[tuple[str, str], list[str]],
    texts: Mapping[str, str],
    negatives: Negatives,
    **origin: Any,
) -> Triples:
    """Makes one triple of every positive, of the first drawn whose text is no positive's and not taken yet."""
    rows = []
    dropped = judged.dropped
    for qid, docnos in judged.positives.items():
        known = {texts[docno].strip() for docno in judged.relevant[qid] if docno in texts}
        for docno in docnos:
            if not texts.get(docno, "").strip():
                dropped["positive without text"] += 1
                continue
            found: dict[str, str] = {}
            for other in drawn[qid, docno]:
                if len(found) < negatives.number and (text := texts.get(other, "")).strip() not in known | {""}:
                    found.setdefault(text.strip(), text)
            if len(found) < negatives.number:
                dropped[f"positive with fewer than {negatives.number} negatives"] += 1
                continue
            rows.append((judged.queries[qid], texts[docno], *found.values()))
    without = len(judged.queries) - len(judged.positives)
    ledger = Ledger({**origin, "negatives_from": asdict(negatives), "queries_without_positives": without})
    ledger.read, ledger.dropped = judged.read, dropped
    if not rows:
        raise ValueError(
            f"no triples can be made of {judged.read} judgements: {counts(dropped)}. Retrieve more documents, widen "
            "the ranks, or give corpus= for the text of relevant documents that are not retrieved"
        )
    names = column_names(negatives.number + 2)
    table = string_table(dict(zip(names, zip(*rows, strict=True), strict=True)))
    return store(lambda: iter([ledger.usable(table, table)]), ledger, None, None)
