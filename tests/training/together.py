"""Trainings for one process, and for two that torchrun starts: ``together.py MODEL FOLDER`` writes ``FOLDER/RANK.pt``.

In two processes, each has half of every batch. At the end, the second process raises an error while both train.
"""

import logging
import os
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import count
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pyterrier_selfdistill import (
    AdaptiveMarginLoss,
    SelfDistillationLoss,
    SelfDistillBiEncoder,
    SelfDistillTrainer,
    SoftmaxLoss,
)
from pyterrier_selfdistill.utils.processes import in_turn, joined

VERBS = ["sort", "read", "write"]
THINGS = ["table", "matrix", "file", "array", "row", "column", "value"]
DOCUMENTS = [f"{verb} the {thing}" for verb in VERBS for thing in THINGS]
ROWS = []
"""21 triples of different texts with two negatives: two batches of eight and one of five."""
for number, document in enumerate(DOCUMENTS):
    ROWS.append((f"mean {document}", document, DOCUMENTS[number - 1] + " by mean", DOCUMENTS[number - 5] + " of a d"))

LOSSES = {
    "constant, in-batch": AdaptiveMarginLoss(0.3, in_batch=True),
    "released pairing": AdaptiveMarginLoss("adaptive", in_batch=True, pairing="released"),
    "distributed": AdaptiveMarginLoss(),
    "softmax, cached": SoftmaxLoss("softmax", 20.0),
    "listwise, cached, matryoshka": SoftmaxLoss("listwise", 20.0),
}

CORPUS = [{"docno": f"d{number}", "text": document} for number, document in enumerate(DOCUMENTS)]
TOPICS = pd.DataFrame({"qid": THINGS, "query": [f"mean {thing}" for thing in THINGS]})
PAIRS = TOPICS.merge(pd.DataFrame(CORPUS), how="cross")
QRELS = PAIRS[["qid", "docno"]].assign(label=PAIRS["text"].str.split().str[-1].eq(PAIRS["qid"]).astype(int))


def load(model):
    """Load an encoder without dropout, which differs between processes."""
    encoder = SelfDistillBiEncoder.from_pretrained(model, device="cpu", dtype="float32")
    for module in encoder.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return encoder


def losses_and_gradients(model, rank=0, processes=1):
    """Compute all losses of seven rows, of which two processes have three and four, in float64."""
    start, end = 7 * rank // processes, 7 * (rank + 1) // processes
    results = {}
    encoder = load(model)
    for name, of_embeddings in LOSSES.items():
        trained = encoder.copy().model.double().train()
        loss = SelfDistillationLoss(trained, of_embeddings, mini_batch_size=2 if "cached" in name else None)
        on_texts = loss
        if "matryoshka" in name:
            loss = MatryoshkaLoss(trained, on_texts, [32, 8], [1.0, 0.5])
        if processes > 1:
            # as the trainer of sentence-transformers does
            wrapped = DistributedDataParallel(trained, find_unused_parameters=True, broadcast_buffers=False)
            loss.model = on_texts.model = wrapped
        columns = []
        for texts in zip(*ROWS[start:end], strict=True):
            features = trained.preprocess(list(texts))
            # DDP takes only tensors, as a data loader makes them
            columns.append({name: value for name, value in features.items() if isinstance(value, torch.Tensor)})
        value = loss(columns, None)
        value.backward()
        gradients = {name: weights.grad for name, weights in trained.named_parameters() if weights.grad is not None}
        results[name] = (value.item(), gradients)
    return results


def trainer(encoder, folder, processes=1, **options):
    """Make a trainer with global batches of eight."""
    # otherwise Adam makes whole steps of gradients that are zero but for rounding
    defaults = {"learning_rate": 1e-3, "adam_epsilon": 1e-4, "per_device_train_batch_size": 8 // processes}
    defaults |= {"num_train_epochs": 2, "logging_steps": 1, "eval_steps": 2, "save_steps": 2}
    return SelfDistillTrainer(encoder, folder, **{**defaults, "bf16": False, "verbose": False, **options})


def result(trained):
    """Keep the results of a training."""
    return {
        "weights": trained.encoder.model.state_dict(),
        "history": trained.history,
        "summary": trained.encoder.training_summary,
        "vectors": trained.encoder.encode_docs(DOCUMENTS),
    }


@contextmanager
def failing(call, error, owner=SelfDistillationLoss, name="forward"):
    """Raise an error in a step of a training, or in another call."""
    compute, calls = getattr(owner, name), count(1)

    def fail(*arguments, **options):
        if next(calls) == call:
            raise error
        return compute(*arguments, **options)

    with patch.object(owner, name, fail):
        yield


def train(model, folder, processes=1):
    """Train in several ways. Two processes are interrupted in the sixth step of the first, and resume the fourth."""
    make = partial(trainer, load(model), processes=processes)
    rows = [row[:3] for row in ROWS]
    plain = [("", "sort", "read"), *rows], PAIRS, QRELS
    if processes > 1:
        with failing(6, KeyboardInterrupt), suppress(KeyboardInterrupt):
            make(folder / "plain").fit_triples(*plain)
    mined = {"rounds": 2, "corpus": CORPUS, "target": "adaptive", "in_batch": True, "matryoshka_dims": [32, 8]}
    mined |= {"mini_batch_size": 3, "gradient_accumulation_steps": 2}
    several = make(folder / "several", prompts={"one": {"query": "read: "}}, num_train_epochs=1)
    several.fit_triples({"one": rows, "two": ROWS[:11]}, {"one": PAIRS}, {"one": QRELS})
    return {
        "plain": result(make(folder / "plain", resume=True).fit_triples(*plain)),
        "mined": result(make(folder / "mined", **mined).fit(PAIRS, QRELS)),
        "several": result(several),
    }


def train_for_nothing(model, folder, processes):
    """Train in mixed precision, where no step is better than the encoder before training."""
    encoder = load(model)
    found = encoder(PAIRS)
    first = found[["qid", "docno"]].assign(label=(found["rank"] == 0).astype(int))
    trained = trainer(encoder, folder, processes, bf16=True, max_steps=2).fit_triples(ROWS, PAIRS, first)
    return result(trained) | {"start": encoder.model.state_dict(), "start vectors": encoder.encode_docs(DOCUMENTS)}


def errors(model, folder, rank, processes):
    """Cause an error in one of the processes or in all, and keep the errors."""
    make = partial(trainer, load(model), processes=processes)
    attempts = {
        "exists": lambda: make(folder / "plain").fit_triples(ROWS),
        "different": lambda: make(folder / "different").fit_triples(ROWS[rank:]),
        "few": lambda: make(folder / "few").fit_triples(ROWS[:1]),
        "few for a batch": lambda: make(folder / "few", loss=MultipleNegativesRankingLoss).fit_triples(ROWS[:7]),
        "nan": lambda: make(folder / "nan", learning_rate=1e30).fit_triples(ROWS),
    }
    raised = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            raised[name] = f"{type(error).__name__}: {error}"
    return raised


def main(model, folder):
    """Do all of it in one of two processes."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    messages = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("pyterrier_selfdistill").addHandler(handler)
    with joined(torch.device("cpu")):
        results = {"losses": losses_and_gradients(model, rank, processes)}
        with in_turn():
            results["turn"] = time.time()
            time.sleep(0.1)
    results |= train(model, folder, processes)
    results["messages"] = messages
    results["kept"] = train_for_nothing(model, folder / "kept", processes)
    results["errors"] = errors(model, folder, rank, processes)
    torch.save(results, folder / f"{rank}.pt")
    with failing(3, RuntimeError("the second process dies")) if rank == 1 else nullcontext():
        trainer(load(model), folder / "dying", processes).fit_triples(ROWS)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
