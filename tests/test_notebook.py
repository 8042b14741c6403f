"""The notebooks from first to last cell, on a smaller collection with a tiny model."""

import os
import re
import time
import zlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(language_model, folder, monkeypatch):
    """Run a notebook with other parameters in its first cell, and find what a cell shows by a part of its source."""

    # an empty list of PyTerrier's documentation, which schematics would download
    monkeypatch.setenv("PYTERRIER_HOME", str(folder / "home"))
    listing = folder / "home" / "documentation" / "objects.inv"
    listing.parent.mkdir(parents=True)
    listing.write_bytes(b"# an empty inventory\n" * 4 + zlib.compress(b""))
    earlier = time.time() - 7 * 24 * 3600  # a new one would be looked for again
    os.utime(listing, (earlier, earlier))
    monkeypatch.setenv("TMPDIR", str(folder))

    def run(name, **parameters):
        notebook = nbformat.read(EXAMPLES / name, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        counts = [cell.execution_count for cell in code]
        assert counts in (list(range(1, len(code) + 1)), [None] * len(code)), "run make notebooks"
        first = code[0]
        for parameter, value in {"MODEL": language_model, **parameters}.items():
            pattern = rf"^{parameter} = .*$"
            first.source, replaced = re.subn(pattern, f"{parameter} = {value!r}", first.source, flags=re.M)
            assert replaced == 1
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()

        def of(text):
            (cell,) = [cell for cell in code if text in cell.source]
            return {kind: data for output in cell.outputs for kind, data in output.get("data", {}).items()}

        return of

    return run


@pytest.mark.notebooks
def test_quickstart(run):
    of = run("quickstart.ipynb", DATASET="docstrings:numpy", POSITIVES=64)
    assert "pts-transformer-title" in of("bm25 % 20 >> text >> untrained")["text/html"]
    assert "QueryEncoder" in of("retrievers = {")["text/html"]
    assert "image/png" in of("trainer.plot()")
    assert "srcdoc" in of("comparison = compare(")["text/html"]
    assert "self-distilled" in of("table = pt.Experiment")["text/html"]
    assert "text/markdown" in of("Markdown(page")


@pytest.mark.notebooks
def test_tutorial(run):
    of = run("tutorial.ipynb", DATASET="docstrings:more-itertools", POSITIVES=32, DEV_QUERIES=8, POOL=20)
    assert "image/png" in of("axes.scatter(targets, margins")
    assert "image/png" in of("paper.plot()")
    assert "correlation" in of("by_rate = {")["text/html"]
    assert "half of them loose" in of("half of them loose")["text/html"]
    assert "BM25, ranks 10 to 99" in of("BM25, ranks 10 to 99")["text/html"]
    assert "distributed" in of("raw.model[1] = Pooling")["text/html"]
    assert "distributed" in of('baseline="untrained"')["text/html"]
