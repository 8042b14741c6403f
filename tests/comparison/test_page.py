"""The page: nothing given to it becomes markup, it loads nothing, it stays small, and its script runs."""

import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from pyterrier.measures import nDCG

from pyterrier_selfdistill import compare
from pyterrier_selfdistill.comparison import page
from pyterrier_selfdistill.comparison.differences import QueryChange, RankedDocument
from pyterrier_selfdistill.comparison.page import (
    SystemChanges,
    code_pieces,
    entry_count,
    p_value,
    signed,
    text_length,
    text_pieces,
)

EVIL = """</script></template><script>document.title = "taken"</script><img src=x onerror='document.title="taken"'>"'"""


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts = [("before the first", {})], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags[-1][0] == "script":
            self.scripts.append(data)


def compare_with(suffix, systems, collection):
    """Compare systems where whatever can be given ends with something: names, queries, identifiers, texts."""
    topics = collection.topics + suffix
    qrels = collection.qrels.assign(docno=collection.qrels["docno"] + suffix, qid=collection.qrels["qid"] + suffix)
    given = {}
    for name, results in systems.items():
        changed = {column: results[column] + suffix for column in ("qid", "docno", "text")}
        given[name + suffix] = results.assign(**changed)
    return compare(given, topics, qrels, [nDCG @ 10])


@pytest.fixture
def evil(systems, collection):
    return compare_with(EVIL, systems, collection)


def test_nothing_that_is_given_becomes_markup(evil, systems, collection):
    harmless = compare_with(re.sub(r"[<>'\"]", ".", EVIL), systems, collection)
    text = evil.to_html()
    parsed = Page(text)
    assert [tag for tag, _ in parsed.tags] == [tag for tag, _ in Page(harmless.to_html()).tags]
    assert json.loads(parsed.scripts[0])["systems"] == [name + EVIL for name in systems]
    assert EVIL not in text
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)


def test_encoders_have_names_that_are_text(systems, collection, encoder):
    encoder.name = EVIL
    encoder.training_summary = {"seed": EVIL, "history": [{"step": 1, "loss": 0.5, EVIL: 0.5}]}
    compared = compare(systems, collection.topics, collection.qrels, encoders={EVIL: encoder})
    assert EVIL not in compared.to_html()


def test_the_page_loads_nothing(systems, collection, encoder):
    text = compare(systems, collection.topics, collection.qrels, encoders={"mine": encoder}).to_html()
    parsed = Page(text)
    for tag, attributes in parsed.tags:
        assert tag not in ("link", "iframe", "base", "object", "embed")
        assert attributes.get("src", "data:").startswith("data:")
        assert not {"href", "srcset", "action"} & set(attributes)
    assert not re.search(r"@import|url\(", text)
    policy = next(attributes["content"] for _, attributes in parsed.tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'unsafe-inline'" not in policy


def test_headings_and_tables_are_accessible(systems, collection, encoder):
    parsed = Page(compare(systems, collection.topics, collection.qrels, encoders={"mine": encoder}).to_html())
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all("scope" in attributes for tag, attributes in parsed.tags if tag == "th")
    identifiers = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def luminance(color):
    channels = [int(color[position : position + 2], 16) / 255 for position in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1])
def test_colors_have_contrast(systems, collection, theme):
    """4.5 to 1, which WCAG 2 asks of text at its level AA."""
    text = compare(systems, collection.topics, collection.qrels).to_html()
    blocks = re.findall(r":root \{(.*?)\}", text, flags=re.DOTALL)
    colors = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[theme]))
    for ink, paper in itertools.product(["ink", "muted", "up", "down", "same"], ["paper", "shade"]):
        light, dark = sorted([luminance(colors[ink]), luminance(colors[paper])], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)


def test_ten_thousand_queries_take_less_than_five_megabytes(monkeypatch):
    monkeypatch.setattr(page, "measure_rows", lambda table, measure: [])
    names = [f"system {number}" for number in range(5)]
    qids = [f"query-{number}" for number in range(10_000)]
    values = pd.DataFrame(np.random.default_rng(0).uniform(size=(10_000, 5)), index=qids, columns=names)
    documents = [RankedDocument(f"document-{rank}", rank, rank + 1, None) for rank in range(1, 11)]
    changed = [QueryChange(qid, "a query of ten words", 0.1, 0.2, documents, documents, []) for qid in qids[:10]]
    text = page.render_page(
        title="large",
        table=pd.DataFrame(),
        measures=["RR"],
        baseline=names[0],
        values=values,
        queries=dict.fromkeys(qids, "what is the meaning of " * 10),
        changes=[SystemChanges(name, changed, changed) for name in names[1:]],
        texts={f"document-{rank}": "sort the rows " * 1000 for rank in range(1, 11)},
        models=[],
    )
    assert len(text.encode()) < 5e6
    assert len(json.loads(Page(text).scripts[0])["qids"]) == 10_000


def test_texts_share_a_budget():
    documents = [RankedDocument("d", 1, 1, None)] * 10
    change = QueryChange("q", "sort", 0, 1, documents, documents, [])
    assert text_length(entry_count([SystemChanges("x", [change], [])])) == page.TEXT_LENGTH
    assert text_length(entry_count([SystemChanges("x", [change] * 1000, [])])) == page.TEXT_BUDGET / 20_000


def test_text_pieces_are_cut_twice():
    text = "sort " * 100
    pieces = text_pieces(text, "", 300)
    assert len(pieces["start"][0][0]) <= page.TEXT_START < len(pieces["rest"][0][0]) + page.TEXT_START <= 300
    assert pieces["is_cut"]
    assert not text_pieces("sort", "", 300)["is_cut"]


def test_formats():
    assert (signed(0.12345), signed(-0.5)) == ("+0.123", "\N{MINUS SIGN}0.500")
    assert (p_value(0.0412), p_value(1e-9)) == ("0.041", "< 0.001")
    assert code_pieces("seed `42`") == [("seed ", False), ("42", True)]


def shown_by_browser(folder, text):
    """Return the document that Chromium has made of a page, after its scripts ran."""
    (folder / "report.html").write_text(text, encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom"]
    address = f"file://{folder}/report.html"
    return subprocess.run([*command, address], check=True, capture_output=True, text=True, timeout=120).stdout


USER = """
<script>
const key = (name) => plot.dispatchEvent(new KeyboardEvent("keydown", {key: name}));
chooser.value = "1";
chooser.dispatchEvent(new Event("change"));
key("ArrowRight");
key("ArrowRight");
told.querySelector("button").click();
</script>
"""
"""Chooses the second system, goes to the query that gained second most, and opens its rankings."""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_script_runs_and_no_other(evil, tmp_path):
    shown = shown_by_browser(tmp_path, evil.to_html())
    assert 'class="points up"' in shown
    assert re.search(r'id="changes-1" hidden', shown)
    assert "<title>taken" not in shown


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_points_tell_their_query(evil, tmp_path):
    """Without its policy, so that another script may play the user; escaping alone keeps the others out."""
    text = re.sub("<meta http-equiv=.*?>", "", evil.to_html())
    shown = shown_by_browser(tmp_path, text.replace("</body>", f"{USER}</body>"))
    assert re.search(r'id="changes-0" hidden', shown)
    told = re.search(r'<div id="told".*?</div>', shown, flags=re.DOTALL)[0]
    assert "0.000" in told
    qid = re.search(r"q\d", told)[0]
    second = shown[shown.index('id="changes-1"') :]
    opened = re.findall(r'<details class="query" data-qid="(q\d).* open="">', second)
    assert len(opened) == 2
    assert opened[1] == qid
    assert "<title>taken" not in shown
