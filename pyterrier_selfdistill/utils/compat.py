"""Workarounds of faults in other libraries, one function each.

Each says the fault, the version that has it, and when to delete it; ``tests/utils/test_compat.py`` fails when the fault
is gone. A correction of results looks for the fault first, so that it leaves a mended library alone.
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
from pyterrier_dr import FlexIndex, SimFn
from pyterrier_dr.util import assert_voyager
from sentence_transformers import SentenceTransformer
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging as transformers_logging

logger = logging.getLogger(__name__)


# --- torch and safetensors -------------------------------------------------------------------------------------------


def tensor_version(tensor: torch.Tensor) -> int:
    """Count how often a tensor was changed in place."""
    # torch 2.13 has the counter of autograd in a private attribute only; delete when there is a public one
    return tensor._version


def system_error_code(error: BaseException) -> int | None:
    """Find the system's number of an error, as :mod:`errno` names them."""
    # safetensors 0.8 raises no OSError when it cannot write, and has the number in its words only; delete, and ask
    # OSErrors for their ``errno``, when it raises one
    if isinstance(error, OSError):
        return error.errno
    number = re.search(r"\(os error (\d+)\)", str(error))
    return None if number is None else int(number[1])


# --- transformers and accelerate: training ---------------------------------------------------------------------------


@contextmanager
def no_transformers_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers when it loads a model or saves a checkpoint."""
    # transformers 5.23 draws them also with ``disable_tqdm=True``, so that each checkpoint breaks the bar of training;
    # delete when it draws none
    were_shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def no_widget_examples(model: SentenceTransformer) -> Iterator[None]:
    """Keep a trainer from choosing texts for a widget on the hub, with a progress bar."""
    # sentence-transformers 6.2 does so also where the card has ``generate_widget_examples=False``; delete, and set
    # that, when it heeds it
    card: Any = model.model_card_data
    card.set_widget_examples = lambda dataset: None
    try:
        yield
    finally:
        del card.set_widget_examples


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Train on one GPU in one process, even if it sees others."""
    # transformers 5.23 uses ``nn.DataParallel`` there: larger batches than asked for, and no mixed precision; delete
    # when it trains on one GPU, or has an argument for it
    if arguments.n_gpu > 1:
        logger.warning(
            "%d GPUs are there, and one process trains on one of them; start a process for each: "
            "torchrun --nproc-per-node %d script.py",
            arguments.n_gpu,
            arguments.n_gpu,
        )
        arguments._n_gpu = 1


def limit_autocast_to_training(model: nn.Module) -> None:
    """Let a model that trains in mixed precision evaluate in the precision of its weights, which are saved."""
    # accelerate 1.15 replaces ``forward`` by one in 16 bits for evaluation too, so that the best checkpoint is chosen
    # by measures of another model; delete when it evaluates without autocast
    forward_in_16_bits = vars(model).get("forward")
    if forward_in_16_bits is None:
        return

    def forward(*arguments: Any, **options: Any) -> Any:
        if model.training:
            return forward_in_16_bits(*arguments, **options)
        return type(model).forward(model, *arguments, **options)

    model.forward = forward


def remove_autocast(model: nn.Module) -> None:
    """Let a model compute in the precision of its weights again after mixed-precision training."""
    # neither accelerate 1.15 nor transformers 5.23 puts the first ``forward`` back, so that the trained model differs
    # from the saved one; delete when they do
    vars(model).pop("forward", None)
    vars(model).pop("_original_forward", None)


# --- tqdm and pyterrier: progress bars and schematics ----------------------------------------------------------------


def progress_bar(iterable: Iterable[Any] | None = None, *, total: int | None = None, **options: Any) -> Any:
    """Make a ``pt.tqdm``; where there is no terminal, draw it once a tenth, or once a minute without a total."""
    # tqdm 4.68 draws ten bars a second into logs; delete, and call ``pt.tqdm``, when it does not
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    # other classes are those of notebooks
    if pt.tqdm is tqdm.tqdm and not sys.stderr.isatty():
        tenth = None if total is None else math.ceil(total / 10)
        options |= {"miniters": tenth, "mininterval": 60 if tenth is None else 0, "maxinterval": math.inf}
    return pt.tqdm(iterable, total=total, **options)


def schematic(label: str) -> dict[str, Any]:
    """Describe a transformer of this package for :mod:`pyterrier.schematic`."""
    # pyterrier 1.1.2 downloads the index of its documentation to link a transformer, and draws nothing without a
    # network; delete, and give the label alone, when it draws without links
    return {"label": label, "help_url": None}


# --- pyterrier-dr: indexes and exact retrievers ----------------------------------------------------------------------


def files_of_index(metadata: Any = None, vectors: Any = None, docnos: Any = None) -> dict[str, Any]:
    """Give the attributes of a FlexIndex that has these files open, or none."""
    # pyterrier-dr 0.8.1 keeps its files in private attributes, opens each when it needs it, so that a replaced index
    # has identifiers of one and vectors of another, and pickles them; delete when FlexIndex opens all of them together,
    # closes them and pickles without them
    return {"_meta": metadata, "_dvecs": vectors, "_docnos": docnos, "_cache": {}}


def files_of_retrievers(folder: Path) -> list[Path]:
    """List the files that a FlexIndex has computed for its approximate retrievers."""
    # pyterrier-dr 0.8.1 has no names for them; delete when FlexIndex does
    patterns = ("*.faiss", "voyager-*", "corpusgraph_k*", "hnsw_*.graph")
    return [file for pattern in patterns for file in folder.glob(pattern)]


def remove_files_of_retrievers(folder: Path) -> None:
    """Remove these files, so that they are computed again."""
    # pyterrier-dr 0.8.1 writes them even if another index is in the folder by now; delete when it does not
    for file in files_of_retrievers(folder):
        if file.is_dir():
            shutil.rmtree(file, ignore_errors=True)
        else:
            file.unlink(missing_ok=True)


LARGEST_BATCH = 8192  # how many documents are put into a graph, or compared with as many others, at once


def make_corpus_graph(index: FlexIndex, k: int) -> int:
    """Compute the corpus graph of two or more documents, and return how many neighbours each has."""
    # pyterrier-dr 0.8.1 fails where a batch has fewer than ``k`` documents; delete when it takes the existing ones
    count = len(index)
    k = min(k, count - 1)
    batches = math.ceil(count / LARGEST_BATCH)
    # of one size, so that the last one is not small
    index.corpus_graph(k, batch_size=math.ceil(count / batches))
    return k


def masked_retriever(index: FlexIndex, *, num_results: int, mask: np.ndarray, drop_query_vec: bool) -> pt.Transformer:
    """Give a retriever that finds documents of a mask only."""
    # NumpyRetriever of pyterrier-dr 0.8.1 sets the scores of others to 0, which is above negative cosines; delete, and
    # use ``FlexIndex.np_retriever``, when it leaves them out as TorchRetriever does
    options = {"num_results": num_results, "mask": mask, "drop_query_vec": drop_query_vec}
    return FlexIndex.torch_retriever(index, device="cpu", **options)


@contextmanager
def no_warning_of_mapped_vectors() -> Iterator[None]:
    """Hide torch's warning that a tensor of mapped vectors is not writable."""
    # pyterrier-dr 0.8.1 makes such tensors and never writes to them; delete when there is no warning
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given (buffer|NumPy array) is not writable", UserWarning)
        yield


def transform_queries(transformer: pt.Transformer, frame: pd.DataFrame) -> pd.DataFrame:
    """Retrieve or re-rank, even if a query has one result or none."""
    # DataFrameBuilder of pyterrier-alpha 0.16.5 takes arrays of length 1 or 0 for values: the first query then has
    # arrays as values, a later one fails; delete, and call the transformer, when it takes them
    try:
        results = transformer.transform(frame)
    except ValueError:
        # any other error comes again
        parts = [_unwrapped(transformer.transform(query)) for _, query in frame.groupby("qid", sort=False)]
        return pd.concat(parts, ignore_index=True)
    return _unwrapped(results)


def _unwrapped(results: pd.DataFrame) -> pd.DataFrame:
    """Take the values out of arrays of length 1, and leave out arrays of length 0."""
    if results["rank"].dtype != object:
        return results
    results = results[results["rank"].map(np.size) == 1]
    columns = [column for column in ("docno", "docid", "score", "rank") if column in results]
    return results.assign(**{column: [np.asarray(value).item() for value in results[column]] for column in columns})


# --- pyterrier-dr: scorers -------------------------------------------------------------------------------------------


def score_nothing(frame: pd.DataFrame) -> pd.DataFrame:
    """Score an empty frame."""
    # NumpyScorer and TorchScorer of pyterrier-dr 0.8.1 fail without queries; delete when they return an empty frame
    require_scorable(frame)
    return frame.drop(columns=["score", "rank"], errors="ignore").assign(score=None, rank=None)


def require_scorable(frame: pd.DataFrame) -> None:
    """Check that a frame has the columns that are scored."""
    # the scorers of pyterrier-dr 0.8.1 do not ask for ``qid`` and fail without it; delete when they ask for it
    with pt.validate.any(frame) as validation:
        validation.columns(includes=["qid", "query_vec", "docno"])
        validation.columns(includes=["qid", "query_vec", "docid"])


def first_results(scored: pd.DataFrame, num_results: int | None) -> pd.DataFrame:
    """Keep the first results of each query."""
    # the scorers of pyterrier-dr 0.8.1 fail with ``num_results``; delete, and hand it to FlexIndex, when they take it
    if num_results is None:
        return scored
    return scored[scored["rank"] < num_results].reset_index(drop=True)


# --- pyterrier-dr: Voyager -------------------------------------------------------------------------------------------


def make_voyager_graph(index: FlexIndex, options: dict[str, Any]) -> None:
    """Compute the graph that ``FlexIndex.voyager_retriever`` reads with these options, if it does not exist."""
    # voyager 2.1 numbers vectors in the order of its threads, and pyterrier-dr 0.8.1 gives no numbers, and mapped
    # vectors, which voyager 2.2 refuses; delete when one numbers by position, and the other gives arrays
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


def mend_voyager(retriever: Any, num_results: int) -> None:
    """Make a VoyagerRetriever search as widely as it is told, and score by similarity."""
    # pyterrier-dr 0.8.1 does not pass on ``num_results``, passes ``query_ef`` as the number of threads, asks for more
    # documents than there are, and gives scores that are 1 too low; delete when it does none of this
    retriever.num_results = num_results
    probe = copy.copy(retriever)
    probe.flex_index = FlexIndex(str(retriever.flex_index.index_path), verbose=False)
    # one document without any similarity, whose score must be 0
    probe.voyager_index = _NoSimilarity()
    query = np.zeros(probe.flex_index.np_vecs().shape[1], dtype=np.float32)
    found = probe.transform(pd.DataFrame({"qid": ["1"], "query_vec": [query]}))
    surplus = 1 if _unwrapped(found)["score"].item() == -1 else 0
    retriever.voyager_index = _MendedVoyager(retriever.voyager_index, surplus)


class _NoSimilarity:
    def __len__(self) -> int:
        return 1

    def query(self, vectors: np.ndarray, *arguments: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        shape = (len(vectors), 1)
        return np.zeros(shape, dtype=np.uint64), np.ones(shape, dtype=np.float32)


class _MendedVoyager:
    """An index of Voyager that understands how pyterrier-dr calls it, and takes a surplus off its distances."""

    def __init__(self, index: Any, surplus: int) -> None:
        self.index = index
        self.surplus = surplus

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
        docids, distances = self.index.query(vectors, k, *more, **options)
        return docids, distances - self.surplus
