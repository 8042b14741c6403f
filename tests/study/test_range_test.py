import pytest

from benchmarks.study.range_test import early_loss, range_test
from benchmarks.study.run import Run


def losses(early, late):
    """The part of a record with the losses of eight steps."""
    return {"training": {"history": {"loss": [9.0, 9.0, early, early, late, late, late, late]}}}


def test_range_test_compares_what_the_loss_predicts_with_what_is_best_on_dev(make_results):
    results = make_results(
        (Run("tiny", learning_rate=1e-5), 0.5, losses(2.0, 0.0)),
        (Run("tiny", learning_rate=1e-4), 0.4, losses(1.0, 5.0)),
        (Run("tiny", loss="infonce"), 0.4, losses(1.0, 1.0)),
    )
    table = range_test(results.grid("made"))
    (row,) = table.to_dict(orient="records")
    assert (row["loss"], row["predicted"], row["best"]) == ("distributed", 1e-4, 1e-5)
    assert row["loses"] == pytest.approx(0.1, abs=0.01)
    assert early_loss(results.one("made", loss="infonce")) == 1
