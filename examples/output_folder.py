"""The folder that an example writes: made, or emptied if it is what the same example wrote before."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

LEFT_BY_A_KILLED_RUN = [".*.lock", ".*.unfinished", ".*.replaced"]


def prepare_output(path: str, example: str, writes: Sequence[str]) -> Path:
    """Make an empty folder for an example.

    Args:
        path: The folder.
        example: The name of the example, which marks the folder as its own.
        writes: Patterns of the names of all that the example writes there.

    Returns:
        The folder.

    Raises:
        FileExistsError: If there is anything that the example did not write. Nothing is removed then.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{path!r} is a file; give a folder as --output")
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / f".{example}"
    own: set[Path] = set()
    if marker.exists():
        for pattern in [marker.name, *writes, *LEFT_BY_A_KILLED_RUN]:
            own.update(folder.glob(pattern))
    foreign = sorted(entry.name for entry in set(folder.iterdir()) - own)
    if foreign:
        raise FileExistsError(
            f"{path!r} holds what {example} did not write: {', '.join(foreign[:3])}; give another folder as --output, "
            "or remove it yourself"
        )
    for entry in own:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    marker.touch()
    return folder
