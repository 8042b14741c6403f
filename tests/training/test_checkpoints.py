"""The output folder: what a run may take, what it leaves, and how an interrupted run goes on."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pyterrier as pt
import pytest
from ir_measures import RR

from pyterrier_selfdistill import Negatives, SelfDistillationLoss, SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.training.run_folder import RunFolder
from pyterrier_selfdistill.utils.folders import FolderInUseError, folder_lock


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
    with pytest.raises(ValueError, match="other settings: loss was .*calibrated.* and is .*0.3.*overwrite=True"):
        make(resume=True, target=0.3).fit(results, qrels)
    with pytest.raises(ValueError, match="data was [0-9a-f]{16} and is [0-9a-f]{16}; seed was 42 and is 7"):
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
    (broken.parent / "settings.json").write_text("{}")
    (broken / "trainer_state.json").write_text('{"global_step": 9')
    trainer = make(resume=True).fit(collection.results, collection.qrels)
    assert trainer.encoder.training_summary["steps"] == 5
    assert not broken.exists()


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


def test_claim_passes_over_a_checkpoint_that_one_of_two_processes_has_not_written(run, monkeypatch):
    monkeypatch.setattr("pyterrier_selfdistill.training.run_folder.get_world_size", lambda: 2)
    for name in ("checkpoint-9/rng_state_0.pth", "checkpoint-9/rng_state_1.pth", "checkpoint-10/rng_state_0.pth"):
        (run.checkpoints / name).touch()
    assert run.claim({"seed": 1}, resume=True, overwrite=False) == run.checkpoints / "checkpoint-9"
    assert not (run.checkpoints / "checkpoint-10").exists()


def test_claim_removes_checkpoints_but_not_the_model_to_overwrite(run):
    run.model.mkdir()
    assert run.claim({"seed": 2}, resume=False, overwrite=True) is None
    assert run.model.exists()
    assert [path.name for path in run.checkpoints.iterdir()] == ["settings.json"]


# --- a run that is finished, or over --------------------------------------------------------------------------------


def content(folder):
    """Every file below a folder, with its bytes and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


DESTRUCTIVE = {
    "num_train_epochs": 4,
    "learning_rate": 0.3,
    "warmup_steps": 0,
    "max_grad_norm": 1e9,
    "eval_steps": 2,
    "eval_on_start": False,
}
"""A learning rate that destroys the model, so that the best checkpoint is not the last; the start does not compete."""


def test_resuming_a_finished_run_changes_nothing_wherever_it_lies(make, collection, tmp_path, monkeypatch):
    results, qrels = collection.results, collection.qrels
    finished = make("run", **DESTRUCTIVE).fit(results, qrels, results, qrels)
    assert finished.encoder.training_summary["best_step"] < finished.encoder.training_summary["steps"]
    (tmp_path / "run").rename(tmp_path / "moved")
    before = content(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "moved", "moved", "../" + tmp_path.name + "/moved"):
        resumed = make(name, resume=True, **DESTRUCTIVE).fit(results, qrels, results, qrels)
        assert resumed.encoder == finished.encoder
        assert resumed.encoder.dtype == finished.encoder.dtype == "float32"
        pd.testing.assert_frame_equal(resumed.history, finished.history)
        assert resumed.encoder.training_summary == pt.Artifact.load(str(tmp_path / "moved/model")).training_summary
    assert content(tmp_path / "moved") == before


@pytest.mark.parametrize("name", ["moved", "elsewhere/run"])
def test_a_run_that_was_moved_goes_on_with_its_best_checkpoint(make, collection, tmp_path, name, ended_before_saving):
    """All steps were made, but the process was killed before it wrote the model."""
    results, qrels = collection.results, collection.qrels
    whole = make("whole", **DESTRUCTIVE).fit(results, qrels, results, qrels)
    with ended_before_saving():
        make("cut", **DESTRUCTIVE).fit(results, qrels, results, qrels)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / "cut").rename(tmp_path / name)
    resumed = make(name, resume=True, **DESTRUCTIVE).fit(results, qrels, results, qrels)
    assert resumed.encoder.model_name == whole.encoder.model_name
    assert resumed.encoder.training_summary["best_step"] == whole.encoder.training_summary["best_step"]


def test_a_run_that_was_moved_midway_keeps_its_best_checkpoint(make, collection, tmp_path, interrupted):
    results, qrels = collection.results, collection.qrels
    whole = make("whole", **DESTRUCTIVE).fit(results, qrels, results, qrels)
    with interrupted():
        make("cut", **DESTRUCTIVE).fit(results, qrels, results, qrels)
    (tmp_path / "cut").rename(tmp_path / "moved")
    resumed = make("moved", resume=True, **DESTRUCTIVE).fit(results, qrels, results, qrels)
    assert resumed.encoder.model_name == whole.encoder.model_name


def test_resuming_a_run_that_stopped_early_does_not_train_on(make, collection, monkeypatch, ended_before_saving):
    results, qrels = collection.results, collection.qrels
    options = {**DESTRUCTIVE, "patience": 2, "eval_steps": 1}
    whole = make("whole", **options).fit(results, qrels, results, qrels)
    steps = whole.encoder.training_summary["steps"]
    assert steps < 20
    with ended_before_saving():
        make("cut", **options).fit(results, qrels, results, qrels)
    monkeypatch.setattr(SelfDistillationLoss, "forward", lambda *_: 1 / 0)
    resumed = make("cut", resume=True, **options).fit(results, qrels, results, qrels)
    assert resumed.encoder.training_summary["steps"] == steps
    assert resumed.encoder.model_name == whole.encoder.model_name


# --- a run that training did not improve ----------------------------------------------------------------------------

WORSE = {**DESTRUCTIVE, "eval_on_start": True, "num_train_epochs": 2, "eval_steps": 3, "save_steps": 3}
"""The same, where the start competes."""


def test_an_interrupted_run_goes_on_to_keep_the_encoder_before_training(
    make, encoder, collection, satisfied, interrupted
):
    frames = collection.results, collection.qrels, collection.results, satisfied
    whole = make("whole", **WORSE).fit(*frames)
    with interrupted():
        make("cut", **WORSE).fit(*frames)
    state = json.loads((make("cut").output_dir / "checkpoints/checkpoint-6/trainer_state.json").read_text())
    assert (state["best_global_step"], state["best_metric"]) == (0, 1.0)
    resumed = make("cut", resume=True, **WORSE).fit(*frames)
    assert resumed.encoder == whole.encoder == encoder
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    for trainer in (whole, resumed):
        assert trainer.encoder.training_summary["best_step"] == 0


def test_a_run_interrupted_before_its_first_checkpoint_begins_anew(make, encoder, collection, satisfied, interrupted):
    frames = collection.results, collection.qrels, collection.results, satisfied
    options = {**WORSE, "eval_steps": 8, "save_steps": 8}
    with interrupted():
        make(**options).fit(*frames)
    resumed = make(resume=True, **options).fit(*frames)
    assert resumed.encoder == encoder
    assert resumed.history["nDCG@10"].dropna().index.size == 3


@pytest.mark.parametrize("options", [{}, {"save_total_limit": 1}, {"save_strategy": "best"}], ids=str)
def test_a_run_that_is_over_keeps_the_encoder_before_training(
    make, encoder, collection, satisfied, ended_before_saving, options
):
    """Killed after its last step, and finished; the best checkpoints only are none at all."""
    frames = collection.results, collection.qrels, collection.results, satisfied
    options = {**WORSE, **options}
    with ended_before_saving():
        make(**options).fit(*frames)
    folder = make().output_dir
    assert not (folder / "model").exists()
    over = make(resume=True, **options).fit(*frames)
    before = content(folder)
    finished = make(resume=True, **options).fit(*frames)
    assert content(folder) == before
    for trainer in (over, finished):
        assert trainer.encoder == encoder
        assert trainer.encoder.training_summary["best_step"] == 0
    with pytest.raises(ValueError, match="other settings: evaluation was"):
        make(resume=True, patience=3, **options).fit(*frames)


# --- what must agree ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"measures": [RR]}, "evaluation"),
        ({"patience": 3}, "evaluation"),
        ({"learning_rate": 1e-4}, "arguments"),
        ({"rounds": 2}, "mining"),
        ({"bf16": True}, "arguments"),
    ],
    ids=str,
)
def test_resume_needs_all_that_decides_on_the_result(make, collection, interrupted, change, name):
    topics, qrels, corpus = collection.topics, collection.qrels, collection.corpus
    options = {"num_train_epochs": 2, "save_steps": 3, "eval_steps": 3, "corpus": corpus, "bf16": False}
    with interrupted():
        make(**options).fit(topics, qrels, topics, qrels)
    with pytest.raises(ValueError, match=f"other settings: {name} was"):
        make(resume=True, **{**options, **change}).fit(topics, qrels, topics, qrels)


def test_resume_needs_the_same_validation_queries_qrels_corpus_and_fields(make, collection, interrupted):
    results, qrels, corpus = collection.results, collection.qrels, collection.corpus
    topics = collection.topics
    options = {"num_train_epochs": 2, "save_steps": 3, "eval_steps": 3}
    other = corpus.assign(text=corpus["text"] + " again", title="title")
    with interrupted():
        make("results", **options).fit(results, qrels, results, qrels)
    with interrupted():
        make("corpus", corpus=corpus, rounds=2, **options).fit(results, qrels, topics, qrels)

    def resume(folder, *frames, **changes):
        with pytest.raises(ValueError, match="other settings: .*(evaluation|mining) was"):
            make(folder, resume=True, **options, **changes).fit(results, qrels, *frames)

    resume("results", results[results["qid"] < "q4"], qrels)
    resume("results", results, qrels.assign(label=1))
    resume("corpus", topics, qrels, corpus=other, rounds=2)
    resume("corpus", topics, qrels, corpus=other, rounds=2, fields=["title", "text"])
    resume("corpus", topics, qrels, corpus=corpus, rounds=2, negatives=Negatives(1, range_max=20))


def test_resume_needs_the_same_share_of_queries_held_out(make, collection, interrupted):
    results, qrels = collection.results, collection.qrels
    options = {"num_train_epochs": 4, "save_steps": 3, "eval_steps": 3}
    whole = make("whole", valid_share=0.4, **options).fit(results, qrels)
    with interrupted():
        make("cut", valid_share=0.4, **options).fit(results, qrels)
    with pytest.raises(ValueError, match=r"other settings: .*valid_share was 0.4 and is 0.5"):
        make("cut", valid_share=0.5, resume=True, **options).fit(results, qrels)
    resumed = make("cut", valid_share=0.4, resume=True, **options).fit(results, qrels)
    assert resumed.encoder == whole.encoder


def test_what_is_harmless_may_change_when_a_run_is_resumed(make, collection, interrupted, encoder, tmp_path):
    results, qrels = collection.results, collection.qrels
    options = {"num_train_epochs": 2, "save_steps": 3}
    whole = make("whole", **options).fit(results, qrels)
    with interrupted():
        make("cut", report_to="none", logging_steps=5, **options).fit(results, qrels)
    encoder.copy().save(tmp_path / "renamed")
    same = SelfDistillTrainer(
        pt.Artifact.load(str(tmp_path / "renamed")),
        tmp_path / "cut",
        resume=True,
        verbose=True,
        report_to=[],
        run_name="again",
        dataloader_num_workers=1,
        logging_steps=2,
        learning_rate=1e-3,
        per_device_train_batch_size=8,
        **options,
    )
    assert same.fit(results, qrels).encoder.model_name == whole.encoder.model_name


# --- one run at a time ----------------------------------------------------------------------------------------------


def test_a_second_fit_in_one_folder_is_told_who_has_it(make, collection, tmp_path):
    results, qrels = collection.results, collection.qrels
    code = (
        "from pyterrier_selfdistill.utils.folders import folder_lock\n"
        f"with folder_lock({str(tmp_path / 'run')!r}, 'training an encoder'):\n"
        "    print('training', flush=True)\n"
        "    input()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], **pipes) as process:
        assert process.stdout.readline() == "training\n"
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(FolderInUseError, match=f"process {process.pid} on .* is training an encoder"):
                make(**options).fit(results, qrels)
        assert not (tmp_path / "run").exists()
        process.communicate("\n")
    make().fit(results, qrels)


def test_fit_has_the_folder_to_itself_from_the_first_step_until_the_model_is_written(
    make, collection, tmp_path, monkeypatch
):
    refused = []

    def refuse_others():
        with pytest.raises(FolderInUseError), folder_lock(tmp_path / "run", "something else"):
            pass
        refused.append(True)

    compute, save = SelfDistillationLoss.forward, SelfDistillBiEncoder.save
    monkeypatch.setattr(SelfDistillationLoss, "forward", lambda *args: (refuse_others(), compute(*args))[1])
    monkeypatch.setattr(SelfDistillBiEncoder, "save", lambda *args, **named: (refuse_others(), save(*args, **named)))
    make().fit(collection.results, collection.qrels)
    assert len(refused) == 6
    with folder_lock(tmp_path / "run", "something else"):
        pass


def test_checkpoints_of_somebody_else_are_not_replaced(make, collection, tmp_path):
    thesis = tmp_path / "run" / "checkpoints" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("forty pages")
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError, match=r"holds \['thesis.tex'\] and no settings.json"):
            make(**options).fit(collection.results, collection.qrels)
    assert thesis.read_text() == "forty pages"


def test_a_model_folder_of_somebody_else_is_not_replaced(make, collection, tmp_path):
    thesis = tmp_path / "run" / "model" / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("forty pages")
    with pytest.raises(FileExistsError, match="thesis.tex"):
        make(overwrite=True).fit(collection.results, collection.qrels)
    assert thesis.read_text() == "forty pages"


def test_a_folder_that_is_removed_while_training_goes_on_is_told(make, collection, tmp_path, monkeypatch):
    compute = SelfDistillationLoss.forward

    def remove(*arguments):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return compute(*arguments)

    monkeypatch.setattr(SelfDistillationLoss, "forward", remove)
    with pytest.raises(FileNotFoundError, match="was removed (while it trained|meanwhile)"):
        make().fit(collection.results, collection.qrels)


def test_nothing_that_a_run_writes_holds_a_token_or_a_path_of_this_machine(make, collection, tmp_path):
    token = "hf_abcdefghijklmnop"
    trainer = make(hub_token=token, report_to="none", hub_model_id=str(tmp_path / "logs"))
    trainer.fit(collection.results, collection.qrels, collection.results, collection.qrels)
    for path in (tmp_path / "run").rglob("*"):
        if not path.is_file():
            continue
        written = path.read_bytes()
        assert token.encode() not in written, path
        # the state of transformers names the best checkpoint; it is read where the folder lies
        if path.name != "trainer_state.json":
            assert str(tmp_path).encode() not in written, path
    settings = json.loads((tmp_path / "run/checkpoints/settings.json").read_text())
    assert "hub_token" not in settings["arguments"]
