"""Vectors in frames: they are finite numbers, as long as the others, and columns of them have a type without rows too.

Vectors are checked before they are stored or compared.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import pandas as pd

TYPES = {"docno": str, "docid": int, "score": np.float32, "rank": int, "query_vec": object, "doc_vec": object}
"""The types of what encoders, retrievers and scorers add to frames."""


def without_rows(frame: pd.DataFrame, given: pd.DataFrame) -> pd.DataFrame:
    """Give the columns of a frame without rows the types that they have where there are rows.

    Libraries make columns of floats of nothing, which pandas does not merge with identifiers.

    Args:
        frame: What became of a frame without rows.
        given: That frame.

    Returns:
        The frame, with the types of the given columns and of :data:`TYPES`.

    Example:
        >>> nothing = pd.DataFrame({"qid": [], "score": []})
        >>> without_rows(nothing, pd.DataFrame({"qid": ["1"]}).head(0)).dtypes.astype(str).to_dict()["score"]
        'float32'
    """
    types = {**given.dtypes, **TYPES}
    return frame.astype({name: types[name] for name in frame.columns if name in types})


def require_vector(name: str, vector: object) -> None:
    """Check that something is a vector that compares with others.

    Args:
        name: What to call it in the error.
        vector: What was given.

    Raises:
        ValueError: If it is not an array of floats of one dimension, or a number is not finite in float32.

    Example:
        >>> require_vector("query_vec", np.array([0.6, np.nan]))
        Traceback (most recent call last):
        ValueError: query_vec must hold finite numbers, got NaN or infinite ones; look for the fault in the encoder, ...
    """
    is_vector = isinstance(vector, np.ndarray) and vector.ndim == 1 and vector.dtype.kind == "f" and vector.size
    if not is_vector:
        got = f"a {type(vector).__name__}"
        if isinstance(vector, np.ndarray):
            got = f"{vector.dtype} of shape {vector.shape}"
        raise ValueError(f"{name} must be an array of floats of shape (dimension,), got {got}; encode it first")
    # what float32 cannot hold becomes infinite
    with np.errstate(over="ignore"):
        stored = cast(np.ndarray, vector).astype(np.float32)
    if not np.isfinite(stored).all():
        raise ValueError(
            f"{name} must hold finite numbers, got NaN or infinite ones; look for the fault in the encoder, such as "
            "weights that diverged in training"
        )


def require_vectors(frame: pd.DataFrame, column: str, dimension: int, others: str) -> None:
    """Check that a column holds a vector in every row, as :func:`require_vector` does, and that it fits others.

    Args:
        frame: The frame.
        column: The column.
        dimension: The length of the others.
        others: What to call the others in the error.

    Raises:
        ValueError: If a row holds something else, or a vector of another length.
    """
    # results repeat the vector of their query
    distinct = {id(vector): vector for vector in frame[column]}
    for vector in distinct.values():
        require_vector(column, vector)
        if len(vector) != dimension:
            raise ValueError(
                f"{column} has {len(vector)} dimensions, and {others} have {dimension}; encode both with one encoder"
            )
