"""Training in two processes compared with one: same losses and model, files written once, no process left waiting."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.utils.data import RandomSampler

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer
from pyterrier_selfdistill.utils.processes import PartBatchSampler
from tests.training import together


@pytest.fixture(scope="module")
def launched(language_model, tmp_path_factory):
    """Run ``together.py`` in two processes, on the CPU and with gloo."""
    script = Path(together.__file__)
    folder = tmp_path_factory.mktemp("together")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[2]), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, str(script), language_model, str(folder)],
        check=False,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    files = [folder / f"{rank}.pt" for rank in range(2)]
    assert all(file.exists() for file in files), done.stdout
    results = [torch.load(file, weights_only=False) for file in files]
    return SimpleNamespace(folder=folder, results=results, code=done.returncode, output=done.stdout)


@pytest.fixture(scope="module")
def alone(language_model, tmp_path_factory):
    """The same trainings in one process, with the same global batches, which nothing interrupts."""
    return together.train(language_model, tmp_path_factory.mktemp("alone"))


def test_two_processes_have_the_losses_and_the_gradients_of_one(launched, language_model):
    alone = together.losses_and_gradients(language_model)
    for name, (loss, gradients) in alone.items():
        assert max(gradient.abs().max() for gradient in gradients.values()) > 0.01
        for process in launched.results:
            loss_of_two, gradients_of_two = process["losses"][name]
            # both compute in float64
            assert loss_of_two == pytest.approx(loss, rel=1e-9), name
            assert gradients_of_two.keys() == gradients.keys()
            for weights, gradient in gradients.items():
                torch.testing.assert_close(gradients_of_two[weights], gradient, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("run", ["plain", "mined", "several"])
def test_two_processes_train_the_model_of_one(launched, alone, run):
    """Also with an uneven last batch, accumulated and cached gradients, mined negatives, and after an interruption."""
    expected, history = alone[run], alone[run]["history"]
    assert len(history) >= 3
    for process in launched.results:
        # float32 rounds sums of 1e-7 relative error in another order, and steps of Adam with epsilon=1e-4 multiply the
        # error of a gradient by up to 10
        np.testing.assert_allclose(process[run]["history"], history, rtol=1e-4)
        for name, weights in expected["weights"].items():
            torch.testing.assert_close(process[run]["weights"][name], weights, atol=1e-5, rtol=1e-4)
        loss = process[run]["history"]["loss"].dropna()
        assert loss.iloc[0] == pytest.approx(history["loss"].dropna().iloc[0], rel=1e-5)
    first, second = [process[run] for process in launched.results]
    assert first["summary"] == second["summary"]
    assert first["summary"]["processes"] == 2
    assert first["history"].equals(second["history"])
    for name, weights in first["weights"].items():
        assert torch.equal(weights, second["weights"][name])


def test_processes_keep_the_encoder_that_training_does_not_improve(launched):
    """Also in the precision that it had before training in mixed precision."""
    for process in launched.results:
        kept = process["kept"]
        assert kept["summary"]["best_step"] == 0
        for name, weights in kept["weights"].items():
            assert torch.equal(weights, kept["start"][name])
        np.testing.assert_array_equal(kept["vectors"], kept["start vectors"])


def test_the_first_process_goes_first_warns_and_writes(launched):
    first, second = launched.results
    assert first["turn"] + 0.1 <= second["turn"]
    assert "rows were dropped" in first["messages"][0]
    assert not second["messages"]
    folder = launched.folder / "plain"
    assert {path.name for path in folder.iterdir()} == {"model", "history.csv", "history.png", "checkpoints"}
    kept = {path.name for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")}
    assert kept == {"settings.json", "log.json", "eval", "checkpoint-4", "checkpoint-6"}
    saved = SelfDistillBiEncoder(str(folder / "model"), device="cpu").model.state_dict()
    for name, weights in second["plain"]["weights"].items():
        assert torch.equal(weights, saved[name])


def test_an_error_ends_all_processes(launched):
    expected = {
        "exists": ["FileExistsError", "resume=True"],
        "different": ["ValueError", "different triples"],
        "few": ["ValueError", "1 triples", "2 processes"],
        "few for a batch": ["ValueError", "7 triples", "8"],
        "nan": ["FloatingPointError", "nan"],
    }
    for process in launched.results:
        for attempt, words in expected.items():
            assert all(word in process["errors"][attempt] for word in words), process["errors"][attempt]
    # and a process that dies ends the others
    assert launched.code != 0
    assert "the second process dies" in launched.output
    assert {path.name for path in (launched.folder / "dying").iterdir()} == {"checkpoints"}


def test_weights_are_not_divided(encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP"):
        SelfDistillTrainer(encoder, tmp_path / "run", verbose=False).fit_triples(together.ROWS)


def make_batches(rows, size, *, drop_last=False):
    generator = torch.Generator().manual_seed(0)
    return DefaultBatchSampler(RandomSampler(range(rows), generator=generator), size, drop_last)


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_make_up_the_batches(parts):
    for rows, drop_last in itertools.product([1, 7, 8, 9, 11, 16, 17], [False, True]):
        divided = list(PartBatchSampler(make_batches(rows, 8, drop_last=drop_last), parts))
        whole = []
        for start in range(0, len(divided), parts):
            sizes = [len(part) for part in divided[start : start + parts]]
            assert 0 < min(sizes) <= max(sizes) <= min(sizes) + 1
            whole.append([*itertools.chain(*divided[start : start + parts])])
        batches = make_batches(rows, 8, drop_last=drop_last)
        assert whole == [batch for batch in batches if len(batch) >= parts]
