import importlib.util

import pytest

import benchmarks.study
from benchmarks.study.__main__ import main
from benchmarks.study.config import read_study


def error_of(capsys, *arguments):
    """The last line of what a command says that is not understood."""
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def study(write_study, defaults):
    """A study of two runs."""
    return str(write_study({"a": {"loss": "untouched", "seed": [1, 2]}}, defaults=defaults))


def test_list_says_what_has_a_record(finished, study, folder, capsys):
    main(["list", str(finished.path), "--records", str(finished.records)])
    listed = capsys.readouterr().out
    assert "open" not in listed
    assert listed.count(" done ") == sum(map(len, finished.study.grids.values()))
    main(["list", study])
    key = read_study(study).runs[0].key
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "a: 0 of 2 runs have a record"
    assert second == f"  {key} open tiny: untouched, seed 1"


def test_init_writes_a_study_that_can_be_read(folder, capsys):
    assert main(["init", "mine.yaml"]) == 0
    study = read_study("mine.yaml")
    assert list(study.grids) == ["rates", "untouched"]
    assert list(study.follow_ups) == ["best"]
    assert "run mine.yaml" in capsys.readouterr().out
    assert "mine.yaml is there already" in error_of(capsys, "init", "mine.yaml")


def test_errors_are_one_line(study, write_study, folder, capsys):
    assert "nowhere.yaml" in error_of(capsys, "run", "nowhere.yaml")
    assert "--grids names ['nothing']; " in error_of(capsys, "run", study, "--grids", "nothing")
    assert "run the study first" in error_of(capsys, "report", study)
    wrong = write_study({"a": {"collection": "tiny", "rate": 1}})
    assert "unknown settings ['rate']" in error_of(capsys, "list", str(wrong))


def test_help_names_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for command in ("init", "run", "list", "report"):
        assert f"\n    {command} " in shown


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in ("statsmodels", "yaml") else find(name)
    )
    with pytest.raises(ImportError, match=r"need statsmodels, yaml, .*: pip install pyterrier-selfdistill\[study\]"):
        importlib.reload(benchmarks.study)
