"""The losses of a softmax in training: the scale that the encoder measures once, pairs, and batches of one positive."""

import pandas as pd
import pytest

from tests.training.together import ROWS

TRIPLES = [row[:3] for row in ROWS[:17]]
"""17 triples with different positives: two batches of eight, and one of one."""


def test_the_scale_is_measured_once_or_set_and_batches_of_one_positive_are_skipped(make, capsys):
    trainer = make(target="softmax", verbose=True).fit_triples(TRIPLES)
    summary = trainer.encoder.training_summary
    measured = summary["loss"]["scale"]
    assert 1 < measured < 1000
    assert float(f"{measured:.3g}") == measured
    assert "Measuring the scale" in capsys.readouterr().err
    assert (summary["loss"]["target"], summary["skipped_batches"]) == ("softmax", 1)
    assert f"scale={measured}" in (trainer.output_dir / "model" / "README.md").read_text()
    by_hand = make("by hand", target="softmax", scale=2 * measured, verbose=True).fit_triples(TRIPLES)
    assert by_hand.encoder.training_summary["loss"]["scale"] == 2 * measured
    assert "Measuring the scale" not in capsys.readouterr().err
    assert by_hand.encoder.model_name != trainer.encoder.model_name


def test_pairs_train_without_negatives(make, tmp_path):
    pairs = pd.DataFrame([row[:2] for row in TRIPLES], columns=["query", "positive"])
    pairs.to_csv(tmp_path / "pairs.tsv", sep="\t", index=False)
    of_file = make("file").fit_triples(tmp_path / "pairs.tsv").encoder
    assert of_file.training_summary["data"]["negatives"] == 0
    assert make("listwise").fit_triples(pairs).encoder == of_file
    assert make("softmax", target="softmax").fit_triples(pairs).encoder != of_file
    with pytest.raises(ValueError, match="target='distributed'.*negatives"):
        make("third", target="distributed").fit_triples(pairs)
    with pytest.raises(ValueError, match="target='adaptive'.*negatives"):
        make("labelled", target="adaptive").fit_triples(pairs.assign(label=1.0))
    # a column of negatives under another name must not make pairs of triples
    named = make("fourth").fit_triples(pairs.assign(neg="sort")).encoder
    assert named.training_summary["data"]["negatives"] == 1
    with pytest.raises(ValueError, match="two different positives"):
        make("fifth").fit_triples([("sort", "sort the rows"), ("order", "sort the rows")])
