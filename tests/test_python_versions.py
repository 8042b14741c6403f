"""The versions of Python that pyproject.toml promises: every file that names them agrees."""

import re
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CLASSIFIERS = "\n".join(PYPROJECT["project"]["classifiers"])
PROMISED = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", CLASSIFIERS, re.MULTILINE)
FIRST, LAST = PROMISED[0], PROMISED[-1]


def test_all_files_name_the_same_versions():
    assert PYPROJECT["project"]["requires-python"] == f">={FIRST}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + FIRST.replace(".", "")
    assert PYPROJECT["tool"]["mypy"]["python_version"] == FIRST
    assert f"Python {FIRST} or later" in (ROOT / "README.md").read_text()
    assert f"Python {FIRST} to {LAST}:" in (ROOT / "constraints.txt").read_text()
    assert "{}.{}".format(*sys.version_info) in PROMISED


def test_workflows_test_all_versions_and_no_others():
    named = {}
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for name, job in yaml.safe_load(path.read_text())["jobs"].items():
            versions = list(job.get("strategy", {}).get("matrix", {}).get("python-version", []))
            for step in job["steps"]:
                given = step.get("with", {}).get("python-version", "")
                versions += re.findall(r"^[\d.]+$", given, re.MULTILINE)
            named[f"{path.stem}/{name}"] = versions
    assert named["test/test"] == named["test/versions"] == PROMISED
    assert {version for versions in named.values() for version in versions} <= set(PROMISED)
