"""Model cards: what the page says of an encoder, from its metadata alone."""

import pytest
import yaml

from pyterrier_selfdistill.encoder.card import artifact_card, saved_card

METADATA = {
    "type": "biencoder",
    "format": "selfdistill",
    "model": {
        "checksum": "0123456789abcdef",
        "architecture": "BertModel",
        "parameters": 22713216,
        "dimension": 384,
        "pooling": "cls",
        "query_length": 20,
        "document_length": 200,
        "prompts": {"query": "q|uery: "},
    },
    "training": {},
}
TRAINING = {
    "base_model": {"name": "microsoft/mpnet-base", "checksum": "fedcba9876543210"},
    "data": {
        "source": "results",
        "triples": 12345,
        "queries": 678,
        "negatives": 2,
        "fingerprint": "ab12",
        "dropped": 1203,
    },
    "loss": {"name": "SelfDistillationLoss", "target": "distributed", "error": "l2"},
    "preset": "paper",
    "arguments": {"num_train_epochs": 2},
    "seed": 0,
    "steps": 20,
    "seconds": 1.5,
    "best_step": 10,
    "best_measure": {"name": "nDCG@10", "value": 0.56789},
    "history": [
        {"step": 10, "loss": 0.25, "margin": 0.1, "scale": 20.0, "nDCG@10": 0.56789},
        {"step": 20, "loss": 0.125, "margin": 0.2, "scale": 15.0, "nDCG@10": 0.5},
    ],
    "versions": {"torch": "2.13.0", "transformers": "5.0"},
}
TRAINED = {**METADATA, "training": TRAINING}


def test_card_says_which_shorter_vectors_were_trained():
    loss = TRAINING["loss"] | {"matryoshka_dims": [384, 96, 48]}
    nested = {**METADATA, "training": {**TRAINING, "loss": loss}}
    row = "| Shorter vectors | the first 96, 48 dimensions were trained too: `encoder.truncate(...)` |"
    assert row in saved_card(nested, title="Tiny", load="load()")
    cut = {**METADATA, "training": {**TRAINING, "truncated_from": 384}}
    row = "| Truncated | after training; measures are of vectors of 384 dimensions |"
    assert row in saved_card(cut, title="Tiny", load="load()")
    assert "Shorter vectors" not in saved_card(TRAINED, title="Tiny", load="load()")


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_saved_card_describes_the_encoder():
    card = saved_card(METADATA, title="Tiny", load="load()")
    for row in (
        "| Architecture | BertModel, 22,713,216 parameters |",
        "| Vectors | 384 dimensions, unit length; pooling: cls |",
        "| Queries and documents | cut at 20 and 200 tokens |",
        r"| Prompts | query `q\|uery: ` |",
        "| Checksum | `0123456789ab` |",
    ):
        assert row in card
    assert "# Tiny\n" in card
    assert "encoder = load()\n" in card
    assert "@inproceedings{gienapp2025" in card
    assert "Training" not in card
    assert "self-distillation with adaptive relevance margins." not in card


def test_saved_card_says_how_it_was_trained():
    card = saved_card(TRAINED, title="Tiny", load="load()")
    for row in (
        "| Base model | `microsoft/mpnet-base` `fedcba987654` |",
        "| Data | 12,345 triples of 678 queries, from results, 2 negatives each; fingerprint `ab12` |",
        "| Left out | 1,203 rows |",
        "| Loss | `SelfDistillationLoss` target=distributed, error=l2 |",
        "| Arguments | preset `paper`, num_train_epochs=2 |",
        "| Seed | 0 |",
        "| Steps | 20, in 1.5 seconds |",
        "| Best | nDCG@10 0.5679 at step 10 |",
        "| Versions | torch 2.13.0, transformers 5.0 |",
        "| step | loss | mean margin | mean scale | nDCG@10 |  |",
        "| 10 | 0.2500 | 0.1000 | 20.0000 | 0.5679 | best |",
        "| 20 | 0.1250 | 0.2000 | 15.0000 | 0.5000 |  |",
    ):
        assert row in card
    assert "trained by self-distillation with adaptive relevance margins." in card
    assert "which chose the best step" in card


def test_saved_card_of_the_calibrated_loss():
    training = {**TRAINING, "loss": {"name": "SelfDistillationLoss", "target": "calibrated"}}
    card = saved_card({**METADATA, "training": training}, title="Tiny", load="load()")
    assert ", trained with a softmax that each batch calibrates." in card
    assert "adaptive relevance margins." not in card


def test_saved_card_says_that_training_did_not_improve_it():
    history = [{"step": 0, "nDCG@10": 0.6}, *TRAINING["history"]]
    training = {**TRAINING, "best_measure": {"name": "nDCG@10", "value": 0.6}, "best_step": 0, "history": history}
    card = saved_card({**METADATA, "training": training}, title="Tiny", load="load()")
    assert ": the base model as it was, since training did not improve it." in card
    assert "trained by self-distillation with" not in card
    assert "| Best | nDCG@10 0.6000 at step 0, before training: no later step was better |" in card
    assert "| 0 |  |  |  | 0.6000 | best |" in card


def test_saved_card_without_validation_has_no_measures():
    training = {**TRAINING, "best_measure": None, "best_step": None, "history": [{"step": 20, "loss": 0.125}]}
    card = saved_card({**METADATA, "training": training}, title="Tiny", load="load()")
    assert "There were no validation queries." in card
    assert "| Best |" not in card
    assert "best |" not in card


def test_saved_card_leaves_out_what_the_summary_lacks():
    card = saved_card({**METADATA, "training": {"steps": 3}}, title="Tiny", load="load()")
    for title in ("Base model", "Data", "Left out", "Loss", "Seed", "Best", "Measures"):
        assert title not in card
    assert "| Steps | 3, in None seconds |" in card


@pytest.mark.parametrize(
    ("name", "expected"),
    [("microsoft/mpnet-base", "microsoft/mpnet-base"), ("model", None), ("/models/mine", None), (None, None)],
)
def test_saved_card_links_a_base_model_of_the_hub(name, expected):
    training = {**TRAINING, "base_model": {"name": name, "checksum": "01"}}
    front = front_matter(saved_card({**METADATA, "training": training}, title="Tiny", load="load()"))
    assert front.get("base_model") == expected
    assert front["library_name"] == "sentence-transformers"
    assert "pyterrier" in front["tags"]


@pytest.mark.parametrize(("branch", "where"), [("main", "me/tiny"), (None, "me/tiny"), ("second", "me/tiny@second")])
def test_artifact_card_says_where_it_is(branch, where):
    card = artifact_card(TRAINED, repo="me/tiny", branch=branch, pretty_name=None)
    assert f"encoder = pt.Artifact.from_hf({where!r})\n" in card
    assert "# tiny\n" in card
    assert "pretty_name" not in front_matter(card)


def test_artifact_card_has_the_front_matter_of_an_artifact():
    card = artifact_card(METADATA, repo="me/tiny", branch="main", pretty_name="A tiny one")
    front = front_matter(card)
    assert front["pretty_name"] == "A tiny one"
    assert front["tags"][-1] == "pyterrier-artifact.biencoder.selfdistill"
    assert front["task_categories"] == ["text-retrieval"]
    assert "# A tiny one\n" in card
