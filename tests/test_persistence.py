"""Loading and saving: the folder that three libraries read, and what is left when saving fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyterrier as pt
import pyterrier_dr
import pytest
import torch
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder
from pyterrier_selfdistill.encoder.storage import metadata, read_training_summary

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
    process.communicate()
    time.sleep(0.1)
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.glob("*/pt_meta.json"))


def test_load_refuses_what_is_not_a_saved_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="from_pretrained"):
        SelfDistillBiEncoder.load(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"modules\.json"):
        SelfDistillBiEncoder(tmp_path)


def without(name):
    return lambda folder: (folder / name).unlink()


def with_content(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def half_of(name):
    return lambda folder: (folder / name).write_bytes(
        (folder / name).read_bytes()[: (folder / name).stat().st_size // 2]
    )


FILES = [
    *("config.json", "model.safetensors", "modules.json", "tokenizer.json", "tokenizer_config.json"),
    *("sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"),
]


@pytest.fixture(scope="module")
def saved(language_model, tmp_path_factory):
    """The folder of a saved encoder, to be copied."""
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, query_length=4, query_prompt="q: ", device="cpu")
    return encoder.save(tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [without, half_of, lambda name: with_content(name, b"\xff\xfe")])
def test_load_names_the_folder_of_a_damaged_model(saved, tmp_path, name, damage):
    folder = shutil.copytree(saved, tmp_path / "model")
    damage(name)(folder)
    for load in (SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained):
        with pytest.raises(
            ValueError, match=f"{folder}' (lacks|cannot be loaded|is not a sentence-transformers model)"
        ):
            load(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{"])
def test_load_names_damaged_metadata(saved, tmp_path, content):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "pt_meta.json").write_bytes(content)
    for load in (SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained):
        with pytest.raises(ValueError, match="pt_meta.json' is not a JSON object; save or copy the model again"):
            load(folder)


@pytest.mark.parametrize("name", [name for name in FILES if name != "tokenizer_config.json"])
def test_load_names_the_file_that_is_cut_off(saved, tmp_path, name):
    folder = shutil.copytree(saved, tmp_path / "model")
    half_of(name)(folder)
    for load in (SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained):
        with pytest.raises(ValueError, match=f"the model in '{folder}' cannot be loaded: .*{name}"):
            load(folder)


def test_load_refuses_another_architecture_than_was_saved(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    for load in (SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained):
        with pytest.raises(ValueError, match="was saved with the architecture 'BertModel', .* give 'GPT2Model'; save"):
            load(folder)


@pytest.mark.parametrize("device", ["", "gpu", "cuda:99"])
def test_load_names_a_device_that_there_is_not(saved, device):
    for load in (SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained):
        with pytest.raises(ValueError, match="device must be a device that torch has here, such as 'cpu'"):
            load(saved, device=device)


def test_load_needs_no_card(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "README.md").unlink()
    assert SelfDistillBiEncoder(folder).query_length == 4


def test_load_names_the_folder_of_a_damaged_language_model(language_model, tmp_path):
    folder = shutil.copytree(language_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"the model in '{folder}' cannot be loaded: .*model.safetensors"):
        SelfDistillBiEncoder.from_pretrained(folder)


def test_load_puts_back_what_a_killed_save_moved_away(saved, tmp_path):
    for load in (SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained):
        shutil.copytree(saved, tmp_path / ".model.replaced")
        assert load(tmp_path / "model").query_length == 4
        shutil.rmtree(tmp_path / "model")


# --- what a model may not do ----------------------------------------------------------------------------------------


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


class Marks:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


CODE = "from pathlib import Path\nPath({!r}).touch()\nclass Evil:\n    pass\n"


def module_of_its_own(folder, mark):
    (folder / "evil.py").write_text(CODE.format(str(mark)))
    change_json(folder / "modules.json", lambda modules: modules[1].update(type="evil.Evil"))


def installed_module(folder, mark):
    change_json(folder / "modules.json", lambda modules: modules[1].update(type="subprocess.Popen"))


def language_model_of_its_own(folder, mark):
    (folder / "evil.py").write_text(CODE.format(str(mark)))
    own = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    change_json(folder / "config.json", lambda config: config.update(own))


def pickled_weights(folder, mark):
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Marks(mark)}, folder / "pytorch_model.bin")


def module_outside(folder, mark):
    change_json(folder / "modules.json", lambda modules: modules[1].update(path="../outside"))


@pytest.mark.parametrize(
    "attack", [module_of_its_own, installed_module, language_model_of_its_own, pickled_weights, module_outside]
)
@pytest.mark.parametrize("load", [SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained])
def test_models_run_no_code_and_stay_in_their_folder(tiny_model, tmp_path, monkeypatch, attack, load):
    # saved by another library, so that nothing is known of its files
    folder = tmp_path / "model"
    tiny_model.save(str(folder))
    shutil.copytree(folder / "1_Pooling", tmp_path / "outside")
    monkeypatch.chdir(folder)
    attack(folder, tmp_path / "mark")
    with pytest.raises(ValueError, match=f"the model in '{folder}' cannot be loaded"):
        load(folder)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_runs_code_where_it_is_trusted(tmp_path):
    """So that the test above can fail."""
    torch.save({"weights": Marks(tmp_path / "mark")}, tmp_path / "weights")
    torch.load(tmp_path / "weights", weights_only=False)
    assert (tmp_path / "mark").exists()


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
