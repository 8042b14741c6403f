"""What large collections take: the arithmetic, and that the page says what the rates of the repository give."""

import pytest

from benchmarks.large_collections import PAGE, SPACE, SPEED, Rates, find, make_tables, read_rates

RATES = Rates(encoding=100, int8=200, one_query=90, hundred_queries=20, joining=1e8, start=10, dimension=250)


def test_one_machine():
    table = make_tables(RATES, documents=[10**6])["one machine"]
    assert (
        table.splitlines()[-1].strip().replace(SPACE, " ")
        == '"1,000,000", "1 GB", "1.3 GB", "2.8 h", "83 min", "90 ms", "20 ms"'
    )


def test_several_machines_share_the_encoding_and_not_the_joining():
    table = make_tables(RATES, documents=[10**6], machines=[1, 10], price=2)["several machines"]
    one, ten = (line.strip().replace(SPACE, " ") for line in table.splitlines()[-2:])
    assert one == '"1,000,000", "1", "2.8 h", "10 s", "2.8", "2 GB", "90 ms", "5.57"'
    assert ten == '"1,000,000", "10", "17 min", "10 s", "2.8", "2 GB", "9 ms", "5.62"'


def test_the_page_is_of_the_rates_that_were_measured():
    page = PAGE.read_text()
    for name, table in make_tables(read_rates(SPEED)).items():
        message = "run python -m benchmarks.large_collections --write"
        assert f".. {name}\n{table}\n.. /{name}\n" in page, message


def test_a_rate_that_is_missing_is_an_error():
    with pytest.raises(ValueError, match="expected a row with .*make speed"):
        find("| backend | size |\n|---|---|\n| retriever | 10 |\n", {"backend": "other"})
