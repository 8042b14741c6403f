"""Entry points of losses, trainers, encoders, indexes and their folders."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import torch
from ir_measures import RR, Measure, P, ScoredDoc, calc_aggregate, nDCG
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
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
from .changes import Kind
from .data import Results
from .engine import Change, Changes, Entry, Refusal, WrongAnswerError, plain

MEASURES = Kind(
    [[nDCG @ 10], (RR, P @ 5)], [[], (), None, "nDCG@10", ["nDCG@10"], [RR, "RR"], [None], 3, {}, [Measure]]
)
INDEXED = {f"d{number}": text for number, text in enumerate(c.TEXTS)}
FOUND = ["sort the rows", "plot a matrix"]


def plain_options(options: Any) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else plain(value) for name, value in options.items()}


class NegativesOptions(Entry):
    name = "Negatives"
    milliseconds = 5
    kinds = c.kinds(
        number=Kind(range(1, 5), c.POSITIVE.malformed),
        range_min=Kind(range(9), [-1, 1.5, *c.NOT_NUMBERS]),
        range_max=c.POSITIVE.or_none(),
        relative_margin=Kind([0.0, 0.05, 0.5, 1.0], [-0.1, 1.5, *c.NOT_NUMBERS]).or_none(),
    )
    changes = (c.options(**kinds),)

    def valid(self, rng: Random) -> dict[str, Any]:
        return c.some_options(rng, self.kinds)

    def call(self, **options: Any) -> Any:
        return dataclasses.asdict(Negatives(**options))

    def expected(self, **options: Any) -> Any:
        given = {"number": 1, "range_min": 0, "range_max": None, "relative_margin": None, **options}
        too_few = given["range_max"] is not None and given["range_max"] - given["range_min"] < given["number"]
        return Refusal(["ranks", "range_max"]) if too_few else given


class LossOptions(NegativesOptions):
    name = "AdaptiveMarginLoss, options"
    bad_targets = (0, -0.5, 2.5, "Adaptive", "", "0.5", None, True, math.nan, math.inf, ["adaptive"], b"adaptive", {})
    kinds = c.kinds(
        target=Kind(["distributed", "adaptive", 0.5, 1, 2.0], bad_targets),
        in_batch=c.FLAG,
        error=c.choice("l2", "l1", "soft"),
        detach_target=c.FLAG,
        pairing=c.choice("query", "released"),
    )
    changes = (c.options(**kinds),)

    def call(self, **options: Any) -> Any:
        return AdaptiveMarginLoss(**options).get_config_dict()

    def expected(self, **options: Any) -> Any:
        default = {"in_batch": False, "error": "l2", "detach_target": False, "pairing": "query"}
        given = {"target": "distributed", **default, **options}
        if given["in_batch"] and given["target"] == "distributed":
            return Refusal(["in_batch"])
        return Refusal(["pairing"]) if given["pairing"] == "released" and not given["in_batch"] else given


TENSORS = ("query", "positive", "negative")
LOSSES = [
    {"target": "distributed"},
    {"target": "distributed", "error": "soft", "detach_target": True},
    {"target": "adaptive"},
    {"target": "adaptive", "in_batch": True},
    {"target": "adaptive", "in_batch": True, "pairing": "released"},
    {"target": 0.5, "in_batch": True, "error": "l1"},
]
ERRORS = {"l2": np.square, "l1": np.abs, "soft": lambda difference: np.log1p(np.exp(-difference))}
SAME_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "with gradients": lambda tensor: tensor.clone().requires_grad_(),
    "not contiguous": lambda tensor: tensor.mT.contiguous().mT,
    "tiny": lambda tensor: tensor * 1e-9,
    "huge": lambda tensor: tensor * 1e9,
}
BAD_TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "integers": lambda tensor: (100 * tensor).long(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "one dimension": torch.flatten,
    "four dimensions": lambda tensor: tensor[None, None],
    "one row more": lambda tensor: torch.cat([tensor, tensor[:1]]),
    "one column more": lambda tensor: torch.cat([tensor, tensor[..., :1]], dim=-1),
    "no rows": lambda tensor: tensor[:0],
    "no columns": lambda tensor: tensor[..., :0],
}
NOT_TENSORS = [None, 3.0, "sort", [[0.5]], [], np.eye(2, dtype=np.float32), torch.eye(2) > 0]


def tensors(kinds: dict[str, Callable[[torch.Tensor], Any]]) -> list[Change]:
    return [c.change(name, kind, function) for name in TENSORS for kind, function in kinds.items()]


class LossOfTensors(Entry):
    name = "AdaptiveMarginLoss, tensors"
    milliseconds = 5
    double = Change("float64", lambda given: {**given, **{name: given[name].double() for name in TENSORS}}, TENSORS)
    bad = (tensors(BAD_TENSORS), *[c.replace(name, NOT_TENSORS) for name in TENSORS])
    changes = (Changes([tensors(SAME_TENSORS), [double]], malformed=bad),)

    def valid(self, rng: Random) -> dict[str, Any]:
        size, columns, dimension = rng.randint(1, 4), rng.randint(0, 3), rng.randint(2, 5)
        generator = np.random.default_rng(rng.randint(0, 1000))
        shapes = [(size, dimension)] * 2 + [(size, columns, dimension) if columns else (size, dimension)]
        drawn = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
        drawn[rng.randint(0, 2)][0] *= rng.choice([0, 1, 1, 1])
        return {"loss": rng.choice(LOSSES), **dict(zip(TENSORS, map(torch.tensor, drawn), strict=True))}

    def call(self, loss: dict[str, Any], **tensors: Any) -> Any:
        value = AdaptiveMarginLoss(**loss)(**tensors)
        if value.requires_grad:
            value.backward()
        gradients = [tensor.grad for tensor in tensors.values() if tensor.grad is not None]
        if not all(gradient.isfinite().all() for gradient in gradients):
            raise WrongAnswerError(f"gradients {gradients}")
        return value.item()

    def expected(self, loss: dict[str, Any], **tensors: torch.Tensor) -> Any:
        q, p, n = (tensor.double().numpy().reshape(-1, tensor.shape[-1]) for tensor in tensors.values())
        q, p, n = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (q, p, n))
        in_batch, errors = loss.get("in_batch", False), []
        for i in range(len(q)):
            for j in range(len(n)):
                o = j // (len(n) // len(q))
                row = i if in_batch and loss.get("pairing") != "released" else o
                margin = q[row] @ p[row] - (q[i] if in_batch else q[o]) @ n[j]
                target = (1 + p[i] @ n[j]) / 2 if isinstance(loss["target"], str) else loss["target"]
                if in_batch or loss["target"] == "distributed" or i == o:
                    errors.append(ERRORS[loss.get("error", "l2")](margin - target))
        return float(np.mean(errors))


class TrainerOptions(Entry):
    name = "SelfDistillTrainer"
    kinds = c.kinds(
        target=Kind(["calibrated", None, *LossOptions.kinds["target"].valid], LossOptions.kinds["target"].malformed),
        in_batch=c.FLAG,
        error=LossOptions.kinds["error"],
        loss=Kind(
            [None, MultipleNegativesRankingLoss, AdaptiveMarginLoss("adaptive")], ["adaptive", 3, nn.Identity(), [], {}]
        ),
        preset=c.choice("default", "paper"),
        negatives=Kind([1, 4, Negatives(2)], c.POSITIVE.malformed),
        min_label=c.POSITIVE,
        corpus=Kind([None, [{"docno": "d1", "text": "sort"}]], [3, "corpus.tsv", True, b"docs", 2.5]),
        fields=c.FIELDS.or_none(),
        rounds=Kind(range(1, 4), c.POSITIVE.malformed),
        valid_share=Kind([None, 0.1, 0.5], [0, 1, -0.1, "0.1", True, math.nan]),
        measures=MEASURES,
        patience=c.POSITIVE.or_none(),
        seed=c.SEED,
        resume=c.FLAG,
        overwrite=c.FLAG,
        verbose=c.FLAG,
        learning_rte=Kind([], [1e-5, None]),
    )
    encoders = c.replace("encoder", [None, 3, "model", SelfDistillBiEncoder, nn.Identity()], "SelfDistillBiEncoder")
    folders = c.replace("output_dir", [None, 3, "", b"run", ["run"], True])
    changes = (c.options(**{**kinds, "target": kinds["target"].or_none()}), Changes(malformed=[encoders, folders]))

    def valid(self, rng: Random) -> dict[str, Any]:
        kinds = {name: kind for name, kind in self.kinds.items() if kind.valid}
        return {"output_dir": self.tools.path(), "encoder": self.tools.encoder, **c.some_options(rng, kinds)}

    def call(self, encoder: Any, output_dir: Any, **options: Any) -> Any:
        trainer = SelfDistillTrainer(encoder, output_dir, **options)
        return plain_options({name: getattr(trainer, name) for name in options if hasattr(trainer, name)})

    def expected(self, encoder: Any, output_dir: Any, **options: Any) -> Any:
        given = {"target": None, "in_batch": False, "error": "l2", "rounds": 1, "preset": "default", **options}
        target = given["target"] or {"default": "calibrated", "paper": "distributed"}[given["preset"]]
        has_loss = given.get("loss") is not None
        refusals = {
            "resume": given.get("resume") and given.get("overwrite"),
            "corpus": given["rounds"] > 1 and given.get("corpus") is None,
            "loss": has_loss and (given["target"], given["in_batch"], given["error"]) != (None, False, "l2"),
            "in_batch": not has_loss and given["in_batch"] and target in ("calibrated", "distributed"),
            "error": not has_loss and given["error"] != "l2" and target == "calibrated",
        }
        if any(refusals.values()):
            return Refusal([name for name, is_refused in refusals.items() if is_refused])
        if isinstance(given.get("negatives"), int):
            options["negatives"] = Negatives(given["negatives"])
        if given.get("patience", 0) is None:
            options["patience"] = {"default": 5, "paper": 16}[given["preset"]]
        return plain_options(options)


class TrainingReachedError(Exception):
    """All data was accepted; training itself would take a second."""


def reach_training(model: Any) -> Any:
    raise TrainingReachedError


class Fit(Results):
    """Training is reached, and sometimes done; then its summary counts the triples."""

    name = "trainer.fit"
    milliseconds = 40
    bad_options = Changes(
        malformed=[c.replace("valid_results", [None], "topics"), c.replace("valid_qrels", [None], "qrels")]
    )
    changes = (
        *Results.changes[:5],
        c.frame("valid_results", "qid query docno text", "topics", "results"),
        c.qrels("valid_qrels"),
    )

    def valid(self, rng: Random, texts: Any = c.TEXTS) -> dict[str, Any]:
        valid = super().valid(rng, texts)
        given = {f"valid_{name}": valid[name] for name in ("results", "qrels")}
        return {**super().valid(rng, texts), **given, "trains": rng.random() < 0.01}

    def call(self, results: Any, qrels: Any, valid_results: Any, valid_qrels: Any, trains: bool, **options: Any) -> Any:
        options |= {"max_steps": 1, "eval_steps": 1} if trains else {"loss": reach_training}
        trainer = SelfDistillTrainer(self.tools.encoder, self.tools.path(), verbose=False, **options)
        try:
            trainer.fit(results, qrels, valid_results, valid_qrels)
        except TrainingReachedError:
            return "training"
        return trainer.encoder.training_summary["data"]["triples"]

    def is_right(self, answer: Any, expected: Any) -> bool:
        return answer in ("training", len(expected))


class LoopArguments(Entry):
    name = "trainer.fit_triples, arguments"
    milliseconds = 250
    changes = (
        c.options(
            learning_rate=Kind([], ["fast", -1.0, math.nan, None, [1e-5]]),
            per_device_train_batch_size=Kind([], [0, -1, "many", 1.5, None]),
            max_steps=Kind([], ["one", 1.5, None, [1]]),
            num_train_epochs=Kind([], ["one", None]),
            eval_strategy=Kind([], ["always", 3]),
            lr_scheduler_type=Kind([], ["steep", 3]),
            optim=Kind([], ["best", 3]),
            logging_steps=Kind([], ["often", -1]),
        ),
        Changes([c.replace("learning_rate", [np.float64(1e-5)]), c.replace("warmup_steps", [0.1, 0])]),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        return {"max_steps": 1}

    def call(self, **arguments: Any) -> Any:
        trainer = SelfDistillTrainer(self.tools.encoder, self.tools.path(), verbose=False, **arguments)
        trainer.fit_triples([("sort", "sort the rows", "plot")])
        return trainer.encoder.training_summary["steps"]

    def expected(self, max_steps: int, **_: Any) -> Any:
        return max_steps


class PretrainedOptions(Entry):
    name = "SelfDistillBiEncoder.from_pretrained"
    milliseconds = 40
    lengths = Kind([None, *range(1, 65)], [0, -1, 65, 1.5, *c.NOT_NUMBERS[1:]])
    kinds = c.kinds(
        pooling=c.choice("cls", "mean", "max").or_none(),
        query_length=lengths,
        document_length=lengths,
        query_prompt=Kind(["", "query: "], [3, True, ["query: "], b"query: ", math.nan]),
        batch_size=c.POSITIVE,
        text_field=Kind(["text", "body"], [None, "", 3, ["text"], b"text", True]),
        verbose=c.FLAG,
        device=Kind(["cpu"], [3.5, "gpu", "", "cuda:99", ["cpu"], True, b"cpu"]),
        dtype=Kind(["auto", "float32", "bfloat16"], ["int4", "", None, 16, ["float32"], "Tensor"]),
        name_or_path=Kind([], [None, 3, "", b"model", "/no/such/folder", [], True]),
    )
    changes = (c.options(**kinds),)

    def valid(self, rng: Random) -> dict[str, Any]:
        kinds = {name: kind for name, kind in self.kinds.items() if kind.valid}
        model = rng.choice([self.tools.language_model, self.tools.saved])
        return {"name_or_path": model, "device": "cpu", **c.some_options(rng, kinds)}

    def call(self, **options: Any) -> Any:
        encoder = SelfDistillBiEncoder.from_pretrained(**options)
        modes = [module.pooling_mode for module in encoder.model if hasattr(module, "pooling_mode")]
        names = ["query_length", "document_length", "batch_size", "text_field", "verbose", "dtype"]
        prompt = encoder.model.prompts.get("query") or ""
        return {"pooling": modes[0], "query_prompt": prompt, **{name: getattr(encoder, name) for name in names}}

    def expected(self, name_or_path: Any, device: str, **options: Any) -> Any:
        given = {name: value for name, value in options.items() if value is not None}
        if "pooling" in given and name_or_path == self.tools.saved:
            return Refusal(["pooling"])
        length = given.get("document_length", 64)
        default = {"pooling": "cls", "query_prompt": "", "query_length": length, "document_length": length}
        return {**default, "batch_size": 32, "text_field": "text", "verbose": False, "dtype": "auto", **given}


TEXT_FORMS: dict[str, Callable[[list[str]], Any]] = {
    "a tuple": tuple,
    "a Series": lambda texts: pd.Series(texts, index=range(len(texts))[::-1], dtype=object),
    "an array": lambda texts: np.array(texts, dtype=object),
    "an array of fixed length": lambda texts: np.array(texts, dtype=str),
    "an iterator": iter,
    "categories": lambda texts: pd.Series(texts, dtype="category"),
}


class EncodeQueries(Entry):
    name, role, method = "encoder.encode_queries", "query", "encode_queries"
    changes = (
        c.options(batch_size=c.POSITIVE.or_none()),
        Changes(
            [
                c.each(
                    "texts",
                    "as {}",
                    TEXT_FORMS,
                    lambda form, texts: TEXT_FORMS[form](list(texts)),
                    "texts",
                    on=c.change,
                )
            ],
            malformed=[
                c.replace("texts", ["sort", "", None, 3, b"sort", {"sort": 1}, object()]),
                c.each("texts", "and {}", c.NOT_ENCODED, lambda value, texts: [*texts, value], "texts", on=c.change),
            ],
        ),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        return {
            "texts": rng.choices([*c.ALL_TEXTS, "", " "], k=rng.randint(0, 5)),
            "batch_size": rng.choice([None, 1, 3]),
        }

    def call(self, **arguments: Any) -> Any:
        return getattr(self.tools.encoder, self.method)(**arguments)

    def expected(self, texts: Any, **_: Any) -> Any:
        return self.tools.vectors(self.role, texts) if texts else np.empty((0, 32), dtype=np.float32)


class EncodeDocuments(EncodeQueries):
    name, role, method = "encoder.encode_docs", "document", "encode_docs"


def text_frame(*columns: str) -> Changes:
    """Change a frame with texts to encode."""
    return Changes(
        [[c.on_frame("frame", "as records", lambda frame: frame.to_dict(orient="records"))]],
        malformed=[
            c.twice("frame", *columns),
            *[c.cell("frame", name, c.NOT_ENCODED) for name in columns if name in ("query", "text")],
        ],
    )


class TransformQueries(Entry):
    """Vectors of texts; PyTerrier itself refuses anything but a frame."""

    name, role, text, vector = "encoder(queries)", "query", "query", "query_vec"
    changes = (
        c.equivalent_frame("frame", ["qid", "query"], any_order=True),
        text_frame("qid", "query"),
        Changes(damaged=[c.no_rows("frame")], malformed=[c.without("frame", "query")]),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        return {"frame": c.some_topics(rng)}

    def call(self, frame: Any) -> Any:
        encoded = pd.DataFrame(self.tools.encoder(frame))
        if len(encoded) != len(frame):
            raise WrongAnswerError(f"{len(encoded)} rows of {len(frame)}")
        return dict(zip(encoded[self.text], encoded[self.vector], strict=True))

    def expected(self, frame: pd.DataFrame) -> Any:
        return dict(zip(frame[self.text], self.tools.vectors(self.role, frame[self.text]), strict=True))

    def is_right(self, answer: Any, expected: Any) -> bool:
        return super().is_right(answer, {text: expected[text] for text in answer})


class TransformDocuments(TransformQueries):
    name, role, text, vector = "encoder(documents)", "document", "text", "doc_vec"
    changes = (
        c.equivalent_frame("frame", ["docno", "text"], any_order=True),
        text_frame("docno", "text"),
        Changes(damaged=[c.no_rows("frame")], malformed=[c.without("frame", "text")]),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        return {"frame": pd.DataFrame(c.some_documents(rng))}


class TransformResults(Entry):
    name = "encoder(results)"
    bad_vectors = c.cell("frame", "query_vec", ["vector", 3.0, np.ones(3, dtype=np.float32), np.full(32, math.nan)])
    changes = (
        c.equivalent_frame("frame", ["qid", "query", "docno", "text"]),
        text_frame("qid", "query", "docno", "text"),
        Changes(
            [[c.on_frame("frame", "rows reversed", lambda frame: frame[::-1])]],
            malformed=[c.cell("frame", "qid", c.MISSING), bad_vectors],
        ),
    )  # fmt: skip

    def valid(self, rng: Random) -> dict[str, Any]:
        return {"frame": c.some_results(rng, c.some_topics(rng, c.TEXTS), c.some_documents(rng, c.TEXTS))}

    def call(self, frame: Any) -> Any:
        return ranked(pd.DataFrame(self.tools.encoder(frame)))

    def expected(self, frame: pd.DataFrame, k: int | None = None) -> Any:
        scores = [float(self.tools.scores([row.query], [row.text])[0, 0]) for row in frame.itertuples()]
        best_first = frame.assign(score=scores).sort_values("score", ascending=False)
        return ranked(best_first.assign(rank=best_first.groupby("qid").cumcount()), k)


def ranked(results: pd.DataFrame, k: int | None = None) -> dict[tuple[str, str], tuple[float, int]]:
    """The score and the rank of each query and document."""
    rows = results[results["rank"] < (k or math.inf)][["qid", "docno", "score", "rank"]].itertuples(index=False)
    return {(qid, docno): (float(score), float(rank)) for qid, docno, score, rank in rows}


class Evaluate(Entry):
    name = "RetrievalEvaluator"
    milliseconds = 35
    changes = (
        c.frame("topics_or_results", "qid query", "topics", "results"),
        c.qrels("qrels"),
        c.options(num_results=c.POSITIVE, fields=c.FIELDS.or_none(), corpus=Kind([], [3, "docs.tsv", b"docs", True])),
        Changes(malformed=[c.replace("measures", MEASURES.malformed, "measure")]),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        topics, documents, searches = c.some_topics(rng, c.TEXTS), c.some_documents(rng, c.TEXTS), rng.random() < 0.5
        return {
            "topics_or_results": topics if searches else c.some_results(rng, topics, documents),
            "qrels": c.some_qrels(rng, topics, documents),
            "measures": rng.choice([[RR], [P @ 2, RR]]),
            "corpus": documents if searches else rng.choice([None, documents]),
            "num_results": rng.choice([2, 1000]),
        }

    def call(self, topics_or_results: Any, qrels: Any, measures: Any, **options: Any) -> Any:
        return RetrievalEvaluator(topics_or_results, qrels, measures, **options)(self.tools.encoder.model)

    def expected(self, topics_or_results: Any, qrels: Any, measures: Any, corpus: Any, num_results: int) -> Any:
        searches = "docno" not in topics_or_results
        rows = topics_or_results.merge(pd.DataFrame(corpus), how="cross") if searches else topics_or_results
        found = TransformResults(self.tools).expected(rows, num_results if searches else None)
        run = [ScoredDoc(qid, docno, score) for (qid, docno), (score, _) in found.items()]
        judged = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
        return {str(measure): value for measure, value in calc_aggregate(measures, judged, run).items()}


class BuildRetriever(Entry):
    name = "encoder.build_retriever"
    milliseconds = 35
    changes = (
        c.records("corpus", docno=c.NOT_TEXTS, text=c.NOT_TEXTS),
        c.options(num_results=c.POSITIVE, fields=c.FIELDS.or_none(), overwrite=c.FLAG),
        Changes(
            malformed=[c.replace("fields", [["title"]], "title"), c.replace("path", [None, 3, "", b"index", True])]
        ),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        return {"corpus": c.some_documents(rng, c.TEXTS), "path": self.tools.path(), "query": rng.choice(c.TEXTS)}

    def call(self, corpus: Any, query: str, **options: Any) -> Any:
        found = self.tools.encoder.build_retriever(corpus, **options).search(query)
        return {docno: float(score) for docno, score in found[["docno", "score"]].itertuples(index=False)}

    def expected(self, corpus: Any, query: str, **_: Any) -> Any:
        scores = self.tools.scores([query], [document["text"] for document in corpus])[0]
        return {document["docno"]: float(score) for document, score in zip(corpus, scores, strict=True)}


VECTORS: dict[str, Callable[[np.ndarray], Any]] = {
    "lists": lambda vector: np.asarray(vector).tolist(),
    "float64": lambda vector: np.asarray(vector, dtype=np.float64),
    "tensors": lambda vector: torch.tensor(np.asarray(vector)),
}
NOT_VECTORS = [*c.MISSING, 3, "0.5", [], {}, np.ones(3, dtype=np.float32), np.ones((1, 32), dtype=np.float32)]
NOT_VECTORS += [np.full(32, math.nan), np.full(32, math.inf, dtype=np.float32), ["x"] * 32, [None] * 32]


def typed(kind: str, record: Any) -> dict[str, Any]:
    """Give a vector of a record, or the vectors of a frame, another type."""
    if "doc_vec" in record:
        return {**record, "doc_vec": VECTORS[kind](record["doc_vec"])}
    return record.assign(query_vec=[VECTORS[kind](vector) for vector in record["query_vec"]])


class BuildIndex(Entry):
    name = "index.index"
    changes = (
        c.records("records", docno=c.NOT_ENCODED, doc_vec=NOT_VECTORS),
        Changes(
            [
                c.each("records", "{}", VECTORS, typed, "doc_vec", on=c.last_record),
                c.replace("mode", ["create", "overwrite"]),
            ],
            malformed=[c.replace("mode", ["Create", None, 3, "", "append", True])],
        ),
    )  # fmt: skip

    def valid(self, rng: Random) -> dict[str, Any]:
        docnos = rng.sample(c.IDENTIFIERS, rng.randint(1, 6))
        vectors = np.random.default_rng(rng.randint(0, 99)).normal(size=(len(docnos), 32)).astype(np.float32)
        return {"records": [{"docno": docno, "doc_vec": vector} for docno, vector in zip(docnos, vectors, strict=True)]}

    def call(self, records: Any, **options: Any) -> Any:
        index = SelfDistillIndex(self.tools.path(), verbose=False)
        index.indexer(**options).index(records)
        docnos, vectors, _ = index.payload()
        return dict(zip(map(str, docnos), np.array(vectors), strict=True))

    def expected(self, records: list[dict[str, Any]]) -> Any:
        return {record["docno"]: record["doc_vec"] for record in records}


class Retrieve(TransformResults):
    name = "index.retriever"
    kinds = c.kinds(num_results=c.POSITIVE, batch_size=c.POSITIVE.or_none(), drop_query_vec=c.FLAG)
    masks = (["unknown"], "d1", 3, [3], [None], np.ones(3), np.full(12, math.nan), np.array(["1"] * 12), [True])
    vectors = Changes(
        [c.each("frame", "vectors as {}", VECTORS, typed, "query_vec")],
        malformed=[
            c.without("frame", "qid", "query_vec"),
            c.cell("frame", "query_vec", NOT_VECTORS),
            c.cell("frame", "qid", c.MISSING),
        ],
    )
    changes = (
        c.equivalent_frame("frame", ["qid", "query"]),
        vectors,
        Changes(
            damaged=[c.without("frame", "query")], malformed=[c.replace("mask", masks, "mask", "document", "docnos")]
        ),
        c.options(**kinds),
    )

    def encoded(self, frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(query_vec=list(self.tools.vectors("query", frame["query"])))

    def valid(self, rng: Random) -> dict[str, Any]:
        mask = rng.choice([None, rng.sample(list(INDEXED), 4)])
        return {"frame": self.encoded(c.some_topics(rng, c.TEXTS)), "mask": mask, **c.some_options(rng, self.kinds)}

    def call(self, frame: Any, mask: Any, **options: Any) -> Any:
        index = SelfDistillIndex(self.tools.indexed, verbose=False)
        if isinstance(mask, list | str | int) and mask != [True]:
            mask = index.mask(mask)
        found = index.retriever(**options, **({} if mask is None else {"mask": mask}))(frame)
        if options.get("drop_query_vec", False) == ("query_vec" in found):
            raise WrongAnswerError(f"columns {list(found.columns)} with the options {options}")
        return ranked(found)

    def expected(self, frame: Any, mask: Any, num_results: int = 1000, **_: Any) -> Any:
        documents = pd.DataFrame({"docno": docno, "text": INDEXED[docno]} for docno in mask or INDEXED)
        return super().expected(frame.merge(documents, how="cross"), num_results)


class ScoreResults(Retrieve):
    name = "index.scorer"
    kinds = c.kinds(num_results=c.POSITIVE.or_none())
    changes = (
        c.equivalent_frame("frame", ["qid", "docno", "query"]),
        Retrieve.vectors,
        Changes(malformed=[c.without("frame", "docno"), c.cell("frame", "docno", [*c.NOT_TEXTS, "unknown"])]),
        c.options(**kinds),
    )

    def valid(self, rng: Random) -> dict[str, Any]:
        documents = [{"docno": docno, "text": text} for docno, text in INDEXED.items()]
        results = c.some_results(rng, c.some_topics(rng, c.TEXTS), documents)
        return {"frame": self.encoded(results), **c.some_options(rng, self.kinds)}

    def call(self, frame: Any, **options: Any) -> Any:
        return ranked(SelfDistillIndex(self.tools.indexed, verbose=False).scorer(**options)(frame))

    def expected(self, frame: Any, num_results: int | None = None) -> Any:
        return TransformResults.expected(self, frame, num_results)


def as_a_link(folder: Path) -> None:
    folder.symlink_to(folder.rename(folder.with_name(f"{folder.name}-moved")))


def emptied(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def damage(text: str, function: Callable[[Path], Any], *names: str) -> Change:
    """Change a copy of the folder, once there is one."""
    return c.change("damages", text, lambda damages: [*damages, function], *names)


FILE_DAMAGES: dict[str, Callable[[Path], Any]] = {
    "removed": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its last byte": lambda path: path.write_bytes(path.read_bytes().rstrip()[:-1]),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * (path.stat().st_size // 256 + 1)),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def files(*names: str) -> list[list[Change]]:
    def spoil(name: str, kind: str, folder: Path) -> None:
        FILE_DAMAGES[kind](folder / name)

    return [[damage(f"{name} {kind}", partial(spoil, name, kind), name) for kind in FILE_DAMAGES] for name in names]


def entries(name: str, keys: Sequence[str], values: Sequence[Any], *names: str) -> list[Change]:
    """Change entries of a file of JSON, or all of it; errors may name others than these, too."""

    def edit(put: Any, folder: Path) -> None:
        old = json.loads((folder / name).read_text())
        new = {key: value for key, value in (old | put).items() if value is not ...} if isinstance(put, dict) else put
        (folder / name).write_text(json.dumps(new))

    puts = [*[{key: value} for key in keys for value in (..., *values)], [], "text", 3, None]
    return [damage(f"{name} with {put}", partial(edit, put), name, *keys, *names) for put in puts]


WHOLE = [
    damage("a symbolic link", as_a_link, "folder"),
    damage("another file", lambda folder: (folder / "more").write_text("more"), "more"),
    damage("another folder", lambda folder: (folder / "a folder").mkdir(), "more"),
]
NOTHING = [
    damage("no folder", emptied, "no ", "folder"),
    damage("a file", lambda folder: (emptied(folder), folder.write_text("")), "folder", "file", "index"),
    damage("an empty folder", lambda folder: (emptied(folder), folder.mkdir()), "folder", "it is no index", "model"),
]


class OpenIndex(Entry):
    name = "SelfDistillIndex, damaged"
    numbers = entries(
        "pt_meta.json", ["doc_count", "vec_size"], [None, "12", 0, -1, 11, 13, 1.5, [12], 10**12], "vecs.f4"
    )
    kinds = entries("pt_meta.json", ["type", "format"], [None, "", "other", 3, ["dense_index"]], "expected")
    encoders = entries(
        "pt_meta.json", ["encoder"], [3, "encoder", [], {"name": "model"}, {"checksum": 3, "name": None}]
    )
    damaged = (NOTHING, numbers, kinds, encoders, *files("pt_meta.json", "vecs.f4", "docnos.npids"))
    changes = (Changes([WHOLE], damaged),)

    def valid(self, rng: Random) -> dict[str, Any]:
        return {"damages": []}

    def call(self, damages: Any) -> Any:
        index = SelfDistillIndex(self.tools.damaged(self.tools.indexed, damages), verbose=False)
        found = (self.tools.encoder >> index.retriever(num_results=1)).search(FOUND[0])
        return [found["docno"].tolist(), found["score"].to_numpy()]

    def expected(self, damages: Any) -> Any:
        return [["d0"], self.tools.scores(FOUND[:1], c.TEXTS)[0].max(keepdims=True)]


class OpenEncoder(Entry):
    name = "SelfDistillBiEncoder, damaged"
    milliseconds = 35
    config = entries("config.json", ["hidden_size", "model_type"], [None, "12", 0, -1, 16, 1.5, [], "gpt2"])
    broken = files("modules.json", "model.safetensors", "config.json", "tokenizer.json", "1_Pooling/config.json")
    kinds = c.kinds(
        **{name: PretrainedOptions.kinds[name] for name in ("batch_size", "verbose", "device", "text_field")}
    )
    changes = (Changes([WHOLE], [NOTHING, config, *broken]), c.options(**kinds))

    def valid(self, rng: Random) -> dict[str, Any]:
        return {"damages": [], "batch_size": rng.randint(1, 9), "device": "cpu"}

    def load(self, folder: Path, **options: Any) -> SelfDistillBiEncoder:
        return SelfDistillBiEncoder(folder, **options)

    def call(self, damages: Any, **options: Any) -> Any:
        return self.load(self.tools.damaged(self.tools.saved, damages), **options).encode_queries(FOUND)

    def expected(self, **_: Any) -> Any:
        return self.tools.vectors("query", FOUND)


class SaveEncoder(OpenEncoder):
    name = "encoder.save"
    milliseconds = 75
    bad = (("an encoder", False, "there"), ("others", True, "before"), ("a file", True, "file"))
    over = c.each("there", "{}", bad, lambda case, _: case[:2], "there", "before", "file", on=c.change)
    bad_paths = c.replace("path", [None, 3, "", b"model", True, ["model"], math.nan])
    changes = (Changes([[c.change("path", "a string", str)]], malformed=[over, bad_paths]), c.options(overwrite=c.FLAG))

    def valid(self, rng: Random) -> dict[str, Any]:
        there, overwrite = rng.choice([("nothing", False), ("nothing", True), ("an encoder", True)])
        return {"there": there, "path": self.tools.path(), "overwrite": overwrite}

    def call(self, there: Any, path: Any, overwrite: Any) -> Any:
        there, overwrite = there if isinstance(there, tuple) else (there, overwrite)
        if there == "an encoder":
            self.tools.encoder.copy().save(path)
        elif there == "others":
            Path(path).mkdir()
        elif there == "a file":
            Path(path).write_text("before")
        if there in ("an encoder", "others"):
            (Path(path) / "before").write_text("before")
        saved = self.tools.encoder.copy().save(path, overwrite=overwrite)
        if (Path(saved) / "before").exists():
            raise WrongAnswerError("files of before are there beside those of the encoder")
        return SelfDistillBiEncoder(saved, device="cpu").encode_queries(FOUND)
