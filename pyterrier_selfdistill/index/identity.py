"""Which encoder made a vector or an index."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import numpy as np


class EncoderMismatchError(ValueError):
    """Vectors of one encoder were to be compared with those of another."""


class EncoderIdentity(NamedTuple):
    """Which encoder it is."""

    name: str | None
    checksum: str

    def __str__(self) -> str:
        name = "an encoder without a name" if self.name is None else repr(self.name)
        return f"{name} [{self.checksum[:12]}]"


class EncodedVector(np.ndarray):
    """A vector of shape ``(dimension,)`` that remembers its encoder."""

    encoder: EncoderIdentity | None

    @classmethod
    def rows(cls, vectors: np.ndarray, encoder: EncoderIdentity) -> list[EncodedVector]:
        """Make one vector of each row of an array, without copying."""
        marked = vectors.view(cls)
        marked.encoder = encoder
        return list(marked)

    def __array_finalize__(self, source: np.ndarray | None) -> None:
        self.encoder = getattr(source, "encoder", None)

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        # a sum over a vector is a number
        if array.ndim == 0:
            return array[()]
        return super().__array_wrap__(array, context, return_scalar)

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments, state = cast(tuple[Any, ...], super().__reduce__())
        return make, arguments, (state, self.encoder)

    def __setstate__(self, state: tuple[Any, EncoderIdentity | None]) -> None:  # type: ignore[override]
        super().__setstate__(state[0])
        self.encoder = state[1]


def encoders_of(vectors: Iterable[Any]) -> set[EncoderIdentity]:
    """Find the encoders that are known to have made some of the vectors."""
    identities = {vector.encoder for vector in vectors if isinstance(vector, EncodedVector)}
    return cast(set[EncoderIdentity], identities - {None})


class ComparedByKey:
    """Objects of a class that are equal if their keys are."""

    def _key(self) -> tuple[Any, ...]:
        """Give all that decides on what the object does."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())
