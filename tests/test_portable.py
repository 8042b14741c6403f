"""What is written about a model for others to read."""

import json
from pathlib import Path

import pytest
from transformers import TrainingArguments

from pyterrier_selfdistill.utils.folders import portable_name, portable_settings


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/triples.tsv", "triples.tsv"),
        ("/home/me/My Documents/triples.tsv", "triples.tsv"),
        ("~/triples.tsv", "triples.tsv"),
        ("file:///home/me/triples.tsv", "triples.tsv"),
        (r"C:\Users\me\triples.tsv", "triples.tsv"),
        (Path("/home/me/triples.tsv"), "triples.tsv"),
        ("triples of /home/me/a.tsv, '/home/me/b.tsv' and ~me/c.tsv", "triples of a.tsv, 'b.tsv' and c.tsv"),
        ("read from file:///home/me/a.tsv", "read from a.tsv"),
        (r"read from C:\Users\me\a.tsv", "read from a.tsv"),
        (["/a/b", {"c": ("/d/e", 7)}], ["b", {"c": ["e", 7]}]),
        ({"/home/me/a.tsv": 3}, {"a.tsv": 3}),
    ],
)
def test_portable_settings_holds_no_path_of_this_machine(value, expected):
    assert portable_settings({"data": {"source": value}}) == {"data": {"source": expected}}


@pytest.mark.parametrize(
    "value",
    [
        "irds:msmarco-passage/train",
        "microsoft/mpnet-base",
        "runs/a/model",
        "./triples.tsv",
        "https://huggingface.co/datasets/me/triples",
        "query: ",
        "sort / plot, 1/2 and/or",
        0.5,
        None,
        True,
    ],
)
def test_portable_settings_leaves_other_values(value):
    assert portable_settings({"data": {"source": value}}) == {"data": {"source": value}}


def test_portable_settings_holds_no_secret_that_transformers_masks(tmp_path):
    secrets = {"hub_token": "hf_mine", "push_to_hub_token": "hf_mine", "mlflow_password": "mine", "api_key": "mine"}
    arguments = {**TrainingArguments(str(tmp_path)).to_dict(), **secrets}
    shown = json.dumps(portable_settings({"arguments": arguments, "nested": [{"hub_token": "hf_mine"}]}))
    assert "mine" not in shown
    assert str(tmp_path) not in shown
    assert '"include_num_input_tokens_seen"' in shown
    assert '"average_tokens_across_devices"' in shown


def test_portable_settings_changes_nothing_of_what_it_is_given():
    settings = {"base_model": {"name": "/models/mine"}, "hub_token": "hf_x"}
    assert portable_settings(settings) == {"base_model": {"name": "mine"}}
    assert settings == {"base_model": {"name": "/models/mine"}, "hub_token": "hf_x"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("microsoft/mpnet-base", "microsoft/mpnet-base"),
        ("/models/mine/model", "model"),
        ("~/mine", "mine"),
        ("runs/a/model", "model"),
        ("runs/a/model/", "model"),
        (None, None),
    ],
)
def test_portable_name(folder, name, expected):
    (folder / "runs" / "a" / "model").mkdir(parents=True)
    assert portable_name(name) == expected
