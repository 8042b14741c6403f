"""The page on reliability, whose sections are written by the commands that measured them.

``benchmarks/RELIABILITY.md`` is text with marked sections, each between ``<!-- name -->`` and ``<!-- /name -->``.
"""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).with_name("RELIABILITY.md")


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    r"""Replace a section of the page.

    Args:
        name: The name between the marks.
        text: Markdown.
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
    pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
    before = page.read_text(encoding="utf-8")
    sections = pattern.findall(before)
    if len(sections) != 1:
        raise ValueError(f"expected one section {name!r} in {page}, got {len(sections)}; mark it with <!-- {name} -->")
    opening, closing = sections[0]
    after = pattern.sub(lambda _: f"{opening}{text.strip()}\n{closing}", before)
    page.write_text(after, encoding="utf-8")
