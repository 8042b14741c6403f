import pytest

from benchmarks.study import figures
from benchmarks.study.comparison import Results
from benchmarks.study.records import Records


@pytest.fixture
def results(finished):
    return Results(finished.study, Records(finished.records))


def labels_of(axes):
    return [line.get_label() for line in axes.lines]


def test_draw_by_seconds_has_a_line_a_loss(results):
    (axes,) = figures.draw_by_seconds(results, "more").axes
    assert axes.get_title() == "tiny"
    assert axes.get_xlabel() == "seconds, those of the teacher included"
    assert labels_of(axes) == ["adaptive, in-batch", "MarginMSE 0.5", "untouched"]


def test_draw_by_triples_sorts_the_points_of_a_line(results):
    (axes,) = figures.draw_by_triples(results, "variants").axes
    assert labels_of(axes) == ["distributed", "InfoNCE", "softmax", "static 0.2", "static 0.5", "untouched"]
    assert axes.lines[0].get_xdata().tolist() == [8]


def test_draw_by_margin_has_parameter_free_losses_as_lines(results):
    (axes,) = figures.draw_by_margin(results, "variants").axes
    assert labels_of(axes) == ["static", "distributed"]
    assert axes.lines[0].get_xdata().tolist() == [0.2, 0.5]


def test_draw_distributions_has_a_panel_a_system_that_recorded_them(results):
    systems = results.grid("variants")
    drawn = figures.draw_distributions(systems)
    titles = [axes.get_title() for axes in drawn.axes]
    assert titles == ["distributed\ntiny", "static 0.2\ntiny", "static 0.5\ntiny"]
    for axes in drawn.axes:
        assert labels_of(axes) == ["target", "margin"]
