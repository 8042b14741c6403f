"""Sections of the page on reliability: tables, what they were made with, and the faults that were seen."""

from __future__ import annotations

import datetime
import importlib.metadata
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.study.runner import PACKAGES, describe_machine

MOST_FAULTS = 20
"""How many faults a section lists."""


def section(command: str, *parts: str) -> str:
    """Put a section together: what made it, and its parts.

    Args:
        command: The command line.
        *parts: Tables and remarks.

    Returns:
        Markdown.
    """
    machine = describe_machine()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
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


def fault_list(faults: Mapping[str, int] | Iterable[str], title: str = "Faults that were seen") -> str:
    """List faults, each once, with how often it was seen.

    Args:
        faults: The faults, or how often each was seen.
        title: What to call them.

    Returns:
        A list in Markdown; nothing, if there are none.

    Example:
        >>> print(fault_list(["save: left .model.a1b2c3d4.tmp", "save: left .model.e5f6g7h8.tmp"]))
        Faults that were seen:
        <BLANKLINE>
        - save: left .model.*.tmp (2 times)
    """
    counts: Counter[str] = Counter()
    for fault, number in Counter(faults).items():
        counts[_without_places(fault)] += number
    if not counts:
        return ""
    lines = [f"- {fault} ({number} times)" for fault, number in counts.most_common(MOST_FAULTS)]
    if len(counts) > MOST_FAULTS:
        lines.append(f"- and {len(counts) - MOST_FAULTS} others")
    return f"{title}:\n\n" + "\n".join(lines)


def yes_or_no(flag: bool) -> str:
    """Write a flag."""
    return "yes" if flag else "no"


def _row(values: Iterable[object]) -> str:
    """Write a row of a table."""
    cells = [str(value).replace("|", "\\|") for value in values]
    return f"| {' | '.join(cells)} |"


def _without_places(text: str) -> str:
    """Leave out where files are on this machine, and the random parts of the names of temporary ones."""
    relative = re.sub(r"(?<![\w.])/(?:[^\s'/]+/)+", "", text)
    return re.sub(r"(?<=tmp)[a-z0-9_]{8}|(?<=\.)[a-z0-9_]{8}(?=\.tmp)", "*", relative)
