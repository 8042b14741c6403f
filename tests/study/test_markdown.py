from pathlib import Path

import pandas as pd
import pytest

from benchmarks.study.markdown import anchor, broken_links, folded, link, to_markdown

PAGE = """# What the study shows

```sh
# Not a heading
```

## 1. Does `trusting` help? (no)

## Costs

## Costs
"""


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("1. Does `trusting` help? (no)", "1-does-trusting-help-no"),
        ("What the paper reports, what we measured", "what-the-paper-reports-what-we-measured"),
        ("Mined negatives: BM25 - and more", "mined-negatives-bm25---and-more"),
        ("nDCG@10_of all", "ndcg10_of-all"),
    ],
)
def test_anchor_is_that_of_github(heading, name):
    assert anchor(heading) == name


def test_links_to_headings_are_not_broken():
    links = [link("1. Does `trusting` help? (no)"), link("What the study shows", "above"), "[again](#costs-1)"]
    assert broken_links(PAGE + " ".join(links)) == []


def test_links_to_what_is_not_there_are_broken():
    links = [link("Not a heading"), "[thrice](#costs-2)", "[elsewhere](README.md#costs)"]
    assert broken_links(PAGE + " ".join(links)) == ["#not-a-heading", "#costs-2"]


def test_folded_content_is_markdown_and_not_html():
    lines = folded("summary", "\n| a |\n").splitlines()
    assert lines == ["<details>", "<summary>summary</summary>", "", "| a |", "", "</details>"]


def test_links_of_the_page_in_the_repository_are_not_broken():
    page = Path(__file__).parents[2] / "benchmarks" / "RESULTS.md"
    text = page.read_text()
    assert broken_links(text) == []
    assert text.count("<details>") == text.count("</details>")


def test_a_table_leaves_out_what_is_missing():
    table = pd.DataFrame({"loss": ["InfoNCE", "calibrated"], "scale": [20.0, None]})
    assert to_markdown(table).splitlines()[2:] == ["| InfoNCE | 20.0 |", "| calibrated |  |"]
