"""Folders that are written atomically, by one process at a time."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from pyterrier_selfdistill.utils import folders as io
from pyterrier_selfdistill.utils.folders import (
    FolderInUseError,
    artifact_kind,
    atomic_file,
    atomic_folder,
    folder_lock,
    recover,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def anything(folder):
    """Recognize any folder as one to be replaced."""
    return True


@pytest.fixture
def model(tmp_path):
    """A folder that is there."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    return folder


@pytest.fixture(params=["exchange", "two renames"])
def system(request, monkeypatch):
    """Systems that can exchange two folders, and others."""
    if request.param == "two renames":
        monkeypatch.setattr(io, "exchange", lambda first, second: False)


def write(path, when, reached):
    """Replace a folder, in a process of its own, which waits to be killed or kills itself at some moment."""

    def die(*arguments):
        reached.set()
        os.kill(os.getpid(), signal.SIGKILL)

    exchange, rename = io.exchange, Path.rename
    if when == "after the exchange":
        io.exchange = lambda first, second: exchange(first, second) and die()
    if when == "between two renames":
        io.exchange = lambda first, second: False
        Path.rename = lambda self, target: rename(self, target) and die()
    with atomic_folder(path, overwrite=True, recognize=anything, doing="saving an encoder") as folder:
        (folder / "new").write_text("new")
        if when == "while writing":
            reached.set()
            time.sleep(60)


@pytest.fixture
def writer():
    """Start a process that replaces a folder, and wait for the moment at which it waits or kills itself."""
    processes = []

    def start(path, when):
        context = multiprocessing.get_context("fork")
        reached = context.Event()
        process = context.Process(target=write, args=(path, when, reached))
        processes.append(process)
        process.start()
        assert reached.wait(30)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


# --- locks ----------------------------------------------------------------------------------------------------------


def test_folder_lock_says_who_has_it(writer, model):
    process = writer(model, "while writing")
    expected = rf"model' is in use: process {process.pid} on \S+ is saving an encoder there, since 20.*; wait"
    with pytest.raises(FolderInUseError, match=expected), folder_lock(model, "training"):
        pass
    assert names(model) == ["old"]


def test_folder_lock_dies_with_its_process(writer, model):
    process = writer(model, "while writing")
    process.kill()
    process.join()
    assert names(model.parent) == [".model.lock", ".model.unfinished", "model"]
    with folder_lock(model, "training"):
        assert json.loads((model.parent / ".model.lock").read_text())["pid"] == os.getpid()
    assert names(model.parent) == [".model.unfinished", "model"]


def test_folder_lock_keeps_another_thread_away(model):
    refused = []

    def write():
        try:
            with folder_lock(model, "saving"):
                pass
        except FolderInUseError as error:
            refused.append(str(error))

    with folder_lock(model, "training"):
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert f"process {os.getpid()} " in refused[0]


def test_folder_lock_is_of_one_folder(model):
    with folder_lock(model, "training"), folder_lock(model / "best", "saving"), folder_lock(model.parent, "moving"):
        pass
    assert names(model) == ["old"]


def test_folder_lock_of_a_link_is_that_of_the_folder(model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    with folder_lock(tmp_path / "link", "training"), pytest.raises(FolderInUseError), folder_lock(model, "saving"):
        pass


def test_folder_lock_lets_one_of_many_in(tmp_path):
    inside, most, tries = [], [], 200

    def write():
        for _ in range(tries):
            try:
                with folder_lock(tmp_path / "model", "saving"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except FolderInUseError:
                pass

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert names(tmp_path) == []


def test_folder_lock_lies_in_a_folder_that_cannot_be_replaced(model, monkeypatch):
    monkeypatch.setattr(io.os.path, "ismount", lambda path: True)
    with folder_lock(model, "training"):
        assert names(model) == [".lock", "old"]
    assert names(model) == ["old"]
    with (
        pytest.raises(FileExistsError, match="is a mount point"),
        atomic_folder(model, overwrite=True, recognize=anything),
    ):
        pass


def test_folder_lock_without_a_note_says_less(model, monkeypatch):
    with folder_lock(model, "training"):
        (model.parent / ".model.lock").write_text("")
        with pytest.raises(FolderInUseError, match="another process is writing there"), folder_lock(model, "saving"):
            pass


# --- atomic folders -------------------------------------------------------------------------------------------------


def test_atomic_folder_is_there_on_exit_only(tmp_path):
    with atomic_folder(tmp_path / "deep" / "model") as folder:
        (folder / "weights").write_text("0.5")
        assert not (tmp_path / "deep" / "model").exists()
    assert names(tmp_path / "deep" / "model") == ["weights"]
    assert names(tmp_path / "deep") == ["model"]


def test_atomic_folder_has_the_permissions_of_other_folders(tmp_path):
    (tmp_path / "other").mkdir()
    with atomic_folder(tmp_path / "model"):
        pass
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_atomic_folder_does_not_replace_unasked(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(FileExistsError, match="is there already.*overwrite=True"), atomic_folder(tmp_path / "model"):
        pass
    (tmp_path / "file").write_text("mine")
    for overwrite in (False, True):
        with (
            pytest.raises(FileExistsError, match="got a file"),
            atomic_folder(tmp_path / "file", overwrite=overwrite, recognize=anything),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_atomic_folder_replaces_the_whole_folder(model, system):
    with atomic_folder(model, overwrite=True, recognize=anything) as folder:
        (folder / "new").write_text("new")
        assert names(model) == ["old"]
    assert names(model) == ["new"]
    assert names(model.parent) == ["model"]


def test_atomic_folder_replaces_an_empty_folder(tmp_path, system):
    (tmp_path / "model").mkdir()
    with atomic_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path / "model") == ["new"]


def test_atomic_folder_replaces_only_what_is_recognized(model):
    for name in ("thesis.tex", "notes", "figures"):
        (model / name).write_text("mine")
    expected = "model' holds figures, notes, old and 1 more, which is not what would be written there"
    for recognize in (None, lambda folder: False):
        with (
            pytest.raises(FileExistsError, match=expected),
            atomic_folder(model, overwrite=True, recognize=recognize),
        ):
            pass
    assert names(model) == ["figures", "notes", "old", "thesis.tex"]
    assert names(model.parent) == ["model"]


def test_atomic_folder_does_not_replace_what_appeared_meanwhile(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"), atomic_folder(tmp_path / "model"):
        (tmp_path / "mine").rename(tmp_path / "model")
    assert names(tmp_path / "model") == ["thesis.tex"]
    assert names(tmp_path) == ["model"]


def test_atomic_folder_is_written_by_one_at_a_time(tmp_path):
    with (
        atomic_folder(tmp_path / "model", doing="building an index"),
        pytest.raises(FolderInUseError, match="is building an index there"),
        atomic_folder(tmp_path / "model"),
    ):
        pass


def test_atomic_folder_keeps_what_was_there_if_writing_fails(model):
    def fail(folder):
        (folder / "new").write_text("new")
        raise RuntimeError("no model")

    with (
        pytest.raises(RuntimeError, match="no model"),
        atomic_folder(model, overwrite=True, recognize=anything) as folder,
    ):
        fail(folder)
    assert names(model) == ["old"]
    assert names(model.parent) == ["model"]


def test_atomic_folder_puts_back_what_it_cannot_replace(model, monkeypatch):
    monkeypatch.setattr(io, "exchange", lambda first, second: False)
    with (
        pytest.raises(FileNotFoundError),
        atomic_folder(model, overwrite=True, recognize=anything) as folder,
    ):
        shutil.rmtree(folder)
    assert names(model) == ["old"]
    assert names(model.parent) == ["model"]


def test_atomic_folder_follows_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "model").is_symlink()
    assert names(tmp_path / "disk") == ["new"]


# --- what a killed writer leaves ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("when", "content"),
    [
        ("while writing", ["old"]),
        pytest.param(
            "after the exchange",
            ["new"],
            marks=pytest.mark.skipif(sys.platform != "linux", reason="a system call of Linux"),
        ),
        ("between two renames", ["old"]),
    ],
)
def test_a_killed_writer_loses_nothing(writer, model, when, content):
    process = writer(model, when)
    process.kill()
    process.join()
    recover(model)
    assert names(model) == content
    with atomic_folder(model, overwrite=True, recognize=anything) as folder:
        (folder / "newer").write_text("newer")
    assert names(model) == ["newer"]
    assert names(model.parent) == ["model"]


def test_the_next_writer_puts_back_what_a_killed_one_moved_away(writer, model):
    writer(model, "between two renames").join()
    assert not model.exists()
    with pytest.raises(FileExistsError, match="is there already"), atomic_folder(model):
        pass
    assert names(model) == ["old"]
    assert names(model.parent) == ["model"]


def test_recover_leaves_a_living_writer_alone(writer, model):
    writer(model, "while writing")
    recover(model)
    assert names(model.parent / ".model.unfinished") == ["new"]


def test_recover_waits_for_a_living_writer(model, monkeypatch):
    monkeypatch.setattr(io, "PATIENCE", 60.0)
    replaced = model.parent / ".model.replaced"
    with folder_lock(model, "writing"):
        model.rename(replaced)
        reader = threading.Thread(target=recover, args=[model])
        reader.start()
        replaced.rename(model)
        reader.join()
    assert names(model) == ["old"]


def test_recover_has_nothing_to_do(tmp_path):
    recover(tmp_path / "nothing")
    assert names(tmp_path) == []


# --- what the system refuses ----------------------------------------------------------------------------------------


@pytest.fixture
def read_only(tmp_path_factory):
    """A folder that may not be written; the system manager becomes somebody else to be refused."""
    folder = tmp_path_factory.mktemp("read-only")
    is_root = os.geteuid() == 0
    if is_root:
        for parent in folder.parents[:3]:
            if parent.stat().st_mode & 0o777 == 0o700:
                parent.chmod(0o711)
        os.setresuid(65534, 65534, 0)
    else:
        folder.chmod(0o555)
    yield folder
    if is_root:
        os.setresuid(0, 0, 0)
    folder.chmod(0o755)


def test_a_folder_that_may_not_be_written_is_named(read_only):
    expected = "no permission to write in '.*read-only.*; choose another path"
    with pytest.raises(PermissionError, match=expected), atomic_folder(read_only / "model"):
        pass
    with pytest.raises(PermissionError, match=expected), folder_lock(read_only / "run", "training"):
        pass


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_keeps_what_was_there(model, error):
    def write(folder):
        (folder / "new").write_text("new")
        raise error

    with (
        pytest.raises(OSError, match="the disk is full; free some space.*model") as raised,
        atomic_folder(model, overwrite=True, recognize=anything) as folder,
    ):
        write(folder)
    assert raised.value.errno == errno.ENOSPC
    assert names(model) == ["old"]
    assert names(model.parent) == ["model"]


def test_a_folder_above_that_is_removed_is_named(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match="above' was removed meanwhile; write again"),
        atomic_folder(tmp_path / "above" / "model"),
    ):
        shutil.rmtree(tmp_path / "above")


def test_a_folder_that_is_removed_and_made_again_is_not_complete(tmp_path):
    """Libraries make folders that they miss, and know nothing of what was in there."""
    with (
        pytest.raises(FileNotFoundError, match="was removed meanwhile; write again"),
        atomic_folder(tmp_path / "model") as folder,
    ):
        write_around_a_removal(folder)
    assert names(tmp_path) == []


def write_around_a_removal(folder):
    (folder / "weights").write_text("0.5")
    shutil.rmtree(folder)
    (folder / "tokenizer").mkdir(parents=True)


def test_a_folder_that_is_removed_at_the_last_moment_is_missed(tmp_path, monkeypatch):
    publish = io._publish
    monkeypatch.setattr(io, "_publish", lambda *paths: (publish(*paths), shutil.rmtree(paths[1])))
    with (
        pytest.raises(FileNotFoundError, match="the folder was removed meanwhile.*model"),
        atomic_folder(tmp_path / "model"),
    ):
        pass


# --- kinds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ('{"type": "dense_index", "format": "flex"}', ("dense_index", "flex")),
        ('{"type": "dense_index"}', ("dense_index", None)),
        ("[]", (None, None)),
        ("garb\xe9ge", (None, None)),
        (None, (None, None)),
    ],
)
def test_artifact_kind_reads_whatever_is_there(tmp_path, metadata, expected):
    if metadata is not None:
        (tmp_path / "pt_meta.json").write_bytes(metadata.encode("latin-1"))
    assert artifact_kind(tmp_path) == expected


# --- files ----------------------------------------------------------------------------------------------------------


def test_atomic_file_keeps_what_was_there_if_writing_fails(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("earlier")

    def write(file):
        file.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="the disk is full; free some space"), atomic_file(path, overwrite=True) as file:
        write(file)
    assert path.read_text() == "earlier"
    assert os.listdir(tmp_path) == ["report.html"]


def test_atomic_file_replaces_only_a_file_and_only_if_asked(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("earlier")
    with pytest.raises(FileExistsError, match="got a folder; choose another path"):
        atomic_file(tmp_path / "folder", overwrite=True).__enter__()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        atomic_file(tmp_path / "file").__enter__()


def test_atomic_file_makes_folders_and_follows_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new" / "file")
    with atomic_file(tmp_path / "link") as file:
        file.write_text("0.5")
    assert (tmp_path / "new" / "file").read_text() == "0.5"
    assert (tmp_path / "link").is_symlink()
