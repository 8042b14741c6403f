"""Write folders and files completely or not at all, and remove paths and secrets from settings."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path, PureWindowsPath
from typing import Any

from filelock import FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from .checks import require_type

METADATA_FILE = "pt_meta.json"  # the file that describes a PyTerrier artifact
REMOVED = "was removed meanwhile; write again, or choose another path"
RESTORE = "copy or write its folder again"
SCRATCH = "selfdistill-scratch-"  # the prefix of temporary folders


class FolderInUseError(OSError):
    """Another process or thread is writing to the folder."""


def artifact_kind(folder: Path) -> tuple[Any, Any]:
    """Read the type and format of a PyTerrier artifact, such as ``("dense_index", "flex")``, or None for each."""
    try:
        metadata = json.loads((folder / METADATA_FILE).read_text())
        return metadata.get("type"), metadata.get("format")
    except (OSError, ValueError, RecursionError, AttributeError):
        return None, None


def read_json(path: Path, shape: Any = dict[str, Any], **fields: Any) -> Any:
    """Read a JSON file of this package and check its fields. Errors name the file, and the line or field."""
    try:
        content = TypeAdapter(shape).validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors()[0]
        place = f" in {'.'.join(map(str, fault['loc']))}" if fault["loc"] else ""
        raise ValueError(f"{str(path)!r} is damaged: {fault['msg']}{place}; {RESTORE}") from None
    for name, annotation in fields.items():
        try:
            require_type(name, content.get(name), annotation)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is damaged: {error}; {RESTORE}") from None
    return content


@contextmanager
def folder_lock(path: str | Path, doing: str, *, wait: bool = False) -> Iterator[None]:
    """Lock a folder against other writers. The folder need not exist."""
    target = Path(path).resolve()
    # next to the folder, since it may be replaced, or inside if no other place is writable
    is_fixed = os.path.ismount(target) or not os.access(_existing(target.parent), os.W_OK)
    file = target / ".lock" if is_fixed else _beside(target, "lock")
    lock = FileLock(file, timeout=-1 if wait else 0)
    with explained_errors(target):
        file.parent.mkdir(parents=True, exist_ok=True)
        # read first, since some versions of filelock empty the file when they try to lock it
        owner = _read_owner(file)
        try:
            lock.acquire()
        except Timeout:
            raise FolderInUseError(
                f"{str(path)!r} is in use: {owner}; wait until it is done, end it, or choose another path"
            ) from None
    try:
        since = datetime.now().astimezone().isoformat(" ", timespec="seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "doing": doing}
        with explained_errors(target):
            file.write_text(json.dumps(note))
        yield
    finally:
        # while still locked, so that a waiting writer notices and makes a new file
        with suppress(OSError):
            file.unlink()
        lock.release()


def _existing(folder: Path) -> Path:
    """Return the folder if it exists, or its closest existing parent."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _beside(target: Path, purpose: str) -> Path:
    return target.with_name(f".{target.name}.{purpose}")


def _read_owner(file: Path) -> str:
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
    own: Callable[[Path], Collection[str]] = lambda folder: (),
    doing: str = "writing",
    wait: bool = False,
) -> Iterator[Path]:
    """Yield a temporary folder, which becomes ``path`` on exit. ``own`` names the files that may be replaced."""
    target = Path(path).resolve()
    unfinished = _beside(target, "unfinished")
    with folder_lock(target, doing, wait=wait), explained_errors(target):
        _clean_up(target)
        require_free(target, overwrite, own)
        unfinished.mkdir()
        # without this mark, a library may have created a removed folder again
        mark = unfinished / ".unfinished"
        mark.mkdir()
        try:
            yield unfinished
            if not mark.exists():
                raise FileNotFoundError(errno.ENOENT, f"the folder {REMOVED}", str(target))
            mark.rmdir()
            # check again, since other programs ignore the lock
            require_free(target, overwrite, own)
            if not target.exists():
                unfinished.rename(target)
            elif not _exchange(unfinished, target):
                target.rename(_beside(target, "replaced"))
                unfinished.rename(target)
        finally:
            _clean_up(target)


def require_free(target: Path, overwrite: bool, own: Callable[[Path], Collection[str]]) -> None:
    """Check that a path is free or holds a folder that may be replaced."""
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
    if others := files_of_others(target, own(target)):
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise FileExistsError(
            f"{str(target)!r} holds {', '.join(others[:3])}{more}, which this package did not write there; it is "
            "not replaced: move these elsewhere, or choose another folder"
        )


def files_of_others(folder: Path, own: Collection[str], within: str = "") -> list[str]:
    """List the files of a folder that are not in ``own``, and the folders without any file in ``own``."""
    found = []
    for entry in sorted(folder.iterdir()):
        name = f"{within}{entry.name}"
        if entry.is_dir() and any(file.startswith(f"{name}/") for file in own):
            found += files_of_others(entry, own, f"{name}/")
        # a killed process may have left temporary files
        elif name not in own and name != ".lock" and SCRATCH not in name:
            found.append(name)
    return found


def checksum(path: Path) -> str:
    """Compute the checksum of a file, or of all files in a folder."""
    if path.is_dir():
        content = [(file.name, checksum(file)) for file in sorted(path.iterdir())]
        return hashlib.sha256(repr(content).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically, so that neither name is ever free. Return False if the system cannot (not Linux)."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, TypeError, OSError):
        return False
    current, exchange = -100, 2
    return bool(rename(current, os.fsencode(first), current, os.fsencode(second), exchange) == 0)


def _clean_up(target: Path) -> None:
    """Restore the folder that a killed writer moved away, and remove its other files. Hold the lock."""
    replaced = _beside(target, "replaced")
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    for left in (replaced, _beside(target, "unfinished")):
        shutil.rmtree(left, ignore_errors=True)


def recover(path: str | Path) -> None:
    """Restore a folder that a killed writer moved away. Call this before you read a folder."""
    target = Path(path).resolve()
    if _beside(target, "replaced").exists() and not target.exists():
        # a running writer will finish soon
        with folder_lock(target, "restoring a folder", wait=True):
            _clean_up(target)


@contextmanager
def scratch_folder(parent: str | Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder, by default in the system's temporary directory, and remove it on exit."""
    place = Path(parent or tempfile.gettempdir())
    for left in place.glob(f"{SCRATCH}*"):
        # skip folders that are in use or belong to another user
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
    """Yield the path of a temporary file, which becomes ``path`` on exit. Create parents and follow links."""
    target = Path(path).resolve()
    if target.is_dir():
        raise FileExistsError(f"expected a file or nothing at {str(target)!r}, got a folder; choose another path")
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{str(target)!r} is there already; choose another file, or replace this one with overwrite=True"
        )
    with explained_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target.parent) as folder:
            yield folder / target.name
            (folder / target.name).replace(target)


@contextmanager
def explained_errors(path: str | Path) -> Iterator[None]:
    """Replace a hidden file by the path in errors from a full disk, a removed parent, or missing permission."""
    target = Path(path).resolve()
    existed = target.parent.is_dir()
    try:
        yield
    except Exception as error:
        if existed and not target.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, f"{str(target.parent)!r} {REMOVED}", str(target)) from error
        # safetensors 0.8 does not raise OSError when it cannot write; only the message has the number
        number = re.search(r"\(os error (\d+)\)", str(error))
        code = int(number[1]) if number else getattr(error, "errno", None)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, "the disk is full; free some space, or choose another path", str(target)) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS) and not os.access(_existing(target.parent), os.W_OK):
            advice = f"no permission to write in {str(target.parent)!r}; choose another path"
            raise PermissionError(code, advice, str(target)) from error
        raise


# suffixes of secret settings; transformers masks only tokens
SECRETS = ("token", "secret", "password", "api_key")

ABSOLUTE_PATH = re.compile(
    r"""
    (?<! [\w.:/\\-] )                # not inside a URL, a name on the hub, or a relative path
    (?: file:// | ~\w* | [A-Za-z]: )?
    (?: [/\\] [^\s/\\'"`,;()\[\]{}]+ )+
    """,
    re.VERBOSE,
)


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings to JSON, with functions and models replaced by their names."""

    def described(value: Any) -> str:
        if callable(value):
            return getattr(value, "__qualname__", type(value).__name__)
        return re.sub(r" at 0x\w+", "", str(value))

    plain: dict[str, Any] = json.loads(json.dumps(settings, default=described))
    return plain


def portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert settings to JSON without secrets, and cut absolute paths to their last name."""
    plain = plain_settings(settings)
    portable: dict[str, Any] = _portable(plain)
    if isinstance(base_model := portable.get("base_model"), dict):
        base_model["name"] = portable_name(plain["base_model"].get("name"))
    return portable


def portable_name(name: str | None) -> str | None:
    """Cut the path of a model to its last name (of a run, to the name of the run), and return other names unchanged."""
    # a relative path looks like the name of a model on the hub
    if not name or not (_is_absolute(name) or Path(name).exists()):
        return name
    path = PureWindowsPath(name)
    return path.parent.name or path.name if path.name == "model" else path.name


def _portable(value: Any) -> Any:
    if isinstance(value, dict):
        return {_portable(name): _portable(item) for name, item in value.items() if not name.endswith(SECRETS)}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    if isinstance(value, str):
        return _last_name(value) if _is_absolute(value) else ABSOLUTE_PATH.sub(lambda path: _last_name(path[0]), value)
    return value


def _is_absolute(path: str) -> bool:
    return path.startswith(("/", "~", "file:/")) or PureWindowsPath(path).is_absolute()


def _last_name(path: str) -> str:
    # handles both kinds of separators
    return PureWindowsPath(path).name
