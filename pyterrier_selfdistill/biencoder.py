"""The biencoder: a sentence-transformers model as PyTerrier encodes, scores, stores and loads it.

A :class:`SelfDistillBiEncoder` is a :class:`pyterrier_dr.BiEncoder`, so it encodes queries and documents and scores
results by the columns that it is given, and a :class:`pyterrier.Artifact`, so it is saved to and loaded from a folder.
The folder is an ordinary sentence-transformers model with PyTerrier's metadata beside it.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
import torch
from pyterrier import Compose
from pyterrier_dr import BiDocEncoder, BiQueryEncoder, BiScorer, SimFn
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from sentence_transformers.util import is_sentence_transformer_model

from . import model_card as card
from .data.corpus import Corpus, Documents
from .identity import EncodedVector, EncoderIdentity, EncoderMismatchError, encoders_of
from .index import SelfDistillIndex
from .io import atomic_folder
from .losses import normalize
from .validate import require_distinct_columns, require_positive_integer, require_texts

METADATA_FILE = "pt_meta.json"

READ_AHEAD = 2048
"""How many documents an indexing pipeline reads at once, to encode those of like length together."""

PoolingMode = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


class SelfDistillBiEncoder(pt.Artifact, pyterrier_dr.BiEncoder):
    """A single-vector biencoder whose vectors are L2-normalized, so that dot products are cosines.

    By the columns of its input it encodes queries (``query`` to ``query_vec``), encodes documents (``text`` to
    ``doc_vec``), or scores results (both, to ``score`` and ``rank``). Vectors are float32 arrays of shape
    ``(dimension,)``.

    Args:
        model: A sentence-transformers model (which gets a normalization layer at its end if it has none), or a folder
            that :meth:`save` wrote. For a plain language model, or the name of a model on the Hugging Face hub, use
            :meth:`from_pretrained`.
        batch_size: How many texts to encode at once.
        text_field: The column with the text of documents.
        verbose: Whether to show a progress bar.
        device: Where to encode, such as ``"cpu"`` or ``"cuda:0"``; by default a GPU if there is one.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder does not hold a sentence-transformers model, or ``batch_size`` is not positive.

    Attributes:
        model: The sentence-transformers model.
        name: The folder or the hub name that the model comes from, if it is known.
        training_summary: How the model was trained: data, loss, arguments, measures. Empty if not by this package.

    Example:
        Index a corpus, then search it::

            encoder = SelfDistillBiEncoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
            index = SelfDistillIndex("corpus.flex")
            (encoder >> index).index(dataset.get_corpus_iter())
            retriever = encoder >> index
            reranker = bm25 >> pt.text.get_text(dataset) >> encoder

        >>> results = encoder([{"qid": "1", "query": "sort rows", "docno": "d1", "text": "sort the rows of a table"}])
        >>> sorted(results[0])
        ['docno', 'qid', 'query', 'rank', 'score', 'text']
    """

    ARTIFACT_TYPE = "biencoder"
    ARTIFACT_FORMAT = "selfdistill"
    ARTIFACT_PACKAGE_HINT = "pyterrier-selfdistill"

    def __init__(
        self,
        model: SentenceTransformer | str | Path,
        *,
        batch_size: int = 32,
        text_field: str = "text",
        verbose: bool = False,
        device: str | torch.device | None = None,
    ) -> None:
        require_positive_integer("batch_size", batch_size)
        pyterrier_dr.BiEncoder.__init__(self, batch_size=batch_size, text_field=text_field, verbose=verbose)
        self.training_summary: dict[str, Any] = {}
        self.name: str | None
        if isinstance(model, SentenceTransformer):
            pt.Artifact.__init__(self, pt.Artifact.NO_PATH)
            self.name = model.model_card_data.base_model
        else:
            folder = Path(model)
            pt.Artifact.__init__(self, folder)
            self.name = str(model)
            self.training_summary = _read_training_summary(folder)
            model = _load(folder, device)
        self.model = _with_unit_length(model)
        if device is not None:
            self.model.to(device)
        self.model.eval()

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        pooling: PoolingMode | None = None,
        query_length: int | None = None,
        document_length: int | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        batch_size: int = 32,
        text_field: str = "text",
        verbose: bool = False,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
    ) -> SelfDistillBiEncoder:
        """Loads a model to train or to use.

        A plain language model gets a pooling layer, over its [CLS] token unless ``pooling`` says otherwise. A
        sentence-transformers model keeps its own layers. Lengths and prompts that are not given stay as the model
        has them.

        Args:
            name_or_path: The name of a model on the Hugging Face hub, or a folder.
            pooling: How a plain language model makes one vector of many.
            query_length: The number of tokens after which queries are cut.
            document_length: The number of tokens after which documents are cut.
            query_prompt: What to put before each query.
            document_prompt: What to put before each document.
            batch_size: How many texts to encode at once.
            text_field: The column with the text of documents.
            verbose: Whether to show a progress bar.
            device: Where to encode; by default a GPU if there is one.
            dtype: The type of the weights. Vectors are float32 in any case.

        Returns:
            The encoder.

        Raises:
            ValueError: If ``pooling`` is given for a model that has its own, a length does not fit the model, or
                ``dtype`` is unknown.
            OSError: If there is no such model.

        Example:
            The paper's models::

                SelfDistillBiEncoder.from_pretrained("microsoft/mpnet-base", query_length=20, document_length=200)
        """
        name = str(name_or_path)
        weights = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(weights, torch.dtype) or not weights.is_floating_point:
            raise ValueError(f"dtype={dtype!r} is not a floating point type of torch; use 'float32' or 'bfloat16', say")
        options: dict[str, Any] = {
            "device": None if device is None else str(device),
            "model_kwargs": {"dtype": weights},
        }
        if is_sentence_transformer_model(name):
            if pooling is not None:
                raise ValueError(
                    f"pooling={pooling!r} was given, but {name!r} is a sentence-transformers model with layers of its "
                    "own; leave pooling out, or give a plain language model"
                )
            model = SentenceTransformer(name, **options)
        else:
            transformer = Transformer(name, model_kwargs=options.pop("model_kwargs"))
            pool = Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling or "cls")
            model = SentenceTransformer(modules=[transformer, pool], **options)
            model.model_card_data.base_model = name
        _set_lengths(model, query_length, document_length)
        if query_prompt is not None:
            model.prompts["query"] = query_prompt
        if document_prompt is not None:
            model.prompts["document"] = document_prompt
        encoder = cls(model, batch_size=batch_size, text_field=text_field, verbose=verbose)
        encoder.name = name
        encoder.training_summary = _read_training_summary(Path(name))
        return encoder

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the model to a folder, all of it or nothing.

        ``pt.Artifact.load(path)`` and ``SentenceTransformer(path)`` read it, and so does
        ``pyterrier_dr.SBertBiEncoder(path)``, which knows no prompts and cuts queries where documents are cut.

        Args:
            path: The folder to write.
            overwrite: Whether to replace a folder that is there.

        Returns:
            The folder.

        Raises:
            FileExistsError: If the folder is there and ``overwrite`` is not set, or if a file is there.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = encoder.copy().save(f"{folder}/model")
            ...     pt.Artifact.load(path)
            SelfDistillBiEncoder('...model')
        """
        path = Path(path)
        with atomic_folder(path, overwrite=overwrite) as folder:
            # a model that was only loaded keeps its card
            self.model.save_pretrained(str(folder), create_model_card=not self.training_summary)
            metadata = {
                **(self._build_metadata() or {}),
                "model": card.describe(self),
                "training": json.loads(json.dumps(self.training_summary, default=str)),
            }
            (folder / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n")
            if self.training_summary:
                page = card.model_card(
                    metadata["model"],
                    metadata["training"],
                    title=path.name,
                    load=f"pt.Artifact.load({path.name!r})",
                    front_matter=card.front_matter(metadata["training"]),
                )
                (folder / "README.md").write_text(page, encoding="utf-8")
        self.path, self.name = path, str(path)
        return path

    def _hf_readme(
        self,
        *,
        repo: str,
        branch: str | None = "main",
        pretty_name: str | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> str:
        """Writes the page for :meth:`to_hf`."""
        where = repo if branch in (None, "main") else f"{repo}@{branch}"
        metadata = metadata or cast(dict[str, Any], self._build_metadata())
        return card.model_card(
            metadata.get("model") or card.describe(self),
            metadata.get("training", {}),
            title=pretty_name or repo.rpartition("/")[2],
            load=f"pt.Artifact.from_hf({where!r})",
            front_matter=card.artifact_front_matter(metadata, pretty_name),
        )

    def apply_attributes(self, **attributes: Any) -> SelfDistillBiEncoder:
        """Returns an encoder with the same model and other arguments, for :mod:`pyterrier.inspect`."""
        given = {name: getattr(self, name) for name in ("model", "batch_size", "text_field", "verbose")}
        changed = SelfDistillBiEncoder(**{**given, **attributes})
        if changed.model is self.model:
            changed.name, changed.path, changed.training_summary = self.name, self.path, self.training_summary
        return changed

    def copy(self) -> SelfDistillBiEncoder:
        """Returns an encoder with weights of its own, equal to these."""
        return copy.deepcopy(self)

    def build_retriever(
        self,
        corpus: Corpus,
        path: str | Path,
        *,
        fields: Sequence[str] | None = None,
        num_results: int = 1000,
        overwrite: bool = False,
    ) -> pt.Transformer:
        """Indexes a corpus and returns the retriever, in one call.

        Args:
            corpus: A PyTerrier dataset, a frame or an iterable of records with ``docno`` and text.
            path: The folder of the index.
            fields: The fields of documents that make a text, such as ``["title", "text"]``, if not the text field
                alone.
            num_results: How many documents to find for a query.
            overwrite: Whether to replace an index that is there.

        Returns:
            ``encoder.query_encoder() >> index.retriever(...)``, from ``qid`` and ``query`` to ``docno``, ``score`` and
            ``rank``. Later, ``encoder >> SelfDistillIndex(path)`` searches the same index.

        Raises:
            FileExistsError: If there is an index already and ``overwrite`` is not set.
            ValueError: If a document has no text or no identifier of its own, or there are no documents.

        Example:
            >>> import tempfile
            >>> corpus = [{"docno": "d1", "text": "sort the rows"}, {"docno": "d2", "text": "plot a matrix"}]
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     retriever = encoder.build_retriever(corpus, f"{folder}/index.flex")
            ...     (retriever % 1).search("plot a matrix")["docno"].tolist()
            ['d2']
        """
        index = SelfDistillIndex(path, verbose=self.verbose)
        records = (
            {"docno": docno, self.text_field: text} for docno, text in Documents(corpus, fields or [self.text_field])
        )
        (self.doc_encoder(verbose=False) >> index.indexer(mode="overwrite" if overwrite else "create")).index(records)
        return self.query_encoder() >> index.retriever(num_results=num_results, drop_query_vec=True)

    def cache_path(self, path: str | Path) -> Path:
        """Returns a path for what is computed with this encoder, so that a changed encoder has a cache of its own.

        Args:
            path: Where caches of this kind are, whatever the encoder.

        Returns:
            The path with a part of the encoder's checksum in its name.

        Example:
            Caches of pyterrier-caching do not see that a model was trained further; their paths may::

                bm25 >> text >> ScorerCache(encoder.cache_path("scores.cache"), encoder)

            >>> str(encoder.cache_path("caches/scores.cache"))
            'caches/scores-...cache'
        """
        path = Path(path)
        return path.with_name(f"{path.stem}-{self.model_name[:12]}{path.suffix}")

    def query_encoder(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """Returns a transformer that adds ``query_vec`` to frames with ``query``."""
        return _QueryEncoder(self, verbose=verbose, batch_size=batch_size)

    def doc_encoder(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """Returns a transformer that adds ``doc_vec`` to frames with the text field."""
        return _DocEncoder(self, verbose=verbose, batch_size=batch_size)

    def text_scorer(
        self, verbose: bool | None = None, batch_size: int | None = None, sim_fn: SimFn | None = None
    ) -> pt.Transformer:
        """Returns a transformer that adds ``score`` and ``rank`` to frames with queries and documents.

        Vectors that the frame has already are taken, if this encoder made them or nobody knows who did; those of
        another encoder are not, and the texts are encoded instead.
        """
        return _Scorer(self, verbose=verbose, batch_size=batch_size, sim_fn=sim_fn)

    def encode_queries(self, texts: Sequence[str], batch_size: int | None = None) -> np.ndarray:
        """Encodes queries.

        Args:
            texts: The queries.
            batch_size: How many to encode at once, if not as many as the encoder is set to.

        Returns:
            Unit vectors, float32, of shape ``(len(texts), dimension)``.

        Raises:
            TypeError: If a text is not a string.
        """
        return self._encode(self.model.encode_query, texts, batch_size)

    def encode_docs(self, texts: Sequence[str], batch_size: int | None = None) -> np.ndarray:
        """Encodes documents; see :meth:`encode_queries`."""
        return self._encode(self.model.encode_document, texts, batch_size)

    def encode_queries_torch(self, texts: Sequence[str], batch_size: int | None = None) -> torch.Tensor:
        """Encodes queries with gradients, on the model's device; see :meth:`encode_queries`."""
        texts, step = _checked(texts), batch_size or self.batch_size
        vectors = [torch.empty((0, self.dimension), device=self.device)]
        for start in range(0, len(texts), step):
            features = self.model.preprocess(
                texts[start : start + step], prompt=self.model.prompts.get("query"), task="query"
            )
            features = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in features.items()}
            vectors.append(normalize(self.model(features)["sentence_embedding"]))
        return torch.cat(vectors)

    def _encode(self, encode: Callable[..., torch.Tensor], texts: Sequence[str], batch_size: int | None) -> np.ndarray:
        # pyterrier-dr asks for a progress bar by wrapping the texts in one. Equal texts (a document that several
        # queries retrieved) are encoded once, and texts of like length together, so that little is padding.
        bar = texts if isinstance(texts, pt.tqdm) else None
        texts = _checked(texts if bar is None else bar.iterable)
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        distinct: dict[str, list[int]] = {}
        for position, text in enumerate(texts):
            distinct.setdefault(text, []).append(position)
        by_length = sorted(distinct, key=len, reverse=True)
        step = batch_size or self.batch_size
        for start in range(0, len(by_length), step):
            batch = by_length[start : start + step]
            encoded = encode(batch, batch_size=step, convert_to_tensor=True, show_progress_bar=False)
            for text, vector in zip(batch, normalize(encoded).cpu().numpy(), strict=True):
                vectors[distinct[text]] = vector
            if bar is not None:
                bar.update(sum(len(distinct[text]) for text in batch))
        if bar is not None:
            bar.close()
        return vectors

    @property
    def dimension(self) -> int:
        """The length of the vectors."""
        return cast(int, self.model.get_embedding_dimension())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def query_length(self) -> int | None:
        """The number of tokens after which queries are cut."""
        return getattr(self.model[0], "query_length", None) or self.model.max_seq_length

    @property
    def document_length(self) -> int | None:
        """The number of tokens after which documents are cut."""
        return getattr(self.model[0], "document_length", None) or self.model.max_seq_length

    @property
    def model_name(self) -> str:
        """What the encoder computes: a checksum of its weights, lengths, prompts and pooling.

        Two encoders with the same name give the same vectors. PyTerrier compares encoders by it when it shares the
        work that pipelines have in common, so a trained encoder is never mistaken for the one it started from.
        """
        parameters = list(self.model.state_dict().values())
        # to sum anew takes a second for a large model. In-place changes raise a tensor's version, except those of fused
        # optimizers, so some values of each are looked at too
        seen = tuple((tensor.data_ptr(), tensor._version, _bytes(_sample(tensor))) for tensor in parameters)
        key = seen, str(self.model), self._settings()
        if getattr(self, "_summed", (None,))[0] != key:
            checksum = hashlib.sha256(repr(key[1:]).encode())
            for tensor in parameters:
                checksum.update(_bytes(tensor))
            self._summed = key, checksum.hexdigest()
        return self._summed[1]

    @property
    def identity(self) -> EncoderIdentity:
        """The name and the checksum, which vectors and indexes remember."""
        return EncoderIdentity(self.name, self.model_name)

    def _settings(self) -> tuple[Any, ...]:
        return self.query_length, self.document_length, self.model.max_seq_length, tuple(self.model.prompts.items())

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return _EncoderPipeline(self, right)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SelfDistillBiEncoder):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.model_name, self.batch_size, self.text_field, self.verbose, self.device

    def __repr__(self) -> str:
        return f"SelfDistillBiEncoder({'' if self.name is None else repr(self.name)})"


class _QueryEncoder(BiQueryEncoder):
    schematic: ClassVar = {"label": "QueryEncoder"}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        _check_texts(inp, "query", "qid")
        return _marked(super().transform(inp), "query_vec", self.bi_encoder_model)


class _DocEncoder(BiDocEncoder):
    schematic: ClassVar = {"label": "DocEncoder"}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        _check_texts(inp, self.text_field, "docno")
        return _marked(super().transform(inp), "doc_vec", self.bi_encoder_model)

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return _EncoderPipeline(self, right)


class _Scorer(BiScorer):
    schematic: ClassVar = {"label": "Scorer"}

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        own = self.bi_encoder_model.identity
        known = inp
        for vectors, texts in {"query_vec": "query", "doc_vec": self.text_field}.items():
            others = [e for e in encoders_of(inp.get(vectors, [])) if e.checksum != own.checksum]
            if others and texts not in inp:
                raise EncoderMismatchError(
                    f"{vectors} was made by {others[0]}, this encoder is {own}, and there is no {texts!r} to encode "
                    f"again; score with the encoder of the vectors, or keep {texts!r}"
                )
            if others:
                known = known.drop(columns=vectors)
        scored = super().transform(known)
        return scored if known is inp else inp.assign(score=scored["score"], rank=scored["rank"])

    def _key(self) -> tuple[Any, ...]:
        return self.bi_encoder_model, self.verbose, self.batch_size, self.text_field, self.sim_fn

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, _Scorer) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


class _EncoderPipeline(Compose):
    """An encoder and what follows it."""

    def transform_inputs(self) -> list[list[str]]:
        # an encoder takes queries, documents and results; an index after it does not take the vectors of documents
        inputs = super().transform_inputs()
        fitting = [columns for columns in inputs if pt.inspect.transformer_outputs(self, columns, strict=False)]
        return fitting or inputs

    def index(self, iter: Any, batch_size: int | None = None) -> Any:
        # by itself PyTerrier reads a hundred documents at once
        return super().index(iter, READ_AHEAD if batch_size is None else batch_size)


def _marked(frame: pd.DataFrame, column: str, encoder: SelfDistillBiEncoder) -> pd.DataFrame:
    """Has vectors remember their encoder."""
    if frame.empty:
        return frame
    return frame.assign(**{column: EncodedVector.rows(np.stack(frame[column]), encoder.identity)})


def _sample(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.detach().reshape(-1)
    return values[:: max(1, len(values) // 64)].contiguous()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()


def _check_texts(frame: pd.DataFrame, column: str, identifier: str) -> None:
    require_distinct_columns(frame, "the input frame")
    if column in frame:  # otherwise PyTerrier's validation names the columns that are missing
        require_texts(frame, column, identifier, empty=True)


def _checked(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"texts is the string {texts!r}; give a list of strings")
    texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{position}] is {text!r}, of type {type(text).__name__}; give strings")
    return texts


def _with_unit_length(model: SentenceTransformer) -> SentenceTransformer:
    """Appends the normalization that readers of the folder other than this class would not do."""
    if not isinstance(model[-1], Normalize):
        model.append(Normalize())
    return model


def _set_lengths(model: SentenceTransformer, query_length: int | None, document_length: int | None) -> None:
    for name, length in {"query_length": query_length, "document_length": document_length}.items():
        if length is None:
            continue
        if not isinstance(model[0], Transformer):
            raise ValueError(f"{name}={length} was given, but the model starts with {model[0]}, which cuts no texts")
        require_positive_integer(name, length, at_most=getattr(model[0].config, "max_position_embeddings", None))
        setattr(model[0], name, length)
    if document_length is not None:
        model.max_seq_length = document_length  # for readers that do not tell documents from queries


def _load(folder: Path, device: str | torch.device | None) -> SentenceTransformer:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(folder)!r}; for a model on the Hugging Face hub use "
            "SelfDistillBiEncoder.from_pretrained"
        )
    if not is_sentence_transformer_model(str(folder)):
        raise ValueError(
            f"{str(folder)!r} is not a sentence-transformers model (it has no modules.json); for a plain language "
            "model use SelfDistillBiEncoder.from_pretrained"
        )
    return SentenceTransformer(str(folder), device=None if device is None else str(device))


def _read_training_summary(folder: Path) -> dict[str, Any]:
    file = folder / METADATA_FILE
    return json.loads(file.read_text()).get("training", {}) if file.is_file() else {}
