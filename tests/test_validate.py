"""Checks of what users give: errors say what was given, what was expected, and what to do."""

import numpy as np
import pandas as pd
import pytest

from pyterrier_selfdistill.utils.checks import (
    require_column_names,
    require_columns,
    require_distinct_columns,
    require_identifiers,
    require_judged,
    require_strings,
    require_texts,
    require_topics,
)

TOPICS = pd.DataFrame({"qid": ["1", "2"], "query": ["sort", "plot"]})
QRELS = pd.DataFrame({"qid": ["1"], "docno": ["d1"], "label": [1]})


def test_require_columns():
    require_columns(TOPICS, ["qid", "query"], "topics")
    with pytest.raises(TypeError, match="topics must be a DataFrame with the columns .*, got a list"):
        require_columns([("1", "sort")], ["qid", "query"], "topics")
    with pytest.raises(ValueError, match=r"got \['qid', 'query'\]: \['docno'\] missing"):
        require_columns(TOPICS, ["qid", "docno"], "results")


def test_require_distinct_columns():
    require_distinct_columns(TOPICS, "topics")
    twice = pd.concat([TOPICS, TOPICS["qid"]], axis=1)
    for check in (lambda: require_distinct_columns(twice, "topics"), lambda: require_columns(twice, ["qid"], "topics")):
        with pytest.raises(
            ValueError, match=r"topics must have distinct columns, got \['qid'\] more than once; rename"
        ):
            check()


@pytest.mark.parametrize("values", [[1, 2], ["1", None], ["1", float("nan")]])
def test_require_identifiers(values):
    require_identifiers(TOPICS, "qid", "topics")
    with pytest.raises(TypeError, match="the qid of topics must be a string, got .* of 2 rows; convert with"):
        require_identifiers(pd.DataFrame({"qid": values}), "qid", "topics")


@pytest.mark.parametrize("value", [None, float("nan"), 7, ["sort"], b"sort"])
def test_require_texts_rejects_what_is_not_a_string(value):
    frame = TOPICS.astype(object)
    frame.at[1, "query"] = value
    with pytest.raises(TypeError, match="'query' must hold a string, got another type in 1 of 2 rows .'2'"):
        require_texts(frame, "query", "qid")


def test_require_texts_rejects_half_a_character():
    frame = TOPICS.assign(query=pd.Series(["naïve Zürich 🙂", "sort \ud800"], dtype=object))
    with pytest.raises(ValueError, match="'query' must hold text, got half a character in 1 of 2 rows .'2'"):
        require_texts(frame, "query", "qid")
    require_texts(frame[:1], "query", "qid")


def test_require_texts_takes_an_empty_column_of_arrow():
    require_texts(TOPICS[:0].astype("string[pyarrow]"), "query", "qid")


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (None, TypeError, "texts must be a list of strings, got None, a NoneType"),
        (3, TypeError, "texts must be a list of strings, got 3, a int"),
        ("sort", TypeError, "texts must be a list of strings, got 'sort', a str"),
        (b"sort", TypeError, "texts must be a list of strings, got b'sort', a bytes"),
        ({"sort": 1}, TypeError, "texts must be a list of strings, got .*, a dict"),
        (["sort", None], TypeError, r"texts\[1\] is None, of type NoneType; give strings"),
        (["sort", "\ud800"], ValueError, r"texts\[1\] is '.ud800', with half a character in it; decode"),
    ],
)
def test_require_strings(values, error, message):
    with pytest.raises(error, match=message):
        require_strings(values, "texts")
    assert require_strings(iter(["sort", "é"]), "texts") == ["sort", "é"]


def test_require_column_names():
    require_column_names(TOPICS, "topics")
    with pytest.raises(TypeError, match=r"columns of topics must have strings as names, got \[7, None\]; rename"):
        require_column_names(pd.DataFrame([["1", 2, 3]], columns=["qid", 7, None]), "topics")
    with pytest.raises(ValueError, match="topics must have distinct columns"):
        require_column_names(TOPICS[["qid", "qid"]], "topics")


def test_require_texts_may_allow_missing_and_empty_ones():
    frame = pd.DataFrame({"docno": ["d1", "d2", "d3"], "text": ["plot", None, " "]})
    require_texts(frame, "text", "docno", empty=True, missing=True)
    with pytest.raises(TypeError, match="in 1 of 3 rows"):
        require_texts(frame, "text", "docno", empty=True)
    with pytest.raises(ValueError, match="must hold a text, got an empty one in 1 of 3 rows"):
        require_texts(frame, "text", "docno", missing=True)


def test_require_texts_names_the_column_that_is_missing():
    with pytest.raises(ValueError, match=r"expected a column 'text', got \['qid', 'query'\]; put pt.text.get_text"):
        require_texts(TOPICS, "text", "qid")


@pytest.mark.parametrize(
    ("qrels", "error", "message"),
    [
        (QRELS.drop(columns="label"), ValueError, r"qrels must have the columns .* \['label'\] missing"),
        (
            QRELS.assign(qid=1),
            ValueError,
            "got none: 2 topics with the qid '1', '2' .*, 1 judged queries with 1 .int64",
        ),
        (QRELS.assign(docno=7), TypeError, "the docno of qrels must be a string"),
        (QRELS.assign(label="1"), TypeError, "the labels of qrels must be numbers.*0 of 1 missing"),
        (QRELS.assign(label=np.nan), TypeError, "the labels of qrels must be numbers.*1 of 1 missing"),
    ],
)
def test_require_judged(qrels, error, message):
    require_judged(TOPICS, QRELS)
    with pytest.raises(error, match=message):
        require_judged(TOPICS, qrels)


def test_require_topics():
    require_topics(pd.concat([TOPICS, TOPICS]))
    require_topics(TOPICS.assign(query=["sort", ""]), empty=True)
    for frame, error, message in [
        (TOPICS.assign(qid="1"), ValueError, "one text in all rows, got {'1': .'sort', 'plot'.}"),
        (TOPICS.assign(qid=[1, 2]), TypeError, "the qid of topics must be a string"),
        (TOPICS.assign(query=["sort", None]), TypeError, "column 'query' must hold a string"),
        (TOPICS.assign(query=["sort", ""]), ValueError, "column 'query' must hold a text"),
        (TOPICS[["qid"]], ValueError, "topics must have the columns .*'query'. missing"),
    ]:
        with pytest.raises(error, match=message):
            require_topics(frame)
