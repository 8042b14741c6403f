"""Saving and loading: the folder that three libraries read, damaged ones, its metadata and its card."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pyterrier as pt
import pyterrier_dr
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder
from pyterrier_selfdistill.encoder.card import artifact_card, saved_card

LOADERS = [SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained]
QUERIES = ["sort rows", "plot", "read a file"]
DOCUMENTS = ["sort the rows of a table by column", "plot a matrix", "read", "write a file and return the mean value"]
TRAINING = {
    "base_model": {"name": "/models/mine", "checksum": "fedcba9876543210"},
    "data": {
        **{"source": "/home/me/triples.tsv", "triples": 12345, "queries": 678, "negatives": 2},
        **{"fingerprint": "ab12", "dropped": 1203},
    },
    "loss": {"name": "SelfDistillationLoss", "target": "distributed", "error": "l2"},
    "preset": "paper",
    "arguments": {"num_train_epochs": 2, "hub_token": "hf_mine"},
    **{"seed": 0, "steps": 20, "seconds": 1.5, "best_step": 10},
    "best_measure": {"name": "nDCG@10", "value": 0.56789},
    "history": [
        {"step": 10, "loss": 0.25, "margin": 0.1, "target": 0.5, "nDCG@10": 0.56789},
        {"step": 20, "loss": 0.125, "margin": 0.2, "target": 0.4, "nDCG@10": 0.5},
    ],
    "versions": {"torch": "2.13.0"},
}


@pytest.fixture(scope="module")
def source(language_model):
    """An encoder with lengths, a prompt and a history."""
    options = {"query_length": 4, "document_length": 40, "query_prompt": "q|uery: "}
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="float32", **options)
    encoder.training_summary = TRAINING
    return encoder


@pytest.fixture(scope="module")
def saved(source, tmp_path_factory):
    """The folder of the encoder, to be copied."""
    return source.copy().save(tmp_path_factory.mktemp("saved") / "my.model")


# --- three readers --------------------------------------------------------------------------------------------------

VARIANTS = {
    "whole": lambda encoder: encoder,
    "truncated": lambda encoder: encoder.truncate(8),
    "prompted": lambda encoder: encoder.with_prompts(query="read: "),
}


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_three_libraries_read_the_same_vectors(source, tmp_path, make):
    encoder = make(source.copy())
    path = encoder.save(tmp_path / "deep" / "my.model")
    assert [entry.name for entry in path.parent.iterdir()] == ["my.model"]
    loaded = pt.Artifact.load(str(path))
    assert isinstance(loaded, SelfDistillBiEncoder)
    assert (loaded.query_length, loaded.document_length, loaded.model_name) == (4, 40, encoder.model_name)
    assert loaded.training_summary["steps"] == 20
    documents, queries = encoder.encode_docs(DOCUMENTS), encoder.encode_queries(QUERIES)
    model = SentenceTransformer(str(path), device="cpu")
    readers = [loaded.encode_docs, model.encode_document, pyterrier_dr.SBertBiEncoder(str(path)).encode_docs]
    for encode in readers:
        np.testing.assert_allclose(encode(DOCUMENTS), documents, atol=1e-6)
    # pyterrier-dr knows neither prompts nor the length of queries
    for encode in (loaded.encode_queries, model.encode_query):
        np.testing.assert_allclose(encode(QUERIES), queries, atol=1e-6)


def test_queries_without_prompts_are_the_same_to_pyterrier_dr(encoder, tmp_path):
    sbert = pyterrier_dr.SBertBiEncoder(str(encoder.copy().save(tmp_path / "model")))
    np.testing.assert_allclose(sbert.encode_queries(QUERIES), encoder.encode_queries(QUERIES), atol=1e-6)


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["save", "export"])
def test_folders_are_replaced_only_if_asked_and_ours(encoder, tmp_path, write):
    if write == "export":
        pytest.importorskip("openvino")
    write = getattr(encoder, write)
    path = write(tmp_path / "model")
    (path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write(path)
    assert (path / "mine.txt").exists()
    write(path, overwrite=True)
    assert not (path / "mine.txt").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"thesis\.tex"):
        write(tmp_path / "thesis", overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", "thesis"}


def test_a_failure_keeps_what_was_there(encoder, tmp_path, monkeypatch):
    path = encoder.save(tmp_path / "model")
    before = (path / "model.safetensors").read_bytes()

    def fail(folder, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(encoder.model, "save_pretrained", fail)
    with pytest.raises(OSError, match="no space"):
        encoder.save(path, overwrite=True)
    assert (path / "model.safetensors").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_metadata_describes_the_encoder_and_nothing_of_this_machine(source, saved):
    metadata = json.loads((saved / "pt_meta.json").read_text())
    assert (metadata["type"], metadata["format"]) == ("biencoder", "selfdistill")
    assert metadata["model"] == {
        "checksum": source.model_name,
        "architecture": "BertModel",
        "parameters": sum(parameter.numel() for parameter in source.model.parameters()),
        "dimension": 32,
        "pooling": "cls",
        "query_length": 4,
        "document_length": 40,
        "prompts": {"query": "q|uery: "},
    }
    assert metadata["training"] == {
        **TRAINING,
        "base_model": {"name": "mine", "checksum": "fedcba9876543210"},
        "data": {**TRAINING["data"], "source": "triples.tsv"},
        "arguments": {"num_train_epochs": 2},
    }


# --- damaged folders ------------------------------------------------------------------------------------------------


def cut_off(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {"missing": Path.unlink, "cut off": cut_off, "other bytes": lambda file: file.write_bytes(b"\xff\xfe")}
FILES = [
    *("config.json", "model.safetensors", "modules.json", "tokenizer.json", "tokenizer_config.json"),
    *("sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"),
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(saved, tmp_path, name, damage):
    folder = shutil.copytree(saved, tmp_path / "model")
    DAMAGES[damage](folder / name)
    # without its list of layers it is no model of sentence-transformers
    with pytest.raises(ValueError, match=f"{folder}'.*{name}"):
        SelfDistillBiEncoder(folder)
    with pytest.raises(ValueError, match=f"{folder}'.*{name}"):
        SelfDistillBiEncoder.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{"])
def test_damaged_metadata_are_named(saved, tmp_path, content):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "pt_meta.json").write_bytes(content)
    for load in LOADERS:
        with pytest.raises(ValueError, match=r"pt_meta\.json"):
            load(folder)


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_another_architecture_than_was_saved_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    change_json(folder / "config.json", lambda config: config.update(model_type="gpt2"))
    for load in LOADERS:
        with pytest.raises(ValueError, match="'BertModel'.*'GPT2Model'"):
            load(folder)


def test_a_folder_that_is_no_model_is_refused(language_model, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        SelfDistillBiEncoder(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"modules\.json"):
        SelfDistillBiEncoder(tmp_path)
    folder = shutil.copytree(language_model, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"{folder}'.*model.safetensors"):
        SelfDistillBiEncoder.from_pretrained(folder)


def test_neither_a_card_nor_our_metadata_are_needed(source, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "README.md").unlink()
    (folder / "pt_meta.json").unlink()
    for load in LOADERS:
        assert load(folder, device="cpu").model_name == source.model_name
        assert load(folder).training_summary == {}


def test_a_folder_that_a_killed_process_moved_away_is_put_back(saved, tmp_path):
    for load in LOADERS:
        shutil.copytree(saved, tmp_path / ".model.replaced")
        assert load(tmp_path / "model").query_length == 4
        shutil.rmtree(tmp_path / "model")


# --- folders of others ----------------------------------------------------------------------------------------------


class Marks:
    """An object that leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


CODE = "from pathlib import Path\nPath({!r}).touch()\nclass Evil:\n    pass\n"


def module_of_its_own(folder, mark):
    (folder / "evil.py").write_text(CODE.format(str(mark)))
    change_json(folder / "modules.json", lambda modules: modules[1].update(type="evil.Evil"))


def language_model_of_its_own(folder, mark):
    (folder / "evil.py").write_text(CODE.format(str(mark)))
    own = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    change_json(folder / "config.json", lambda config: config.update(own))


def pickled_weights(folder, mark):
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Marks(mark)}, folder / "pytorch_model.bin")


def of_modules(**values):
    return lambda folder, mark: change_json(folder / "modules.json", lambda modules: modules[1].update(values))


ATTACKS = {
    "module of its own": module_of_its_own,
    "installed module": of_modules(type="subprocess.Popen"),
    "language model of its own": language_model_of_its_own,
    "pickled weights": pickled_weights,
    "module outside": of_modules(path="../outside"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_models_run_no_code_and_stay_in_their_folder(tiny_model, tmp_path, monkeypatch, attack):
    # saved by another library, so that nothing is known of its files
    folder = tmp_path / "model"
    tiny_model.save(str(folder))
    shutil.copytree(folder / "1_Pooling", tmp_path / "outside")
    monkeypatch.chdir(folder)
    attack(folder, tmp_path / "mark")
    for load in LOADERS:
        with pytest.raises(ValueError, match=f"{folder}' cannot be loaded"):
            load(folder)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_runs_code_where_it_is_trusted(tmp_path):
    """So that the test above can fail."""
    torch.save({"weights": Marks(tmp_path / "mark")}, tmp_path / "weights")
    torch.load(tmp_path / "weights", weights_only=False)
    assert (tmp_path / "mark").exists()


# --- cards ----------------------------------------------------------------------------------------------------------


def test_the_card_of_a_trained_encoder_says_how_it_was_trained(source, saved):
    card = (saved / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "sentence-transformers"
    assert "pyterrier" in front["tags"]
    # a folder of this machine is no model of the hub
    assert "base_model" not in front
    for words in (
        *("# my.model\n", "pt.Artifact.load('my.model')", "@inproceedings{gienapp2025", r"`q\|uery: `", "cls"),
        *("BertModel", source.model_name[:12], "`mine` `fedcba987654`", "12,345", "678", "ab12", "1,203"),
        *("target=distributed", "num_train_epochs=2", "torch 2.13.0", "nDCG@10 0.5679 at step 10"),
        *("| 10 | 0.2500 | 0.1000 | 0.5000 | 0.5679 | best |", "| 20 | 0.1250 | 0.2000 | 0.4000 | 0.5000 |  |"),
    ):
        assert words in card
    assert card.count("| best |") == 1
    for words in ("/models", "/home", "hf_mine", "None", "TODO"):
        assert words not in card


def test_the_card_of_another_model_is_kept(encoder, tmp_path):
    card = (encoder.save(tmp_path / "model") / "README.md").read_text()
    assert "sentence-transformers" in card
    assert "pyterrier-selfdistill" not in card


CARDS = {
    "untrained": ({}, ["A single-vector biencoder"], ["## Training", "Measures"]),
    "softmax": ({"loss": {"name": "L", "target": "softmax"}}, ["InfoNCE"], ["adaptive relevance"]),
    "not improved": (
        {"best_step": 0, "best_measure": {"name": "RR", "value": 0.6}},
        ["step 0"],
        ["adaptive relevance"],
    ),
    "not measured": ({"history": [{"step": 20, "loss": 0.5}]}, ["no validation queries"], ["| Best |", "best |"]),
    "nested": ({"loss": {"name": "L", "matryoshka_dims": [384, 96, 48]}}, ["first 96, 48 dim"], ["Truncated"]),
    "truncated": ({"steps": 3, "loss": {"name": "L"}, "truncated_from": 384}, ["of 384 dimensions"], ["Shorter"]),
    "of the hub": ({"base_model": {"name": "me/base"}}, ['base_model: "me/base"'], ["Data", "Loss", "Seed", "Best"]),
}


@pytest.mark.parametrize(("training", "said", "unsaid"), CARDS.values(), ids=CARDS)
def test_a_card_says_what_is_known(saved, training, said, unsaid):
    metadata = {**json.loads((saved / "pt_meta.json").read_text()), "training": training}
    card = saved_card(metadata, title="Tiny", load="load()")
    assert "encoder = load()\n" in card
    for words in said:
        assert words in card
    for words in unsaid:
        assert words not in card


@pytest.mark.parametrize(("branch", "where"), [("main", "me/tiny"), (None, "me/tiny"), ("second", "me/tiny@second")])
def test_the_card_of_an_upload_says_where_it_is(saved, branch, where):
    metadata = json.loads((saved / "pt_meta.json").read_text())
    card = artifact_card(metadata, repo="me/tiny", branch=branch, pretty_name="A tiny one")
    front = yaml.safe_load(card.split("---\n")[1])
    assert f"encoder = pt.Artifact.from_hf({where!r})\n" in card
    assert front["pretty_name"] == "A tiny one"
    assert front["tags"][-1] == "pyterrier-artifact.biencoder.selfdistill"
    assert "# A tiny one\n" in card


def test_an_upload_holds_the_encoder_and_its_card(saved, tmp_path, monkeypatch):
    uploaded = {}

    def upload_folder(*arguments, folder_path, **options):
        uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    for name in ("create_repo", "create_branch"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda self, *arguments, **options: None)
        monkeypatch.setattr(huggingface_hub, name, lambda *arguments, **options: None)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, *args, **kw: upload_folder(*args, **kw))
    pt.Artifact.load(str(saved)).to_hf("me/retriever", pretty_name="A retriever")
    assert {"README.md", "artifact.tar.lz4"} <= uploaded.keys()
    assert "pt.Artifact.from_hf('me/retriever')" in uploaded["README.md"].decode()
    assert "## Measures while training" in uploaded["README.md"].decode()
