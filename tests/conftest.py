"""What several tests take for granted: a small collection, as the code in README and documentation names it."""

from pathlib import Path

import ir_datasets
import pandas as pd
import pyterrier as pt
import pytest
from ir_datasets.formats import TsvDocPairs, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload
from pyterrier_pisa import PisaIndex

VERBS, THINGS = ["sort", "read", "write", "plot", "return"], ["table", "matrix", "file", "array", "column"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The folder that code runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def names(folder):
    """The names that documentation takes for granted: a retriever, a dataset, topics and judgements."""
    corpus = pd.DataFrame(
        [(f"{v}{t}", f"{v} the {t} by mean") for v in VERBS for t in THINGS], columns=["docno", "text"]
    )
    topics = pd.DataFrame([(f"q{i}", f"mean {t}") for i, t in enumerate(THINGS)], columns=["qid", "query"])
    pairs = topics.merge(corpus, how="cross")
    pairs["label"] = [2 * int(q.split()[1] in t) for q, t in zip(pairs["query"], pairs["text"], strict=True)]
    qrels = pairs[["qid", "docno", "label"]]

    docpairs = [
        (qid, f"sort{t}", f"plot{THINGS[i - 1]}") for i, (qid, t) in enumerate(zip(topics["qid"], THINGS, strict=True))
    ]
    for name, rows in {"docs": corpus, "queries": topics, "docpairs": pd.DataFrame(docpairs)}.items():
        rows.to_csv(f"{name}.tsv", sep="\t", index=False, header=False)
    local = {name: LocalDownload(folder / f"{name}.tsv") for name in ("docs", "queries", "docpairs")}
    ir_datasets.registry._registered["local"] = ir_datasets.Dataset(
        TsvDocs(local["docs"], namespace="local"), TsvQueries(local["queries"]), TsvDocPairs(local["docpairs"])
    )
    bm25 = PisaIndex(str(folder / "index.pisa"), text_field="text").index(corpus.to_dict(orient="records")).bm25()
    yield {
        "bm25": bm25,
        "dataset": pt.get_dataset("irds:local"),
        **{"topics": topics, "valid_topics": topics, "test_topics": topics, "all_topics": topics},
        **{"qrels": qrels, "valid_qrels": qrels, "test_qrels": qrels, "all_qrels": qrels},
    }
    del ir_datasets.registry._registered["local"]
