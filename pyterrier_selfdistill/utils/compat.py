"""Workarounds of faults in other libraries, one function each.

Each says the fault, the version that has it, and when to delete it; ``tests/utils/test_compat.py`` fails when the fault
is gone. A correction of results looks for the fault first, so that it leaves a mended library alone.
"""

from __future__ import annotations

import importlib
import logging
import math
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
import tqdm
from pyterrier_dr import FlexIndex, SimFn
from pyterrier_dr.util import assert_voyager
from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.utils import logging as transformers_logging

from .folders import atomic_file

logger = logging.getLogger(__name__)


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


LOADING = threading.RLock()


@contextmanager
def reported_weights() -> Iterator[list[dict[str, Any]]]:
    """List which weights were missing and unexpected in files of transformers, and make the same ones each time."""
    # transformers 5.23 makes up missing weights, and sentence-transformers 6.2 cannot ask which; delete when it can
    reports: list[dict[str, Any]] = []
    thread = threading.get_ident()

    def from_pretrained(cls: Any, *arguments: Any, **options: Any) -> Any:
        if threading.get_ident() != thread or options.get("output_loading_info"):
            return load.__func__(cls, *arguments, **options)
        model, report = load.__func__(cls, *arguments, output_loading_info=True, **options)
        reports.append(report)
        return model

    with LOADING, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        load: Any = vars(PreTrainedModel)["from_pretrained"]
        # huggingface_hub 2.4 downloads a list of agents to tell its server of them, even to read files that are here
        quiet = patch("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
        with quiet, patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
            yield reports


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Train on one GPU in one process, even if it sees others."""
    # transformers 5.23 uses ``nn.DataParallel`` there: larger batches than asked for, and no mixed precision; delete
    # when it trains on one GPU, or has an argument for it
    if arguments.n_gpu > 1:
        logger.warning(
            "one process trains on one GPU, got %d; start a process for each: torchrun --nproc-per-node gpu script.py",
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


def files_of_index(metadata: Any = None, vectors: Any = None, docnos: Any = None) -> dict[str, Any]:
    """Give the attributes of a FlexIndex that has these files open, or none."""
    # pyterrier-dr 0.8.1 keeps its files in private attributes, opens each when it needs it, so that a replaced index
    # has identifiers of one and vectors of another, and pickles them; delete when FlexIndex opens all of them together,
    # closes them and pickles without them
    return {"_meta": metadata, "_dvecs": vectors, "_docnos": docnos, "_cache": {}}


def files_of_retrievers(folder: Path) -> list[Path]:
    """List the files that a FlexIndex has computed for its approximate retrievers."""
    # pyterrier-dr 0.8.1 has no names for them; delete when FlexIndex does
    patterns = ("hnsw_n-*", "ivf_nlist-*.faiss", "int8.faiss", "binary.faiss", "voyager-*.voyager", "corpusgraph_k*")
    return [file for pattern in patterns for file in folder.glob(pattern)]


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


@contextmanager
def no_warning_of_mapped_vectors() -> Iterator[None]:
    """Hide torch's warning that a tensor of mapped vectors is not writable."""
    # pyterrier-dr 0.8.1 makes such tensors and never writes to them; delete when there is no warning
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given (buffer|NumPy array) is not writable", UserWarning)
        yield


def transform_queries(transformer: pt.Transformer, frame: pd.DataFrame) -> pd.DataFrame:
    """Re-rank, even if a query has one result or none."""
    # DataFrameBuilder of pyterrier-alpha 0.16.5 takes arrays of length 1 or 0 for values: the first query then has
    # arrays as values, a later one fails; delete, and call the transformer, when it takes them
    if frame.empty:
        return transformer.transform(frame)
    parts = [transformer.transform(query) for _, query in frame.groupby("qid", sort=False)]
    results = [part.explode(["docno", "score", "rank"]).dropna(subset="rank") for part in parts]
    return pd.concat(results, ignore_index=True)


class VoyagerSearch:
    """Search a graph of Voyager as an index of FAISS is searched; the graph is kept in the folder of the index."""

    # VoyagerRetriever of pyterrier-dr 0.8.1 does not pass on ``num_results``, passes ``query_ef`` as the number of
    # threads, asks for more documents than there are, and gives scores that are 1 too low; its graphs number vectors
    # in the order of threads with voyager 2.1, and are not built with voyager 2.2, which refuses mapped vectors.
    # Delete, and use ``FlexIndex.voyager_retriever``, when it does none of this

    def __init__(self, index: FlexIndex, options: dict[str, Any]) -> None:
        assert_voyager()
        voyager = importlib.import_module("voyager")
        self.query_ef = options["query_ef"]
        space = {SimFn.dot: voyager.Space.InnerProduct, SimFn.cos: voyager.Space.Cosine}[index.sim_fn]
        storage = getattr(voyager.StorageDataType, options["storage_data_type"].title())
        settings = [options[name] for name in ("neighbours", "ef_construction", "random_seed")]
        name = "-".join(map(str, ["voyager", space.name, *settings, storage.name]))
        path = index.index_path / f"{name}.voyager"
        if not path.exists():
            vectors = index.np_vecs()
            graph = voyager.Index(space, vectors.shape[1], *settings, len(vectors), storage)
            for start in range(0, len(vectors), LARGEST_BATCH):
                batch = np.array(vectors[start : start + LARGEST_BATCH])
                graph.add_items(batch, ids=list(range(start, start + len(batch))))
            with atomic_file(path) as unfinished:
                graph.save(str(unfinished))
        self.graph = voyager.Index.load(str(path))

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        k = min(k, len(self.graph))
        docids, distances = self.graph.query(queries, k, query_ef=max(self.query_ef, k))
        return 1 - distances, docids.astype(np.int64)
