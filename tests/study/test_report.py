import dataclasses

import pytest

from benchmarks.study.__main__ import main
from benchmarks.study.comparison import Results
from benchmarks.study.records import Records
from benchmarks.study.report import Report
from benchmarks.study.run import Run

UNTOUCHED = Run("tiny", loss="untouched")


def rows_of(table: str) -> list[dict[str, str]]:
    """The rows of a table in Markdown, by column."""
    header, _, *lines = table.splitlines()
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    rows = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows.append(dict(zip(columns, cells, strict=True)))
    return rows


def mean_of(difference: str) -> float:
    """The mean of a difference that is written with its interval."""
    return float(difference.partition(" ")[0])


@pytest.fixture
def report(make_results, tmp_path):
    """A report of three systems: untouched, one that is better with two seeds, and one that is worse."""
    results = make_results(
        (UNTOUCHED, 0.5),
        (Run("tiny", loss="infonce"), 0.4),
        (Run("tiny", loss="adaptive", in_batch=True, seed=1), 0.6),
        (Run("tiny", loss="adaptive", in_batch=True, seed=2), 0.64),
    )
    return Report(results, tmp_path / "report")


def test_table_has_a_row_a_system_sorted_by_dev(report):
    adaptive, untouched, infonce = rows_of(report.table("made", "tiny", ["batch_size"]))
    assert [row["loss"] for row in (adaptive, untouched, infonce)] == ["adaptive, in-batch", "untouched", "InfoNCE"]
    assert adaptive["batch size"] == "16"
    assert adaptive["seeds"] == "2"
    assert float(adaptive["seed sd"]) == pytest.approx(0.02, abs=0.002)
    assert mean_of(adaptive["difference"]) == pytest.approx(0.12, abs=0.01)
    assert adaptive["training s"] == "10"
    assert infonce["seed sd"] == ""
    assert float(infonce["p"]) < 0.01
    assert untouched["difference"] == untouched["p"] == untouched["training s"] == ""


def test_table_corrects_p_values_within_the_table(report):
    """Holm's correction doubles the lower of two p-values."""
    _, _, together = rows_of(report.table("made", "tiny"))
    (alone,) = rows_of(report.table("made", "tiny", loss="infonce"))
    assert together["difference"] == alone["difference"]
    assert float(together["p"]) >= float(alone["p"])


def test_table_compares_with_what_is_asked_for(report):
    (adaptive,) = rows_of(report.table("made", "tiny", against=report.results.infonce, loss="adaptive"))
    assert mean_of(adaptive["difference"]) == pytest.approx(0.22, abs=0.01)


def test_table_shows_costs_and_space_if_asked_for(report):
    (adaptive,) = rows_of(report.table("made", "tiny", costs=True, space=True, loss="adaptive"))
    assert adaptive["total s"] == "10"
    assert adaptive["similarity"] == "0.10"
    assert adaptive["dimensions"] == "60"
    assert adaptive["representational similarity"] == "0.90"
    assert adaptive["target"] == "0.50"


def test_table_needs_systems(report):
    with pytest.raises(KeyError, match="no records of the grid 'made' with {'loss': 'softmax'} on tiny"):
        report.table("made", "tiny", loss="softmax")


def test_varying_names_the_settings_that_a_table_does_not_show_anyhow(report):
    assert report.varying("made") == []
    report.results.study.grids["made"].append(dataclasses.replace(UNTOUCHED, triples=256, learning_rate=1.0))
    assert report.varying("made") == ["triples", "learning_rate"]


def test_a_table_of_what_was_searched_on_dev_has_dev_only(report):
    for record in report.results.records.values():
        record["queries"].clear()
        del record["means"]["tiny/test"]
    adaptive, untouched, infonce = rows_of(report.table("made", "tiny", ["learning_rate"]))
    assert adaptive == {
        "loss": "adaptive, in-batch",
        "learning rate": "0.0001",
        "seeds": "2",
        "nDCG@10 on dev": "0.620",
        "training s": "10",
    }
    assert (untouched["training s"], infonce["nDCG@10 on dev"]) == ("", "0.400")


def test_claims_of_a_section_are_corrected_together(report):
    infonce, adaptive = report.results.one("made", loss="infonce"), report.results.one("made", loss="adaptive")
    untouched = report.results.untouched(infonce.run)
    rows = [
        ("adaptive, untouched", adaptive, untouched, "difference"),
        ("InfoNCE, untouched", infonce, untouched, "non-inferiority"),
        ("itself", untouched, untouched, "equivalence"),
    ]
    claims = report.claims(rows)
    better, undecided, equivalent = rows_of(report.claims_table(claims))
    assert list(better)[:3] == ["systems", "difference", "p, different"]
    assert (better["verdict"], undecided["verdict"], equivalent["verdict"]) == ("better", "undecided", "equivalent")
    assert (undecided["p, different"], undecided["p, not behind by 0.005"]) == ("", "1")
    assert equivalent["p, equivalent, within 0.01"] == "0"
    (alone,) = rows_of(report.claims_table(report.claims(rows[:1])))
    assert float(better["p, different"]) >= 1.9 * float(alone["p, different"])
    assert mean_of(better["difference"]) == pytest.approx(claims.difference("adaptive, untouched").mean, abs=0.001)


def test_claims_of_the_same_systems_share_a_row(report):
    adaptive = report.results.one("made", loss="adaptive")
    rows = [("itself", adaptive, adaptive, kind) for kind in ("difference", "equivalence")]
    (row,) = rows_of(report.claims_table(report.claims(rows)))
    assert (row["p, different"], row["verdict"]) == ("1", "undecided")


def test_a_page_with_a_broken_link_is_not_written(report, tmp_path):
    template = tmp_path / "page.md.j2"
    template.write_text("# Costs\n{{ link('Costs') }} {{ link('Quality') }}\n")
    with pytest.raises(ValueError, match="sections that it does not have: .'#quality'"):
        report.write(template)
    assert not (report.folder / "RESULTS.md").exists()


def test_a_template_collects_claims_and_draws_them(report, tmp_path):
    template = tmp_path / "page.md.j2"
    template.write_text(
        "{% set rows, fields = [], [] %}\n"
        "{% set before = results.tuned('made', loss='untouched') %}\n"
        "{% for loss in ['adaptive', 'infonce'] %}\n"
        "{% do rows.append((loss, results.tuned('made', loss=loss), before, 'difference')) %}\n"
        "{% endfor %}\n"
        "{% set found = claims(rows) %}\n"
        "{% for row in rows %}\n"
        "{% do fields.append((row[0], 'tiny', 'own', found.difference(row[0]), found.verdicts(row[0]))) %}\n"
        "{% endfor %}\n"
        "{{ figure('differences', draw_differences(fields)) }}\n"
        "{{ folded('claims', claims_table(found)) }}\n"
    )
    page = report.write(template).read_text()
    assert "![differences](figures/differences.png)\n<details>\n<summary>claims</summary>\n\n| systems |" in page
    assert (report.folder / "figures" / "differences.png").stat().st_size


def test_a_template_has_the_methods_of_the_report(report, tmp_path):
    template = tmp_path / "page.md.j2"
    template.write_text(
        "{{ study.name }} {{ 1024 | thousands }} {{ results.machine() }}\n"
        "{{ table('made', 'tiny') }}\n"
        "{{ figure('lines', draw_by_triples('made')) }}\n"
        "{{ figure('none', draw_distributions([])) }}\n"
    )
    page = report.write(template).read_text()
    assert page.startswith("made up 1,024 P, 2 cores, no GPU, fp32\n| loss |")
    assert page.endswith("![lines](figures/lines.png)\n![none](figures/none.png)\n")
    assert (tmp_path / "report" / "figures" / "lines.png").stat().st_size


def section_of(page: str, heading: str) -> str:
    """What a page has below a heading, up to the next one."""
    return page.partition(f"# {heading}\n")[2].partition("\n#")[0].strip()


def test_a_report_without_a_template_has_what_a_reader_asks_for(finished, tmp_path):
    options = ["--records", str(finished.records), "--to", str(tmp_path)]
    assert main(["report", str(finished.path), *options]) == 0
    page = (tmp_path / "RESULTS.md").read_text()
    number = len(finished.study.runs)
    assert f"{number} of the {number} runs have a record.\n" in page
    table, _, figure = section_of(page, "tiny").partition("\n\n")
    best = {row["loss"]: row for row in rows_of(table)}
    assert len(best) == len(rows_of(table)) == 7  # one of the two static margins
    untouched = Records(finished.records).read()[finished.study.runs[0].key]["means"]["tiny/test"]["nDCG@10"]
    assert best["untouched"]["nDCG@10"] == f"{untouched:.3f}"
    assert best["InfoNCE"]["seeds"] == "2"
    assert figure == "![differences](figures/differences.png)"
    assert (tmp_path / "figures" / "differences.png").stat().st_size
    claims = rows_of(section_of(page, "Which of them differ").rpartition("\n\n")[2])
    assert len(claims) == 6
    for grid in finished.study.grids:
        assert f"<summary>{grid}, tiny</summary>" in page
    *costs, everything = rows_of(section_of(page, "Cost").partition("\n\n")[0])
    assert [row["grid"] for row in costs] == list(finished.study.grids)
    assert everything["records"] == str(number) == str(sum(int(row["records"]) for row in costs))


def test_a_report_needs_neither_all_records_nor_the_untouched_model(make_results, tmp_path):
    results = make_results((Run("tiny", loss="infonce"), 0.4), (Run("tiny", loss="infonce", pooling="cls"), 0.2))
    results.study.grids["made"].append(Run("tiny", loss="infonce", seed=2))
    page = Report(results, tmp_path).write().read_text()
    assert "2 of the 3 runs have a record; open: made 1.\n" in page
    mean, cls = rows_of(section_of(page, "tiny"))
    assert (mean["pooling"], cls["pooling"], mean["difference"]) == ("mean", "cls", "")
    assert "tiny, cls, InfoNCE minus mean, InfoNCE" in section_of(page, "Which of them differ")


def test_a_report_of_a_search_has_dev_only(make_results, tmp_path):
    results = make_results((Run("tiny", loss="infonce"), 0.4))
    for record in results.records.values():
        record["queries"].clear()
    page = Report(results, tmp_path).write().read_text()
    assert "The best of each loss" not in page
    assert "| InfoNCE | 1 | 0.400 | 10 |" in page


def test_transfer_table_has_the_collections_that_were_not_trained_with(finished, tmp_path):
    """The two collections of the study are alike."""
    report = Report(Results(finished.study, Records(finished.records)), tmp_path)
    untouched, distributed = rows_of(report.transfer_table("forgetting", "tiny", ["other"]))
    assert list(untouched) == ["loss", "tiny/test", "difference, tiny/test", "other/test", "difference, other/test"]
    assert untouched["difference, tiny/test"] == ""
    for row in (untouched, distributed):
        assert row["other/test"] == row["tiny/test"]
        assert row["difference, other/test"] == row["difference, tiny/test"]
    assert distributed["difference, tiny/test"] != ""
