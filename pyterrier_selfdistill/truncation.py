"""Shorter vectors: encoders and indexes that are cut to the first dimensions, and scaled to unit length again.

:func:`truncated` puts a layer into a copy of a model that keeps the first dimensions: a matrix of zeros and ones, in a
``Dense`` of sentence-transformers before its last ``Normalize``. The ``truncate_dim`` of sentence-transformers is not
saved with a model, and cuts vectors after they were normalized. A layer is saved, counts for the checksum of the
encoder, and gives all libraries that read the folder the same vectors.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from torch import nn

from .identity import EncodedVector, EncoderIdentity, EncoderMismatchError
from .index import SelfDistillIndex
from .losses import normalize
from .options import FolderPath, PositiveInteger, checked
from .variants import HasVariants

CHUNK = 4096
"""How many vectors of an index are cut at once."""


class Truncates(HasVariants):
    """An encoder that is cut to shorter vectors."""

    @property
    def identity(self) -> EncoderIdentity:
        """The identity of the encoder."""
        raise NotImplementedError

    @checked
    def truncate(self, dimension: PositiveInteger) -> Self:
        """Make an encoder whose vectors are the first dimensions of these, scaled to unit length again.

        Training with ``matryoshka_dims`` of :class:`SelfDistillTrainer` is for them to lose little.

        The encoder has an identity of its own: it searches an index that it has built, or that
        :meth:`truncate_index` has cut. What cuts is a layer like others, which is saved, and which training changes.

        Args:
            dimension: How many dimensions to keep.

        Returns:
            The encoder, with weights of its own.

        Raises:
            ValueError: If the vectors do not have more dimensions.

        Example:
            >>> encoder.truncate(8).encode_queries(["sort the rows"]).shape
            (1, 8)
        """
        shorter = self._variant(truncated(self.model, dimension))
        if self.training_summary:
            before = self.model.get_embedding_dimension()
            shorter.training_summary = {**self.training_summary, "truncated_from": before}
        return shorter

    @checked
    def truncate_index(
        self, index: SelfDistillIndex, path: FolderPath, dimension: PositiveInteger, *, overwrite: bool = False
    ) -> SelfDistillIndex:
        """Cut the vectors of an index that this encoder built, without encoding anew.

        Args:
            index: The index.
            path: The folder of the new index.
            dimension: How many dimensions to keep.
            overwrite: Whether to replace an index that is there.

        Returns:
            The index that ``encoder.truncate(dimension)`` would have built.

        Raises:
            EncoderMismatchError: If another encoder built the index.
            ValueError: If its vectors do not have more dimensions.
            FileExistsError: If there is an index at the path and ``overwrite`` is not set, or something else.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     index = SelfDistillIndex(f"{folder}/index.flex", verbose=False)
            ...     _ = (encoder >> index).index([{"docno": "d1", "text": "sort the rows"}])
            ...     shorter = encoder.truncate_index(index, f"{folder}/shorter.flex", 8)
            ...     (encoder.truncate(8) >> shorter).search("sort rows")["docno"].tolist()
            ['d1']
        """
        built_by = index.encoder
        if built_by is not None and built_by.checksum != self.identity.checksum:
            raise EncoderMismatchError(
                f"{index!r} was built by the encoder {built_by}, and this one is {self.identity}; cut it with its own"
            )
        shorter = SelfDistillIndex(path, sim_fn=index.sim_fn, verbose=index.verbose)
        mode = "overwrite" if overwrite else "create"
        shorter.indexer(mode=mode).index(_prefixes(index, dimension, self.truncate(dimension).identity))
        return shorter


def truncated(model: SentenceTransformer, dimension: int) -> SentenceTransformer:
    """Copy a model with a layer before its last that keeps the first dimensions.

    Args:
        model: The model, whose last layer normalizes.
        dimension: How many to keep.

    Returns:
        The copy.

    Raises:
        ValueError: If its vectors do not have more dimensions.

    Example:
        >>> truncated(encoder.model, 8).get_embedding_dimension()
        8
    """
    before = model.get_embedding_dimension()
    if before is None or dimension >= before:
        raise ValueError(f"dimension must be smaller than the {before} dimensions of the vectors, got {dimension}")
    first_dimensions = torch.eye(dimension, before)
    layer = Dense(before, dimension, bias=False, activation_function=nn.Identity(), init_weight=first_dimensions)
    shorter = copy.deepcopy(model)
    shorter.insert(len(shorter) - 1, layer.to(model.device))
    return shorter.eval()


def _prefixes(index: SelfDistillIndex, dimension: int, encoder: EncoderIdentity) -> Iterator[dict[str, Any]]:
    """Iterate over the documents of an index with the prefixes of their vectors."""
    docnos, vectors, _ = index.payload()
    for start in range(0, len(vectors), CHUNK):
        prefixes = torch.from_numpy(np.array(vectors[start : start + CHUNK, :dimension]))
        rows = EncodedVector.rows(normalize(prefixes).numpy(), encoder)
        names = docnos.fwd[np.arange(start, start + len(rows))]
        for docno, vector in zip(names, rows, strict=True):
            yield {"docno": docno, "doc_vec": vector}
