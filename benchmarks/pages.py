"""Pages of figures, whose sections are written by the commands that measured them.

A page such as ``benchmarks/SPEED.md`` is text with marked sections, each between ``<!-- name -->`` and
``<!-- /name -->``, or, in reStructuredText, ``.. name`` and ``.. /name``.
"""

from __future__ import annotations

import datetime
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.machine import describe_machine, describe_versions

RELIABILITY = Path(__file__).with_name("RELIABILITY.md")
SPEED = Path(__file__).with_name("SPEED.md")

MARKS = {".md": "<!-- {} -->", ".rst": ".. {}"}
"""The comment that marks a section, by the kind of the page."""


def write_section(name: str, text: str, page: Path) -> None:
    r"""Replace a section of a page.

    Args:
        name: The name between the marks.
        text: Markdown, or reStructuredText.
        page: The page.

    Raises:
        ValueError: If the page has no such section, or more than one.

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
    pattern = re.compile(f"(^{re.escape(begin)}\n).*?(^{re.escape(end)}$)", flags=re.DOTALL | re.MULTILINE)
    before = page.read_text(encoding="utf-8")
    sections = pattern.findall(before)
    if len(sections) != 1:
        raise ValueError(f"expected one section {name!r} in {page}, got {len(sections)}; mark it with {begin}")
    opening, closing = sections[0]
    after = pattern.sub(lambda _: f"{opening}{text.strip()}\n{closing}", before)
    page.write_text(after, encoding="utf-8")


def section(command: str, *parts: str) -> str:
    """Put a section together: what made it, and its parts.

    Args:
        command: The command line.
        *parts: Tables and remarks.

    Returns:
        Markdown.
    """
    machine = describe_machine()
    versions = [f"{name} {number}" for name, number in describe_versions().items()]
    made = (
        f"`{command}` on {datetime.date.today()}, version {version()} of the repository, {machine['processor']}, "
        f"{machine['cores']} cores, Python {machine['python']}, {', '.join(versions)}."
    )
    return "\n\n".join([made, *filter(None, parts)])


def version() -> str:
    """Return the commit of the repository, if it is one."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table in Markdown.

    Args:
        header: The names of the columns.
        rows: Their values.

    Returns:
        The table.

    Example:
        >>> print(table(["operation", "kills"], [["save", 25]]))
        | operation | kills |
        |---|---|
        | save | 25 |
    """
    lines = [_row(header), "|" + "---|" * len(header)]
    lines += map(_row, rows)
    return "\n".join(lines)


def _row(values: Iterable[object]) -> str:
    """Write a row of a table."""
    cells = [str(value).replace("|", "\\|") for value in values]
    return f"| {' | '.join(cells)} |"
