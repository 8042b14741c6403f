"""The house: what may import what, whose names may be used, how long things may be, and how dense lines may be."""

import ast
import graphlib
import importlib.metadata
import itertools
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyterrier_selfdistill"

LAYERS = [
    ["compat", "docnos", "exchange", "extras", "progress", "tokens"],
    ["distributed", "io", "options", "portable", "validate", "variants", "vectors"],
    ["identity", "int8", "packages"],
    ["adapters"],
    ["precision"],
    ["embedding", "losses"],
    ["calibrated_loss"],
    ["nested_loss"],
    ["text_losses"],
    ["data"],
    ["index_files"],
    ["indexer", "quantized"],
    ["retrievers"],
    ["index"],
    ["encoders", "shards"],
    ["model_card", "sharded_index"],
    ["persistence"],
    ["adapted", "export", "prompts", "truncation"],
    ["biencoder"],
    ["ray_indexing", "training"],
    ["comparison"],
    ["study"],
]
"""The rooms of the package from the ground up; each may import those below it, and its own."""

APART = ["datasets"]
"""Rooms that import nothing of the package and are imported by none of it."""


def modules_of(folder):
    return {path: ast.parse(path.read_text()) for path in sorted(folder.rglob("*.py"))}


def imports_of(tree):
    """Iterate over the names that a module imports, relative ones with their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin.rstrip('.')}.{alias.name}" for alias in node.names)


def module_name(path):
    """Return the name of a module of the package, such as ``data.cache``."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def internal_imports(path, tree):
    """Iterate over the modules of the package that one of them imports."""
    known = {module_name(other) for other in PACKAGE.rglob("*.py")}
    folder = path.parent.relative_to(PACKAGE).parts
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = folder[: len(folder) - node.level + 1]
        origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
        for alias in node.names:
            candidates = [f"{origin}.{alias.name}".strip("."), origin]
            yield next(name for name in candidates if name in known)


MODULES = modules_of(PACKAGE)
GRAPH = {module_name(path): set(internal_imports(path, tree)) for path, tree in MODULES.items()}
ALL_CODE = MODULES | modules_of(ROOT / "benchmarks") | modules_of(ROOT / "examples")


def layer_of(module):
    """Return how high a module stands; the top level stands above all."""
    room = module.partition(".")[0]
    levels = [level for level, rooms in enumerate(LAYERS) if room in rooms]
    return levels[0] if levels else len(LAYERS)


def test_every_module_has_its_place():
    rooms = {module.partition(".")[0] for module in GRAPH}
    assert rooms <= {"__init__", *APART, *itertools.chain(*LAYERS)}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_has_a_test_file(path):
    mirrored = ROOT / "tests" / path.relative_to(PACKAGE).parent / f"test_{path.name}"
    assert path.name == "__init__.py" or mirrored.exists()


def test_no_import_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()


@pytest.mark.parametrize("module", GRAPH)
def test_modules_import_what_stands_below_them(module):
    room = module.partition(".")[0]
    for imported in GRAPH[module]:
        other = imported.partition(".")[0]
        assert other == room or layer_of(other) < layer_of(room), f"{module} imports {imported}"
        assert not {room, other} & set(APART) or other == room, f"{module} imports {imported}"


def private_imports(tree):
    """Iterate over the private modules and names of other libraries that a module imports."""
    for name in imports_of(tree):
        if not name.startswith(".") and re.search(r"(^|\.)_(?!_)", name):
            yield name


PUBLIC_THOUGH_UNDERSCORED = {"_asdict", "_fields", "_replace"}
"""What named tuples offer."""


def private_attributes(tree):
    """Iterate over the private attributes that a module takes from other objects than its own."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr in PUBLIC_THOUGH_UNDERSCORED:
            continue
        if not re.match(r"_(?!_)", node.attr):
            continue
        owner = ast.unparse(node.value)
        if owner not in ("self", "cls", "other", "super()"):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", ALL_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_of_others_are_used_in_compat_only(path):
    if path.name != "compat.py":
        assert not list(private_imports(ALL_CODE[path]))
        assert not list(private_attributes(ALL_CODE[path]))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_and_classes_are_short(path):
    assert len(path.read_text().splitlines()) <= 450
    for node in ast.walk(MODULES[path]):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 300, node.name


COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def dense_places(tree):
    """Iterate over the lines with a comprehension in another, or a conditional inside a call."""
    for node in ast.walk(tree):
        inside = list(ast.walk(node))[1:]
        if isinstance(node, COMPREHENSIONS):
            nested = [other for other in inside if isinstance(other, (*COMPREHENSIONS, ast.IfExp))]
            if nested or len(node.generators) > 2:
                yield f"line {node.lineno}: a comprehension with more in it"
        elif isinstance(node, ast.Call):
            arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
            parts = itertools.chain(*map(ast.walk, arguments))
            if any(isinstance(part, ast.IfExp) for part in parts):
                yield f"line {node.lineno}: a conditional inside a call"


@pytest.mark.parametrize("path", ALL_CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_one_thing_a_line(path):
    assert not list(dense_places(ALL_CODE[path]))


def test_nothing_imports_studies():
    """They need an extra, without which the package must be imported."""
    importing = {module for module, imported in GRAPH.items() if any(map(in_study, imported))}
    assert {module for module in importing if not in_study(module)} == set()


def in_study(module):
    return module.partition(".")[0] == "study"


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
        ("pyterrier_selfdistill/study", ["study"]),
        ("examples", ["examples"]),
        ("benchmarks", ["examples", "study"]),
    ],
)
def test_what_is_imported_is_declared(folder, extras):
    provided = importlib.metadata.packages_distributions()
    required = requirements(extras)
    own = {"pyterrier_selfdistill", "benchmarks", *(path.stem for path in (ROOT / "examples").glob("*.py"))}
    for path, tree in modules_of(ROOT / folder).items():
        if "study" not in extras and path.parent.name == "study":
            continue  # which has an extra of its own
        imported = {name.partition(".")[0] for name in imports_of(tree) if not name.startswith(".")}
        for name in sorted(imported - own - set(sys.stdlib_module_names)):
            distributions = {distribution.lower().replace("_", "-") for distribution in provided.get(name, [])}
            assert distributions & required, f"{path} imports {name}, of {distributions}"
