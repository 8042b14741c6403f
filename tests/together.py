"""What the tests have one process do, and two that torchrun starts: ``together.py MODEL FOLDER``.

The functions are the same in both, with half the batch in each of two. What became of it is written to
``FOLDER/RANK.pt``. At the end of the script the second process raises an error while both train.
"""

import logging
import os
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path

import pandas as pd
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pyterrier_selfdistill import (
    AdaptiveMarginLoss,
    CalibratedLoss,
    SelfDistillationLoss,
    SelfDistillBiEncoder,
    SelfDistillTrainer,
)
from pyterrier_selfdistill.utils.processes import agree, in_turn, joined

VERBS = ["sort", "read", "write"]
THINGS = ["table", "matrix", "file", "array", "row", "column", "value"]
DOCUMENTS = [f"{verb} the {thing}" for verb in VERBS for thing in THINGS]
ROWS = []
"""21 triples of different texts with two negatives: two batches of eight and one of five."""
for number, document in enumerate(DOCUMENTS):
    ROWS.append((f"mean {document}", document, DOCUMENTS[number - 1] + " by mean", DOCUMENTS[number - 5] + " of a d"))

LOSSES = {
    "constant": (AdaptiveMarginLoss(0.3), 1),
    "constant, in-batch": (AdaptiveMarginLoss(0.3, in_batch=True), 1),
    "adaptive": (AdaptiveMarginLoss("adaptive"), 1),
    "adaptive, in-batch": (AdaptiveMarginLoss("adaptive", in_batch=True), 1),
    "adaptive, in-batch, two negatives": (AdaptiveMarginLoss("adaptive", in_batch=True), 2),
    "released pairing, two negatives": (AdaptiveMarginLoss("adaptive", in_batch=True, pairing="released"), 2),
    "distributed": (AdaptiveMarginLoss(), 1),
    "distributed, two negatives": (AdaptiveMarginLoss(error="l1"), 2),
    "calibrated": (CalibratedLoss(), 1),
    "calibrated, two negatives": (CalibratedLoss(), 2),
    "calibrated, matryoshka": (CalibratedLoss(), 1),
}
"""Losses, with the number of negatives."""

CORPUS = [{"docno": f"d{number}", "text": document} for number, document in enumerate(DOCUMENTS)]
TOPICS = pd.DataFrame({"qid": THINGS, "query": [f"mean {thing}" for thing in THINGS]})
PAIRS = TOPICS.merge(pd.DataFrame(CORPUS), how="cross")
QRELS = PAIRS[["qid", "docno"]].assign(label=PAIRS["text"].str.split().str[-1].eq(PAIRS["qid"]).astype(int))


class Messages(logging.Handler):
    """Keeps the warnings of the package."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.kept = []
        logging.getLogger("pyterrier_selfdistill").addHandler(self)

    def emit(self, record):
        self.kept.append(record.getMessage())


def load(model):
    """Load an encoder without dropout, which is of other rows in each process."""
    encoder = SelfDistillBiEncoder.from_pretrained(model, device="cpu", dtype="float32")
    for module in encoder.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return encoder


def losses_and_gradients(model, rank=0, processes=1):
    """Compute all losses of seven rows, three and four of which two processes have."""
    start, end = 7 * rank // processes, 7 * (rank + 1) // processes
    results = {}
    encoder = load(model)
    for name, (loss, negatives) in LOSSES.items():
        trained = encoder.copy().model.train()
        if processes > 1:
            # as sentence-transformers sets it up
            wrapped = DistributedDataParallel(trained, find_unused_parameters=True, broadcast_buffers=False)
        else:
            wrapped = trained
        columns = []
        for texts in list(zip(*ROWS[start:end], strict=True))[: 2 + negatives]:
            features = trained.preprocess(list(texts))
            # DDP loses its way where there are others, which no data loader makes
            columns.append({name: value for name, value in features.items() if isinstance(value, torch.Tensor)})
        on_texts = SelfDistillationLoss(trained, loss)
        if name.endswith("matryoshka"):
            on_texts = MatryoshkaLoss(trained, on_texts, [32, 8], [1.0, 0.5])
            on_texts.loss.model = wrapped
        on_texts.model = wrapped
        value = on_texts(columns, None)
        value.backward()
        gradients = {name: weights.grad for name, weights in trained.named_parameters() if weights.grad is not None}
        results[name] = (value.item(), gradients)
    return results


def trainer(encoder, folder, processes=1, **options):
    """Make a trainer with batches of eight."""
    defaults = {
        "learning_rate": 1e-3,
        # otherwise Adam makes steps of gradients that are zero but for rounding
        "adam_epsilon": 1e-4,
        "per_device_train_batch_size": 8 // processes,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "eval_steps": 2,
        "save_steps": 2,
        "bf16": False,
        "verbose": False,
    }
    return SelfDistillTrainer(encoder, folder, **{**defaults, **options})


def result(trained):
    """Keep what a trainer has made."""
    return {
        "weights": trained.encoder.model.state_dict(),
        "history": trained.history,
        "summary": trained.encoder.training_summary,
    }


def train(model, folder, processes=1):
    """Train in several ways."""
    encoder = load(model)
    make = partial(trainer, encoder, processes=processes)
    faulty = ("", "sort", "read")
    rows = [row[:3] for row in ROWS]
    plain = make(folder / "plain").fit_triples([faulty, *rows], PAIRS, QRELS)
    options = {"target": "adaptive", "in_batch": True, "gradient_accumulation_steps": 2}
    accumulated = make(folder / "accumulated", **options).fit_triples(ROWS)
    cached = make(folder / "cached", target="adaptive", in_batch=True, mini_batch_size=3).fit_triples(ROWS)
    mined = make(folder / "mined", rounds=2, corpus=CORPUS, num_train_epochs=1).fit(PAIRS, QRELS)
    found = encoder(PAIRS)
    first = found[["qid", "docno"]].assign(label=(found["rank"] == 0).astype(int))
    kept = make(folder / "kept", num_train_epochs=1).fit_triples(rows, PAIRS, first)
    sources = {"one": rows, "two": ROWS[:11]}
    several = make(folder / "several", prompts={"one": {"query": "read: "}})
    several.fit_triples(sources, {"one": PAIRS}, {"one": QRELS})
    trained = {"plain": plain, "accumulated": accumulated, "cached": cached, "mined": mined, "kept": kept}
    trained["several"] = several
    return {name: result(trainer) for name, trainer in trained.items()}


def train_interrupted(model, folder, processes):
    """Interrupt all processes in the sixth step, and go on after the fourth."""
    rows = [("", "sort", "read"), *(row[:3] for row in ROWS)]
    forward, steps = SelfDistillationLoss.forward, count(1)

    def interrupted(*arguments, **options):
        if next(steps) == 6:
            raise KeyboardInterrupt
        return forward(*arguments, **options)

    SelfDistillationLoss.forward = interrupted
    try:
        trainer(load(model), folder, processes).fit_triples(rows, PAIRS, QRELS)
    except KeyboardInterrupt:
        pass
    finally:
        SelfDistillationLoss.forward = forward
    resumed = trainer(load(model), folder, processes, resume=True).fit_triples(rows, PAIRS, QRELS)
    return {"resumed": result(resumed)}


def train_in_16_bits(model, folder, processes):
    """Train in mixed precision, and encode with the trained model and with the saved one."""
    trained = trainer(load(model), folder, processes, bf16=True).fit_triples(ROWS, PAIRS, QRELS)
    saved = SentenceTransformer(str(folder / "model"), device="cpu")
    return {
        "measure": trained.history["nDCG@10"][0],
        "vectors": trained.encoder.encode_docs(DOCUMENTS),
        "saved": saved.encode_document(DOCUMENTS),
    }


def errors(model, folder, rank, processes):
    """Do what fails, in one of the processes or in all, and keep the errors."""
    make = partial(trainer, load(model), processes=processes)

    def fail():
        raise LookupError(f"process {rank} cannot")

    def fail_in_the_second():
        if rank == 1:
            fail()

    attempts = {
        "exists": lambda: make(folder / "plain").fit_triples(ROWS),
        "others": lambda: make(folder / "plain", resume=True, seed=1).fit_triples(ROWS),
        "different": lambda: make(folder / "different").fit_triples(ROWS[rank:]),
        "few": lambda: make(folder / "few").fit_triples(ROWS[:1]),
        "few for a batch": lambda: make(folder / "few", loss=MultipleNegativesRankingLoss).fit_triples(ROWS[:7]),
        "nan": lambda: make(folder / "nan", learning_rate=1e30).fit_triples(ROWS),
        "first": lambda: agree(fail),
        "second": lambda: in_turn(fail_in_the_second),
        "pickled": lambda: agree(lambda: fail),
    }
    raised = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except Exception as error:
            raised[name] = (type(error).__name__, str(error))
    return raised


def die(model, folder, rank, processes):
    """Raise an error in the second process, in the third step."""
    forward, steps = SelfDistillationLoss.forward, count(1)

    def dying(*arguments, **options):
        if rank == 1 and next(steps) == 3:
            (folder / "died").write_text(str(time.time()))
            raise RuntimeError("the second process dies")
        return forward(*arguments, **options)

    SelfDistillationLoss.forward = dying
    trainer(load(model), folder / "dying", processes).fit_triples(ROWS)


def main(model, folder):
    """Do all of it."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    messages = Messages()
    with joined(torch.device("cpu")):
        results = {"losses": losses_and_gradients(model, rank, processes)}
    results |= train(model, folder, processes)
    results["messages"] = list(messages.kept)
    results |= train_interrupted(model, folder / "resumed", processes)
    results |= train_in_16_bits(model, folder / "bf16", processes)
    results["errors"] = errors(model, folder, rank, processes)
    torch.save(results, folder / f"{rank}.pt")
    die(model, folder, rank, processes)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
