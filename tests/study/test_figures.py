import pytest

from benchmarks.study import figures
from benchmarks.study.comparison import Results
from benchmarks.study.records import Records
from benchmarks.study.significance import Difference


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


@pytest.fixture
def fields():
    better = Difference(0.02, 0.01, 0.03, 0.005)
    worse = Difference(-0.04, -0.05, -0.03, 0.005)
    small = Difference(0.0, -0.002, 0.002, 0.001)
    return [
        ("trusting", "docstrings", "own pooling", better, ["better", "not behind"]),
        ("trusting", "docstrings", "raw", worse, ["worse"]),
        ("trusting", "scifact", "raw", small, ["equivalent", "not behind"]),
        ("softmax", "docstrings", "raw", small),
    ]


def test_draw_differences_writes_numbers_intervals_and_marks(fields):
    (axes,) = figures.draw_differences(fields).axes
    written = [text.get_text() for text in axes.texts]
    assert written == [
        "+0.020 ▲",
        "[+0.010, +0.030]",
        "-0.040 ▼",
        "[-0.050, -0.030]",
        "+0.000 ≈≥",
        "[-0.002, +0.002]",
        "+0.000",
        "[-0.002, +0.002]",
        "docstrings",
        "scifact",
    ]
    assert axes.get_xlabel().endswith("▲ better   ▼ worse   ≈ equivalent, within 0.01   ≥ not behind by 0.005")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["trusting", "softmax"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["own pooling", "raw", "raw"]


def test_draw_differences_colors_both_signs_alike_far_from_the_middle(fields):
    (axes,) = figures.draw_differences(fields).axes
    better, worse, none, _ = (patch.get_facecolor() for patch in axes.patches)
    assert better[2] > better[0]
    assert worse[0] > worse[2]
    assert min(none[:3]) > max(min(better[:3]), min(worse[:3]))
    assert sum(worse[:3]) < sum(better[:3]), "twice the difference is not darker"


def test_draw_differences_has_the_width_of_a_page(fields):
    figure = figures.draw_differences(fields)
    assert figure.get_figwidth() * 110 == pytest.approx(900, abs=5)


def test_draw_differences_explains_the_marks_that_it_has(fields):
    (axes,) = figures.draw_differences(fields[:1]).axes
    assert axes.get_xlabel() == "nDCG@10 minus that of InfoNCE, with 95 % intervals   ▲ better"


def test_draw_differences_knows_its_marks(fields):
    with pytest.raises(KeyError, match="splendid"):
        figures.draw_differences([(*fields[0][:4], ["splendid"])])
