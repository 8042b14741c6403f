"""Comparisons from systems to page."""

import html
import re

import pandas as pd
import pyterrier as pt
import pytest
from pyterrier.measures import RR, nDCG

from pyterrier_selfdistill import compare


@pytest.fixture
def comparison(systems, collection):
    return compare(systems, collection.topics, collection.qrels, [nDCG @ 10, RR @ 10], baseline="wrong")


def test_pipelines_are_compared_as_an_experiment_does(names, encoder, collection):
    text = pt.text.get_text(names["dataset"])
    systems = {"bm25": names["bm25"], "re-ranked": names["bm25"] >> text >> encoder}
    comparison = compare(systems, collection.topics, collection.qrels, corpus=names["dataset"])
    expected = pt.Experiment(
        systems, collection.topics, collection.qrels, [nDCG @ 10, RR @ 10], baseline=0, correction="holm"
    )
    pd.testing.assert_frame_equal(comparison.table[expected.columns], expected)
    by_query = pt.Experiment(systems, collection.topics, collection.qrels, [nDCG @ 10, RR @ 10], perquery=True)
    pd.testing.assert_frame_equal(comparison.per_query, by_query)
    assert "Texts of documents are not shown" not in comparison.to_html()


def test_each_system_runs_once_on_judged_queries(systems, collection):
    asked = []

    def run(topics):
        asked.append(topics["qid"].tolist())
        return systems["right"][systems["right"]["qid"].isin(topics["qid"])]

    qrels = collection.qrels[collection.qrels["qid"].isin(["q1", "q2"])]
    compare({"first": pt.apply.generic(run), "second": systems["wrong"]}, collection.topics, qrels)
    assert asked == [["q1", "q2"]]


def test_results_are_ranked_again(systems, collection):
    again = pt.apply.doc_score(lambda row: len(row["text"]))
    comparison = compare({"given": systems["right"], "again": again}, collection.results, collection.qrels)
    assert len(comparison.topics) == 8
    assert len(comparison.results["again"]) == len(collection.results)


def test_systems_that_agree_have_no_differences(systems, collection):
    results = systems["right"].drop(columns="text")
    comparison = compare({"a": results, "b": results}, collection.topics, collection.qrels, [RR @ 10])
    assert comparison.table.loc[1, ["RR@10 difference", "RR@10 +", "RR@10 -"]].tolist() == [0, 0, 0]
    assert "Texts of documents are not shown" not in comparison.to_html()


def test_a_query_for_which_nothing_is_found_counts(systems, collection):
    partial = systems["right"][systems["right"]["qid"] != "q0"]
    comparison = compare([systems["right"], partial], collection.topics, collection.qrels, names=["all", "partial"])
    assert comparison.table["RR@10"].tolist() == [1, 7 / 8]
    assert "Found nothing." in comparison.to_html()


def test_the_page_shows_rankings_side_by_side(comparison):
    text = comparison.to_html()
    assert text.count('<details class="query"') == 8 + 4
    opened = re.search(r'<details class="query"[^>]* open>.*?</details>\n', text, flags=re.DOTALL)[0]
    assert "+1.000" in opened
    assert "label 2" in opened
    assert re.search(r"▲ from \d+", opened)
    assert "<mark>" in opened


def test_rows_of_an_index_that_is_named_like_a_column(systems, collection):
    indexed = collection.topics.set_index("qid", drop=False)
    assert len(compare(systems, indexed, collection.qrels).topics) == 8


def test_save_replaces_only_when_asked(comparison, tmp_path):
    path = comparison.save(tmp_path / "new" / "report.html")
    assert path.read_text(encoding="utf-8") == comparison.to_html()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        comparison.save(path)
    path.write_text("earlier")
    comparison.save(path, overwrite=True)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_notebooks_show_the_page_apart_from_theirs(comparison):
    shown = comparison._repr_html_()
    source = re.fullmatch(r'<iframe srcdoc="([^"]*)" sandbox="allow-scripts" [^>]*></iframe>', shown)[1]
    assert html.unescape(source) == comparison.to_html()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"systems": {}}, ValueError, "two or more systems"),
        ({"systems": "bm25"}, ValueError, "two or more systems"),
        ({"baseline": "other"}, ValueError, r"one of the systems \['wrong', 'right', 'mixed'\], got 'other'"),
        ({"names": ["a"]}, ValueError, "already"),
        ({"measures": ["nDCG@10"]}, TypeError, "list of measures"),
        ({"encoders": {"mine": "model"}}, TypeError, "encoders or trainers by name"),
    ],
)
def test_what_cannot_be_compared_is_refused(systems, collection, change, error, message):
    options = {"systems": systems, "topics": collection.topics, "qrels": collection.qrels} | change
    with pytest.raises(error, match=message):
        compare(**options)


def test_queries_need_judgements_with_integer_labels(systems, collection):
    with pytest.raises(ValueError, match="expected judgements of the topics, got none"):
        compare(systems, collection.topics, collection.qrels.assign(qid="other"))
    with pytest.raises(ValueError, match="labels of qrels must be integers"):
        compare(systems, collection.topics, collection.qrels.assign(label=0.5))
