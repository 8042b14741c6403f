"""Recipes, precision by hardware, checks of options, and the arguments of the training loop."""

import pytest
import torch
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.base.sampler import BatchSamplers

from pyterrier_selfdistill import AdaptiveMarginLoss, SelfDistillTrainer
from pyterrier_selfdistill.training.arguments import PRESETS, mixed_precision


def test_the_paper_preset_is_that_of_the_paper():
    paper = PRESETS["paper"]
    assert (paper.patience, paper.arguments["per_device_train_batch_size"]) == (16, 128)


def test_any_training_argument_passes_through(make, collection, monkeypatch):
    made = []
    init = SentenceTransformerTrainer.__init__

    def record(self, **options):
        made.append(options["args"])
        init(self, **options)

    monkeypatch.setattr(SentenceTransformerTrainer, "__init__", record)
    trainer = make(max_steps=2, gradient_accumulation_steps=2, lr_scheduler_type="cosine")
    trainer.fit(collection.results, collection.qrels)
    assert (made[0].max_steps, made[0].gradient_accumulation_steps, made[0].seed) == (2, 2, 42)
    assert made[0].lr_scheduler_type == "cosine"


def test_what_decides_must_be_measured(make, collection, tmp_path):
    results, qrels = collection.results, collection.qrels
    with pytest.raises(
        ValueError, match=r"must be one of the measures \['nDCG@10'\], got 'eval_RR'; give it in measures="
    ):
        make(metric_for_best_model="eval_RR").fit(results, qrels, results, qrels)
    assert not (tmp_path / "run").exists()


def test_arguments_of_any_type_are_recorded(make, collection):
    trainer = make(batch_sampler=BatchSamplers.NO_DUPLICATES).fit(collection.results, collection.qrels)
    assert "no_duplicates" in (trainer.encoder.path / "pt_meta.json").read_text()


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, {"bf16": True}),
        ({"avx512_bf16": False, "amx_bf16": True}, {"bf16": True}),
        ({"avx512_bf16": False, "amx_bf16": False}, {}),
        ({"architecture": "arm64"}, {}),
    ],
    ids=str,
)
def test_mixed_precision_follows_the_instructions_of_a_cpu(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert mixed_precision(torch.device("cpu")) == expected


def test_mixed_precision_of_a_cpu_is_off_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert mixed_precision(torch.device("cpu")) == {}


@pytest.mark.parametrize(("new", "expected"), [(True, {"bf16": True}), (False, {"fp16": True})])
def test_mixed_precision_follows_the_age_of_a_gpu(monkeypatch, new, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: new)
    assert mixed_precision(torch.device("cuda")) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rte": 1}, TypeError, r"\['learning_rte'\]"),
        ({"preset": "papers"}, ValueError, "got 'papers'"),
        ({"target": "distributed", "in_batch": True}, ValueError, "not defined with in_batch"),
        ({"target": 0.5, "loss": AdaptiveMarginLoss()}, ValueError, "beside target"),
        ({"loss": torch.nn.MSELoss()}, TypeError, "give its class"),
        ({"loss": "l1"}, TypeError, "expected an AdaptiveMarginLoss.*got loss='l1'"),
        ({"resume": True, "overwrite": True}, ValueError, "choose one"),
        ({"negatives": 0}, ValueError, "negatives must be a positive integer or .* Negatives, got 0"),
        ({"rounds": 0}, ValueError, "rounds must be a positive integer, got 0"),
        ({"rounds": 2}, ValueError, "corpus="),
        ({"min_label": 0}, ValueError, "min_label must be a positive integer, got 0"),
        ({"patience": 0}, ValueError, "patience must be a positive integer, got 0"),
        ({"measures": []}, ValueError, "must be a list of measures"),
        ({"measures": ["ndcg_cut_10"]}, TypeError, "list of measures .*pyterrier.measures, got .'ndcg_cut_10'"),
        ({"fields": "title"}, ValueError, r"fields must be a list of field names .*, got 'title'"),
        ({"fields": []}, ValueError, r"fields must be a list of field names .*, got \[\]"),
        ({"seed": -1}, ValueError, "seed must be an integer from 0 to 4294967295, got -1"),
        ({"resume": 1}, ValueError, "resume must be a valid boolean, got 1"),
        ({"max_steps": 0}, ValueError, "max_steps must be a positive integer or be -1, got 0"),
        ({"num_train_epochs": 0}, ValueError, "num_train_epochs must be a positive number, got 0"),
        ({"per_device_train_batch_size": 0}, ValueError, "must be a positive integer, got 0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be a positive number, got nan"),
        ({"resume": True, "save_only_model": True}, ValueError, "save_only_model=True leaves out"),
    ],
)
def test_bad_options(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_the_encoder_must_be_one(tiny_model, tmp_path):
    with pytest.raises(TypeError, match=r"(?s)from_pretrained\(name\), got .*, a SentenceTransformer"):
        SelfDistillTrainer(tiny_model, tmp_path)
