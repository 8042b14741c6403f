"""The paper's training on MS MARCO: docpairs, at most 128 a query, validated by re-ranking TREC DL.

For a machine with a GPU and a network::

    python examples/msmarco.py
    python examples/msmarco.py --model distilbert-base-uncased --output runs/msmarco-distilbert
    python examples/msmarco.py --limit 1000000 --no-store-texts

The paper trains microsoft/mpnet-base, distilbert-base-uncased and roberta-base, with [CLS] pooling, 20 tokens of a
query and 200 of a document, and stops early on nDCG@10 of TREC DL. All docpairs are read once and sorted on disk, at
about 40 bytes each; the texts of those that are kept then take some 770 bytes a triple, which ``--no-store-texts``
spares. An interrupted run goes on with ``--resume``. At the end the test queries' candidates are re-ranked, by the
model as it was and as it is.

On eight GPUs, a process each, with the paper's batch of 128 divided among them::

    torchrun --nproc-per-node 8 examples/msmarco.py --batch-size 16
    accelerate launch --multi_gpu --num_processes 8 examples/msmarco.py --batch-size 16

With two processes on a CPU, to try it::

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 examples/msmarco.py --device cpu --batch-size 64

The loss sees all 128 triples, whatever they are divided among, and the model is the same up to rounding and dropout.
``--deepspeed zero2.json`` hands DeepSpeed's settings to transformers, for its first and second stage; FSDP and the
third stage divide the weights, which the trainer refuses. The tests train on CPUs, with gloo: what is said of GPUs and
of DeepSpeed follows from transformers and accelerate.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import pandas as pd
import pyterrier as pt
from pyterrier.measures import RR, R, nDCG

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.utils.processes import in_turn, is_first, joined

logger = logging.getLogger("msmarco")


def main(options: argparse.Namespace) -> pd.DataFrame | None:
    """Train, re-rank, write everything below ``options.output``, and return the table, in the first process."""
    base = SelfDistillBiEncoder.from_pretrained(
        options.model,
        query_length=options.query_length,
        document_length=options.document_length,
        batch_size=128,
        device=options.device,
    )
    with joined(base.device):
        trained = train(base, options)
        if is_first():
            return compare(base, trained, options)
    return None


def train(base: SelfDistillBiEncoder, options: argparse.Namespace) -> SelfDistillBiEncoder:
    """Train a model, together with the other processes if there are some."""
    changes = {
        "learning_rate": options.learning_rate,
        "per_device_train_batch_size": options.batch_size,
        "max_steps": options.max_steps,
        "eval_steps": options.eval_steps,
        "deepspeed": options.deepspeed,
    }
    arguments = {name: value for name, value in changes.items() if value is not None}
    trainer = SelfDistillTrainer(
        base,
        options.output,
        preset="paper",
        target=options.target,
        measures=[nDCG @ 10, RR(rel=2) @ 10],
        seed=options.seed,
        resume=options.resume,
        **arguments,
    )
    with in_turn():  # the first process downloads them
        topics, qrels = candidates(options.valid)
    trainer.fit_triples(
        pt.get_dataset(options.dataset),
        topics,
        qrels,
        max_pairs_per_query=options.max_pairs_per_query,
        limit=options.limit,
        store_texts=options.store_texts,
    )
    return trainer.encoder


def compare(base: SelfDistillBiEncoder, trained: SelfDistillBiEncoder, options: argparse.Namespace) -> pd.DataFrame:
    """Re-rank with a model as it was and as it is."""
    logger.info("trained with %s", trained.training_summary["data"])
    results, qrels = candidates(options.test)
    systems = {"first stage": pt.Transformer.identity(), "untrained": base, "self-distilled": trained}
    output = Path(options.output)
    runs = output / "runs"
    runs.mkdir(exist_ok=True)
    table = pt.Experiment(
        systems,
        results,
        qrels,
        [nDCG @ 10, RR(rel=2) @ 10, R(rel=2) @ 100],
        baseline="untrained",
        save_dir=str(runs),
        save_mode="overwrite",
        validate="ignore",
    )
    table.to_csv(output / "table.csv", index=False)
    print(table.to_string(index=False))
    return table


def candidates(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Load the documents to re-rank of the judged queries, with texts, and the judgements."""
    dataset = pt.get_dataset(name)
    topics, qrels = dataset.get_topicsqrels()
    topics = topics[topics["qid"].isin(qrels["qid"])][["qid", "query"]]
    results = dataset.get_results().drop(columns="query", errors="ignore").merge(topics, on="qid")
    text = pt.text.get_text(dataset, ["text"])
    return pt.model.add_ranks(text(results)), qrels


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", default="irds:msmarco-passage/train", help="a PyTerrier dataset with docpairs")
    parser.add_argument("--valid", default="irds:msmarco-passage/trec-dl-2019/judged", help="one with scoreddocs")
    parser.add_argument("--test", default="irds:msmarco-passage/trec-dl-2020/judged", help="one with scoreddocs")
    parser.add_argument("--model", default="microsoft/mpnet-base", help="a model on the Hugging Face hub, or a folder")
    parser.add_argument("--device", help="where to train, if not on a GPU of each process")
    parser.add_argument("--deepspeed", help="a file with settings of DeepSpeed")
    parser.add_argument("--output", default="runs/msmarco", help="the folder to write")
    parser.add_argument("--target", default="distributed", choices=["listwise", "softmax", "distributed", "adaptive"])
    parser.add_argument("--max-pairs-per-query", type=int, default=128)
    parser.add_argument("--limit", type=int, help="how many triples to train with in all")
    parser.add_argument("--store-texts", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--query-length", type=int, default=20, help="tokens of a query")
    parser.add_argument("--document-length", type=int, default=200, help="tokens of a document")
    parser.add_argument("--learning-rate", type=float, help="if not the paper's, 5e-7")
    parser.add_argument("--batch-size", type=int, help="if not the paper's, 128")
    parser.add_argument("--eval-steps", type=int, help="if not the paper's, 500")
    parser.add_argument("--max-steps", type=int, help="where to stop if not early")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    main(read_options())
