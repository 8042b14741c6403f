"""Collect the docstrings of packages; run as a script, since it imports all of their modules.

The summary of a docstring makes a query, and the rest of it, from which the summary is removed, makes a document. The
script writes one JSON object a documented object::

    python collector.py docstrings.jsonl.gz numpy pandas
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import pyterrier as pt

logger = logging.getLogger(__name__)

MIN_SUMMARY_WORDS = 3
"""Shorter summaries ("Return self") do not say what is looked for, and make no query."""

MIN_TEXT_WORDS = 20
"""Shorter rests ("See also: ...") tell nothing about the object, and make no document."""

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
    """Split a docstring into its summary and the rest.

    Left out of both are the signatures with which the docstrings of C functions begin, and the rulers under headings.

    Args:
        docstring: The docstring as it is in the source.

    Returns:
        The summary in one line, and the rest, in which the summary is not repeated.

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


if __name__ == "__main__":
    _main(*sys.argv[1:])
