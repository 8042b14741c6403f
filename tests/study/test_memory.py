import time

import numpy as np
import pytest

from benchmarks.study.memory import PeakMemory, resident


def test_peak_memory_sees_what_was_there_for_a_moment():
    with PeakMemory() as memory:
        before = resident("RssAnon")
        values = np.ones(30_000_000)
        time.sleep(0.2)
        del values
    assert memory.peak > before + 200


def test_resident_names_a_line_that_is_not_there():
    with pytest.raises(KeyError, match="has no line 'Nothing'"):
        resident("Nothing")
