"""A run is prepared, and what is wrong with it found, before the folder is touched."""

import pytest


def test_what_cannot_be_prepared_leaves_an_earlier_run_alone(make, collection):
    earlier = make(max_steps=1).fit(collection.results, collection.qrels)
    before = {path: path.stat().st_mtime_ns for path in earlier.output_dir.rglob("*")}
    validation = collection.topics, collection.qrels  # without candidates, and without a corpus to search
    with pytest.raises(ValueError, match="corpus"):
        make(max_steps=1, overwrite=True).fit(collection.results, collection.qrels, *validation)
    assert {path: path.stat().st_mtime_ns for path in earlier.output_dir.rglob("*")} == before


def test_a_run_without_validation_chooses_no_best_step(make, collection):
    validation = collection.results, collection.qrels
    trainer = make(max_steps=2, eval_strategy="no").fit(collection.results, collection.qrels, *validation)
    assert trainer.encoder.training_summary["best_step"] is None
