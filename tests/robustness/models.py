"""Entry points of losses, trainers, encoders, indexes and their folders."""

import dataclasses
import inspect
import json
import math
import shutil
from functools import partial

import numpy as np
import pandas as pd
import torch
from ir_measures import RR, Measure, P, nDCG
from torch import nn

from pyterrier_selfdistill import (
    AdaptiveMarginLoss,
    Negatives,
    RetrievalEvaluator,
    SelfDistillBiEncoder,
    SelfDistillIndex,
    SelfDistillTrainer,
)

from . import changes as c
from .data import RECORDS, RESULTS, some_judged
from .engine import entry

NO_MEASURES = [None, [], "nDCG@10", ["nDCX@10"], [RR, 3], Measure]
FIELDS = ["text", [], [None], ["text", 3]]
INDEXED = pd.DataFrame({"docno": [f"d{number}" for number in range(len(c.TEXTS))], "text": c.TEXTS})
QUERIES = ["sort the rows", "plot a matrix"]


def options_of(cls, *others, **malformed):
    """Change each option of a class."""
    return [*c.options(*set(inspect.signature(cls).parameters) - set(malformed) - set(others), **malformed)]


entry(
    "Negatives",
    options_of(Negatives, number=[0, None], range_min=["3"], range_max=[0], relative_margin=[1.5, -0.1]),
    lambda tools, rng: {"number": rng.randint(1, 4), "range_min": 2, "relative_margin": rng.choice([None, 0.0, 1.0])},
    lambda tools, **options: dataclasses.asdict(Negatives(**options)),
    milliseconds=5,
)

entry(
    "AdaptiveMarginLoss, options",
    options_of(AdaptiveMarginLoss, target=[0, 2.5, "Adaptive", None], in_batch=["no", 2], error=["L2", ""]),
    lambda tools, rng: {"target": rng.choice(["adaptive", 0.5, 2.0]), "in_batch": rng.random() < 0.5},
    lambda tools, **options: AdaptiveMarginLoss(**options).get_config_dict(),
    milliseconds=5,
)

BAD_TRAINER = {
    "target": [0, 2.5, "Adaptive"],
    "loss": ["adaptive", 3, nn.Identity()],
    "rounds": [0, None],
    "measures": NO_MEASURES,
    "fields": FIELDS,
    "seed": [-1, 2**32],
    "learning_rte": [1e-5, None],
    "encoder": [None, "model", SelfDistillBiEncoder, nn.Identity()],
    "output_dir": [None, ""],
}


def trainer_options(tools, encoder, output_dir, **options):
    trainer = SelfDistillTrainer(encoder, output_dir, **options)
    return [list(value) if isinstance(value, tuple) else value for value in (trainer.target, trainer.measures)]


entry(
    "SelfDistillTrainer",
    options_of(SelfDistillTrainer, "arguments", **BAD_TRAINER),
    lambda tools, rng: {
        **{"encoder": tools.encoder, "output_dir": tools.path(), "target": rng.choice(["softmax", "adaptive", 0.5])},
        **{"patience": rng.randint(1, 9), "verbose": rng.random() < 0.5, "measures": [nDCG @ 10]},
    },
    trainer_options,
)

LENGTHS = {f"{text}_length": [0, 65, "3"] for text in ("query", "document")}
NO_DTYPES = ["int4", "", "Tensor", None]
NO_MODELS = [None, "", "/no/such/folder", True]


def pretrained(tools, **options):
    encoder = SelfDistillBiEncoder.from_pretrained(**options)
    return encoder.encode_queries(QUERIES), encoder.query_length, encoder.document_length


entry(
    "SelfDistillBiEncoder.from_pretrained",
    c.options("pooling", "verbose", "query_prompt", **LENGTHS, device=["gpu"], dtype=NO_DTYPES, name_or_path=NO_MODELS),
    lambda tools, rng: {"device": "cpu", "name_or_path": tools.saved, "query_length": rng.randint(9, 64)},
    pretrained,
    milliseconds=70,
)

TENSORS = ("query", "positive", "negative")
LOSSES = [AdaptiveMarginLoss(error="soft", detach_target=True), AdaptiveMarginLoss("adaptive", in_batch=True)]
SAME_TENSORS = {
    "with gradients": lambda tensor: tensor.clone().requires_grad_(),
    "not contiguous": lambda tensor: tensor.mT.contiguous().mT,
    "tiny": lambda tensor: tensor * 1e-9,
    "huge": lambda tensor: tensor * 1e9,
}
BAD_TENSORS = {
    "integers": lambda tensor: (100 * tensor).long(),
    "one dimension": torch.flatten,
    "one row more": lambda tensor: torch.cat([tensor, tensor[:1]]),
    "one column more": lambda tensor: torch.cat([tensor, tensor[..., :1]], dim=-1),
    "no rows": lambda tensor: tensor[:0],
}
NO_TENSORS = [*c.UNFIT, None, [[0.5]], np.eye(2), torch.eye(2) > 0]


def some_tensors(tools, rng):
    rows, columns, generator = rng.randint(1, 4), rng.randint(1, 3), torch.Generator().manual_seed(rng.randint(0, 99))
    drawn = [torch.randn(shape, generator=generator) for shape in [(rows, 4), (rows, 4), (rows, columns, 4)]]
    drawn[rng.randint(0, 2)][0] *= rng.choice([0, 1, 1, 1])
    return {"loss": rng.choice(LOSSES), **dict(zip(TENSORS, drawn, strict=True))}


def loss_of_tensors(tools, loss, **tensors):
    value = loss(**tensors)
    if value.requires_grad:
        value.backward()
    gradients = [tensor.grad for tensor in tensors.values() if tensor.grad is not None]
    return value.item(), all(gradient.isfinite().all() for gradient in gradients)


entry(
    "AdaptiveMarginLoss, tensors",
    [
        *[c.each(name, SAME_TENSORS) for name in TENSORS],
        *[c.each(name, BAD_TENSORS, effect=c.NONE) for name in TENSORS],
        *[c.replace(name, NO_TENSORS) for name in TENSORS],
    ],
    some_tensors,
    loss_of_tensors,
    milliseconds=5,
)


class TrainingReachedError(Exception):
    """All data was accepted; training itself would take a second."""


def reach_training(model):
    raise TrainingReachedError


def fit(tools, results, qrels, valid_results, valid_qrels):
    trainer = SelfDistillTrainer(tools.encoder, tools.path(), verbose=False, loss=reach_training)
    try:
        trainer.fit(results, qrels, valid_results, valid_qrels)
    except TrainingReachedError:
        return "training"


entry(
    "trainer.fit",
    [
        *RESULTS,
        *c.frame("valid_results", ["qid", "query", "docno", "text"], "topics", "results"),
        *c.qrels("valid_qrels"),
        *[c.replace(f"valid_{name}", [None], name, "topics") for name in ("results", "qrels")],
    ],
    lambda tools, rng: some_judged(rng, "valid_", c.TEXTS) | some_judged(rng, "", c.TEXTS),
    fit,
    lambda answer, arguments: answer == "training",
    milliseconds=40,
)


def loop_arguments(tools, **arguments):
    trainer = SelfDistillTrainer(tools.encoder, tools.path(), verbose=False, **arguments)
    return trainer.fit_triples([("sort", "sort the rows", "plot")]).encoder.training_summary["steps"]


entry(
    "trainer.fit_triples, arguments",
    c.options(learning_rate=["fast"], max_steps=["one"], eval_strategy=["always"], optim=["best"], logging_steps=["3"]),
    lambda tools, rng: {"max_steps": 1, "learning_rate": 1e-5},
    loop_arguments,
    lambda answer, arguments: answer == 1,
    milliseconds=250,
)

TEXT_FORMS = {
    "a Series": lambda texts: pd.Series(texts, index=range(len(texts))[::-1], dtype=object),
    "an array": lambda texts: np.array(texts, dtype=object),
    "an array of fixed length": lambda texts: np.array(texts, dtype=str),
    "an iterator": iter,
    "categories": lambda texts: pd.Series(texts, dtype="category"),
}
NOT_ALL_TEXTS = {f"and {value!r}": lambda texts, value=value: [*texts, value] for value in c.NOT_ENCODED}

for role in ("queries", "docs"):
    entry(
        f"encoder.encode_{role}",
        [
            *c.options(batch_size=[0, "3"]),
            c.each("texts", TEXT_FORMS, effect=c.UNSURE),
            c.each("texts", NOT_ALL_TEXTS, effect=c.NONE),
            c.replace("texts", ["sort", "", None, 3, b"sort", {"sort": 1}, object()]),
        ],
        lambda tools, rng: {"texts": rng.choices([*c.ALL_TEXTS, "", " "], k=rng.randint(0, 5)), "batch_size": 3},
        lambda tools, name=f"encode_{role}", **given: getattr(tools.encoder, name)(**given),
    )


def encoder_input(*columns, any_order=False):
    """Change a frame with texts to encode; PyTerrier itself refuses anything but a frame."""
    texts = [name for name in columns if name in ("query", "text")]
    return [
        *c.same_frame("frame", *columns, any_order=any_order),
        c.on_frame("frame", RECORDS),
        *[c.cell("frame", name, c.NOT_ENCODED) for name in texts],
    ]


def keyed(rows):
    """Key the vectors, or else the scores and ranks, by query and document, in whatever order the rows are."""
    found = pd.DataFrame(rows)
    values = ["score", "rank"] if "score" in found else [name for name in ("query_vec", "doc_vec") if name in found]
    keys = [name for name in ("qid", "docno") if name in found]
    return {tuple(row[keys]): list(row[values]) for _, row in found.iterrows()}


VECTORS = {
    "lists": lambda vector: np.asarray(vector).tolist(),
    "float64": lambda vector: np.asarray(vector, dtype=np.float64),
    "tensors": lambda vector: torch.tensor(np.asarray(vector)),
}
BAD_VECTORS = [3.0, "vector", np.ones(3, dtype=np.float32), np.full(32, math.nan)]
NO_VECTORS = [*c.MISSING, *BAD_VECTORS, [], {}, np.ones((1, 32)), ["x"] * 32, [None] * 32]


def vectors(argument, column, *names):
    """Give vectors other types, or no vectors."""
    typed = {text: lambda values, form=form: list(map(form, values)) for text, form in VECTORS.items()}
    return [
        c.column(argument, column, typed),
        c.cell(argument, column, NO_VECTORS),
        *[group[:2] for group in c.without(argument, column, *names)],
    ]


NO_QIDS = c.cell("frame", "qid", c.MISSING)
MASKS = (["unknown"], "d1", 3, [3], [None], np.ones(3), np.full(12, math.nan), np.array(["1"] * 12), [True])


def some_vectors(tools, rng):
    return pd.DataFrame(tools.encoder(c.some_topics(rng, c.TEXTS)))


def retriever(tools, mask=None, **options):
    index = SelfDistillIndex(tools.indexed, verbose=False)
    if mask is not None:
        options["mask"] = index.mask(mask) if isinstance(mask, list | str | int) and mask != [True] else mask
    return index.retriever(**options)


entry(
    "encoder(queries)",
    [*encoder_input("qid", "query", any_order=True), *c.without("frame", "query")],
    lambda tools, rng: {"frame": c.some_topics(rng)},
    lambda tools, frame: keyed(tools.encoder(frame)),
)
entry(
    "encoder(documents)",
    [*encoder_input("docno", "text", any_order=True), *c.without("frame", "text")],
    lambda tools, rng: {"frame": c.some_documents(rng)},
    lambda tools, frame: keyed(tools.encoder(frame)),
)
entry(
    "encoder(results)",
    [*encoder_input("qid", "query", "docno", "text"), c.cell("frame", "query_vec", BAD_VECTORS), NO_QIDS],
    lambda tools, rng: {"frame": c.some_results(rng, c.TEXTS)},
    lambda tools, frame: keyed(tools.encoder(frame)),
)
entry(
    "index.retriever",
    [
        *c.same_frame("frame", "qid", "query"),
        *vectors("frame", "query_vec", "qid"),
        *c.options("batch_size", "drop_query_vec", num_results=[0, None]),
        c.replace("mask", MASKS, "mask", "document", "docnos"),
        NO_QIDS,
    ],
    lambda tools, rng: {"frame": some_vectors(tools, rng), "num_results": rng.randint(1, 15)},
    lambda tools, frame, **options: keyed(retriever(tools, **options)(frame)),
)
entry(
    "index.scorer",
    [
        *c.same_frame("frame", "qid", "docno", "query"),
        *vectors("frame", "query_vec", "qid", "docno"),
        *c.options(num_results=[0, "3"]),
        c.cell("frame", "docno", [*c.NOT_TEXTS, "unknown"]),
    ],
    lambda tools, rng: {"frame": some_vectors(tools, rng).merge(INDEXED, how="cross"), "num_results": 5},
    lambda tools, frame, **options: keyed(SelfDistillIndex(tools.indexed, verbose=False).scorer(**options)(frame)),
)


def some_evaluation(tools, rng):
    results = c.some_results(rng, c.TEXTS)
    topics, corpus = results[["qid", "query"]].drop_duplicates(), results[["docno", "text"]].drop_duplicates()
    given = rng.choice([{"topics_or_results": results}, {"topics_or_results": topics, "corpus": corpus}])
    return {"qrels": c.some_qrels(rng, results, results), "measures": [P @ 2, RR], **given}


entry(
    "RetrievalEvaluator",
    [
        *c.frame("topics_or_results", ["qid", "query"], "topics", "results"),
        *c.qrels("qrels"),
        *c.options(num_results=[0], fields=FIELDS),
        c.replace("corpus", [3, "docs.tsv", b"docs", True]),
        c.replace("measures", NO_MEASURES, "measure"),
    ],
    some_evaluation,
    lambda tools, topics_or_results, qrels, measures, **options: RetrievalEvaluator(
        topics_or_results, qrels, measures, **options
    )(tools.encoder.model),
    milliseconds=70,
)


def build_retriever(tools, corpus, **options):
    retriever = tools.encoder.build_retriever(corpus, **{"path": tools.path(), **options})
    return keyed(retriever.search(QUERIES[0]))


entry(
    "encoder.build_retriever",
    [
        *c.records("corpus", docno=c.NOT_TEXTS, text=c.NOT_TEXTS),
        *c.options("overwrite", num_results=[0], fields=FIELDS, path=[None, ""]),
        c.replace("fields", [["title"]], "title"),
    ],
    lambda tools, rng: {"corpus": c.some_documents(rng, c.TEXTS)},
    build_retriever,
    milliseconds=70,
)


def build_index(tools, records, **options):
    index = SelfDistillIndex(tools.path(), verbose=False)
    rows = records.to_dict(orient="records") if isinstance(records, pd.DataFrame) else records
    index.indexer(**options).index(rows)
    docnos, found, _ = index.payload()
    return dict(zip(map(str, docnos), np.array(found), strict=True))


entry(
    "index.index",
    [
        *c.records("records", docno=c.NOT_ENCODED),
        *vectors("records", "doc_vec"),
        c.replace("mode", ["Create", None, 3, "", "append", True]),
    ],
    lambda tools, rng: {"records": pd.DataFrame(tools.encoder(c.some_documents(rng)))},
    build_index,
)

DAMAGES = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its last byte": lambda path: path.write_bytes(path.read_bytes().rstrip()[:-1]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def damage(name, cases, *names, effect=c.UNSURE):
    """Change a file of a copy of the folder, once there is one."""
    added = {f"{name} {text}": lambda damages, case=case: [*damages, (name, case)] for text, case in cases.items()}
    return c.each("damages", added, *(names or (name,)), effect=effect)


def entries(name, keys, values, *names):
    """Change entries of a file of JSON, or all of it; errors may name others than these, too."""

    def edit(put, path):
        path.write_text(json.dumps(json.loads(path.read_text()) | put if isinstance(put, dict) else put))

    puts = [*[{key: value} for key in keys for value in values], [], "text", 3, None]
    return damage(name, {f"with {put}": partial(edit, put) for put in puts}, name, *keys, *names)


WHOLE = [
    damage("another file", {"more": lambda path: path.write_text("more")}, effect=c.SAME),
    damage("another folder", {"more": lambda path: path.mkdir()}, effect=c.SAME),
    damage(".", {"removed": shutil.rmtree}, "no ", "folder", effect=c.NONE),
]
COUNTS = [None, "12", 0, -1, 11, 13, 1.5, [12], 10**12]
IDENTITIES = [3, "encoder", [], {"name": "model"}, {"checksum": 3, "name": None}]
SIZES = [None, "12", 0, -1, 16, 1.5, [], "gpt2"]
MODEL_FILES = ["modules.json", "model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json"]


def open_index(tools, damages):
    index = SelfDistillIndex(tools.damaged(tools.indexed, damages), verbose=False)
    return keyed((tools.encoder >> index.retriever(num_results=1)).search(QUERIES[0]))


entry(
    "SelfDistillIndex, damaged",
    [
        *WHOLE,
        entries("pt_meta.json", ["doc_count", "vec_size"], COUNTS, "vecs.f4"),
        entries("pt_meta.json", ["type", "format"], [None, "", "other", 3, ["dense_index"]], "expected"),
        entries("pt_meta.json", ["encoder"], IDENTITIES),
        *[damage(name, DAMAGES) for name in ("pt_meta.json", "vecs.f4", "docnos.npids")],
    ],
    lambda tools, rng: {"damages": []},
    open_index,
)

entry(
    "SelfDistillBiEncoder, damaged",
    [
        *WHOLE,
        entries("config.json", ["hidden_size", "model_type"], SIZES),
        *[damage(name, DAMAGES) for name in MODEL_FILES],
        *c.options("batch_size", "device", "text_field"),
    ],
    lambda tools, rng: {"damages": [], "batch_size": rng.randint(1, 9), "device": "cpu"},
    lambda tools, damages, **options: SelfDistillBiEncoder(
        tools.damaged(tools.saved, damages), **options
    ).encode_queries(QUERIES),
    milliseconds=35,
)


def save(tools, path, overwrite):
    saved = tools.encoder.copy().save(path, overwrite=overwrite)
    return SelfDistillBiEncoder(saved, device="cpu").encode_queries(QUERIES)


entry(
    "encoder.save",
    c.options("overwrite", path=[None, ""]),
    lambda tools, rng: {"path": tools.path(), "overwrite": True},
    save,
    milliseconds=75,
)
