"""Vectors that remember which encoder made them.

Vectors of two encoders do not compare, and nothing in an array of floats says so. An :class:`EncodedVector` is an
ordinary NumPy array that carries the :class:`EncoderIdentity` of its encoder through frames, records and pickles, so
that an index and a scorer can refuse what another encoder made.
"""

from __future__ import annotations

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


def encoders_of(vectors: Iterable[Any]) -> set[EncoderIdentity]:
    """Returns the encoders that are known to have made some of the vectors.

    Example:
        >>> encoders_of([np.ones(2), *EncodedVector.rows(np.eye(2), EncoderIdentity("my-model", "01"))])
        {EncoderIdentity(name='my-model', checksum='01')}
    """
    identities = {vector.encoder for vector in vectors if isinstance(vector, EncodedVector)}
    return {identity for identity in identities if identity is not None}


class EncoderMismatchError(ValueError):
    """Vectors of one encoder were to be compared with those of another."""
