"""Workarounds of faults in other libraries, one function or class each.

Each says what is wrong, in which version it was seen, and what to delete once that is mended; ``tests/test_compat.py``
fails with this advice when the fault is gone. A correction that changes results looks for the fault first, so that a
mended library is left alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from lz4.frame import LZ4FrameFile
from pyterrier_dr import FlexIndex
from torch import nn
from transformers import Trainer
from transformers.utils import logging


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


# --- transformers and accelerate: training --------------------------------------------------------------------------


@contextmanager
def no_checkpoint_progress_bars() -> Iterator[None]:
    """Hide the progress bars that transformers draws when it saves a checkpoint.

    transformers 5.23: ``save_pretrained`` draws a bar for the files that it writes, also in a training with
    ``disable_tqdm=True``, so that each checkpoint breaks the bar of training in two. Delete, and the ``with`` around
    the training loop, when it draws none.
    """
    were_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


def remove_autocast(trainer: Trainer, model: nn.Module) -> None:
    """Let a model compute in the precision of its weights again after mixed-precision training.

    accelerate 1.15 replaces the ``forward`` of the model that it is given by one in 16 bits, and neither it nor the
    trainer of transformers 5.23 puts the first one back. The trained model then computes something else than the same
    model saved and loaded. Delete when the trainer gives back the model as it was.

    Args:
        trainer: The trainer, after training.
        model: The model that it was given.
    """
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)


# --- pyterrier: packages --------------------------------------------------------------------------------------------


class LocalPackages(pt.Artifact):
    """An artifact whose packages load from this machine too.

    PyTerrier 1.1.2 writes a package to disk with ``build_package``, but ``from_url`` reads one from the web only.
    Delete, and inherit ``from_url`` from ``pt.Artifact``, when that takes ``file:`` URLs.
    """

    @classmethod
    def from_url(cls, url: str, *, expected_sha256: str | None = None, **options: Any) -> pt.Artifact:
        """Load an artifact from the URL of its package, on the web or on this machine.

        Args:
            url: The URL of what ``build_package`` made, such as ``"file:///data/my-model.tar.lz4"``, or of the folder
                of an artifact.
            expected_sha256: The checksum of the package, if not the one in the file beside it.
            **options: Arguments of the class.

        Returns:
            The artifact.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the package does not have its checksum.
        """
        if urlparse(url).scheme != "file":
            return super().from_url(url, expected_sha256=expected_sha256, **options)
        return cls.load(str(_unpack(url, expected_sha256)), **options)


def _unpack(url: str, expected_sha256: str | None) -> Path:
    """Unpack a package into PyTerrier's cache of artifacts, once."""
    path = Path(url2pathname(urlparse(url).path))
    if path.is_dir():
        return path
    sidecar = Path(f"{path}.json")
    metadata: dict[str, Any] = {}
    if sidecar.is_file():
        metadata = json.loads(sidecar.read_text())
    checksum = expected_sha256 or metadata.get("expected_sha256")
    segments = [path]
    if "segments" in metadata:
        segments = [Path(f"{path}.{number}") for number in range(len(metadata["segments"]))]
    for segment in segments:
        if not segment.is_file():
            raise FileNotFoundError(
                f"there is no file {str(segment)!r}; give the URL of what artifact.build_package(path) made"
            )
    # a package that was built again at the same path is another
    signature = [(str(segment), segment.stat().st_size, segment.stat().st_mtime_ns) for segment in segments]
    name = hashlib.sha256(repr((signature, checksum)).encode()).hexdigest()
    target = Path(pt.io.pyterrier_home()) / "artifacts" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with pt.io.finalized_directory(str(target)) as folder:
            _extract(segments, checksum, folder)
    return target


def _extract(segments: Sequence[Path], checksum: str | None, folder: str) -> None:
    """Extract the archive in the segments of a package, and verify its checksum."""
    with ExitStack() as stack:
        opened = [stack.enter_context(segment.open("rb")) for segment in segments]
        stream: Any = stack.enter_context(pt.io.MultiReader(iter(opened)))
        if checksum is not None:
            stream = stack.enter_context(pt.io.HashReader(stream, expected=checksum))
        content = stack.enter_context(LZ4FrameFile(stream))
        archive = stack.enter_context(tarfile.open(fileobj=content, mode="r|"))
        archive.extractall(folder, filter="data")
        # what follows the archive counts for the checksum
        while content.read(1 << 20):
            pass


# --- pyterrier-dr: indexes and exact retrievers ---------------------------------------------------------------------


def closed_files() -> dict[str, Any]:
    """Give the attributes of a FlexIndex that has no file open.

    pyterrier-dr 0.8.1 maps files on first use and keeps them in private attributes. It has no way to close them, so
    that an index that is built again would go on with the old vectors, and a pickle would hold all of them. Delete when
    FlexIndex can be closed and pickles without its vectors.
    """
    return {"_meta": None, "_docnos": None, "_dvecs": None, "_cache": {}}


def masked_retriever(index: FlexIndex, *, num_results: int, mask: np.ndarray, drop_query_vec: bool) -> pt.Transformer:
    """Give a retriever that finds documents of a mask only.

    pyterrier-dr 0.8.1: NumpyRetriever sets the scores of masked documents to 0, which is above those of documents with
    a negative cosine. TorchRetriever leaves them out. Delete, and use ``FlexIndex.np_retriever``, when that does too.
    """
    return FlexIndex.torch_retriever(
        index, device="cpu", num_results=num_results, mask=mask, drop_query_vec=drop_query_vec
    )


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
    with pt.validate.any(frame) as validation:
        validation.columns(includes=["qid", "query_vec", "docno"])
        validation.columns(includes=["qid", "query_vec", "docid"])
    return frame.assign(score=pd.Series(dtype=float), rank=pd.Series(dtype=int))


def first_results(scored: pd.DataFrame, num_results: int | None) -> pd.DataFrame:
    """Keep the first results of each query.

    pyterrier-dr 0.8.1: NumpyScorer and TorchScorer with ``num_results`` ask the index for it, which has none
    (AttributeError). Delete, and hand ``num_results`` to FlexIndex, when they take it.
    """
    if num_results is None:
        return scored
    return scored[scored["rank"] < num_results].reset_index(drop=True)


# --- pyterrier-dr: Voyager ------------------------------------------------------------------------------------------


def retrieve_nothing(index: FlexIndex, frame: pd.DataFrame, *, drop_query_vec: bool) -> pd.DataFrame:
    """Retrieve for an empty frame.

    pyterrier-dr 0.8.1: VoyagerRetriever stacks the vectors of all queries and fails where there is none. NumpyRetriever
    gives the same columns. Delete when VoyagerRetriever returns an empty frame.
    """
    return FlexIndex.np_retriever(index, drop_query_vec=drop_query_vec).transform(frame)


def mend_voyager_num_results(retriever: Any, num_results: int) -> None:
    """Have a VoyagerRetriever find as many documents as were asked for.

    pyterrier-dr 0.8.1: ``FlexIndex.voyager_retriever`` does not pass ``num_results`` on, so that it is always 1000.
    Delete when it does.
    """
    retriever.num_results = num_results


def mend_voyager_query(retriever: Any) -> None:
    """Have a VoyagerRetriever search as widely as it is meant to.

    pyterrier-dr 0.8.1 calls ``voyager.Index.query(vectors, k, query_ef)``, whose third parameter is the number of
    threads. It also asks for more documents than there are, or than ``query_ef``, which Voyager refuses. Delete when it
    passes ``query_ef`` by its name and bounds ``k``.
    """
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
