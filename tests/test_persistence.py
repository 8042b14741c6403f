"""Loading and saving: the folder that three libraries read, and what is left when saving fails."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyterrier as pt
import pyterrier_dr
import pytest
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder
from pyterrier_selfdistill.persistence import metadata, read_training_summary

QUERIES = ["sort rows", "plot", "read a file"]
DOCUMENTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]


# --- save and load --------------------------------------------------------------------------------------------------


def test_saved_folder_gives_the_same_vectors_in_three_libraries(encoder, tmp_path):
    encoder.training_summary = {"seed": 7}
    path = encoder.save(tmp_path / "my.model")
    loaded = pt.Artifact.load(str(path))
    assert isinstance(loaded, SelfDistillBiEncoder)
    assert loaded.training_summary == {"seed": 7}
    documents, queries = encoder.encode_docs(DOCUMENTS), encoder.encode_queries(QUERIES)
    for reader in (loaded, pyterrier_dr.SBertBiEncoder(str(path))):
        np.testing.assert_allclose(reader.encode_docs(DOCUMENTS), documents, atol=1e-6)
        np.testing.assert_allclose(reader.encode_queries(QUERIES), queries, atol=1e-6)
    model = SentenceTransformer(str(path))
    np.testing.assert_allclose(model.encode_document(DOCUMENTS), documents, atol=1e-6)
    np.testing.assert_allclose(model.encode_query(QUERIES), queries, atol=1e-6)


def test_saved_folder_keeps_lengths_and_prompts(language_model, tmp_path):
    encoder = SelfDistillBiEncoder.from_pretrained(
        language_model, query_length=4, document_length=6, query_prompt="query: ", device="cpu"
    )
    path = encoder.save(tmp_path / "model")
    loaded = pt.Artifact.load(str(path))
    assert (loaded.query_length, loaded.document_length) == (4, 6)
    long = ["sort the rows of a table by column"]
    queries = encoder.encode_queries(long)
    np.testing.assert_allclose(loaded.encode_queries(long), queries, atol=1e-6)
    np.testing.assert_allclose(SentenceTransformer(str(path)).encode_query(long), queries, atol=1e-6)
    sbert = pyterrier_dr.SBertBiEncoder(str(path))
    np.testing.assert_allclose(sbert.encode_docs(long), encoder.encode_docs(long), atol=1e-6)


def test_save_writes_model_and_metadata(encoder, tmp_path):
    path = encoder.save(tmp_path / "deep" / "model")
    stored = json.loads((path / "pt_meta.json").read_text())
    assert (stored["type"], stored["format"]) == ("biencoder", "selfdistill")
    assert (path / "model.safetensors").is_file()
    assert [entry.name for entry in path.parent.iterdir()] == ["model"]


def test_save_does_not_replace_unasked(encoder, tmp_path):
    path = encoder.save(tmp_path / "model")
    (path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        encoder.save(path)
    assert (path / "mine.txt").exists()
    encoder.save(path, overwrite=True)
    assert not (path / "mine.txt").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_save_that_fails_keeps_what_was_there(encoder, tmp_path, monkeypatch):
    path = encoder.save(tmp_path / "model")
    before = (path / "model.safetensors").read_bytes()

    def fail(folder, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(encoder.model, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        encoder.save(path, overwrite=True)
    assert (path / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_save_that_is_killed_leaves_no_folder_of_that_name(language_model, tmp_path):
    program = """
import sys, time
from pyterrier_selfdistill import SelfDistillBiEncoder
encoder = SelfDistillBiEncoder.from_pretrained(sys.argv[1], device="cpu")
save = encoder.model.save_pretrained
def slow(folder, **options):
    save(folder, **options)
    print("saving", flush=True)
    time.sleep(60)
encoder.model.save_pretrained = slow
encoder.save(sys.argv[2])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, language_model, str(tmp_path / "model")],
        stdout=subprocess.PIPE,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout.readline().strip() == b"saving"
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob("*/pt_meta.json"))


def test_load_refuses_what_is_not_a_saved_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="from_pretrained"):
        SelfDistillBiEncoder.load(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"modules\.json"):
        SelfDistillBiEncoder(tmp_path)


def test_read_training_summary_of_a_model_of_another_library_is_empty(tiny_model, tmp_path):
    tiny_model.save(str(tmp_path / "model"))
    assert read_training_summary(tmp_path / "model") == {}


def test_save_keeps_the_card_of_a_model_that_was_not_trained_here(encoder, tmp_path):
    card = (encoder.save(tmp_path / "model") / "README.md").read_text()
    assert "pyterrier-selfdistill" not in card
    assert "sentence-transformers" in card


# --- metadata -------------------------------------------------------------------------------------------------------


def test_metadata_says_nothing_of_this_machine(encoder):
    training = {
        "base_model": {"name": "/models/mine", "checksum": "02"},
        "data": {"source": "/home/me/triples.tsv"},
        "arguments": {"hub_token": "hf_mine", "seed": 7},
    }
    assert metadata(encoder.model, "01", training)["training"] == {
        "base_model": {"name": "mine", "checksum": "02"},
        "data": {"source": "triples.tsv"},
        "arguments": {"seed": 7},
    }
