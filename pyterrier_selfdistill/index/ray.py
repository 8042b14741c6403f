"""Distributed indexing on Ray: encode a corpus in shards, on one or many machines, and join them into one index.

Ray Data reads the corpus in order and in blocks. Workers, which keep the encoder in memory, make a shard of each block.
The name of a shard depends on its documents and its encoder, so that existing shards are reused.
"""

from __future__ import annotations

import glob
import json
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
import pyterrier as pt
import torch
from more_itertools import chunked
from pyterrier_dr import BiEncoder

from ..data.corpus import Corpus, Documents, require_document
from ..data.triples import first_line, string_table
from ..utils.checks import FieldNames, NotNegative, PositiveInteger, checked
from ..utils.compat import schematic
from ..utils.folders import folder_lock
from .index import SelfDistillIndex
from .shards import ShardedIndex, load_ray, write_manifest

# the number of documents per shard: a multiple of the sizes in which documents are encoded and scored together
SHARD_SIZE = 1 << 16
NO_DOCUMENTS = "there are no documents to index; the corpus is empty or already consumed"


class RayIndexer(pt.Indexer):
    """Encode a corpus on Ray and build one index of it.

    You get the same index as with ``encoder >> index``, up to rounding of the vectors on different hardware. Workers
    write shards to a folder next to the index, ``corpus.flex.shards`` for ``corpus.flex``. All machines must see this
    folder at the same path. If a worker is killed, another worker takes over its shard. If the whole run is killed,
    repeat the call: it encodes only the missing shards.

    Args:
        encoder: The encoder, which workers get from Ray's object store.
        index: The index to build.
        workers: The number of workers that encode in parallel.
        num_cpus: The number of cores (and threads) per worker.
        num_gpus: The number of GPUs per worker, which may be a fraction. If it is above 0, workers encode on a GPU.
        shard_size: The number of documents per shard. A worker holds the texts of a shard in memory. With multiples of
            16,384 and equal hardware, vectors are identical to those from ``encoder >> index``, byte by byte.
        fields: The document fields to join into a text, such as ``["title", "text"]``. Defaults to the text field.
        overwrite: Whether to replace an existing index once the new one is complete.
        verbose: Whether to show Ray Data's progress bars.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: If an option has an invalid value.

    Example:
        ``RayIndexer(encoder, SelfDistillIndex("corpus.flex"), workers=8, num_gpus=1).index("corpus/*.jsonl.gz")``
    """

    schematic: ClassVar = schematic("RayIndexer")

    @checked
    def __init__(
        self,
        encoder: BiEncoder,
        index: SelfDistillIndex,
        *,
        workers: PositiveInteger,
        num_cpus: PositiveInteger = 1,
        num_gpus: NotNegative = 0,
        shard_size: PositiveInteger = SHARD_SIZE,
        fields: FieldNames | None = None,
        overwrite: bool = False,
        verbose: bool = False,
    ) -> None:
        load_ray()
        if not hasattr(encoder, "identity"):
            raise TypeError(f"encoder must be a SelfDistillBiEncoder, got a {type(encoder).__name__}")
        self.encoder = encoder
        self.target = index
        self.workers = workers
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.shard_size = shard_size
        self.fields = list(fields or [encoder.text_field])
        self.overwrite = overwrite
        self.verbose = verbose

    @property
    def folder(self) -> Path:
        """The folder of the shards."""
        path = self.target.index_path.resolve()
        return path.with_name(f"{path.name}.shards")

    def index_inputs(self) -> list[list[str]]:
        """List the required columns of documents."""
        return [["docno", *self.fields]]

    def index(self, iter: Any) -> SelfDistillIndex:  # type: ignore[override]
        """Encode a corpus with :meth:`encode`, join its shards into one index, and remove the shards.

        Raises:
            FileExistsError: If the path of the index exists and ``overwrite`` is not set, or it is not an index.
            ValueError: If two documents have the same identifier. Also see :meth:`encode`.
        """
        path = self.target.index_path
        if path.exists() and not self.overwrite:
            raise FileExistsError(
                f"there already is an index at {str(path)!r}; search it, choose another path, or replace it with "
                "overwrite=True"
            )
        self.encode(iter).join(path, overwrite=self.overwrite)
        self.target.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return self.target

    def encode(self, corpus: Any) -> ShardedIndex:
        """Encode the missing shards of a corpus, and keep all shards in :attr:`folder`.

        You can pass paths of files, a pattern of paths, or a ``ray.data.Dataset``, which workers read. You can also
        pass a PyTerrier dataset, a frame, or an iterable of records with ``docno`` and text, which this process copies
        to Ray's object store. Files are JSON lines, Parquet, or TSV without a header, with ``docno`` before the fields.
        JSON lines and TSV may be compressed (``.gz``).

        Raises:
            FileNotFoundError: If a file does not exist, or the machines do not share the folder of shards.
            FolderInUseError: If another process encodes to the same folder.
            ValueError: If a document lacks a field, or shares its identifier with another document of its shard.
            TypeError: If a document has no text, or its identifier is not a string.
        """
        ray, folder = load_ray(), self.folder
        # so that machines without a GPU can load it
        encoder = self.encoder.copy()
        encoder.model.to("cpu")
        device = "cuda" if self.num_gpus else "cpu"
        with folder_lock(folder, "encoding shards"):
            blocks, fields = self._blocks(corpus)
            encoded = blocks.map_batches(
                ShardEncoder,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=self.workers, max_tasks_in_flight_per_actor=2),
                fn_constructor_args=(ray.put(encoder), str(folder), fields, device, self.num_cpus),
                num_cpus=self.num_cpus,
                num_gpus=self.num_gpus,
            )
            shards = _run(encoded.take_all)
            if not shards:
                raise ValueError(NO_DOCUMENTS)
            for shard in shards:
                if not (folder / shard["shard"]).is_dir():
                    raise FileNotFoundError(
                        f"the machine {shard['host']!r} wrote the shard {shard['shard']} to {str(folder)!r}, but "
                        f"{socket.gethostname()!r} does not see it there; choose a path for the index on storage that "
                        "all machines share"
                    )
            write_manifest(folder, [shard["shard"] for shard in shards])
        return ShardedIndex(folder)

    def _blocks(self, corpus: Any) -> tuple[Any, list[str]]:
        """Read a corpus with Ray Data in blocks as large as shards; also return the columns that make a text."""
        ray = load_ray()
        fields = self.fields
        if isinstance(corpus, str | Path):
            corpus = [corpus]
        if isinstance(corpus, list) and corpus and all(isinstance(path, str | Path) for path in corpus):
            corpus = read_files(corpus, fields)
        elif isinstance(corpus, ray.data.Dataset) and (names := corpus.columns()):
            require_document(dict.fromkeys(names), fields)
        is_read_here = not isinstance(corpus, ray.data.Dataset)
        if is_read_here:
            references = [ray.put(table) for table in read_corpus(corpus, fields, self.shard_size)]
            if not references:
                raise ValueError(NO_DOCUMENTS)
            corpus, fields = ray.data.from_arrow_refs(references), ["text"]
        # keep the order of documents
        corpus.context.execution_options.preserve_order = True
        corpus.context.raise_original_map_exception = True
        corpus.context.enable_progress_bars = self.verbose
        corpus.context.print_on_execution_start = self.verbose
        if not is_read_here:
            corpus = corpus.repartition(target_num_rows_per_block=self.shard_size, strict=True)
            if ray.available_resources().get("CPU", 0) < self.workers * self.num_cpus + 1:
                # read everything first: workers would take all cores and starve the readers
                corpus = _run(corpus.materialize)
        return corpus, fields


class ShardEncoder:
    """Encodes blocks of documents, each to the folder of a shard. Every worker has one, which holds the model."""

    def __init__(self, encoder: Any, folder: str, fields: Sequence[str], device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.encoder = load_ray().get(encoder)
        self.encoder.model.to(device)
        self.folder = Path(folder)
        self.fields = fields

    def __call__(self, block: pa.Table) -> dict[str, list[Any]]:
        if not len(block):
            return {"shard": [], "host": []}
        needed = [name for name in block.column_names if name in ("docno", *self.fields)]
        documents = Documents(block.select(needed).to_pylist(), self.fields)
        identity = self.encoder.identity
        name = f"{documents.fingerprint()}-{identity.checksum[:16]}"
        shard = SelfDistillIndex(self.folder / name, verbose=False)
        if not shard.built() or getattr(shard.encoder, "checksum", None) != identity.checksum:
            field = self.encoder.text_field
            records = ({"docno": docno, field: text} for docno, text in documents)
            (self.encoder.doc_encoder(verbose=False) >> shard.indexer(mode="overwrite")).index(records)
        return {"shard": [name], "host": [socket.gethostname()]}


def read_corpus(corpus: Corpus, fields: Sequence[str], size: int) -> Iterator[pa.Table]:
    parts: Iterable[Any] = [corpus]
    if not isinstance(corpus, pt.datasets.Dataset | pd.DataFrame):
        # chunked, since Documents reads iterators into memory
        parts = chunked(corpus, size)
    documents = chain.from_iterable(Documents(part, fields) for part in parts)
    for chunk in chunked(documents, size):
        docnos, texts = zip(*chunk, strict=True)
        yield string_table({"docno": docnos, "text": texts})


def read_files(paths: Sequence[str | Path], fields: Sequence[str]) -> Any:
    ray = load_ray()
    files = []
    for place in map(str, paths):
        # Ray Data also reads from remote storage
        found = [place]
        if "://" not in place:
            path = Path(place).expanduser().absolute()
            found = [str(path)] if path.is_file() else sorted(glob.glob(str(path)))
        if not found:
            raise FileNotFoundError(f"the file {place!r} does not exist; check the path of your documents")
        files += found
    columns = ["docno", *fields]
    strings = pa.schema([(name, pa.string()) for name in columns])
    # check fields here, before workers start
    here = [path for path in map(Path, files) if path.is_file()]
    kinds = {Path(file.removesuffix(".gz")).suffix for file in files}
    if kinds == {".parquet"}:
        for file in here:
            require_document(dict.fromkeys(pq.read_schema(file).names), fields)
        return ray.data.read_parquet(files, partitioning=None).select_columns(columns)
    if kinds <= {".jsonl", ".json"}:
        for path in here:
            if line := first_line(path):
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    example = '{"docno": "d1", "text": "..."}'
                    raise ValueError(
                        f"{str(path)!r} must have one document per line, such as {example}, got {line[:60]!r}"
                    ) from None
                require_document(record, fields)
        # as strings, since Arrow would parse some of them as times
        options = pa.json.ParseOptions(explicit_schema=strings, unexpected_field_behavior="ignore")
        return ray.data.read_json(files, parse_options=options, partitioning=None)
    if kinds == {".tsv"}:
        return ray.data.read_csv(
            files,
            read_options=pa.csv.ReadOptions(column_names=columns),
            parse_options=pa.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pa.csv.ConvertOptions(column_types=strings),
            partitioning=None,
        )
    raise ValueError(
        f"expected .jsonl, .tsv (both also with .gz) or .parquet files, all of one kind, got {sorted(kinds)}; read "
        "other files with ray.data, and give the dataset"
    )


def _run(work: Callable[[], Any]) -> Any:
    # raise errors of workers as errors of this process
    try:
        return work()
    except load_ray().exceptions.RayTaskError as error:
        raise error.cause from None
