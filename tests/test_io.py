"""Folders that are written atomically."""

import pytest

from pyterrier_selfdistill.io import atomic_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_atomic_folder_is_there_on_exit_only(tmp_path):
    with atomic_folder(tmp_path / "deep" / "model") as folder:
        (folder / "weights").write_text("0.5")
        assert not (tmp_path / "deep" / "model").exists()
    assert names(tmp_path / "deep" / "model") == ["weights"]
    assert names(tmp_path / "deep") == ["model"]


def test_atomic_folder_does_not_replace_unasked(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="is there already.*overwrite=True"), atomic_folder(tmp_path / "model"):
        pass
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with (
            pytest.raises(FileExistsError, match="got a file"),
            atomic_folder(tmp_path / "file", overwrite=overwrite),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_atomic_folder_replaces_the_whole_folder(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with atomic_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "new").write_text("new")
        assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path / "model") == ["new"]
    assert names(tmp_path) == ["model"]


def test_atomic_folder_keeps_what_was_there_if_writing_fails(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")

    def fail(folder):
        (folder / "new").write_text("new")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"), atomic_folder(tmp_path / "model", overwrite=True) as folder:
        fail(folder)
    assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]


def test_atomic_folder_follows_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "model").is_symlink()
    assert names(tmp_path / "disk") == ["new"]
