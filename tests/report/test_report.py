"""Comparisons: numbers as pt.Experiment and SciPy have them, and a page that takes input as text and loads nothing."""

import html
import itertools
import json
import re
from html.parser import HTMLParser

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.measures import RR, nDCG
from scipy import stats

from pyterrier_selfdistill import compare
from pyterrier_selfdistill.report import page

EVIL = """</script></template><script>document.title = "taken"</script><img src=x onerror='document.title="taken"'>"'"""
MEASURES = [nDCG @ 10, RR @ 10]


@pytest.fixture(scope="module")
def systems(_collection):
    """Results of all documents: ``right`` ranks as judged, ``wrong`` against the judgements, ``mixed`` both ways."""
    judged = _collection.results.merge(_collection.qrels)
    spread = pd.Series(range(len(judged))) / len(judged)
    return {
        "wrong": judged.assign(score=-judged["label"] + spread),
        "right": judged.assign(score=judged["label"] + spread),
        "mixed": judged.assign(score=judged["label"].where(judged["qid"] < "q4", -judged["label"]) + spread),
    }


@pytest.fixture(scope="module")
def comparison(systems, _collection):
    return compare(systems, _collection.topics, _collection.qrels, MEASURES, baseline="mixed")


def test_pipelines_are_compared_as_an_experiment_does(names, encoder, collection):
    text = pt.text.get_text(names["dataset"])
    systems = {"bm25": names["bm25"], "re-ranked": names["bm25"] >> text >> encoder}
    comparison = compare(systems, collection.topics, collection.qrels, corpus=names["dataset"])
    options = {"baseline": 0, "correction": "holm"}
    expected = pt.Experiment(systems, collection.topics, collection.qrels, MEASURES, **options)
    pd.testing.assert_frame_equal(comparison.table[expected.columns], expected)
    assert "Texts of documents are not shown" not in comparison.to_html()


def test_intervals_are_those_of_a_bootstrap(comparison):
    table = comparison.table.set_index("name")
    values = comparison.per_query.pivot(index=["measure", "qid"], columns="name", values="value").loc["nDCG@10"]
    row = table.loc["wrong"]
    options = {"method": "percentile", "random_state": 1}
    for column, sample in {"": values["mixed"], "difference ": values["wrong"] - values["mixed"]}.items():
        found = table.loc["mixed" if not column else "wrong", [f"nDCG@10 {column}{end}" for end in ("low", "high")]]
        expected = stats.bootstrap((sample,), np.mean, **options).confidence_interval
        assert found.tolist() == pytest.approx(tuple(expected), abs=0.03)
    assert row["nDCG@10 difference"] == pytest.approx(row["nDCG@10"] - table.loc["mixed", "nDCG@10"])
    assert table.loc["mixed"].filter(like="difference").isna().all()
    # all its queries have the same reciprocal rank
    assert table.loc["right", ["RR@10 low", "RR@10 high"]].isna().all()


# the t-test of pt.Experiment
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")
def test_systems_run_once_on_judged_queries_and_one_query_has_no_interval(systems, collection):
    asked = []

    def run(topics):
        asked.append(topics["qid"].tolist())
        return systems["right"]

    # an index may be named like a column
    topics = collection.topics.set_index("qid", drop=False)
    qrels = collection.qrels[collection.qrels["qid"] == "q1"]
    comparison = compare({"first": pt.apply.generic(run), "second": systems["wrong"]}, topics, qrels, MEASURES)
    assert asked == [["q1"]]
    assert set(comparison.results["first"]["qid"]) == {"q1"}
    assert comparison.table.filter(regex="low|high").isna().all(axis=None)


def test_queries_without_results_count_and_equal_systems_have_no_differences(systems, collection):
    everything = systems["right"]
    given = [everything, everything.drop(columns="text"), everything[everything["qid"] != "q0"]]
    comparison = compare(given, collection.topics, collection.qrels, [RR @ 10], names=["all", "same", "partial"])
    assert comparison.table["RR@10"].tolist() == [1, 1, 7 / 8]
    assert comparison.table.loc[1, ["RR@10 difference", "RR@10 +", "RR@10 -"]].tolist() == [0, 0, 0]
    # where a t interval of the mean would end at 1.17, and that of the difference at 0.17
    assert comparison.table.loc[2, ["RR@10 high", "RR@10 difference high"]].tolist() == [1, 0]
    assert "Found nothing." in comparison.to_html()


IDENTITY = pt.Transformer.identity()
RESULTS = pd.DataFrame([["q0", "d1", 0.5]], columns=["qid", "docno", "score"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"systems": {}}, ValueError, "two or more systems"),
        ({"systems": [IDENTITY, IDENTITY]}, ValueError, "distinct names"),
        ({"systems": [IDENTITY, RESULTS]}, ValueError, "give names="),
        ({"names": ["a"]}, ValueError, "already"),
        ({"baseline": "other"}, ValueError, r"baseline .*\['wrong', 'right', 'mixed'\], got 'other'"),
        ({"systems": {"x": RESULTS.drop(columns="score"), "y": RESULTS}}, ValueError, r"'x' .*\['score'\] missing"),
        ({"systems": {"x": RESULTS[:0], "y": RESULTS}}, ValueError, "'x' .* 8 judged queries, got none"),
        ({"systems": {"x": RESULTS.assign(docno=1), "y": RESULTS}}, TypeError, "docno of the results of 'x'"),
        ({"systems": {"x": RESULTS.assign(score=np.nan), "y": RESULTS}}, TypeError, "'x' must have numbers"),
        ({"systems": {"x": pd.concat([RESULTS] * 2), "y": RESULTS}}, ValueError, "'d1' twice for 'q0'"),
    ],
)
def test_faulty_systems_are_refused(systems, collection, change, error, message):
    options = {"systems": systems, "topics": collection.topics, "qrels": collection.qrels} | change
    with pytest.raises(error, match=message):
        compare(**options)


def test_the_page_shows_rankings_side_by_side_and_replaces_a_file_only_when_asked(comparison, tmp_path):
    path = comparison.save(tmp_path / "new" / "report.html")
    text = path.read_text(encoding="utf-8")
    assert text.count('<details class="query"') == 4 + 4
    opened = re.search(r'<details class="query"[^>]* open>.*?</details>\n', text, flags=re.DOTALL)[0]
    for expected in (r"\+1\.000", "label 2", r"▲ from \d+", "<mark>"):
        assert re.search(expected, opened)
    path.write_text("earlier")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        comparison.save(path)
    comparison.save(path, overwrite=True)
    assert path.read_text(encoding="utf-8") == text


def test_changes_tell_where_documents_went():
    before = pd.DataFrame([["q", "a", 2.0], ["q", "b", 1.0]], columns=["qid", "docno", "score"])
    after = pd.DataFrame([["q", "b", 2.0], ["q", "c", 1.0]], columns=["qid", "docno", "score"])
    qrels = pd.DataFrame([["q", "b", 1], ["q", "a", 0], ["q", "x", 2]], columns=["qid", "docno", "label"])
    qrels = pd.concat([qrels, qrels.assign(qid="r"), qrels.assign(qid="s")])
    values = pd.DataFrame({"before": [0.2, 0.5, 0.5], "after": [0.7, 0.5, 0.1]}, index=["q", "r", "s"])
    changes = page.query_changes(before, after, values, {"q": "sort", "r": "plot", "s": "read"}, qrels)
    assert [change["qid"] for change in changes["gained"]] == ["q"]
    assert [change["qid"] for change in changes["lost"]] == ["s"]
    change = changes["gained"][0]
    before, after = ([tuple(document.values()) for document in change[side]] for side in ("before", "after"))
    assert before == [("a", 1, None, 0, False), ("b", 2, 1, 1, True)]
    assert after == [("b", 1, 2, 1, True), ("c", 2, None, None, False)]
    assert [(document["docno"], document["rank"]) for document in change["relevant"]] == [("x", None), ("b", 1)]


def test_rankings_order_ties_as_measures_do():
    results = pd.DataFrame([["q", f"d{n}", 1.0] for n in range(5)], columns=["qid", "docno", "score"])
    run = results.set_axis(["query_id", "doc_id", "score"], axis=1)
    for docno, rank in page.rankings(results, {"q"})["q"].items():
        measured = ir_measures.calc_aggregate([RR], [ir_measures.Qrel("q", docno, 1)], run)
        assert measured[RR] == pytest.approx(1 / rank)


@pytest.mark.parametrize("text", ["Sort THE rows, sorted; sort.", "", "Straße <b>sort</b>"])
def test_matching_pieces_are_the_text(text):
    pieces = page.matching_pieces(text, "how to SORT the strasse")
    assert "".join(piece for piece, _ in pieces) == text
    assert {piece.casefold() for piece, is_match in pieces if is_match} <= {"sort", "strasse"}
    assert any(is_match for _, is_match in pieces) == ("sort" in text.casefold())


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


def compare_with(suffix, systems, collection, encoder):
    """Compare systems and describe an encoder, with a suffix to all names, queries, identifiers and texts."""
    encoder.name = f"/home/me/model {suffix}"
    encoder.training_summary = {"seed": suffix, "history": [{"step": 1, "loss": 0.5, suffix: 0.5}]}
    qrels = collection.qrels.assign(docno=collection.qrels["docno"] + suffix, qid=collection.qrels["qid"] + suffix)
    given = {}
    for name in ("wrong", "right"):
        changed = {column: systems[name][column] + suffix for column in ("qid", "docno", "text")}
        given[name + suffix] = systems[name].assign(**changed)
    return compare(given, collection.topics + suffix, qrels, [nDCG @ 10], encoders={suffix: encoder})


def test_input_becomes_no_markup_and_the_page_loads_nothing(systems, collection, encoder):
    harmless = compare_with(re.sub(r"[<>'\"]", ".", EVIL), systems, collection, encoder).to_html()
    comparison = compare_with(EVIL, systems, collection, encoder)
    text = comparison.to_html()
    parsed = Page(text)
    tags = parsed.tags
    assert [tag for tag, _ in tags] == [tag for tag, _ in Page(harmless).tags]
    assert json.loads(parsed.scripts[0])["systems"] == ["wrong" + EVIL, "right" + EVIL]
    assert EVIL not in text
    assert "/home/me" not in text
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts" [^>]*></iframe>', comparison._repr_html_())
    assert html.unescape(frame[1]) == text
    for tag, attributes in tags:
        assert tag not in ("link", "iframe", "base", "object", "embed")
        assert attributes.get("src", "data:").startswith("data:")
        assert not {"href", "srcset", "action"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "th" or "scope" in attributes
    assert not re.search(r"@import|url\(", text)
    policy = next(attributes["content"] for _, attributes in tags if "http-equiv" in attributes)
    assert policy.startswith("default-src 'none'; ")
    assert "script-src 'unsafe-inline'" not in policy
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    identifiers = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_the_page_has_a_title_a_table_to_copy_and_the_system_in_focus_first(systems, collection):
    others = list(systems)[1:]
    options = {"title": "Plots & rows", "focus": others[-1]}
    page = compare(systems, collection.topics, collection.qrels, ["RR", "nDCG@10"], **options).to_html()
    assert "<h1>Plots &amp; rows</h1>" in page
    assert "name,RR,nDCG@10\n" in page
    assert r"\begin{tabular}{lrr}" in page
    assert re.findall("<option .*selected>(.*)</option>", page) == [html.escape(others[-1])]
    with pytest.raises(ValueError, match="focus must be one of the systems"):
        compare(systems, collection.topics, collection.qrels, focus=next(iter(systems)))


def test_long_texts_of_many_queries_make_no_large_page():
    qids = [f"query-{number}" for number in range(40)]
    rows = [(qid, f"document-{rank}", 11.0 - rank) for qid in qids for rank in range(10)]
    results = pd.DataFrame(rows, columns=["qid", "docno", "score"]).assign(text="sort the rows " * 1000)
    topics = pd.DataFrame({"qid": qids, "query": "what is the meaning of " * 10})
    qrels = pd.DataFrame({"qid": qids, "docno": "document-1", "label": 1})
    scores = np.random.default_rng(0).uniform(size=(2, len(results)))
    systems = {name: results.assign(score=score) for name, score in zip(["first", "second"], scores, strict=True)}
    text = compare(systems, topics, qrels, [RR]).to_html()
    assert len(text.encode()) < 1e6
    assert len(json.loads(Page(text).scripts[0])["qids"]) == 40
