import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import benchmarks.study
from benchmarks.study.records import Records

APPEND = """
import sys

sys.path.append(sys.argv.pop(1))  # the folder of the module, since the package takes seconds to import
from records import Records

folder, grid, first, last, size = sys.argv[1:]
for number in range(int(first), int(last)):
    Records(folder).append(grid, {"key": f"{number:04}", "values": "x" * int(size)})
"""
"""A process that appends records."""


def start(folder: Path, grid: str, first: int, last: int, size: int) -> subprocess.Popen:
    module = Path(benchmarks.study.__file__).parent
    command = [sys.executable, "-c", APPEND, str(module), str(folder), grid, str(first), str(last), str(size)]
    return subprocess.Popen(command)


def keys_of(path: Path) -> list[str]:
    """The keys of a file in order, where every line must be a whole record."""
    return [json.loads(line)["key"] for line in path.read_text().splitlines()]


def test_read_finds_records_in_all_files(tmp_path):
    records = Records(tmp_path / "records")
    assert records.read() == {}
    records.append("a", {"key": "1", "means": {"tiny/test": 0.25}})
    records.append("b", {"key": "2"})
    records.append("a", {"key": "3"})
    assert records.read() == {"1": {"key": "1", "means": {"tiny/test": 0.25}}, "3": {"key": "3"}, "2": {"key": "2"}}
    assert keys_of(tmp_path / "records" / "a.jsonl") == ["1", "3"]
    assert keys_of(tmp_path / "records" / "b.jsonl") == ["2"]


def test_append_keeps_the_first_record_of_a_key(tmp_path, caplog):
    records = Records(tmp_path)
    records.append("a", {"key": "1", "by": "one process"})
    records.append("b", {"key": "1", "by": "another"})
    assert records.read() == {"1": {"key": "1", "by": "one process"}}
    assert not (tmp_path / "b.jsonl").exists()
    assert "another process has appended" in caplog.text


def test_read_ignores_a_torn_line_and_append_cuts_it(tmp_path, caplog):
    records = Records(tmp_path)
    records.append("a", {"key": "1"})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"key":"2","means":{"tiny/te')
    assert list(records.read()) == ["1"]
    records.append("a", {"key": "3"})
    assert keys_of(tmp_path / "a.jsonl") == ["1", "3"]
    assert "torn" in caplog.text


def test_append_begins_anew_where_only_a_torn_line_is(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key":"1"')
    records = Records(tmp_path)
    assert records.read() == {}
    records.append("a", {"key": "1"})
    assert keys_of(tmp_path / "a.jsonl") == ["1"]


def test_read_refuses_a_line_with_an_end_that_is_no_record(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"key":"1"}\n{"key":\n')
    with pytest.raises(ValueError, match=r"line 2 of .*a\.jsonl. is not a record"):
        Records(tmp_path).read()


def test_processes_neither_lose_nor_double_records(tmp_path):
    """Three processes append to two files, each a record that another appends too."""
    processes = [
        start(tmp_path, "a", 0, 20, 10_000),
        start(tmp_path, "a", 10, 30, 10_000),
        start(tmp_path, "b", 20, 40, 10_000),
    ]
    codes = [process.wait(timeout=120) for process in processes]
    assert codes == [0, 0, 0]
    keys = keys_of(tmp_path / "a.jsonl") + keys_of(tmp_path / "b.jsonl")
    assert sorted(keys) == [f"{number:04}" for number in range(40)]
    for record in Records(tmp_path).read().values():
        assert len(record["values"]) == 10_000


def test_a_killed_process_loses_at_most_its_last_record(tmp_path):
    path = tmp_path / "a.jsonl"
    process = start(tmp_path, "a", 0, 10_000, 100_000)
    while not path.exists() or path.stat().st_size < 500_000:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    records = Records(tmp_path)
    before = list(records.read())
    assert before == [f"{number:04}" for number in range(len(before))]
    records.append("a", {"key": "after"})
    assert keys_of(path) == [*before, "after"]
