"""The biencoder: a sentence-transformers model as PyTerrier encodes, scores, saves and loads it.

A :class:`SelfDistillBiEncoder` is a :class:`pyterrier_dr.BiEncoder`, so it encodes queries and documents and scores
results by the columns that it is given, and a :class:`pyterrier.Artifact`, so it is saved to and loaded from a folder.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyterrier as pt
from pydantic import Field
from pyterrier_dr import BiEncoder, SimFn
from sentence_transformers import SentenceTransformer

from . import persistence
from .adapted import WithAdapter
from .adapters import require_plain
from .compat import schematic
from .data.corpus import Corpus, Documents
from .encoders import DocumentEncoder, EncoderPipeline, EncodesTexts, QueryEncoder, Scorer
from .export import Exports
from .identity import ComparedByKey, EncoderIdentity, ModelChecksum
from .index import SelfDistillIndex
from .model_card import artifact_card
from .options import Expected, FieldNames, FolderPath, PositiveInteger, checked
from .packages import LocalPackages
from .persistence import Device, PoolingMode
from .precision import EncodingCopy, Precision
from .prompts import TakesPrompts
from .truncation import Truncates

ModelName = Annotated[
    Annotated[str, Field(min_length=1)] | Path, Expected("a name on the Hugging Face hub, or the path of a folder")
]
FieldName = Annotated[str, Field(min_length=1), Expected("the name of a field such as 'text'")]


class SelfDistillBiEncoder(
    ComparedByKey, WithAdapter, Truncates, TakesPrompts, LocalPackages, Exports, EncodesTexts, BiEncoder
):
    """A single-vector biencoder whose vectors are L2-normalized, so that dot products are cosines.

    By the columns of its input it encodes queries (``query`` to ``query_vec``), encodes documents (``text`` to
    ``doc_vec``), or scores results (both, to ``score`` and ``rank``). Vectors are float32 arrays of shape
    ``(dimension,)``.

    Args:
        model: A sentence-transformers model (which gets a normalization layer at its end if it has none), or a folder
            that :meth:`save` wrote. Other models are loaded with :meth:`from_pretrained`.
        batch_size: How many texts to encode at once.
        text_field: The column with the text of documents.
        verbose: Whether to show a progress bar.
        device: Where to encode, such as ``"cpu"`` or ``"cuda:0"``; by default a GPU if there is one.
        dtype: The precision of encoding; see :meth:`from_pretrained`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If the folder does not hold a sentence-transformers model, ``batch_size`` is not positive, or
            ``dtype`` is unknown.

    Attributes:
        dtype: The precision of encoding as it was given; :attr:`precision` is what it comes to.
        model: The sentence-transformers model.
        name: The folder or the hub name that the model comes from, if it is known.
        training_summary: How the model was trained: data, loss, arguments, measures. Empty if not by this package.

    Example:
        >>> results = encoder([{"qid": "1", "query": "sort rows", "docno": "d1", "text": "sort the rows of a table"}])
        >>> sorted(results[0])
        ['docno', 'qid', 'query', 'rank', 'score', 'text']
    """

    schematic: ClassVar = schematic("SelfDistillBiEncoder")
    ARTIFACT_TYPE = persistence.ARTIFACT["type"]
    ARTIFACT_FORMAT = persistence.ARTIFACT["format"]
    ARTIFACT_PACKAGE_HINT = persistence.ARTIFACT["package_hint"]

    @checked
    def __init__(
        self,
        model: SentenceTransformer | FolderPath,
        *,
        batch_size: PositiveInteger = 32,
        text_field: FieldName = "text",
        verbose: bool = False,
        device: Device = None,
        dtype: Precision = "auto",
    ) -> None:
        BiEncoder.__init__(self, batch_size=batch_size, text_field=text_field, verbose=verbose)
        if isinstance(model, SentenceTransformer):
            pt.Artifact.__init__(self, pt.Artifact.NO_PATH)
            self.model = model
            self.name: str | None = model.model_card_data.base_model
            self.training_summary: dict[str, Any] = {}
        else:
            folder = Path(model).expanduser()
            pt.Artifact.__init__(self, folder)
            self.model = persistence.load(folder, device)
            self.name = str(folder)
            self.training_summary = persistence.read_training_summary(folder)
        persistence.prepare(self.model, device)
        self.dtype = str(dtype)
        self._checksum = ModelChecksum()
        self._encoding_copy = EncodingCopy()

    @classmethod
    @checked
    def from_pretrained(
        cls,
        name_or_path: ModelName,
        *,
        pooling: PoolingMode | None = None,
        query_length: PositiveInteger | None = None,
        document_length: PositiveInteger | None = None,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        batch_size: PositiveInteger = 32,
        text_field: FieldName = "text",
        verbose: bool = False,
        device: Device = None,
        dtype: Precision = "auto",
    ) -> SelfDistillBiEncoder:
        """Load a model to train or to use.

        A plain language model gets a pooling layer, over its [CLS] token unless ``pooling`` says otherwise; a
        sentence-transformers model keeps its own. Lengths and prompts that are not given stay as the model has them.

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
            dtype: The precision of encoding: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"int8"`` with ``pip
                install pyterrier-selfdistill[int8]``; by default bfloat16 where the hardware has it, and float32
                elsewhere. Weights and vectors are float32 in any case: the copy of the model that encodes takes memory
                beside it, half as much in 16 bits.

        Returns:
            The encoder.

        Raises:
            ValueError: If ``pooling`` is given for a model that has its own, a length does not fit the model, ``dtype``
                is unknown, or a file of a folder is missing or damaged.
            FileNotFoundError: If there is no such folder.
            OSError: If the hub has no such model, or there is no network.
        """
        name = persistence.find(name_or_path)
        model = persistence.load_pretrained(name, pooling=pooling, device=device)
        persistence.set_lengths(model, {"query_length": query_length, "document_length": document_length})
        persistence.set_prompts(model, {"query": query_prompt, "document": document_prompt})
        encoder = cls(model, batch_size=batch_size, text_field=text_field, verbose=verbose, dtype=dtype)
        encoder.name = name
        encoder.training_summary = persistence.read_training_summary(Path(name))
        return encoder

    @checked
    def save(self, path: FolderPath, *, overwrite: bool = False) -> Path:
        """Write the model to a folder, atomically.

        ``pt.Artifact.load(path)`` and ``SentenceTransformer(path)`` read it, and so does
        ``pyterrier_dr.SBertBiEncoder(path)``, which knows no prompts and cuts queries where documents are cut.

        Args:
            path: The folder to write.
            overwrite: Whether to replace an encoder that is there.

        Returns:
            The folder.

        Raises:
            FileExistsError: If the folder is there and ``overwrite`` is not set, or holds something else than an
                encoder.
            FolderInUseError: If another process writes it.
            ValueError: If the encoder has an adapter: see :meth:`merge_adapter` and :meth:`save_adapter`.
            OSError: If it may not be written, or the disk is full.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = encoder.copy().save(f"{folder}/model")
            ...     pt.Artifact.load(path)
            SelfDistillBiEncoder('...model')
        """
        require_plain(self.model, "a folder that is read without its base")
        path = Path(path).expanduser()
        persistence.save(self.model, self._metadata(), path, overwrite=overwrite)
        self.path = path
        self.name = str(path)
        return path

    def copy(self) -> SelfDistillBiEncoder:
        """Make an encoder with weights of its own, equal to these."""
        return copy.deepcopy(self)

    @checked
    def build_retriever(
        self,
        corpus: Corpus,
        path: FolderPath,
        *,
        fields: FieldNames | None = None,
        num_results: PositiveInteger = 1000,
        overwrite: bool = False,
    ) -> pt.Transformer:
        """Index a corpus and return its retriever, in one call.

        Args:
            corpus: A PyTerrier dataset, a frame or an iterable of records with ``docno`` and text.
            path: The folder of the index.
            fields: The fields of documents that make a text, such as ``["title", "text"]``, if not the text field.
            num_results: How many documents to find for a query.
            overwrite: Whether to replace an index that is there.

        Returns:
            The retriever; later, ``encoder >> SelfDistillIndex(path)`` searches the same index.

        Raises:
            FileExistsError: If there is an index already and ``overwrite`` is not set, or something else.
            FolderInUseError: If another process is building it.
            ValueError: If a document has no identifier of its own or lacks a field, or there are no documents.
            TypeError: If a document has no text, or its identifier is not a string.

        Example:
            >>> import tempfile
            >>> corpus = [{"docno": "d1", "text": "sort the rows"}, {"docno": "d2", "text": "plot a matrix"}]
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     retriever = encoder.build_retriever(corpus, f"{folder}/index.flex")
            ...     (retriever % 1).search("plot a matrix")["docno"].tolist()
            ['d2']
        """
        index = SelfDistillIndex(path, verbose=self.verbose)
        mode = "overwrite" if overwrite else "create"
        indexer = index.indexer(mode=mode)
        documents = Documents(corpus, fields or [self.text_field])
        records = ({"docno": docno, self.text_field: text} for docno, text in documents)
        (self.doc_encoder(verbose=False) >> indexer).index(records)
        return self.query_encoder() >> index.retriever(num_results=num_results, drop_query_vec=True)

    @checked
    def cache_path(self, path: FolderPath) -> Path:
        """Make a path for what is computed with this encoder, so that a changed encoder has a cache of its own.

        Args:
            path: Where caches of this kind are, whatever the encoder.

        Returns:
            The path, with a part of the encoder's checksum in its last name.

        Example:
            >>> str(encoder.cache_path("caches/scores.cache"))
            'caches/scores-...cache'
        """
        path = Path(path)
        return path.with_name(f"{path.stem}-{self.model_name[:12]}{path.suffix}")

    @checked
    def query_encoder(self, verbose: bool | None = None, batch_size: PositiveInteger | None = None) -> pt.Transformer:
        """Make a transformer that adds ``query_vec`` to frames with ``query``."""
        return QueryEncoder(self, verbose=verbose, batch_size=batch_size)

    @checked
    def doc_encoder(self, verbose: bool | None = None, batch_size: PositiveInteger | None = None) -> pt.Transformer:
        """Make a transformer that adds ``doc_vec`` to frames with the text field."""
        return DocumentEncoder(self, verbose=verbose, batch_size=batch_size)

    @checked
    def text_scorer(
        self, verbose: bool | None = None, batch_size: PositiveInteger | None = None, sim_fn: SimFn | None = None
    ) -> pt.Transformer:
        """Make a transformer that adds ``score`` and ``rank`` to frames with queries and documents.

        Vectors that the frame has already are taken, if this encoder made them or nobody knows who did; those of
        another encoder are not, and the texts are encoded instead.
        """
        return Scorer(self, verbose=verbose, batch_size=batch_size, sim_fn=sim_fn)

    @property
    def query_length(self) -> int | None:
        """The number of tokens after which queries are cut."""
        return persistence.query_length(self.model)

    @property
    def document_length(self) -> int | None:
        """The number of tokens after which documents are cut."""
        return persistence.document_length(self.model)

    @property
    def model_name(self) -> str:
        """The checksum of weights, layers, lengths and prompts, by which pyterrier-dr compares encoders."""
        return self._checksum.of(self.model, self._settings)

    @property
    def identity(self) -> EncoderIdentity:
        """The name and the checksum, which vectors and indexes remember."""
        return EncoderIdentity(self.name, self.model_name)

    @property
    def _settings(self) -> tuple[Any, ...]:
        """What decides on vectors besides layers and weights."""
        return persistence.encoding_settings(self.model)

    def _metadata(self) -> dict[str, Any]:
        return persistence.metadata(self.model, self.model_name, self.training_summary)

    def _hf_readme(self, *, metadata: Any = None, **options: Any) -> str:
        """Write the model card for :meth:`to_hf`."""
        # the metadata of a folder that this package did not write says less
        known = self._metadata() | (metadata or {})
        return artifact_card(known, **options)

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return EncoderPipeline(self, right)

    def _key(self) -> tuple[Any, ...]:
        return self.model_name, self.precision, self.batch_size, self.text_field, self.verbose, self.device

    def __repr__(self) -> str:
        arguments = []
        if self.name is not None:
            arguments.append(repr(self.name))
        if self.dtype != "auto":
            arguments.append(f"dtype={self.dtype!r}")
        return f"SelfDistillBiEncoder({', '.join(arguments)})"
