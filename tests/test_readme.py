"""What the README shows, run as it stands, with local data in place of MS MARCO and a tiny model in place of MPNet."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pyterrier_dr
from sentence_transformers import SentenceTransformer

ROOT = Path(__file__).parents[1]
CODE = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_in_your_own_code(names, language_model, folder):
    code = CODE[0].replace("microsoft/mpnet-base", language_model)
    table = "table = pt.Experiment("
    exec(code.replace("pt.Experiment(", table), names)
    assert names["table"]["nDCG@10"].notna().all()
    assert len(names["table"]) == 2
    encoder, texts = names["encoder"], ["sort the table"]
    for reader in (
        pt.Artifact.load("my-model").encode_docs,
        SentenceTransformer("my-model").encode_document,
        pyterrier_dr.SBertBiEncoder("my-model").encode_docs,
    ):
        np.testing.assert_allclose(reader(texts), encoder.encode_docs(texts), atol=1e-6)


def test_the_map_leads_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_map_has_all_pages():
    pages = (ROOT / "pyterrier_selfdistill" / "pt_docs").glob("*.rst")
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in pages if f"pt_docs/{page.name}" not in readme] == []


def test_quickstart(collection, names, language_model, folder):
    """The example on a small dataset of ir_datasets that has no splits of its own."""
    queries = [
        (f"q{i}", f"{v} {t}") for i, (v, t) in enumerate((v, t) for v in collection.verbs for t in collection.things)
    ]
    program = folder / "run.py"
    program.write_text(
        f"""
import sys
sys.path.insert(0, {str(ROOT / "examples")!r})
import ir_datasets, pathlib, quickstart
from ir_datasets.formats import TrecQrels, TsvDocs, TsvQueries
from ir_datasets.util import LocalDownload
pathlib.Path("queries.tsv").write_text({"".join(f"{q}{chr(9)}{t}{chr(10)}" for q, t in queries)!r})
pathlib.Path("qrels.txt").write_text({"".join(f"{q} 0 {t.replace(' ', '-')} 1{chr(10)}" for q, t in queries)!r})
ir_datasets.registry._registered["whole"] = ir_datasets.Dataset(
    TsvDocs(LocalDownload("irds/local/docs"), namespace="whole"),
    TsvQueries(LocalDownload("queries.tsv")),
    TrecQrels(LocalDownload("qrels.txt"), {{}}),
)
quickstart.main(quickstart.read_options(sys.argv[1:]))
"""
    )
    done = subprocess.run(
        [
            sys.executable,
            program,
            "--dataset",
            "irds:whole",
            "--model",
            language_model,
            "--output",
            "out",
            "--target",
            "0.5",
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(folder / "out" / "table.csv")
    assert table["name"].tolist() == ["bm25", "untrained", "self-distilled", "bm25, re-ranked", "bm25, fused"]
    assert table["nDCG@10"].between(0, 1).all()
    written = {path.name for path in (folder / "out").iterdir()}
    assert {
        "model",
        "history.csv",
        "history.png",
        "report.html",
        "runs",
        "self-distilled.flex",
        "untrained.flex",
        "table.csv",
    } <= written
    assert {path.name for path in (folder / "out" / "runs").glob("*.res.gz")} == {
        f"{name}.res.gz" for name in table["name"]
    }
    assert pt.Artifact.load(str(folder / "out" / "model")).training_summary["loss"]["target"] == 0.5
