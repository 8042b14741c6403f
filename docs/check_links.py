"""Check the links between the pages of a site, also those of raw HTML: ``python docs/check_links.py FOLDER``."""

import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page links to, and the anchors that it has.

    Args:
        path: The file.

    Attributes:
        links: The values of ``href`` and ``src``.
        anchors: The values of ``id`` and ``name``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the links and anchors of an element."""
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


def broken_links(site: Path) -> Iterator[str]:
    """Find links of a site to files or anchors of it that are not there, and measures that were taken for addresses.

    Args:
        site: The folder of the site.

    Yields:
        A line for each: the page, the link, and what it lacks.
    """
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        if "_modules" in path.parts:
            continue  # source code, whose links back have the anchor of another name where a module has two
        for link in dict.fromkeys(page.links):
            parts = urlsplit(link)
            if parts.scheme == "mailto":
                yield f"{path.relative_to(site)}: {unquote(unescape(link))}: write a measure as ``nDCG@10``"
            if parts.scheme or parts.netloc:
                continue  # another site, or data
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file():
                yield f"{path.relative_to(site)}: {link}: there is no such file"
            elif anchor and target in pages and anchor not in pages[target].anchors:
                yield f"{path.relative_to(site)}: {link}: the page has no such anchor"


if __name__ == "__main__":
    broken = list(broken_links(Path(sys.argv[1]).resolve()))
    print("\n".join(broken), file=sys.stderr, end="\n" * bool(broken))
    sys.exit(bool(broken))
