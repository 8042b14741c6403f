import pytest

from benchmarks.study.run import Run, check_settings


def test_the_key_of_a_run_is_of_what_is_not_the_default():
    assert Run("tiny").key == Run("tiny", error="l2", triples=1024).key
    different = [Run("tiny"), Run("other"), Run("tiny", seed=2), Run("tiny", margin=0.5)]
    assert len({run.key for run in different}) == 4


def test_the_key_of_a_run_never_changes():
    """Keys name the records of earlier versions: a setting may be added, with a default that changes nothing."""
    assert Run("nfcorpus", loss="adaptive", in_batch=True, learning_rate=3e-5).key == "782c9a491be5"


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (Run("tiny"), "distributed"),
        (Run("tiny", loss="infonce"), "InfoNCE"),
        (Run("tiny", loss="infonce", scale=40), "InfoNCE 40"),
        (Run("tiny", loss="margin_mse", margin=1.0), "MarginMSE 1"),
        (Run("tiny", loss="static", margin=0.5, in_batch=True, error="l1"), "static 0.5, in-batch, l1"),
        (Run("tiny", loss="adaptive", detach_target=True), "adaptive, detached"),
    ],
)
def test_loss_name_has_the_options_that_are_not_the_default(run, name):
    assert run.loss_name == name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1e-5}, r"unknown settings \['rate'\]; expected some of \['batch_sampler', "),
        ({"triples": 0}, "triples must be a positive integer, got 0"),
        ({"triples": "many"}, "triples must be a positive integer, got 'many'"),
        ({"learning_rate": -1e-5}, "learning_rate must be a positive number, got -1e-05"),
        ({"in_batch": "yes"}, "in_batch must be a valid boolean, got 'yes'"),
        ({"pooling": "max"}, "pooling must be 'mean' or 'cls', got 'max'"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"model": ""}, "model must be a name, got ''"),
    ],
)
def test_settings_are_checked_by_their_types(settings, message):
    with pytest.raises(ValueError, match=message):
        check_settings(settings)


def test_settings_that_the_types_allow_pass():
    check_settings({"margin": 1, "scale": None, "epochs": 2, "dev_documents": 0, "transfer": ("other",)})
