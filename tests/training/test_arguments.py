"""Options of the trainer: recipes, precision, checks, settings that decide, and reports to trackers."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from ir_measures import RR, nDCG
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, GISTEmbedLoss, MultipleNegativesRankingLoss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import integration_utils

from pyterrier_selfdistill import AdaptiveMarginLoss, SoftmaxLoss
from pyterrier_selfdistill.losses import EmbeddingLoss
from pyterrier_selfdistill.training.arguments import mixed_precision
from pyterrier_selfdistill.training.run_folder import PROGRESS
from tests.training.together import ROWS


@pytest.mark.parametrize(("options", "factor"), [({}, 0.99999), ({"lr_scheduler_type": "constant"}, 1)], ids=str)
def test_the_paper_preset_multiplies_the_learning_rate_unless_there_is_a_schedule(make, options, factor):
    options |= {"per_device_train_batch_size": 2, "num_train_epochs": 1, "logging_steps": 1}
    trainer = make(preset="paper", batch_sampler=BatchSamplers.NO_DUPLICATES, **options).fit_triples(ROWS[:6])
    rates = trainer.history["learning_rate"].dropna()
    np.testing.assert_allclose(rates, 1e-3 * factor ** np.arange(3), rtol=1e-6)
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


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rte": 1}, TypeError, "unknown argument 'learning_rte'; did you mean 'learning_rate'?"),
        ({"lr": 1}, TypeError, "unknown argument 'lr'; did you mean 'learning_rate'?"),
        ({"rouds": 1}, TypeError, "did you mean 'rounds'?"),
        ({"max_length": 1}, TypeError, "'max_length'; give document_length to SelfDistillBiEncoder"),
        ({"train_dataset": []}, TypeError, "call fit_triples"),
        ({"resume_from_checkpoint": "x"}, TypeError, "did you mean 'resume'"),
        ({"zzz": 1}, TypeError, "unknown argument 'zzz'; see "),
        ({"target": "distributed", "in_batch": True}, ValueError, "in_batch=True"),
        ({"target": "softmax", "error": "l1"}, ValueError, "error='l1'"),
        ({"target": "distributed", "scale": 20}, ValueError, "scale=20"),
        ({"target": 0.5, "loss": AdaptiveMarginLoss()}, ValueError, "AdaptiveMarginLoss.*target"),
        ({"loss": MultipleNegativesRankingLoss, "mini_batch_size": 4}, ValueError, "mini_batch_size=4"),
        ({"resume": True, "overwrite": True}, ValueError, "resume=True.*overwrite=True"),
        ({"resume": True, "save_only_model": True}, ValueError, "save_only_model=True"),
        ({"rounds": 2}, ValueError, "corpus="),
        ({"valid_share": 0.1, "eval_strategy": "no"}, ValueError, "eval_strategy='no'"),
        ({"measures": ["ndcg_cut_10"]}, ValueError, "measures.*'ndcg_cut_10'"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate.*got nan"),
        ({"weight_decay": "0.01"}, ValueError, "weight_decay must be 0 or a positive number, got '0.01'"),
        ({"learning_rate": "2e-5"}, ValueError, "learning_rate must be a positive number, got '2e-5'"),
        ({"neftune_noise_alpha": "5"}, ValueError, "neftune_noise_alpha must be a valid number, got '5'"),
        ({"adam_beta1": float("inf")}, ValueError, "adam_beta1 must be a finite number, got inf"),
        ({"bf16": "false"}, ValueError, "bf16 must be a valid boolean, got 'false'"),
        ({"report_to": ["tensorboard", "paper"]}, ValueError, "report_to.*paper"),
    ],
    ids=str,
)
def test_bad_options(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


def test_guessed_names_say_what_to_use(make, index, encoder, collection):
    trainer = make(measures=["nDCG@10", RR])
    assert trainer.measures == (nDCG @ 10, RR)
    for target, name, expected in [
        (trainer, "train", "fit_triples"),
        (encoder, "encode", "encode_queries"),
        (encoder, "similarity", "model.similarity"),
    ]:
        with pytest.raises(AttributeError, match=f"no attribute '{name}'; .*{expected}"):
            getattr(target, name)
    assert encoder.push_to_hub == encoder.to_hf
    for call in (index.retriever, partial(encoder.build_retriever, collection.records, "new.flex")):
        with pytest.raises(TypeError, match="unknown argument 'k'; did you mean 'num_results'"):
            call(k=10)


def test_a_run_without_validation_is_told_of_valid_share(make, collection, caplog):
    make(max_steps=1).fit(collection.results, collection.qrels)
    assert [record.message for record in caplog.records if "valid_share=0.1" in record.message] != []


def test_a_tracker_that_is_not_installed_is_an_error_at_once(make, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    with pytest.raises(ImportError, match="pip install wandb"):
        make(report_to=["tensorboard", "wandb"])
    for report_to in ("none", "all", ["none"], "tensorboard", []):
        make(report_to=report_to)


@pytest.mark.parametrize(
    ("options", "triples", "message"),
    [
        ({"rounds": 2, "corpus": [{"docno": "d", "text": "plot"}]}, 1, "rounds=2"),
        ({"lr_scheduler_type": "chilly"}, 1, "chilly"),
        ({"eval_strategy": "steps"}, 1, "eval_strategy='steps'"),
        ({"matryoshka_dims": [64, 32]}, 1, "32 dimensions"),
        ({"loss": CoSENTLoss}, 1, r"CoSENTLoss needs a column 'label', but the triples have \['query', 'pos"),
        ({"loss": lambda model: GISTEmbedLoss(model, model)}, 1, "GISTEmbedLoss cannot use .*'negative_2'.*2 or 3"),
        ({"dataloader_drop_last": True}, 7, "dataloader_drop_last=True.* 7 triples"),
    ],
)
def test_options_that_do_not_fit_the_triples(make, tmp_path, options, triples, message):
    rows = [("sort", "sort the rows", "plot", "read")[: 4 if "negative_2" in message else 3]] * triples
    with pytest.raises(ValueError, match=message):
        make(**options).fit_triples(rows)
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_the_history_and_the_settings(whole):
    (events,) = whole.output_dir.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events)).Reload()
    history = whole.history.set_index("step")
    for name in (*PROGRESS[2:], "nDCG@10", "RR"):
        kind = "eval" if name in ("nDCG@10", "RR") else "train"
        scalars = {event.step: event.value for event in board.Scalars(f"{kind}/{name}")}
        assert scalars == pytest.approx(history[name].dropna().to_dict(), rel=1e-6)
    assert history["loss"].dropna().index.tolist() == list(range(1, 11))  # whatever else a step logs
    assert history["similarity"].dropna().index.tolist() == [0, 2, 4, 6, 8, 10]

    text = board.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    settings, summary = json.loads(text), whole.encoder.training_summary
    assert (settings["run_name"], settings["learning_rate"], settings["seed"]) == ("mine", 1e-3, 42)
    assert settings["selfdistill/loss/target"] == "listwise"
    assert settings["selfdistill/data/fingerprint"] == summary["data"]["fingerprint"]
    assert settings["selfdistill/base_model/name"] == settings["_name_or_path"]
    assert not any(secret in text for secret in ("hf_abcdefghijklmnop", "/home/me", str(whole.output_dir.parent)))


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
        ({"loss": AdaptiveMarginLoss("adaptive", detach_target=True)}, {"detach_target": True}),
        ({"loss": SoftmaxLoss("softmax", 20), "mini_batch_size": 3}, {"target": "softmax", "scale": 20}),
        ({"loss": MultipleNegativesRankingLoss, "matryoshka_dims": [32, 8]}, {"matryoshka_dims": [32, 8]}),
        (
            {"loss": lambda m: GISTEmbedLoss(m, m)},
            {"name": "GISTEmbedLoss", "guide": "SentenceTransformer"},
        ),
    ],
)
def test_losses_train_and_are_recorded(make, options, recorded):
    trainer = make(max_steps=1, save_steps=1, logging_steps=1, **options).fit_triples([row[:3] for row in ROWS])
    assert recorded.items() <= trainer.encoder.training_summary["loss"].items()
    assert trainer.history["loss"].notna().any()
    assert trainer.history["margin"].notna().any() == isinstance(options["loss"], EmbeddingLoss)
    assert trainer.plot().axes[0].get_title() == "Loss"
