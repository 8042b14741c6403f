"""What became of single queries: which gained and lost most, and their rankings side by side.

Rankings are in the order of their scores, and by identifier where these tie, downwards in both: so does trec_eval order
what it measures.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

RESULT_DEPTH = 10
"""How many documents of a ranking are shown."""

QUERIES_EACH_WAY = 10
"""How many queries that gained, and how many that lost, are shown."""

WORD = re.compile(r"\w+")

FUNCTION_WORDS = (
    "a an and are as at be by can do does for from has have how if in into is it its not of on or so than that the "
    "then there these they this to was were what when where which who why will with you your"
)
"""English words that say nothing where they match."""


@dataclass(frozen=True)
class RankedDocument:
    """A document in one of two rankings.

    Attributes:
        docno: Its identifier.
        rank: Its rank, from 1; None where it was not found.
        other_rank: Its rank in the other ranking, likewise.
        label: How relevant it was judged; None if it was not.
    """

    docno: str
    rank: int | None
    other_rank: int | None
    label: int | None

    @property
    def is_relevant(self) -> bool:
        """Whether it was judged relevant."""
        return self.label is not None and self.label > 0


@dataclass(frozen=True)
class QueryChange:
    """A query in the rankings of two systems.

    Attributes:
        qid: Its identifier.
        query: Its text.
        value_before: What the measure says of the ranking of the baseline.
        value_after: What it says of that of the system.
        before: The first documents of the baseline.
        after: The first documents of the system.
        relevant: The documents that were judged relevant, with their ranks in ``after`` and, as the other, ``before``.
    """

    qid: str
    query: str
    value_before: float
    value_after: float
    before: list[RankedDocument]
    after: list[RankedDocument]
    relevant: list[RankedDocument]

    @property
    def difference(self) -> float:
        """How much the query gained."""
        return self.value_after - self.value_before


def largest_changes(before: pd.Series, after: pd.Series, count: int = QUERIES_EACH_WAY) -> tuple[list[str], list[str]]:
    """Find the queries that gained most and those that lost most.

    Args:
        before: The values of the baseline by query.
        after: The values of the system by query.
        count: How many to find each way, at most.

    Returns:
        Those that gained and those that lost, the largest change first.

    Example:
        >>> before = pd.Series({"q1": 0.5, "q2": 0.5, "q3": 0.5})
        >>> largest_changes(before, pd.Series({"q1": 0.6, "q2": 0.1, "q3": 1.0}))
        (['q3', 'q1'], ['q2'])
    """
    differences = (after - before).sort_values(kind="stable")
    lost = differences[differences < 0].head(count)
    gained = differences[differences > 0].tail(count)
    return list(gained.index[::-1]), list(lost.index)


def rankings(results: pd.DataFrame, qids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Rank the results of some queries.

    Args:
        results: ``qid``, ``docno`` and ``score``.
        qids: The queries.

    Returns:
        For each query the ranks by document, from 1 and in their order; none where nothing was found.

    Example:
        >>> results = pd.DataFrame([["q1", "d1", 0.5], ["q1", "d2", 0.7]], columns=["qid", "docno", "score"])
        >>> rankings(results, ["q1", "q2"])
        {'q1': {'d2': 1, 'd1': 2}, 'q2': {}}
    """
    of_queries = results[results["qid"].isin(qids)]
    ordered = of_queries.sort_values(["score", "docno"], ascending=False)
    found: dict[str, dict[str, int]] = {qid: {} for qid in qids}
    for qid, docno in zip(ordered["qid"], ordered["docno"], strict=True):
        found[qid][docno] = len(found[qid]) + 1
    return found


def describe_change(
    qid: str,
    query: str,
    values: tuple[float, float],
    *,
    before: Mapping[str, int],
    after: Mapping[str, int],
    labels: Mapping[str, int],
) -> QueryChange:
    """Put two rankings of a query side by side.

    Args:
        qid: The identifier of the query.
        query: Its text.
        values: The measures of the baseline and the system.
        before: The ranks of the baseline by document, in their order.
        after: The ranks of the system.
        labels: The labels of judged documents.

    Returns:
        The query with both.

    Example:
        >>> ranks = {"before": {"d1": 1, "d2": 2}, "after": {"d2": 1}}
        >>> describe_change("q1", "sort", (0.5, 1.0), **ranks, labels={"d2": 3}).after
        [RankedDocument(docno='d2', rank=1, other_rank=2, label=3)]
    """

    def place(docno: str, own: Mapping[str, int], other: Mapping[str, int]) -> RankedDocument:
        return RankedDocument(docno, own.get(docno), other.get(docno), labels.get(docno))

    relevant = [place(docno, after, before) for docno, label in labels.items() if label > 0]
    relevant.sort(key=lambda document: (-(document.label or 0), document.docno))
    return QueryChange(
        qid=qid,
        query=query,
        value_before=values[0],
        value_after=values[1],
        before=[place(docno, before, after) for docno in list(before)[:RESULT_DEPTH]],
        after=[place(docno, after, before) for docno in list(after)[:RESULT_DEPTH]],
        relevant=relevant[:RESULT_DEPTH],
    )


def matching_pieces(text: str, query: str) -> list[tuple[str, bool]]:
    """Divide a text at the words that it shares with a query.

    Args:
        text: The text.
        query: The query.

    Returns:
        The pieces, and whether each is such a word. Case does not matter; words such as "the" do not count.

    Example:
        >>> matching_pieces("Sort the rows", "how to sort the columns")
        [('Sort', True), (' the rows', False)]
    """
    words = {word.casefold() for word in WORD.findall(query)}.difference(FUNCTION_WORDS.split())
    pieces = []
    end = 0
    for match in WORD.finditer(text):
        if match[0].casefold() in words:
            pieces += [(text[end : match.start()], False), (match[0], True)]
            end = match.end()
    pieces.append((text[end:], False))
    return [(piece, is_match) for piece, is_match in pieces if piece]


def cut(text: str, length: int) -> tuple[str, str]:
    """Divide a text after a number of characters, between two words if there are any.

    Args:
        text: The text.
        length: How many characters there may be before.

    Returns:
        What is before and what is after, without the space between them.

    Example:
        >>> cut("sort the rows", 10), cut("sort", 10)
        (('sort the', 'rows'), ('sort', ''))
    """
    if len(text) <= length:
        return text, ""
    space = text.rfind(" ", 0, length + 1)
    if space <= 0:
        return text[:length], text[length:]
    return text[:space], text[space + 1 :]
