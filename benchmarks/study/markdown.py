"""Markdown as GitHub renders it: tables, parts that are folded, and links to sections that are there."""

from __future__ import annotations

import re
from collections import Counter

import pandas as pd


def to_markdown(table: pd.DataFrame) -> str:
    """Write a table in Markdown.

    Args:
        table: The table.

    Returns:
        The lines.

    Example:
        >>> print(to_markdown(pd.DataFrame({"loss": ["InfoNCE"], "nDCG@10": [0.5]})))
        | loss | nDCG@10 |
        | --- | --- |
        | InfoNCE | 0.5 |
    """
    header = list(map(str, table.columns))
    present = table.astype(object).where(table.notna(), "")
    rows = [header, ["---"] * len(header), *present.map(str).to_numpy().tolist()]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def folded(summary: str, content: str) -> str:
    """Fold a part of a page, so that only its summary shows until it is clicked.

    Args:
        summary: What shows.
        content: Markdown.

    Returns:
        The part.

    Example:
        >>> print(folded("nfcorpus", "| loss |"))
        <details>
        <summary>nfcorpus</summary>
        <BLANKLINE>
        | loss |
        <BLANKLINE>
        </details>
    """
    # without the blank lines, GitHub takes the content for HTML
    return f"<details>\n<summary>{summary}</summary>\n\n{content.strip()}\n\n</details>"


def anchor(heading: str) -> str:
    """Return what GitHub calls a heading in the address of a page.

    Args:
        heading: The heading.

    Returns:
        The name.

    Example:
        >>> anchor("The defaults, and why")
        'the-defaults-and-why'
    """
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def link(heading: str, text: str | None = None) -> str:
    """Link to a section of the same page, by its heading.

    Args:
        heading: The heading.
        text: What the link says, if not the heading.

    Returns:
        The link.

    Example:
        >>> link("The defaults, and why", "defaults")
        '[defaults](#the-defaults-and-why)'
    """
    return f"[{text or heading}](#{anchor(heading)})"


def broken_links(page: str) -> list[str]:
    r"""Return the links of a page to sections that it does not have.

    Args:
        page: The page, in Markdown.

    Returns:
        The targets.

    Example:
        >>> broken_links("# Costs\n[here](#costs), [there](#quality)")
        ['#quality']
    """
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    anchors: list[str] = []
    counts: Counter[str] = Counter()
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE):
        name = f"#{anchor(heading)}"
        anchors.append(name)
        if counts[name]:  # GitHub calls the second of a name name-1
            anchors.append(f"{name}-{counts[name]}")
        counts[name] += 1
    links = re.findall(r"\]\((#[^)]*)\)", text)
    return [target for target in links if target not in anchors]
