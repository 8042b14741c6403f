"""The chaos kills, and sees results that are lost, half-written or left behind."""

import multiprocessing
import os
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from benchmarks.chaos import experiments
from benchmarks.chaos.operations import Operation, Save, state, vectors, write_materials

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@dataclass(frozen=True)
class Careless(Operation):
    """Writes in place, next to a temporary file."""

    def prepare(self, folder):
        super().prepare(folder)
        (folder / "result").write_text("old")

    def setup(self, folder):
        def work():
            scratch = folder / f"scratch-{os.getpid()}"
            scratch.touch()
            (folder / "result").unlink(missing_ok=True)
            with (folder / "result").open("w") as file:
                file.write("ne")
                file.flush()
                scratch.unlink()
                file.write("w")

        return work

    def inspect(self, folder, reference=None):
        return {"result": state(folder / "result", lambda path: {"old": "old", "new": "new"}[path.read_text()])}

    def fingerprint(self, folder):
        return (folder / "result").read_text()


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    """Fork from this process, since a server would take ten seconds to import everything."""
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr("benchmarks.chaos.processes.multiprocessing.get_context", lambda method: fork)


def test_a_saved_model_survives_kills_and_a_full_disk(tmp_path):
    materials = tmp_path / "materials"
    write_materials(materials)
    text = experiments.measure_kills([Save("save", materials)], tmp_path / "kills", 1, seed=1)
    assert "| save | 1 | 1 | 0 | 0 | 2 of 2 runs | 0 of 2 runs |" in text
    (tmp_path / "disk").mkdir()
    error, _, _, old_result, _ = experiments.get_into(experiments.LIMITED, Save("save", materials), tmp_path / "disk")
    assert error != "none"
    assert old_result == "intact"


@pytest.mark.parametrize(("change", "lost", "broken"), [(3, 1, 0), (4, 0, 1)])
def test_faults_are_seen(tmp_path, change, lost, broken):
    generator = type("Fixed", (), {"integers": lambda self, most: change - 1})()
    reference = experiments.Reference(tmp_path, 1.0, 5, "new")
    episode = experiments.play(
        Careless("write", tmp_path), reference, tmp_path / "killed", experiments.CHANGE, most=1, generator=generator
    )
    assert (episode.lost, episode.broken, episode.is_identical) == (lost, broken, True)
    assert any(path.startswith("scratch") for path in episode.left_behind)


def test_a_mixed_answer_is_seen():
    scores = {version: np.sort(vectors(version) @ experiments.query_vector())[::-1][:10] for version in ("old", "new")}
    best = [f"old-{row}" for row in np.argsort(-(vectors("old") @ experiments.query_vector()))[:10]]
    assert experiments.mixture(pd.DataFrame({"docno": best, "score": scores["old"]})) is None
    assert "scores of another" in experiments.mixture(pd.DataFrame({"docno": best, "score": scores["new"]}))
    assert "two versions" in experiments.mixture(pd.DataFrame({"docno": [*best[:9], "new-1"], "score": scores["old"]}))
