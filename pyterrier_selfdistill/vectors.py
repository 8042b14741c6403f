"""Vectors that remember which encoder made them.

Vectors of two encoders do not compare, and nothing in an array of floats says so. An :class:`EncodedVector` is an
ordinary NumPy array that carries the :class:`EncoderIdentity` of its encoder through frames, records and pickles, so
that an index and a scorer can refuse what another encoder made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import numpy as np


class EncoderIdentity(NamedTuple):
    """Which encoder it is.

    Attributes:
        name: The folder or the hub name that its model comes from, if it is known.
        checksum: A checksum of what it computes. Two encoders with the same checksum give the same vectors.
    """

    name: str | None
    checksum: str

    def __str__(self) -> str:
        return f"{'an encoder without a name' if self.name is None else repr(self.name)} [{self.checksum[:12]}]"


class EncodedVector(np.ndarray):
    """A vector of shape ``(dimension,)`` that remembers its encoder.

    What is computed from one such vector and plain numbers still belongs to its encoder, as a query vector does that
    feedback has moved.

    Attributes:
        encoder: The identity of the encoder, or None.

    Example:
        >>> identity = EncoderIdentity("my-model", "0123456789abcdef")
        >>> vector = EncodedVector.rows(np.eye(2, dtype=np.float32), identity)[0]
        >>> str((2 * vector).encoder)
        "'my-model' [0123456789ab]"
    """

    encoder: EncoderIdentity | None

    @classmethod
    def rows(cls, vectors: np.ndarray, encoder: EncoderIdentity) -> list[EncodedVector]:
        """Makes one vector of each row of an array, without copying."""
        marked = vectors.view(cls)
        marked.encoder = encoder
        return list(marked)

    def __array_finalize__(self, source: np.ndarray | None) -> None:
        self.encoder = getattr(source, "encoder", None)

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        if array.ndim == 0:
            return array[()]  # a sum is a number, no vector
        return super().__array_wrap__(array, context, return_scalar)

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments, state = cast(tuple[Any, ...], super().__reduce__())
        return make, arguments, (state, self.encoder)

    def __setstate__(self, state: tuple[Any, EncoderIdentity | None]) -> None:  # type: ignore[override]
        super().__setstate__(state[0])
        self.encoder = state[1]


def mean_cosine(vectors: np.ndarray) -> float:
    """Returns the mean cosine of two different vectors, 1 where all are the same.

    Args:
        vectors: Unit vectors, of shape ``(number, dimension)``.

    Example:
        >>> mean_cosine(np.eye(3))
        0.0
    """
    number, total = len(vectors), vectors.sum(axis=0, dtype=np.float64)
    return float((total @ total - number) / max(number * (number - 1), 1))


def kept_similarity(before: np.ndarray, after: np.ndarray) -> float:
    """Returns how much two encoders agree on which of some texts are alike: 1 for wholly, 0 for not at all.

    It is the correlation of the cosines of all pairs, as in representational similarity analysis (Kriegeskorte et al.,
    2008), so it does not see rotations, or cosines that rise or fall together.

    Args:
        before: Unit vectors of some texts by one encoder, of shape ``(number, dimension)``.
        after: Those of the same texts by the other encoder; their dimension may differ.

    Returns:
        The correlation; NaN for fewer than three texts, or where all cosines are the same.

    Example:
        >>> vectors = np.array([[1, 0], [0.8, 0.6], [0, 1]])
        >>> round(kept_similarity(vectors, -vectors), 6)
        1.0
    """
    if len(before) < 3:
        return math.nan
    pairs = np.triu_indices(len(before), k=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.corrcoef((before @ before.T)[pairs], (after @ after.T)[pairs])[0, 1])


def encoders_of(vectors: Iterable[Any]) -> set[EncoderIdentity]:
    """Returns the encoders that are known to have made some of the vectors.

    Example:
        >>> encoders_of([np.ones(2), *EncodedVector.rows(np.eye(2), EncoderIdentity("my-model", "01"))])
        {EncoderIdentity(name='my-model', checksum='01')}
    """
    identities = {vector.encoder for vector in vectors if isinstance(vector, EncodedVector)}
    return {identity for identity in identities if identity is not None}
