"""Settings of a run: what decides on its result, and what may change when it is resumed."""

from pyterrier_selfdistill.training.arguments import decisive

SETTINGS = {
    "data": {"source": "triples.tsv", "fingerprint": "01", "triples": 7},
    "arguments": {"learning_rate": 1e-5, "report_to": "wandb", "hub_token": "hf_secret"},
    "base_model": {"name": "my-model", "checksum": "02"},
    "seed": 42,
}


def test_decisive_settings_do_not_depend_on_names_and_loggers():
    renamed = {
        **SETTINGS,
        "data": {"source": "elsewhere/triples.tsv", "fingerprint": "01", "triples": 7},
        "arguments": {"learning_rate": 1e-5, "logging_steps": 3},
        "base_model": {"name": "renamed", "checksum": "02"},
    }
    assert decisive(renamed) == decisive(SETTINGS)


def test_decisive_settings_differ_where_the_result_does():
    for change in (
        {"data": {"fingerprint": "03"}},
        {"base_model": {"name": "my-model", "checksum": "04"}},
        {"arguments": {"learning_rate": 2e-5}},
        {"seed": 43},
    ):
        assert decisive({**SETTINGS, **change}) != decisive(SETTINGS)


def test_decisive_settings_hold_no_secret():
    assert "hf_secret" not in str(decisive(SETTINGS))


def test_settings_describe_evaluation_and_mining(make, collection):
    topics, qrels, corpus = collection.topics, collection.qrels, collection.corpus
    trainer = make(corpus=corpus, rounds=2, patience=3, bf16=False).fit(topics, qrels, topics, qrels)
    summary = trainer.encoder.training_summary
    assert summary["evaluation"]["patience"] == 3
    assert summary["evaluation"]["measures"] == ["nDCG@10"]
    assert summary["evaluation"]["queries"] == 8
    assert summary["mining"]["rounds"] == 2
    assert summary["mining"]["corpus"] == summary["evaluation"]["corpus"]
    assert summary["precision"] == "float32"
    assert "valid_share" not in summary
    plain = make("plain", bf16=False).fit(collection.results, qrels).encoder.training_summary
    assert (plain["evaluation"], plain["mining"]) == (None, None)
