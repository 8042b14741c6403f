"""The chaos: that it kills, sees what is broken, and says so."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from benchmarks.chaos import __main__ as command
from benchmarks.chaos import materials, memory
from benchmarks.chaos.disks import LimitedFiles, Removed, get_into
from benchmarks.chaos.kills import CHANGE, MOMENT, Campaign, Episode, left_behind, summarize
from benchmarks.chaos.materials import Materials
from benchmarks.chaos.neighbours import DEPTH, Meeting, Meetings, mixture, query_vector, repeat
from benchmarks.chaos.operations import Fit, Index, Operation, Save, state
from benchmarks.chaos.processes import Outcome
from benchmarks.chaos.report import fault_list


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Materials:
    files = Materials(tmp_path_factory.mktemp("chaos") / "materials")
    files.write()
    return files


@dataclass(frozen=True)
class Careless(Operation):
    """Writes in place, with a temporary file beside it, and knows of no earlier run."""

    name = "write without care"

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
        def read(path):
            if path.read_text() not in ("old", "new"):
                raise ValueError("half a word")
            return path.read_text()

        return {"result": state(folder / "result", read)}

    def fingerprint(self, folder):
        return str(len(list(folder.iterdir())))


class Stubborn(Careless):
    """Does not go on where it was interrupted."""

    name = "write once"

    def setup(self, folder):
        if list(folder.glob("scratch-*")):
            raise FileExistsError(f"there is something in {folder}/result")
        return super().setup(folder)


def test_saving_and_indexing_end_as_if_never_killed(files, tmp_path, capsys):
    campaign = Campaign([Save(files), Index(files)], tmp_path, "now", 1)
    episodes = campaign.run({MOMENT: 2, CHANGE: 3})
    assert sum(len(episode.kills) for episode in episodes if episode.kind == MOMENT) == 2
    assert sum(len(episode.kills) for episode in episodes if episode.kind == CHANGE) == 3
    assert all(episode.is_identical for episode in episodes)
    assert not any(kill["broken"] for episode in episodes for kill in episode.kills)
    printed = [json.loads(line)["key"] for line in capsys.readouterr().out.splitlines()]
    assert printed == [episode.key for episode in episodes]
    # what was done is not done again, except for another version
    assert campaign.run({MOMENT: 2, CHANGE: 3}) == episodes
    assert not capsys.readouterr().out
    assert not Campaign([Save(files)], tmp_path, "later", 1).run({CHANGE: 0})


def test_kills_see_what_is_lost_half_written_and_left_behind(files, tmp_path):
    episodes = Campaign([Careless(files)], tmp_path, "now", 1).run({CHANGE: 12})
    assert sum(len(episode.kills) for episode in episodes) == 12
    seen = {}
    for episode in episodes:
        first = episode.kills[0]
        number, _, change = first["at"].partition(": ")
        seen[number] = change.partition("-")[0], first["broken"], first["lost"]
        # a file is there already when any other change is made
        assert bool(episode.left_behind) == any("change 1:" not in kill["at"] for kill in episode.kills)
        assert episode.is_identical == (not episode.left_behind)
    assert seen["change 3"] == ("open result w", [], ["result"])
    assert seen["change 4"] == ("os.remove scratch", ["result broken: ValueError: half a word"], [])


def test_a_run_that_does_not_go_on_is_seen(files, tmp_path):
    episodes = Campaign([Stubborn(files)], tmp_path, "now", 1).run({CHANGE: 6})
    errors = {episode.error for episode in episodes}
    assert "FileExistsError: there is something in result" in errors
    assert errors <= {"FileExistsError: there is something in result", ""}
    assert not any(episode.is_identical for episode in episodes if episode.error)


def test_an_operation_that_fails_by_itself_is_a_row(tmp_path):
    nothing = Materials(tmp_path / "nothing")
    episodes = Campaign([Fit(nothing)], tmp_path, "now", 1).run({MOMENT: 1})
    assert episodes[0].error.startswith("undisturbed, it failed with")
    assert "| fit | 0 | 0 | 0 | 0 | 0 of 1 runs | 0 of 1 runs |" in summarize(episodes)


def test_the_table_of_kills_counts_kills_and_runs():
    broken = {"at": "change 3: os.rename a to b", "broken": ["model broken: ValueError"], "lost": []}
    lost = {"at": "0.1 s", "broken": [], "lost": ["model"]}
    episodes = [
        Episode("1", "save", MOMENT, [lost, lost], is_identical=True),
        Episode("2", "save", CHANGE, [broken], left_behind=[".model.abcd1234.tmp"]),
        Episode("3", "fit", MOMENT, error="ValueError: no"),
    ]
    text = summarize(episodes)
    assert "| save | 2 | 1 | 1 | 2 | 1 of 2 runs | 1 of 2 runs |" in text
    assert "| fit | 0 | 0 | 0 | 0 | 0 of 1 runs | 0 of 1 runs |" in text
    assert "- save: model lost, after a kill at a moment (2 times)" in text
    assert "- save: model broken: ValueError, after a kill just before os.rename a to b (1 times)" in text
    assert "- save: left behind .model.*.tmp (1 times)" in text
    assert "- fit: the run that was to go on failed with ValueError: no (1 times)" in text


def test_left_behind_are_folders_once_and_no_locks(tmp_path):
    (tmp_path / ".model.tmp" / "inner").mkdir(parents=True)
    (tmp_path / ".lock").touch()
    (tmp_path / "model").touch()
    assert left_behind(tmp_path, {(tmp_path / "model").relative_to(tmp_path)}) == [".model.tmp"]


@pytest.mark.parametrize("trouble", [LimitedFiles(), Removed()])
def test_trouble_with_a_disk_is_an_error_and_keeps_the_old_model(files, tmp_path, trouble):
    disk = tmp_path / "disk"
    disk.mkdir()
    finding = get_into(trouble, Save(files), disk, changes=8)
    assert finding.error != "none"
    assert str(tmp_path) not in finding.error
    assert finding.old_result == ("intact" if trouble.keeps_results else "removed")


def test_an_answer_of_two_versions_is_seen():
    def answer(version):
        scores = materials.vectors(version) @ query_vector()
        best = np.argsort(-scores)[:DEPTH]
        return pd.DataFrame({"docno": [f"{version}-{row}" for row in best], "score": scores[best]})

    old, new = answer("old"), answer("new")
    assert mixture(old) is mixture(new) is None
    assert mixture(pd.concat([old[:5], new[5:]])) == "documents of two versions"
    assert mixture(old.assign(score=new["score"])) == "documents of one version with the scores of another"
    assert mixture(old.assign(docno=old["docno"] + "1")) == "other documents with the right scores"


def test_answers_mixtures_and_errors_are_counted():
    results = iter([None, "mixed", ValueError("first\nsecond"), None])

    def work(number):
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    count = repeat(work, seconds=0.05)
    assert (count.done, count.mixed) == (3, {"mixed": 1})
    assert count.errors["ValueError: first"] == 1


def test_a_meeting_counts_who_is_refused_and_named():
    meetings = Meetings("fit")
    done = Outcome()
    refused = Outcome(error="RuntimeError", message="process 17 is training here")
    meetings.add(Meeting(done, 18), Meeting(refused, 17))
    meetings.add(Meeting(refused, 99), Meeting(refused, 17))
    meetings.add(Meeting(done, 17), Meeting(done, 18))
    assert (meetings.both, meetings.one, meetings.named) == (1, 1, 2)


def test_the_slope_of_memory_is_found_within_its_error():
    generator = np.random.default_rng(0)
    times = np.linspace(0, 3600, 240)
    for growth in (0, 5):
        sizes = 400 + growth * times / 3600 + generator.normal(scale=1, size=240)
        slope, error = memory.slope_per_hour(times, sizes)
        assert slope == pytest.approx(growth, abs=3 * error)
        assert 0.1 < error < 0.5


def test_memory_and_files_are_watched():
    kept = []
    growth = memory.watch(lambda: kept.append(open(os.devnull)), seconds=0.2)  # noqa: SIM115
    assert growth.iterations == len(kept) - 1
    # others close files meanwhile
    assert growth.files_after - growth.files_before == pytest.approx(growth.iterations, abs=9)
    assert growth.after > 10
    assert f"| {growth.iterations:,} |" in memory.summarize(growth)


def test_faults_do_not_say_where_files_are():
    assert "- no 'vecs.f4' in run/model (2 times)" in fault_list({"no '/data/a/vecs.f4' in run/model": 2})


def test_the_command_writes_the_sections_that_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(command.MEASURES, "disks", lambda options, materials: "| a table |")
    page = tmp_path / "page.md"
    page.write_text("<!-- kills -->\nas it was\n<!-- /kills -->\n<!-- disks -->\n<!-- /disks -->\n")
    command.main(["--only", "disks", "--page", str(page), "--work", str(tmp_path / "work")])
    assert "as it was" in page.read_text()
    assert "`python -m benchmarks.chaos --only disks" in page.read_text()
    assert "| a table |\n<!-- /disks -->" in page.read_text()
    with pytest.raises(SystemExit):
        command.main(["--only", "disks,locusts"])
