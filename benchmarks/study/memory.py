"""The memory of this process."""

from __future__ import annotations

import threading
from pathlib import Path


class PeakMemory:
    """The most memory of this process that no file backs, in MB, read every 50 ms.

    Attributes:
        peak: That memory, since the context was entered.
    """

    def __enter__(self) -> PeakMemory:
        self.peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.peak = max(self.peak, resident("RssAnon"))


def resident(name: str) -> float:
    """Read a line of the process's status, in MB.

    Args:
        name: How the line begins, such as ``RssAnon``.

    Returns:
        The number in it.

    Raises:
        KeyError: If there is no such line.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            kilobytes = int(line.split()[1])
            return kilobytes / 1024
    raise KeyError(f"/proc/self/status has no line {name!r}")
