"""Judged queries as a source of triples, and hard negatives mined between rounds."""

import logging

import pandas as pd
import pytest

from pyterrier_selfdistill import Negatives
from pyterrier_selfdistill.training.mining import JudgedQueries


def judged(topics_or_results, qrels, corpus=None, *, negatives=Negatives(), min_label=1, seed=42):  # noqa: B008
    """Make judged queries with the options of a trainer."""
    return JudgedQueries(topics_or_results, qrels, corpus, None, "text", negatives, min_label, seed)


def relevant_texts(collection):
    """The query and the text of all relevant pairs."""
    relevant = collection.qrels[collection.qrels["label"] > 0].merge(collection.results, on=["qid", "docno"])
    return set(zip(relevant["query"], relevant["text"], strict=True))


def columns(triples, *names):
    return set(zip(*(triples.dataset[name] for name in names), strict=True))


def test_mining_draws_from_the_results_of_the_encoder(collection, encoder):
    queries = judged(collection.topics, collection.qrels, collection.corpus, negatives=Negatives(2, range_max=8))
    mined = queries.mine(encoder, step=1)
    scored = encoder(collection.results)
    first = scored[scored["rank"] < 8]
    allowed = set(zip(first["query"], first["text"], strict=True)) - relevant_texts(collection)
    assert columns(mined, "query", "negative_1") | columns(mined, "query", "negative_2") <= allowed
    assert queries.mine(encoder, step=1).summary["fingerprint"] == mined.summary["fingerprint"]
    assert queries.mine(encoder, step=2).summary["fingerprint"] != mined.summary["fingerprint"]


def test_mining_takes_queries_of_the_same_text_for_one(collection, encoder):
    """Triples do not say which of them they belong to: a document relevant to either is a negative of neither."""
    topics = pd.concat([collection.topics, collection.topics.head(1).assign(qid="twin")])
    twin = pd.DataFrame([["twin", "plot-file", 1], ["twin", "sort-table", 1]], columns=["qid", "docno", "label"])
    queries = judged(topics, pd.concat([collection.qrels, twin]), collection.corpus, negatives=Negatives(20))
    mined = queries.mine(encoder, step=1).dataset.to_pandas()
    of_both = mined[mined["query"] == "mean table"]
    positives = {f"{verb} the table by mean" for verb in collection.verbs} | {"plot the file by mean"}
    assert set(of_both["positive"]) == positives
    assert not set(of_both.filter(like="negative").to_numpy().ravel()) & positives


def test_mining_searches_beyond_the_results_that_are_never_drawn(encoder):
    corpus = [{"docno": f"d{number}", "text": f"sort the table {number}"} for number in range(150)]
    topics = pd.DataFrame([["1", "sort"]], columns=["qid", "query"])
    qrels = pd.DataFrame([["1", "d1", 1]], columns=["qid", "docno", "label"])
    queries = judged(topics, qrels, corpus, negatives=Negatives(range_min=110))
    assert queries.mine(encoder, step=1).summary["triples"] == 1


# --- queries held out for validation --------------------------------------------------------------------------------


def test_hold_out_divides_queries_and_their_judgements(collection):
    results, qrels = collection.results, collection.qrels
    # of an unknown query
    qrels = pd.concat([qrels, pd.DataFrame([["q99", "plot-file", 1]], columns=list(qrels))])
    training, valid, valid_qrels = judged(results, qrels, min_label=2).hold_out(0.4)
    held_out = set(valid["qid"])
    assert 0 < len(held_out) < 8
    assert set(training.topics_or_results["qid"]) == set(results["qid"]) - held_out
    assert len(training.topics_or_results) + len(valid) == len(results)
    assert set(valid_qrels["qid"]) == held_out
    assert set(training.qrels["qid"]) == set(qrels["qid"]) - held_out
    assert set(training.draw().dataset["query"]).isdisjoint(valid["query"])
    assert training.min_label == 2


def test_hold_out_depends_on_the_seed_and_keeps_equal_texts_together():
    topics = pd.DataFrame({"qid": [str(number) for number in range(200)]})
    topics["query"] = [f"sort {number % 100}" for number in range(200)]
    qrels = topics[["qid"]].assign(docno="d1", label=1)
    held_out = []
    for seed in (42, 42, 7):
        training, valid, _ = judged(topics, qrels, seed=seed).hold_out(0.1)
        assert not set(valid["query"]) & set(training.topics_or_results["query"])
        held_out.append(set(valid["qid"]))
    assert held_out[0] == held_out[1]
    assert len(held_out[0] & held_out[2]) < len(held_out[0]) / 2
    assert 6 <= len(held_out[0]) <= 40


def test_hold_out_needs_relevant_documents_on_both_sides(collection):
    topics, qrels = collection.topics, collection.qrels
    for queries in (judged(topics, qrels[qrels["qid"] == "q0"]), judged(topics, qrels, min_label=3)):
        with pytest.raises(ValueError, match="valid_share=0.4"):
            queries.hold_out(0.4)


@pytest.mark.parametrize("kind", ["results", "topics"])
def test_valid_share_trains_without_the_queries_that_it_evaluates_with(make, collection, kind):
    """Candidates are ranked; for topics alone the corpus is searched. Both are what you would get with two sets."""
    frame, qrels, corpus = getattr(collection, kind), collection.qrels, collection.corpus
    training, valid, valid_qrels = judged(frame, qrels).hold_out(0.4)
    options = {"corpus": corpus, "rounds": 2, "eval_steps": 3}
    shared, given = make("shared", valid_share=0.4, **options), make("given", **options)
    for trainer, frames in {
        shared: (frame, qrels),
        given: (training.topics_or_results, training.qrels, valid, valid_qrels),
    }.items():
        trainer.fit(*frames)
    summary = shared.encoder.training_summary
    assert summary["valid_share"] == 0.4
    assert summary["data"]["queries"] == training.topics_or_results["qid"].nunique() < 8
    assert summary["evaluation"]["queries"] == valid["qid"].nunique() == 8 - summary["data"]["queries"]
    assert ("corpus" in summary["evaluation"]) == (kind == "topics")
    assert summary["mining"]["rounds"] == 2
    assert given.encoder == shared.encoder
    pd.testing.assert_frame_equal(given.history, shared.history)
    with pytest.raises(ValueError, match="valid_share=0.4"):
        shared.fit(frame, qrels, None, qrels)


# --- rounds ---------------------------------------------------------------------------------------------------------


def mined_files(trainer):
    """The mined triples of a run by their step."""
    files = (trainer.output_dir / "checkpoints").glob("mined-*.parquet")
    return {int(path.stem.partition("-")[2]): pd.read_parquet(path) for path in files}


def test_each_round_but_the_first_mines(make, collection, caplog):
    options = {"rounds": 3, "num_train_epochs": 3, "negatives": Negatives(2, range_max=20)}
    with caplog.at_level(logging.INFO, "pyterrier_selfdistill"):
        # from a corpus without ranks; the first round draws from results
        trainer = make(corpus=collection.corpus, **options).fit(collection.results, collection.qrels)
    assert [record.args for record in caplog.records if record.msg.startswith("mining")] == [(5,), (10,)]
    mined = mined_files(trainer)
    assert sorted(mined) == [5, 10]
    assert not mined[5].equals(mined[10])
    for frame in mined.values():
        for row in frame.itertuples():
            thing = f" the {row.query.removeprefix('mean ')} "
            assert thing not in row.negative_1
            assert thing not in row.negative_2


@pytest.mark.parametrize(
    "loader", [{}, {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4}, {"gradient_accumulation_steps": 2}]
)
def test_mined_negatives_train_from_the_very_step(make, collection, seen, loader):
    """Whatever a loader fetched ahead."""
    options = {"corpus": collection.corpus, "rounds": 4, "max_steps": 8, "save_strategy": "no", **loader}
    trainer = make(**options).fit(collection.topics, collection.qrels)
    per_step = loader.get("gradient_accumulation_steps", 1)
    steps = [number // per_step for number in range(len(seen))]
    if per_step == 2:
        # five batches an epoch, so the last step of an epoch has one
        steps = [step for epoch in range(3) for step in (3 * epoch + part for part in (0, 0, 1, 1, 2))][: len(seen)]
    assert max(steps) == 7
    mined = mined_files(trainer)
    assert sorted(mined) == [2, 4, 6]
    tokenizer = trainer.encoder.model.tokenizer

    def as_trained(text):
        return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)

    for step, (queries, _, negatives) in zip(steps, seen, strict=True):
        if step >= 2:
            rows = mined[step - step % 2].itertuples()
            allowed = {(as_trained(row.query), as_trained(row.negative)) for row in rows}
            assert set(zip(queries, negatives, strict=True)) <= allowed


def test_a_mining_run_goes_on_bit_by_bit(make, collection, stopped):
    """Also if it was killed after the checkpoint of a round and before mining."""
    frames = collection.topics, collection.qrels
    options = {"corpus": collection.corpus, "rounds": 2, "num_train_epochs": 2, "save_steps": 1}
    whole = make("whole", **options).fit(*frames)
    for stop in (5, 7):
        with stopped(stop):
            make(f"cut {stop}", **options).fit(*frames)
        file = make(f"cut {stop}").output_dir / "checkpoints" / "mined-5.parquet"
        mined = file.read_bytes()
        file.unlink()
        if stop == 7:
            with pytest.raises(FileNotFoundError, match="mined after 5 steps"):
                make(f"cut {stop}", resume=True, **options).fit(*frames)
            file.write_bytes(mined)
        resumed = make(f"cut {stop}", resume=True, **options).fit(*frames)
        assert resumed.encoder.model_name == whole.encoder.model_name
