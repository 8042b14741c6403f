"""Records of runs: a folder with one JSON-lines file a grid, to which several processes may append.

A record is a line. It is appended under a lock, with one write, and is on disk when :meth:`Records.append` returns. A
process that is killed while it writes leaves a line without an end: reading ignores it, and the next append cuts it.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

logger = logging.getLogger(__name__)

Record = dict[str, Any]
"""What a run gave: its ``key``, its settings (``run``), measures, costs, and where and with what it was made."""


class Records:
    """The records in a folder.

    Args:
        folder: The folder, which is made when the first record is appended.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     records = Records(folder)
        ...     records.append("variants", {"key": "782c9a491be5", "means": {"tiny/test": {"nDCG@10": 0.5}}})
        ...     records.read()["782c9a491be5"]["means"]
        {'tiny/test': {'nDCG@10': 0.5}}
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def read(self) -> dict[str, Record]:
        """Read all records.

        Returns:
            The records of all files by key.

        Raises:
            ValueError: If a line that has an end is not a record.
        """
        records = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for number, line in enumerate(_complete_lines(path), 1):
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} of {str(path)!r} is not a record: {error}; remove it") from error
                records[record["key"]] = record
        return records

    def append(self, grid: str, record: Record) -> None:
        """Append a record to the file of a grid, unless there is one of its key already, in whichever file.

        Args:
            grid: The grid.
            record: The record.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{grid}.jsonl"
        line = json.dumps(record, separators=(",", ":")) + "\n"
        with FileLock(self.folder / ".lock"):
            # the locks of runs are in the folder --work, which two processes with the same records may not share
            if record["key"] in self.read():
                logger.warning("%s: another process has appended its record", record["key"])
                return
            _cut_torn_line(path)
            with path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())  # a run takes minutes, and must not be lost with the machine


def _complete_lines(path: Path) -> list[bytes]:
    """Read the lines of a file that have an end."""
    lines = path.read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    return lines


def _cut_torn_line(path: Path) -> None:
    """Cut what a killed process has left after the last line that has an end."""
    if not path.exists():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        logger.warning("cutting the last line of %s, which a killed process has left torn", path)
        os.truncate(path, complete)
