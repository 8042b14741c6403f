"""The notebook from first to last cell, on a smaller collection with a tiny model."""

import os
import re
import time
import zlib
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"


@pytest.fixture
def documentation(tmp_path, monkeypatch):
    """An empty list of PyTerrier's documentation, which schematics would download."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path / "home"))
    listing = tmp_path / "home" / "documentation" / "objects.inv"
    listing.parent.mkdir(parents=True)
    listing.write_bytes(b"# an empty inventory\n" * 4 + zlib.compress(b""))
    earlier = time.time() - 7 * 24 * 3600  # a new one would be looked for again
    os.utime(listing, (earlier, earlier))


def test_notebook(language_model, documentation, folder, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(folder))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    of_one_run = list(range(1, len(code) + 1))
    assert counts in (of_one_run, [None] * len(code)), "run make notebook"
    parameters = code[0]
    for name, value in {"DATASET": "docstrings:numpy", "MODEL": language_model, "POSITIVES": 64}.items():
        parameters.source, replaced = re.subn(rf"^{name} = .*$", f"{name} = {value!r}", parameters.source, flags=re.M)
        assert replaced == 1
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()

    shown = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
            shown[cell.source] = kinds, str([output.get("data", {}).get("text/html", "") for output in cell.outputs])

    def of(text):
        return next(value for source, value in shown.items() if text in source)

    assert "pts-transformer-title" in of("bm25 % 20 >> text >> untrained")[1]
    assert "TorchRetriever" in of("retrievers = {")[1]
    assert "image/png" in of("trainer.plot()")[0]
    assert "srcdoc" in of("comparison = compare(")[1]
    assert "self-distilled" in of("table = pt.Experiment")[1]
    assert "text/markdown" in of("Markdown(page")[0]
