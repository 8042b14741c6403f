"""What is said and what stays when a disk is full, a folder is read-only, or it is removed meanwhile.

Where file systems may be mounted, disks are small ones in memory. Elsewhere, a full disk is a limit on the size of
files, and a read-only folder one without permission to write for the process, which root runs as another user.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.pages import table

from .kills import left_behind, paths_in
from .materials import Materials
from .operations import Fit, Index, Operation, Save, States
from .processes import Outcome, run, watch_changes
from .report import yes_or_no

SIZE = 16 * 2**20
"""The bytes of a small file system."""

ROOM = 32 * 2**10
"""The bytes that are free on a full disk: fewer than a model, an index or the triples take."""

NOBODY = 65534
"""The user without permissions."""

EXPLANATION = (
    "Each operation replaces a result. FOLDER is where it writes to; left behind is what is there after the error, and "
    "was not before."
)

REMEDIES = ("free ", "choose ", "give ", "make ", "set ", "use ", "begin anew", "check ", "mount ", "stop ")
"""Words by which an error says what to do."""


class Trouble:
    """Something that is wrong with a disk.

    Attributes:
        name: What tables call it.
        keeps_results: Whether what was there before can still be there after it.
    """

    name = ""
    keeps_results = True

    def begin(self, disk: Path) -> None:
        """Make the disk bad."""

    def arrange(self, folder: Path, changes: int) -> Callable[[], Any] | None:
        """Return what makes it bad inside the process that writes.

        Args:
            folder: The folder that is written to.
            changes: How often that is changed, if nothing is wrong.
        """
        return None

    def end(self, disk: Path) -> None:
        """Make the disk good again."""


class FullDisk(Trouble):
    """A file system without room."""

    name = "full disk (tmpfs)"

    def begin(self, disk: Path) -> None:
        """Fill the disk up."""
        free = shutil.disk_usage(disk).free
        (disk / "filler").write_bytes(bytes(free - ROOM))

    def end(self, disk: Path) -> None:
        """Make room."""
        (disk / "filler").unlink()


class LimitedFiles(Trouble):
    """Files that cannot grow, which fail as those on a full disk do."""

    name = "full disk (RLIMIT_FSIZE)"

    def arrange(self, folder: Path, changes: int) -> Callable[[], Any]:
        """Limit the size of files."""
        return limit_files


class ReadOnlyDisk(Trouble):
    """A file system that is mounted read-only."""

    name = "read-only folder (tmpfs)"

    def begin(self, disk: Path) -> None:
        """Mount it read-only."""
        mount("-o", "remount,ro", str(disk))

    def end(self, disk: Path) -> None:
        """Mount it as it was."""
        mount("-o", "remount,rw", str(disk))


class NoPermission(Trouble):
    """A folder that the user may not write to."""

    name = "read-only folder (permissions)"

    def begin(self, disk: Path) -> None:
        """Take permissions."""
        _change_modes(disk, 0o555)

    def arrange(self, folder: Path, changes: int) -> Callable[[], Any] | None:
        """Become a user that permissions bind."""
        return partial(os.setuid, NOBODY) if os.geteuid() == 0 else None

    def end(self, disk: Path) -> None:
        """Give permissions back."""
        _change_modes(disk, 0o755)


class Removed(Trouble):
    """A folder that is removed halfway."""

    name = "folder removed meanwhile"
    keeps_results = False

    def arrange(self, folder: Path, changes: int) -> Callable[[], Any]:
        """Remove the folder just before the change in the middle."""
        return partial(watch_changes, changes // 2, partial(shutil.rmtree, folder))


@dataclass(frozen=True)
class Finding:
    """What came of an operation in trouble.

    Attributes:
        operation: The name of the operation.
        trouble: What was wrong.
        error: The class and the first line of the error.
        names_folder: Whether the error names the folder.
        says_what_to_do: Whether it has a word of a remedy.
        old_result: What became of what was there before.
        left_behind: What is there and was not before.
    """

    operation: str
    trouble: str
    error: str
    names_folder: bool
    says_what_to_do: bool
    old_result: str
    left_behind: list[str]


def operations(materials: Materials) -> list[Operation]:
    """List what gets into trouble; each is to replace a result."""
    few_steps = {"max_steps": 12}
    return [
        Save(materials),
        Index(materials, overwrite=True),
        Fit(materials, "fit over a model", overwrite=True, options=few_steps),
        Fit(materials, "fit with triples of a file", method="fit_triples", overwrite=True, options=few_steps),
    ]


def measure(operations: Sequence[Operation], work: Path) -> list[Finding]:
    """Get operations into all troubles.

    Args:
        operations: The operations.
        work: The folder to work in, which is removed before.

    Returns:
        What came of it.
    """
    disk = work / "disk"
    if disk.is_mount():  # a call that was killed has left it
        unmount(disk)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    can_mount = mounting_works(work / "trial")
    troubles = [FullDisk(), ReadOnlyDisk()] if can_mount else [LimitedFiles(), NoPermission()]
    findings = []
    for number, operation in enumerate(operations):
        undisturbed = work / f"undisturbed-{number}"
        operation.prepare(undisturbed)
        changes = run(partial(operation.setup, undisturbed), undisturbed, work / "log", watch_changes).changes
        for trouble in (*troubles, Removed()):
            with small_disk(disk, can_mount):
                finding = get_into(trouble, operation, disk, changes)
            print(finding, flush=True)
            findings.append(finding)
    return findings


def get_into(trouble: Trouble, operation: Operation, disk: Path, changes: int) -> Finding:
    """Run an operation while something is wrong.

    Args:
        trouble: What is wrong.
        operation: The operation.
        disk: A folder that is a disk.
        changes: How often the operation changes the file system, if nothing is wrong.

    Returns:
        What came of it.
    """
    folder = disk / "results"
    operation.prepare(folder)
    # the process keeps PyTerrier's home and what is temporary there too
    (folder / "tmp").mkdir()
    states = operation.inspect(folder)
    paths = paths_in(folder)
    trouble.begin(disk)
    outcome = run(partial(operation.setup, folder), folder, disk.with_suffix(".log"), trouble.arrange(folder, changes))
    trouble.end(disk)
    old_result = "removed"
    if trouble.keeps_results:
        old_result = _compare(states, operation.inspect(folder))
    return Finding(
        operation.name,
        trouble.name,
        _describe(outcome, folder),
        str(folder) in outcome.message,
        any(word in outcome.message for word in REMEDIES),
        old_result,
        left_behind(folder, paths),
    )


def summarize(findings: Sequence[Finding]) -> str:
    """Write a table with a row for each operation in each trouble."""
    header = [
        "operation",
        "trouble",
        "error",
        "names the folder",
        "says what to do",
        "old result",
        "left behind",
    ]
    rows = []
    for finding in findings:
        rows.append(
            [
                finding.operation,
                finding.trouble,
                finding.error,
                yes_or_no(finding.names_folder),
                yes_or_no(finding.says_what_to_do),
                finding.old_result,
                ", ".join(finding.left_behind) or "nothing",
            ]
        )
    return f"{EXPLANATION}\n\n{table(header, rows)}"


def mounting_works(folder: Path) -> bool:
    """Tell whether this process may mount a file system."""
    try:
        with small_disk(folder, True):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path, is_mounted: bool) -> Iterator[None]:
    """Make a folder, as a file system of its own if it is to be mounted, and remove it in the end."""
    folder.mkdir()
    if is_mounted:
        mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
    try:
        yield
    finally:
        if is_mounted:
            unmount(folder)
        shutil.rmtree(folder)


def mount(*arguments: str) -> None:
    """Mount a file system."""
    subprocess.run(["mount", *arguments], check=True, stderr=subprocess.DEVNULL)


def unmount(folder: Path) -> None:
    """Unmount a file system, though an index that was inspected may still be mapped."""
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def limit_files() -> None:
    """Limit the size of the files that this process writes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error instead of the end of the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))


def _change_modes(folder: Path, mode: int) -> None:
    """Change the permissions of a folder and of all in it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode)


def _describe(outcome: Outcome, folder: Path) -> str:
    """Describe the error, without the paths of this machine."""
    if outcome.error is None:
        return "none"
    return outcome.first_line.replace(str(folder), "FOLDER")


def _compare(before: States, after: States) -> str:
    """Say what became of what was there."""
    changed = []
    for name, state in before.items():
        if state is not None and after.get(name) != state:
            changed.append(f"{name} {after.get(name) or 'lost'}")
    return ", ".join(changed) or "intact"
