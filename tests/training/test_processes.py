"""Training in two processes against training in one: the same model, everything written once, nobody left waiting."""

import itertools
import re

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.base.sampler import DefaultBatchSampler, NoDuplicatesBatchSampler
from torch.utils.data import RandomSampler

from pyterrier_selfdistill import SelfDistillationLoss, SelfDistillBiEncoder
from pyterrier_selfdistill.data.triples import read_triples
from pyterrier_selfdistill.training.loop import (
    PartBatchSampler,
    leaves_too_few,
    read_in_turn,
    require_batches,
    require_whole_models,
)
from tests import together

RUNS = ["plain", "accumulated", "cached", "mined", "kept", "several", "resumed"]


@pytest.fixture(scope="module")
def alone(language_model, tmp_path_factory):
    """What becomes of one process with the same global batches."""
    results = together.train(language_model, tmp_path_factory.mktemp("alone"))
    # of a run that nothing interrupts
    return results | {"resumed": results["plain"]}


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_the_model_of_one(launched, alone, run):
    """Also with an uneven last batch, accumulated and cached gradients, mined negatives, and after an interruption."""
    weights, history = alone[run]["weights"], alone[run]["history"]
    assert len(history) >= 3
    for process in launched.results:
        for name, expected in weights.items():
            torch.testing.assert_close(process[run]["weights"][name], expected, atol=1e-5, rtol=0)
        np.testing.assert_allclose(process[run]["history"], history, atol=1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_processes_end_with_the_same(launched, run):
    first, second = [process[run] for process in launched.results]
    assert first["summary"] == second["summary"]
    assert first["summary"]["processes"] == 2
    assert first["history"].equals(second["history"])
    for name, weights in first["weights"].items():
        assert torch.equal(weights, second["weights"][name])


def test_processes_keep_the_encoder_that_training_does_not_improve(launched, language_model):
    start = together.load(language_model).model.state_dict()
    for process in launched.results:
        assert process["kept"]["summary"]["best_step"] == 0
        for name, weights in process["kept"]["weights"].items():
            assert torch.equal(weights, start[name])


def test_only_the_first_process_warns(launched):
    first, second = [process["messages"] for process in launched.results]
    assert first[0] == "1 of 22 rows were dropped: 1 x no text in 'query'"
    assert not second


def test_each_file_is_written_once(launched):
    folder = launched.folder / "plain"
    assert {path.name for path in folder.iterdir()} == {"model", "history.csv", "history.png", "checkpoints"}
    kept = {path.name for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")}
    assert kept == {"settings.json", "log.json", "eval", "checkpoint-4", "checkpoint-6"}
    saved = SelfDistillBiEncoder(str(folder / "model"), device="cpu").model.state_dict()
    for name, weights in launched.results[1]["plain"]["weights"].items():
        assert torch.equal(weights, saved[name])


def test_mixed_precision_is_for_the_steps_only(launched):
    for process in launched.results:
        # before the first step both are the same model
        assert process["measure"] == pytest.approx(process["plain"]["history"]["nDCG@10"][0], abs=1e-9)
        np.testing.assert_allclose(process["vectors"], process["saved"], atol=1e-6)


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        ("exists", "FileExistsError", "holds a run; go on with resume=True"),
        ("others", "ValueError", "had other settings: .*seed was 42 and is 1"),
        ("different", "ValueError", "given different triples.*same source"),
        ("few", "ValueError", "1 triples make no batch for 2 processes, which need 2"),
        ("few for a batch", "ValueError", "7 triples make no batch for 2 processes, which need 8"),
        ("nan", "FloatingPointError", "the loss is nan in step"),
    ],
)
def test_an_error_ends_all_processes(launched, attempt, error, message):
    for process in launched.results:
        name, words = process["errors"][attempt]
        assert name == error
        assert re.search(message, words)


def test_a_process_that_dies_ends_the_others(launched):
    died = float((launched.folder / "died").read_text())
    assert launched.code != 0
    assert launched.ended - died < 30
    assert "the second process dies" in launched.output
    assert {path.name for path in (launched.folder / "dying").iterdir()} == {"checkpoints"}


# --- in one process -------------------------------------------------------------------------------------------------


def test_one_process_trains_with_one_triple(tiny_model, tmp_path):
    arguments = SentenceTransformerTrainingArguments(str(tmp_path), use_cpu=True, dataloader_drop_last=True)
    require_batches(1, arguments, SelfDistillationLoss(tiny_model))
    triples = read_triples(together.ROWS)
    assert read_in_turn(lambda: triples) is triples


def test_weights_are_not_divided(tmp_path, monkeypatch):
    arguments = SentenceTransformerTrainingArguments(str(tmp_path), use_cpu=True)
    require_whole_models(arguments)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP.*first or second stage of ZeRO"):
        require_whole_models(arguments)


def make_batches(rows, size, *, drop_last=False):
    generator = torch.Generator().manual_seed(0)
    return DefaultBatchSampler(RandomSampler(range(rows), generator=generator), size, drop_last)


@pytest.mark.parametrize("rows", range(1, 18))
@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_parts_make_up_the_batches(rows, parts, drop_last):
    batches = list(make_batches(rows, 8, drop_last=drop_last))
    drop_last = drop_last or leaves_too_few(rows, 8, parts)
    sampler = PartBatchSampler(make_batches(rows, 8, drop_last=drop_last), parts=parts)
    divided = list(sampler)
    assert len(divided) == len(sampler)
    expected = [batch for batch in batches if len(batch) >= parts]
    joined_again = []
    for start in range(0, len(divided), parts):
        of_batch = divided[start : start + parts]
        sizes = [len(part) for part in of_batch]
        assert 0 < min(sizes) <= max(sizes) <= min(sizes) + 1
        joined_again.append([*itertools.chain(*of_batch)])
    assert joined_again == expected


def test_parts_follow_the_order_that_accelerate_sets():
    sampler = PartBatchSampler(make_batches(8, 4), parts=2)
    # so that accelerate replaces it, as it does in one process
    assert isinstance(sampler.sampler, RandomSampler)
    sampler.sampler = SeedableRandomSampler(range(8), data_seed=1)
    sampler.sampler.set_epoch(3)
    assert (sampler.batches.sampler.epoch, sampler.batches.epoch) == (3, 3)
    sampler.sampler = range(8)
    assert list(sampler) == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_batches_that_order_rows_themselves_are_told_of_epochs():
    dataset = Dataset.from_dict({"query": ["a", "b"], "positive": ["c", "d"]})
    batches = NoDuplicatesBatchSampler(dataset, 2, drop_last=False)
    PartBatchSampler(batches, parts=2).sampler.set_epoch(5)
    assert batches.epoch == 5
