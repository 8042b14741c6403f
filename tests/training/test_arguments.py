"""Options of the trainer: recipes, precision, checks, settings that decide, and reports to trackers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import integration_utils

from pyterrier_selfdistill import AdaptiveMarginLoss, SelfDistillTrainer, SoftmaxLoss
from pyterrier_selfdistill.training.arguments import PRESETS, mixed_precision


@pytest.mark.parametrize(("options", "factor"), [({}, 0.99999), ({"lr_scheduler_type": "constant"}, 1)], ids=str)
def test_the_paper_preset_multiplies_the_learning_rate_unless_there_is_a_schedule(make, collection, options, factor):
    paper = PRESETS["paper"]
    assert (paper.patience, paper.target, paper.arguments["per_device_train_batch_size"]) == (16, "distributed", 128)
    options |= {"learning_rate": 5e-7, "logging_steps": 1, "batch_sampler": BatchSamplers.NO_DUPLICATES}
    trainer = make(preset="paper", gradient_accumulation_steps=2, num_train_epochs=2, **options)
    trainer.fit(collection.results, collection.qrels)
    rates = trainer.history["learning_rate"].dropna().to_numpy()
    assert len(rates) == 6
    np.testing.assert_allclose(rates, 5e-7 * factor ** np.arange(6), rtol=1e-6)
    # an argument of any type is recorded
    assert "no_duplicates" in (trainer.encoder.path / "pt_meta.json").read_text()


@pytest.mark.parametrize(
    ("device", "new", "expected"),
    [("cpu", True, ["bf16"]), ("cpu", False, []), ("cuda", True, ["bf16"]), ("cuda", False, ["fp16"])],
)
def test_mixed_precision_is_the_fastest_that_the_device_has(monkeypatch, device, new, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": new}, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: new)
    assert mixed_precision(torch.device(device)) == dict.fromkeys(expected, True)


# --- checks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rte": 1}, TypeError, "learning_rte"),
        ({"preset": "papers"}, ValueError, "got 'papers'"),
        ({"target": "distributed", "in_batch": True}, ValueError, "in_batch=True"),
        ({"target": "listwise", "in_batch": True}, ValueError, "in_batch=True"),
        ({"target": "softmax", "error": "l1"}, ValueError, "error='l1'"),
        ({"target": "distributed", "scale": 20}, ValueError, "scale=20"),
        ({"loss": SoftmaxLoss(), "scale": 20}, ValueError, "scale"),
        ({"scale": 0}, ValueError, "scale.*got 0"),
        ({"target": 0.5, "loss": AdaptiveMarginLoss()}, ValueError, "AdaptiveMarginLoss.*target"),
        ({"loss": torch.nn.MSELoss()}, TypeError, "MSELoss"),
        ({"loss": "l1"}, TypeError, "loss='l1'"),
        ({"loss": MultipleNegativesRankingLoss, "mini_batch_size": 4}, ValueError, "mini_batch_size=4"),
        ({"matryoshka_weights": [1.0]}, ValueError, "matryoshka_weights"),
        ({"matryoshka_dims": [32, 8, 8]}, ValueError, "matryoshka_dims"),
        ({"matryoshka_dims": [32, 8], "matryoshka_weights": [1.0]}, ValueError, "matryoshka_weights"),
        ({"resume": True, "overwrite": True}, ValueError, "resume=True.*overwrite=True"),
        ({"resume": True, "save_only_model": True}, ValueError, "save_only_model=True"),
        ({"resume": 1}, ValueError, "resume.*got 1"),
        ({"negatives": 0}, ValueError, "negatives.*got 0"),
        ({"rounds": 0}, ValueError, "rounds.*got 0"),
        ({"rounds": 2}, ValueError, "corpus="),
        ({"min_label": 0}, ValueError, "min_label.*got 0"),
        ({"patience": 0}, ValueError, "patience.*got 0"),
        ({"measures": []}, ValueError, "measures"),
        ({"measures": ["ndcg_cut_10"]}, TypeError, "measures.*'ndcg_cut_10'"),
        ({"fields": "title"}, ValueError, "fields.*got 'title'"),
        ({"seed": -1}, ValueError, "seed.*got -1"),
        ({"valid_share": 0}, ValueError, "valid_share.*got 0"),
        ({"valid_share": 1}, ValueError, "valid_share.*got 1"),
        ({"valid_share": "0.1"}, ValueError, "valid_share.*got '0.1'"),
        ({"valid_share": float("nan")}, ValueError, "valid_share.*got nan"),
        ({"valid_share": 0.1, "eval_strategy": "no"}, ValueError, "eval_strategy='no'"),
        ({"max_steps": 0}, ValueError, "max_steps.*got 0"),
        ({"num_train_epochs": 0}, ValueError, "num_train_epochs.*got 0"),
        ({"per_device_train_batch_size": 0}, ValueError, "per_device_train_batch_size.*got 0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate.*got nan"),
        ({"passages": "sliding"}, TypeError, "passages"),
        ({"adapter": "lora"}, ValueError, "adapter"),
        ({"prompts": {"query": "read: "}}, ValueError, "prompts"),
        ({"prompts": {"one": {"positive": "read: "}}}, ValueError, "prompts"),
        ({"report_to": "paper"}, ValueError, "report_to.*paper"),
        ({"report_to": ["tensorboard", "paper"]}, ValueError, "report_to.*paper"),
        ({"report_to": 3}, (TypeError, ValueError), "report_to"),
    ],
    ids=str,
)
def test_bad_options(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_the_encoder_must_be_one(tiny_model, tmp_path):
    with pytest.raises(TypeError, match="(?s)from_pretrained.*SentenceTransformer"):
        SelfDistillTrainer(tiny_model, tmp_path)


def test_a_tracker_that_is_not_installed_is_an_error_at_once(make, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    for report_to in ("wandb", ["tensorboard", "wandb"]):
        with pytest.raises(ImportError, match="pip install wandb"):
            make(report_to=report_to)
    for report_to in ("none", "all", ["none"], "tensorboard", []):
        make(report_to=report_to)


@pytest.mark.parametrize(
    ("options", "triples", "message"),
    [
        ({"rounds": 2, "corpus": [{"docno": "d", "text": "plot"}]}, 1, "rounds=2"),
        ({"valid_share": 0.5}, 1, "valid_share=0.5"),
        ({"lr_scheduler_type": "chilly"}, 1, "chilly"),
        ({"eval_strategy": "steps"}, 1, "eval_strategy='steps'"),
        ({"matryoshka_dims": [64, 32]}, 1, "32 dimensions"),
        ({"dataloader_drop_last": True}, 7, "dataloader_drop_last=True.* 7 triples"),
        ({"prompts": {"one": {"query": "read: "}}}, 1, "'one'"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_triples(make, tmp_path, options, triples, message):
    with pytest.raises(ValueError, match=message):
        make(**options).fit_triples([("sort", "sort the rows", "plot")] * triples)
    assert not (tmp_path / "run").exists()


# --- settings of a run ----------------------------------------------------------------------------------------------


def test_tensorboard_shows_the_history_and_the_settings(whole):
    (events,) = whole.output_dir.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events)).Reload()
    history = whole.history.set_index("step")
    for name in ("loss", "margin", "target", "learning_rate", "similarity", "representational_similarity"):
        board_name = f"train/{name}"
        scalars = pd.Series({event.step: event.value for event in board.Scalars(board_name)})
        pd.testing.assert_series_equal(
            scalars, history[name].dropna(), check_names=False, check_index_type=False, rtol=1e-6
        )
    for name in ("nDCG@10", "RR"):
        values = [event.value for event in board.Scalars(f"eval/{name}")]
        np.testing.assert_allclose(values, history[name].dropna(), rtol=1e-6)
    assert history["loss"].dropna().index.tolist() == list(range(1, 11))  # whatever else a step logs
    assert history["similarity"].dropna().index.tolist() == [0, 2, 4, 6, 8, 10]

    text = board.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    settings, summary = json.loads(text), whole.encoder.training_summary
    assert (settings["run_name"], settings["learning_rate"], settings["seed"]) == ("mine", 1e-3, 42)
    assert settings["selfdistill/loss/target"] == "listwise"
    assert settings["selfdistill/data/fingerprint"] == summary["data"]["fingerprint"]
    assert settings["selfdistill/base_model/checksum"] == summary["base_model"]["checksum"]
    assert settings["selfdistill/base_model/name"] == settings["_name_or_path"]
    assert Path(settings["_name_or_path"]).name == settings["_name_or_path"]
    for secret in ("hf_abcdefghijklmnop", "/home/me", str(whole.output_dir.parent)):
        assert secret not in text


def test_nothing_that_a_run_writes_holds_a_token_or_a_path(whole):
    files = [path for path in whole.output_dir.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        written = path.read_bytes()
        assert b"hf_abcdefghijklmnop" not in written, path
        # transformers' state names the best checkpoint; we read it wherever the folder lies
        if path.name != "trainer_state.json":
            assert str(whole.output_dir.parent).encode() not in written, path
            assert b"/home/me" not in written, path
    settings = json.loads((whole.output_dir / "checkpoints/settings.json").read_text())
    assert "hub_token" not in settings["arguments"]


@pytest.mark.parametrize(
    ("options", "recorded"),
    [
        ({"target": "adaptive", "in_batch": True}, {"target": "adaptive", "in_batch": True}),
        ({"target": "distributed", "error": "soft"}, {"target": "distributed", "error": "soft"}),
        ({"loss": AdaptiveMarginLoss("adaptive", detach_target=True)}, {"detach_target": True}),
        ({"loss": SoftmaxLoss("softmax", 20), "mini_batch_size": 3}, {"target": "softmax", "scale": 20}),
        ({"loss": MultipleNegativesRankingLoss}, {"name": "MultipleNegativesRankingLoss"}),
        ({"loss": MultipleNegativesRankingLoss, "matryoshka_dims": [32, 8]}, {"matryoshka_dims": [32, 8]}),
    ],
    ids=str,
)
def test_losses_train_and_are_recorded(make, collection, options, recorded):
    trainer = make(max_steps=1, logging_steps=1, **options).fit(collection.results, collection.qrels)
    assert recorded.items() <= trainer.encoder.training_summary["loss"].items()
    assert trainer.history["loss"].notna().any()
    assert trainer.history["margin"].notna().any() == ("MultipleNegativesRankingLoss" not in str(options))
    assert trainer.plot().axes[0].get_title() == "Loss"
