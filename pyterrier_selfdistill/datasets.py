"""A test collection from the docstrings of installed packages."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import logging
import os
import pkgutil
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from types import ModuleType
from typing import Any, Literal, NamedTuple

import pandas as pd
import pyterrier as pt
from packaging.utils import canonicalize_name

logger = logging.getLogger(__name__)
CACHE_FORMAT = 2  # increment this whenever the collected documents or summaries change
SPLITS = {"train": range(0, 70), "dev": range(70, 80), "test": range(80, 100)}  # by the checksum of topics modulo 100
MIN_SUMMARY_WORDS = 3  # shorter summaries ("Return self") do not become queries
MIN_TEXT_WORDS = 20  # shorter texts ("See also: ...") do not become documents
# tests, scripts, vendored packages, and a module that Python 3.12 removed
NOT_API = {"benchmarks", "conftest", "setup", "test", "tests", "externals", "distutils"}
# "name(...)" with up to two nested levels, an optional "-> result", and the "--" that CPython appends
PARENTHESES = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
SIGNATURE = re.compile(rf"\A[\w.]+{PARENTHESES}(?:[ ]*->.*)?[ ]*(?:\n--[ ]*)?(?:\n\s*|\Z)")
RULER = re.compile(r"^[ ]*([=~*#^-])\1{2,}[ ]*$", re.MULTILINE)


class Entry(NamedTuple):  # a documented object
    docno: str  # the shortest of its qualified names
    summary: str
    text: str  # the rest of its docstring


class DocstringsDataset(pt.datasets.Dataset):
    """Known-item search in the docstrings of installed packages.

    The summary line of each public object is a topic, and the rest of its docstring is the relevant document. If
    objects share a docstring, the document has the shortest of their names. Equal summaries become one topic. The
    variants ``"train"``, ``"dev"`` and ``"test"`` (70, 10 and 20 percent of the topics) are the same on every machine,
    and a document is relevant in at most one of them.

    A subprocess collects the docstrings when you first need them. They are cached in ``$PYTERRIER_HOME/docstrings`` for
    the installed versions of the packages.

    Args:
        packages: The names of packages or of their distributions, such as ``"scikit-learn"`` for ``"sklearn"``.
    """

    def __init__(self, packages: Iterable[str]) -> None:
        names = {name.strip() for name in packages} - {""}
        if not names:
            raise ValueError("expected packages to read docstrings from, got none: write 'docstrings:numpy,scipy'")
        self.packages = sorted({package for name in names for package in _import_names(name)})

    def get_corpus_iter(self, *, verbose: bool = True) -> pt.model.IterDict:
        """Return the documents ordered by docno, with docno and title (the name of the object) and text."""
        entries = pt.tqdm(self._entries, desc=f"{self!r} documents", disable=not verbose)
        rows = ({"docno": entry.docno, "title": entry.docno, "text": entry.text} for entry in entries)
        return pt.utils.GeneratorLen(rows, len(self._entries))

    def get_topics(self, variant: str | None = None) -> pd.DataFrame:
        """Return all summaries, or the summaries of a split, with qid and query."""
        return self._split(variant)[["qid", "query"]].drop_duplicates("qid", ignore_index=True)

    def get_qrels(self, variant: str | None = None) -> pd.DataFrame:
        """Return the relevant documents of all topics, or of a split, with qid, docno and label (always 1)."""
        return self._split(variant)[["qid", "docno", "label"]].reset_index(drop=True)

    def text_loader(self, fields: list[str] | str | Literal["*"] = "*", *, verbose: bool = False) -> pt.Transformer:
        """Create a transformer that adds title and text, or only the given ``fields``, to documents."""
        columns = ["title", "text"] if fields == "*" else [fields] if isinstance(fields, str) else list(fields)
        if unknown := sorted({*columns} - {"title", "text"}):
            raise ValueError(f"{self!r} has no field {', '.join(unknown)}: choose from ['title', 'text']")

        def load(documents: pd.DataFrame) -> pd.DataFrame:
            texts = {entry.docno: entry.text for entry in self._entries}
            found = {"title": documents["docno"], "text": [texts[docno] for docno in documents["docno"]]}
            return documents.assign(**{column: found[column] for column in columns})

        def outputs(inputs: list[str]) -> list[str]:
            return list(dict.fromkeys([*inputs, *columns]))

        return pt.apply.generic(load, required_columns=["docno"], transform_outputs=outputs, label="TextLoader")

    @cached_property
    def _entries(self) -> list[Entry]:
        """The documents, from the cache if possible."""
        provided = importlib.metadata.packages_distributions()
        # modules of the standard library have no distribution
        versions = [sorted({*map(importlib.metadata.version, provided.get(name, []))}) for name in self.packages]
        key = _checksum(repr([CACHE_FORMAT, platform.python_version(), self.packages, versions]))
        path = os.path.join(pt.io.pyterrier_home(), "docstrings", f"{'+'.join(self.packages)[:100]}-{key}.jsonl.gz")
        if not os.path.exists(path):
            _run_collector(self.packages, path)
        with pt.io.autoopen(path, "rt", encoding="utf-8") as file:
            return [Entry(**json.loads(line)) for line in file]

    @cached_property
    def _judgements(self) -> pd.DataFrame:
        """The topics with their relevant documents. Equal summaries become one topic."""
        topics: dict[str, Entry] = {}
        rows = []
        for entry in sorted(self._entries, key=_preference):
            if len(entry.summary.split()) >= MIN_SUMMARY_WORDS:
                topic = topics.setdefault(entry.summary.rstrip(".").casefold(), entry)
                rows.append((_checksum(topic.docno), topic.summary, entry.docno, 1))
        return pd.DataFrame(rows, columns=["qid", "query", "docno", "label"])

    def _split(self, variant: str | None) -> pd.DataFrame:
        if variant is None:
            return self._judgements
        if variant not in SPLITS:
            raise ValueError(f"{self!r} has no variant {variant!r}: choose from {list(SPLITS)}, or None for all topics")
        return self._judgements[[int(qid, 16) % 100 in SPLITS[variant] for qid in self._judgements["qid"]]]

    def _describe_component(self, component: str) -> bool | list[str] | None:
        return True if component == "corpus" else list(SPLITS) if component in ("topics", "qrels") else None

    def __repr__(self) -> str:
        return f"DocstringsDataset({self.packages})"


class DocstringsDatasetProvider(pt.datasets.DatasetProvider):
    """Provides ``docstrings:PACKAGE,PACKAGE,...`` to ``pt.get_dataset``."""

    def get_dataset(self, name: str) -> DocstringsDataset:
        """Return the dataset of the packages in a comma-separated list."""
        return DocstringsDataset(name.split(","))

    def list_dataset_names(self) -> list[str]:
        """Return one example: packages that PyTerrier depends on."""
        return ["numpy,pandas"]


def _import_names(name: str) -> list[str]:
    """Return the package with the given name, or the packages of the distribution with that name."""
    if name.isidentifier() and importlib.util.find_spec(name):
        return [name]
    names = [
        package
        for package, distributions in importlib.metadata.packages_distributions().items()
        if canonicalize_name(name) in map(canonicalize_name, distributions)
        if package.isidentifier() and _is_api(package)
    ]
    if not names:
        raise ModuleNotFoundError(f"no package {name!r} is installed to read docstrings from: pip install {name}")
    return names


def _checksum(text: str) -> str:
    """Return a short checksum that identifies a topic or a cache."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _run_collector(packages: Sequence[str], path: str) -> None:
    """Collect docstrings into a file, in a subprocess that shares only the search path of packages with this one."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # run by path, since importing pyterrier_selfdistill takes longer than the collection
    script = f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
    # some docstrings are generated from sets, whose order depends on hashes
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONHASHSEED": "0", "MPLBACKEND": "Agg"}
    environment["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    command = [sys.executable, "-W", "ignore", "-c", script, path, *packages]
    process = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    output = process.stderr.decode(errors="replace")
    logger.debug("collector of %s: %s", ", ".join(packages), output.strip())
    if not os.path.exists(path):
        raise RuntimeError(f"collecting {packages} ended with exit status {process.returncode}:\n{output[-2000:]}")


def _collect(packages: Iterable[str]) -> list[Entry]:
    """Collect the docstrings of packages. A docstring that several objects share gets the best of their names."""
    skipped: list[str] = []
    modules = [module for package in packages for module in _modules(package, skipped)]
    named: dict[str, Any] = {module.__name__: module for module in modules}
    for module in modules:
        named.update(_attributes(module))
    # the best name of an object comes last and wins
    names = {id(obj): name for name, obj in sorted(named.items(), key=_preference, reverse=True)}
    objects = {name: named[name] for name in names.values()}
    for name, obj in list(objects.items()):
        if isinstance(obj, type):
            objects.update(_members(name, obj))
    entries: dict[str, Entry] = {}
    for name, obj in sorted(objects.items(), key=_preference):
        summary, text = split_docstring(_own_doc(obj))
        if len(text.split()) >= MIN_TEXT_WORDS:
            entries.setdefault(text, Entry(name, summary, text))
    print(f"{len(entries)} documents; skipped {len(skipped)} modules: {skipped}", file=sys.stderr)
    return sorted(entries.values())


def _modules(name: str, skipped: list[str]) -> Iterator[ModuleType]:
    """Import a module and all public modules below it, and append the modules that fail to ``skipped``."""
    module = importlib.import_module(name)
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        if not _is_api(info.name.rpartition(".")[2]):
            continue
        try:
            yield from list(_modules(info.name, skipped))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # some modules exit, or skip themselves like pytest
            skipped.append(f"{info.name} ({error!r})")


def _attributes(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Iterate over the public attributes of a module that its package defines."""
    package = module.__name__.partition(".")[0]
    exported = getattr(module, "__all__", None)
    for name in dir(module) if exported is None else exported:
        if name.startswith("_"):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", DeprecationWarning)  # skip deprecated aliases of moved objects
                value = getattr(module, name)
                origin = _package_of(value)
        except Exception:
            continue
        # ufuncs have no origin: accept them from a module that exports them
        is_claimed = origin is None and exported is not None
        if not isinstance(value, ModuleType) and (origin == package or is_claimed):
            yield f"{module.__name__}.{name}", value


def _members(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """Iterate over the public members of a class, including inherited members from the same package."""
    package = _package_of(cls)
    bases = [base for base in reversed(cls.__mro__) if _package_of(base) == package]
    members = {attribute: value for base in bases for attribute, value in vars(base).items()}
    for attribute, value in members.items():
        patched_in = inspect.isfunction(value) and _package_of(value) != package  # for example by tqdm in pandas
        if not attribute.startswith("_") and not patched_in:
            yield f"{name}.{attribute}", value


def _own_doc(obj: Any) -> str:
    """Return the docstring of an object, or an empty string if it only has the docstring of its class."""
    try:
        doc = obj.__doc__
    except Exception:
        return ""
    # instances return the docstring of their class, sometimes with its signature in front
    of_class = type(obj).__doc__ or "\0"
    return doc if isinstance(doc, str) and not doc.endswith(str(of_class)) else ""


def split_docstring(docstring: str) -> tuple[str, str]:
    """Split a docstring into a one-line summary and the rest, without signatures, rulers and repetitions."""
    doc = RULER.sub("", inspect.cleandoc(docstring)).strip()
    while signature := SIGNATURE.match(doc):
        doc = doc[signature.end() :]
    first, *others = re.split(r"\n\s*\n", doc, maxsplit=1)
    summary = " ".join(first.split())
    text = "".join(others)
    if len(summary.split()) >= MIN_SUMMARY_WORDS:
        repetition = r"\s+".join(map(re.escape, summary.rstrip(".").split()))
        text = re.sub(repetition, "", text, flags=re.IGNORECASE)
    return summary, text.strip()


def _is_api(module: str) -> bool:
    return not module.startswith("_") and module not in NOT_API


def _package_of(obj: object) -> str | None:
    module = getattr(obj, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else None


def _preference(named: Sequence[Any]) -> tuple[int, str]:
    """Sort names by length, then alphabetically."""
    return len(named[0]), named[0]


if __name__ == "__main__":
    with pt.io.finalized_autoopen(sys.argv[1], "b") as output:
        output.writelines(json.dumps(entry._asdict()).encode() + b"\n" for entry in _collect(sys.argv[2:]))
