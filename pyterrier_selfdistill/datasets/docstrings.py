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
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Literal

import pandas as pd
import pyterrier as pt

from . import collector
from .collector import Entry, is_api, makes_query, preference

logger = logging.getLogger(__name__)

CACHE_FORMAT = 2
"""The format of the cache, to raise whenever other documents or summaries are collected."""

SPLITS = {"train": range(0, 70), "dev": range(70, 80), "test": range(80, 100)}
"""The split of a topic by its checksum modulo 100."""


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
        """Return the documents, ordered by docno.

        Args:
            verbose: Whether to show a progress bar.

        Returns:
            An iterable with a length, of dicts with the keys docno (the qualified name of the object), title (again
            this name) and text (the docstring without its summary).
        """
        entries = pt.tqdm(self._entries, desc=f"{self!r} documents", disable=not verbose)
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
    script = f"import runpy; runpy.run_path({collector.__file__!r}, run_name='__main__')"
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
