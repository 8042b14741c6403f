"""The collector: what of a docstring becomes a query, and what a document."""

import pytest

from pyterrier_selfdistill.datasets import split_docstring


@pytest.mark.parametrize(
    ("docstring", "summary", "text"),
    [
        ("One line.", "One line.", ""),
        ("", "", ""),
        ("Two\n    lines.\n \n\n    Rest\n      indented.\n\n    More.", "Two lines.", "Rest\n  indented.\n\nMore."),
        ("f(x)\nSummary on the next line.\n\nRest.", "Summary on the next line.", "Rest."),
        ("f(x, y=(1, 2)) -> int\n\nf(x)\n\nOverloaded.\n\nRest.", "Overloaded.", "Rest."),
        ("mod.f(x)\n--\n\nText signature.\n\nRest.", "Text signature.", "Rest."),
        ("f(x) is a function.\n\nRest.", "f(x) is a function.", "Rest."),
        ("=====\nTitle\n=====\nBody.\n\nRest.", "Title", "Body.\n\nRest."),
        ("Parameters\n----------\nx : int", "Parameters", "x : int"),
        ("Add  two numbers.\n\nadd two\nnumbers\n\nRest.", "Add two numbers.", "Rest."),
        ("Add two numbers.\n\nTo add two numbers (a, b), call it.", "Add two numbers.", "To  (a, b), call it."),
        ("Too short.\n\nToo short to ask for.", "Too short.", "Too short to ask for."),
    ],
)
def test_split_docstring(docstring, summary, text):
    assert split_docstring(docstring) == (summary, text)
