"""The collection of docstrings: its documents and queries, and that collecting leaves no trace."""

import importlib
import logging
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.datasets import _core

from pyterrier_selfdistill.datasets import DocstringsDataset, DocstringsDatasetProvider, split_docstring

SPLITS = ("train", "dev", "test")


def rest(topic: str) -> str:
    return f"It is about {topic}. " + " ".join(f"{topic}-{i}" for i in range(20))


PACKAGE = {
    "__init__.py": f'''
        """Title of the package.

        {rest("package")}
        """
        __all__ = ["Child", "alias", "deprecated", "elsewhere", "implemented_in_c", "json", "shadow"]
        import json
        from json import loads as elsewhere
        from ._private import Child, long_name as alias, implemented_in_c
        from .shadow import shadow

        def __getattr__(name):
            if name != "deprecated":
                raise AttributeError(name)
            import warnings
            from . import _private
            warnings.warn("deprecated", DeprecationWarning)
            return _private.withdrawn
    ''',
    "_private.py": f'''
        import json

        class Parent:
            def inherited(self):
                """Summary of the inherited method.

                {rest("inherited")}
                """
            def overridden(self):
                """Summary of the parent's method.

                {rest("parent")}
                """

        class Child(Parent):
            """Summary of the
            child class.

            {rest("child")}

            summary of the child class: repeated.
            """
            constant = 3
            patched_in = json.loads

            def overridden(self):
                """Summary of the overriding method.

                {rest("overriding")}
                """
            @property
            def attribute(self):
                """Summary of the property.

                {rest("property")}
                """
            @classmethod
            def test(cls):
                """Brief summary.

                {rest("brief")}
                """
            def terse(self):
                """Summary without a story.

                See elsewhere.
                """
            def _hidden(self):
                """Summary of a private method.

                {rest("hidden")}
                """

        def long_name():
            """Summary of the function.

            {rest("function")}
            """

        def implemented_in_c(x, /):
            """implemented_in_c(x, /, *, dtype=None,
                             order=('K', (1,)))

            Summary of the C function.

            {rest("c")}
            """

        def withdrawn():
            """Summary of the withdrawn function.

            {rest("withdrawn")}
            """
    ''',
    "copies.py": f'''
        from ._private import Child
        CONSTANT = 3

        def first():
            """Summary that two functions share.

            {rest("first")}
            """
        def second():
            """Summary that  two functions share

            {rest("second")}
            """
        def copy_of_first():
            """Summary that two functions share.

            {rest("first")}
            """
    ''',
    "shadow.py": f'''
        """Summary of the shadowed module.

        {rest("module")}
        """
        def shadow():
            """Summary of the shadowing function.

            {rest("shadow")}
            """
    ''',
    "broken.py": "raise ImportError('no such dependency')",
    "exits.py": "raise SystemExit(0)",
    "noisy.py": f'''
        """Summary of the noisy module.

        {rest("noisy")}
        """
        import logging, sys, warnings
        warnings.simplefilter("always")
        warnings.warn("noise")
        logging.getLogger().warning("noise")
        print("noise")
        print("noise", file=sys.stderr)
    ''',
    "tests/__init__.py": "import pathlib; pathlib.Path(__file__).with_name('imported').touch()",
}
DOCNOS = [
    "synthetic",
    "synthetic.Child",
    "synthetic.Child.attribute",
    "synthetic.Child.inherited",
    "synthetic.Child.overridden",
    "synthetic.Child.test",
    "synthetic.alias",
    "synthetic.copies.first",
    "synthetic.copies.second",
    "synthetic.implemented_in_c",
    "synthetic.noisy",
    "synthetic.shadow",
]


def write(site: Path, name: str, files: dict[str, str], version: str = "1.0") -> None:
    for path, source in files.items():
        (site / name / path).parent.mkdir(parents=True, exist_ok=True)
        (site / name / path).write_text("\n".join(line.removeprefix(" " * 8) for line in source.split("\n")))
    info = site / f"{name}_dist.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-dist\nVersion: {version}\n")
    (info / "top_level.txt").write_text(name)
    importlib.invalidate_caches()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory on ``sys.path`` with the synthetic package, and an empty home."""
    with pytest.MonkeyPatch.context() as patch:
        site = tmp_path_factory.mktemp("site")
        write(site, "synthetic", PACKAGE)
        patch.syspath_prepend(site)
        patch.setenv("PYTERRIER_HOME", str(tmp_path_factory.mktemp("home")))
        yield site


@pytest.fixture(scope="module")
def dataset(site):
    dataset = DocstringsDataset(["synthetic"])
    dataset.get_topics()  # so that it is cached
    return dataset


@pytest.fixture
def home(site, tmp_path, monkeypatch):
    """An empty home for one test."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path))
    return tmp_path


def corpus(dataset: DocstringsDataset) -> dict[str, str]:
    return {document["docno"]: document["text"] for document in dataset.get_corpus_iter(verbose=False)}


def test_documents_and_queries(dataset, site, capsys):
    texts = corpus(dataset)
    assert list(texts) == DOCNOS
    assert texts["synthetic.Child"] == f"{rest('child')}\n\n: repeated."
    assert texts["synthetic.Child.overridden"] == rest("overriding")
    assert texts["synthetic.implemented_in_c"] == rest("c")
    assert texts["synthetic.shadow"] == rest("shadow")
    assert not (site / "synthetic/tests/imported").exists()
    documents = dataset.get_corpus_iter()
    assert len(documents) == len(DOCNOS)
    assert all(document["title"] == document["docno"] for document in documents)
    assert f"{len(DOCNOS)}/{len(DOCNOS)}" in capsys.readouterr().err
    topics, qrels = dataset.get_topicsqrels()
    assert topics.columns.tolist() == ["qid", "query"]
    assert qrels.columns.tolist() == ["qid", "docno", "label"]
    assert set(qrels["label"]) == {1}
    queries = dict(qrels.merge(topics)[["docno", "query"]].values)
    assert queries == {
        "synthetic": "Title of the package.",
        "synthetic.Child": "Summary of the child class.",
        "synthetic.Child.attribute": "Summary of the property.",
        "synthetic.Child.inherited": "Summary of the inherited method.",
        "synthetic.Child.overridden": "Summary of the overriding method.",
        "synthetic.alias": "Summary of the function.",
        "synthetic.copies.first": "Summary that two functions share.",
        "synthetic.copies.second": "Summary that two functions share.",
        "synthetic.implemented_in_c": "Summary of the C function.",
        "synthetic.noisy": "Summary of the noisy module.",
        "synthetic.shadow": "Summary of the shadowing function.",
    }
    assert topics["query"].is_unique
    assert topics["qid"].is_unique


def test_splits_partition_the_topics(site, home):
    functions = "\n".join(
        f'def f{i}():\n    """Summary number {i // 2}.\n\n    {rest(f"f{i}")}\n    """' for i in range(400)
    )
    write(site, "many", {"__init__.py": functions})
    dataset = DocstringsDataset(["many"])
    topics = {variant: dataset.get_topics(variant) for variant in SPLITS}
    qrels = {variant: dataset.get_qrels(variant) for variant in SPLITS}
    assert [len(topics[variant]) / 200 for variant in SPLITS] == pytest.approx([0.7, 0.1, 0.2], abs=0.08)
    assert pd.concat(qrels)["docno"].is_unique
    for whole, parts in [(dataset.get_topics(), topics), (dataset.get_qrels(), qrels)]:
        assert sorted(whole.itertuples(index=False)) == sorted(pd.concat(parts).itertuples(index=False))
    assert all(set(topics[variant]["qid"]) == set(qrels[variant]["qid"]) for variant in SPLITS)


def test_splits_are_stable(dataset):
    """Whoever changes the checksum moves test topics of published results to the training set."""
    assert dict(dataset.get_qrels()[["docno", "qid"]].values)["synthetic.alias"] == "5f618533e137"
    assert dataset.get_qrels("test")["docno"].tolist() == ["synthetic", "synthetic.noisy", "synthetic.Child.attribute"]
    assert len(dataset.get_qrels("train")) == 8
    with pytest.raises(ValueError, match=r"'valid'.*'train', 'dev', 'test'.*None"):
        dataset.get_topics("valid")


@pytest.mark.parametrize("name", ["synthetic,numpy", " numpy, synthetic,", "Synthetic.Dist,numpy,numpy"])
def test_names_are_a_set_of_packages_or_distributions(site, name, monkeypatch):
    monkeypatch.setitem(_core._loaded_providers, "docstrings", DocstringsDatasetProvider())
    assert pt.get_dataset(f"docstrings:{name}").packages == ["numpy", "synthetic"]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [(" ,", ValueError, "got none"), ("numpy,missing", ModuleNotFoundError, "'missing'.*pip install missing")],
)
def test_wrong_names(name, error, message):
    with pytest.raises(error, match=message):
        DocstringsDatasetProvider().get_dataset(name)


def test_nothing_is_collected_before_it_is_needed(home):
    dataset = DocstringsDataset(["synthetic"])
    assert dataset._describe_component("corpus") is True
    assert dataset._describe_component("topics") == dataset._describe_component("qrels") == list(SPLITS)
    assert dataset._describe_component("index") is None
    loader = pt.text.get_text(dataset, ["text"])
    assert pt.inspect.transformer_outputs(loader, ["qid", "docno"]) == ["qid", "docno", "text"]
    assert list(home.iterdir()) == []


def test_collecting_leaves_no_trace(home, capfd, caplog):
    filters, handlers = list(warnings.filters), list(logging.getLogger().handlers)
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG, "pyterrier_selfdistill.datasets"):
        warnings.simplefilter("error")
        assert len(corpus(DocstringsDataset(["synthetic"]))) == len(DOCNOS)
    assert not [module for module in sys.modules if module.partition(".")[0] == "synthetic"]
    assert (list(warnings.filters), list(logging.getLogger().handlers)) == (filters, handlers)
    assert capfd.readouterr() == ("", "")
    assert "skipped 2 modules: synthetic.broken (ImportError('no such dependency')), synthetic.exits" in caplog.text


def test_the_cache_is_used_until_a_version_changes(site, home):
    def document(topic):
        return {"__init__.py": f'"""Title.\n\n{rest(topic)}\n"""'}

    write(site, "versioned", document("old"))
    assert corpus(DocstringsDataset(["versioned"])) == corpus(DocstringsDataset(["versioned-dist"]))
    assert len(list(home.glob("docstrings/*"))) == 1
    write(site, "versioned", document("new"))
    assert corpus(DocstringsDataset(["versioned"])) == {"versioned": rest("old")}
    write(site, "versioned", document("new"), version="1.1")
    assert corpus(DocstringsDataset(["versioned"])) == {"versioned": rest("new")}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise ImportError('libfaulty is missing')", r"(?s)exit status 1.*libfaulty is missing"),
        ("import json, os; json.dumps = lambda row: os._exit(9)", "exit status 9"),
    ],
)
def test_a_collector_that_dies_leaves_no_cache(site, home, fault, message):
    document = f'"""Title.\n\n{rest("first")}\n"""\n'
    write(site, "victim", {"__init__.py": document + fault})
    with pytest.raises(RuntimeError, match=message):
        DocstringsDataset(["victim"]).get_topics()
    assert list(home.glob("docstrings/*.jsonl.gz")) == []


def test_two_collect_at_once(site, home):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(corpus, [DocstringsDataset(["synthetic"]) for _ in range(2)]))
    assert [list(texts) for texts in found] == [DOCNOS] * 2
    assert len(list(home.glob("docstrings/*"))) == 1


def test_a_real_package(home):
    """NumPy has ufuncs, C functions, and classes whose docstrings begin with signatures."""
    dataset = DocstringsDataset(["numpy"])
    queries = dict(dataset.get_qrels().merge(dataset.get_topics())[["docno", "query"]].values)
    assert queries["numpy.add"] == "Add arguments element-wise."
    assert queries["numpy.array"] == "Create an array."
    assert queries["numpy.dtype"].startswith("Create a data type object.")
    texts = corpus(dataset)
    assert len(set(texts.values())) == len(texts) > 500
    assert not [docno for docno, query in queries.items() if query in " ".join(texts[docno].split())]
    assert not [name for name in texts if ".tests." in name or "._" in name]


def test_texts_are_loaded(dataset):
    results = pd.DataFrame(
        {"docno": ["synthetic.alias", "synthetic", "synthetic.alias"], "text": "stale", "rank": [0, 1, 2]},
        index=[7, 7, 8],
    )
    loaded = pt.text.get_text(dataset)(results)
    assert loaded.columns.tolist() == ["docno", "text", "rank", "title"]
    assert loaded["text"].tolist() == [rest("function"), rest("package"), rest("function")]
    assert loaded["title"].tolist() == loaded["docno"].tolist() == results["docno"].tolist()
    assert "title" not in pt.text.get_text(dataset, "text")(results)
    with pytest.raises(KeyError, match=r"synthetic\.missing"):
        pt.text.get_text(dataset)(pd.DataFrame({"docno": ["synthetic.missing"]}))
    with pytest.raises(ValueError, match=r"body.*\['title', 'text'\]"):
        pt.text.get_text(dataset, ["text", "body"])


@pytest.mark.parametrize(
    ("docstring", "summary", "text"),
    [
        ("One line.", "One line.", ""),
        ("", "", ""),
        ("Two\n    lines.\n \n\n    Rest\n      indented.\n\n    More.", "Two lines.", "Rest\n  indented.\n\nMore."),
        ("f(x)\nSummary on the next line.\n\nRest.", "Summary on the next line.", "Rest."),
        ("f(x, y=(1, 2)) -> int\n\nf(x)\n\nOverloaded.\n\nRest.", "Overloaded.", "Rest."),
        ("mod.f(x)\n--\n\nText signature.\n\nRest.", "Text signature.", "Rest."),
        ("f(x) is a function.\n\nRest.", "f(x) is a function.", "Rest."),
        ("=====\nTitle\n=====\nBody.\n\nRest.", "Title", "Body.\n\nRest."),
        ("Parameters\n----------\nx : int", "Parameters", "x : int"),
        ("Add  two numbers.\n\nadd two\nnumbers\n\nRest.", "Add two numbers.", "Rest."),
        ("Add two numbers.\n\nTo add two numbers (a, b), call it.", "Add two numbers.", "To  (a, b), call it."),
        ("Too short.\n\nToo short to ask for.", "Too short.", "Too short to ask for."),
    ],
)
def test_split_docstring(docstring, summary, text):
    assert split_docstring(docstring) == (summary, text)
