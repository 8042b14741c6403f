"""Index a corpus on a cluster of Ray, or search the shards of one; to be submitted as a job.

On this machine, with two workers::

    python examples/index_with_ray.py "corpus/*.jsonl.gz" --model runs/mpnet/model --index corpus.flex --workers 2

On a cluster whose machines see /shared, with a GPU for each of 16 workers::

    ray job submit --address http://HEAD:8265 --working-dir examples -- python index_with_ray.py \
        "/shared/corpus/*.jsonl.gz" --model /shared/model --index /shared/corpus.flex --workers 16 --gpus 1

The same command goes on after an interruption. With ``--keep-shards`` the index stays in shards, which
``ShardedIndex("/shared/corpus.flex.shards")`` searches.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from pyterrier_selfdistill import RayIndexer, SelfDistillBiEncoder, SelfDistillIndex

logger = logging.getLogger("index_with_ray")


def main(options: argparse.Namespace) -> None:
    """Encode the corpus, and join its shards if they are not to be kept."""
    encoder = SelfDistillBiEncoder.from_pretrained(options.model, batch_size=options.batch_size, device="cpu")
    indexer = RayIndexer(
        encoder,
        SelfDistillIndex(options.index, verbose=False),
        workers=options.workers,
        num_cpus=options.cpus,
        num_gpus=options.gpus,
        shard_size=options.shard_size,
        fields=options.fields,
        overwrite=options.overwrite,
        verbose=True,
    )
    if options.keep_shards:
        shards = indexer.encode(options.corpus)
        logger.info("%d documents in %d shards at %s", len(shards), len(shards.parts), indexer.folder)
    else:
        index = indexer.index(options.corpus)
        logger.info("%d documents at %s", len(index), index.index_path)


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="+", help="files of JSON lines, TSV or Parquet, or patterns of their paths")
    parser.add_argument("--model", required=True, help="a folder that all machines see, or a name on the hub")
    parser.add_argument("--index", required=True, help="the folder of the index, on storage that all machines share")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--cpus", type=int, default=1, help="cores of a worker")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of a worker")
    parser.add_argument("--batch-size", type=int, default=32, help="texts that a worker encodes at once")
    parser.add_argument("--shard-size", type=int, default=1 << 16, help="documents of a shard")
    parser.add_argument("--fields", nargs="+", default=["text"])
    parser.add_argument("--overwrite", action="store_true")
    parser.add_argument("--keep-shards", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(read_options())
