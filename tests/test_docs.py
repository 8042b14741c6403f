"""The code of README and of the documentation, run page by page on a small collection with tiny models."""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
import pytest
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast, Qwen3Config, Qwen3Model

from pyterrier_selfdistill import (
    Negatives,
    RayIndexer,
    SelfDistillIndex,
    SelfDistillTrainer,
    ShardedIndex,
)

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "pyterrier_selfdistill" / "pt_docs"
BLOCK = re.compile(r"^( *)\.\. code-block:: python\n((?:\1    \S.*\n)*)\n((?:\1    .*\n|\s*\n)+)", re.MULTILINE)


def blocks(page: str) -> list[str]:
    """Return the Python of a page, block by block."""
    text = (PAGES / page).read_text() + "\n"
    found = BLOCK.findall(text)
    assert len(found) == text.count("code-block:: python")
    return ["\n".join(line[len(indent) + 4 :] for line in code.split("\n")) for indent, _, code in found]


def encode_here(indexer, corpus):
    """Encode in this process, in place of Ray."""
    index = SelfDistillIndex(indexer.folder / "shard", verbose=False)
    documents = pd.concat([pd.read_json(path, lines=True, dtype=str) for path in Path().glob(corpus)])
    (indexer.encoder >> index).index(documents.to_dict(orient="records"))
    (indexer.folder / "shards.json").write_text('{"shards": ["shard"]}')
    return ShardedIndex(indexer.folder)


@pytest.fixture
def run(monkeypatch, language_model, folder):
    """Run a page; other models, data sets and figures stand in for its own."""
    config = BertConfig.from_pretrained(language_model, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder / "cross")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    decoder = Qwen3Config(vocab_size=config.vocab_size, head_dim=16, intermediate_size=64, **sizes)
    Qwen3Model(decoder).save_pretrained(folder / "decoder")
    for name in ("cross", "decoder"):
        BertTokenizerFast.from_pretrained(language_model).save_pretrained(folder / name)
    monkeypatch.setattr(RayIndexer, "encode", encode_here)

    def run(page: str, stand_ins: dict[str, str]):
        code = "\n".join(blocks(page))
        stand_ins = stand_ins | {
            "get_model_path()": repr(language_model),
            "docstrings:networkx": "docstrings:more_itertools",
            "microsoft/mpnet-base": language_model,
            "cross-encoder/ms-marco-MiniLM-L6-v2": str(folder / "cross"),
            "Qwen/Qwen3-0.6B-Base": str(folder / "decoder"),
        }
        for shown, stand_in in stand_ins.items():
            code = code.replace(shown, stand_in)
        known: dict[str, Any] = {}
        exec(compile(code, page, "exec"), known)
        return known

    return run


@pytest.mark.parametrize(
    ("page", "stand_ins", "expected"),
    [
        (
            "index.rst",
            {"eval_steps=0.5": "eval_steps=2, max_steps=2"},
            "trainer.history['nDCG@10'].count() == 2 and (table['nDCG@10'] > 0).all() "
            "and index.encoder == encoder.identity",
        ),
        (
            "training_data.rst",
            {
                "corpus=": "scale=20, max_steps=1, per_device_train_batch_size=4, corpus=",
                "length=48, stride=24": "length=24, stride=12",
                "numpy": "more_itertools",
            },
            "data['triples'] == 2 and len(pd.read_csv('ids.tsv', sep='\\t')) == len(qrels) > 100 "
            "and len(topics_of['train']) + len(topics_of['valid']) == len(topics) > len(topics_of['train']) > 0 "
            "and len(search_more_itertools(topics)) == len(search_passages(topics)) > 100 * len(topics) "
            "and trainer.encoder.training_summary['data']['passages']['divided'] > 50",
        ),
        (
            "multi_gpu.rst",
            {
                f"{name},\n": f"{name}, max_steps=2, verbose=False,\n"
                for name in ("mini_batch_size=32", "overwrite=True")
            }
            | {"size=512": "size=64"},
            "SelfDistillBiEncoder('trained') == trainer.encoder != base and trainer.history['step'].max() == 2",
        ),
        (
            "large_collections.rst",
            {', actors={"num_cpus": 1}': ""},
            "len(index) == len(on_ray) == len(documents) and len(retriever(topics)) == len(topics) * 100 "
            "and abs(retriever(topics)['score'] - by_actors(topics)['score']).max() < 1e-5",
        ),
        ("losses.rst", {}, "loss.statistics['margin'].isfinite() and vectors.grad.abs().sum() > 0"),
        (
            "runs.rst",
            {f"{option}=": f"max_steps=1, verbose=False, {option}=" for option in ("resume", "report_to")},
            "again.history['RR@10'].notna().sum() == 2 and len(shown) == 2 "
            "and abs(board.Scalars(name)[-1].value - tracked.history['nDCG@10'].iloc[-1]) < 1e-6",
        ),
        (
            "adapters.rst",
            {
                "1e-3": "1e-3, max_steps=2, verbose=False",
                "Qwen/Qwen3-Embedding-0.6B": "runs/lora/model",
                "document_length=256": "document_length=16",
                "batch_size=64": "batch_size=16",
                "1e-4": "1e-4, max_steps=2, verbose=False",
            },
            "encoder != base and SelfDistillBiEncoder('whole-model') == encoder == embedding != code "
            "and decoder.metadata['model']['pooling'] == 'lasttoken' and trainer.encoder != decoder "
            "and len(retriever(topics[:3])) == 3 * 156",
        ),
        (
            "report.rst",
            {},
            "table['name'].tolist() == ['bm25', 're-ranked', 'dense'] and by_query.shape == (len(topics), 9) "
            "and 'MiniLM' in open('report.html').read()",
        ),
        (
            "quantization.rst",  # the tiny model has 32 dimensions
            {"[384, 192, 96, 48]": "[32, 16, 8, 4], max_steps=2", "(192, 96, 48)": "(16, 8, 4)", "96": "8"},
            "shorter.dimension == 8 and len(table) == 4 and table['nDCG@10'].notna().all() "
            "and retriever.search('sort').shape[0] > 100 == binary.search('sort').shape[0] "
            "and binary.search('sort').equals(int8.search('sort'))",
        ),
    ],
)
# torch warns, since the trainer of sentence-transformers pins memory by default, without a GPU too
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator:UserWarning")
def test_pages(run, page, stand_ins, expected):
    assert eval(expected, run(page, stand_ins))


def test_migration_guide(run):
    few = "max_steps=2, eval_steps=2, per_device_train_batch_size=8)"
    short = {", corpus=dataset)": f", corpus=dataset, {few}", "=2))": f"=2), {few}", "[384, 128]": "[32, 8]"}
    known = run("migration_guide.rst", short)
    assert known["hard"].encoder.training_summary["data"]["negatives"] == 4
    assert known["lines"].encoder.training_summary["data"]["triples"] == 4
    assert known["trainer"].history["nDCG@10"].count() == 2
    assert known["retriever"](known["valid_topics"])["qid"].nunique() == len(known["valid_topics"])


def test_our_calls_are_those_that_run():
    """Our column of the tables in migration_guide.rst has only calls of its code, and one that needs the hub."""
    cells = re.findall(r"^      - (.*)\n(?!      - )", (PAGES / "migration_guide.rst").read_text(), re.MULTILINE)
    calls = {call for cell in cells for call in re.findall("``(.+?)``", cell)}
    code = "\n".join(blocks("migration_guide.rst"))
    assert len(calls) > 10
    assert [call for call in calls if call not in code and "to_hf" not in call] == []


def test_cheat_sheet_names_existing_options():
    page = (PAGES / "cheat_sheet.rst").read_text().partition("Indexing and searching")[0]
    options = inspect.signature(SelfDistillTrainer).parameters
    fields = {field.name for field in dataclasses.fields(SentenceTransformerTrainingArguments)}
    elsewhere = {*inspect.signature(Negatives).parameters, "topics", "prepend_attr", "query_length", "document_length"}
    assert set(re.findall(r"(?:``|, )(\w+)=", page)) <= {*options, *fields} | elsewhere


def test_retrieval(run):
    # few documents, so that neighbours are others
    known = run("retrieval.rst", {"bm25 % 100": "bm25 % 8", ".parallel(2)": "", "truncate(192)": "truncate(8)"})
    topics, pipelines = known["topics"][:3], ["reranker", "fast_reranker", "three_stages", "linear", "reciprocal"]
    pipelines += ["tuned", "feedback", "by_passages", "passage_reranker", "cached_reranker", "cached_retriever"]
    pipelines += ["adaptive", "adaptive_texts", "partial", "parallel", "approximate"]
    found = {name: known[name](topics) for name in pipelines}
    for name, results in found.items():
        assert set(results["qid"]) == set(topics["qid"]), name
        assert not results.duplicated(["qid", "docno"]).any(), name
        by_rank = results.sort_values("rank").groupby("qid")["score"]
        assert all(scores.is_monotonic_decreasing for _, scores in by_rank), name

    def scores(name):
        return found[name].set_index(["qid", "docno"])["score"].sort_index()

    for one, other in [
        ("reranker", "fast_reranker"),
        ("reranker", "cached_reranker"),
        ("parallel", "cached_retriever"),
    ]:
        pd.testing.assert_series_equal(scores(one), scores(other), check_dtype=False, atol=1e-5)
    assert set(found["partial"]["docno"]) == set(known["chosen"])
    assert len(found["adaptive"]) > len(found["reranker"])  # neighbours that BM25 did not find
    assert list(known["table"]["name"]) == ["bm25", "first", "second"]


def test_serving(run):
    client = pytest.importorskip("fastapi.testclient").TestClient(run("serving.rst", {})["app"])
    answers = [client.get("/search", params={"query": "sort the table", "k": k}) for k in (3, 100)]
    found = [[hit["docno"] for hit in answer.json()] for answer in answers]
    assert len(found[1]) == 100
    assert found[0] == found[1][:3]
    assert client.get("/search", params={"query": "sort", "k": 0}).status_code == 422


def test_the_program_of_the_readme_runs_as_pasted(language_model, folder):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    # a smaller model and collection
    code = code.replace("get_model_path()", repr(language_model)).replace("networkx", "more_itertools")
    known: dict[str, Any] = {}
    exec(code, known)
    assert known["table"]["nDCG@10"].notna().all()
    readers = [
        pt.Artifact.load("my-model").encode_docs,
        SentenceTransformer("my-model").encode_document,
        pyterrier_dr.SBertBiEncoder("my-model").encode_docs,
    ]
    for read in readers:
        np.testing.assert_allclose(read(["sort"]), known["trainer"].encoder.encode_docs(["sort"]), atol=1e-6)


def test_the_map_of_the_readme_is_complete():
    readme = (ROOT / "README.md").read_text()
    assert [link for link in re.findall(r"\]\(([^)#:]+)\)", readme) if not (ROOT / link).is_file()] == []
    assert [page.name for page in PAGES.glob("*.rst") if f"pt_docs/{page.name}" not in readme] == []
