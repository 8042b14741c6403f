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
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from pyterrier_selfdistill import SelfDistillBiEncoder
from pyterrier_selfdistill.encoder.card import read_license, saved_card

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


@pytest.mark.parametrize(
    "make", [SelfDistillBiEncoder.copy, lambda e: e.truncate(8), lambda e: e.with_prompts(query="")]
)
def test_three_libraries_read_the_same_vectors(source, tmp_path, make):
    encoder = make(source)
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


def test_a_folder_is_replaced_only_if_asked_and_whole(encoder, tmp_path, monkeypatch):
    path = encoder.save(tmp_path / "model")
    before = (path / "pt_meta.json").stat().st_ino
    with pytest.raises(FileExistsError, match="overwrite=True"):
        encoder.save(path)

    def fail(folder, **options):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(encoder.model, "save_pretrained", fail)
        with pytest.raises(OSError, match="no space"):
            encoder.save(path, overwrite=True)
    assert (path / "pt_meta.json").stat().st_ino == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    encoder.save(path, overwrite=True)
    assert (path / "pt_meta.json").stat().st_ino != before
    for name in ("notes.md", ".git/HEAD"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=r"model' holds \.git, notes\.md, which .*move these"):
        encoder.save(path, overwrite=True)
    assert (path / ".git/HEAD").read_text() == "mine"


def test_metadata_describes_the_encoder_and_nothing_of_this_machine(source, saved):
    metadata = json.loads((saved / "pt_meta.json").read_text())
    assert (metadata["type"], metadata["format"]) == ("biencoder", "selfdistill")
    expected = {"checksum": source.model_name, "query_length": 4, "prompts": {"query": "q|uery: "}, "dimension": 32}
    assert metadata["model"].items() >= {**expected, "architecture": "BertModel", "pooling": "cls"}.items()
    assert metadata["training"] == {
        **TRAINING,
        "base_model": {"name": "mine", "checksum": "fedcba9876543210"},
        "data": {**TRAINING["data"], "source": "triples.tsv"},
        "arguments": {"num_train_epochs": 2},
    }


def cut_off(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = [
    (Path.unlink, "model.safetensors"),
    (Path.unlink, "1_Pooling/config.json"),
    (Path.unlink, "sentence_bert_config.json"),
    (cut_off, "config.json"),
    (cut_off, "tokenizer.json"),
    (cut_off, "model.safetensors"),
    (lambda file: file.write_bytes(b"\xff"), "pt_meta.json"),
    (lambda file: file.write_text("[]"), "pt_meta.json"),
    (lambda file: file.write_text('{\n"files": [}'), "pt_meta.json' is damaged: .* at line 2 column 11"),
    (lambda file: file.write_text('{"training": 3}'), "pt_meta.json' is damaged: training must be a .*, got 3"),
    (lambda file: change_weights(file, lambda weights: weights["pooler.dense.bias"].add_(1)), "model.safetensors"),
    (lambda file: file.write_text(file.read_text().replace("sort", "rots")), "tokenizer.json"),
]


@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_a_damaged_file_is_named(saved, tmp_path, damage, name):
    folder = shutil.copytree(saved, tmp_path / "model")
    damage(folder / name.partition("'")[0])
    with pytest.raises(ValueError, match=f"{folder}.*{name}"):
        SelfDistillBiEncoder(folder)


def change_weights(file, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(
    ("change", "said", "always"),
    [
        (lambda weights: weights.pop("encoder.layer.1.output.dense.bias"), r"lacks .*layer\.1\.output\.dense\.b", True),
        (lambda weights: weights.pop("pooler.dense.bias"), r"lacks .*pooler\.dense\.bias", False),
        (lambda weights: weights.update(more=torch.ones(1)), "holds .*more too", False),
    ],
    ids=["a layer", "the pooler", "more"],
)
def test_weights_are_never_made_up(saved, tmp_path, change, said, always, ours):
    folder = shutil.copytree(saved, tmp_path / "model")
    if not ours:
        # models of others often lack a pooler, which computes nothing that is used, and hold heads
        (folder / "pt_meta.json").unlink()
    change_weights(folder / "model.safetensors", change)
    if ours or always:
        with pytest.raises(ValueError, match=f"{folder}.*{said}"):
            SelfDistillBiEncoder(folder)
    else:
        assert SelfDistillBiEncoder(folder).model_name == SelfDistillBiEncoder(folder).model_name


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_another_architecture_than_was_saved_is_refused(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    change_json(folder / "config.json", lambda config: config.update(model_type="gpt2"))
    with pytest.raises(ValueError, match="'BertModel'.*'GPT2Model'"):
        SelfDistillBiEncoder(folder)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        SelfDistillBiEncoder(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"modules\.json"):
        SelfDistillBiEncoder(tmp_path)


def test_neither_a_card_nor_our_metadata_are_needed(source, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "README.md").unlink()
    (folder / "pt_meta.json").unlink()
    loaded = SelfDistillBiEncoder(folder, device="cpu")
    assert (loaded.model_name, loaded.training_summary) == (source.model_name, {})


@pytest.mark.parametrize("load", [SelfDistillBiEncoder, SelfDistillBiEncoder.from_pretrained])
def test_a_folder_that_a_killed_process_moved_away_is_put_back(saved, tmp_path, load):
    shutil.copytree(saved, tmp_path / ".model.replaced")
    assert load(tmp_path / "model").query_length == 4


class Marks:
    """An object that leaves a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def write_code(folder, mark):
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Evil:\n    pass\n")


def module_of_its_own(folder, mark):
    write_code(folder, mark)
    change_json(folder / "modules.json", lambda modules: modules[1].update(type="evil.Evil"))


def language_model_of_its_own(folder, mark):
    write_code(folder, mark)
    own = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}
    change_json(folder / "config.json", lambda config: config.update(own))


def pickled_weights(folder, mark):
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Marks(mark)}, folder / "pytorch_model.bin")


def module_outside(folder, mark):
    change_json(folder / "modules.json", lambda modules: modules[1].update(path="../outside"))


ATTACKS = [module_of_its_own, language_model_of_its_own, pickled_weights, module_outside]


@pytest.mark.parametrize("attack", ATTACKS)
def test_models_run_no_code_and_stay_in_their_folder(tiny_model, tmp_path, monkeypatch, attack):
    # saved by another library, so that nothing is known of its files
    folder = tmp_path / "model"
    tiny_model.save(str(folder))
    shutil.copytree(folder / "1_Pooling", tmp_path / "outside")
    monkeypatch.chdir(folder)
    attack(folder, tmp_path / "mark")
    with pytest.raises(ValueError, match=f"{folder}' cannot be loaded"):
        SelfDistillBiEncoder(folder)
    assert not (tmp_path / "mark").exists()


def test_the_card_of_a_trained_encoder_says_how_it_was_trained(source, saved):
    card = (saved / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "sentence-transformers"
    # a folder of this machine is no model of the hub
    assert "base_model" not in front
    for words in (
        *("# my.model\n", "pt.Artifact.load('my.model')", "@inproceedings{gienapp2025", r"`q\|uery: `", "BertModel"),
        *("`mine` `fedcba987654`", "12,345", "1,203", "target=distributed", "num_train_epochs=2"),
        *("nDCG@10 0.5679 at step 10", "| 10 | 0.2500 | 0.1000 | 0.5000 | 0.5679 | best |"),
    ):
        assert words in card
    for words in ("/models", "/home", "hf_mine", "None"):
        assert words not in card


CARDS = [
    ({}, "A single-vector biencoder", "## Training"),
    ({"loss": {"name": "SelfDistillationLoss", "target": "softmax"}}, "InfoNCE", "@inproceedings"),
    ({"loss": {"name": "MarginMSELoss"}}, "trained with MarginMSELoss", "@inproceedings"),
    ({"loss": {"name": "SelfDistillationLoss", "target": 0.3}}, "trained with a margin of 0.3", "@inproceedings"),
    ({"loss": {"name": "SelfDistillationLoss", "target": "listwise"}}, "by listwise self-", "@inproceedings"),
    ({"best_step": 0, "best_measure": {"name": "RR", "value": 0.6}}, "no later step", "adaptive relevance"),
    ({"history": [{"step": 20, "loss": 0.5}]}, "no validation queries", "best |"),
    ({"steps": 3, "loss": {"name": "L"}, "truncated_from": 384}, "of all 384 dimensions", "Shorter"),
    ({"base_model": {"name": "me/base", "license": "mit"}}, 'base_model: "me/base"\nlicense: "mit"', "Seed"),
    ({"base_model": {"name": "bert", "is_on_hub": True}}, 'base_model: "bert"\nlicense: "unknown"', "Seed"),
]


@pytest.mark.parametrize(("training", "said", "unsaid"), CARDS)
def test_a_card_says_what_is_known(source, training, said, unsaid):
    card = saved_card({**source.metadata, "training": training}, title="Tiny", load="load()")
    assert said in card
    assert unsaid not in card


def test_the_license_is_in_the_card_of_the_base(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags:\n- a\nlicense: apache-2.0\n---\nlicense: mit")
    assert read_license(str(tmp_path)) == "apache-2.0"
    (tmp_path / "README.md").write_text("---\ntags: a\n---\nlicense: mit")
    assert read_license(str(tmp_path)) is read_license("me/unknown") is read_license("") is None


@pytest.mark.parametrize("load", [pt.Artifact.load, SelfDistillBiEncoder.from_pretrained])
def test_an_upload_holds_the_encoder_and_its_card(saved, load, monkeypatch):
    uploaded = {}

    def upload_folder(*arguments, folder_path, **options):
        uploaded.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    for name in ("create_repo", "create_branch"):
        monkeypatch.setattr(huggingface_hub.HfApi, name, lambda self, *arguments, **options: None)
        monkeypatch.setattr(huggingface_hub, name, lambda *arguments, **options: None)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, *args, **kw: upload_folder(*args, **kw))
    load(str(saved)).to_hf("me/retriever", pretty_name="A retriever")
    assert {"README.md", "artifact.tar.lz4"} <= uploaded.keys()
    card = uploaded["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["pretty_name"], front["tags"][-1]) == ("A retriever", "pyterrier-artifact.biencoder.selfdistill")
    for words in ("# A retriever\n", "pt.Artifact.from_hf('me/retriever')", "## Measures while training"):
        assert words in card
