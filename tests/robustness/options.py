"""Entry points that take options and give an object that has them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import hypothesis.strategies as st
import numpy as np
import pandas as pd
from ir_measures import RR, Measure, P, nDCG
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn

from pyterrier_selfdistill import AdaptiveMarginLoss, Negatives, SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.data.triples import PairOptions

from .exploring import EntryPoint, Refusal
from .mutations import (
    FIELDS,
    FLAG,
    NOT_NUMBERS,
    POSITIVE,
    SEED,
    SHARE,
    Kind,
    choice,
    malformed_options,
    other_types,
    replace,
    valid_options,
)

COUNT = Kind(st.integers(0, 20), [value for value in POSITIVE.malformed if value != 0 or value is True])
MEASURES = Kind(
    st.sampled_from([[nDCG @ 10], (RR, P @ 5), [RR(rel=2)]]),
    [[], (), None, "nDCG@10", ["nDCG@10"], [RR, "nDCG@10"], [None], 3, {}, [Measure]],
)
NEGATIVES = Kind(st.integers(1, 4) | st.sampled_from([Negatives(2), Negatives(range_min=3)]), POSITIVE.malformed)
TARGET = Kind(
    st.sampled_from(["distributed", "adaptive", 0.5, 1, 2.0]),
    [0, -0.5, 2.5, "Adaptive", "", "0.5", None, True, math.nan, math.inf, ["adaptive"], b"adaptive", {}],
)
TRAINING_TARGET = Kind(st.just("calibrated") | TARGET.valid, TARGET.malformed).or_none()
PROMPT = Kind(st.sampled_from(["", "query: "]), [3, True, ["query: "], b"query: ", math.nan])
POSITIONS = Kind(st.integers(1, 64), [0, -1, 65, 1.5, *NOT_NUMBERS])
"""Lengths of the tiny language model, which has 64 positions."""


class NegativesOptions(EntryPoint):
    """What it was given, if the ranks are enough for as many negatives."""

    name = "Negatives"
    milliseconds = 5
    kinds: ClassVar = {
        "number": Kind(st.integers(1, 4), POSITIVE.malformed),
        "range_min": COUNT,
        "range_max": Kind(st.integers(1, 20), POSITIVE.malformed).or_none(),
        "relative_margin": SHARE.or_none(),
    }
    valid = valid_options(kinds)
    equivalent = (other_types(),)
    malformed = (malformed_options(kinds),)

    def call(self, **options: Any) -> Any:
        """Return all options."""
        return dataclasses.asdict(Negatives(**options))

    def expected(self, **options: Any) -> Any:
        """Return all options."""
        given = {"number": 1, "range_min": 0, "range_max": None, "relative_margin": None, **options}
        if given["range_max"] is not None and given["range_max"] - given["range_min"] < given["number"]:
            return Refusal(["ranks", "range_max"])
        return given


class Pairs(EntryPoint):
    """What it was given."""

    name = "PairOptions"
    milliseconds = 5
    kinds: ClassVar = {
        "max_pairs_per_query": POSITIVE.or_none(),
        "limit": POSITIVE.or_none(),
        "seed": SEED,
        "fields": FIELDS,
        "store_texts": FLAG,
        "verbose": FLAG,
    }
    valid = valid_options(kinds)
    equivalent = (other_types(),)
    malformed = (malformed_options(kinds),)

    def call(self, **options: Any) -> Any:
        """Return the options that were given."""
        pairs = PairOptions(**options)
        return {name: plain_option(getattr(pairs, name)) for name in options}

    def expected(self, **options: Any) -> Any:
        """Return the options that were given."""
        return {name: plain_option(value) for name, value in options.items()}


class LossOptions(EntryPoint):
    """What it was given, unless two of them contradict each other."""

    name = "AdaptiveMarginLoss, options"
    milliseconds = 5
    kinds: ClassVar = {
        "target": TARGET,
        "in_batch": FLAG,
        "error": choice("l2", "l1", "soft"),
        "detach_target": FLAG,
        "pairing": choice("query", "released"),
    }
    valid = valid_options(kinds)
    equivalent = (other_types(),)
    malformed = (malformed_options(kinds),)

    def call(self, **options: Any) -> Any:
        """Return all options."""
        return AdaptiveMarginLoss(**options).get_config_dict()

    def expected(self, **options: Any) -> Any:
        """Return all options."""
        default = {"in_batch": False, "error": "l2", "detach_target": False, "pairing": "query"}
        given = {"target": "distributed", **default, **options}
        if given["in_batch"] and given["target"] == "distributed":
            return Refusal(["in_batch"])
        if given["pairing"] == "released" and not given["in_batch"]:
            return Refusal(["pairing"])
        return given


class TrainerOptions(EntryPoint):
    """A trainer with the options that it was given, unless two of them contradict each other; nothing is trained."""

    name = "SelfDistillTrainer"
    kinds: ClassVar = {
        "target": TRAINING_TARGET,
        "in_batch": FLAG,
        "error": choice("l2", "l1", "soft"),
        "loss": Kind(
            st.sampled_from([None, MultipleNegativesRankingLoss, AdaptiveMarginLoss("adaptive")]),
            ["adaptive", 3, nn.Identity(), [], AdaptiveMarginLoss("adaptive").get_config_dict()],
        ),
        "preset": choice("default", "paper"),
        "negatives": NEGATIVES,
        "min_label": POSITIVE,
        "corpus": Kind(
            st.sampled_from([None, [{"docno": "d1", "text": "sort"}], pd.DataFrame(columns=["docno", "text"])]),
            [3, "corpus.tsv", True, b"docs", 2.5],
        ),
        "fields": FIELDS.or_none(),
        "rounds": Kind(st.integers(1, 3), POSITIVE.malformed),
        "valid_share": Kind(st.sampled_from([None, 0.1, 0.5]), [0, 1, -0.1, "0.1", True, math.nan]),
        "measures": MEASURES,
        "patience": POSITIVE.or_none(),
        "seed": SEED,
        "resume": FLAG,
        "overwrite": FLAG,
        "verbose": FLAG,
        "max_steps": Kind(st.integers(1, 9), []),
        "learning_rate": Kind(st.sampled_from([1e-5, 2e-5]), []),
    }
    valid = valid_options(kinds).map(lambda options: {"output_dir": "run", "encoder": True, **options})
    equivalent = (other_types(),)
    malformed = (
        malformed_options({name: kind for name, kind in kinds.items() if kind.malformed}),
        replace("encoder", [None, 3, "model", SelfDistillBiEncoder, nn.Identity()], "SelfDistillBiEncoder"),
        replace("output_dir", [None, 3, "", b"run", ["run"], True]),
        replace("learning_rte", [1e-5, None]),
        replace("epochs", [3]),
    )

    def call(self, encoder: Any, output_dir: Any, **options: Any) -> Any:
        """Return the options that were given and are attributes of the trainer."""
        if isinstance(encoder, bool | np.bool_):
            encoder = self.tools.encoder
        if output_dir == "run":
            output_dir = self.tools.path()
        trainer = SelfDistillTrainer(encoder, output_dir, **options)
        return {name: plain_option(getattr(trainer, name)) for name in options if hasattr(trainer, name)}

    def expected(self, encoder: Any, output_dir: Any, **options: Any) -> Any:
        """Return the options that are attributes of a trainer."""
        given = {"target": None, "in_batch": False, "error": "l2", "rounds": 1, **options}
        asked = given["target"], given["in_batch"], given["error"]
        of_preset = {"default": "calibrated", "paper": "distributed"}[given.get("preset", "default")]
        target = given["target"] or of_preset
        if given.get("resume") and given.get("overwrite"):
            return Refusal(["resume"])
        if given["rounds"] > 1 and given.get("corpus") is None:
            return Refusal(["corpus"])
        if given.get("loss") is not None:
            if asked != (None, False, "l2"):
                return Refusal(["loss"])
        elif given["in_batch"] and target in ("calibrated", "distributed"):
            return Refusal(["in_batch"])
        elif given["error"] != "l2" and target == "calibrated":
            return Refusal(["error"])
        kept = {name: plain_option(value) for name, value in options.items()}
        for name in ("max_steps", "learning_rate"):
            kept.pop(name, None)
        if isinstance(kept.get("negatives"), int):
            kept["negatives"] = Negatives(kept["negatives"])
        if "patience" in kept and kept["patience"] is None:
            kept["patience"] = {"default": 5, "paper": 16}[kept.get("preset", "default")]
        return kept


class PretrainedOptions(EntryPoint):
    """An encoder that has the options, unless they do not fit the model."""

    name = "SelfDistillBiEncoder.from_pretrained"
    milliseconds = 40
    kinds: ClassVar = {
        "pooling": choice("cls", "mean", "max").or_none(),
        "query_length": POSITIONS.or_none(),
        "document_length": POSITIONS.or_none(),
        "query_prompt": PROMPT,
        "document_prompt": PROMPT,
        "batch_size": POSITIVE,
        "text_field": Kind(st.sampled_from(["text", "body"]), [None, "", 3, ["text"], b"text", True]),
        "verbose": FLAG,
        "device": Kind(st.just("cpu"), [3.5, "gpu", "", "cuda:99", ["cpu"], True, b"cpu"]),
        "dtype": Kind(st.sampled_from(["auto", "float32", "bfloat16"]), ["int4", "", None, 16, ["float32"], "Tensor"]),
    }
    valid = valid_options(kinds).flatmap(
        lambda options: st.sampled_from(["language_model", "saved"]).map(
            lambda model: {"name_or_path": model, "device": "cpu", **options}
        )
    )
    equivalent = (other_types(),)
    malformed = (
        malformed_options(kinds),
        replace("name_or_path", [None, 3, "", b"model", "/no/such/folder", [], True], "name_or_path", "/no/such"),
    )

    def call(self, name_or_path: Any, **options: Any) -> Any:
        """Return the options that the encoder has."""
        if name_or_path in ("language_model", "saved"):
            name_or_path = getattr(self.tools, name_or_path)
        encoder = SelfDistillBiEncoder.from_pretrained(name_or_path, **options)
        return _options_of(encoder)

    def expected(self, name_or_path: str, **options: Any) -> Any:
        """Return all options, those of the model where none is given."""
        if options.get("pooling") is not None and name_or_path == "saved":
            return Refusal(["pooling"])
        document_length = options.get("document_length") or 64
        return {
            "query_length": options.get("query_length") or document_length,
            "document_length": document_length,
            "prompts": [options.get("query_prompt") or "", options.get("document_prompt") or ""],
            "batch_size": options.get("batch_size", 32),
            "text_field": options.get("text_field", "text"),
            "verbose": options.get("verbose", False),
            "pooling": options.get("pooling") or "cls",
            "dtype": options.get("dtype", "auto"),
        }


def _options_of(encoder: SelfDistillBiEncoder) -> Mapping[str, Any]:
    pooling = next(module for module in encoder.model if hasattr(module, "pooling_mode"))
    return {
        "query_length": encoder.query_length,
        "document_length": encoder.document_length,
        "prompts": [encoder.model.prompts.get(role) or "" for role in ("query", "document")],
        "batch_size": encoder.batch_size,
        "text_field": encoder.text_field,
        "verbose": encoder.verbose,
        "pooling": pooling.pooling_mode,
        "dtype": encoder.dtype,
    }


def plain_option(value: Any) -> Any:
    """Return an option in one of the forms that mean the same."""
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, pd.DataFrame):
        return value.to_dict(orient="list")
    return value
