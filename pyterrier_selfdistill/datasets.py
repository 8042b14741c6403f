"""The docstrings collection: docstrings of installed packages as documents and queries."""

from __future__ import annotations

import hashlib
import importlib
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

logger = logging.getLogger(__name__)
MIN_SUMMARY_WORDS = 3  # shorter summaries ("Return self") do not say what is looked for, and make no query
MIN_TEXT_WORDS = 20  # shorter rests ("See also: ...") tell nothing about the object, and make no document

# tests and scripts, vendored packages, and what Python 3.12 has withdrawn
_NOT_API = {"benchmarks", "conftest", "setup", "test", "tests", "externals", "distutils"}

# "name(...)", which may nest two deep, perhaps "-> result", and the "--" that CPython puts behind it
_PARENTHESES = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_SIGNATURE = re.compile(rf"\A[\w.]+{_PARENTHESES}(?:[ ]*->.*)?[ ]*(?:\n--[ ]*)?(?:\n\s*|\Z)")
_RULER = re.compile(r"^[ ]*([=~*#^-])\1{2,}[ ]*$", re.MULTILINE)


class Entry(NamedTuple):
    """A documented object: the shortest of its qualified names, its summary and the rest of its docstring."""

    docno: str
    summary: str
    text: str


def split_docstring(docstring: str) -> tuple[str, str]:
    """Split a docstring into its summary and the rest."""
    doc = _RULER.sub("", inspect.cleandoc(docstring)).strip()
    while signature := _SIGNATURE.match(doc):
        doc = doc[signature.end() :]
    first, *others = re.split(r"\n\s*\n", doc, maxsplit=1)
    summary = " ".join(first.split())
    text = "".join(others)
    if makes_query(summary):
        repetition = r"\s+".join(map(re.escape, summary.rstrip(".").split()))
        text = re.sub(repetition, "", text, flags=re.IGNORECASE)
    return summary, text.strip()


def makes_query(summary: str) -> bool:
    """Tell whether a summary is long enough to say what is looked for."""
    return len(summary.split()) >= MIN_SUMMARY_WORDS


def is_api(module: str) -> bool:
    """Tell whether a module belongs to what its package offers, by the last part of its name."""
    return _is_public(module) and module not in _NOT_API


def preference(named: Sequence[Any]) -> tuple[int, str]:
    """Prefer short names, then those that come first in the alphabet."""
    return len(named[0]), named[0]


def collect(packages: Iterable[str]) -> list[Entry]:
    """Collect the docstrings of packages; one that several objects share gets the best of their names."""
    skipped: list[str] = []
    entries: dict[str, Entry] = {}
    objects = _objects(packages, skipped)
    for name, obj in sorted(objects.items(), key=preference):
        summary, text = split_docstring(_own_doc(obj))
        if len(text.split()) >= MIN_TEXT_WORDS:
            entries.setdefault(text, Entry(name, summary, text))
    logger.debug("%d documents; skipped %d modules: %s", len(entries), len(skipped), ", ".join(skipped))
    return sorted(entries.values())


def _objects(packages: Iterable[str], skipped: list[str]) -> dict[str, Any]:
    """Find the public modules of packages, their attributes and the members of classes, by name."""
    modules: list[ModuleType] = []
    for package in packages:
        modules += _modules(package, skipped)
    named: dict[str, Any] = {module.__name__: module for module in modules}
    for module in modules:
        named.update(_attributes(module))
    # the best of an object's names comes last and stays
    names = {id(obj): name for name, obj in sorted(named.items(), key=preference, reverse=True)}
    objects = {name: named[name] for name in names.values()}
    for name, obj in list(objects.items()):
        if isinstance(obj, type):
            objects.update(_members(name, obj))
    return objects


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _package_of(obj: object) -> str | None:
    """Return the package that an object says it is from."""
    module = getattr(obj, "__module__", None)
    if not isinstance(module, str):
        return None
    return module.partition(".")[0]


def _modules(name: str, skipped: list[str]) -> list[ModuleType]:
    """Import a module and all public modules below it; collect the names of those that fail to import."""
    module = importlib.import_module(name)
    modules = [module]
    for info in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        if not is_api(info.name.rpartition(".")[2]):
            continue
        try:
            modules += _modules(info.name, skipped)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also modules that exit, or skip themselves as pytest does
            skipped.append(f"{info.name} ({error!r})")
    return modules


def _attributes(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Iterate over the public attributes of a module that are its package's own."""
    package = module.__name__.partition(".")[0]
    exported = getattr(module, "__all__", None)
    candidates = dir(module) if exported is None else exported
    for name in filter(_is_public, candidates):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", DeprecationWarning)  # do not follow shims to where objects have moved
                value = getattr(module, name)
                origin = _package_of(value)
        except Exception:
            continue
        # ufuncs do not tell where they come from: believe the module that claims them
        is_claimed = origin is None and exported is not None
        if not isinstance(value, ModuleType) and (origin == package or is_claimed):
            yield f"{module.__name__}.{name}", value


def _members(name: str, cls: type) -> Iterator[tuple[str, Any]]:
    """Iterate over the public members of a class, inherited ones of the same package too."""
    package = _package_of(cls)
    members: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if _package_of(base) == package:
            members.update(vars(base))
    for attribute, value in members.items():
        patched_in = inspect.isfunction(value) and _package_of(value) != package  # as tqdm does to pandas
        if _is_public(attribute) and not patched_in:
            yield f"{name}.{attribute}", value


def _own_doc(obj: Any) -> str:
    """Return the docstring of an object, empty if it has none of its own."""
    try:
        doc = obj.__doc__
    except Exception:
        return ""
    # constants and other instances show the docstring of their class, sometimes with its signature in front
    of_class = type(obj).__doc__
    inherited = isinstance(of_class, str) and of_class != "" and str(doc).endswith(of_class)
    return doc if isinstance(doc, str) and not inherited else ""


def _main(path: str, *packages: str) -> None:
    """Collect into a file, in the process that :func:`_run_collector` starts."""
    logger.setLevel(logging.DEBUG)
    logger.addHandler(logging.StreamHandler())
    entries = collect(packages)
    with pt.io.finalized_autoopen(path, "b") as file:
        for entry in entries:
            file.write(json.dumps(entry._asdict()).encode() + b"\n")


CACHE_FORMAT = 2  # the format of the cache, to raise whenever other documents or summaries are collected

# the split of a topic by its checksum modulo 100
SPLITS = {"train": range(0, 70), "dev": range(70, 80), "test": range(80, 100)}


class DocstringsDataset(pt.datasets.Dataset):
    """Known-item search in the docstrings of installed packages.

    The documents are the docstrings of all public modules, classes, functions, methods and properties, without their
    summaries; the summaries are the topics. A docstring that several objects share is one document, which carries the
    shortest of their names. Summaries that several docstrings share are one topic, to which all of these are relevant.

    Topics and qrels have the variants ``"train"``, ``"dev"`` and ``"test"`` (70, 10 and 20 percent). The split is drawn
    by a checksum of the topic's name, so that it is the same everywhere, and no document is relevant in two splits.

    Nothing is imported into this process. The docstrings are collected when they are first needed, in a subprocess, and
    cached in ``$PYTERRIER_HOME/docstrings`` for the versions of the packages that are installed.

    Example:
        >>> dataset = DocstringsDataset(["tqdm"])
        >>> next(iter(dataset.get_corpus_iter(verbose=False))).keys()
        dict_keys(['docno', 'title', 'text'])
        >>> dataset.get_topics("train").columns.tolist(), dataset.get_qrels("train").columns.tolist()
        (['qid', 'query'], ['qid', 'docno', 'label'])
    """

    def __init__(self, packages: Iterable[str]) -> None:
        """Name the packages; the docstrings are collected later."""
        names = {name.strip() for name in packages} - {""}
        if not names:
            raise ValueError("no package is named to read docstrings from: write, e.g., 'docstrings:numpy,scipy'")
        found: set[str] = set()
        for name in names:
            found.update(_import_names(name))
        self.packages = sorted(found)

    @cached_property
    def _entries(self) -> list[Entry]:
        """The documents, from the cache if they are there."""
        directory = os.path.join(pt.io.pyterrier_home(), "docstrings")
        key = _checksum(repr([CACHE_FORMAT, self.packages, *_versions(self.packages)]))
        path = os.path.join(directory, f"{'+'.join(self.packages)[:100]}-{key}.jsonl.gz")
        if not os.path.exists(path):
            os.makedirs(directory, exist_ok=True)
            _run_collector(self.packages, path)
        with pt.io.autoopen(path, "rt", encoding="utf-8") as file:
            return [Entry(**json.loads(line)) for line in file]

    @cached_property
    def _judgements(self) -> pd.DataFrame:
        """The topics with their relevant documents; equal summaries are one topic."""
        topics: dict[str, Entry] = {}
        rows = []
        for entry in sorted(self._entries, key=preference):
            if makes_query(entry.summary):
                topic = topics.setdefault(entry.summary.rstrip(".").casefold(), entry)
                rows.append((_checksum(topic.docno), topic.summary, entry.docno, 1))
        return pd.DataFrame(rows, columns=["qid", "query", "docno", "label"])

    def _split(self, variant: str | None) -> pd.DataFrame:
        if variant is None:
            return self._judgements
        if variant not in SPLITS:
            raise ValueError(f"{self!r} has no variant {variant!r}: choose from {list(SPLITS)}, or None for all topics")
        is_in_split = [int(qid, 16) % 100 in SPLITS[variant] for qid in self._judgements["qid"]]
        return self._judgements[is_in_split]

    def get_corpus_iter(self, *, verbose: bool = True) -> pt.model.IterDict:
        """Return documents in the order of docno: ``docno`` and ``title`` (the name of the object) and ``text``."""
        entries = pt.tqdm(self._entries, desc=f"{self!r} documents", disable=not verbose)
        rows = ({"docno": entry.docno, "title": entry.docno, "text": entry.text} for entry in entries)
        return pt.utils.GeneratorLen(rows, len(self._entries))

    def get_topics(self, variant: str | None = None) -> pd.DataFrame:
        """Return the summaries (``qid``, ``query``) of ``"train"``, ``"dev"`` or ``"test"``, or of all three."""
        return self._split(variant)[["qid", "query"]].drop_duplicates("qid", ignore_index=True)

    def get_qrels(self, variant: str | None = None) -> pd.DataFrame:
        """Return which docstring a summary belongs to (``qid``, ``docno``, ``label``), as :meth:`get_topics`."""
        return self._split(variant)[["qid", "docno", "label"]].reset_index(drop=True)

    def get_corpus_lang(self) -> str:
        """Return the language in which docstrings are written by convention."""
        return "en"

    def get_topics_lang(self) -> str:
        """Return the language in which docstrings are written by convention."""
        return "en"

    def text_loader(self, fields: list[str] | str | Literal["*"] = "*", *, verbose: bool = False) -> pt.Transformer:
        """Make a transformer that adds ``title`` and ``text``, or the given fields, to documents."""
        available = ["title", "text"]
        if fields == "*":
            columns = available
        elif isinstance(fields, str):
            columns = [fields]
        else:
            columns = list(fields)
        unknown = set(columns) - set(available)
        if unknown:
            raise ValueError(f"{self!r} has no field {', '.join(sorted(unknown))}: choose from {available}")

        def load(documents: pd.DataFrame) -> pd.DataFrame:
            corpus = pd.DataFrame(self.get_corpus_iter(verbose=False), columns=["docno", *available]).set_index("docno")
            loaded = corpus.loc[documents["docno"], columns].set_index(documents.index)
            return documents.assign(**loaded)

        def outputs(inputs: list[str]) -> list[str]:
            return inputs + [column for column in columns if column not in inputs]

        return pt.apply.generic(load, required_columns=["docno"], transform_outputs=outputs, label="TextLoader")

    def _describe_component(self, component: str) -> bool | list[str] | None:
        if component in ("topics", "qrels"):
            return list(SPLITS)
        if component == "corpus":
            return True
        return None

    def __repr__(self) -> str:
        return f"DocstringsDataset({self.packages})"


class DocstringsDatasetProvider(pt.datasets.DatasetProvider):
    """Provides ``docstrings:PACKAGE,PACKAGE,...`` to ``pt.get_dataset``.

    Example:
        >>> DocstringsDatasetProvider().get_dataset("tqdm, more-itertools")
        DocstringsDataset(['more_itertools', 'tqdm'])
    """

    def get_dataset(self, name: str) -> DocstringsDataset:
        """Return the dataset of the packages in a comma-separated list.

        Args:
            name: The packages, as for :class:`DocstringsDataset`.

        Returns:
            The dataset, which has not collected anything yet.

        Raises:
            ValueError: If no package is named.
            ModuleNotFoundError: If a package is not installed.
        """
        return DocstringsDataset(name.split(","))

    def list_dataset_names(self) -> list[str]:
        """Return one example: the packages on which PyTerrier itself depends."""
        return ["numpy,pandas"]


def _import_names(name: str) -> list[str]:
    """Find the packages that a name stands for: that of a package, or of the distribution that provides it."""
    if name.isidentifier() and importlib.util.find_spec(name):
        return [name]
    names = []
    for package, distributions in importlib.metadata.packages_distributions().items():
        is_provided = _normalized(name) in map(_normalized, distributions)
        if is_provided and package.isidentifier() and is_api(package):
            names.append(package)
    if not names:
        raise ModuleNotFoundError(f"no package {name!r} is installed to read docstrings from: pip install {name}")
    return names


def _normalized(distribution: str) -> str:
    """Return the name by which distributions are compared, as in PEP 503."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _versions(packages: Iterable[str]) -> Iterator[str]:
    """Iterate over the installed versions of packages."""
    provided = importlib.metadata.packages_distributions()
    for package in packages:
        try:
            versions = {importlib.metadata.version(name) for name in provided.get(package, [package])}
        except importlib.metadata.PackageNotFoundError:  # as for the standard library
            versions = {platform.python_version()}
        yield "+".join(sorted(versions))


def _checksum(text: str) -> str:
    """Return the identifier of a topic, or of a cache."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _run_collector(packages: Sequence[str], path: str) -> None:
    """Collect into the file in a process that finds the same packages as this one, but shares nothing else with it."""
    # run by path, since importing by name would import all of pyterrier_selfdistill, which takes longer than the work
    script = f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')"
    environment = {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "PYTHONSAFEPATH": "1",
        "PYTHONHASHSEED": "0",  # some docstrings are generated, from sets
        "MPLBACKEND": "Agg",
    }
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, path, *packages],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,  # the error below says more
    )
    logger.debug("collector of %s: %s", ", ".join(packages), process.stderr.strip())
    if not os.path.exists(path):
        raise RuntimeError(
            f"collecting the docstrings of {', '.join(packages)} ended with exit status {process.returncode}:\n"
            + process.stderr[-2000:]
        )


if __name__ == "__main__":
    _main(*sys.argv[1:])
