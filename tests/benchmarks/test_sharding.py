from benchmarks.sharding import measure_joining


def test_joining_is_measured():
    (row,) = measure_joining(103, 8, 4)
    assert (row["vectors"], row["shards"]) == (103, 4)
    assert row["disk, MB"] == round(103 * 8 * 4 / 1e6, 3)
    assert row["seconds"] > 0
