"""What a tracker shows of a run: the numbers of its history under their names, its settings, and nothing secret."""

import json
from pathlib import Path

import pandas as pd
import pytest
from ir_measures import AP, nDCG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers.integrations import integration_utils

from pyterrier_selfdistill.training.arguments import TrackedArguments, require_trackers

SHOWN = {
    "train/loss": "loss",
    "train/margin": "margin",
    "train/target": "target",
    "train/learning_rate": "learning_rate",
    "train/similarity": "similarity",
    "train/representational_similarity": "representational_similarity",
    "eval/nDCG@10": "nDCG@10",
    "eval/AP(rel=2)@100": "AP(rel=2)@100",
}
"""Names in a tracker, and the columns of the history with the same numbers."""


@pytest.fixture
def shown(tmp_path):
    """Read what TensorBoard shows of the run in a folder."""

    def shown(folder: str) -> EventAccumulator:
        (events,) = (tmp_path / folder).rglob("events.out.tfevents.*")
        return EventAccumulator(str(events)).Reload()

    return shown


def test_tensorboard_shows_the_history_and_the_settings(make, encoder, collection, shown, tmp_path):
    results, qrels = collection.results, collection.qrels
    options = {
        "target": "adaptive",
        "measures": [nDCG @ 10, AP(rel=2) @ 100],
        "hub_token": "hf_secret",
        "eval_steps": 2,
    }
    trainer = make("mine", report_to="tensorboard", **options).fit(results, qrels, results, qrels)
    board = shown("mine")
    history = trainer.history.set_index("step")
    for name, column in SHOWN.items():
        scalars = pd.Series({event.step: event.value for event in board.Scalars(name)})
        expected = history[column].dropna()
        pd.testing.assert_series_equal(scalars, expected, check_names=False, check_index_type=False, rtol=1e-6)
    assert len(history["loss"].dropna()) == 5  # that of a step is logged whatever else is
    assert history["similarity"].dropna().index.tolist() == [0, 1, 2, 3, 4, 5]
    assert history["similarity"][0] == trainer.encoder.training_summary["similarity"]["before"]

    text = board.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    settings = json.loads(text)
    summary = trainer.encoder.training_summary
    assert settings["run_name"] == "mine"
    assert settings["selfdistill/loss/target"] == "adaptive"
    assert settings["selfdistill/data/triples"] == 40
    assert settings["selfdistill/data/fingerprint"] == summary["data"]["fingerprint"]
    assert settings["selfdistill/base_model/checksum"] == summary["base_model"]["checksum"]
    assert settings["selfdistill/base_model/name"] == settings["_name_or_path"] == Path(encoder.name).name
    for secret in ("hf_secret", str(tmp_path)):
        assert secret not in text


def test_a_run_that_is_reported_and_resumed_is_the_one_that_is_not(make, collection, interrupted):
    options = {"num_train_epochs": 2, "save_steps": 4, "logging_steps": 4}
    whole = make("whole", **options).fit(collection.results, collection.qrels)
    options |= {"report_to": "tensorboard", "run_name": "my run"}
    with interrupted():
        make("cut", **options).fit(collection.results, collection.qrels)
    resumed = make("cut", resume=True, **options).fit(collection.results, collection.qrels)
    assert resumed.encoder.model_name == whole.encoder.model_name
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    logged = whole.history.set_index("step")
    assert logged["similarity"].dropna().index.tolist() == [0, 2, 4, 6, 8, 10]
    assert logged["loss"].dropna().index.tolist() == [4, 8]


def test_a_tracker_that_is_not_installed_is_named_before_a_run_is_touched(make, monkeypatch):
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    with pytest.raises(ImportError, match=r"report_to='wandb' needs wandb, .* pip install wandb, or leave it out"):
        make(report_to="wandb")
    with pytest.raises(ImportError, match="pip install wandb"):
        make(report_to=["tensorboard", "wandb"])


@pytest.mark.parametrize("report_to", ["none", "all", ["none"], "tensorboard", []])
def test_trackers_that_are_there_are_taken(report_to):
    require_trackers(report_to)


@pytest.mark.parametrize("report_to", ["paper", ["tensorboard", "paper"], None, 3])
def test_trackers_that_nobody_knows_are_refused(make, report_to):
    with pytest.raises((ValueError, TypeError), match="report_to"):
        make(report_to=report_to)


def test_arguments_are_told_without_settings(tmp_path):
    told = TrackedArguments(str(tmp_path / "run"), use_cpu=True, hub_token="hf_secret").to_dict()
    assert told["output_dir"] == "run"
    assert "hf_secret" not in str(told)
    assert not [name for name in told if name.startswith("selfdistill")]
