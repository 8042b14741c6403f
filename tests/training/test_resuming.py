"""The folder of a run: what a run may take, and how a stopped run goes on bit by bit."""

import json
import shutil

import pandas as pd
import peft
import pyterrier as pt
import pytest

from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.training.run_folder import RunFolder
from pyterrier_selfdistill.utils.folders import FolderInUseError, folder_lock
from tests.training.conftest import WHOLE
from tests.training.together import ROWS


def content(folder):
    """Every file below a folder, with its bytes and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_stopped_run_goes_on_bit_by_bit(whole, encoder, collection, stopped, tmp_path):
    """Folder and encoder have other names by then, the run is reported elsewhere, and a checkpoint was cut off."""
    results, qrels = collection.results, collection.qrels
    options = dict(WHOLE)
    with stopped(7):
        SelfDistillTrainer(encoder, tmp_path / "cut", **options).fit(results, qrels, results, qrels)
    with pytest.raises(FileExistsError, match="resume=True"):
        SelfDistillTrainer(encoder, tmp_path / "cut", **options).fit(results, qrels, results, qrels)
    (tmp_path / "cut").rename(tmp_path / "moved")
    broken = tmp_path / "moved/checkpoints/checkpoint-99"
    broken.mkdir()
    (broken / "trainer_state.json").write_text('{"global_step": 9')
    encoder.copy().save(tmp_path / "renamed")
    renamed = pt.Artifact.load(str(tmp_path / "renamed"), device="cpu", dtype="float32")
    options |= {"report_to": [], "run_name": "again", "dataloader_num_workers": 1, "verbose": True}
    resumed = SelfDistillTrainer(renamed, tmp_path / "moved", resume=True, **options)
    resumed.fit(results, qrels, results, qrels)
    assert resumed.encoder.model_name == whole.encoder.model_name
    assert resumed.encoder.training_summary["similarity"] == whole.encoder.training_summary["similarity"]
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    assert not broken.exists()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"target": 0.3}, "loss"),
        ({"seed": 7}, "seed"),
        ({"learning_rate": 1e-4}, "arguments"),
        ({"rounds": 2}, "mining"),
        ({"valid_share": 0.5}, "valid_share"),
        ({"adapter": peft.LoraConfig(r=2)}, "adapter"),
        ({"results": lambda r, q: (r, q, r, q.assign(label=1))}, "evaluation"),
        ({"results": lambda r, q: (r[r["qid"] < "q4"], q, r, q)}, "data"),
    ],
    ids=str,
)
def test_resuming_needs_all_settings_that_decide(whole, encoder, collection, change, name):
    """The run is finished, and stays as it was."""
    results, qrels = collection.results, collection.qrels
    change = dict(change)
    frames = change.pop("results", lambda r, q: (r, q, r, q))(results, qrels)
    if "valid_share" in change:
        frames = frames[:2]
    before = content(whole.output_dir)
    options = {**WHOLE, "corpus": collection.corpus, **change}
    with pytest.raises(ValueError, match=f"other settings: .*{name} was"):
        SelfDistillTrainer(encoder, whole.output_dir, resume=True, **options).fit(*frames)
    assert content(whole.output_dir) == before


@pytest.mark.parametrize(
    "options",
    [
        {"multi_dataset_batch_sampler": "proportional", "adapter": peft.LoraConfig(r=2, lora_dropout=0.1)},
        {"multi_dataset_batch_sampler": "round_robin"},
    ],
    ids=["proportional, adapter", "round robin"],
)
def test_other_runs_go_on_bit_by_bit_too(make, stopped, options):
    options = {"save_steps": 2, **options}
    source = {"one": [row[:3] for row in ROWS], "two": ROWS[:14]}
    with stopped(3):
        make("cut", **options).fit_triples(source)
    runs = make("cut", resume=True, **options), make("whole", **options)
    resumed, whole = [run.fit_triples(source).encoder.model_name for run in runs]
    assert resumed == whole


def test_a_run_that_took_too_much_memory_goes_on_in_mini_batches(make, collection, stopped):
    options = {"save_steps": 2, "bf16": True}
    with stopped(3):
        make(**options).fit(collection.results, collection.qrels)
    trainer = make(**options, mini_batch_size=3, resume=True).fit(collection.results, collection.qrels)
    assert trainer.encoder.training_summary["steps"] == 5
    assert trainer.encoder.training_summary["precision"] == "bf16"


# --- a run that is over, or finished --------------------------------------------------------------------------------

DESTRUCTIVE = {"learning_rate": 0.3, "warmup_steps": 0, "max_grad_norm": 1e9, "num_train_epochs": 4, "patience": 2}
"""A learning rate that destroys the model, so that the best checkpoint is not the last, and training stops early."""


def test_a_run_that_is_over_goes_on_with_its_best_checkpoint(make, collection, tmp_path, monkeypatch, stopped):
    """It was killed before it wrote the model, and moved. Then it is finished, and resuming it changes nothing."""
    frames = collection.results, collection.qrels, collection.results, collection.qrels
    options = {**DESTRUCTIVE, "eval_steps": 1, "eval_on_start": False}
    whole = make("whole", **options).fit(*frames)
    summary = whole.encoder.training_summary
    assert 0 < summary["best_step"] < summary["steps"] < 20
    with stopped("saving"):
        make("cut", **options).fit(*frames)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cut").rename(tmp_path / "elsewhere/run")
    monkeypatch.setattr(SelfDistillationLoss, "forward", lambda *_: 1 / 0)  # nothing trains
    monkeypatch.chdir(tmp_path)
    before = None
    for name in ("elsewhere/run", tmp_path / "elsewhere/run"):
        resumed = make(name, resume=True, **options).fit(*frames)
        assert resumed.encoder.model_name == whole.encoder.model_name
        assert resumed.encoder.dtype == "float32"
        for key in ("steps", "best_step", "best_measure"):
            assert resumed.encoder.training_summary[key] == summary[key]
        pd.testing.assert_frame_equal(resumed.history, whole.history)
        now = content(tmp_path / "elsewhere/run")
        assert before in (None, now)
        before = now


@pytest.mark.parametrize(
    ("at", "more", "evaluations"),
    [(4, {}, 4), (4, {"eval_steps": 9}, 2), ("saving", {"save_strategy": "best", "save_total_limit": 1}, 4)],
    ids=str,
)
def test_a_stopped_run_keeps_the_untrained_encoder(
    make, encoder, collection, satisfied, stopped, at, more, evaluations
):
    """Also if there is no checkpoint, either since none was due or since only best checkpoints are saved."""
    frames = collection.results, collection.qrels, collection.results, satisfied
    options = {**DESTRUCTIVE, "num_train_epochs": 1, "eval_steps": 2, "patience": 9, **more}
    with stopped(at):
        make(**options).fit(*frames)
    folder = make().output_dir
    for checkpoint in (folder / "checkpoints").glob("checkpoint-*"):
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        assert (state["best_global_step"], state["best_metric"]) == (0, 1.0)
    over = make(resume=True, **options).fit(*frames)
    assert over.encoder == encoder
    assert over.encoder.training_summary["best_step"] == 0
    assert over.history["nDCG@10"].dropna().size == evaluations
    before = content(folder)
    assert make(resume=True, **options).fit(*frames).encoder == encoder
    assert content(folder) == before


# --- whose folder it is ---------------------------------------------------------------------------------------------


def test_a_run_is_not_replaced_unasked_or_by_a_run_that_fails(make, collection, tmp_path, monkeypatch):
    results, qrels = collection.results, collection.qrels
    trainer = make(max_steps=1).fit(results, qrels)
    before = content(tmp_path / "run")
    fails = [
        (FileExistsError, {}, ()),
        (ValueError, {"overwrite": True, "lr_scheduler_type": "chilly"}, ()),
        (ValueError, {"overwrite": True}, (collection.topics, qrels)),  # nothing to search
    ]
    for error, options, validation in fails:
        with pytest.raises(error):
            make(**options).fit(results, qrels, *validation)
        assert content(tmp_path / "run") == before
    with monkeypatch.context() as patch:
        patch.setattr(SelfDistillationLoss, "forward", lambda *_: 1 / 0)
        for again in (trainer, make(overwrite=True)):
            with pytest.raises(ZeroDivisionError):
                again.fit(results, qrels)
            assert pt.Artifact.load(str(tmp_path / "run/model")) == trainer.encoder
    shutil.rmtree(tmp_path / "run/checkpoints")
    with pytest.raises(FileExistsError, match="no checkpoint"):
        make(resume=True).fit(results, qrels)
    make(overwrite=True, max_steps=1).fit(results, qrels)


SETTINGS = {
    "data": {"source": "triples.tsv", "fingerprint": "01", "triples": 7},
    "arguments": {"learning_rate": 1e-5, "report_to": "wandb", "hub_token": "hf_secret"},
    "base_model": {"name": "my-model", "checksum": "02"},
    "seed": 42,
}


def test_a_claim_finds_the_last_complete_checkpoint_of_the_same_run_or_removes_all(tmp_path):
    run = RunFolder(tmp_path / "run")
    run.claim(SETTINGS, resume=False, overwrite=False)
    assert "hf_secret" not in (run.checkpoints / "settings.json").read_text()
    for step, state in {9: "{}", 10: "{}", 11: '{"global_step": 1'}.items():
        checkpoint = run.checkpoints / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text(state)
    same = {
        "data": {"source": "elsewhere/triples.tsv", "fingerprint": "01", "triples": 7},
        "arguments": {"learning_rate": 1e-5, "logging_steps": 3},
        "base_model": {"name": "renamed", "checksum": "02"},
    }
    assert run.claim(SETTINGS | same, resume=True, overwrite=False) == run.checkpoints / "checkpoint-10"
    for change in ({"data": {"fingerprint": "03"}}, {"arguments": {"learning_rate": 2e-5}}, {"seed": 2}):
        with pytest.raises(ValueError, match="other settings"):
            run.claim(SETTINGS | change, resume=True, overwrite=False)
    assert run.claim(SETTINGS | {"seed": 2}, resume=False, overwrite=True) is None
    assert [path.name for path in run.checkpoints.iterdir()] == ["settings.json"]


def test_a_run_has_its_folder_to_itself(make, collection, tmp_path, monkeypatch):
    """From before it is claimed until the model is written."""
    results, qrels = collection.results, collection.qrels
    with folder_lock(tmp_path / "run", "indexing documents"):
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(FolderInUseError, match="indexing documents"):
                make(**options).fit(results, qrels)
    assert not (tmp_path / "run").exists()
    refused = []

    def refuse_others(name):
        with pytest.raises(FolderInUseError), folder_lock(tmp_path / "run", "something else"):
            pass
        refused.append(name)

    compute, save = SelfDistillationLoss.forward, SelfDistillBiEncoder.save
    monkeypatch.setattr(SelfDistillationLoss, "forward", lambda *args: (refuse_others("step"), compute(*args))[1])
    monkeypatch.setattr(
        SelfDistillBiEncoder, "save", lambda *args, **named: (refuse_others("save"), save(*args, **named))[1]
    )
    make(max_steps=1).fit(results, qrels)
    assert refused == ["step", "save"]
    with folder_lock(tmp_path / "run", "something else"):
        pass


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}], ids=str)
@pytest.mark.parametrize("folder", ["checkpoints", "model"])
def test_files_of_somebody_else_are_not_replaced(make, collection, tmp_path, folder, options):
    thesis = tmp_path / "run" / folder / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("forty pages")
    with pytest.raises(FileExistsError):
        make(max_steps=1, **options).fit(collection.results, collection.qrels)
    assert thesis.read_text() == "forty pages"


def test_a_folder_that_is_removed_while_training_is_an_error(make, collection, tmp_path, monkeypatch):
    compute = SelfDistillationLoss.forward

    def remove(*arguments):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return compute(*arguments)

    monkeypatch.setattr(SelfDistillationLoss, "forward", remove)
    with pytest.raises(FileNotFoundError, match="was removed"):
        make().fit(collection.results, collection.qrels)
