"""The output folder: what a run may take, what it leaves, and how an interrupted run goes on."""

import shutil

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_selfdistill import SelfDistillationLoss
from pyterrier_selfdistill.training.checkpoints import RunFolder


def test_fit_does_not_replace_a_run_unasked(make, collection):
    results, qrels = collection.results, collection.qrels
    make().fit(results, qrels)
    with pytest.raises(FileExistsError, match="resume=True.*overwrite=True"):
        make().fit(results, qrels)
    make(overwrite=True).fit(results, qrels)


def test_a_failed_fit_keeps_the_model_before(make, collection, tmp_path, monkeypatch):
    results, qrels = collection.results, collection.qrels
    trainer = make().fit(results, qrels)
    monkeypatch.setattr(SelfDistillationLoss, "forward", lambda *_: 1 / 0)
    for again in (trainer, make(overwrite=True)):
        with pytest.raises(ZeroDivisionError):
            again.fit(results, qrels)
        assert pt.Artifact.load(str(tmp_path / "run" / "model")) == trainer.encoder


def test_a_bad_argument_does_not_cost_an_earlier_run(make, collection, tmp_path):
    results, qrels = collection.results, collection.qrels
    make().fit(results, qrels)
    with pytest.raises(ValueError, match="chilly"):
        make(overwrite=True, lr_scheduler_type="chilly").fit(results, qrels)
    assert (tmp_path / "run" / "model" / "pt_meta.json").exists()


def test_resume_gives_the_model_of_an_uninterrupted_run(make, collection, interrupted):
    results, qrels = collection.results, collection.qrels
    options = {"num_train_epochs": 2, "save_steps": 3, "eval_steps": 3}
    whole = make("whole", **options).fit(results, qrels, results, qrels)
    with interrupted():
        make("cut", **options).fit(results, qrels, results, qrels)
    with pytest.raises(FileExistsError):
        make("cut", **options).fit(results, qrels, results, qrels)
    resumed = make("cut", resume=True, **options).fit(results, qrels, results, qrels)
    assert resumed.encoder.model_name == whole.encoder.model_name
    assert resumed.encoder.training_summary["similarity"] == whole.encoder.training_summary["similarity"]
    pd.testing.assert_frame_equal(resumed.history, whole.history)


def test_resume_needs_the_same_settings(make, collection):
    results, qrels = collection.results, collection.qrels
    make().fit(results, qrels)
    assert make(resume=True).fit(results, qrels).encoder.training_summary["steps"] == 5
    with pytest.raises(ValueError, match="other settings: loss was .*distributed.* and is .*0.3.*overwrite=True"):
        make(resume=True, target=0.3).fit(results, qrels)
    with pytest.raises(ValueError, match="data was .*'triples': 40.*; seed was 42 and is 7"):
        make(resume=True, seed=7).fit(results[results["qid"] < "q4"], qrels)


def test_resume_needs_a_checkpoint_beside_the_model(make, collection, tmp_path):
    results, qrels = collection.results, collection.qrels
    make().fit(results, qrels)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(FileExistsError, match="no checkpoint to resume from"):
        make(resume=True).fit(results, qrels)


def test_resume_passes_over_a_checkpoint_that_was_cut_off(make, collection, tmp_path):
    broken = tmp_path / "run" / "checkpoints" / "checkpoint-99"
    broken.mkdir(parents=True)
    (broken / "trainer_state.json").write_text('{"global_step": 9')
    trainer = make(resume=True).fit(collection.results, collection.qrels)
    assert trainer.encoder.training_summary["steps"] == 5


@pytest.fixture
def run(tmp_path):
    """A folder with two complete checkpoints and one that was cut off."""
    run = RunFolder(tmp_path / "run")
    run.claim({"seed": 1}, resume=False, overwrite=False)
    for step, state in {9: "{}", 10: "{}", 11: '{"global_step": 1'}.items():
        checkpoint = run.checkpoints / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(state)
    return run


def test_claim_finds_the_last_complete_checkpoint(run):
    assert run.claim({"seed": 1}, resume=True, overwrite=False) == run.checkpoints / "checkpoint-10"


def test_claim_removes_checkpoints_but_not_the_model_to_overwrite(run):
    run.model.mkdir()
    assert run.claim({"seed": 2}, resume=False, overwrite=True) is None
    assert run.model.exists()
    assert [path.name for path in run.checkpoints.iterdir()] == ["settings.json"]
