"""Train, save, load, index and search with the installed package and its dependencies alone.

The tests run on an editable installation with all extras, which hides a missing subpackage, data file, entry point or
dependency. This runs where the built wheel was installed without extras, outside the repository.
"""

import importlib.metadata
import importlib.resources
import pkgutil
import sys
import tempfile
from pathlib import Path

import pyterrier as pt
from transformers import BertConfig, BertModel, BertTokenizerFast

import pyterrier_selfdistill
from pyterrier_selfdistill import SelfDistillBiEncoder, SelfDistillIndex, SelfDistillTrainer

WORDS = ["sort", "read", "plot", "table", "matrix", "file"]
DOCUMENTS = [{"docno": f"{verb}-{thing}", "text": f"{verb} {thing}"} for verb in WORDS[:3] for thing in WORDS[3:]]
TRIPLES = [(thing, f"sort {thing}", "read plot") for thing in WORDS[3:]]


def make_language_model(folder: Path) -> Path:
    """Write a language model of one layer with random weights."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(config).save_pretrained(folder)
    return folder


def check_contents(repository: Path) -> None:
    """Check that the installed package has every file that its source has."""
    installed = Path(pyterrier_selfdistill.__file__).parent
    source = repository / "pyterrier_selfdistill"
    assert installed != source, f"imported the source, not what is installed: {installed}"
    paths = [path.relative_to(source) for path in source.rglob("*") if "__pycache__" not in path.parts]
    missing = [str(path) for path in paths if not (installed / path).exists()]
    assert not missing, f"the wheel lacks {missing}"
    for module in pkgutil.walk_packages(pyterrier_selfdistill.__path__, "pyterrier_selfdistill."):
        importlib.import_module(module.name)
    for entry_point in importlib.metadata.distribution("pyterrier-selfdistill").entry_points:
        entry_point.load()


def check_use(folder: Path) -> None:
    """Train, save, load, index and search, and read a dataset that the package provides."""
    base = SelfDistillBiEncoder.from_pretrained(make_language_model(folder / "base"), device="cpu")
    trainer = SelfDistillTrainer(base, folder / "run", verbose=False)
    trainer.fit_triples(TRIPLES)
    trainer.encoder.save(folder / "model")
    encoder = pt.Artifact.load(str(folder / "model"))
    assert encoder == trainer.encoder
    index = SelfDistillIndex(folder / "index.flex", verbose=False)
    (encoder >> index).index(DOCUMENTS)
    results = (encoder >> index).search("matrix")
    assert set(results["docno"]) == {document["docno"] for document in DOCUMENTS}
    assert len(pt.get_dataset("docstrings:more-itertools").get_topics("test"))


if __name__ == "__main__":
    check_contents(Path(sys.argv[1]).resolve())
    with tempfile.TemporaryDirectory() as name:
        check_use(Path(name))
    print(f"pyterrier-selfdistill {pyterrier_selfdistill.__version__} works as it is installed")
