"""Processes that may be killed, and that can act just before a given change of the file system.

They are forked from a server that has imported everything already, so that each costs a fraction of a second.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Setup = Callable[[], Callable[[], Any]]
"""Loads everything that a process needs, and returns its work."""

CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
DIED = "ProcessDied"
LAST_WORDS = "just before"
LONG = 300


@dataclass
class Outcome:
    """How the work of a process ended: its value or its error, its seconds, and its changes if they were watched."""

    value: Any = None
    error: str | None = None
    message: str = ""
    seconds: float = 0.0
    changes: int = 0

    @property
    def first_line(self) -> str:
        """The error's class and the first line of its message."""
        return f"{self.error}: {self.message.strip().partition(chr(10))[0]}"


class Child:
    """A process on one thread, whose temporary files and PyTerrier's home are in a folder; a context manager.

    Args:
        setup: Loads everything, and returns the work.
        folder: The folder.
        log: The file it prints to.
        arrange: Is called between the two.
    """

    def __init__(self, setup: Setup, folder: Path, log: Path, arrange: Callable[[], Any] | None = None) -> None:
        # libraries read these when the server imports them; killed processes leave semaphores, of which it would warn
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.chaos.operations"])
        self._connection, other = context.Pipe()
        self.process: Any = context.Process(target=_work, args=(other, setup, folder, log, arrange), daemon=True)
        self.process.start()
        other.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.join()
        self._connection.close()

    def wait(self, seconds: float = LONG) -> Outcome | None:
        """Wait for the next message: None when the work begins or time is over, the outcome when it ends."""
        if not self._connection.poll(seconds):
            return None
        try:
            return self._connection.recv()
        except EOFError:
            return Outcome(error=DIED, message="the process ended without a word")

    def end(self) -> Outcome:
        """Wait until the work ends."""
        return self.wait() or self.wait() or Outcome(error="ProcessHangs", message=f"no end after {LONG} seconds")


def run(setup: Setup, folder: Path, log: Path, arrange: Callable[[], Any] | None = None) -> Outcome:
    """Run a process to its end."""
    with Child(setup, folder, log, arrange) as child:
        return child.end()


def suicide() -> None:
    """Kill this process as the system does when memory is short: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


changes = [0]
"""The number of changes of the file system in this process since they are watched."""


def watch_changes(before: int | None = None, act: Callable[[], Any] = suicide) -> None:
    """Count the changes of the file system in this process, and act before one of them, counted from 1."""

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        flags = arguments[2] if event == "open" else None
        if event not in CHANGING and not (isinstance(flags, int) and flags & WRITING):
            return
        changes[0] += 1
        if changes[0] == before:
            paths = [str(argument) for argument in arguments if isinstance(argument, str | os.PathLike)]
            print(f"\n{LAST_WORDS}", event, *paths[:2], file=sys.stderr, flush=True)
            act()

    sys.addaudithook(hear)


def last_words(log: Path) -> str:
    """Read from a log before which change a process acted."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line.removeprefix(LAST_WORDS).strip() for line in lines[::-1] if line.startswith(LAST_WORDS)), "")


def _work(connection: Connection, setup: Setup, folder: Path, log: Path, arrange: Callable[[], Any] | None) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["PYTERRIER_HOME"] = str(folder / "pyterrier")
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(folder / "tmp")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    outcome = Outcome()
    started = time.monotonic()
    try:
        work = setup()
        if arrange is not None:
            arrange()
        connection.send(None)
        started = time.monotonic()
        value = work()
        outcome.value = value if isinstance(value, dict) else None
    except BaseException as error:
        traceback.print_exc()
        outcome.error, outcome.message = type(error).__name__, str(error)
    outcome.seconds = time.monotonic() - started
    outcome.changes = changes[0]
    connection.send(outcome)
