"""The bi-encoder: encode, score, save and load with a sentence-transformers model in PyTerrier."""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias, cast
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from more_itertools import chunked, spy
from pydantic import Field, SkipValidation
from pyterrier_dr import BiDocEncoder, BiEncoder, BiQueryEncoder, BiScorer, SimFn
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense
from sentence_transformers.util import batch_to_device
from torch import nn
from torch.nn.functional import normalize

from ..data.corpus import Corpus, Documents, records_of, require_document
from ..index.files import ComparedByKey, EncodedVector, EncoderIdentity, EncoderMismatchError, encoders_of
from ..index.index import SelfDistillIndex
from ..utils.checks import (
    Expected,
    FieldNames,
    FolderPath,
    PositiveInteger,
    WithHints,
    checked,
    explained_columns,
    load_extra,
    require_distinct_columns,
    require_identifiers,
    require_strings,
    require_texts,
    require_vectors,
    without_rows,
)
from ..utils.compat import progress_bar, remove_autocast, schematic
from ..utils.folders import portable_name, portable_settings, scratch_folder
from ..utils.processes import map_in_threads
from . import storage
from .adapters import (
    adapter_settings,
    adapters_of,
    base_checksum,
    describe_adapter,
    merged,
    require_plain,
    saved_base,
    tensor_bytes,
)
from .card import artifact_card
from .precision import Backend, Precision, copied, copy_to_encode, has_bfloat16, write_graph
from .storage import Device, PoolingMode

READ_AHEAD = 2048  # how many documents an indexing pipeline reads at once, to sort them by length
LEAST_PER_CORE = 8  # the smallest batch worth giving to a core of its own
BATCHES = 8  # how many batches to encode before other threads may encode
CHUNK = 4096  # how many vectors of an index to truncate at once
EMPTY = " "  # replaces an empty text, which has no token without special tokens

# the names of prompts in sentence-transformers, the first of which applies
PROMPTS = {"query": ("query",), "document": ("document", "passage", "corpus")}

# by first layer, which variants share: its tokenizer is not thread-safe, since it sets truncation before using it
LOCKS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()

RoleName = Annotated[str, Field(pattern="^(query|document)$")]

PromptsByCollection = Annotated[
    Mapping[str, Mapping[RoleName, str]],
    Expected("prompts by collection and role, such as {'a': {'query': 'question: ', 'document': 'answer: '}}"),
]

ModelName = Annotated[
    Annotated[str, Field(min_length=1)] | Path, Expected("a name on the Hugging Face hub, or the path of a folder")
]
FieldName = Annotated[str, Field(min_length=1), Expected("the name of a field such as 'text'")]

# strings, which encode() checks; pyterrier-dr passes a progress bar
Texts: TypeAlias = SkipValidation[Sequence[str]]


class SelfDistillBiEncoder(WithHints, ComparedByKey, pt.Artifact, BiEncoder):
    """A single-vector biencoder with L2-normalized vectors, so that dot products are cosine similarities.

    The columns of your input decide the task: it encodes queries (``query`` to ``query_vec``), encodes documents
    (``text`` to ``doc_vec``), or scores results (both, to ``score`` and ``rank``). Vectors are float32 arrays of shape
    ``(dimension,)``.

    Args:
        model: A sentence-transformers model, or a folder that :meth:`save` wrote. A model without a normalization layer
            at its end gets one. Load other models with :meth:`from_pretrained`.
        batch_size: The number of texts to encode at once.
        text_field: The column with the text of documents.
        verbose: Whether to show a progress bar.
        device: The device to encode on, such as ``"cpu"`` or ``"cuda:0"``; by default a GPU if you have one.
        dtype: The precision of encoding; see :meth:`from_pretrained`.
        backend: The library that encodes; see :meth:`from_pretrained`.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the folder does not hold a sentence-transformers model, ``batch_size`` is not positive, or
            ``dtype`` is unknown.

    Attributes:
        dtype: The precision that you asked for; ``precision`` is the one in use on this machine.
        model: The sentence-transformers model.
        name: The folder or the hub name that the model comes from, if known.
        training_summary: The data, loss, arguments and measures of the training. Empty for models of other libraries.

    Example:
        >>> results = encoder([{"qid": "1", "query": "sort", "docno": "d1", "text": "sort rows"}])
        >>> sorted(results[0])
        ['docno', 'qid', 'query', 'rank', 'score', 'text']
    """

    schematic: ClassVar = schematic("SelfDistillBiEncoder")
    ARTIFACT_TYPE = storage.ARTIFACT["type"]
    ARTIFACT_FORMAT = storage.ARTIFACT["format"]
    ARTIFACT_PACKAGE_HINT = storage.ARTIFACT["package_hint"]
    HINTS: ClassVar = {
        "fit": "call fit of SelfDistillTrainer(encoder, output_dir)",
        "encode": "call encode_queries(texts) or encode_docs(texts), each with its prompt and length",
        "encode_query": "call encode_queries(texts)",
        "encode_document": "call encode_docs(texts)",
        "save_pretrained": "call save(path)",
        "max_seq_length": "give query_length and document_length to from_pretrained",
        "truncate_dim": "call truncate(dimension)",
        "to": "give device= to from_pretrained",
        "similarity_fn_name": "give encoder.model to functions and evaluators of sentence-transformers",
        "similarity": "call encoder.model.similarity(queries, documents), or multiply the vectors: they have length 1",
    }
    push_to_hub = pt.Artifact.to_hf

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
        backend: Backend = "torch",
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
            self.model = storage.load(folder, device)
            self.name = str(folder)
            self.training_summary = storage.read_metadata(folder).get("training", {})
        storage.prepare(self.model)
        if device is not None:
            self.model.to(device)
        self.model.eval()
        self.dtype: str = dtype
        self.backend = backend
        self._checksum: tuple[Any, str] = None, ""
        self._encoding_copy: tuple[Any, Any] = None, None

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
        backend: Backend = "torch",
    ) -> SelfDistillBiEncoder:
        """Load a model to train or to use.

        A plain language model gets a pooling layer; a sentence-transformers model keeps its layers. If you omit a
        length or a prompt, the model keeps its current one.

        Args:
            name_or_path: The name of a model on the Hugging Face hub, or a folder.
            pooling: How to pool the token vectors of a plain language model. The default is ``"lasttoken"`` for causal
                models such as Qwen3 and GPT-2, whose first token sees no other, and ``"cls"`` for others such as BERT.
            query_length: The maximum number of tokens of a query, including the prompt. Longer queries are truncated.
            document_length: The maximum number of tokens of a document, including the prompt.
            query_prompt: The text to put before each query, such as ``"query: "``.
            document_prompt: The text to put before each document.
            batch_size: The number of texts to encode at once.
            text_field: The column with the text of documents.
            verbose: Whether to show a progress bar.
            device: The device to encode on; by default a GPU if you have one.
            dtype: The precision of encoding: ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``. The default is
                bfloat16 if the hardware supports it, and float32 otherwise. Weights and vectors are always float32.
                Encoding in another precision keeps a second copy of the model in memory, of half the size in 16 bits.
            backend: ``"torch"``, or ``"openvino"`` for faster single queries on a CPU, with a copy of the model. Int8
                always uses OpenVINO: ``pip install pyterrier-selfdistill[openvino]``.

        Returns:
            The encoder.

        Raises:
            ValueError: If you pass ``pooling`` for a sentence-transformers model, a length exceeds the positions of the
                model, ``dtype`` is unknown, or a file of a folder is missing or damaged.
            FileNotFoundError: If the folder does not exist.
            OSError: If the hub does not have the model, or you have no network.
        """
        name = storage.find(name_or_path)
        model = storage.load_pretrained(name, pooling=pooling, device=device)
        storage.set_lengths(model, {"query": query_length, "document": document_length})
        prompts = {"query": query_prompt, "document": document_prompt}
        model.prompts.update({role: prompt for role, prompt in prompts.items() if prompt is not None})
        loaded = cls(model, batch_size=batch_size, text_field=text_field, verbose=verbose, dtype=dtype, backend=backend)
        loaded.name = name
        loaded.training_summary = storage.read_metadata(Path(name)).get("training", {})
        return loaded

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encode or score a frame, depending on its columns."""
        with explained_columns("the encoder", inp):
            return super().transform(inp)

    @checked
    def save(self, path: FolderPath, *, overwrite: bool = False) -> Path:
        """Write the model to a folder, completely or not at all.

        Load it with ``pt.Artifact.load(path)`` or ``SentenceTransformer(path)``. You can also load it with
        ``pyterrier_dr.SBertBiEncoder(path)``, which ignores prompts and truncates queries at the length of documents.

        Args:
            path: The folder to write.
            overwrite: Whether to replace an existing encoder.

        Returns:
            The folder.

        Raises:
            FileExistsError: If the folder exists and ``overwrite`` is not set, or it holds files that this package did
                not write.
            FolderInUseError: If another process writes to the folder.
            ValueError: If the encoder has an adapter; see :meth:`merge_adapter` and :meth:`save_adapter`.
            OSError: If you have no permission to write, or the disk is full.

        Example:
            ``encoder.save("my-model")``
        """
        require_plain(self.model, "a self-contained folder")
        self.path = storage.save(self.model, self.metadata, path, overwrite=overwrite)
        self.name = str(self.path)
        return self.path

    def copy(self) -> SelfDistillBiEncoder:
        """Copy the encoder, including its weights."""
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
        verbose: bool = True,
    ) -> pt.Transformer:
        """Index a corpus and return its retriever, in one call.

        Args:
            corpus: A PyTerrier dataset, a frame or an iterable of records with ``docno`` and text.
            path: The folder of the index.
            fields: The fields to join into the text of a document, such as ``["title", "text"]``; by default only the
                text field.
            num_results: The number of documents to retrieve per query.
            overwrite: Whether to replace an existing index.
            verbose: Whether to show a progress bar.

        Returns:
            The retriever.

        Raises:
            FileExistsError: If the index exists and ``overwrite`` is not set, or the path holds other files.
            FolderInUseError: If another process is building the index.
            ValueError: If a document lacks a field, two documents have the same ``docno``, or the corpus is empty.
            TypeError: If a document has no text, or its identifier is not a string.

        Example:
            >>> import tempfile
            >>> corpus = [{"docno": "d1", "text": "sort rows"}, {"docno": "d2", "text": "plot"}]
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     retriever = encoder.build_retriever(corpus, f"{folder}/index.flex")
            ...     (retriever % 1).search("plot")["docno"].tolist()
            ['d2']
        """
        index = SelfDistillIndex(path, verbose=verbose)
        indexer = index.indexer(mode="overwrite" if overwrite else "create")
        documents = Documents(corpus, fields or [self.text_field])
        records = ({"docno": docno, self.text_field: text} for docno, text in documents)
        EncoderPipeline(self, indexer).index(records, total=len(corpus) if isinstance(corpus, Sized) else None)
        index.verbose = self.verbose
        return self.query_encoder() >> index.retriever(num_results=num_results, drop_query_vec=True)

    @checked
    def cache_path(self, path: FolderPath) -> Path:
        """Add a part of the encoder's checksum to a path, so that a changed encoder gets a new cache.

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

        It reuses vectors that are already in the frame, unless another encoder made them.
        """
        return Scorer(self, verbose=verbose, batch_size=batch_size, sim_fn=sim_fn)

    @checked
    def encode_queries(self, texts: Texts, batch_size: PositiveInteger | None = None) -> np.ndarray:
        """Encode queries to float32 unit vectors of shape ``(len(texts), dimension)``."""
        return encode(self.encoding_model, texts, "query", batch_size or self.batch_size)

    @checked
    def encode_docs(self, texts: Texts, batch_size: PositiveInteger | None = None) -> np.ndarray:
        """Encode documents to float32 unit vectors of shape ``(len(texts), dimension)``."""
        return encode(self.encoding_model, texts, "document", batch_size or self.batch_size)

    @checked
    def encode_queries_torch(self, texts: Texts, batch_size: PositiveInteger | None = None) -> torch.Tensor:
        """Encode queries with the original weights, so that gradients flow, to vectors on the device of the model."""
        texts = [text or EMPTY for text in require_strings(texts, "texts")]
        batches = chunked(texts, batch_size or self.batch_size)
        none = torch.empty((0, self.dimension), device=self.device)
        return torch.cat([none, *(embed(self.model, batch, "query", lock_of(self.model)) for batch in batches)])

    @checked
    def with_prompts(self, *, query: str | None = None, document: str | None = None) -> Self:
        """Make an encoder with other prompts that shares the weights of this one.

        Pass ``""`` to remove a prompt, and None to keep it. The checksum of the new encoder differs.

        Example:
            >>> encoder.with_prompts(query="query: ") == encoder
            False
        """
        return self.apply_attributes(model=prompted(self.model, {"query": query, "document": document}))

    @checked
    def truncate(self, dimension: PositiveInteger) -> Self:
        """Make an encoder that keeps only the first dimensions of vectors and scales them to unit length.

        To lose little effectiveness, train with ``matryoshka_dims`` of :class:`SelfDistillTrainer`. The shorter encoder
        has a different identity: it searches an index that it built, or that you cut with :meth:`truncate_index`.

        Raises:
            ValueError: If ``dimension`` is not smaller than the dimension of the vectors.

        Example:
            >>> encoder.truncate(8).encode_queries(["sort the rows"]).shape
            (1, 8)
        """
        before = self.dimension
        if dimension >= before:
            raise ValueError(f"dimension must be smaller than the {before} dimensions of the vectors, got {dimension}")
        first_dimensions = torch.eye(dimension, before)
        layer = Dense(before, dimension, bias=False, activation_function=nn.Identity(), init_weight=first_dimensions)
        model = copy.deepcopy(self.model)
        model.insert(len(model) - 1, layer.to(model.device))
        shorter = self.apply_attributes(model=model)
        if self.training_summary:
            shorter.training_summary = {**self.training_summary, "truncated_from": before}
        return shorter

    @checked
    def truncate_index(
        self, index: SelfDistillIndex, path: FolderPath, dimension: PositiveInteger, *, overwrite: bool = False
    ) -> SelfDistillIndex:
        """Cut an index of this encoder, with the same result as indexing with ``encoder.truncate(dimension)``.

        Raises:
            EncoderMismatchError: If another encoder built the index.
            ValueError: If ``dimension`` is not smaller than the dimension of the vectors.
            FileExistsError: If ``path`` exists and ``overwrite`` is not set, or it holds other files.
        """
        built_by = index.encoder
        if built_by is not None and built_by.checksum != self.identity.checksum:
            raise EncoderMismatchError(
                f"{index!r} was built by the encoder {built_by}, and this one is {self.identity}; cut it with that one"
            )
        shorter = SelfDistillIndex(path, sim_fn=index.sim_fn, verbose=index.verbose)
        indexer = shorter.indexer(mode="overwrite" if overwrite else "create")
        indexer.index(_prefixes(index, dimension, self.truncate(dimension).identity))
        return shorter

    def merge_adapter(self) -> Self:
        """Make an encoder with plain weights, by merging the adapter into a copy of the base.

        The vectors differ only by rounding, but the checksum differs: search with the encoder that you index with.

        Raises:
            ValueError: If the encoder has no adapter, or PEFT cannot merge an adapter of this type.
        """
        if not adapters_of(self.model):
            raise ValueError(f"{self!r} has no adapter to merge: its weights are plain already")
        return self.apply_attributes(model=merged(self.model))

    @checked
    def save_adapter(self, path: FolderPath, *, overwrite: bool = False) -> Path:
        """Write the adapter without its base to a folder.

        Load it with ``pt.Artifact.load(path)`` or ``SentenceTransformer(path)``, as long as the base stays at the place
        in ``adapter_config.json``. For ``pyterrier_dr.SBertBiEncoder``, save the result of :meth:`merge_adapter`.

        Raises:
            ValueError: If the encoder has no adapter, or several, or you moved or changed its base after loading it.
            FileExistsError: In the same cases as :meth:`save`, like FolderInUseError and OSError.
        """
        if len(adapters_of(self.model)) != 1:
            raise ValueError(f"expected an encoder with one adapter, got one with {len(adapters_of(self.model))}")
        saved_base(self.model, None)
        self.path = storage.save(self.model, self.metadata, path, overwrite=overwrite)
        self.name = str(self.path)
        return self.path

    def build_package(self, package_path: str | None = None, **options: Any) -> str:
        """Write the encoder to one file, like other artifacts of PyTerrier; merge an adapter first.

        You don't need to save the encoder before. By default, the file is next to the folder of the encoder, if any.
        """
        require_plain(self.model, "a package")
        if package_path is None:
            if not isinstance(self.path, Path):
                raise ValueError(f"{self!r} has no folder; pass package_path=, or save it first")
            package_path = f"{self.path}.tar.lz4"
        with scratch_folder() as scratch:
            held = self.apply_attributes()
            held.save(scratch / Path(self.name or "encoder").name)
            return super(SelfDistillBiEncoder, held).build_package(package_path, **options)

    @checked
    def export(self, path: FolderPath, *, overwrite: bool = False) -> Path:
        """Write the model to a folder like :meth:`save`, and add its graph in OpenVINO's format.

        The graph is ``openvino/openvino_model.xml``, or ``openvino/openvino_model_qint8_quantized.xml`` for an encoder
        in int8. The OpenVINO backend of sentence-transformers finds it there. The graph takes the tokens of texts with
        their prompts, and returns ``last_hidden_state`` and ``sentence_embedding``, the unit vector.

        Raises:
            ImportError: If OpenVINO is not installed: ``pip install pyterrier-selfdistill[openvino]``.
            ValueError: If OpenVINO cannot convert the model, or the encoder has an adapter.
            FileExistsError: In the same cases as :meth:`save`, like FolderInUseError and OSError.
        """
        load_extra("openvino")
        require_plain(self.model, "a graph")
        model = copied(self.model, torch.float32).to("cpu")
        write_more = partial(write_graph, model, int8=self.precision == "int8")
        return storage.save(self.model, self.metadata, path, overwrite=overwrite, write_more=write_more)

    @property
    def query_length(self) -> int | None:
        """The maximum number of tokens of a query, or None if queries are not truncated."""
        return storage.length_of(self.model, "query")

    @property
    def document_length(self) -> int | None:
        """The maximum number of tokens of a document, or None if documents are not truncated."""
        return storage.length_of(self.model, "document")

    @property
    def model_name(self) -> str:
        """A checksum of weights, layers, lengths and prompts, which pyterrier-dr uses to compare encoders."""
        # reading all weights takes a second for a large model
        state = self._state()
        if state != self._checksum[0]:
            checksum = hashlib.sha256(repr(state[-1]).encode())
            for tensor in self.model.state_dict().values():
                checksum.update(tensor_bytes(tensor))
            self._checksum = state, checksum.hexdigest()
        return self._checksum[1]

    @property
    def identity(self) -> EncoderIdentity:
        """The name and checksum that vectors and indexes store."""
        return EncoderIdentity(self.name, self.model_name)

    @property
    def precision(self) -> str:
        """The precision of encoding on this machine."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if has_bfloat16(self.device) else "float32"

    @property
    def encoding_model(self) -> SentenceTransformer:
        """The model that encodes: a copy if the precision or the backend differs, else the model itself."""
        precision = self.precision
        plain = self.backend == "torch" and precision != "int8"
        if plain and {weights.dtype for weights in self.model.parameters()} <= {getattr(torch, precision)}:
            self._encoding_copy = None, None
            return self.model
        with lock_of(self.model):
            state = precision, self.backend, self._state()
            if state != self._encoding_copy[0]:
                # remove the old copy first, so that memory never holds two
                self._encoding_copy = None, None
                self._encoding_copy = state, copy_to_encode(self.model, precision, self.backend)
            return cast(SentenceTransformer, self._encoding_copy[1])

    @property
    def dimension(self) -> int:
        """The number of dimensions of vectors."""
        return cast(int, self.model.get_embedding_dimension())

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    @property
    def metadata(self) -> dict[str, Any]:
        """The saved metadata: the type of artifact, a description of the model, and the summary of its training."""
        model = self.model
        described = {
            "checksum": self.model_name,
            **storage.describe(model),
            "pooling": next((layer.pooling_mode for layer in model if hasattr(layer, "pooling_mode")), None),
            "query_length": self.query_length,
            "document_length": self.document_length,
            "prompts": {name: prompt for name, prompt in model.prompts.items() if prompt},
        }
        if adapters_of(model):
            (config,) = adapters_of(model).values()
            base = {"base": portable_name(config.base_model_name_or_path), "base_checksum": base_checksum(model)}
            described["adapter"] = {**base, **describe_adapter(config)}
        return {**storage.ARTIFACT, "model": described, "training": portable_settings(self.training_summary)}

    def apply_attributes(self, **attributes: Any) -> Self:
        """Make an encoder with the same model and other arguments, as :mod:`pyterrier.inspect` requires."""
        names = ("model", "batch_size", "text_field", "verbose", "dtype", "backend")
        given = {name: getattr(self, name) for name in names}
        changed = type(self)(**{**given, **attributes})
        if changed.model is self.model:
            changed.path = self.path
        if isinstance(attributes.get("model", self.model), SentenceTransformer):
            changed.name, changed.training_summary = self.name, self.training_summary
        return changed

    def _state(self) -> tuple[Any, ...]:
        """Describe the model so that changes show, without reading all weights, which takes longer than a query."""
        model, device = self.model, self.device
        tensors = list(model.state_dict().values())
        counts = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors]
        kinds = [(tensor.dtype, tensor.shape, tensor.device) for tensor in tensors]
        # torch does not count changes of ``.data``, so sample each row and each column of a matrix, and copy all
        # samples at once, since each copy waits for the GPU
        steps = [max(1, tensor.shape[-1] - 1) if tensor.dim() > 1 else 1 for tensor in tensors]
        samples = [tensor.detach().reshape(-1)[::step] for tensor, step in zip(tensors, steps, strict=True)]
        none = torch.empty(0, device=device)
        sampled = tensor_bytes(torch.cat([none, *(sample.to(device, torch.float32) for sample in samples)]))
        adapter = adapter_settings(model) if adapters_of(model) else ()
        longest = model.max_seq_length
        lengths = self.query_length or longest, self.document_length or longest, longest
        return kinds, counts, sampled, (str(model), (*lengths, tuple(model.prompts.items()), *adapter))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_checksum": (None, ""), "_encoding_copy": (None, None)}

    def _hf_readme(self, *, metadata: Any = None, **options: Any) -> str:
        # a folder of another library has less metadata
        return artifact_card(self.metadata | (metadata or {}), **options)

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return EncoderPipeline(self, right)

    def _key(self) -> tuple[Any, ...]:
        options = self.precision, self.backend, self.batch_size, self.text_field, self.verbose, self.device
        return self.model_name, *options

    def __repr__(self) -> str:
        arguments = [] if self.name is None else [repr(self.name)]
        options = {"dtype": self.dtype, "backend": self.backend}
        arguments += [f"{name}={value!r}" for name, value in options.items() if value not in ("auto", "torch")]
        return f"SelfDistillBiEncoder({', '.join(arguments)})"


class TextEncoder(ComparedByKey, pt.Transformer):
    """Add vectors with the identity of their encoder to frames with texts."""

    identifier: ClassVar[str]
    vectors: ClassVar[str]
    bi_encoder_model: SelfDistillBiEncoder
    verbose: bool
    batch_size: int

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        require_distinct_columns(inp, "the input frame")
        column = getattr(self, "text_field", "query")
        # if the column is missing, PyTerrier's validation reports it
        if column in inp:
            require_texts(inp, column, self.identifier, empty=True)
            if self.verbose and inp[column].nunique() < 2:
                quiet = copy.copy(self)
                quiet.verbose = False
                return quiet.transform(inp)
        with explained_columns("the encoder", inp):
            encoded = super().transform(inp)
        if encoded.empty:
            return without_rows(encoded, encoded)
        vectors = EncodedVector.rows(np.stack(encoded[self.vectors]), self.bi_encoder_model.identity)
        return encoded.assign(**{self.vectors: vectors})

    def _key(self) -> tuple[Any, ...]:
        return self.bi_encoder_model, self.verbose, self.batch_size, getattr(self, "text_field", None)


class QueryEncoder(TextEncoder, BiQueryEncoder):
    """Add ``query_vec`` to frames with ``query``."""

    schematic: ClassVar = schematic("QueryEncoder")
    identifier, vectors = "qid", "query_vec"


class DocumentEncoder(TextEncoder, BiDocEncoder):
    """Add ``doc_vec`` to frames with the text field."""

    schematic: ClassVar = schematic("DocEncoder")
    identifier, vectors = "docno", "doc_vec"
    bar: Any = None  # counts encoded documents

    def encode(self, texts: Any, batch_size: int | None = None) -> np.ndarray:
        if self.bar is None:
            return super().encode(texts, batch_size)
        return encode(self.bi_encoder_model.encoding_model, texts, "document", self.batch_size, self.bar)

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return EncoderPipeline(self, right)


class Scorer(ComparedByKey, BiScorer):
    """Add ``score`` and ``rank`` to frames with queries and documents."""

    schematic: ClassVar = schematic("Scorer")

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        require_distinct_columns(inp, "the results")
        if "qid" in inp:
            require_identifiers(inp, "qid", "the results")
        # PyTerrier groups by qid, and the index may have the same name
        labels = inp.index
        inp = inp.reset_index(drop=True)
        own, foreign = self.bi_encoder_model.identity, []
        for vectors, texts in {"query_vec": "query", "doc_vec": self.text_field}.items():
            makers = encoders_of(inp[vectors]) if vectors in inp else []
            others = [maker for maker in makers if maker.checksum != own.checksum]
            if others and texts not in inp:
                raise EncoderMismatchError(
                    f"{vectors} was made by {others[0]}, this encoder is {own}, and there is no {texts!r} to encode "
                    f"again; score with the encoder of the vectors, or keep {texts!r}"
                )
            if others:
                foreign.append(vectors)
        kept = inp.drop(columns=foreign)
        for column in {"query_vec", "doc_vec"} & set(kept.columns):
            require_vectors(kept, column, self.bi_encoder_model.dimension, "the vectors of this encoder")
        with explained_columns("the encoder", inp):
            scored = super().transform(kept)
        if scored.empty:
            scored = without_rows(scored, kept)
        if foreign:
            # return the given vectors unchanged
            scored = inp.assign(score=scored["score"], rank=scored["rank"])
        return scored.set_axis(labels[scored.index])

    def _key(self) -> tuple[Any, ...]:
        return self.bi_encoder_model, self.verbose, self.batch_size, self.text_field, self.sim_fn


class EncoderPipeline(pt.Compose):
    """A pipeline that starts with an encoder."""

    def __init__(self, *transformers: pt.Transformer) -> None:
        # by default a pipeline only flattens pipelines of the same class
        super().__init__(*pt.Compose(*transformers))

    def __rshift__(self, right: pt.Transformer) -> pt.Transformer:
        return EncoderPipeline(self, right)

    def index(self, iter: Any, batch_size: int | None = None, *, total: int | None = None) -> Any:
        """Encode and index documents: a PyTerrier dataset, a frame or an iterable of records."""
        first, documents = spy(records_of(iter))
        encoder, *others = cast(Any, self)
        index = getattr(others[-1], "target", others[-1])
        for record in first:
            require_document(record, [encoder.text_field])
        # by default PyTerrier reads 100, or one batch of the encoder
        batch_size = batch_size or READ_AHEAD
        if not isinstance(index, SelfDistillIndex) or not index.verbose:
            return super().index(documents, batch_size)
        # count encoded documents, since writing takes no time
        encoder = copy.copy(encoder) if isinstance(encoder, DocumentEncoder) else encoder.doc_encoder()
        total = len(iter) if total is None and isinstance(iter, Sized) else total
        with progress_bar(total=total, desc="Indexing", unit="document") as encoder.bar:
            encoder.verbose = index.verbose = False
            try:
                return pt.Compose(encoder, *others).index(documents, batch_size)
            finally:
                index.verbose = True

    def transform_inputs(self) -> list[list[str]]:
        """Return the sets of columns that the pipeline accepts, for :mod:`pyterrier.inspect`."""
        # PyTerrier lists all inputs of the encoder, but an index behind it accepts only queries
        inputs = super().transform_inputs()
        fitting = [columns for columns in inputs if pt.inspect.transformer_outputs(self, columns, strict=False)]
        return fitting or inputs


def lock_of(model: SentenceTransformer) -> Any:
    """Return the lock of a model, which a thread holds while it tokenizes and encodes."""
    return LOCKS.setdefault(model[0], threading.RLock())


def encode(model: SentenceTransformer, texts: Sequence[str], role: str, batch_size: int, bar: Any = None) -> np.ndarray:
    """Encode each distinct text once, longest first, so that a lack of memory shows immediately."""
    # pyterrier-dr requests a progress bar by wrapping the texts in one
    if isinstance(texts, pt.tqdm):
        texts.leave = texts.pos == 0
        with texts:
            return encode(model, texts.iterable, role, batch_size, texts)
    texts = require_strings(texts, "texts")
    positions: dict[str, list[int]] = {}
    for position, text in enumerate(texts):
        positions.setdefault(text or EMPTY, []).append(position)
    vectors = np.empty((len(texts), cast(int, model.get_embedding_dimension())), dtype=np.float32)
    model.eval()
    # two cores embed the halves of a batch faster than they share each operation on the whole
    cores = torch.get_num_threads() if model.device.type == "cpu" else 1
    batch_size = max(1, min(batch_size, len(positions)))
    parts = max(1, min(cores, batch_size // LEAST_PER_CORE))
    embed_part = torch.inference_mode()(partial(embed, model, role=role, lock=threading.Lock()))
    with map_in_threads(parts) as run:
        for window in chunked(sorted(positions, key=len, reverse=True), BATCHES * batch_size):
            with lock_of(model):
                encoded = torch.cat(list(run(embed_part, chunked(window, math.ceil(batch_size / parts)))))
            for text, vector in zip(window, encoded.cpu().numpy(), strict=True):
                vectors[positions[text]] = vector
            if bar is not None:
                bar.update(sum(len(positions[text]) for text in window))
    return vectors


def embed(model: SentenceTransformer, texts: list[str], role: str, lock: Any) -> torch.Tensor:
    """Embed a batch with the prompt of its role to unit vectors, and hold the lock while tokenizing."""
    names = [*PROMPTS[role], model.default_prompt_name]
    prompt = next((model.prompts[name] for name in names if name in model.prompts), None)
    with lock:
        features = batch_to_device(model.preprocess(texts, prompt=prompt, task=role), model.device)
    # normalize in float32, since 16 bits are too coarse for unit length
    return normalize(model(features, task=role)["sentence_embedding"].float())


def _prefixes(index: SelfDistillIndex, dimension: int, encoder: EncoderIdentity) -> Iterator[dict[str, Any]]:
    docnos, vectors, _ = index.payload()
    for start in range(0, len(vectors), CHUNK):
        prefixes = torch.from_numpy(np.array(vectors[start : start + CHUNK, :dimension]))
        rows = EncodedVector.rows(normalize(prefixes).numpy(), encoder)
        names = docnos.fwd[np.arange(start, start + len(rows))]
        yield from ({"docno": docno, "doc_vec": vector} for docno, vector in zip(names, rows, strict=True))


def prompted(model: SentenceTransformer, prompts: Mapping[str, str | None]) -> SentenceTransformer:
    """Make a model with other prompts that shares the layers of the given model. None keeps a prompt."""
    changed = copy.copy(model)
    # otherwise it would compute in mixed precision, like the original in its training steps
    remove_autocast(changed)
    changed.prompts = {**model.prompts, **{name: prompt for name, prompt in prompts.items() if prompt is not None}}
    return changed
