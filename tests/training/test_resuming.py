"""The folder of a run: what a run may take, and how a stopped run goes on bit by bit."""

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import peft
import pyterrier as pt
import pytest
from ir_measures import RR, nDCG
from safetensors.torch import load_file, save_file

from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.training.loop import TrainingLoop
from pyterrier_selfdistill.utils.folders import FolderInUseError, folder_lock
from tests.training.conftest import DESTRUCTIVE, WHOLE
from tests.training.together import ROWS


def content(folder):
    """Every file below a folder, with its bytes and when it was written."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_stopped_run_goes_on_bit_by_bit(whole, encoder, collection, stopped, tmp_path):
    """Meanwhile, names and trackers changed, one checkpoint was cut off, and half of another one was removed."""
    frames = (collection.results, collection.qrels) * 2
    with stopped(7):
        SelfDistillTrainer(encoder, tmp_path / "cut", **WHOLE).fit(*frames)
    with pytest.raises(FileExistsError, match="resume=True"):
        SelfDistillTrainer(encoder, tmp_path / "cut", **WHOLE).fit(*frames)
    (tmp_path / "cut").rename(tmp_path / "moved")
    checkpoints = tmp_path / "moved/checkpoints"
    for step, state in {99: '{"global_step": 9', 1: "{}"}.items():
        (checkpoints / f"checkpoint-{step}").mkdir()
        (checkpoints / f"checkpoint-{step}/trainer_state.json").write_text(state)
    os.utime(checkpoints / "checkpoint-1", times=(2e9, 2e9))
    encoder.copy().save(tmp_path / "renamed")
    renamed = pt.Artifact.load(str(tmp_path / "renamed"), device="cpu", dtype="float32")
    options = WHOLE | {"report_to": [], "run_name": "again", "dataloader_num_workers": 1, "verbose": True}
    resumed = SelfDistillTrainer(renamed, tmp_path / "moved", resume=True, **options).fit(*frames)
    assert resumed.encoder.model_name == whole.encoder.model_name
    assert resumed.encoder.training_summary["similarity"] == whole.encoder.training_summary["similarity"]
    pd.testing.assert_frame_equal(resumed.history, whole.history)
    for folder in (checkpoints, whole.output_dir / "checkpoints"):
        assert {path.name for path in folder.glob("*-*")} == {"checkpoint-9", "checkpoint-10"}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"target": 0.3}, "loss"),
        ({"seed": 7}, "seed"),
        ({"learning_rate": 1e-4}, "arguments"),
        ({"rounds": 2}, "mining"),
        ({"valid_share": 0.5}, "valid_share"),
        ({"adapter": peft.LoraConfig(r=2)}, "adapter"),
        ({"measures": [RR]}, "evaluation"),
        ({"negatives": 2}, "data"),
    ],
    ids=str,
)
def test_resuming_needs_all_settings_that_decide(whole, encoder, collection, change, name):
    """The run is finished, and stays as it was."""
    frames = (collection.results, collection.qrels) * (1 if name == "valid_share" else 2)
    before = content(whole.output_dir)
    options = {**WHOLE, "corpus": collection.corpus, **change}
    with pytest.raises(ValueError, match=f"other settings: .*{name} was"):
        SelfDistillTrainer(encoder, whole.output_dir, resume=True, **options).fit(*frames)
    assert content(whole.output_dir) == before


def test_a_run_of_an_adapter_with_several_data_sets_goes_on_bit_by_bit(make, stopped):
    options = {"save_steps": 2, "adapter": peft.LoraConfig(r=2, lora_dropout=0.1)}
    source = {"one": [row[:3] for row in ROWS], "two": ROWS[:14]}
    with stopped(3):
        make("cut", **options).fit_triples(source)
    runs = make("cut", resume=True, **options), make("whole", **options)
    resumed, whole = [run.fit_triples(source).encoder.model_name for run in runs]
    assert resumed == whole


@pytest.mark.parametrize("which", ["the last", "the best"])
def test_a_checkpoint_that_lacks_weights_is_refused(make, collection, stopped, monkeypatch, which):
    results, qrels = collection.results, collection.qrels

    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        weights.pop(next(name for name in weights if "attention" in name))
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    options = {"max_steps": 6, "save_steps": 2, "eval_steps": 2}
    if which == "the last":
        with stopped(5):
            make(**options).fit(results, qrels)
        damage(make(**options).output_dir / "checkpoints" / "checkpoint-4")
        run = make(resume=True, **options)
        arguments = results, qrels
    else:
        run, arguments = make(**options), (results, qrels, results, qrels)
        load = TrainingLoop._load_best_model

        def load_damaged(loop):
            damage(Path(loop.state.best_model_checkpoint))
            load(loop)

        monkeypatch.setattr(TrainingLoop, "_load_best_model", load_damaged)
    with pytest.raises(ValueError, match="lacks the weights .*attention"):
        run.fit(*arguments)
    assert not (run.output_dir / "model").exists()


def test_a_run_that_is_over_goes_on_with_its_best_checkpoint(make, collection, tmp_path, monkeypatch, stopped):
    """It was killed before it wrote the model, and moved. Then it is finished, and resuming it changes nothing."""
    results, qrels = collection.results, collection.qrels
    options = {**DESTRUCTIVE, "num_train_epochs": 4, "patience": 2, "eval_steps": 1, "eval_on_start": False}
    # the best step may also lie between checkpoints
    whole = make("whole", save_steps=10, **options).fit(results, qrels, results, qrels)
    summary = whole.encoder.training_summary
    assert 0 < summary["best_step"] < summary["steps"] < 20
    measured = pt.Evaluate(whole.encoder(results), qrels, [nDCG @ 10])["nDCG@10"]
    assert measured == pytest.approx(whole.history["nDCG@10"].max(), abs=1e-9)
    with stopped("saving"):
        make("cut", **options).fit(results, qrels, results, qrels)
    os.renames(tmp_path / "cut", tmp_path / "elsewhere/run")
    monkeypatch.setattr(SelfDistillationLoss, "forward", lambda *_: 1 / 0)  # nothing trains
    monkeypatch.chdir(tmp_path)
    before = None
    for name in ("elsewhere/run", tmp_path / "elsewhere/run"):
        resumed = make(name, resume=True, **options).fit(results, qrels, results, qrels)
        assert resumed.encoder.model_name == whole.encoder.model_name
        for key in ("steps", "best_step", "best_measure"):
            assert resumed.encoder.training_summary[key] == summary[key]
        pd.testing.assert_frame_equal(resumed.history, whole.history)
        now = content(tmp_path / "elsewhere/run")
        assert before in (None, now)
        before = now


@pytest.mark.parametrize(
    ("at", "more"), [(4, {}), ("saving", {"save_strategy": "best", "save_total_limit": 1})], ids=str
)
def test_a_stopped_run_keeps_the_untrained_encoder(make, encoder, collection, satisfied, stopped, at, more):
    """Also if there is no checkpoint, since only best checkpoints are saved. It goes on in mini-batches for memory."""
    frames = collection.results, collection.qrels, collection.results, satisfied
    options = {**DESTRUCTIVE, "eval_steps": 2, **more}
    with stopped(at):
        make(**options).fit(*frames)
    checkpoints = list((make().output_dir / "checkpoints").glob("checkpoint-*"))
    assert len(checkpoints) == (2 if at == 4 else 0)
    for checkpoint in checkpoints:
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        assert (state["best_global_step"], state["best_metric"]) == (0, 1.0)
    over = make(resume=True, mini_batch_size=3, **options).fit(*frames)
    assert over.encoder == encoder
    assert over.encoder.training_summary["best_step"] == 0
    assert over.history["nDCG@10"].dropna().size == 4


def test_a_run_is_not_replaced_unasked_or_by_a_run_that_fails(make, collection, tmp_path, monkeypatch, capsys):
    results, qrels = collection.results, collection.qrels
    trainer = make(max_steps=1).fit(results, qrels)
    before = content(tmp_path / "run")
    fails = [
        (FileExistsError, {"verbose": True}, ()),
        (ValueError, {"overwrite": True}, (collection.topics, qrels)),  # nothing to search
    ]
    for error, options, validation in fails:
        with pytest.raises(error):
            make(**options).fit(results, qrels, *validation)
        assert content(tmp_path / "run") == before
    # nothing is measured for a run that has no folder
    assert "Measuring" not in capsys.readouterr().err
    for name in ("settings.json", "log.json"):
        file = tmp_path / "run/checkpoints" / name
        whole = file.read_text()
        file.write_text("{\n")
        with pytest.raises(ValueError, match=f"{name}' is damaged: .* at line 2"):
            make(resume=True, max_steps=1).fit(results, qrels)
        file.write_text(whole)
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


def test_a_run_has_its_folder_to_itself(make, collection, tmp_path, monkeypatch):
    """From before it is claimed until the model is written."""
    results, qrels = collection.results, collection.qrels
    with folder_lock(tmp_path / "run", "indexing documents"):
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(FolderInUseError, match="indexing documents"):
                make(**options).fit(results, qrels)
    assert not (tmp_path / "run").exists()
    refused = []

    def refuse_others(computes):
        def refuse(*arguments, **options):
            with pytest.raises(FolderInUseError), folder_lock(tmp_path / "run", "something else"):
                pass
            refused.append(computes.__name__)
            return computes(*arguments, **options)

        return refuse

    monkeypatch.setattr(SelfDistillationLoss, "forward", refuse_others(SelfDistillationLoss.forward))
    monkeypatch.setattr(SelfDistillBiEncoder, "save", refuse_others(SelfDistillBiEncoder.save))
    make(max_steps=1).fit(results, qrels)
    assert refused == ["forward", "save"]
    with folder_lock(tmp_path / "run", "something else"):
        pass


@pytest.mark.parametrize("folder", ["checkpoints", "model"])
def test_files_of_somebody_else_are_not_replaced(make, tmp_path, folder):
    thesis = tmp_path / "run" / folder / "thesis.tex"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("forty pages")
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(FileExistsError):
            make(**options).fit_triples(ROWS)
    assert thesis.read_text() == "forty pages"
