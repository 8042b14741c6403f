"""The exchange of two folders in one step."""

import sys

import pytest

from pyterrier_selfdistill.utils import folders as module
from pyterrier_selfdistill.utils.folders import exchange


@pytest.fixture
def folders(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    return first, second


@pytest.mark.skipif(sys.platform != "linux", reason="a system call of Linux")
def test_exchange_gives_each_folder_the_name_of_the_other(folders):
    first, second = folders
    assert exchange(first, second)
    assert (first / "name").read_text() == "second"
    assert (second / "name").read_text() == "first"


@pytest.mark.skipif(sys.platform != "linux", reason="a system call of Linux")
def test_exchange_of_a_folder_that_is_missing_is_an_error(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        exchange(folders[0], tmp_path / "nothing")
    assert (folders[0] / "name").read_text() == "first"


class _System:
    """A C library whose call fails, or which has none."""

    def __init__(self, **calls):
        self.__dict__.update(calls)


@pytest.mark.parametrize("code", module.UNKNOWN_TO_THE_SYSTEM)
def test_exchange_says_that_the_file_system_cannot(folders, monkeypatch, code):
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: _System(renameat2=lambda *_: -1))
    monkeypatch.setattr(module.ctypes, "get_errno", lambda: code)
    assert not exchange(*folders)


def test_exchange_says_that_the_system_has_no_such_call(folders, monkeypatch):
    monkeypatch.setattr(module.ctypes, "CDLL", lambda *_, **__: _System())
    assert not exchange(*folders)
    assert (folders[0] / "name").read_text() == "first"
