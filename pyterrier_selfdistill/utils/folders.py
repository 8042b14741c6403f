"""Folders and files that are written whole or not at all, and text about them without paths or secrets."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path, PureWindowsPath
from typing import Any

from filelock import FileLock, Timeout

from .compat import system_error_code

AT_FDCWD = -100
RENAME_EXCHANGE = 2

UNKNOWN_TO_THE_SYSTEM = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange(first: Path, second: Path) -> bool:
    """Let each of two folders have the name of the other, so that there is no moment at which a name has none.

    Args:
        first: A folder.
        second: Another, in the same file system.

    Returns:
        Whether the system could. If not, nothing was done.

    Raises:
        OSError: If one is missing, or may not be renamed.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, TypeError, OSError):
        return False
    failed = renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE)
    code = ctypes.get_errno()
    if failed and code in UNKNOWN_TO_THE_SYSTEM:
        return False
    if failed:
        raise OSError(code, os.strerror(code), str(first), None, str(second))
    return True


METADATA_FILE = "pt_meta.json"
"""The file in the folder of a PyTerrier artifact that says what it is."""

NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

REMOVED = "was removed meanwhile; write again, or choose another path"

SCRATCH = "selfdistill-scratch-"
"""How the names of temporary folders begin."""

PATIENCE = 1.0
"""For how many seconds a reader waits while a writer renames two folders."""


class FolderInUseError(OSError):
    """Another process, or another thread, writes to the folder."""


def artifact_kind(folder: Path) -> tuple[Any, Any]:
    """Read the type and the format of a PyTerrier artifact, whatever is in the folder.

    Args:
        folder: A folder.

    Returns:
        The type and the format, such as ``("dense_index", "flex")``; None for each that is not there.
    """
    try:
        metadata = json.loads((folder / METADATA_FILE).read_text())
    except (OSError, ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict):
        return None, None
    return metadata.get("type"), metadata.get("format")


@contextmanager
def folder_lock(path: str | Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Keep other writers away from a folder, which may be there or not.

    The system takes the lock back when the process ends, however it ends. A lock of another folder, be it in this one,
    is another lock. The same one twice is an error, in one thread too.

    Args:
        path: The folder. Folders above it are made; a symbolic link is followed.
        doing: What is done meanwhile, as others are told: ``"building an index"``.
        wait: Whether to wait until nobody else has the lock.

    Raises:
        FolderInUseError: If another process or thread has the lock, and is not to be waited for.
        PermissionError: If the folder may not be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     run = f"{parent}/run"
        ...     with folder_lock(run, "training an encoder"), folder_lock(run, "saving an encoder"):
        ...         pass
        Traceback (most recent call last):
        pyterrier_selfdistill.utils.folders.FolderInUseError: '.../run' is in use: process ... is training ...
    """
    target = Path(path).resolve()
    file = _lock_file(target)
    timeout = -1 if wait else 0
    lock = FileLock(file, timeout=timeout)
    with explained_errors(target), _explained_permissions(target):
        file.parent.mkdir(parents=True, exist_ok=True)
        # before, since some versions of filelock empty the file when they try
        owner = _read_owner(file)
        try:
            lock.acquire()
        except Timeout:
            raise FolderInUseError(
                f"{str(path)!r} is in use: {owner}; wait until it is done, end it, or choose another path"
            ) from None
    try:
        with explained_errors(target):
            file.write_text(json.dumps(_describe_owner(doing)))
        yield
    finally:
        # while it is locked: whoever waits for this file finds that it is gone, and makes another
        with suppress(OSError):
            file.unlink()
        lock.release()


def _lock_file(target: Path) -> Path:
    """Choose where the lock of a folder lies: beside it, since it may be replaced; inside where it cannot be."""
    if os.path.ismount(target) or not os.access(_existing(target.parent), os.W_OK):
        return target / ".lock"
    return _beside(target, "lock")


def _existing(folder: Path) -> Path:
    """Find the folder, or the first one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return folder


def _beside(target: Path, purpose: str) -> Path:
    """Name a hidden file or folder that belongs to another; always the same, so that the next process finds it."""
    return target.with_name(f".{target.name}.{purpose}")


def _describe_owner(doing: str) -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(" ", timespec="seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "doing": doing}


def _read_owner(file: Path) -> str:
    """Say who has a lock, or had it and was killed."""
    try:
        owner = json.loads(file.read_text())
        return f"process {owner['pid']} on {owner['host']} is {owner['doing']} there, since {owner['since']}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process is writing there"


@contextmanager
def atomic_folder(
    path: str | Path,
    *,
    overwrite: bool = False,
    recognize: Callable[[Path], bool] | None = None,
    doing: str = "writing",
    wait: bool = False,
) -> Iterator[Path]:
    """Give a temporary folder to write to, which becomes ``path`` on exit.

    If writing fails, or the process is killed, what was at ``path`` stays, or is put back by the next :func:`recover`.

    Args:
        path: The folder to write. Folders above it are made; a symbolic link is followed.
        overwrite: Whether to replace a folder that is there, if it is empty or ``recognize`` says so.
        recognize: Tells whether a folder is one that may be replaced, since it holds what is written here and nothing
            of anybody else. Without it only an empty folder is.
        doing: What other processes are told that they have to wait for: ``"building an index"``.
        wait: Whether to wait while another one writes it.

    Yields:
        The temporary folder.

    Raises:
        FileExistsError: If the folder is there and ``overwrite`` is not set, or holds something else than what may be
            replaced, or if a file is there.
        FolderInUseError: If another process or thread writes it, and is not to be waited for.
        PermissionError: If it may not be written.
        FileNotFoundError: If the folder above was removed meanwhile.
        OSError: If the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with atomic_folder(f"{parent}/model") as folder:
        ...         _ = (folder / "weights").write_text("0.5")
        ...     (Path(parent) / "model" / "weights").read_text()
        '0.5'
    """
    target = Path(path).resolve()
    unfinished = _beside(target, "unfinished")
    with folder_lock(target, doing, wait=wait):
        _clean_up(target)
        _require_free(target, overwrite, recognize)
        with _explained_permissions(target):
            unfinished.mkdir()
        try:
            with explained_errors(target):
                with _watched(unfinished):
                    yield unfinished
                # others than this package's writers know no lock
                _require_free(target, overwrite, recognize)
                _publish(unfinished, target)
        finally:
            _clean_up(target)
        if not target.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"the folder {REMOVED}", str(target))


def _require_free(target: Path, overwrite: bool, recognize: Callable[[Path], bool] | None) -> None:
    """Check that nothing is at a path, or a folder that may be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"expected a folder or nothing at {str(target)!r}, got a file; choose another path")
    if not overwrite:
        raise FileExistsError(
            f"{str(target)!r} is there already; choose another folder, or replace this one with overwrite=True"
        )
    if os.path.ismount(target):
        raise FileExistsError(f"{str(target)!r} is a mount point, which cannot be replaced; choose a folder in it")
    content = sorted(entry.name for entry in target.iterdir())
    is_ours = recognize is not None and recognize(target)
    if content and not is_ours:
        more = "" if len(content) <= 3 else f" and {len(content) - 3} more"
        raise FileExistsError(
            f"{str(target)!r} holds {', '.join(content[:3])}{more}, which is not what would be written there, and is "
            "not replaced; choose another folder, or remove this one yourself"
        )


def _publish(unfinished: Path, target: Path) -> None:
    """Let a complete folder take the place of what is there, which is left to be removed."""
    if not target.exists():
        unfinished.rename(target)
    elif not exchange(unfinished, target):
        target.rename(_beside(target, "replaced"))
        unfinished.rename(target)


def _clean_up(target: Path) -> None:
    """Put back a folder that was moved away for nothing, and remove what else is left; for who has the lock."""
    replaced = _beside(target, "replaced")
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for left in (replaced, _beside(target, "unfinished")):
        shutil.rmtree(left, ignore_errors=True)


def recover(path: str | Path) -> None:
    """Put back a folder that a writer had moved away when it was killed; to be called before reading one.

    Args:
        path: The folder. If it is there, nothing is done.

    Raises:
        PermissionError: If it would have to be put back, and may not be.
    """
    target = Path(path).resolve()
    replaced = _beside(target, "replaced")
    end = time.monotonic() + PATIENCE
    while replaced.exists() and not target.exists() and time.monotonic() < end:
        # a writer that lives is about to be done
        with suppress(FolderInUseError), folder_lock(target, "putting back what was replaced"):
            _clean_up(target)
        time.sleep(0.01)


@contextmanager
def scratch_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """Give a folder for temporary files, which is removed on exit.

    If the process is killed, the next one that asks for a folder in the same place removes it.

    Args:
        parent: The folder that it is made in, if not where the system has temporary files.

    Yields:
        The folder.

    Example:
        >>> with scratch_folder() as folder:
        ...     _ = (folder / "vectors").write_text("0.5")
        >>> folder.exists()
        False
    """
    place = Path(parent or tempfile.gettempdir())
    for left in place.glob(f"{SCRATCH}*"):
        # one that is in use stays, and so does one of another user
        with suppress(OSError), folder_lock(left, "removing temporary files"):
            shutil.rmtree(left)
    folder = place / f"{SCRATCH}{uuid.uuid4().hex}"
    with folder_lock(folder, "keeping temporary files"):
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary file to write, which becomes ``path`` on exit.

    Args:
        path: The file to write. Folders above it are made; a symbolic link is followed.
        overwrite: Whether to replace a file that is there.

    Yields:
        The temporary file, which is not there yet.

    Raises:
        FileExistsError: If the file is there and ``overwrite`` is not set, or if a folder is there.
        PermissionError: If it may not be written.
        OSError: If the disk is full.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with atomic_file(f"{parent}/report.html") as file:
        ...         _ = file.write_text("0.5")
        ...     [path.name for path in Path(parent).iterdir()]
        ['report.html']
    """
    target = Path(path).resolve()
    if target.is_dir():
        raise FileExistsError(f"expected a file or nothing at {str(target)!r}, got a folder; choose another path")
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{str(target)!r} is there already; choose another file, or replace this one with overwrite=True"
        )
    with _explained_permissions(target), explained_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as folder:
            yield folder / target.name
            (folder / target.name).replace(target)


@contextmanager
def _explained_permissions(target: Path) -> Iterator[None]:
    """Say what may not be written, in place of the name of a hidden file."""
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_ALLOWED:
            raise
        raise PermissionError(
            error.errno, f"no permission to write in {str(target.parent)!r}; choose another path", str(target)
        ) from error


@contextmanager
def _watched(folder: Path) -> Iterator[None]:
    """Raise an error on exit if a folder is another one by then, since libraries make folders that they miss."""
    # Windows has none, and removes no folder whose files are open
    flags = getattr(os, "O_DIRECTORY", None)
    if flags is None:
        yield
        return
    # while it is open, another folder cannot have its number
    descriptor = os.open(folder, flags)
    try:
        yield
        is_same = folder.is_dir() and os.path.samestat(folder.stat(), os.fstat(descriptor))
    finally:
        os.close(descriptor)
    if not is_same:
        raise FileNotFoundError(errno.ENOENT, f"the folder {REMOVED}", str(folder))


@contextmanager
def explained_errors(path: str | Path) -> Iterator[None]:
    """Say which folder could not be written when the disk was full, or the folder above it was removed.

    Args:
        path: The folder.

    Raises:
        FileNotFoundError: In place of any error, if the folder above is gone.
        OSError: In place of an error of a full disk.

    Example:
        >>> with explained_errors("/tmp/model"):
        ...     raise OSError(errno.ENOSPC, "No space left on device", ".model.unfinished/weights")
        Traceback (most recent call last):
        OSError: [Errno 28] the disk is full; free some space, or choose another path: '...model'
    """
    target = Path(path).resolve()
    try:
        yield
    except Exception as error:
        if not target.parent.is_dir():
            raise FileNotFoundError(
                errno.ENOENT,
                f"{str(target.parent)!r} {REMOVED}",
                str(target),
            ) from error
        code = system_error_code(error)
        if code in DISK_FULL:
            raise OSError(code, "the disk is full; free some space, or choose another path", str(target)) from error
        raise


SECRET = re.compile(r"(token|secret|password|api_key)$")
"""How names of settings end whose values are nobody's business, such as ``hub_token``."""

ABSOLUTE_PATH = re.compile(
    r"""
    (?<! [\w.:/\\-] )                # not inside of a URL, of a name on the hub, or of a relative path
    (?: file:// | ~\w* | [A-Za-z]: )?
    (?: [/\\] [^\s/\\'"`,;()\[\]{}]+ )+
    """,
    re.VERBOSE,
)
"""An absolute path, or one in a home folder, in a text."""


def portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce settings to JSON that may be shown to anybody.

    Secrets are left out. Of each absolute path, be it a value, a key or a part of a text, the last name stays, and so
    it does of the folder of a base model.

    Args:
        settings: Nested dictionaries and lists. What JSON does not know becomes a string.

    Returns:
        The settings.

    Example:
        >>> portable_settings({"hub_token": "hf_x", "seed": 7, "data": {"source": "/home/me/triples.tsv"}})
        {'seed': 7, 'data': {'source': 'triples.tsv'}}
    """
    # tuples, paths and enums first become what they are when they are read again
    portable = _portable(json.loads(json.dumps(settings, default=str)))
    base_model = portable.get("base_model")
    if isinstance(base_model, dict):
        base_model["name"] = portable_name(base_model.get("name"))
    return portable


def portable_name(name: str | None) -> str | None:
    """Reduce the name of a model to what others know: its name on the hub, or the last one of its path.

    Args:
        name: The name, or a path of this machine.

    Returns:
        The name.

    Example:
        >>> portable_name("microsoft/mpnet-base"), portable_name("/models/mine")
        ('microsoft/mpnet-base', 'mine')
    """
    # a relative path of a folder looks like the name of a model on the hub
    if name and (_is_absolute(name) or Path(name).exists()):
        return _last_name(name)
    return name


def _portable(value: Any) -> Any:
    """Reduce nested values."""
    if isinstance(value, dict):
        kept = {}
        for name, item in value.items():
            if not SECRET.search(name):
                kept[_portable(name)] = _portable(item)
        return kept
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str):
        return _last_name(value) if _is_absolute(value) else _without_paths(value)
    return value


def _without_paths(text: str) -> str:
    """Keep only the last name of each absolute path in a text."""
    return ABSOLUTE_PATH.sub(lambda path: _last_name(path[0]), text)


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "~", "file:/")) or PureWindowsPath(path).is_absolute()


def _last_name(path: str) -> str:
    # the paths of Windows have two kinds of separators, and those of others one of them
    return PureWindowsPath(path).name
