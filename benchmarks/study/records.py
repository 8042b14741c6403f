"""Records of runs: a folder with a JSON-lines file for each grid, to which several processes may append.

A process that is killed while it writes leaves a line without an end: reading ignores it, the next append cuts it.
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
"""The result of a run: its ``key``, its settings (``run``), measures, costs, machine and versions."""


class Records:
    """The records in a folder, which is made with the first one.

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
        """Read the records of all files by key.

        Raises:
            ValueError: If a complete line is not a record.
        """
        records = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
                if not line.endswith(b"\n"):
                    continue
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise ValueError(f"line {number} of {str(path)!r} is not a record: {error}; remove it") from error
                records[record["key"]] = record
        return records

    def append(self, grid: str, record: Record) -> None:
        """Append a record to the file of a grid, unless a file has its key already; it is on disk when this returns."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self.folder / ".lock"):
            # runs are locked in the folder --work, which processes with the same records may not share
            if record["key"] in self.read():
                logger.warning("%s: another process has appended its record", record["key"])
                return
            with (self.folder / f"{grid}.jsonl").open("a+b") as file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)  # a torn last line
                file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
