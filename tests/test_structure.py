"""The house: its size, what may import what, and whose private names may be used."""

import ast
import graphlib
import importlib.metadata
import inspect
import re
import sys
from pathlib import Path

import pytest

import pyterrier_selfdistill

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyterrier_selfdistill"
ROOMS = ["utils", "losses", "data", "index", "encoder", "training", "report"]
"""From left to right: a room imports from rooms further left only. ``datasets`` stands apart."""


def modules_of(folder):
    return {path: ast.parse(path.read_text()) for path in sorted((ROOT / folder).rglob("*.py"))}


def module_name(path):
    """Return the name of a module of the package, such as ``data.triples``."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imports_of(tree):
    """Iterate over the names that a module imports, relative ones with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin.rstrip('.')}.{alias.name}" for alias in node.names)


def internal_imports(path, tree):
    """Iterate over the modules of the package that one of them imports."""
    known = {module_name(other) for other in MODULES}
    folder = path.parent.relative_to(PACKAGE).parts
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            origin = ".".join(filter(None, base))
            for alias in node.names:
                yield next(name for name in (f"{origin}.{alias.name}".strip("."), origin) if name in known)


MODULES = modules_of("pyterrier_selfdistill")
ALL_CODE = MODULES | modules_of("benchmarks") | modules_of("examples")
GRAPH = {module_name(path): set(internal_imports(path, tree)) for path, tree in MODULES.items()}


@pytest.mark.parametrize(
    ("folder", "lines"), [("pyterrier_selfdistill", 9_500), ("benchmarks", 5_000), ("tests", 9_000)]
)
def test_the_house_stays_small(folder, lines):
    assert sum(path.read_text().count("\n") for path in (ROOT / folder).rglob("*.py")) <= lines


def test_there_are_few_modules():
    assert len(MODULES) <= 40


def test_no_import_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()


@pytest.mark.parametrize("module", [name for name in GRAPH if name != "__init__"])
def test_rooms_import_from_rooms_further_left(module):
    room = module.partition(".")[0]
    others = {name.partition(".")[0] for name in GRAPH[module]} - {room}
    left = ROOMS[: ROOMS.index(room)] if room in ROOMS else []
    assert room in [*ROOMS, "datasets"]
    assert others <= set(left)


PUBLIC_THOUGH_UNDERSCORED = {"_asdict", "_fields", "_replace", "_version"}
"""Methods of named tuples, and the counter of changes that PyTorch documents for each tensor."""


def private_names(tree):
    """Iterate over the private names of other libraries, and of objects other than its own, that a module uses."""
    for name in imports_of(tree):
        if not name.startswith(".") and re.search(r"(^|\.)_(?!_)", name):
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_(?!_)", node.attr):
            owner = ast.unparse(node.value)
            if node.attr not in PUBLIC_THOUGH_UNDERSCORED and owner not in ("self", "cls", "other", "super()"):
                yield ast.unparse(node)


@pytest.mark.parametrize("path", ALL_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_others_are_used_in_compat_only(path):
    assert path.name == "compat.py" or not list(private_names(ALL_CODE[path]))


def test_public_names_are_documented():
    undocumented = []
    for name in pyterrier_selfdistill.__all__:
        public = getattr(pyterrier_selfdistill, name)
        methods = [public] if not inspect.isclass(public) else [public, *vars(public).values()]
        for described in methods:
            is_ours = getattr(described, "__module__", "").startswith("pyterrier_selfdistill")
            is_public = not getattr(described, "__name__", "_").startswith("_")
            if is_ours and is_public and not described.__doc__:
                undocumented.append(f"{name}: {described}")
    assert undocumented == []


def requirements(extras):
    """Return the distributions that the package requires, itself included, with those of some extras."""
    required = {"pyterrier-selfdistill"}
    for requirement in importlib.metadata.requires("pyterrier-selfdistill"):
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if extra is None or extra[1] in extras:
            required.add(re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-"))
    return required


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("pyterrier_selfdistill", []),
        ("examples", ["examples"]),
        ("benchmarks", ["examples", "study", "ray", "adapters", "ann", "openvino"]),
    ],
)
def test_imported_packages_are_declared(folder, extras):
    provided = importlib.metadata.packages_distributions()
    required = requirements(extras)
    own = {"pyterrier_selfdistill", "benchmarks", *(path.stem for path in (ROOT / "examples").glob("*.py"))}
    for path, tree in modules_of(folder).items():
        imported = {name.partition(".")[0] for name in imports_of(tree) if not name.startswith(".")}
        for name in sorted(imported - own - set(sys.stdlib_module_names)):
            distributions = {distribution.lower().replace("_", "-") for distribution in provided.get(name, [])}
            assert distributions & required, f"{path} imports {name}, of {distributions}"
