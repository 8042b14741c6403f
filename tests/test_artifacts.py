"""Encoders as artifacts: the folder of a trained one, its card, and the Hugging Face hub."""

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
import pyterrier as pt
import pytest
import yaml

from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillTrainer

TEXTS = ["sort the rows of a table", "plot a matrix"]


@pytest.fixture(scope="module")
def trained(language_model, _collection, tmp_path_factory):
    """The folder of an encoder that was trained with validation."""
    topics, corpus, qrels = _collection.topics, _collection.corpus, _collection.qrels
    encoder = SelfDistillBiEncoder.from_pretrained(
        language_model, query_length=20, query_prompt="query: ", document_length=40, device="cpu"
    )
    folder = tmp_path_factory.mktemp("trained") / "run"
    trainer = SelfDistillTrainer(encoder, folder, corpus=corpus, eval_steps=1, verbose=False, max_steps=2)
    return trainer.fit(topics, qrels, topics, qrels).output_dir / "model"


# --- a saved encoder ------------------------------------------------------------------------------------------------


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
    assert training["history"][-1].keys() == {"step", "loss", "margin", "scale", "nDCG@10"}


def test_card_of_a_trained_encoder(trained):
    card = (trained / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "sentence-transformers"
    assert "pyterrier" in front["tags"]
    # a folder of this machine is no model of the hub
    assert "base_model" not in front
    training = json.loads((trained / "pt_meta.json").read_text())["training"]
    for row in training["history"]:
        assert f"| {row['nDCG@10']:.4f} |" in card
    assert card.count("| best |") == 1
    for words in (
        training["data"]["fingerprint"],
        "target=calibrated",
        "@inproceedings{gienapp2025",
        "query `query: `",
    ):
        assert words in card
    # nobody's texts
    assert "read the table" not in card


def test_card_names_no_path_of_this_machine(trained, language_model):
    base = Path(language_model).name
    for file in ("README.md", "pt_meta.json"):
        page = (trained / file).read_text()
        assert base in page
        assert str(Path(language_model).parent) not in page
        assert not re.search(r"[\s`'\"]/\w", page)
    card = (trained / "README.md").read_text()
    training = json.loads((trained / "pt_meta.json").read_text())["training"]
    assert f"| Base model | `{base}` `{training['base_model']['checksum'][:12]}` |" in card


def test_card_shows_code_that_runs(trained, monkeypatch):
    card = (trained / "README.md").read_text()
    names = {"first_stage": pt.Transformer.identity(), "dataset": pt.get_dataset("irds:vaswani")}
    code = re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1].replace("'model'", repr(str(trained)))
    monkeypatch.chdir(trained.parent)
    exec(code, names)
    assert names["encoder"] == pt.Artifact.load(str(trained))


# --- the hub --------------------------------------------------------------------------------------------------------


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
        [sys.executable, "-c", program, str(trained), branch],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
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

    def resolve_to_stand_in(url):
        return resolve(url).url.replace("https://huggingface.co", address), {}

    monkeypatch.setattr(pt._artifact, "_hf_url_resolver", resolve_to_stand_in)
    loaded = pt.Artifact.from_hf(where)
    original = pt.Artifact.load(str(trained))
    assert loaded == original
    assert loaded.training_summary == original.training_summary
    np.testing.assert_array_equal(loaded.encode_docs(TEXTS), original.encode_docs(TEXTS))
