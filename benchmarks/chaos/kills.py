"""Kill processes while they write, see whether what they leave is whole, and let them go on.

A process is killed at a moment, drawn uniformly from the time that it takes, or just before one of the changes that
it makes to the file system. In an episode it is killed a few times and then runs to its end; what is there then is
compared with what an undisturbed run leaves.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import table
from benchmarks.study.records import Records

from .operations import BROKEN, Operation, States
from .processes import DIED, Child, Outcome, last_words, run, watch_changes
from .report import fault_list

MOMENT, CHANGE = KINDS = ("moment", "change")
"""Kills at a moment, and just before a change."""

MOST_KILLS = 4
"""How often a process is killed at most, before it runs to its end."""

EXPLANATION = (
    "A run is killed up to four times, at a random moment or just before a change of the file system, and goes on to "
    "its end after that. Its result is identical if its checksum is that of a run that was never killed. Kills are "
    "counted in the first four columns of numbers, runs in the others."
)

MOST_FAILURES = 5
"""After how many episodes without a kill an operation is given up."""


@dataclass
class Episode:
    """A run with its kills.

    Attributes:
        key: What it is called in the records.
        operation: The name of the operation.
        kind: Whether it is killed at a moment or just before a change.
        kills: For each kill, when it was (``at``), and what was half-written (``broken``) and ``lost`` after it.
        is_identical: Whether the result in the end is that of an undisturbed run.
        left_behind: What is there in the end, and would not be after an undisturbed run.
        error: The error of a run that did not come to its end.
    """

    key: str
    operation: str
    kind: str
    kills: list[dict[str, Any]] = field(default_factory=list)
    is_identical: bool = False
    left_behind: list[str] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class Reference:
    """An undisturbed run.

    Attributes:
        folder: Its folder.
        seconds: How long it took.
        changes: How often it changed the file system.
        fingerprint: The checksum of its result.
    """

    folder: Path
    seconds: float
    changes: int
    fingerprint: str


class Campaign:
    """All kills of some operations.

    Args:
        operations: The operations.
        work: The folder to work in. Episodes are appended to ``records/kills.jsonl`` there, and those that are in it
            are not played again.
        version: The version of the package.
        seed: The seed of all that is drawn.
    """

    def __init__(self, operations: Sequence[Operation], work: Path, version: str, seed: int) -> None:
        self.operations = operations
        self.work = work
        self.version = version
        self.seed = seed
        self.records = Records(work / "records")

    def run(self, numbers: Mapping[str, int]) -> list[Episode]:
        """Kill until there are enough kills.

        Args:
            numbers: How many kills of each kind, of all operations together.

        Returns:
            The episodes.
        """
        for position, operation in enumerate(self.operations):
            missing: dict[str, int] = {}
            for kind, number in numbers.items():
                common, rest = divmod(number, len(self.operations))
                done = sum(len(episode.kills) for episode in self.episodes(operation, kind))
                missing[kind] = common + (position < rest) - done
            if max(missing.values()) > 0:
                self._run_operation(operation, missing)
        found = []
        for operation in self.operations:
            for kind in KINDS:
                found += self.episodes(operation, kind)
        return found

    def episodes(self, operation: Operation, kind: str) -> list[Episode]:
        """Read the episodes of an operation."""
        prefix = self._key(operation, kind, "")
        return [Episode(**record) for key, record in self.records.read().items() if key.startswith(prefix)]

    def _key(self, operation: Operation, kind: str, name: object) -> str:
        return f"{self.version}/{self.seed}/{operation.name}/{kind}/{name}"

    def _run_operation(self, operation: Operation, missing: Mapping[str, int]) -> None:
        """Kill an operation until no kill of a kind is missing."""
        slug = operation.name.replace(" ", "-")
        log = self.work / f"{slug}.log"
        try:
            reference = run_undisturbed(operation, self.work / "undisturbed" / slug, log)
        except RuntimeError as error:
            key = self._key(operation, MOMENT, "undisturbed")
            self._append(Episode(key, operation.name, MOMENT, error=str(error)))
            return
        player = Player(operation, reference, self.work / "killed" / slug, log)
        for kind, number in missing.items():
            self._play(player, kind, number)

    def _play(self, player: Player, kind: str, missing: int) -> None:
        """Play episodes until no kill is missing."""
        operation = player.operation
        failures = 0
        while missing > 0 and failures < MOST_FAILURES:
            number = len(self.episodes(operation, kind))
            draws = f"{self.seed}/{operation.name}/{kind}/{number}"
            generator = np.random.default_rng(zlib.crc32(draws.encode()))
            most = min(missing, int(generator.integers(MOST_KILLS)) + 1)
            episode = Episode(self._key(operation, kind, number), operation.name, kind)
            player.play(episode, most, generator)
            self._append(episode)
            missing -= len(episode.kills)
            failures += not episode.kills

    def _append(self, episode: Episode) -> None:
        """Append an episode to the records, and print it."""
        record = asdict(episode)
        print(json.dumps(record), flush=True)
        self.records.append("kills", record)


class Player:
    """Plays episodes of an operation.

    Args:
        operation: The operation.
        reference: An undisturbed run of it.
        folder: The folder to write to, which is removed before.
        log: Where processes print to.
    """

    def __init__(self, operation: Operation, reference: Reference, folder: Path, log: Path) -> None:
        self.operation = operation
        self.reference = reference
        self.folder = folder
        self.log = log
        self.setup = partial(operation.setup, folder)

    def play(self, episode: Episode, most: int, generator: np.random.Generator) -> None:
        """Kill, and run to the end.

        Args:
            episode: Where to note what comes of it.
            most: How often to kill.
            generator: Draws when to kill.
        """
        kill = self._kill_at_moment if episode.kind == MOMENT else self._kill_at_change
        shutil.rmtree(self.folder, ignore_errors=True)
        self.operation.prepare(self.folder)
        before = self._inspect()
        for _ in range(most):
            killed_at, ended = kill(generator)
            if ended is not None:
                episode.error = self._error(ended)
                break
            after = self._inspect()
            broken = [f"{name} {state}" for name, state in after.items() if state and state.startswith(BROKEN)]
            lost = [name for name, state in before.items() if state and not after.get(name)]
            episode.kills.append({"at": killed_at, "broken": broken, "lost": lost})
            before = after
        outcome = run(self.setup, self.folder, self.log)
        episode.error = episode.error or self._error(outcome)
        episode.is_identical = has_result_of(self.operation, self.folder, self.reference)
        episode.left_behind = left_behind(self.folder, paths_in(self.reference.folder))

    def _inspect(self) -> States:
        """See what there is, without the name of the folder."""
        states = self.operation.inspect(self.folder, self.reference.folder)
        return {name: state and self._without_folder(state) for name, state in states.items()}

    def _kill_at_moment(self, generator: np.random.Generator) -> tuple[str, Outcome | None]:
        """Kill a process at a moment; return the moment, and how the process ended, if it came to its end before."""
        seconds = generator.uniform(0, self.reference.seconds)
        with Child(self.setup, self.folder, self.log) as child:
            ended = child.begin() or child.wait(seconds)
        return f"{seconds:.3f} s", ended

    def _kill_at_change(self, generator: np.random.Generator) -> tuple[str, Outcome | None]:
        """Have a process kill itself just before a change; return the change, and how it ended, if it came so far."""
        number = int(generator.integers(self.reference.changes)) + 1
        self.log.unlink(missing_ok=True)
        outcome = run(self.setup, self.folder, self.log, partial(watch_changes, number))
        change = self._without_folder(f"change {number}: {last_words(self.log)}")
        return change, None if outcome.error == DIED else outcome

    def _error(self, outcome: Outcome) -> str:
        """Describe an error, if there is one."""
        return self._without_folder(outcome.first_line) if outcome.error else ""

    def _without_folder(self, text: str) -> str:
        """Shorten the paths in a text."""
        return text.replace(f"{self.folder}/", "")


def run_undisturbed(operation: Operation, folder: Path, log: Path) -> Reference:
    """Run an operation twice: to take its time, and to count its changes.

    Args:
        operation: The operation.
        folder: The folder to write to, which is removed before.
        log: Where processes print to.

    Returns:
        The second run.

    Raises:
        RuntimeError: If it fails, or the two differ.
    """
    fingerprints = set()
    times = []
    for arrange in (None, watch_changes):
        shutil.rmtree(folder, ignore_errors=True)
        operation.prepare(folder)
        outcome = run(partial(operation.setup, folder), folder, log, arrange)
        if outcome.error:
            raise RuntimeError(f"undisturbed, it failed with {outcome.first_line}")
        fingerprints.add(operation.fingerprint(folder))
        times.append(outcome.seconds)
    if len(fingerprints) > 1:
        raise RuntimeError("two undisturbed runs have different results")
    return Reference(folder, min(times), outcome.changes, fingerprints.pop())


def has_result_of(operation: Operation, folder: Path, reference: Reference) -> bool:
    """Tell whether the result in a folder is that of an undisturbed run, and all that is there is whole."""
    states = operation.inspect(folder, reference.folder)
    if any(state and state.startswith(BROKEN) for state in states.values()):
        return False
    try:
        return operation.fingerprint(folder) == reference.fingerprint
    except Exception:  # whatever it is, there is no result
        return False


def left_behind(folder: Path, before: Set[Path]) -> list[str]:
    """List what is in a folder beside some paths, without files that are locks, and without what is in a listed one."""
    found: list[Path] = []
    for path in sorted(paths_in(folder) - before):
        is_inside = any(path.is_relative_to(other) for other in found)
        if not is_inside and not path.name.endswith("lock"):
            found.append(path)
    return [str(path) for path in found]


def paths_in(folder: Path) -> set[Path]:
    """List all files and folders in a folder, relative to it."""
    return {path.relative_to(folder) for path in folder.rglob("*")}


def summarize(episodes: Sequence[Episode]) -> str:
    """Write a table with a row for each operation, and the faults that were seen."""
    rows = []
    faults = []
    for operation in dict.fromkeys(episode.operation for episode in episodes):
        played = [episode for episode in episodes if episode.operation == operation]
        rows.append([operation, *_figures(played)])
        for episode in played:
            faults += [f"{operation}: {fault}" for fault in _faults(episode)]
    header = ["operation", "kills at a moment", "before a change", "half-written", "lost", "identical", "left behind"]
    return "\n\n".join(filter(None, [EXPLANATION, table(header, rows), fault_list(faults)]))


def _figures(episodes: Sequence[Episode]) -> list[object]:
    """Count what became of an operation: kills, and then runs."""
    kills = [(episode.kind, kill) for episode in episodes for kill in episode.kills]
    return [
        sum(kind == MOMENT for kind, _ in kills),
        sum(kind == CHANGE for kind, _ in kills),
        sum(bool(kill["broken"]) for _, kill in kills),
        sum(bool(kill["lost"]) for _, kill in kills),
        f"{sum(episode.is_identical for episode in episodes)} of {len(episodes)} runs",
        f"{sum(bool(episode.left_behind) for episode in episodes)} of {len(episodes)} runs",
    ]


def _faults(episode: Episode) -> list[str]:
    """Say what was wrong in an episode."""
    faults = []
    for kill in episode.kills:
        faults += [f"{broken}, after a kill {_when(episode, kill)}" for broken in kill["broken"]]
        faults += [f"{name} lost, after a kill {_when(episode, kill)}" for name in kill["lost"]]
    faults += [f"left behind {path}" for path in episode.left_behind]
    if episode.error:
        faults.append(f"the run that was to go on failed with {episode.error}")
    elif not episode.is_identical:
        faults.append("the run that went on has another result")
    return faults


def _when(episode: Episode, kill: Mapping[str, Any]) -> str:
    """Say when a kill was; moments differ each time, changes do not."""
    if episode.kind == MOMENT:
        return "at a moment"
    change = kill["at"].partition(": ")[2]
    return f"just before {change}"
