"""Judged queries as a source of triples, and hard negatives mined between rounds."""

import shutil

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


def test_mining_draws_from_the_results_of_the_encoder(collection, encoder):
    queries = judged(collection.topics, collection.qrels, collection.corpus, negatives=Negatives(2, range_max=8))
    mined = queries.mine(encoder, step=1)
    scored = encoder(collection.results)
    first = scored[scored["rank"] < 8]
    allowed = set(zip(first["query"], first["text"], strict=True)) - relevant_texts(collection)
    for column in ("negative_1", "negative_2"):
        assert set(zip(mined.dataset["query"], mined.dataset[column], strict=True)) <= allowed
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
    for unusable in (judged(results, qrels[qrels["qid"] == "q0"]), judged(results, qrels, min_label=3)):
        with pytest.raises(ValueError, match="valid_share=0.4"):
            unusable.hold_out(0.4)


def test_hold_out_depends_on_the_seed_and_keeps_equal_texts_together():
    topics = pd.DataFrame({"qid": [str(number) for number in range(200)]})
    topics["query"] = [f"sort {number % 100}" for number in range(200)]
    qrels = topics[["qid"]].assign(docno="d1", label=1)
    parts = [judged(topics, qrels, seed=seed).hold_out(0.1)[:2] for seed in (42, 42, 7)]
    for training, valid in parts:
        assert not set(valid["query"]) & set(training.topics_or_results["query"])
        assert 6 <= len(valid) <= 40
    first, same, other = [set(valid["qid"]) for _, valid in parts]
    assert first == same
    assert len(first & other) < len(first) / 2


def test_valid_share_trains_without_the_queries_that_it_evaluates_with(make, collection):
    """As if you gave the two sets."""
    results, qrels = collection.results, collection.qrels
    training, valid, valid_qrels = judged(results, qrels).hold_out(0.4)
    options = {"corpus": collection.corpus, "rounds": 2, "max_steps": 2}
    shared = make("shared", valid_share=0.4, **options).fit(results, qrels)
    given = make("given", **options).fit(training.topics_or_results, training.qrels, valid, valid_qrels)
    summary = shared.encoder.training_summary
    assert summary["valid_share"] == 0.4
    assert summary["data"]["queries"] == training.topics_or_results["qid"].nunique() < 8
    assert summary["evaluation"]["queries"] == valid["qid"].nunique() == 8 - summary["data"]["queries"]
    assert given.encoder == shared.encoder
    pd.testing.assert_frame_equal(given.history, shared.history)
    with pytest.raises(ValueError, match="valid_share=0.4"):
        shared.fit(results, qrels, None, qrels)


def test_mined_negatives_train_from_the_very_step(make, collection, seen):
    """Each round but the first mines, and its negatives train at once, whatever a loader fetched ahead."""
    options = {"corpus": collection.corpus, "rounds": 3, "max_steps": 6, "negatives": Negatives(range_max=20)}
    options |= {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 4, "save_strategy": "no"}
    # four batches and two steps an epoch
    options |= {"per_device_train_batch_size": 10, "gradient_accumulation_steps": 2}
    # the first round draws from results
    trainer = make(**options).fit(collection.results, collection.qrels)
    files = (trainer.output_dir / "checkpoints").glob("mined-*.parquet")
    mined = {int(path.stem.partition("-")[2]): pd.read_parquet(path) for path in files}
    assert sorted(mined) == [2, 4]
    assert not mined[2].equals(mined[4])
    tokenizer = trainer.encoder.model.tokenizer

    def as_trained(text):
        return tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)

    relevant = relevant_texts(collection)
    assert len(seen) == 12
    for number, (queries, _, negatives) in enumerate(seen[4:]):
        pairs = set(mined[2 + number // 4 * 2][["query", "negative"]].itertuples(index=False, name=None))
        assert not pairs & relevant
        allowed = {(as_trained(query), as_trained(negative)) for query, negative in pairs}
        assert set(zip(queries, negatives, strict=True)) <= allowed


def test_a_mining_run_goes_on_bit_by_bit(make, collection, stopped):
    """Also if it was killed after the checkpoint of a round and before mining."""
    frames = collection.topics, collection.qrels
    options = {"corpus": collection.corpus, "rounds": 2, "max_steps": 4, "save_steps": 1}
    options |= {"per_device_train_batch_size": 20}
    whole = make("whole", **options).fit(*frames)
    with stopped(3):
        make("cut", **options).fit(*frames)
    cut, killed = make("cut", resume=True, **options), make("killed", resume=True, **options)
    shutil.copytree(cut.output_dir, killed.output_dir)
    for run in (cut, killed):
        (run.output_dir / "checkpoints" / "mined-2.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="mined after 2 steps"):
        cut.fit(*frames)
    shutil.rmtree(killed.output_dir / "checkpoints" / "checkpoint-3")
    killed.fit(*frames)
    mined = [trainer.output_dir / "checkpoints" / "mined-2.parquet" for trainer in (killed, cut)]
    shutil.copy(*mined)
    assert cut.fit(*frames).encoder.model_name == killed.encoder.model_name == whole.encoder.model_name
