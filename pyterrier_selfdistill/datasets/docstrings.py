"""An offline test collection made from the docstrings of installed Python packages.

A docstring is a summary followed by the full story, so every documented object of a package is a known-item search
task: the *query* is the summary, and the one relevant *document* is the rest of the same docstring, from which the
summary has been removed. Such a collection needs no download, and comes in the size of the packages it is made from::

    dataset = pt.get_dataset("docstrings:scipy,pandas,sklearn,numpy")
    pt.Experiment([...], *dataset.get_topicsqrels("test"), ["recip_rank"])

Documenting a package means importing all of its modules, which has side effects. Hence the docstrings are collected in
a subprocess, once per set of package versions, and cached under PyTerrier's home directory.
"""

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

__all__ = ["DocstringsDataset", "DocstringsDatasetProvider", "split_docstring"]

_logger = logging.getLogger(__name__)

FORMAT = 2  # of the cache files; to be raised whenever other documents or summaries are collected
MIN_SUMMARY_WORDS = 3  # shorter summaries ("Return self") do not say what is looked for: they make no query
MIN_TEXT_WORDS = 20  # shorter rests ("See also: ...") tell nothing about the object: they make no document
SPLITS = {"train": range(0, 70), "dev": range(70, 80), "test": range(80, 100)}  # the checksums of topics, modulo 100

# tests and scripts, vendored packages, and what Python 3.12 has withdrawn
_NOT_API = {"benchmarks", "conftest", "setup", "test", "tests", "externals", "distutils"}

# "name(...)", which may nest two deep, perhaps "-> result", and the "--" that CPython puts behind it
_PARENTHESES = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"
_SIGNATURE = re.compile(rf"\A[\w.]+{_PARENTHESES}(?:[ ]*->.*)?[ ]*(?:\n--[ ]*)?(?:\n\s*|\Z)")
_RULER = re.compile(r"^[ ]*([=~*#^-])\1{2,}[ ]*$", re.MULTILINE)


class _Entry(NamedTuple):
    docno: str
    summary: str
    text: str


# --- From a docstring to a query and a document ---------------------------------------------------------------------


def split_docstring(docstring: str) -> tuple[str, str]:
    """Split a docstring into its summary, in one line, and the rest, in which the summary is not repeated.

    Left out of both are the signatures with which the docstrings of C functions begin, and the rulers under headings.

    Example:
        >>> split_docstring('''add(x1, x2, /)
        ...
        ...     Add arguments
        ...     element-wise.
        ...
        ...     The inputs are broadcast.''')
        ('Add arguments element-wise.', 'The inputs are broadcast.')
    """
    doc = _RULER.sub("", inspect.cleandoc(docstring)).strip()
    while signature := _SIGNATURE.match(doc):
        doc = doc[signature.end() :]
    first, *others = re.split(r"\n\s*\n", doc, maxsplit=1)
    summary, text = " ".join(first.split()), "".join(others)
    if _makes_query(summary):
        repetition = r"\s+".join(map(re.escape, summary.rstrip(".").split()))
        text = re.sub(repetition, "", text, flags=re.IGNORECASE)
    return summary, text.strip()


def _makes_query(summary: str) -> bool:
    return len(summary.split()) >= MIN_SUMMARY_WORDS


# --- From a package to its docstrings: run in a subprocess ----------------------------------------------------------


def _is_public(name: str) -> bool:
    return not name.startswith("_")


def _is_api(module: str) -> bool:
    return _is_public(module) and module not in _NOT_API


def _package_of(obj: object) -> str | None:
    module = getattr(obj, "__module__", None)
    return module.partition(".")[0] if isinstance(module, str) else None


def _modules(name: str, skipped: list[str]) -> list[ModuleType]:
    module = importlib.import_module(name)
    modules = [module]
    for info in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        if _is_api(info.name.rpartition(".")[2]):
            try:
                modules += _modules(info.name, skipped)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # also modules that exit, or skip themselves as pytest does
                skipped.append(f"{info.name} ({error!r})")
    return modules


def _attributes(module: ModuleType) -> Iterator[tuple[str, Any]]:
    package = module.__name__.partition(".")[0]
    exported = getattr(module, "__all__", None)
    for name in filter(_is_public, dir(module) if exported is None else exported):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", DeprecationWarning)  # do not follow shims to where objects have moved
                value = getattr(module, name)
                origin = _package_of(value)
        except Exception:
            continue
        # ufuncs do not tell where they come from: believe the module that claims them
        if not isinstance(value, ModuleType) and (origin == package or (origin is None and exported is not None)):
            yield f"{module.__name__}.{name}", value


def _members(name: str, cls: type) -> Iterator[tuple[str, Any]]:
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
    try:
        doc = obj.__doc__
    except Exception:
        return ""
    # constants and other instances show the docstring of their class, sometimes with its signature in front
    of_class = type(obj).__doc__
    inherited = isinstance(of_class, str) and of_class != "" and str(doc).endswith(of_class)
    return doc if isinstance(doc, str) and not inherited else ""


def _preference(named: Sequence[Any]) -> tuple[int, str]:
    return len(named[0]), named[0]


def _collect(packages: Iterable[str]) -> list[_Entry]:
    skipped: list[str] = []
    modules = [module for package in packages for module in _modules(package, skipped)]
    named: dict[str, Any] = {module.__name__: module for module in modules}
    for module in modules:
        named.update(_attributes(module))
    # the best of an object's names comes last and stays
    names = {id(obj): name for name, obj in sorted(named.items(), key=_preference, reverse=True)}
    objects = {name: named[name] for name in names.values()}
    for name, obj in list(objects.items()):
        if isinstance(obj, type):
            objects.update(_members(name, obj))

    entries: dict[str, _Entry] = {}
    for name, obj in sorted(objects.items(), key=_preference):
        summary, text = split_docstring(_own_doc(obj))
        if len(text.split()) >= MIN_TEXT_WORDS:
            entries.setdefault(text, _Entry(name, summary, text))
    _logger.debug("%d documents; skipped %d modules: %s", len(entries), len(skipped), ", ".join(skipped))
    return sorted(entries.values())


def _main(path: str, *packages: str) -> None:
    _logger.setLevel(logging.DEBUG)
    _logger.addHandler(logging.StreamHandler())
    entries = _collect(packages)
    with pt.io.finalized_autoopen(path, "b") as file:
        for entry in entries:
            file.write(json.dumps(entry._asdict()).encode() + b"\n")


def _run_collector(packages: Sequence[str], path: str) -> None:
    """Collect into the file in a process that finds the same packages as this one, but shares nothing else with it."""
    # a script, since importing this module would import all of pyterrier_selfdistill, which takes longer than the work
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
    )
    _logger.debug("collector of %s: %s", ", ".join(packages), process.stderr.strip())
    if not os.path.exists(path):
        raise RuntimeError(
            f"collecting the docstrings of {', '.join(packages)} ended with exit status {process.returncode}:\n"
            + process.stderr[-2000:]
        )


# --- From names to installed packages -------------------------------------------------------------------------------


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _import_names(name: str) -> list[str]:
    if name.isidentifier() and importlib.util.find_spec(name):
        return [name]
    provided = importlib.metadata.packages_distributions().items()
    names = [
        package
        for package, distributions in provided
        if package.isidentifier() and _is_api(package) and _normalised(name) in map(_normalised, distributions)
    ]
    if not names:
        raise ModuleNotFoundError(f"no package {name!r} is installed to read docstrings from: pip install {name}")
    return names


def _versions(packages: Iterable[str]) -> Iterator[str]:
    provided = importlib.metadata.packages_distributions()
    for package in packages:
        try:
            versions = {importlib.metadata.version(name) for name in provided.get(package, [package])}
        except importlib.metadata.PackageNotFoundError:  # as for the standard library
            versions = {platform.python_version()}
        yield "+".join(sorted(versions))


def _checksum(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


# --- The dataset ----------------------------------------------------------------------------------------------------


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
        """Name the packages; the docstrings are collected later.

        Args:
            packages: The names of the packages, or of the distributions that provide them (``"scikit-learn"`` for
                ``"sklearn"``). Their order does not matter.

        Raises:
            ValueError: If no package is named.
            ModuleNotFoundError: If a package is not installed.
        """
        names = {name.strip() for name in packages} - {""}
        if not names:
            raise ValueError("no package is named to read docstrings from: write, e.g., 'docstrings:numpy,scipy'")
        self.packages = sorted({package for name in names for package in _import_names(name)})

    @cached_property
    def _entries(self) -> list[_Entry]:
        directory = os.path.join(pt.io.pyterrier_home(), "docstrings")
        key = _checksum(repr([FORMAT, self.packages, *_versions(self.packages)]))
        path = os.path.join(directory, f"{'+'.join(self.packages)[:100]}-{key}.jsonl.gz")
        if not os.path.exists(path):
            os.makedirs(directory, exist_ok=True)
            _run_collector(self.packages, path)
        with pt.io.autoopen(path, "rt", encoding="utf-8") as file:
            return [_Entry(**json.loads(line)) for line in file]

    @cached_property
    def _judgements(self) -> pd.DataFrame:
        topics: dict[str, _Entry] = {}
        rows = []
        for entry in sorted(self._entries, key=_preference):
            if _makes_query(entry.summary):
                topic = topics.setdefault(entry.summary.rstrip(".").casefold(), entry)
                rows.append((_checksum(topic.docno), topic.summary, entry.docno, 1))
        return pd.DataFrame(rows, columns=["qid", "query", "docno", "label"])

    def _split(self, variant: str | None) -> pd.DataFrame:
        if variant is None:
            return self._judgements
        if variant not in SPLITS:
            raise ValueError(f"{self!r} has no variant {variant!r}: choose from {list(SPLITS)}, or None for all topics")
        return self._judgements[[int(qid, 16) % 100 in SPLITS[variant] for qid in self._judgements["qid"]]]

    def get_corpus_iter(self, *, verbose: bool = True) -> pt.model.IterDict:
        """Return the documents, ordered by docno.

        Args:
            verbose: Whether to show a progress bar.

        Returns:
            An iterable with a length, of dicts with the keys docno (the qualified name of the object), title (again
            this name) and text (the docstring without its summary).
        """
        entries = pt.tqdm(self._entries, desc=f"{self!r} documents") if verbose else self._entries
        rows = ({"docno": entry.docno, "title": entry.docno, "text": entry.text} for entry in entries)
        return pt.utils.GeneratorLen(rows, len(self._entries))

    def get_topics(self, variant: str | None = None) -> pd.DataFrame:
        """Return the summaries.

        Args:
            variant: ``"train"``, ``"dev"``, ``"test"``, or None for the topics of all three.

        Returns:
            A frame with the columns qid and query.

        Raises:
            ValueError: If the variant is unknown.
        """
        return self._split(variant)[["qid", "query"]].drop_duplicates("qid", ignore_index=True)

    def get_qrels(self, variant: str | None = None) -> pd.DataFrame:
        """Return which docstring a summary belongs to.

        Args:
            variant: ``"train"``, ``"dev"``, ``"test"``, or None for the topics of all three.

        Returns:
            A frame with the columns qid, docno and label, which is always 1.

        Raises:
            ValueError: If the variant is unknown.
        """
        return self._split(variant)[["qid", "docno", "label"]].reset_index(drop=True)

    def get_corpus_lang(self) -> str:
        """Return the language in which docstrings are written by convention."""
        return "en"

    def get_topics_lang(self) -> str:
        """Return the language in which docstrings are written by convention."""
        return "en"

    def text_loader(self, fields: list[str] | str | Literal["*"] = "*", *, verbose: bool = False) -> pt.Transformer:
        """Create a transformer that adds the title and the text to documents; see ``pt.text.get_text``.

        Args:
            fields: The field or fields to load, of title and text; ``"*"`` loads both.
            verbose: Has no effect: the documents are held in memory.

        Returns:
            The transformer.

        Raises:
            ValueError: If a field is unknown.
        """
        available = ["title", "text"]
        columns = available if fields == "*" else [fields] if isinstance(fields, str) else list(fields)
        if unknown := set(columns) - set(available):
            raise ValueError(f"{self!r} has no field {', '.join(sorted(unknown))}: choose from {available}")

        def load(documents: pd.DataFrame) -> pd.DataFrame:
            corpus = pd.DataFrame(self.get_corpus_iter(verbose=False), columns=["docno", *available]).set_index("docno")
            loaded = corpus.loc[documents["docno"], columns].set_index(documents.index)
            return documents.assign(**loaded)

        return pt.apply.generic(
            load,
            required_columns=["docno"],
            transform_outputs=lambda inputs: inputs + [column for column in columns if column not in inputs],
            label="TextLoader",
        )

    def _describe_component(self, component: str) -> bool | list[str] | None:
        if component in ("topics", "qrels"):
            return list(SPLITS)
        return True if component == "corpus" else None

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


if __name__ == "__main__":
    _main(*sys.argv[1:])
