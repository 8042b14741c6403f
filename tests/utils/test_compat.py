"""Faults of other libraries: a test that fails at ``DELETE`` says which workaround of compat.py to delete."""

import io
import pickle
import shutil
import sys

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_alpha as pta
import pytest
import torch
import tqdm
from datasets import Dataset
from pyterrier_dr import FlexIndex
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers.training_args import ParallelMode
from transformers.utils import logging

from pyterrier_selfdistill.utils import compat

VECTORS = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
QUERIES = pd.DataFrame({"qid": list("abc"), "query_vec": list(VECTORS[:3])})
TEXTS = ["sort the rows of a table", "plot a matrix"]
VOYAGER = {"neighbours": 12, "ef_construction": 200, "random_seed": 1, "query_ef": 20}
DELETE = "the fault is mended; delete the workaround in compat.py as its comment says"
# torch says so of the plain index once in a process
pytestmark = pytest.mark.filterwarnings("ignore:The given (buffer|NumPy array) is not writable")


@pytest.fixture
def plain(tmp_path):
    """A plain FlexIndex of 40 unit vectors."""
    index = FlexIndex(str(tmp_path / "plain.flex"), verbose=False)
    index.index([{"docno": f"d{number}", "doc_vec": vector} for number, vector in enumerate(VECTORS)])
    return index


def fails(function, *errors):
    try:
        function()
    except errors:
        return True
    return False


def test_reports_of_weights(language_model, tmp_path):
    folder = shutil.copytree(language_model, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["pooler.dense.bias"], weights["pooler.dense.weight"]
    save_file(weights, folder / "model.safetensors")
    assert not torch.equal(*[Transformer(folder).model.pooler.dense.weight for _ in range(2)]), DELETE
    made = []
    for _ in range(2):
        with compat.reported_weights() as reports:
            made.append(Transformer(folder).model.pooler.dense.weight)
        assert reports[0]["missing_keys"] == {"pooler.dense.bias", "pooler.dense.weight"}
    assert torch.equal(*made)


def train(model, folder, **options):
    """Train a model for one step that changes nothing."""
    options |= {"learning_rate": 0.0, "max_steps": 1, "use_cpu": True, "disable_tqdm": True, "report_to": "none"}
    arguments = SentenceTransformerTrainingArguments(str(folder / "run"), save_steps=1, **options)
    dataset = Dataset.from_dict({"anchor": ["sort", "plot"], "positive": TEXTS})
    loss = MultipleNegativesRankingLoss(model)
    SentenceTransformerTrainer(model, args=arguments, train_dataset=dataset, loss=loss).train()


def test_autocast_and_bars_of_training(tiny_model, tmp_path, capsys):
    def encode():
        return tiny_model.encode(TEXTS, convert_to_tensor=True)

    before = encode()
    compat.limit_autocast_to_training(tiny_model)
    logging.enable_progress_bar()
    # as the training loop does
    tiny_model.model_card_data.widget = ["none"]
    train(tiny_model, tmp_path, bf16=True)
    assert "it/s]" in capsys.readouterr().err, DELETE
    assert not torch.equal(encode(), before), DELETE
    compat.limit_autocast_to_training(tiny_model)
    assert torch.equal(encode(), before)
    # without dropout
    tiny_model.training = True
    assert not torch.equal(tiny_model(tiny_model.preprocess(TEXTS))["sentence_embedding"], before)
    compat.remove_autocast(tiny_model)
    assert "forward" not in vars(tiny_model)
    capsys.readouterr()
    with compat.no_transformers_progress_bars():
        train(tiny_model, tmp_path)
    assert capsys.readouterr().err == ""
    assert logging.is_progress_bar_enabled()


def test_several_gpus(tmp_path, caplog):
    arguments = SentenceTransformerTrainingArguments(str(tmp_path / "run"), use_cpu=True)
    arguments._n_gpu = 2
    assert arguments.parallel_mode == ParallelMode.NOT_DISTRIBUTED, DELETE
    compat.use_one_gpu(arguments)
    assert arguments.parallel_mode == ParallelMode.NOT_PARALLEL
    assert len(caplog.records) == 1


@pytest.mark.parametrize(("options", "most"), [({"total": 1000}, 12), ({}, 2)])
def test_a_bar_is_drawn_once_a_tenth_in_logs(options, most, monkeypatch):
    def lines(make):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        with make(desc="Training", **options) as bar:
            for _ in range(1000):
                bar.set_postfix({"loss": 0.5}, refresh=False)
                bar.update()
        return sys.stderr.getvalue().count("Training")

    monkeypatch.setattr(pt, "tqdm", tqdm.tqdm)
    assert lines(compat.progress_bar) <= most
    assert lines(lambda **options: tqdm.tqdm(mininterval=0, **options)) > most, DELETE


def test_schematics_without_a_network(no_network):
    transformer = pt.Transformer.identity()
    transformer.schematic = {"label": "Box"}
    assert fails(lambda: pt.schematic.draw(transformer), OSError), DELETE
    transformer.schematic = compat.schematic("Box")
    assert "Box" in pt.schematic.draw(transformer)


def test_open_and_closed_files(plain):
    closed = compat.files_of_index()
    assert {name: getattr(plain, name) for name in closed} == closed
    plain.docnos()
    assert vars(plain)["_dvecs"] is None, DELETE
    plain.torch_vecs(device="cpu")
    assert len(pickle.dumps(plain)) > VECTORS.nbytes, DELETE


def test_files_of_retrievers(plain):
    before = set(plain.index_path.iterdir())
    plain.faiss_hnsw_retriever()
    plain.faiss_ivf_retriever()
    compat.VoyagerSearch(plain, {**VOYAGER, "storage_data_type": "float32"})
    plain.corpus_graph(3)
    written = set(plain.index_path.iterdir()) - before
    assert len(written) == 4
    assert set(compat.files_of_retrievers(plain.index_path)) == written


def test_corpus_graphs(plain, monkeypatch):
    assert fails(lambda: plain.corpus_graph(7, batch_size=17), RuntimeError), DELETE
    monkeypatch.setattr(compat, "LARGEST_BATCH", 17)
    assert compat.make_corpus_graph(plain, 7) == 7
    assert set(plain.corpus_graph(7).neighbours(0)) == set(np.argsort(-(VECTORS @ VECTORS[0]))[1:8])


def test_warnings_of_mapped_vectors(plain, recwarn):
    # torch warns once in a process
    torch.set_warn_always(True)
    with compat.quiet_backends():
        plain.corpus_graph(2)
    assert not recwarn.list
    plain.corpus_graph(3)
    torch.set_warn_always(False)
    assert "not writable" in str([warning.message for warning in recwarn]), DELETE


@pt.apply.generic
def lists(queries):
    """Find as many documents for a query as its identifier says."""
    builder = pta.DataFrameBuilder(["docno", "score", "rank"])
    for qid in queries["qid"]:
        ranks = np.arange(int(qid))
        docnos = np.array([f"d{rank}" for rank in ranks], dtype=object)
        builder.extend({"docno": docnos, "score": 1.0 - ranks, "rank": ranks})
    return builder.to_df(queries.reset_index(drop=True))


def test_numbers_of_results():
    assert lists(pd.DataFrame({"qid": ["1"]}))["rank"].dtype == object, DELETE
    assert fails(lambda: lists(pd.DataFrame({"qid": ["2", "1"]})), ValueError), DELETE
    for qids in ["3", "1", "11", "31", "13", "301", "031", "0"]:
        found = compat.transform_queries(lists, pd.DataFrame({"qid": list(qids)}))
        expected = [(qid, f"d{number}", 1.0 - number, number) for qid in qids for number in range(int(qid))]
        assert list(found[["qid", "docno", "score", "rank"]].itertuples(index=False, name=None)) == expected
        assert found.index.is_unique


@pytest.mark.parametrize("storage", ["float32", "float8", "e4m3"])
def test_voyager(plain, storage, monkeypatch):
    assert plain.voyager_retriever(num_results=5).num_results != 5, DELETE
    monkeypatch.setattr(compat, "LARGEST_BATCH", 7)
    options = {**VOYAGER, "storage_data_type": storage}
    compat.VoyagerSearch(plain, options)
    written = {path: path.stat().st_mtime_ns for path in plain.index_path.glob("*")}
    scores, docids = compat.VoyagerSearch(plain, options).search(VECTORS, 1000)
    assert {path: path.stat().st_mtime_ns for path in plain.index_path.glob("*")} == written
    assert docids.shape == (40, 40)
    np.testing.assert_allclose(scores, np.take_along_axis(VECTORS @ VECTORS.T, docids, axis=1), atol=0.1)
