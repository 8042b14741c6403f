"""Workarounds for bugs in other libraries, one function each.

A comment in each function names the bug, the affected version, and the condition for deleting the workaround.
``tests/utils/test_compat.py`` fails when a bug is fixed. Functions that correct results check for the bug first, so
that they do not change the results of a fixed library.
"""

from __future__ import annotations

import importlib
import logging
import math
import re
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
    """Hide the progress bars of transformers while it loads a model or saves a checkpoint."""
    # transformers 5.23 draws them even with ``disable_tqdm=True``, and each checkpoint breaks the bar of training;
    # delete when it respects the option
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
    """Report missing and unexpected weights while transformers loads a model, and seed the missing ones."""
    # transformers 5.23 initializes missing weights at random, and sentence-transformers 6.2 cannot tell which ones;
    # delete when it can
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
        # huggingface_hub 2.4 downloads a list of agents for its telemetry, even to read local files
        quiet = patch("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
        with quiet, patch.object(PreTrainedModel, "from_pretrained", classmethod(from_pretrained)):
            yield reports


def use_one_gpu(arguments: TrainingArguments) -> None:
    """Train on one GPU per process, even if the process sees others."""
    # transformers 5.23 uses ``nn.DataParallel`` there, with larger batches than requested and without mixed precision;
    # delete when it trains on one GPU, or has an argument for it
    if arguments.n_gpu > 1:
        logger.warning(
            "one process trains on one GPU, got %d; start a process for each: torchrun --nproc-per-node gpu script.py",
            arguments.n_gpu,
        )
        arguments._n_gpu = 1


def limit_autocast_to_training(model: nn.Module) -> None:
    """Evaluate a model in the precision of its saved weights during mixed-precision training."""
    # accelerate 1.15 replaces ``forward`` by one in 16 bits for evaluation too, so that measures of a different model
    # choose the best checkpoint; delete when it evaluates without autocast
    forward_in_16_bits = vars(model).get("forward")
    if forward_in_16_bits is None:
        return

    def forward(*arguments: Any, **options: Any) -> Any:
        if model.training:
            return forward_in_16_bits(*arguments, **options)
        return type(model).forward(model, *arguments, **options)

    model.forward = forward


def remove_autocast(model: nn.Module) -> None:
    """Restore the precision of the weights for computations after mixed-precision training."""
    # neither accelerate 1.15 nor transformers 5.23 restores the original ``forward``, so that the trained model differs
    # from the saved one; delete when they do
    vars(model).pop("forward", None)
    vars(model).pop("_original_forward", None)


def progress_bar(iterable: Iterable[Any] | None = None, *, total: int | None = None, **options: Any) -> Any:
    """Make a ``pt.tqdm``. Without a terminal, draw it after each tenth, or once a minute if the total is unknown."""
    # tqdm 4.68 writes ten bars per second to logs; delete, and call ``pt.tqdm``, when it does not
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    # other classes are for notebooks
    if pt.tqdm is tqdm.tqdm and not sys.stderr.isatty():
        tenth = None if total is None else math.ceil(total / 10)
        options |= {"miniters": tenth, "mininterval": 60 if tenth is None else 0, "maxinterval": math.inf}
    bar = pt.tqdm(iterable, total=total, **options)
    bar.leave = bar.pos == 0  # a bar inside another one disappears at its end
    return bar


def schematic(label: str) -> dict[str, Any]:
    """Describe a transformer of this package for :mod:`pyterrier.schematic`."""
    # pyterrier 1.1.2 downloads the index of its documentation to link a transformer, and draws nothing without a
    # network; delete, and pass only the label, when it draws without links
    return {"label": label, "help_url": None}


def files_of_index(metadata: Any = None, vectors: Any = None, docnos: Any = None) -> dict[str, Any]:
    """Return the attributes of a FlexIndex with these open files, or without any."""
    # pyterrier-dr 0.8.1 keeps its files in private attributes, opens them one by one, so that a replaced index can mix
    # old identifiers with new vectors, and pickles them; delete when FlexIndex opens all of them together, closes them
    # and pickles without them
    return {"_meta": metadata, "_dvecs": vectors, "_docnos": docnos, "_cache": {}}


def files_of_retrievers(folder: Path) -> list[Path]:
    """Return the files that a FlexIndex computed for its approximate retrievers."""
    # pyterrier-dr 0.8.1 cannot list them; delete when FlexIndex can
    patterns = ("hnsw_n-*", "ivf_nlist-*.faiss", "int8.faiss", "binary.faiss", "voyager-*.voyager", "corpusgraph_k*")
    return [file for pattern in patterns for file in folder.glob(pattern)]


LARGEST_BATCH = 8192  # how many documents to add to a graph, or to compare with each other, at once


def make_corpus_graph(index: FlexIndex, k: int) -> int:
    """Compute the corpus graph of two or more documents, and return the number of neighbours per document."""
    # pyterrier-dr 0.8.1 fails if a batch has fewer than ``k`` documents; delete when it takes the existing ones
    count = len(index)
    k = min(k, count - 1)
    batches = math.ceil(count / LARGEST_BATCH)
    # batches of equal size, so that the last one is not small
    index.corpus_graph(k, batch_size=math.ceil(count / batches))
    return k


@contextmanager
def quiet_backends() -> Iterator[None]:
    """Hide torch's warning that a tensor of mapped vectors is not writable, and lines such as "caching index"."""
    # pyterrier-dr 0.8.1 makes such tensors and never writes to them, and it logs on the terminal which of its files it
    # reads and writes; delete when it does not
    files = re.compile(r"\[\w+\] (caching|reading) ")
    others = [lambda record: not files.match(record.getMessage())]
    with patch.object(logging.getLogger("ir_datasets"), "filters", others), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given (buffer|NumPy array) is not writable", UserWarning)
        yield


def transform_queries(transformer: pt.Transformer, frame: pd.DataFrame) -> pd.DataFrame:
    """Re-rank results, even if a query has only one result or none."""
    # DataFrameBuilder of pyterrier-alpha 0.16.5 reads arrays of length 1 or 0 as values: the first query then has
    # arrays as values, and a later one fails; delete, and call the transformer, when it accepts them
    if frame.empty:
        return transformer.transform(frame)
    parts = [transformer.transform(query) for _, query in frame.groupby("qid", sort=False)]
    results = [part.explode(["docno", "score", "rank"]).dropna(subset="rank") for part in parts]
    return pd.concat(results, ignore_index=True)


class VoyagerSearch:
    """Search a Voyager graph with the interface of a FAISS index. The graph is stored in the folder of the index."""

    # VoyagerRetriever of pyterrier-dr 0.8.1 does not pass on ``num_results``, passes ``query_ef`` as the number of
    # threads, asks for more documents than exist, and returns scores that are 1 too low. With voyager 2.1, its graphs
    # number vectors in the order of threads; with voyager 2.2, which rejects mapped vectors, they cannot be built.
    # Delete, and use ``FlexIndex.voyager_retriever``, when all of this is fixed

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
