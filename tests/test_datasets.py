"""The collection of docstrings: its documents and queries, and that collecting leaves no trace."""

import importlib
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_selfdistill.datasets import DocstringsDataset, DocstringsDatasetProvider, split_docstring

SPLITS = ("train", "dev", "test")


def rest(topic):
    return f"It is about {topic}. " + " ".join(f"{topic}-{i}" for i in range(20))


def doc(topic, before="", after=""):
    """Make the source of a docstring."""
    return repr(f"{before}Summary of {topic}.\n\n{rest(topic)}{after}")


SIGNATURE = "implemented_in_c(x, /, *, dtype=None,\n                 order=('K', (1,)))\n\n"
PACKAGE = {
    "__init__.py": f"""
{doc("the package")}
__all__ = ["Child", "alias", "deprecated", "implemented_in_c", "json", "shadow"]
import json
from ._private import Child, long_name as alias, implemented_in_c
from .shadow import shadow

def __getattr__(name):
    if name != "deprecated":
        raise AttributeError(name)
    import warnings
    from . import _private
    warnings.warn("deprecated", DeprecationWarning)
    return _private.withdrawn
""",
    "_private.py": f"""
import json

class Parent:
    def inherited(self): {doc("inherited")}
    def overridden(self): {doc("parent")}

class Child(Parent):
    {doc("the child", after=" summary of the  CHILD: repeated.")}
    patched_in = json.loads
    def overridden(self): {doc("overriding")}
    @property
    def attribute(self): {doc("property")}
    @classmethod
    def test(cls): "Brief summary.\\n\\n{rest("brief")}"
    def terse(self): "Summary without a story.\\n\\nSee elsewhere."
    def _hidden(self): {doc("hidden")}

def long_name(): {doc("function")}
def implemented_in_c(x, /): {doc("c", before=SIGNATURE)}
def withdrawn(): {doc("withdrawn")}
""",
    "copies.py": f"""
from ._private import Child
def first(): {doc("two")}
def second(): "summary of  two\\n\\n{rest("second")}"
def copy_of_first(): {doc("two")}
""",
    "shadow.py": f"{doc('the module')}\ndef shadow(): {doc('shadow')}",
    "noisy.py": f"{doc('noise')}\nimport warnings; warnings.simplefilter('always'); warnings.warn('noise'); print(1)",
    "broken.py": "raise ImportError('no such dependency')",
    "exits.py": "raise SystemExit(0)",
    "tests/__init__.py": "import pathlib; pathlib.Path(__file__).with_name('imported').touch()",
}
TOPIC_OF = {
    "synthetic": "the package",
    "synthetic.Child": "the child",
    "synthetic.Child.attribute": "property",
    "synthetic.Child.inherited": "inherited",
    "synthetic.Child.overridden": "overriding",
    "synthetic.Child.test": "brief",
    "synthetic.alias": "function",
    "synthetic.copies.first": "two",
    "synthetic.copies.second": "second",
    "synthetic.implemented_in_c": "c",
    "synthetic.noisy": "noise",
    "synthetic.shadow": "shadow",
}


def write(site, name, files, version="1.0"):
    for path, source in files.items():
        (site / name / path).parent.mkdir(parents=True, exist_ok=True)
        (site / name / path).write_text(source)
    info = site / f"{name}_dist.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: {version}\n")
    (info / "top_level.txt").write_text(name)
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory on ``sys.path`` with the synthetic package, and an empty home in it."""
    with pytest.MonkeyPatch.context() as patch:
        site = tmp_path_factory.mktemp("site")
        write(site, "synthetic", PACKAGE)
        patch.syspath_prepend(site)
        patch.setenv("PYTERRIER_HOME", str(site / "home"))
        yield site


@pytest.fixture(scope="module")
def dataset(site):
    return DocstringsDataset(["synthetic"])


def corpus(dataset):
    return {document["docno"]: document["text"] for document in dataset.get_corpus_iter(verbose=False)}


def test_nothing_is_collected_before_it_is_needed(dataset, site):
    loader = pt.text.get_text(dataset, ["text"])
    assert pt.inspect.transformer_outputs(loader, ["qid", "docno"]) == ["qid", "docno", "text"]
    assert not (site / "home").exists()


def test_collecting_at_once_leaves_no_trace(dataset, site, capfd):
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        warnings.simplefilter("error")
        found = list(pool.map(corpus, [dataset, DocstringsDataset(["synthetic"])]))
    assert [list(texts) for texts in found] == [list(TOPIC_OF)] * 2
    assert not [module for module in sys.modules if module.partition(".")[0] == "synthetic"]
    assert not (site / "synthetic/tests/imported").exists()
    assert len(list(site.glob("home/docstrings/*"))) == 1
    assert capfd.readouterr() == ("", "")


def test_documents_and_queries(dataset):
    assert corpus(dataset) == {
        **{docno: rest(topic) for docno, topic in TOPIC_OF.items()},
        "synthetic.Child": f"{rest('the child')} : repeated.",
    }
    topics, qrels = dataset.get_topicsqrels()
    queries = {docno: f"Summary of {topic}." for docno, topic in TOPIC_OF.items() if topic != "brief"}
    queries["synthetic.copies.second"] = "Summary of two."
    assert dict(qrels.merge(topics)[["docno", "query"]].values) == queries


def test_splits_are_stable(dataset):
    """Whoever changes the checksum moves test topics of published results to the training set."""
    assert dict(dataset.get_qrels()[["docno", "qid"]].values)["synthetic.alias"] == "5f618533e137"
    assert dataset.get_qrels("test")["docno"].tolist() == ["synthetic", "synthetic.noisy", "synthetic.Child.attribute"]
    assert len(dataset.get_qrels("train")) == 8
    with pytest.raises(ValueError, match=r"'valid'.*'train', 'dev', 'test'.*None"):
        dataset.get_topics("valid")


def test_names_are_a_set_of_packages_or_distributions(site):
    provider = DocstringsDatasetProvider()
    for name in ("synthetic,numpy", " numpy, synthetic,", "Synthetic.Dist,numpy,numpy"):
        assert provider.get_dataset(name).packages == ["numpy", "synthetic"]
    with pytest.raises(ValueError, match="got none"):
        provider.get_dataset(" ,")
    with pytest.raises(ModuleNotFoundError, match="'missing'.*pip install missing"):
        provider.get_dataset("numpy,missing")


def test_the_cache_is_used_until_a_version_changes_and_holds_whole_collections(site):
    def release(topic, version, fault=""):
        write(site, "versioned", {"__init__.py": f"{doc(topic)}\n{fault}"}, version)
        return corpus(DocstringsDataset(["versioned"]))

    assert release("old", "1.0") == release("new", "1.0") == {"versioned": rest("old")}
    assert release("new", "1.1") == corpus(DocstringsDataset(["versioned-dist"])) == {"versioned": rest("new")}
    with pytest.raises(RuntimeError, match="exit status 9"):
        release("another", "1.2", "import json, os; json.dumps = lambda row: os._exit(9)")
    assert len(list(site.glob("home/docstrings/versioned*.jsonl.gz"))) == 2


def test_a_real_package(site):
    """NumPy has ufuncs, C functions, and classes whose docstrings begin with signatures."""
    dataset = DocstringsDataset(["numpy"])
    topics, qrels = dataset.get_topicsqrels()
    parts = [dataset.get_topicsqrels(variant) for variant in SPLITS]
    assert [len(part[0]) / len(topics) for part in parts] == pytest.approx([0.7, 0.1, 0.2], abs=0.08)
    for whole, split in zip((topics, qrels), zip(*parts, strict=True), strict=True):
        assert sorted(whole.itertuples(index=False)) == sorted(pd.concat(split).itertuples(index=False))
    queries = dict(qrels.merge(topics)[["docno", "query"]].values)
    assert queries["numpy.add"] == "Add arguments element-wise."
    assert queries["numpy.dtype"].startswith("Create a data type object.")
    texts = corpus(dataset)
    assert len(set(texts.values())) == len(texts) > 500
    assert not [docno for docno, query in queries.items() if query in " ".join(texts[docno].split())]
    assert not [name for name in texts if ".tests." in name or "._" in name]


def test_texts_are_loaded(dataset):
    docnos = ["synthetic.alias", "synthetic", "synthetic.alias"]
    results = pd.DataFrame({"docno": docnos, "text": "stale", "rank": [0, 1, 2]}, index=[7, 7, 8])
    loaded = pt.text.get_text(dataset)(results)
    assert loaded.columns.tolist() == ["docno", "text", "rank", "title"]
    assert loaded["text"].tolist() == [rest(TOPIC_OF[docno]) for docno in docnos]


@pytest.mark.parametrize(
    ("docstring", "summary", "text"),
    [
        ("Two\n    lines.\n \n\n    Rest\n      indented.\n\n    More.", "Two lines.", "Rest\n  indented.\n\nMore."),
        ("f(x, y=(1, 2)) -> int\n\nf(x)\n\nOverloaded.\n\nRest.", "Overloaded.", "Rest."),
        ("mod.f(x)\n--\n\nText signature.\n\nRest.", "Text signature.", "Rest."),
        ("f(x) is a function.\n\nRest.", "f(x) is a function.", "Rest."),
        ("=====\nTitle\n=====\nBody.\n\nRest.", "Title", "Body.\n\nRest."),
        ("Add two numbers.\n\nTo add two\nnumbers (a, b), call it.", "Add two numbers.", "To  (a, b), call it."),
    ],
)
def test_split_docstring(docstring, summary, text):
    assert split_docstring(docstring) == (summary, text)
