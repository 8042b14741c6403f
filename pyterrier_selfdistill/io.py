"""Folders that are written atomically: complete, or not there at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyterrier as pt

METADATA_FILE = "pt_meta.json"
"""The file in the folder of a PyTerrier artifact that says what it is."""


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to write to, which becomes ``path`` on exit.

    If writing fails, what was at ``path`` stays. If the process is killed, it stays too, and a hidden temporary folder
    is left beside it.

    Args:
        path: The folder to write. Folders above it are made; a symbolic link is followed.
        overwrite: Whether to replace a folder that is there.

    Yields:
        The temporary folder.

    Raises:
        FileExistsError: If the folder is there and ``overwrite`` is not set, or if a file is there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with atomic_folder(f"{parent}/model") as folder:
        ...         _ = (folder / "weights").write_text("0.5")
        ...     (Path(parent) / "model" / "weights").read_text()
        '0.5'
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"expected a folder or nothing at {str(path)!r}, got a file; choose another path")
    if target.exists() and not overwrite:
        raise FileExistsError(
            f"{str(path)!r} is there already; choose another folder, or replace this one with overwrite=True"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    replaced = None
    with pt.io.finalized_directory(str(target)) as folder:
        yield Path(folder)
        # renamed, not removed: the old folder is whole until the new one is there
        if target.exists():
            replaced = target.rename(f"{folder}.replaced")
    if replaced is not None:
        shutil.rmtree(replaced)
