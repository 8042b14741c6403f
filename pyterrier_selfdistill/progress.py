"""Progress bars, which write lines where there is no terminal.

All bars of this package are ``pt.tqdm``, as are those of PyTerrier and pyterrier-dr. PyTerrier chooses its class by
where it runs, in a notebook or elsewhere. :func:`adapt_to_logs` adds the case that the output is a file, or read by
another process, which a bar that is drawn again and again would fill.
"""

from __future__ import annotations

import time
from typing import Any

import pyterrier as pt
import tqdm

TENTHS = 10
"""How many lines stand for a bar whose length is known, at most."""

SECONDS = 60.0
"""How long to wait before another line, where the length is not known."""


class LogBar(tqdm.tqdm):
    """A progress bar that writes a line for each tenth where there is no terminal, and is drawn where there is one.

    A bar of unknown length writes a line a minute. The last line says how it ended.

    Args:
        *arguments: Those of :class:`tqdm.tqdm`.
        **options: Those of :class:`tqdm.tqdm`.

    Example:
        >>> import io
        >>> log = io.StringIO()
        >>> with LogBar(total=10_000, desc="Training", unit="step", file=log, mininterval=0) as bar:
        ...     for _ in range(10_000):
        ...         _ = bar.update()
        >>> lines = log.getvalue().splitlines()
        >>> len(lines), lines[2].partition("|")[0]
        (10, 'Training:  30%')
    """

    leave: bool

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._written = options.get("initial", 0)
        self._written_at = time.monotonic()
        super().__init__(*arguments, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Draw the bar, or write a line if it is time to."""
        if self._is_drawn:
            return super().display(msg, pos)
        # an empty message wipes the bar away, which tqdm asks for at its end
        if msg is None and self._is_time:
            self._write()
        return None

    def close(self) -> None:
        """Close the bar, whose last line stays."""
        if not self.disable and not self._is_drawn:
            if self.leave and self._written != self.n:
                self._write()
            # tqdm would leave a line of its own
            self.leave = False
        super().close()

    @property
    def _is_drawn(self) -> bool:
        """Whether the output is a terminal, or a notebook, which takes bars as one does."""
        isatty = getattr(self.fp, "isatty", None)
        # the streams of Jupyter's kernels have one, and are no terminals
        in_notebook = hasattr(self.fp, "pub_thread")
        return in_notebook or (isatty is not None and isatty())

    @property
    def _is_time(self) -> bool:
        """Whether another tenth is done, or a minute is over."""
        if not self.total:
            return time.monotonic() - self._written_at >= SECONDS
        return self.n * TENTHS // self.total > self._written * TENTHS // self.total

    def _write(self) -> None:
        self._written = self.n
        self._written_at = time.monotonic()
        self.fp.write(f"{self}\n")
        self.fp.flush()


def adapt_to_logs() -> None:
    """Have ``pt.tqdm`` write lines where there is no terminal, unless a user chose other bars."""
    if pt.tqdm is tqdm.tqdm:
        pt.tqdm = LogBar
