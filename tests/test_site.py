"""The links of the documentation as a site are checked; ``make docs`` builds it, and finds pages without a link."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


FAULTS = {
    "missing.html": "no such file",
    "other.html#nowhere": "no such anchor",
    "mailto:nDCG@10": "write a measure as",
}


def test_links_are_checked(tmp_path):
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
    check_links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_links)
    links = ["other.html#there", "#here", "https://elsewhere.org/page#anchor", *FAULTS]
    (tmp_path / "page.html").write_text("".join(f'<p id="here"><a href="{link}">a link</a></p>' for link in links))
    (tmp_path / "other.html").write_text('<h1 id="there"></h1>')
    broken = sorted(check_links.broken_links(tmp_path))
    assert len(broken) == len(FAULTS)
    assert all(any(link in line and fault in line for line in broken) for link, fault in FAULTS.items())
