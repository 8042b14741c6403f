"""Which encoder made a vector or an index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from ..utils.compat import tensor_version


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


class ModelChecksum:
    """A checksum of what a model computes, computed again only after the model has changed."""

    def __init__(self) -> None:
        self._state: tuple[Any, ...] | None = None
        self._checksum = ""

    def of(self, model: torch.nn.Module, settings: tuple[Any, ...]) -> str:
        """Compute the checksum of a model's weights, layers and settings."""
        # reading all weights takes a second for a large model
        state = model_state(model, settings)
        if state != self._state:
            checksum = hashlib.sha256(repr((str(model), settings)).encode())
            for tensor in model.state_dict().values():
                checksum.update(tensor_bytes(tensor))
            self._state = state
            self._checksum = checksum.hexdigest()
        return self._checksum


def model_state(model: torch.nn.Module, settings: tuple[Any, ...]) -> tuple[Any, ...]:
    """Describe a model in a millisecond or so, so that it is seen when it changes."""
    tensors = list(model.state_dict().values())
    versions = [(tensor.data_ptr(), tensor_version(tensor)) for tensor in tensors]
    # in-place changes raise a tensor's version, except those of fused optimizers, so some of its values count too
    samples: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        values = tensor.detach().reshape(-1)
        step = max(1, len(values) // SAMPLED)
        samples.setdefault((tensor.dtype, tensor.device), []).append(values[::step])
    # together, since each copy from a GPU waits for it
    sampled = [tensor_bytes(torch.cat(values)) for values in samples.values()]
    return versions, sampled, str(model), settings


SAMPLED = 64
"""How many values of each tensor are looked at, or somewhat more."""


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor, those of its float32 values if it has 16 bits."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


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
