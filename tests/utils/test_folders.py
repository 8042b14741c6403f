"""Folders are written completely or not at all, by one process at a time, and settings say nothing of this machine."""

import ctypes
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
from transformers import TrainingArguments

from pyterrier_selfdistill.utils.folders import (
    FolderInUseError,
    atomic_file,
    atomic_folder,
    folder_lock,
    portable_name,
    portable_settings,
    recover,
    scratch_folder,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def replacing(path):
    return atomic_folder(path, overwrite=True, recognize=lambda folder: True, doing="saving an encoder")


def forget_exchanges(patch):
    """Be a system that cannot swap two folders."""

    def fail(*arguments, **options):
        raise OSError

    patch.setattr(ctypes, "CDLL", fail)


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

    with pytest.MonkeyPatch.context() as patch, replacing(path) as folder:
        (folder / "new").write_text("new")
        if when == "while writing":
            reached.set()
            time.sleep(60)
        if when == "after the exchange":
            patch.setattr(shutil, "rmtree", die)
        if when == "between two renames":
            forget_exchanges(patch)
            rename = Path.rename
            patch.setattr(Path, "rename", lambda self, target: rename(self, target) and die())


@pytest.fixture
def writer(model):
    """Start a process that replaces a folder, and wait for the moment at which it waits or kills itself."""
    processes = []

    def start(when):
        context = multiprocessing.get_context("fork")
        reached = context.Event()
        process = context.Process(target=write, args=(model, when, reached))
        processes.append(process)
        process.start()
        assert reached.wait(30)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


# --- locks -----------------------------------------------------------------------------------------------------------


def test_a_lock_says_who_has_it_and_ends_with_its_process(writer, model):
    process = writer("while writing")
    expected = rf"model' is in use: process {process.pid} on \S+ is saving an encoder"
    with pytest.raises(FolderInUseError, match=expected), replacing(model):
        pass
    with pytest.raises(FolderInUseError, match=expected), folder_lock(model, "training"):
        pass
    recover(model)
    assert names(model) == ["old"]
    process.kill()
    process.join()
    with folder_lock(model, "training"):
        pass


def test_a_lock_lets_one_of_many_threads_in(tmp_path):
    inside, most, refused = [], [], []

    def write():
        for _ in range(100):
            try:
                with folder_lock(tmp_path / "model", "saving"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except FolderInUseError:
                refused.append(1)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(refused) == 400
    assert names(tmp_path) == []


def test_a_lock_belongs_to_one_folder_and_its_links(model, tmp_path):
    (tmp_path / "link").symlink_to(model)
    with folder_lock(model, "training"), folder_lock(model / "best", "saving"), pytest.raises(FolderInUseError):
        folder_lock(tmp_path / "link", "saving").__enter__()
    assert names(model) == ["old"]


def test_a_mount_point_is_locked_from_inside_and_not_replaced(model, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == model)
    with folder_lock(model, "training"):
        assert names(model) == [".lock", "old"]
    with pytest.raises(FileExistsError, match="is a mount point"), replacing(model):
        pass
    assert names(model) == ["old"]


# --- atomic folders --------------------------------------------------------------------------------------------------


def test_a_folder_appears_on_exit_with_the_permissions_of_others(tmp_path):
    path = tmp_path / "deep" / "model"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("0.5")
        assert not path.exists()
    assert names(path) == ["weights"]
    assert names(path.parent) == ["model"]
    assert path.stat().st_mode == path.parent.stat().st_mode


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_completely(model, exchanges, monkeypatch):
    if not exchanges:
        forget_exchanges(monkeypatch)
    with replacing(model) as folder:
        (folder / "new").write_text("new")
        assert names(model) == ["old"]
    assert names(model) == ["new"]
    assert names(model.parent) == ["model"]


def test_a_link_to_an_empty_folder_is_followed(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "model", overwrite=True) as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "model").is_symlink()
    assert names(tmp_path / "disk") == ["new"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "overwrite=True"),
        ({"overwrite": True}, "model' holds figures, notes, old and 1 more"),
        ({"overwrite": True, "recognize": lambda folder: False}, "model' holds figures, notes, old and 1 more"),
    ],
)
def test_a_foreign_folder_is_not_replaced(model, options, expected):
    for name in ("thesis.tex", "notes", "figures"):
        (model / name).write_text("mine")
    with pytest.raises(FileExistsError, match=expected), atomic_folder(model, **options):
        pass
    with pytest.raises(FileExistsError, match="got a file"), replacing(model / "notes"):
        pass
    assert names(model) == ["figures", "notes", "old", "thesis.tex"]
    assert names(model.parent) == ["model"]


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"), atomic_folder(tmp_path / "model"):
        (tmp_path / "mine").rename(tmp_path / "model")
    assert names(tmp_path / "model") == ["thesis.tex"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("when", "content"),
    [
        ("while writing", ["old"]),
        pytest.param(
            "after the exchange",
            ["new"],
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux can swap two folders"),
        ),
        ("between two renames", ["old"]),
    ],
)
def test_a_killed_writer_loses_nothing(writer, model, when, content):
    process = writer(when)
    process.kill()
    process.join()
    recover(model)
    assert names(model) == content
    with replacing(model) as folder:
        (folder / "newer").write_text("newer")
    assert names(model) == ["newer"]
    assert names(model.parent) == ["model"]


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected", "code"),
    [
        (RuntimeError("no model"), "no model", None),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full.*model", errno.ENOSPC),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full.*model", errno.ENOSPC),
    ],
)
def test_a_failure_keeps_the_earlier_folder_and_file(model, error, expected, code):
    def fail(file):
        file.write_text("half")
        raise error

    with pytest.raises((OSError, RuntimeError), match=expected) as raised, replacing(model) as folder:
        fail(folder / "new")
    assert getattr(raised.value, "errno", None) == code
    assert names(model) == ["old"]
    with pytest.raises((OSError, RuntimeError)), atomic_file(model / "old", overwrite=True) as file:
        fail(file)
    assert (model / "old").read_text() == "old"
    assert names(model) == ["old"]
    assert names(model.parent) == ["model"]


def remove(folder):
    shutil.rmtree(folder)


def remove_and_make_again(folder):
    shutil.rmtree(folder)
    (folder / "tokenizer").mkdir(parents=True)


def remove_parent(folder):
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("removal", [remove, remove_and_make_again, remove_parent])
def test_a_folder_that_is_removed_while_it_is_written_is_an_error(tmp_path, removal):
    path = tmp_path / "above" / "model"
    with pytest.raises(FileNotFoundError, match="was removed meanwhile"), atomic_folder(path) as folder:
        removal(folder)
    assert not path.exists()


@pytest.fixture
def read_only(tmp_path_factory):
    """A folder that may not be written; root becomes another user to be refused."""
    folder = tmp_path_factory.mktemp("read-only")
    is_root = os.geteuid() == 0
    if is_root:
        for place in (folder, *folder.parents[:3]):
            place.chmod(place.stat().st_mode | 0o055)
        os.setresuid(65534, 65534, 0)
    else:
        folder.chmod(0o555)
    yield folder
    if is_root:
        os.setresuid(0, 0, 0)
    folder.chmod(0o755)


@pytest.mark.parametrize("writing", [atomic_folder, atomic_file, lambda path: folder_lock(path, "training")])
def test_a_folder_that_may_not_be_written_is_named(read_only, writing):
    with pytest.raises(PermissionError, match="no permission to write in '.*read-only"), writing(read_only / "model"):
        pass


# --- files, scratch folders and metadata -----------------------------------------------------------------------------


def test_a_file_is_replaced_only_if_asked(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "new" / "file")
    for overwrite in (False, True):
        with atomic_file(tmp_path / "link", overwrite=overwrite) as file:
            file.write_text(str(overwrite))
    assert (tmp_path / "new" / "file").read_text() == "True"
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "new") == ["file"]
    with pytest.raises(FileExistsError, match="overwrite=True"), atomic_file(tmp_path / "link"):
        pass
    with pytest.raises(FileExistsError, match="got a folder"), atomic_file(tmp_path / "new", overwrite=True):
        pass


def test_a_scratch_folder_is_removed_on_exit_and_after_a_kill(tmp_path):
    def keep(reached):
        with scratch_folder(tmp_path) as folder:
            (folder / "vectors").write_text("0.5")
            reached.set()
            time.sleep(60)

    context = multiprocessing.get_context("fork")
    reached = context.Event()
    process = context.Process(target=keep, args=(reached,))
    process.start()
    assert reached.wait(30)
    with scratch_folder(tmp_path):
        assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
    process.kill()
    process.join()
    with scratch_folder(tmp_path) as folder:
        assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]
    assert names(tmp_path) == []


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/My Documents/triples.tsv", "triples.tsv"),
        ("~/triples.tsv", "triples.tsv"),
        ("file:///home/me/triples.tsv", "triples.tsv"),
        (r"C:\Users\me\triples.tsv", "triples.tsv"),
        (Path("/home/me/triples.tsv"), "triples.tsv"),
        ("triples of /home/me/a.tsv, '/home/me/b.tsv' and ~me/c.tsv", "triples of a.tsv, 'b.tsv' and c.tsv"),
        (["/a/b", {"c": ("/d/e", 7)}], ["b", {"c": ["e", 7]}]),
        ({"/home/me/a.tsv": 3}, {"a.tsv": 3}),
        ("irds:msmarco-passage/train", "irds:msmarco-passage/train"),
        ("./triples.tsv", "./triples.tsv"),
        ("https://huggingface.co/datasets/me/triples", "https://huggingface.co/datasets/me/triples"),
        ("sort / plot, 1/2 and/or", "sort / plot, 1/2 and/or"),
        ([0.5, None, True], [0.5, None, True]),
    ],
)
def test_settings_hold_no_path_of_this_machine(value, expected):
    assert portable_settings({"data": {"source": value}}) == {"data": {"source": expected}}


def test_settings_hold_no_secret(tmp_path):
    secrets = {"hub_token": "hf_mine", "push_to_hub_token": "hf_mine", "mlflow_password": "mine", "api_key": "mine"}
    arguments = {**TrainingArguments(str(tmp_path)).to_dict(), **secrets}
    shown = json.dumps(portable_settings({"arguments": arguments, "nested": [{"hub_token": "hf_mine"}]}))
    assert "mine" not in shown
    assert str(tmp_path) not in shown
    assert '"include_num_input_tokens_seen"' in shown


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("microsoft/mpnet-base", "microsoft/mpnet-base"),
        ("/models/mine/model", "model"),
        ("~/mine", "mine"),
        ("runs/a/model/", "model"),
        (None, None),
    ],
)
def test_a_model_is_named_by_its_name_on_the_hub_or_of_its_folder(tmp_path, monkeypatch, name, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a" / "model").mkdir(parents=True)
    assert portable_name(name) == expected
    assert portable_settings({"base_model": {"name": name}}) == {"base_model": {"name": expected}}
