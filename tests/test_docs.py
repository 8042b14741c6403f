"""What the documentation shows, run page by page as it stands, on a small collection with tiny models."""

import dataclasses
import inspect
import json
import os
import re
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

import pyterrier_selfdistill
from benchmarks.study.comparison import Results
from benchmarks.study.config import read_study
from benchmarks.study.losses import LOSSES, load_losses
from benchmarks.study.records import Records
from benchmarks.study.run import SETTINGS
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer
from pyterrier_selfdistill.data.triples import from_texts

PAGES = Path(pyterrier_selfdistill.__file__).parent / "pt_docs"
BLOCK = r"^( *)\.\. code-block:: LANGUAGE\n((?:\1    \S.*\n)*)\n((?:\1    .*\n|\s*\n)+)"

NAMES_OF_CALLS = {
    "topics",
    "prepend_attr",
    "range_min",
    "range_max",
    "relative_margin",
    "query_length",
    "document_length",
}
"""Options that the page gives to something else than a trainer."""


def blocks(page: str, language: str = "python") -> list[str]:
    """Returns the Python of a page, or what is in another language, block by block."""
    pattern = re.compile(BLOCK.replace("LANGUAGE", language), re.MULTILINE)
    found = pattern.findall((PAGES / page).read_text() + "\n")
    return ["\n".join(line[len(indent) + 4 :] for line in code.split("\n")) for indent, _, code in found]


@pytest.fixture
def cross_encoder(language_model, folder) -> str:
    """The folder of a cross-encoder with random weights."""
    config = BertConfig.from_pretrained(language_model, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder / "cross")
    BertTokenizerFast.from_pretrained(language_model).save_pretrained(folder / "cross")
    return str(folder / "cross")


@pytest.fixture
def known(names, language_model, cross_encoder, folder):
    """All names that pages take for granted, and the models and datasets of theirs that are stood in for."""
    options = {"device": "cpu", "dtype": "float32"}  # in other processes too
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, query_length=20, **options)
    other = SelfDistillBiEncoder.from_pretrained(language_model, pooling="mean", device="cpu")
    other.save(folder / "my-model")
    encoder.build_retriever(names["dataset"], folder / "index.flex")
    results = "microsoft/mpnet-base", "cross-encoder/ms-marco-MiniLM-L6-v2", "irds:msmarco-passage/train"
    stand_ins = dict(zip(results, (language_model, cross_encoder, "irds:local"), strict=True))
    return stand_ins, {
        **names,
        "pt": pt,
        "os": os,
        "encoder": encoder,
        "index": SelfDistillIndex(folder / "index.flex", verbose=False),
        "SelfDistillTrainer": SelfDistillTrainer,
    }


def run(page, known):
    stand_ins, names = known
    for block in blocks(page):
        code = block
        for name, stand_in in stand_ins.items():
            code = code.replace(name, stand_in)
        exec(compile(code, page, "exec"), names)
    return names


@pytest.mark.parametrize("page", [path.name for path in PAGES.glob("*.rst")])
def test_every_block_of_python_is_found(page):
    assert len(blocks(page)) == (PAGES / page).read_text().count("code-block:: python")


def test_overview(known, folder):
    stand_ins, names = known
    (folder / "my-model").rename(folder / "earlier")
    stand_ins["document_length=200"] = "document_length=60"
    names = run("overview.rst", (stand_ins, names))
    assert len(names["retriever"](names["topics"])) == len(names["topics"]) * 40
    assert isinstance(names["SentenceTransformer"](str(folder / "my-model")), SentenceTransformer)


def test_training_data(known, folder):
    stand_ins, names = known
    stand_ins['"train": 0.9, "valid": 0.1'] = '"train": 0.5, "valid": 0.5'
    stand_ins["valid_share=0.1"] = "valid_share=0.5"
    names["trainer"] = SelfDistillTrainer(names["encoder"], "runs/a", overwrite=True, corpus=names["dataset"])
    names = run("training_data.rst", (stand_ins, names))
    assert names["trainer"].encoder.training_summary["data"]["triples"]
    assert names["careful"].encoder.training_summary["best_step"] is not None


# of torch, since the trainer of sentence-transformers pins memory by default, without a GPU too
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
def test_loss(known, folder):
    stand_ins, names = known
    names["triples"] = from_texts([("sort", "sort the table", "plot")] * 8).dataset
    names = run("loss.rst", (stand_ins, names))
    assert "scale" in names["loss"].statistics


def test_at_a_glance_names_what_there_is():
    page = (PAGES / "at_a_glance.rst").read_text()
    options = inspect.signature(SelfDistillTrainer).parameters
    fields = {field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
    training = page.partition("Indexing and searching")[0]
    for name in re.findall(r"(?:``|, )(\w+)=", training):
        assert name in {*options, *fields} | NAMES_OF_CALLS, name


TRIPLES = [
    {"query": f"sort {thing}", "positive": f"sort the rows of a {thing}", "negative": f"plot a {thing}"}
    for thing in ("table", "array", "matrix", "column")
]


def test_coming_from(known, folder):
    stand_ins, names = known
    stand_ins["matryoshka_dims=[768, 256]"] = "matryoshka_dims=[32, 8]"
    (folder / "my-model").rename(folder / "earlier")
    names["triples"] = TRIPLES
    rows = [
        {
            "query": row["query"],
            "positive_passages": [{"text": row["positive"]}],
            "negative_passages": [{"text": "d"}] * 4,
        }
        for row in TRIPLES
    ]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = run("coming_from.rst", known)
    assert names["hard"].encoder.training_summary["data"]["negatives"] == 4
    assert names["nested"].encoder.training_summary["loss"]["matryoshka_dims"] == [32, 8]
    assert names["from_tevatron"].encoder.training_summary["data"]["triples"] == len(TRIPLES)
    assert len(names["retriever"](names["topics"])) > len(names["topics"])


ELSEWHERE = ("torchrun", "to_hf")
"""What of our column needs other machines."""


def test_our_calls_are_those_that_run():
    code = blocks("coming_from.rst")[0]
    page = (PAGES / "coming_from.rst").read_text()
    rows = re.findall(r"^    \* - .*\n      - .*\n      - (.*)$", page, flags=re.MULTILINE)
    calls = {call for cell in rows for call in re.findall("``(.+?)``", cell)}
    here = {call for call in calls if not any(word in call for word in ELSEWHERE)}
    assert len(here) > 8
    assert {call for call in here if call not in code} == set()


def test_large_collections(known):
    names = run("large_collections.rst", known)
    assert names["rate"] > 0
    assert len(names["retriever"](names["topics"])) == len(names["topics"]) * 40


def test_several_collections(known, capsys):
    names = run("several_collections.rst", known)
    assert "16 {} 8" in capsys.readouterr().out
    assert names["trainer"].encoder.training_summary["steps"] == 2
    assert names["validated"].history["nDCG@10 (elsewhere)"].notna().any()
    assert len(names["search_claims"](names["topics"])) == len(names["topics"]) * 40


def test_long_texts(known, capsys):
    stand_ins, names = known
    stand_ins["length=64, stride=32"] = "length=3, stride=2"
    names = run("long_texts.rst", (stand_ins, names))
    assert re.search(r"'documents': \d+, 'divided': \d+, 'rows': 40", capsys.readouterr().out)
    found = names["by_passages"](names["topics"])
    assert len(found) == len(names["topics"]) * 40


def test_several_processes(known, capsys):
    """In one."""
    stand_ins, names = known
    stand_ins["overwrite=True"] = "overwrite=True, num_train_epochs=3, verbose=False"
    names = run("several_processes.rst", (stand_ins, names))
    assert names["trainer"].encoder != names["base"]
    assert "'triples': 8" in capsys.readouterr().out


def test_trackers(known, capsys):
    names = run("trackers.rst", known)
    shown = capsys.readouterr().out.splitlines()[-5:]
    columns = ["loss", "margin", "scale", "similarity", "nDCG@10"]
    for line, column in zip(shown, columns, strict=True):
        assert line.split()[0].endswith(f"/{column}")
        assert line.endswith(f": {names['trainer'].history[column].dropna().iloc[-1]:.3f}")


def test_adapters(known, folder):
    stand_ins, names = known
    stand_ins["5e-4"] = "5e-4, max_steps=2, verbose=False"
    names = run("adapters.rst", (stand_ins, names))
    assert names["adapted"].merge_adapter() == names["encoder"] != names["base"]
    assert SelfDistillBiEncoder(folder / "whole-model").model_name == names["encoder"].model_name


def test_retrieval(known, folder):
    run("retrieval.rst", known)


def test_comparison(known, folder):
    names = run("comparison.rst", known)
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert names["table"]["name"].tolist() == ["bm25", "re-ranked", "dense"]
    assert names["by_query"].shape == (len(names["topics"]), 9)


def test_sweeps(folder):
    """The study that begins the page, whose figures are on it, and one of all the parts that come after it."""
    whole, *parts = blocks("sweeps.rst", "yaml")
    (folder / "study.yaml").write_text(whole)
    records = Records(Path(__file__).parents[1] / "benchmarks" / "records")
    study = read_study("study.yaml").follow_up(records.read())
    results = Results(study, records)
    assert not results.open
    page = (PAGES / "sweeps.rst").read_text()
    for system in results.best("docstrings"):
        difference = system.better_than(results.untouched(system.run))
        expected = [system.run.loss_name, f"{system.mean(system.test, 'nDCG@10'):.3f}"]
        expected += [str(difference)] if system.is_trained else []
        for figure in expected:
            assert f" - {figure}\n" in page
    (folder / "parts.yaml").write_text("name: parts\ndefaults: {collection: passages}\n" + "\n".join(parts))
    parts = read_study("parts.yaml")
    assert len(parts.runs) == 2 * (1 + 3 * (2 + 1 + 3 + 3))
    (folder / "my_losses.py").write_text("\n".join(blocks("sweeps.rst")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        losses = load_losses(parts.losses)
    assert issubclass(losses["cached"](study.runs[0]), torch.nn.Module)


def test_sweeps_name_all_settings_and_losses():
    page = (PAGES / "sweeps.rst").read_text()
    missing = [name for name in (*SETTINGS, *LOSSES) if f"``{name}``" not in page]
    assert missing == []


def test_small_vectors(known, folder):
    stand_ins, names = known
    # the tiny model has 32 dimensions
    stand_ins |= {"[768, 384, 192, 96]": "[32, 16, 8, 4]", "(384, 192, 96)": "(16, 8, 4)", "192": "8"}
    names = run("small_vectors.rst", (stand_ins, names))
    topics = names["topics"]
    assert names["shorter"].dimension == 8
    assert list(names["table"]["name"]) == ["768", "16", "8", "4"]
    exact = names["systems"]["768"](topics)
    for name in ("fast", "faster"):
        found = names[name](topics).merge(exact, on=["qid", "docno"])
        assert len(found) == len(exact)


@pytest.fixture
def ray_cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_cluster(known, folder, collection, ray_cluster):
    stand_ins, names = known
    stand_ins |= {"workers=16, num_gpus=1": "workers=1", '"num_cpus": 4': '"num_cpus": 0'}
    (folder / "corpus").mkdir()
    collection.corpus.to_json(folder / "corpus" / "1.jsonl", orient="records", lines=True)
    names = run("cluster.rst", (stand_ins, names))
    assert len(names["index"]) == 40
    found = names["retriever"](names["topics"])
    assert len(found) == len(names["topics"]) * 40
    pd.testing.assert_frame_equal(names["on_ray"](names["topics"]), found, atol=1e-6)


@pytest.fixture
def how_to(known):
    known[1]["bm25"] = known[1]["bm25"] % 8  # of 25 documents, so that neighbours are others
    return run("how-to.rst", known)


PIPELINES = [
    *("reranker", "fast_reranker", "three_stages", "linear", "reciprocal", "tuned", "feedback", "by_passages"),
    *("passage_reranker", "cached_reranker", "cached_retriever", "adaptive", "adaptive_texts", "partial", "parallel"),
]


@pytest.mark.filterwarnings(r"ignore:.parallel\(\) is experimental:UserWarning")  # as PyTerrier says of it
def test_how_to(how_to):
    topics, found = how_to["topics"], {}
    for name in PIPELINES:
        found[name] = results = how_to[name](topics)
        assert set(results["qid"]) == set(topics["qid"]), name
        assert not results.duplicated(["qid", "docno"]).any(), name
        for _, group in results.groupby("qid"):
            assert sorted(group["rank"]) == list(range(len(group))), name
            assert group.sort_values("rank")["score"].is_monotonic_decreasing, name

    def scores(name):
        return found[name].set_index(["qid", "docno"])["score"].sort_index()

    pd.testing.assert_series_equal(scores("reranker"), scores("fast_reranker"), atol=1e-5)
    pd.testing.assert_series_equal(scores("reranker"), scores("cached_reranker"), check_dtype=False, atol=1e-5)
    pd.testing.assert_series_equal(scores("parallel"), scores("cached_retriever"), atol=1e-5)
    assert found["three_stages"].groupby("qid").size().max() <= 20
    assert found["partial"]["docno"].str.endswith("table").all()
    assert len(found["adaptive"]) > len(found["reranker"])  # neighbours that BM25 did not find
    assert found["by_passages"]["docno"].isin(found["parallel"]["docno"]).all()
    assert list(how_to["table"]["name"]) == ["bm25", "first", "second"]
    assert "nDCG@10 p-value corrected" in how_to["table"]
    assert how_to["again"] == how_to["encoder"]
    assert isinstance(how_to["model"], CrossEncoder)
