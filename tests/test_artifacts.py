"""Encoders as artifacts: the model card, packages, and the Hugging Face hub."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import yaml

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer

TEXTS = ["sort the rows of a table", "plot a matrix"]


@pytest.fixture(scope="module")
def trained(language_model, tmp_path_factory):
    """The folder of an encoder that was trained with validation."""
    things = ["table", "matrix", "file", "array", "column", "rows", "value", "mean"]
    topics = pd.DataFrame([(f"q{i}", f"query {t}") for i, t in enumerate(things)], columns=["qid", "query"])
    corpus = pd.DataFrame([(f"d{i}", f"read the {t}") for i, t in enumerate(things)], columns=["docno", "text"])
    qrels = pd.DataFrame([(f"q{i}", f"d{i}", 1) for i in range(8)], columns=["qid", "docno", "label"])
    encoder = SelfDistillBiEncoder.from_pretrained(
        language_model, query_length=20, query_prompt="query: ", document_length=40, device="cpu"
    )
    folder = tmp_path_factory.mktemp("trained") / "run"
    trainer = SelfDistillTrainer(encoder, folder, corpus=corpus, eval_steps=1, verbose=False, num_train_epochs=2)
    return trainer.fit(topics, qrels, topics, qrels).output_dir / "model"


def test_metadata_says_what_it_is_and_how_it_was_trained(trained):
    metadata = json.loads((trained / "pt_meta.json").read_text())
    encoder = pt.Artifact.load(str(trained))
    assert metadata["type"] == "biencoder"
    assert metadata["model"] == {
        "checksum": encoder.model_name,
        "architecture": "BertModel",
        "parameters": sum(p.numel() for p in encoder.model.parameters()),
        "dimension": 32,
        "pooling": "cls",
        "query_length": 20,
        "document_length": 40,
        "prompts": {"query": "query: "},
    }
    training = metadata["training"]
    assert training == encoder.training_summary
    assert [row["step"] for row in training["history"]] == [0, 1, 2]
    assert training["history"][-1].keys() == {"step", "loss", "margin", "target", "nDCG@10"}


def test_model_card(trained):
    card = (trained / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "sentence-transformers"
    assert "pyterrier" in front["tags"]
    assert "base_model" not in front  # a folder of this machine is no model of the hub
    training = json.loads((trained / "pt_meta.json").read_text())["training"]
    for row in training["history"]:
        assert f"| {row['nDCG@10']:.4f} |" in card
    assert card.count("| best |") == 1
    for words in (
        training["data"]["fingerprint"],
        "target=distributed",
        "@inproceedings{gienapp2025",
        "query `query: `",
    ):
        assert words in card
    assert "read the table" not in card  # nobody's texts
    encoder = pt.Artifact.load(str(trained))
    names = {"first_stage": pt.Transformer.identity(), "dataset": pt.get_dataset("irds:vaswani")}
    code = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1].replace("'model'", repr(str(trained)))
    here = Path.cwd()
    try:
        os.chdir(trained.parent)
        exec(code, names)
    finally:
        os.chdir(here)
    assert names["encoder"] == encoder


def test_card_of_a_model_that_was_not_trained_here_is_its_own(language_model, tmp_path):
    encoder = SelfDistillBiEncoder.from_pretrained(language_model, device="cpu")
    card = (encoder.save(tmp_path / "model") / "README.md").read_text()
    assert "pyterrier-selfdistill" not in card
    assert "sentence-transformers" in card


def test_card_names_a_base_model_of_the_hub(encoder):
    from pyterrier_selfdistill.model_card import front_matter

    assert front_matter({"base_model": {"name": "microsoft/mpnet-base"}})["base_model"] == "microsoft/mpnet-base"
    assert "base_model" not in front_matter({"base_model": {"name": "/models/mine"}})


@pytest.mark.parametrize("max_file_size", [None, 20_000])
def test_package_from_a_file_url(trained, tmp_path, max_file_size):
    encoder = pt.Artifact.load(str(trained))
    package = encoder.build_package(str(tmp_path / "model.tar.lz4"), max_file_size=max_file_size, verbose=False)
    assert (tmp_path / "model.tar.lz4").exists() == (max_file_size is None)
    for url in (f"file://{package}", trained.as_uri()):
        loaded = pt.Artifact.from_url(url)
        assert loaded == encoder
        assert loaded.training_summary == encoder.training_summary
    assert pt.Artifact.from_url(f"file://{package}").path == pt.Artifact.from_url(f"file://{package}").path


def test_packages_that_are_not_whole(trained, tmp_path):
    package = Path(pt.Artifact.load(str(trained)).build_package(str(tmp_path / "model.tar.lz4"), verbose=False))
    content = bytearray(package.read_bytes())
    content[len(content) // 2] ^= 1
    package.write_bytes(content)
    before = set((Path(pt.io.pyterrier_home()) / "artifacts").glob("*"))
    with pytest.raises((ValueError, RuntimeError, OSError)):
        pt.Artifact.from_url(f"file://{package}")
    assert set((Path(pt.io.pyterrier_home()) / "artifacts").glob("*")) == before
    with pytest.raises(FileNotFoundError, match="build_package"):
        pt.Artifact.from_url(f"file://{tmp_path}/nothing.tar.lz4")


def test_index_as_a_package(encoder, tmp_path):
    corpus = [{"docno": str(i), "text": f"plot {i}"} for i in range(5)]
    encoder.build_retriever(corpus, tmp_path / "index.flex")
    package = SelfDistillIndex(tmp_path / "index.flex").build_package(str(tmp_path / "index.tar.lz4"), verbose=False)
    index = SelfDistillIndex.from_url(f"file://{package}")
    assert index.encoder == encoder.identity
    assert len((encoder >> index).search("plot 3")) == 5


class _Hub(BaseHTTPRequestHandler):
    """A stand-in for the hub: repositories, branches, commits and downloads, as its client asks for them."""

    repositories: dict

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        path = self.path.split("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.repositories.setdefault(name, {"type": asked["type"], "files": {}})
            return self._answer({"url": f"http://{self.headers['Host']}/datasets/{name}", "name": name, "id": "1"})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        owner, name, action, *rest = path.removeprefix("/api/datasets/").split("/")
        files = self.repositories[f"{owner}/{name}"]["files"]
        if action == "branch":
            files.setdefault(rest[0], {})
            return self._answer({})
        if action == "preupload":
            asked = json.loads(body)["files"]
            return self._answer(
                {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        assert action == "commit", self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files.setdefault(rest[0], {})[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._answer(
            {"commitUrl": f"http://{self.headers['Host']}/datasets/{owner}/{name}/commit/1", "commitOid": "1"}
        )

    def do_GET(self):
        match = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        content = self.repositories[match[1]]["files"].get(match[2], {}).get(match[3]) if match else None
        self.send_response(200 if content is not None else 404)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def _answer(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub():
    handler = type("Hub", (_Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.repositories
    server.shutdown()


@pytest.mark.parametrize("branch", ["main", "second"])
def test_hub(trained, hub, tmp_path, monkeypatch, branch):
    address, repositories = hub
    program = """
import sys, pyterrier as pt
pt.Artifact.load(sys.argv[1]).to_hf("me/retriever", branch=sys.argv[2], pretty_name="A retriever")
"""
    environment = {
        **os.environ,
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": "hf_x",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, str(trained), branch], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert repositories["me/retriever"]["type"] == "dataset"
    files = repositories["me/retriever"]["files"][branch]
    assert files.keys() == {"README.md", "artifact.tar.lz4", "artifact.tar.lz4.json"}

    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pretty_name"] == "A retriever"
    assert front["tags"][-1] == "pyterrier-artifact.biencoder.selfdistill"
    where = "me/retriever" if branch == "main" else "me/retriever@second"
    assert f"pt.Artifact.from_hf({where!r})" in card
    assert "## Measures while training" in card
    assert "TODO" not in card

    resolve = pt._artifact._hf_url_resolver
    moved = lambda url: (resolve(url).url.replace("https://huggingface.co", address), {})  # noqa: E731
    monkeypatch.setattr(pt._artifact, "_hf_url_resolver", moved)
    loaded = pt.Artifact.from_hf(where)
    original = pt.Artifact.load(str(trained))
    assert loaded == original
    assert loaded.training_summary == original.training_summary
    np.testing.assert_array_equal(loaded.encode_docs(TEXTS), original.encode_docs(TEXTS))
