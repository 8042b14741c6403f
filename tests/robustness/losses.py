"""The loss on tensors, against its definition, pair by pair."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch

from pyterrier_selfdistill import AdaptiveMarginLoss

from .exploring import EntryPoint, Mutation, WrongAnswerError
from .mutations import mutation, replace

TENSORS = ("query", "positive", "negative")

LOSSES = [
    {"target": "distributed"},
    {"target": "adaptive"},
    {"target": "adaptive", "in_batch": True},
    {"target": "adaptive", "in_batch": True, "pairing": "released"},
    {"target": 0.5},
    {"target": 0.5, "in_batch": True, "error": "l1"},
    {"target": "distributed", "error": "soft", "detach_target": True},
]

ERRORS = {
    "l2": np.square,
    "l1": np.abs,
    "soft": lambda difference: np.log1p(np.exp(-difference)),
}


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Make a loss and a batch for it, with one negative a query or several, some vectors of them zero."""
    size, columns, dimension = draw(st.integers(1, 4)), draw(st.integers(0, 3)), draw(st.integers(2, 5))
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    shape = (size, columns, dimension) if columns else (size, dimension)
    tensors = [generator.normal(size=(size, dimension)), generator.normal(size=(size, dimension))]
    tensors.append(generator.normal(size=shape))
    if draw(st.integers(0, 3)) == 3:
        tensors[draw(st.integers(0, 2))][0] = 0
    named = {name: torch.tensor(tensor, dtype=torch.float32) for name, tensor in zip(TENSORS, tensors, strict=True)}
    return {"loss": draw(st.sampled_from(LOSSES)), **named}


def _of_each(description: str, change: Any) -> Mutation:
    def change_each(arguments: Any) -> dict[str, Any]:
        return {name: change(value) if name in TENSORS else value for name, value in arguments.items()}

    return Mutation(description, change_each, TENSORS)


def _of_one(description: str, change: Any) -> st.SearchStrategy[Mutation]:
    return st.sampled_from(TENSORS).map(lambda name: mutation(name, description, change))


class LossOfTensors(EntryPoint):
    """The mean of the errors of all pairs."""

    name = "AdaptiveMarginLoss, tensors"
    milliseconds = 5
    valid = batches()
    equivalent = (
        st.just(_of_each("float64", lambda tensor: tensor.double())),
        st.just(_of_each("with gradients", lambda tensor: tensor.clone().requires_grad_())),
        st.just(_of_each("not contiguous", lambda tensor: tensor.mT.contiguous().mT)),
        st.sampled_from([1e-9, 0.1, 30, 1e9]).flatmap(
            lambda factor: _of_one(f"times {factor}", lambda tensor: tensor * factor)
        ),
    )
    malformed = (
        *[
            replace(name, [None, 3.0, "sort", [[0.5]], [], np.eye(2, dtype=np.float32), torch.eye(2) > 0], name)
            for name in TENSORS
        ],
        _of_one("integers", lambda tensor: (100 * tensor).long()),
        _of_one("complex", lambda tensor: tensor.to(torch.complex64)),
        _of_one("one dimension", lambda tensor: tensor.flatten()),
        _of_one("four dimensions", lambda tensor: tensor[None, None]),
        _of_one("one row more", lambda tensor: torch.cat([tensor, tensor[:1]])),
        _of_one("one column more", lambda tensor: torch.cat([tensor, tensor[..., :1]], dim=-1)),
        _of_one("no rows", lambda tensor: tensor[:0]),
        _of_one("no columns", lambda tensor: tensor[..., :0]),
        st.just(_of_each("no rows at all", lambda tensor: tensor[:0])),
    )

    def call(self, loss: dict[str, Any], **tensors: Any) -> Any:
        """Return the loss and, if there is one, the sum of the gradients' sizes, which must be finite."""
        value = AdaptiveMarginLoss(**loss)(**tensors)
        if value.requires_grad:
            value.backward()
        gradients = [tensor.grad for tensor in tensors.values() if tensor.grad is not None]
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise WrongAnswerError(f"gradients {gradients}")
        return value.item()

    def expected(self, loss: dict[str, Any], query: Any, positive: Any, negative: Any) -> Any:
        """Compute the loss from the definition, with loops."""
        q, p = _unit(query.numpy()), _unit(positive.numpy())
        n = _unit(negative.numpy()).reshape(-1, query.shape[1])
        own = [column // (len(n) // len(q)) for column in range(len(n))]
        error = ERRORS[loss.get("error", "l2")]
        errors = []
        for i in range(len(q)):
            for j, o in enumerate(own):
                in_batch = loss.get("in_batch", False)
                row = i if in_batch and loss.get("pairing") != "released" else o
                margin = q[row] @ p[row] - (q[i] if in_batch else q[o]) @ n[j]
                target = (1 + p[i] @ n[j]) / 2
                if not isinstance(loss["target"], str):
                    target = loss["target"]
                if in_batch or loss["target"] == "distributed" or i == o:
                    errors.append(error(margin - target))
        return float(np.mean(errors))


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, math.inf)
