"""The systems of a comparison: their names, their results, and the texts in these."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, TypeAlias

import pandas as pd
import pyterrier as pt
from pydantic import Field

from ..data.corpus import join_texts
from ..options import Expected
from ..validate import require_columns, require_identifiers

System: TypeAlias = pt.Transformer | pd.DataFrame
"""A pipeline, or the results of one."""

Systems: TypeAlias = Annotated[
    Annotated[Mapping[str, System], Field(min_length=2)] | Annotated[Sequence[System], Field(min_length=2)],
    Expected("a dictionary of two or more systems by name, or a list of them: transformers, or frames of results"),
]


def named_systems(
    systems: Mapping[str, System] | Sequence[System], names: Sequence[str] | None = None
) -> dict[str, System]:
    """Give each system its name.

    Args:
        systems: The systems, by name or in a list.
        names: The names of those of a list; by default what ``str`` says of a transformer.

    Returns:
        The systems by name, in their order.

    Raises:
        ValueError: If names are not as many as systems, not distinct, or given twice; or if results have none.

    Example:
        >>> list(named_systems([pt.Transformer.identity(), pd.DataFrame()], ["first", "second"]))
        ['first', 'second']
    """
    if isinstance(systems, Mapping):
        if names is not None:
            raise ValueError(
                f"systems have the names {list(systems)} already, got names={list(names)}; leave these out"
            )
        return dict(systems)
    if names is None:
        if any(isinstance(system, pd.DataFrame) for system in systems):
            raise ValueError("systems that are frames of results have no names of their own; give names=")
        names = [str(system) for system in systems]
    if len(names) != len(systems):
        raise ValueError(f"expected a name for each of {len(systems)} systems, got {len(names)}: {list(names)}")
    if len(set(names)) < len(names):
        raise ValueError(f"systems must have distinct names, got {list(names)}; give others with names=")
    return dict(zip(names, systems, strict=True))


def baseline_name(baseline: int | str, names: Sequence[str]) -> str:
    """Find the name of the baseline.

    Args:
        baseline: Its position or its name.
        names: The names of the systems.

    Returns:
        The name.

    Raises:
        ValueError: If there is no such system.

    Example:
        >>> baseline_name(0, ["bm25", "mine"]), baseline_name("mine", ["bm25", "mine"])
        ('bm25', 'mine')
    """
    if isinstance(baseline, str):
        if baseline not in names:
            raise ValueError(f"baseline must be one of the systems {list(names)}, got {baseline!r}")
        return baseline
    if not 0 <= baseline < len(names):
        raise ValueError(f"baseline must be a position from 0 to {len(names) - 1}, or a name, got {baseline}")
    return names[baseline]


def run_system(name: str, system: System, topics: pd.DataFrame) -> pd.DataFrame:
    """Run a system on queries, and check what it returns.

    Args:
        name: The name of the system.
        system: The transformer, or its results.
        topics: The queries.

    Returns:
        The results for these queries.

    Raises:
        ValueError: If results lack a column, are empty, or have a document twice for a query.
        TypeError: If identifiers are not strings, or scores not numbers.
    """
    if isinstance(system, pd.DataFrame):
        results = system
    else:
        results = system(topics)
    of_system = f"the results of {name!r}"
    require_columns(results, ["qid", "docno", "score"], of_system)
    results = results[results["qid"].isin(topics["qid"])].reset_index(drop=True)
    if results.empty:
        raise ValueError(f"{of_system} have none for the {len(topics)} judged queries; look at what the system returns")
    require_identifiers(results, "docno", of_system)
    if not pd.api.types.is_numeric_dtype(results["score"]) or results["score"].isna().any():
        raise TypeError(f"{of_system} must have numbers as scores, got {results['score'].dtype} or missing ones")
    repeated = results[results.duplicated(["qid", "docno"])]
    if len(repeated):
        qid, docno = repeated[["qid", "docno"]].iloc[0]
        raise ValueError(
            f"{of_system} must have a document once for a query, got {docno!r} twice for {qid!r}; keep its best score"
        )
    return results


def texts_in(results: pd.DataFrame, docnos: Collection[str], fields: Sequence[str]) -> dict[str, str]:
    """Find the texts of documents in results.

    Args:
        results: Results, which may have texts.
        docnos: The documents.
        fields: The columns that make a text.

    Returns:
        The texts by identifier, of the documents that have one there.

    Example:
        >>> texts_in(pd.DataFrame([["d1", "sort"]], columns=["docno", "text"]), ["d1", "d2"], ["text"])
        {'d1': 'sort'}
    """
    if not set(fields) <= set(results.columns):
        return {}
    found = results[results["docno"].isin(docnos)].drop_duplicates("docno")
    texts = {}
    for docno, *values in found[["docno", *fields]].itertuples(index=False, name=None):
        texts[docno] = join_texts(values)
    return texts
