"""Pages of figures, whose sections are written by the commands that measured them.

A page such as ``benchmarks/SPEED.md`` has sections between ``<!-- name -->`` and ``<!-- /name -->``, or, in
reStructuredText, between ``.. name`` and ``.. /name``.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import commit, describe_machine, describe_versions

RELIABILITY = Path(__file__).with_name("RELIABILITY.md")
SPEED = Path(__file__).with_name("SPEED.md")

SHOWN = ("torch", "sentence-transformers", "pyterrier-dr")
"""The packages whose versions a section names."""

MARKS = {".md": "<!-- {} -->", ".rst": ".. {}"}
"""The comment that marks a section, by the kind of the page."""


def write_section(name: str, text: str, page: Path) -> None:
    r"""Replace a section of a page.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = Path(folder) / "page.md"
        ...     _ = page.write_text("# Kills\n<!-- kills -->\nnone yet\n<!-- /kills -->\n")
        ...     write_section("kills", "| 200 | kills |", page)
        ...     print(page.read_text())
        # Kills
        <!-- kills -->
        | 200 | kills |
        <!-- /kills -->
    """
    begin, end = MARKS[page.suffix].format(name), MARKS[page.suffix].format(f"/{name}")
    before = page.read_text(encoding="utf-8")
    pattern = re.compile(f"^{re.escape(begin)}\n.*?^{re.escape(end)}$", flags=re.DOTALL | re.MULTILINE)
    after, number = pattern.subn(lambda _: f"{begin}\n{text.strip()}\n{end}", before)
    if number != 1:
        raise ValueError(f"expected one section {name!r} in {page}, got {number}; mark it with {begin} and {end}")
    page.write_text(after, encoding="utf-8")


def section(command: str, *parts: str) -> str:
    """Put a section together: the command that made it, when, where and with which versions, and its parts."""
    machine, versions = describe_machine(), describe_versions()
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN)
    made = f"`{command}` ({datetime.date.today()}, commit {commit() or 'unknown'})"
    where = f"{machine['gpu'] or machine['processor']}, {machine['cores']} cores, Python {machine['python']}, {shown}"
    return "\n\n".join([f"{made}: {where}.", *filter(None, parts)])


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table in Markdown.

    Example:
        >>> print(table(["operation", "kills"], [["save", 25]]))
        | operation | kills |
        |---|---|
        | save | 25 |
    """
    lines = [list(header), *rows]
    cells = [[str(value).replace("|", "\\|") for value in row] for row in lines]
    written = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([written[0], "|" + "---|" * len(header), *written[1:]])


def records_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Write records as a table with a column for each of their fields, and fractions with three digits.

    Example:
        >>> print(records_table([{"backend": "retriever", "ms": 1.2345}, {"backend": "faiss"}]))
        | backend | ms |
        |---|---|
        | retriever | 1.23 |
        | faiss |  |
    """
    names = list(dict.fromkeys(name for record in records for name in record))
    return table(names, [[_written(record.get(name, "")) for name in names] for record in records])


def _written(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
