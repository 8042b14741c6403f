"""Options are checked because they are typed, and errors say what they must be."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from pyterrier_selfdistill.utils.checks import FieldNames, FolderPath, PositiveInteger, Share, checked


@checked
def search(
    count: PositiveInteger = 10,
    share: Share | None = None,
    mode: Literal["exact", "fast"] = "exact",
    verbose: bool = False,
    fields: FieldNames | None = None,
    folder: FolderPath = "index",
    frame: pd.DataFrame | None = None,
    **others: int,
) -> tuple[Any, ...]:
    return count, share, mode, verbose, fields, folder, others


def test_options_are_checked_because_they_are_typed():
    for wrong, message in [
        ({"count": 0}, "count must be a positive integer, got 0"),
        ({"count": 1.0}, "count must be a positive integer, got 1.0"),
        ({"count": True}, "count must be a positive integer, got True"),
        ({"share": 1.5}, "share must be a number from 0 to 1, got 1.5"),
        ({"share": float("nan")}, "share must be a number from 0 to 1, got nan"),
        ({"mode": "slow"}, "mode must be 'exact' or 'fast', got 'slow'"),
        ({"verbose": 1}, "verbose must be a valid boolean, got 1"),
        ({"fields": "text"}, r"fields must be a list of field names such as \['title', 'text'\], got 'text'"),
        ({"fields": []}, r"fields must be a list of field names .* got \[\]"),
        ({"folder": ""}, "folder must be the path of a folder, got ''"),
    ]:
        with pytest.raises(ValueError, match=message):
            search(**wrong)
    with pytest.raises(TypeError, match=r"frame must be an instance of DataFrame, got \[1\], a list"):
        search(frame=[1])
    with pytest.raises(TypeError, match="missing|multiple"):
        search(1, count=1)


def test_options_take_scalars_of_numpy_and_leave_others_alone():
    assert search(np.int64(3), np.float32(0.5), verbose=np.bool_(True), others="x") == (
        3, 0.5, "exact", True, None, "index", {"others": "x"},
    )  # fmt: skip
    assert type(search(np.int64(3))[0]) is int


@checked
@dataclass(frozen=True)
class Depth:
    count: PositiveInteger = 10


def test_options_of_a_dataclass_are_checked_where_it_is_made():
    @checked
    def search(depth: Depth = Depth(5), other: Depth | None = None) -> int:
        return depth.count

    assert search() == 5
    assert search(Depth(np.int64(3)), Depth()) == 3
    with pytest.raises(TypeError, match="depth must be an instance of Depth, got 3, a int"):
        search(3)
    with pytest.raises(ValueError, match="other must be an instance of Depth, got 3"):
        search(other=3)
    with pytest.raises(ValueError, match="count must be a positive integer, got 0"):
        Depth(0)


def test_checked_class_keeps_its_name_and_its_checks():
    @checked
    class Searcher:
        """Searches."""

        def __init__(self, count: PositiveInteger) -> None:
            self.count = count

    assert Searcher(np.int64(2)).count == 2
    assert Searcher.__name__ == "Searcher"
    with pytest.raises(ValueError, match="count must be a positive integer, got -1"):
        Searcher(-1)
