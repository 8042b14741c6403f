"""The versions of Python that pyproject.toml promises: all that names them agrees, and what is pinned runs on them."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLASSIFIER = "Programming Language :: Python :: 3."
PROMISED = [
    name.removeprefix("Programming Language :: Python :: ")
    for name in PYPROJECT["project"]["classifiers"]
    if name.startswith(CLASSIFIER)
]
FIRST, LAST = PROMISED[0], PROMISED[-1]


def text_of(name):
    return (ROOT / name).read_text()


def versions_in(job):
    """Iterate over the versions of Python that a job of a workflow sets up."""
    yield from job.get("strategy", {}).get("matrix", {}).get("python-version", [])
    for step in job["steps"]:
        given = step.get("with", {}).get("python-version", "")
        yield from re.findall(r"^[\d.]+$", given, re.MULTILINE)


def test_all_that_names_versions_agrees():
    minors = [int(version.partition(".")[2]) for version in PROMISED]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert PYPROJECT["project"]["requires-python"] == f">={FIRST}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + FIRST.replace(".", "")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == FIRST
    assert f"Python {FIRST} or later" in text_of("README.md")
    assert f"Python {FIRST} to {LAST}:" in text_of("constraints.txt")
    assert "{}.{}".format(*sys.version_info) in PROMISED


def test_workflows_test_all_versions_and_no_others():
    jobs = {}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            jobs[f"{path.stem}/{name}"] = list(versions_in(job))
    assert jobs["test/test"] == jobs["test/versions"] == PROMISED
    named = {version for versions in jobs.values() for version in versions}
    assert named <= set(PROMISED)


@pytest.mark.parametrize("folder", ["pyterrier_selfdistill", "benchmarks", "examples", "tests"])
def test_the_first_version_can_read_the_code(folder):
    feature_version = tuple(map(int, FIRST.split(".")))
    for path in (ROOT / folder).rglob("*.py"):
        ast.parse(path.read_text(), path, feature_version=feature_version)


@pytest.mark.parametrize("version", PROMISED)
def test_what_is_pinned_takes_the_version(version):
    """Each is pinned once at most, and says itself which versions of Python it takes."""
    pinned = {}
    for line in text_of("constraints.txt").splitlines()[1:]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"python_version": version}):
            assert requirement.name not in pinned
            pinned[requirement.name] = requirement.specifier
    for name, specifier in pinned.items():
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        if distribution.version in specifier:
            takes = SpecifierSet(distribution.metadata["Requires-Python"] or "")
            # of its last releases, since pins may leave out the first ones
            assert takes.contains(f"{version}.99"), f"{name} {distribution.version} requires Python {takes}"
