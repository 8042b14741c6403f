"""Processes that say when their work begins and how it ended, and that may be killed in between.

They are forked from a server that has imported everything already, so that each costs a fraction of a second.
:func:`watch_changes` counts the changes of the file system that Python makes in such a process, and does something just
before one of them: what happens at a given change can be repeated, which what happens at a moment cannot.
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
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Setup = Callable[[], Callable[[], Any]]
"""Makes ready what a process needs, and returns its work."""

CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
"""The events, beside opening a file to write, by which Python announces that it changes the file system."""

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT

DIED = "ProcessDied"
"""The error of a process that was killed."""

LAST_WORDS = "just before"
"""How the line begins in which a process says before which change it acts."""

LONG = 300
"""After how many seconds a process hangs."""


@dataclass
class Outcome:
    """How the work of a process ended.

    Attributes:
        value: What it returned.
        error: The class of its error.
        message: The error's message.
        seconds: How long it took.
        changes: How often it changed the file system, if that was watched.
    """

    value: Any = None
    error: str | None = None
    message: str = ""
    seconds: float = 0.0
    changes: int = 0

    @property
    def first_line(self) -> str:
        """The error's class and the first line of its message."""
        return f"{self.error}: {self.message.strip().partition(chr(10))[0]}"


@dataclass
class Child:
    """A process with a temporary folder and a home of PyTerrier of its own, on one thread.

    Args:
        setup: What it does before its work begins, and what it does then.
        folder: Where it keeps what is temporary, and PyTerrier's home.
        log: Where it prints to.
        arrange: What to do between the two.
    """

    setup: Setup
    folder: Path
    log: Path
    arrange: Callable[[], Any] | None = None
    _process: Any = field(default=None, init=False)
    _connection: Any = field(default=None, init=False)

    def __enter__(self) -> Child:
        context = server()
        self._connection, other = context.Pipe()
        arguments = (other, self.setup, self.folder, self.log, self.arrange)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        other.close()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._connection.close()

    def begin(self) -> Outcome | None:
        """Wait until the work begins; return how it ended, if it failed before."""
        return self.wait(LONG)

    def wait(self, seconds: float) -> Outcome | None:
        """Wait for the next that the process says: None when its work begins, or if it says nothing in time.

        A process that was killed by another says nothing more.
        """
        if not self._connection.poll(seconds):
            return None
        try:
            return self._connection.recv()
        except EOFError:
            return Outcome(error=DIED, message="the process ended without a word")

    def end(self) -> Outcome:
        """Wait until the work ends, and return how it did."""
        hangs = Outcome(error="ProcessHangs", message=f"no end after {LONG} seconds")
        return self.begin() or self.wait(LONG) or hangs

    @property
    def pid(self) -> int:
        """The identifier of the process."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the process, if it is there, and wait until it is gone."""
        self._process.kill()
        self._process.join()


def run(setup: Setup, folder: Path, log: Path, arrange: Callable[[], Any] | None = None) -> Outcome:
    """Run a process to its end.

    Args:
        setup: What it does before its work begins, and what it does then.
        folder: Where it keeps what is temporary, and PyTerrier's home.
        log: Where it prints to.
        arrange: What to do between the two.

    Returns:
        How it ended.
    """
    with Child(setup, folder, log, arrange) as child:
        return child.end()


def server() -> multiprocessing.context.ForkServerContext:
    """Return what makes processes: a server that has imported everything, and is started by the first process."""
    # inherited by the server; libraries read the first when they are imported
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # killed processes leave semaphores, which the server removes in the end, and would warn of
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning:multiprocessing.resource_tracker")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.chaos.operations"])
    return context


def suicide() -> None:
    """Kill this process as the system does when memory is short: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Changes:
    """The changes of the file system in this process, since they are watched.

    Attributes:
        number: How many there were.
    """

    number: int = 0


changes = Changes()


def watch_changes(before: int | None = None, act: Callable[[], Any] = suicide) -> None:
    """Count the changes of the file system in this process, and do something before one of them.

    Args:
        before: Before which change to act, counted from 1; None just counts.
        act: What to do then.
    """

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if not _is_change(event, arguments):
            return
        changes.number += 1
        if changes.number == before:
            paths = [str(argument) for argument in arguments if isinstance(argument, str | os.PathLike)]
            print(f"\n{LAST_WORDS}", event, *paths[:2], file=sys.stderr, flush=True)
            act()

    sys.addaudithook(hear)


def last_words(log: Path) -> str:
    """Read before which change a process acted, from what it printed."""
    lines = log.read_text(errors="replace").splitlines()
    words = [line.removeprefix(LAST_WORDS).strip() for line in lines if line.startswith(LAST_WORDS)]
    return words[-1] if words else ""


def _is_change(event: str, arguments: tuple[Any, ...]) -> bool:
    """Tell whether an event of Python's audit is a change of the file system."""
    if event != "open":
        return event in CHANGING
    flags = arguments[2]
    return isinstance(flags, int) and bool(flags & WRITING)


def _work(connection: Connection, setup: Setup, folder: Path, log: Path, arrange: Callable[[], Any] | None) -> None:
    """Do what a child does, in its process."""
    _redirect_output(log)
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
        outcome.value = work()
    except BaseException as error:
        traceback.print_exc()
        outcome.error = type(error).__name__
        outcome.message = str(error)
    outcome.seconds = time.monotonic() - started
    outcome.changes = changes.number
    connection.send(outcome)


def _redirect_output(log: Path) -> None:
    """Have this process print to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
