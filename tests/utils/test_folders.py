"""Folders are written completely or not at all, by one process at a time, and settings say nothing of this machine."""

import ctypes
import errno
import multiprocessing
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from pyterrier_selfdistill.utils import folders
from pyterrier_selfdistill.utils.folders import atomic_file, atomic_folder, folder_lock, scratch_folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def replacing(path):
    return atomic_folder(path, overwrite=True, own=names, doing="saving an encoder")


@pytest.fixture
def model(tmp_path):
    """A folder that exists."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").write_text("old")
    return folder


def write(path, when, reached):
    """Replace a folder in a process, which waits to be killed or kills itself at some moment."""

    def die(*arguments, **options):
        reached.set()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch, scratch_folder(path.parent / "scratch"), replacing(path) as folder:
        (folder / "new").write_text("new")
        if when == "while writing":
            reached.set()
            time.sleep(60)
        if when == "after the exchange":
            patch.setattr(shutil, "rmtree", die)
        if when == "between two renames":
            # as on a system that cannot swap two folders
            patch.setattr(ctypes, "CDLL", lambda name: None)
            rename = Path.rename
            patch.setattr(Path, "rename", lambda self, target: rename(self, target) and die())


def start_writer(path, when):
    """Start a process that replaces a folder, and wait for the moment at which it waits or kills itself."""
    (path.parent / "scratch").mkdir()
    context = multiprocessing.get_context("fork")
    reached = context.Event()
    process = context.Process(target=write, args=(path, when, reached), daemon=True)
    process.start()
    assert reached.wait(30)
    return process


def kill(process):
    process.kill()
    process.join()


def test_a_lock_says_who_has_it_and_ends_with_its_process(model):
    process = start_writer(model, "while writing")
    expected = rf"model' is in use: process {process.pid} on \S+ is saving an encoder"
    with pytest.raises(folders.FolderInUseError, match=expected), replacing(model):
        pass
    folders.recover(model)
    assert names(model) == ["old"]
    scratch = model.parent / "scratch"
    left = names(scratch)
    with scratch_folder(scratch):
        assert set(left) < set(names(scratch))
    kill(process)
    with folder_lock(model, "training"), scratch_folder(scratch):
        assert not set(left) & set(names(scratch))
    assert names(scratch) == []


def test_a_lock_lets_one_of_many_threads_in(tmp_path):
    inside = []

    def count_inside(_):
        with suppress(folders.FolderInUseError), folder_lock(tmp_path / "model", "saving"):
            inside.append(1)
            time.sleep(1e-4)
            return len(inside), inside.pop()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(count_inside, range(400))) - {None} == {(1, 1)}
    assert names(tmp_path) == []


def test_a_lock_belongs_to_one_folder_and_its_links(model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    with folder_lock(model, "training"), folder_lock(model / "best", "saving"), pytest.raises(folders.FolderInUseError):
        folder_lock(tmp_path / "link", "saving").__enter__()
    assert names(model) == ["old"]


def test_a_mount_point_is_locked_from_inside_and_not_replaced(model, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == model)
    with folder_lock(model, "training"):
        assert names(model) == [".lock", "old"]
    with pytest.raises(FileExistsError, match="is a mount point"), replacing(model):
        pass


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_completely_and_a_link_followed(model, exchanges, monkeypatch):
    if not exchanges:
        monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    link = model.parent / "link"
    link.symlink_to(model)
    with replacing(link) as folder:
        (folder / "new").write_text("new")
        assert names(model) == ["old"]
    assert names(model) == ["new"]
    assert names(model.parent) == ["link", "model"]
    assert link.is_symlink()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "overwrite=True"),
        ({"overwrite": True}, "model' holds figures, notes, old and 1 more"),
        ({"overwrite": True, "own": lambda folder: {"old", "figures/1.png"}}, r"model' holds figures/\.git, notes, th"),
    ],
)
def test_a_foreign_folder_is_not_replaced(model, options, expected):
    for name in ("thesis.tex", "notes", "figures/1.png", "figures/.git/HEAD"):
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_text("mine")
    with pytest.raises(FileExistsError, match=expected), atomic_folder(model, **options):
        pass
    with pytest.raises(FileExistsError, match="got a file"), replacing(model / "notes"):
        pass
    appeared = model.parent / "appeared"
    with pytest.raises(FileExistsError, match="is there already|holds"), atomic_folder(appeared, **options):
        model.rename(appeared)
    assert names(appeared) == ["figures", "notes", "old", "thesis.tex"]
    assert names(model.parent) == ["appeared"]


@pytest.mark.parametrize(
    ("when", "content"),
    [("while writing", ["old"]), ("after the exchange", ["new"]), ("between two renames", ["old"])],
)
def test_a_killed_writer_loses_nothing(model, when, content):
    kill(start_writer(model, when))
    folders.recover(model)
    assert names(model) == content
    with replacing(model) as folder:
        (folder / "newer").write_text("newer")
    assert names(model) == ["newer"]
    assert names(model.parent) == ["model", "scratch"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("no model"), "no model"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full.*model"),
        (PermissionError(errno.EACCES, "denied"), "no permission to write in .*; choose"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full.*model"),
    ],
)
@pytest.mark.parametrize("writing", [replacing, lambda path: atomic_file(path / "old", overwrite=True)])
def test_a_failure_keeps_the_earlier_folder_and_file(model, monkeypatch, writing, error, expected):
    def fail(unfinished):
        (unfinished / "new" if unfinished.is_dir() else unfinished).write_text("half")
        # a folder that may not be written
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        raise error

    with pytest.raises((OSError, RuntimeError), match=expected), writing(model) as unfinished:
        fail(unfinished)
    assert (model / "old").read_text() == "old"
    assert names(model) == ["old"]
    assert names(model.parent) == ["model"]


@pytest.mark.parametrize(
    "remove",
    [
        shutil.rmtree,
        lambda folder: shutil.rmtree(folder) or (folder / "tokenizer").mkdir(parents=True),
        lambda folder: shutil.rmtree(folder.parent),
    ],
)
def test_a_folder_that_is_removed_while_it_is_written_raises(tmp_path, remove):
    path = tmp_path / "above" / "model"
    with pytest.raises(FileNotFoundError, match="was removed meanwhile"), atomic_folder(path) as folder:
        remove(folder)
    assert not path.exists()


def test_a_file_is_replaced_only_if_asked(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new" / "file")
    for overwrite in (False, True):
        with atomic_file(tmp_path / "link", overwrite=overwrite) as file:
            file.write_text(str(overwrite))
    assert (tmp_path / "new" / "file").read_text() == "True"
    assert names(tmp_path / "new") == ["file"]
    with pytest.raises(FileExistsError, match="overwrite=True"), atomic_file(tmp_path / "link"):
        pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/My Documents/triples.tsv", "triples.tsv"),
        (r"C:\Users\me\triples.tsv", "triples.tsv"),
        (Path("/home/me/triples.tsv"), "triples.tsv"),
        ("triples of file:///home/a.tsv, '/home/me/b.tsv' and ~me/c.tsv", "triples of a.tsv, 'b.tsv' and c.tsv"),
        ({"/a/b": [{"c": ("/d/e", 7)}, 0.5, None, True]}, {"b": [{"c": ["e", 7]}, 0.5, None, True]}),
        ({"hub_token": "hf_mine", "password": "mine", "api_key": "mine", "tokens_seen": 7}, {"tokens_seen": 7}),
        *((same, same) for same in ("irds:msmarco-passage/train", "./a.tsv", "https://hf.co/me/a", "sort / plot 1/2")),
    ],
)
def test_settings_hold_no_path_of_this_machine_and_no_secret(value, expected):
    assert folders.portable_settings({"data": {"source": value}}) == {"data": {"source": expected}}


def test_a_model_is_named_by_its_name_on_the_hub_or_of_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a" / "model").mkdir(parents=True)
    names = {"microsoft/mpnet-base": "microsoft/mpnet-base", "~/mine": "mine", None: None}
    names |= {"/home/me/a/model": "a", "runs/a/model/": "a"}
    for name, expected in names.items():
        assert folders.portable_settings({"base_model": {"name": name}}) == {"base_model": {"name": expected}}
