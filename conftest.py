"""A tiny encoder with random weights, for the tests and for the examples in docstrings."""

import gc
import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pyterrier as pt
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertModel, BertTokenizerFast

from pyterrier_selfdistill import SelfDistillBiEncoder

WORDS = "sort the rows of a table by column return mean value array matrix plot file read write query d".split()  # noqa: SIM905


pt.documentation._cached_objects_inv = {}  # schematics link to PyTerrier's documentation, which they would download


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory):
    """What is cached while testing is not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTERRIER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _same_precision_everywhere():
    """Encode in float32 unless a test says otherwise, whatever the hardware has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
        yield


@pytest.fixture(autouse=True)
def _children_end_as_before():
    """Take away the handler that torch's loaders leave behind when they have had workers.

    The end of any child of a later test would call it, and where a library has broken the stack of signals meanwhile,
    that is a segmentation fault.
    """
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory) -> str:
    """The folder of a plain language model: BERT with two layers of 32 dimensions."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [str(digit) for digit in range(10)]
    pieces = [*WORDS, *letters, *(f"##{letter}" for letter in letters), ":", "."]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def tiny_model(language_model) -> SentenceTransformer:
    """A sentence-transformers model without normalization, its vectors of any length."""
    transformer = Transformer(language_model)
    return SentenceTransformer(modules=[transformer, Pooling(32, "mean")], device="cpu")


@pytest.fixture
def encoder(language_model) -> SelfDistillBiEncoder:
    """A tiny encoder on the CPU, in the same precision in other processes too."""
    return SelfDistillBiEncoder.from_pretrained(language_model, device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def _doctest_names(request, doctest_namespace):
    if request.node.__class__.__name__ == "DoctestItem":
        doctest_namespace["encoder"] = request.getfixturevalue("encoder")


def pytest_collection_finish():
    # statsmodels collects garbage at each correction, which takes a second with all libraries loaded
    gc.freeze()
