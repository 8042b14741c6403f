"""The cache of triples: complete or not there, with every row accounted for."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyterrier as pt
import pytest

from pyterrier_selfdistill.data import cache as module
from pyterrier_selfdistill.data.cache import TripleCache, find_faults

COLUMNS = ["query", "positive", "negative"]
ROWS = [("sort", "sort rows", "plot a file"), ("plot", "plot a matrix", "read a value")]


def table_of(rows):
    columns = zip(*rows, strict=True)
    return pa.table(dict(zip(COLUMNS, columns, strict=True)), schema=pa.schema(dict.fromkeys(COLUMNS, pa.string())))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of PyTerrier's where no triples are yet; the folder that they will be in."""
    monkeypatch.setenv("PYTERRIER_HOME", str(tmp_path))
    return Path(pt.io.pyterrier_home()) / "selfdistill" / "triples"


@pytest.fixture(params=["memory", "folder"])
def cache(request, home):
    """A cache of each kind."""
    signatures = {"memory": None, "folder": ["source", 1]}
    return TripleCache(signatures[request.param], {"source": "rows"})


def write(cache, rows, limit=None):
    with cache.writer(limit) as writer:
        writer.read(len(rows))
        writer.add(table_of(rows))


def write_and_fail(cache, error):
    with cache.writer() as writer:
        writer.read(2)
        writer.add(table_of(ROWS))
        raise error


def test_cache_loads_what_was_written(cache, texts_of):
    assert not cache.exists()
    with cache.writer() as writer:
        for row in ROWS:
            writer.read(1)
            writer.add(table_of([row]))
    assert cache.exists()
    triples = cache.load()
    assert texts_of(triples) == ROWS
    assert triples.summary == {
        "source": "rows",
        "read": 2,
        "triples": 2,
        "dropped": {},
        "queries": 2,
        "positives": 2,
        "negatives": 1,
        "fingerprint": "4a4caeaab4b6b06c",
    }


def test_cache_is_found_again_by_its_signature(home, texts_of):
    write(TripleCache(["a", 1], {}), ROWS)
    again = TripleCache(["a", 1], {})
    assert again.exists()
    assert texts_of(again.load()) == ROWS
    assert again.load().dataset.cache_files
    assert not TripleCache(["a", 2], {}).exists()


def test_cache_of_another_format_is_not_found(home, monkeypatch):
    write(TripleCache(["a"], {}), ROWS)
    monkeypatch.setattr(module, "CACHE_FORMAT", module.CACHE_FORMAT + 1)
    assert not TripleCache(["a"], {}).exists()


def test_cache_cannot_be_loaded_before_it_is_written(cache):
    with pytest.raises(FileNotFoundError, match="no triples of {'source': 'rows'} yet"):
        cache.load()


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError("no space"), KeyboardInterrupt()], ids=repr)
def test_writer_that_fails_leaves_nothing(cache, home, error):
    with pytest.raises(type(error)):
        write_and_fail(cache, error)
    assert not cache.exists()
    assert not list(home.glob("*")) + list(home.glob(".*"))
    write(cache, ROWS)
    assert cache.exists()


def test_writer_of_no_triples_leaves_nothing(cache, home):
    with pytest.raises(ValueError, match="no triples are there to train with, of 2 rows: 2 x no text in 'negative'"):
        write(cache, [("a", "b", None), ("a", "b", "")])
    assert not cache.exists()
    assert not list(home.glob("*")) + list(home.glob(".*"))


def test_two_writers_of_the_same_folder(home, texts_of):
    """The second waits for the first, and both load the triples of that."""
    first = TripleCache(["a"], {})
    second = TripleCache(["a"], {})
    pool = ThreadPoolExecutor()
    with first.writer() as slow:
        waiting = pool.submit(write, second, ROWS[:1])
        slow.read(len(ROWS))
        slow.add(table_of(ROWS))
        assert not waiting.done()
    waiting.result()
    assert texts_of(first.load()) == texts_of(second.load()) == ROWS
    assert list(home.iterdir()) == [second.folder]


def test_writer_that_fails_lets_one_that_waited_write(home, texts_of):
    first = TripleCache(["a"], {})
    second = TripleCache(["a"], {})
    pool = ThreadPoolExecutor()
    written = []

    def fail():
        with first.writer():
            written.append(pool.submit(write, second, ROWS))
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fail()
    written[0].result()
    assert texts_of(second.load()) == ROWS
    assert list(home.iterdir()) == [second.folder]


def test_writer_is_full_at_the_limit(cache, texts_of, is_accounted):
    added = 0
    with cache.writer(limit=3) as writer:
        for _ in range(5):
            writer.read(2)
            writer.add(table_of(ROWS))
            added += 1
            if writer.full:
                break
    assert added == 2
    triples = cache.load()
    assert texts_of(triples) == [*ROWS, ROWS[0]]
    assert triples.summary["dropped"] == {"row beyond the first 3": 1}
    assert is_accounted(triples.summary)


def test_writer_without_a_limit_is_never_full(cache):
    with cache.writer() as writer:
        writer.read(2)
        writer.add(table_of(ROWS))
        assert not writer.full


def test_writer_drops_rows_that_cannot_be_trained_with(cache, texts_of, is_accounted, caplog):
    """Each under the first of its faults."""
    faulty = [(None, None, "c"), ("a", " ", "c"), ("a", "b", ""), ("a", "b", "b ")]
    with caplog.at_level(logging.WARNING), cache.writer() as writer:
        writer.read(8)
        writer.drop("duplicate row", 2)
        writer.drop("pair beyond 3 of its query", 0)
        writer.add(table_of([*faulty, *ROWS]))
    triples = cache.load()
    assert texts_of(triples) == ROWS
    assert triples.summary["dropped"] == {
        "duplicate row": 2,
        "no text in 'query'": 1,
        "no text in 'positive'": 1,
        "no text in 'negative'": 1,
        "negative with the text of the positive": 1,
    }
    assert is_accounted(triples.summary)
    assert "6 of 8 rows were dropped: 2 x duplicate row, 1 x no text in 'query'" in caplog.text


def test_writer_writes_identifiers_in_place_of_texts(cache, home, texts_of):
    """Texts are fingerprinted all the same."""
    identifiers = [("1", "d1", "d2"), ("2", "d5", "d6")]
    checksums = np.array([1, 2], dtype=np.uint64)
    with cache.writer() as writer:
        writer.read(2)
        writer.keep(table_of(ROWS), checksums, checksums, table_of(identifiers))
    triples = cache.load()
    assert texts_of(triples) == identifiers
    texts = TripleCache(None, {})
    write(texts, ROWS)
    assert triples.summary["fingerprint"] == texts.load().summary["fingerprint"]


def test_writer_counts_distinct_queries_and_positives(cache):
    rows = [("a", "b", "c"), ("a", "b", "d"), ("a", "e", "c"), ("f", "b", "c")]
    write(cache, rows)
    summary = cache.load().summary
    assert (summary["queries"], summary["positives"]) == (2, 3)


def test_find_faults_of_missing_texts_and_of_negatives_that_are_the_positive():
    rows = [*ROWS, ("", "b", "c"), ("a", "", "c"), ("a", "b", ""), ("a", "b", "b")]
    faults = {reason: np.flatnonzero(is_faulty).tolist() for reason, is_faulty in find_faults(table_of(rows), "")}
    assert faults == {
        "no text in 'query'": [2],
        "no text in 'positive'": [3],
        "no text in 'negative'": [4],
        "negative with the text of the positive": [5],
    }


def test_writer_of_no_triples_names_the_source():
    cache = TripleCache(None, {"source": "a.tsv"})
    with pytest.raises(ValueError, match="^a.tsv: no triples are there .* of 0 rows; give rows of a"), cache.writer():
        pass
