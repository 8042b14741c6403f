"""What sections of the page on reliability say of faults that were seen."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

MOST_FAULTS = 20
"""How many faults a section lists."""


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


def _without_places(text: str) -> str:
    """Leave out where files are on this machine, and the random parts of the names of temporary ones."""
    relative = re.sub(r"(?<![\w.])/(?:[^\s'/]+/)+", "", text)
    return re.sub(r"(?<=tmp)[a-z0-9_]{8}|(?<=\.)[a-z0-9_]{8}(?=\.tmp)", "*", relative)
