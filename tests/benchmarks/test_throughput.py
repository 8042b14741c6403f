"""The page on speed: what is timed in turns, and how sections are written."""

import sys

import pytest

from benchmarks import throughput
from benchmarks.encoding_speed import rates_table
from benchmarks.turns import Rates, in_turns


def test_works_are_done_in_turns():
    done = []
    works = {name: lambda name=name: done.append(name) for name in ("ours", "theirs")}
    rates = in_turns(works, amount=10, turns=2)
    assert done == ["ours", "theirs", "ours", "theirs"]
    assert all(len(rate.turns) == 2 for rate in rates.values())


def test_ratios_are_of_the_same_turn():
    noisy, steady = Rates([10.0, 30.0, 20.0]), Rates([5.0, 15.0, 10.0])
    assert noisy.over(steady) == "2.00x (2.00 to 2.00)"


def test_rates_are_compared_with_a_peer():
    text = rates_table("work", {"theirs": Rates([10.0]), "ours": Rates([25.0])}, "theirs")
    assert text.splitlines()[-1] == "| ours | 25.0 (25.0 to 25.0) | 2.50x (2.50 to 2.50) |"


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setattr(throughput, "SECTIONS", {"first": lambda data: f"of {data}", "second": lambda _: "2"})
    path = tmp_path / "page.md"
    path.write_text("<!-- first -->\nold\n<!-- /first -->\n<!-- second -->\nold\n<!-- /second -->\n")
    return path


def test_only_what_is_asked_for_is_measured(page, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["throughput", "--only", "first", "--data", "collections", "--page", str(page)])
    throughput.main()
    first, second = page.read_text().split("<!-- /first -->")
    assert "`python -m benchmarks.throughput --only first`" in first
    assert "of collections" in first
    assert "old" in second


def test_sections_that_are_not_there(page, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["throughput", "--only", "third", "--page", str(page)])
    with pytest.raises(SystemExit):
        throughput.main()
    assert "there are no sections ['third']; choose from first, second" in capsys.readouterr().err
