"""Encoding texts, and the pipeline steps of an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias, cast

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from more_itertools import chunked
from pydantic import SkipValidation
from pyterrier_dr import BiDocEncoder, BiQueryEncoder, BiScorer
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device

from ..index.files import ComparedByKey, EncodedVector, EncoderIdentity, EncoderMismatchError, encoders_of
from ..losses import normalize
from ..utils.checks import (
    require_distinct_columns,
    require_identifiers,
    require_strings,
    require_texts,
    require_vectors,
    without_rows,
)
from ..utils.compat import schematic

READ_AHEAD = 2048  # how many documents an indexing pipeline reads at once, to encode those of like length together


# strings, which are checked where they are encoded; pyterrier-dr hands over a progress bar
Texts: TypeAlias = SkipValidation[Sequence[str]]


class QueryEncoder(ComparedByKey, BiQueryEncoder):
    """Add ``query_vec`` to frames with ``query``."""

    schematic: ClassVar = schematic("QueryEncoder")

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode the queries."""
        _require_texts_of(inp, "query", "qid")
        return _mark(super().transform(inp), "query_vec", self.bi_encoder_model.identity)

    def _key(self) -> tuple[Any, ...]:
        return self.bi_encoder_model, self.verbose, self.batch_size


class DocumentEncoder(ComparedByKey, BiDocEncoder):
    """Add ``doc_vec`` to frames with the text field."""

    schematic: ClassVar = schematic("DocEncoder")

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode the documents."""
        _require_texts_of(inp, self.text_field, "docno")
        return _mark(super().transform(inp), "doc_vec", self.bi_encoder_model.identity)

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return EncoderPipeline(self, right)

    def _key(self) -> tuple[Any, ...]:
        return self.bi_encoder_model, self.verbose, self.batch_size, self.text_field


class Scorer(ComparedByKey, BiScorer):
    """Add ``score`` and ``rank`` to frames with queries and documents."""

    schematic: ClassVar = schematic("Scorer")

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Score the results, with the vectors that they have if this encoder may have made them."""
        require_distinct_columns(inp, "the results")
        if "qid" in inp:
            require_identifiers(inp, "qid", "the results")
        # PyTerrier groups by qid, which the index may be named too
        labels = inp.index
        inp = inp.reset_index(drop=True)
        foreign = self._foreign_vectors(inp)
        own = inp.drop(columns=foreign)
        for column in {"query_vec", "doc_vec"} & set(own.columns):
            require_vectors(own, column, self.bi_encoder_model.dimension, "the vectors of this encoder")
        scored = super().transform(own)
        if scored.empty:
            scored = without_rows(scored, own)
        if foreign:
            # what it was given, it gives on
            scored = inp.assign(score=scored["score"], rank=scored["rank"])
        return scored.set_axis(labels[scored.index])

    def _foreign_vectors(self, frame: pd.DataFrame) -> list[str]:
        """List the columns with vectors of another encoder, whose texts are to be encoded instead."""
        own = self.bi_encoder_model.identity
        foreign = []
        for vectors, texts in {"query_vec": "query", "doc_vec": self.text_field}.items():
            if vectors not in frame:
                continue
            others = [encoder for encoder in encoders_of(frame[vectors]) if encoder.checksum != own.checksum]
            if not others:
                continue
            if texts not in frame:
                raise EncoderMismatchError(
                    f"{vectors} was made by {others[0]}, this encoder is {own}, and there is no {texts!r} to encode "
                    f"again; score with the encoder of the vectors, or keep {texts!r}"
                )
            foreign.append(vectors)
        return foreign

    def _key(self) -> tuple[Any, ...]:
        return self.bi_encoder_model, self.verbose, self.batch_size, self.text_field, self.sim_fn


class EncoderPipeline(pt.Compose):
    """An encoder and what follows it."""

    def __init__(self, *transformers: pt.Transformer) -> None:
        # by itself a pipeline takes in those of its own class only
        super().__init__(*pt.Compose(*transformers))

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return EncoderPipeline(self, right)

    def index(self, iter: Any, batch_size: int | None = None) -> Any:
        """Encode documents and index them."""
        # PyTerrier would read 100, or as many as the encoder takes at once
        if batch_size is None:
            batch_size = READ_AHEAD
        return super().index(iter, batch_size)

    def transform_inputs(self) -> list[list[str]]:
        """List the columns that the pipeline takes, for :mod:`pyterrier.inspect`."""
        # PyTerrier lists all that the encoder takes, but an index after it finds nothing for documents
        inputs = super().transform_inputs()
        fitting = [columns for columns in inputs if pt.inspect.transformer_outputs(self, columns, strict=False)]
        return fitting or inputs


def encode(
    model: SentenceTransformer, texts: Sequence[str], role: Literal["query", "document"], batch_size: int
) -> np.ndarray:
    """Encode each distinct text once, the longest first, so that too little memory shows at once."""
    # pyterrier-dr asks for a progress bar by wrapping the texts in one
    bar = texts if isinstance(texts, pt.tqdm) else None
    texts = require_strings(texts if bar is None else bar.iterable, "texts")
    positions: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        positions.setdefault(text, []).append(position)
    vectors = np.empty((len(texts), cast(int, model.get_embedding_dimension())), dtype=np.float32)
    encode_role = model.encode_query if role == "query" else model.encode_document
    for window in chunked(sorted(positions, key=len, reverse=True), READ_AHEAD):
        encoded = encode_role(window, batch_size=batch_size, show_progress_bar=False, convert_to_tensor=True)
        # in float32, since unit vectors in 16 bits are not quite
        for text, vector in zip(window, normalize(encoded).cpu().numpy(), strict=True):
            vectors[positions[text]] = vector
            if bar is not None:
                bar.update(len(positions[text]))
    if bar is not None:
        bar.close()
    return vectors


def encode_with_gradients(model: SentenceTransformer, queries: Sequence[str], batch_size: int) -> torch.Tensor:
    """Encode queries as a step of training does."""
    prompt = model.prompts.get("query") or model.prompts.get(model.default_prompt_name or "")
    vectors = [torch.empty((0, cast(int, model.get_embedding_dimension())), device=model.device)]
    for batch in chunked(require_strings(queries, "texts"), batch_size):
        features = batch_to_device(model.preprocess(batch, prompt=prompt, task="query"), model.device)
        vectors.append(normalize(model(features, task="query")["sentence_embedding"]))
    return torch.cat(vectors)


def _require_texts_of(frame: pd.DataFrame, column: str, identifier: str) -> None:
    """Check the texts of a frame; PyTerrier's own validation says which columns are missing."""
    require_distinct_columns(frame, "the input frame")
    if column in frame:
        require_texts(frame, column, identifier, empty=True)


def _mark(frame: pd.DataFrame, column: str, identity: EncoderIdentity) -> pd.DataFrame:
    """Have the vectors of a column remember their encoder."""
    if frame.empty:
        return without_rows(frame, frame)
    vectors = EncodedVector.rows(np.stack(frame[column]), identity)
    return frame.assign(**{column: vectors})
