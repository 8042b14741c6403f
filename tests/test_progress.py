"""Progress bars: drawn in terminals and notebooks, lines in logs."""

import io
import re

import pyterrier as pt
import pytest
import tqdm

from pyterrier_selfdistill import progress
from pyterrier_selfdistill.progress import LogBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Notebook(io.StringIO):
    pub_thread = None


def follow(stream, steps=1000, **options):
    """Draw a bar step by step, as training does, and return the lines."""
    options = {"total": steps, "file": stream, "mininterval": 0, "miniters": 1, **options}
    with LogBar(desc="Training", **options) as bar:
        for step in range(steps - bar.n):
            bar.update()
            bar.set_postfix({"loss": f"{step:.1f}"})
    return stream.getvalue().splitlines()


def test_a_log_has_a_line_a_tenth():
    lines = follow(io.StringIO())
    assert [re.match(r"Training: +(\d+)%", line)[1] for line in lines] == [str(10 * n) for n in range(1, 11)]
    assert lines[0].endswith("loss=98.0]")


def test_a_resumed_bar_starts_where_it_is():
    lines = follow(io.StringIO(), initial=750)
    assert [re.match(r"Training: +(\d+)%", line)[1] for line in lines] == ["80", "90", "100"]


@pytest.mark.parametrize("stream", [Terminal(), Notebook()])
def test_terminals_and_notebooks_have_what_tqdm_draws(stream):
    follow(stream)
    plain = type(stream)()
    with tqdm.tqdm(total=10, file=plain) as bar:
        bar.update(10)
    assert stream.getvalue().count("\r") > 1000
    assert (stream.getvalue()[0], stream.getvalue()[-1]) == (plain.getvalue()[0], plain.getvalue()[-1])


def test_an_interrupted_bar_says_where():
    stream = io.StringIO()
    for step in LogBar(range(1000), file=stream):
        if step == 7:
            break
    assert len(stream.getvalue().splitlines()) == 1
    assert "7/1000" in stream.getvalue()


def test_a_bar_of_unknown_length_writes_a_line_a_minute(monkeypatch):
    now = iter(range(0, 10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: 7.0 * next(now))
    lines = follow(io.StringIO(), steps=40, total=None)
    assert 3 <= len(lines) <= 12
    assert "40it" in lines[-1]


def test_nothing_is_written_where_bars_are_off():
    assert follow(io.StringIO(), disable=True) == []


def test_all_bars_of_pyterrier_are_adapted(monkeypatch):
    """Those that a user chose stay."""
    assert pt.tqdm is LogBar
    monkeypatch.setattr(pt, "tqdm", tqdm.tqdm)
    progress.adapt_to_logs()
    assert pt.tqdm is LogBar
    monkeypatch.setattr(pt, "tqdm", str)
    progress.adapt_to_logs()
    assert pt.tqdm is str
