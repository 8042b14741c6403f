"""Workarounds of faults in other libraries, one function or class each.

Each says what is wrong, in which version it was seen, and what to delete once that is mended; ``tests/test_compat.py``
fails with this advice when the fault is gone. A correction that changes results looks for the fault first, so that a
mended library is left alone.
"""

from __future__ import annotations

import copy
import importlib
import logging
import math
import re
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
import tqdm
from pandas.core.util.hashing import combine_hash_arrays
from pyterrier_dr import FlexIndex, SimFn
from pyterrier_dr.util import assert_voyager
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)


def tensor_version(tensor: torch.Tensor) -> int:
    """Count how often a tensor was changed in place.

    torch 2.13 has the counter, which autograd relies on, in a private attribute only. Delete when there is a public
    one.
    """
    return tensor._version


def system_error_code(error: BaseException) -> int | None:
    """Find the system's number of an error, such as that of a full disk.

    safetensors 0.8 raises an error of its own, which is no OSError, when it cannot write a file; the number is in its
    words only. Delete, and ask OSErrors for their ``errno``, when it raises an OSError.

    Args:
        error: Any error.

    Returns:
        The number, as :mod:`errno` names them, or None.
    """
    if isinstance(error, OSError):
        return error.errno
    number = re.search(r"\(os error (\d+)\)", str(error))
    return None if number is None else int(number[1])


def combine_checksums(columns: list[np.ndarray]) -> np.ndarray:
    """Combine the checksums of columns into those of rows, as ``pd.util.hash_pandas_object`` does of a frame.

    pandas 3.1 combines them in a private module only. Delete, and call it, when there is a public function.

    Args:
        columns: What ``pd.util.hash_array`` says of each column, uint64.

    Returns:
        The checksums of rows, uint64.
    """
    return combine_hash_arrays(iter(columns), len(columns))


# --- transformers and accelerate: training --------------------------------------------------------------------------


@contextmanager
def no_transformers_progress_bars() -> Iterator[None]:
    """Hide the progress bars that transformers draws when it loads a model or saves a checkpoint.

    transformers 5.23 draws one for the tensors that it loads, and for the files that it writes, also in a training with
    ``disable_tqdm=True``, so that each checkpoint breaks the bar of training in two. Delete, and each ``with`` around
    what loads, trains and saves, when it draws none.
    """
    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def no_widget_examples(model: SentenceTransformer) -> Iterator[None]:
    """Have a trainer of sentence-transformers choose no texts for a widget on the hub, which it draws a bar for.

    sentence-transformers 6.2 does when it is made, also where the card has ``generate_widget_examples=False``. Delete,
    and set that, when it heeds it.
    """
    card: Any = model.model_card_data
    card.set_widget_examples = lambda dataset: None
    try:
        yield
    finally:
        del card.set_widget_examples


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Train on one GPU in one process, whatever other GPUs it sees.

    transformers 5.23 wraps the model in ``nn.DataParallel`` where one process sees several GPUs: batches are as many
    times as large as was asked for, and mixed precision is off, since that comes with accelerate only. It has no
    argument against it. Delete when it trains on one GPU, or has one.

    Args:
        arguments: The training arguments, before a trainer has them.
    """
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are there, and one process trains on one of them; start a process for each: "
            "torchrun --nproc-per-node %d script.py",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1


def limit_autocast_to_training(model: nn.Module) -> None:
    """Let a model that is trained in mixed precision evaluate in the precision of its weights, which are saved.

    accelerate 1.15 replaces the ``forward`` of the model that it is given by one in 16 bits, for evaluation too: the
    measures that choose the best checkpoint are then of another model than the saved one. Delete when accelerate or the
    trainer evaluates without autocast.

    Args:
        model: The model, after accelerate prepared it.
    """
    forward_in_16_bits = vars(model).get("forward")
    if forward_in_16_bits is None:
        return

    def forward(*arguments: Any, **options: Any) -> Any:
        if model.training:
            return forward_in_16_bits(*arguments, **options)
        return type(model).forward(model, *arguments, **options)

    model.forward = forward


def remove_autocast(model: nn.Module) -> None:
    """Let a model compute in the precision of its weights again after mixed-precision training.

    accelerate 1.15 replaces the ``forward`` of the model that it is given by one in 16 bits, and neither it nor the
    trainer of transformers 5.23 puts the first one back. The trained model then computes something else than the same
    model saved and loaded. Delete when the trainer gives back the model as it was.

    Args:
        model: The model, after training.
    """
    vars(model).pop("forward", None)
    vars(model).pop("_original_forward", None)


# --- pyterrier: progress bars and schematics ------------------------------------------------------------------------


def progress_bar(iterable: Iterable[Any] | None = None, *, total: int | None = None, **options: Any) -> Any:
    """Make a ``pt.tqdm``; where there is no terminal, draw it once a tenth, or once a minute if ``total`` is unknown.

    tqdm 4.68 draws ten bars a second into logs. Delete, and call ``pt.tqdm``, when it does not.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    # other classes are those of notebooks
    if pt.tqdm is tqdm.tqdm and not sys.stderr.isatty():
        tenth = None if total is None else math.ceil(total / 10)
        options |= {"miniters": tenth, "mininterval": 60 if tenth is None else 0, "maxinterval": math.inf}
    return pt.tqdm(iterable, total=total, **options)


def schematic(label: str) -> dict[str, Any]:
    """Describe a transformer of this package for :mod:`pyterrier.schematic`.

    pyterrier 1.1.2 downloads the index of its documentation to link a transformer to its page, also one that has none
    there, and draws nothing where there is no network. Delete, and give the label alone, when it draws without links.

    Args:
        label: What to write into the box.

    Returns:
        The label, and that there is no page.
    """
    return {"label": label, "help_url": None}


# --- pyterrier-dr: indexes and exact retrievers ---------------------------------------------------------------------


def closed_files() -> dict[str, Any]:
    """Give the attributes of a FlexIndex that has no file open.

    pyterrier-dr 0.8.1 maps files on first use and keeps them in private attributes. It has no way to close them, so
    that an index that is built again would go on with the old vectors, and a pickle would hold all of them. Delete when
    FlexIndex can be closed and pickles without its vectors.
    """
    return {"_meta": None, "_docnos": None, "_dvecs": None, "_cache": {}}


def opened_files(metadata: dict[str, Any], vectors: np.ndarray, docnos: Any) -> dict[str, Any]:
    """Give the attributes of a FlexIndex whose files are open.

    pyterrier-dr 0.8.1 opens each file when it needs it first, so that an index that is replaced meanwhile has the
    identifiers of one and the vectors of another. Delete when FlexIndex opens all of them together.
    """
    return {"_meta": metadata, "_dvecs": vectors, "_docnos": docnos}


def files_of_retrievers(folder: Path) -> list[Path]:
    """List what a FlexIndex has computed for its approximate retrievers and keeps beside its own files.

    pyterrier-dr 0.8.1 has no names for these files. Delete when FlexIndex says which are whose.
    """
    patterns = ("*.faiss", "voyager-*", "corpusgraph_k*", "hnsw_*.graph")
    return [file for pattern in patterns for file in folder.glob(pattern)]


def remove_files_of_retrievers(folder: Path) -> None:
    """Remove what a FlexIndex has computed for its approximate retrievers, so that it is computed again.

    pyterrier-dr 0.8.1 writes it to the folder even if another index is there by now. Delete when it does not.
    """
    for file in files_of_retrievers(folder):
        if file.is_dir():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)


def make_corpus_graph(index: FlexIndex, k: int) -> int:
    """Compute the corpus graph of an index, in which a document cannot have more neighbours than there are others.

    pyterrier-dr 0.8.1 takes the ``k`` best of each batch of documents, and fails if there are fewer in it. Delete when
    ``FlexIndex.corpus_graph`` takes what there are.

    Args:
        index: The index, of two documents or more.
        k: How many neighbours a document is to have.

    Returns:
        How many it has.
    """
    count = len(index)
    k = min(k, count - 1)
    batches = math.ceil(count / LARGEST_BATCH)
    # of one size, rather than a small last one
    index.corpus_graph(k, batch_size=math.ceil(count / batches))
    return k


LARGEST_BATCH = 8192
"""How many documents are put into a graph, or compared with as many others, at once."""


def masked_retriever(index: FlexIndex, *, num_results: int, mask: np.ndarray, drop_query_vec: bool) -> pt.Transformer:
    """Give a retriever that finds documents of a mask only.

    pyterrier-dr 0.8.1: NumpyRetriever sets the scores of masked documents to 0, which is above those of documents with
    a negative cosine. TorchRetriever leaves them out. Delete, and use ``FlexIndex.np_retriever``, when that does too.
    """
    return FlexIndex.torch_retriever(
        index, device="cpu", num_results=num_results, mask=mask, drop_query_vec=drop_query_vec
    )


@contextmanager
def no_warning_of_mapped_vectors() -> Iterator[None]:
    """Have pyterrier-dr make tensors of vectors that are mapped from a file, without a warning.

    pyterrier-dr 0.8.1 does so for searching and for corpus graphs, and torch warns that writing to such a tensor would
    fail. Nobody does. Delete when there is no warning.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given (buffer|NumPy array) is not writable", UserWarning)
        yield


def transform_queries(transformer: pt.Transformer, frame: pd.DataFrame) -> pd.DataFrame:
    """Retrieve or re-rank, however many results a query has.

    pyterrier-alpha 0.16.5: DataFrameBuilder, by which pyterrier-dr makes its frames, takes an array of length 1 or 0
    for one value. Where the first query has one result, or none, ``docno``, ``docid``, ``score`` and ``rank`` hold
    arrays; where a later one has, it fails. Delete, and call the transformer, when it makes frames of such results.
    """
    try:
        results = transformer.transform(frame)
    except ValueError:
        # any other error comes again
        parts = []
        for _, query in frame.groupby("qid", sort=False):
            parts.append(_unwrap(transformer.transform(query)))
        return pd.concat(parts, ignore_index=True)
    return _unwrap(results)


def _unwrap(results: pd.DataFrame) -> pd.DataFrame:
    """Take the values out of arrays of length 1, and leave out arrays of length 0."""
    if results["rank"].dtype != object:
        return results
    results = results[results["rank"].map(np.size) == 1]
    unwrapped = {}
    for column in ("docno", "docid", "score", "rank"):
        if column in results:
            unwrapped[column] = [np.asarray(value).item() for value in results[column]]
    return results.assign(**unwrapped)


# --- pyterrier-dr: scorers ------------------------------------------------------------------------------------------


def score_nothing(frame: pd.DataFrame) -> pd.DataFrame:
    """Score an empty frame.

    pyterrier-dr 0.8.1: NumpyScorer, and TorchScorer with it, concatenates the scores of all queries and fails where
    there is none. Delete when they return an empty frame.
    """
    require_scorable(frame)
    return frame.drop(columns=["score", "rank"], errors="ignore").assign(score=None, rank=None)


def require_scorable(frame: pd.DataFrame) -> None:
    """Check that a frame has the columns that are scored.

    pyterrier-dr 0.8.1: NumpyScorer, and TorchScorer with it, asks for no ``qid`` and fails without it (KeyError).
    Delete when they ask for it.
    """
    with pt.validate.any(frame) as validation:
        validation.columns(includes=["qid", "query_vec", "docno"])
        validation.columns(includes=["qid", "query_vec", "docid"])


def first_results(scored: pd.DataFrame, num_results: int | None) -> pd.DataFrame:
    """Keep the first results of each query.

    pyterrier-dr 0.8.1: NumpyScorer and TorchScorer with ``num_results`` ask the index for it, which has none
    (AttributeError). Delete, and hand ``num_results`` to FlexIndex, when they take it.
    """
    if num_results is None:
        return scored
    return scored[scored["rank"] < num_results].reset_index(drop=True)


# --- pyterrier-dr: Voyager ------------------------------------------------------------------------------------------


def make_voyager_graph(index: FlexIndex, options: dict[str, Any]) -> None:
    """Compute the graph that ``FlexIndex.voyager_retriever`` reads, if it is not there.

    voyager 2.1 numbers vectors that come without identifiers as its threads get to them, so that now and then two have
    each other's number, and pyterrier-dr 0.8.1 gives none. Its vectors are mapped from a file, which voyager 2.2 does
    not take. Delete when one of them numbers by position, and pyterrier-dr gives arrays.

    Args:
        index: The index.
        options: The arguments of ``FlexIndex.voyager_retriever``, all of them.
    """
    assert_voyager()
    voyager = importlib.import_module("voyager")
    space = {SimFn.dot: voyager.Space.InnerProduct, SimFn.cos: voyager.Space.Cosine}[index.sim_fn]
    types = voyager.StorageDataType
    storage = {"float32": types.Float32, "float8": types.Float8, "e4m3": types.E4M3}[options["storage_data_type"]]
    settings = [options[name] for name in ("neighbours", "ef_construction", "random_seed")]
    name = "-".join(map(str, ["voyager", space.name, *settings, storage.name]))
    path = index.index_path / f"{name}.voyager"
    if path.exists():
        return
    vectors = index.np_vecs()
    graph = voyager.Index(space, vectors.shape[1], *settings, len(vectors), storage)
    for start in range(0, len(vectors), LARGEST_BATCH):
        batch = np.array(vectors[start : start + LARGEST_BATCH])
        graph.add_items(batch, ids=list(range(start, start + len(batch))))
    unfinished = path.with_suffix(".unfinished")
    graph.save(str(unfinished))
    unfinished.replace(path)


def mend_voyager_query(retriever: Any, num_results: int) -> None:
    """Have a VoyagerRetriever search as widely as it is meant to.

    pyterrier-dr 0.8.1: ``FlexIndex.voyager_retriever`` does not pass ``num_results`` on, so that it is always 1000. It
    calls ``voyager.Index.query(vectors, k, query_ef)``, whose third parameter is the number of
    threads. It also asks for more documents than there are, or than ``query_ef``, which Voyager refuses. Delete when it
    passes both by their names and bounds ``k``.
    """
    retriever.num_results = num_results
    retriever.voyager_index = _VoyagerQuery(retriever.voyager_index)


class _VoyagerQuery:
    """An index of Voyager that understands how pyterrier-dr calls it."""

    def __init__(self, index: Any) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def query(self, vectors: np.ndarray, k: int, *more: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, len(self))
        # a mended pyterrier-dr gives a name, or four arguments
        if len(more) == 1:
            options["query_ef"] = more[0]
            more = ()
        if "query_ef" in options:
            options["query_ef"] = max(options["query_ef"], k)
        return self.index.query(vectors, k, *more, **options)


def mend_voyager_scores(retriever: Any) -> None:
    """Have a VoyagerRetriever give similarities as scores.

    pyterrier-dr 0.8.1 takes Voyager's distance, which is 1 - similarity, for the negative similarity: scores are 1 too
    low. Whether they are is seen from the score of a document without any similarity. Delete when that is 0.
    """
    probe = copy.copy(retriever)
    probe.flex_index = FlexIndex(str(retriever.flex_index.index_path), verbose=False)
    probe.voyager_index = _NoSimilarity()
    query = np.zeros(probe.flex_index.np_vecs().shape[1], dtype=np.float32)
    found = probe.transform(pd.DataFrame({"qid": ["1"], "query_vec": [query]}))
    score = _unwrap(found)["score"].item()
    if score == -1:
        retriever.voyager_index = _VoyagerDistances(retriever.voyager_index)


class _NoSimilarity:
    """An index of Voyager that finds one document at the distance of no similarity."""

    def __len__(self) -> int:
        return 1

    def query(self, vectors: np.ndarray, *arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(vectors), 1)
        return np.zeros(shape, dtype=np.uint64), np.ones(shape, dtype=np.float32)


class _VoyagerDistances:
    """An index of Voyager whose distances are negative similarities."""

    def __init__(self, index: Any) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def query(self, vectors: np.ndarray, *arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        docids, distances = self.index.query(vectors, *arguments, **options)
        return docids, distances - 1
