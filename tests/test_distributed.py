"""What processes share: gradients of the global batch, decisions and errors, in one process and in two."""

import logging
import pickle

import pytest
import torch
from torch import nn

from pyterrier_selfdistill.utils.processes import (
    agree,
    gather_batch,
    gather_objects,
    in_turn,
    is_first,
    joined,
    share_weights,
)
from tests import together


@pytest.fixture(scope="module")
def alone(language_model):
    """The losses and gradients of one process with the whole batch."""
    return together.losses_and_gradients(language_model)


@pytest.mark.parametrize("name", together.LOSSES)
def test_two_processes_have_the_loss_and_the_gradients_of_one(launched, alone, name):
    loss, gradients = alone[name]
    # its scale, of some ten here, multiplies the rounding of margins
    bound = 1e-5 if name.startswith("calibrated") else 1e-6
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0.01
    for process in launched.results:
        loss_of_two, gradients_of_two = process["losses"][name]
        assert loss_of_two == pytest.approx(loss, abs=bound)
        assert gradients_of_two.keys() == gradients.keys()
        for weights, gradient in gradients.items():
            torch.testing.assert_close(gradients_of_two[weights], gradient, atol=bound, rtol=0)


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        ("first", ("LookupError", "process 0 cannot")),
        ("second", ("LookupError", "process 1 cannot")),
        ("pickled", ("AttributeError", "Can't pickle local object 'errors.<locals>.fail'")),
    ],
)
def test_an_error_of_one_process_is_raised_in_all(launched, attempt, error):
    assert [process["errors"][attempt] for process in launched.results] == [error, error]


def test_one_process_does_the_work_and_nothing_else():
    columns = [torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3)]
    assert all(gathered is column for gathered, column in zip(gather_batch(columns), columns, strict=True))
    assert is_first()
    assert gather_objects({1}) == [{1}]
    result = object()
    assert agree(lambda: result) is result
    assert in_turn(lambda: result) is result
    share_weights(nn.Linear(1, 1))
    with pytest.raises(ZeroDivisionError):
        agree(lambda: 1 / 0)


def test_one_process_joins_nobody_and_logs(monkeypatch, caplog):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined(torch.device("cpu"), {}):
        assert not torch.distributed.is_initialized()
        logging.getLogger("pyterrier_selfdistill").warning("rows were dropped")
    assert "rows were dropped" in caplog.text


def test_errors_that_cannot_be_sent_are_told_in_words(monkeypatch):
    """As the first of two processes, which are played here."""

    class UnpicklableError(Exception):
        def __reduce__(self):
            raise TypeError("a lock is in it")

    def fail():
        raise UnpicklableError("the disk is full")

    sent = []
    monkeypatch.setattr("pyterrier_selfdistill.utils.processes.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.broadcast_object_list", lambda objects, src: sent.extend(objects))
    with pytest.raises(UnpicklableError):
        agree(fail)
    received = pickle.loads(pickle.dumps(sent[1]))
    assert str(received) == "UnpicklableError in another process: the disk is full"
