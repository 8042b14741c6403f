"""The experiments: kills, bad disks, competing processes and memory. Each returns Markdown."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import linregress

from benchmarks.machine import resident
from benchmarks.pages import table
from pyterrier_selfdistill import SelfDistillBiEncoder

from .operations import BROKEN, Fit, Index, Operation, Save, corpus, open_index, records, topics, vectors
from .processes import DIED, Child, Outcome, last_words, run, watch_changes

MOMENT, CHANGE = KINDS = ("moment", "change")
"""Kills at a random moment, and just before a change of the file system."""

MOST_KILLS = 4
SIZE = 16 * 2**20
ROOM = 32 * 2**10  # the free bytes of a full disk: fewer than a model, an index or the triples take
REMEDIES = ("free ", "choose ", "give ", "make ", "set ", "use ", "begin anew", "check ", "mount ", "stop ")
DEPTH = 10
SAMPLES = 240
WARM_UP = 0.1


@dataclass(frozen=True)
class Reference:
    """An undisturbed run: its folder, its seconds, its changes of the file system and the checksum of its result."""

    folder: Path
    seconds: float
    changes: int
    fingerprint: str


@dataclass
class Episode:
    """A run with its kills: the faults after each kill and in the end."""

    kind: str
    kills: int = 0
    broken: int = 0
    lost: int = 0
    is_identical: bool = False
    left_behind: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def measure_kills(operations: Sequence[Operation], work: Path, kills: int, seed: int) -> str:
    """Kill operations as often as asked for, in all and of each kind."""
    rows, faults = [], []
    for position, operation in enumerate(operations):
        episodes: list[Episode] = []
        try:
            reference = run_undisturbed(operation, work / f"undisturbed-{position}", work / "log")
            for kind in KINDS:
                missing, number = kills // len(operations) + (position < kills % len(operations)), 0
                while missing > 0 and number < 9 + kills:
                    generator = np.random.default_rng(zlib.crc32(f"{seed}/{operation.name}/{kind}/{number}".encode()))
                    most = min(missing, int(generator.integers(MOST_KILLS)) + 1)
                    episodes.append(
                        play(operation, reference, work / f"killed-{position}", kind, most=most, generator=generator)
                    )
                    print(operation.name, episodes[-1], flush=True)
                    missing, number = missing - episodes[-1].kills, number + 1
        except RuntimeError as error:
            faults.append(f"{operation.name}: {error}")
        numbers = [sum(episode.kills for episode in episodes if episode.kind == kind) for kind in KINDS]
        numbers += [sum(getattr(episode, fault) for episode in episodes) for fault in ("broken", "lost")]
        ends = [
            sum(map(bool, flags)) for flags in zip(*[(e.is_identical, e.left_behind) for e in episodes], strict=True)
        ]
        rows.append([operation.name, *numbers, *[f"{number} of {len(episodes)} runs" for number in ends or (0, 0)]])
        faults += [f"{operation.name}: {fault}" for episode in episodes for fault in episode.faults]
    header = ["operation", "kills at random", "kills before a change", "half-written", "lost", "same result in the end"]
    return "\n\n".join(filter(None, [table([*header, "files left behind"], rows), fault_list(faults)]))


def run_undisturbed(operation: Operation, folder: Path, log: Path) -> Reference:
    """Run an operation twice, to take its time and to count its changes; raise RuntimeError if the two differ."""
    fingerprints, outcomes = set(), []
    for arrange in (None, watch_changes):
        shutil.rmtree(folder, ignore_errors=True)
        operation.prepare(folder)
        outcomes.append(run(partial(operation.setup, folder), folder, log, arrange))
        if outcomes[-1].error:
            raise RuntimeError(f"undisturbed, it failed with {outcomes[-1].first_line}")
        fingerprints.add(operation.fingerprint(folder))
    if len(fingerprints) > 1:
        raise RuntimeError("two undisturbed runs have different results")
    seconds = min(outcome.seconds for outcome in outcomes)
    return Reference(folder, seconds, outcomes[1].changes, fingerprints.pop())


def play(operation: Operation, reference: Reference, folder: Path, kind: str, *, most: int, generator: Any) -> Episode:
    """Kill a run up to some times, let it run to its end, and compare it with an undisturbed one."""
    episode = Episode(kind)
    shutil.rmtree(folder, ignore_errors=True)
    operation.prepare(folder)
    setup, log = partial(operation.setup, folder), folder.with_suffix(".log")
    before, outcome = operation.inspect(folder, reference.folder), Outcome(error=DIED)
    while episode.kills < most and outcome.error == DIED:
        log.unlink(missing_ok=True)
        if kind == MOMENT:
            with Child(setup, folder, log) as child:
                outcome = child.wait() or child.wait(generator.uniform(0, reference.seconds)) or Outcome(error=DIED)
            when = "at a moment"
        else:
            number = int(generator.integers(reference.changes)) + 1
            outcome = run(setup, folder, log, partial(watch_changes, number))
            when = f"just before {last_words(log)}"
        if outcome.error != DIED:
            break
        after = operation.inspect(folder, reference.folder)
        broken = [f"{name} {version}" for name, version in after.items() if version and version.startswith(BROKEN)]
        lost = [f"{name} lost" for name, version in before.items() if version and not after.get(name)]
        episode.kills, before = episode.kills + 1, after
        episode.broken, episode.lost = episode.broken + bool(broken), episode.lost + bool(lost)
        episode.faults += [f"{fault}, after a kill {when}" for fault in [*broken, *lost]]
    if outcome.error in (None, DIED):
        outcome = run(setup, folder, log)
    episode.is_identical = has_result_of(operation, folder, reference)
    episode.left_behind = left_behind(folder, paths_in(reference.folder))
    episode.faults += [f"left behind {path}" for path in episode.left_behind]
    if outcome.error:
        episode.faults.append(f"the run that was to go on failed with {outcome.first_line}")
    elif not episode.is_identical:
        episode.faults.append("the run that went on has another result")
    return episode


def has_result_of(operation: Operation, folder: Path, reference: Reference) -> bool:
    """Tell whether the result in a folder equals the reference's, and all results there are whole."""
    try:
        states = operation.inspect(folder, reference.folder).values()
        if any(version and version.startswith(BROKEN) for version in states):
            return False
        return operation.fingerprint(folder) == reference.fingerprint
    except Exception:  # there is no result
        return False


def left_behind(folder: Path, before: set[Path]) -> list[str]:
    """List the new paths in a folder without locks, and without the content of new folders."""
    found: list[Path] = []
    for path in sorted(paths_in(folder) - before):
        if not path.name.endswith("lock") and not any(path.is_relative_to(other) for other in found):
            found.append(path)
    return list(map(str, found))


def paths_in(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def fault_list(faults: Iterable[str], title: str = "Faults") -> str:
    """List the most frequent faults, without places on this machine, processes, times and random parts of names."""
    plain = [re.sub(r"(?<![\w.])/(?:[^\s'/]+/)+", "", fault) for fault in faults]
    plain = [
        re.sub(r"process \d+ on \S+ (.*), since [\d :+-]+\d", r"process N on HOST \1, since TIME", fault)
        for fault in plain
    ]
    counts = Counter(re.sub(r"(?<=tmp)[a-z0-9_]{8}|(?<=\.)[a-z0-9_]{8}(?=\.tmp)", "*", fault) for fault in plain)
    lines = [f"- {fault} ({number} times)" for fault, number in counts.most_common(20)]
    return f"{title}:\n\n" + "\n".join(lines) if lines else ""


@dataclass(frozen=True)
class Trouble:
    """Something that is wrong with a disk."""

    name: str
    begin: Callable[[Path], Any] = lambda disk: None
    arrange: Callable[[], Any] | None = None
    end: Callable[[Path], Any] = lambda disk: None


def limit_files() -> None:
    """Limit the size of the files that this process writes, which then fail as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error instead of the end of the process
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))


LIMITED = Trouble("full disk (RLIMIT_FSIZE)", arrange=limit_files)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, stderr=subprocess.DEVNULL)


def fill(disk: Path) -> None:
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - ROOM))


MOUNTED = [
    Trouble("full disk (tmpfs)", fill, end=lambda disk: (disk / "filler").unlink()),
    Trouble(
        "read-only folder (tmpfs)",
        lambda disk: mount("-o", "remount,ro", str(disk)),
        end=lambda disk: mount("-o", "remount,rw", str(disk)),
    ),
]


@contextmanager
def small_disk(folder: Path, is_mounted: bool) -> Iterator[None]:
    """Make a folder, as a small file system in memory if one may be mounted, and remove it in the end."""
    folder.mkdir(parents=True)
    if is_mounted:
        mount("-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
    try:
        yield
    finally:
        if is_mounted:  # lazily, since an index may still be mapped
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(folder)


def measure_disks(materials: Path, work: Path) -> str:
    """Get operations into trouble with disks; without permission to mount, by a limit on files."""
    few_steps = {"max_steps": 12}
    operations: list[Operation] = [
        Save("save over a model", materials),
        Index("build over an index", materials, overwrite=True),
        Fit("fit over a model", materials, overwrite=True, options=few_steps),
        Fit("fit with triples of a file", materials, method="fit_triples", overwrite=True, options=few_steps),
    ]
    disk, can_mount = work / "disk", True
    try:
        with small_disk(work / "trial", True):
            pass
    except (OSError, subprocess.CalledProcessError):
        can_mount = False
    rows = []
    for position, operation in enumerate(operations):
        undisturbed = work / f"undisturbed-{position}"
        operation.prepare(undisturbed)
        changes = run(partial(operation.setup, undisturbed), undisturbed, work / "log", watch_changes).changes
        remove = partial(watch_changes, changes // 2, partial(shutil.rmtree, disk / "results"))
        removed = Trouble("folder removed meanwhile", arrange=remove)
        for trouble in [*(MOUNTED if can_mount else [LIMITED]), removed]:
            with small_disk(disk, can_mount):
                rows.append([operation.name, trouble.name, *get_into(trouble, operation, disk)])
            print(rows[-1], flush=True)
    header = ["operation", "trouble", "error", "names the folder", "names a remedy", "old result", "files left behind"]
    example = f"For example, `{rows[0][2]}`."
    return f"{table(header, [[*row[:2], row[2].partition(':')[0], *row[3:]] for row in rows])}\n\n{example}"


def get_into(trouble: Trouble, operation: Operation, disk: Path) -> list[str]:
    """Run an operation in trouble: the error, whether it names the folder and a remedy, and the state afterwards."""
    folder = disk / "results"
    operation.prepare(folder)
    (folder / "tmp").mkdir()
    states, paths = operation.inspect(folder), paths_in(folder)
    trouble.begin(disk)
    outcome = run(partial(operation.setup, folder), folder, disk.with_suffix(".log"), trouble.arrange)
    trouble.end(disk)
    old_result = "removed"
    if trouble.name != "folder removed meanwhile":
        after = operation.inspect(folder)
        changed = [f"{name} {after.get(name) or 'lost'}" for name in states if states[name] not in (None, after[name])]
        old_result = ", ".join(changed) or "intact"
    said = {True: "yes", False: "no"}
    names_folder = said[str(folder) in outcome.message] if outcome.error else ""
    names_remedy = said[any(word in outcome.message for word in REMEDIES)] if outcome.error else ""
    return [
        outcome.first_line.replace(str(folder), "FOLDER") if outcome.error else "none",
        names_folder,
        names_remedy,
        old_result,
        ", ".join(left_behind(folder, paths)) or "none",
    ]


def query_vector() -> np.ndarray:
    """Make the vector of a query between documents of both versions of the index."""
    vector = vectors("old")[7] + vectors("new")[7]
    return vector / np.linalg.norm(vector)


def mixture(found: pd.DataFrame) -> str | None:
    """Say how an answer differs from the answer of each version of the index; None if it is one of them."""
    versions = set(found["docno"].str.partition("-")[0])
    if len(versions) > 1:
        return "documents of two versions"
    version = versions.pop()
    scores = vectors(version) @ query_vector()
    best = np.argsort(-scores)[:DEPTH]
    if not np.allclose(sorted(found["score"]), sorted(scores[best]), atol=1e-5):
        return "documents of one version with the scores of another"
    return None if set(found["docno"]) == {f"{version}-{row}" for row in best} else "other documents"


def repeat(work: Callable[[int], str | None], seconds: float) -> dict[str, Any]:
    """Work again and again, and count the mixtures it returns and the errors it raises."""
    done, mixed, errors = 0, Counter[str](), Counter[str]()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            mixture = work(done)
        except Exception as error:
            errors[f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"] += 1
            continue
        done += 1
        mixed[mixture or ""] += mixture is not None
    return {"done": done, "mixed": +mixed, "errors": errors}


def prepare_neighbour(folder: Path, seconds: float, name: str) -> Callable[[], dict[str, Any]]:
    """Prepare to replace an index, or to search it, again and again."""
    kept = open_index(folder)
    if name == "replaces the index":
        versions = [records("new"), records("old")]
        return partial(
            repeat, lambda number: kept.indexer(mode="overwrite").index(versions[number % 2]) and None, seconds
        )
    queries = pd.DataFrame({"qid": ["q"], "query_vec": [query_vector()]})

    def search(number: int) -> str | None:
        index = kept if name == "searches the same open index" else open_index(folder)
        return mixture(index.retriever(num_results=DEPTH)(queries))

    return partial(repeat, search, seconds)


def measure_neighbours(materials: Path, work: Path, seconds: float, rounds: int = 3) -> str:
    """Search an index while it is replaced, and have two processes build one index or train in one folder."""
    folder = work / "results"
    Index("", materials, overwrite=True).prepare(folder)
    names = ["replaces the index", *["searches the same open index", "opens the index for each search"] * 4]
    rows, faults = [], []
    with ExitStack() as stack:
        setups = [partial(prepare_neighbour, folder, seconds, name) for name in names]
        children = [stack.enter_context(Child(setup, work / f"{n}", work / "log")) for n, setup in enumerate(setups)]
        outcomes = [child.end() for child in children]
    failed = [f"{name}: {each.first_line}" for name, each in zip(names, outcomes, strict=True) if each.value is None]
    for name in dict.fromkeys(names):
        values = [each.value for each, other in zip(outcomes, names, strict=True) if other == name and each.value]
        mixed, errors = (sum((value[key] for value in values), Counter[str]()) for key in ("mixed", "errors"))
        rows.append([names.count(name), name, sum(value["done"] for value in values), mixed.total(), errors.total()])
        faults += [f"{name}: {fault}" for fault in (mixed + errors).elements()]
    searching = table(["processes", "each of them", "times", "mixed answers", "errors"], rows)
    options: dict[str, Any] = {"options": {"num_train_epochs": 3}}
    operations: list[Operation] = [
        Index('build with mode="create"', materials, pause=1.0),
        Fit("fit with resume=True", materials, **options),
        Fit("fit with overwrite=True", materials, overwrite=True, **options),
    ]
    meetings = []
    for position, operation in enumerate(operations):
        row, errors = meet(operation, work / f"meeting-{position}", rounds)
        meetings.append([operation.name, rounds, *row])
        faults += [f"{operation.name}: {error}" for error in errors]
    header = ["two processes at once", "times", "both ended", "one failed", "error names the other", "whole result"]
    errors = fault_list([*failed, *faults], "Errors")
    return "\n\n".join(filter(None, [searching, table(header, meetings), errors]))


def meet(operation: Operation, work: Path, rounds: int) -> tuple[list[int], list[str]]:
    """Run an operation in two processes at once; count the ends, the errors that name the other, and the results."""
    reference = run_undisturbed(operation, work / "undisturbed", work / "log")
    counts, errors = np.zeros(4, dtype=int), []
    for number in range(rounds):
        folder = work / f"results-{number}"
        operation.prepare(folder)
        setup = partial(operation.setup, folder)
        with Child(setup, work / "one", work / "log") as one, Child(setup, work / "two", work / "log") as two:
            pids = two.process.pid, one.process.pid
            ends = list(zip((one.end(), two.end()), pids, strict=True))
        failed = [(outcome, other) for outcome, other in ends if outcome.error]
        named = sum(str(other) in outcome.message for outcome, other in failed)
        counts += [not failed, len(failed) == 1, named, has_result_of(operation, folder, reference)]
        errors += [outcome.first_line for outcome, _ in failed]
    return counts.tolist(), errors


def measure_memory(materials: Path, work: Path, minutes: float) -> str:
    """Search and re-rank in a process for a long time, and see whether memory or open files grow."""
    log = work / "log"
    with Child(partial(prepare_searching, materials, work, 60 * minutes), work, log) as child:
        outcome = child.wait() or child.wait(60 * minutes + 60) or Outcome(error="ProcessHangs")
    if outcome.value is None:
        raise RuntimeError(f"searching for {minutes} minutes failed: {outcome.first_line}; see {str(log)!r}")
    value = outcome.value
    header = ["minutes", "iterations", "MB after warm-up", "MB at the end", "MB an hour", "open files, start and end"]
    row = [f"{minutes:g}", f"{value['iterations']:,}", *[f"{megabytes:.1f}" for megabytes in value["megabytes"]]]
    row += [f"{value['slope']:.2f} ± {value['error']:.2f}", "{} and {}".format(*value["files"])]
    return table(header, [row])


def prepare_searching(materials: Path, work: Path, seconds: float) -> Callable[[], dict[str, Any]]:
    """Build an index, and prepare to search it and to re-rank."""
    encoder = SelfDistillBiEncoder.from_pretrained(materials, device="cpu")
    index = open_index(work)
    indexing: Any = encoder >> index
    indexing.index(corpus().to_dict(orient="records"))
    search, texts, queries = encoder >> index.retriever(num_results=20), corpus().set_index("docno")["text"], topics()

    def work_once() -> None:
        results = search.transform(queries)
        index.scorer().transform(results)
        encoder.text_scorer().transform(results[["qid", "query", "docno"]].assign(text=results["docno"].map(texts)))

    return partial(watch, work_once, seconds)


def watch(work: Callable[[], None], seconds: float) -> dict[str, Any]:
    """Work again and again, and fit a line to resident memory, read at equal distances after the warm-up."""
    work()  # files are opened when they are needed
    files, started, iterations = [len(os.listdir("/proc/self/fd"))], time.monotonic(), 0
    samples: list[tuple[float, float]] = []
    while (passed := time.monotonic() - started) < seconds:
        work()
        iterations += 1
        if passed >= WARM_UP * seconds + len(samples) * seconds / SAMPLES:
            samples.append((passed / 3600, resident("VmRSS")))
    line = linregress(*zip(*samples, strict=True))
    megabytes = [samples[0][1], samples[-1][1]]
    growth = {"slope": float(line.slope), "error": float(line.stderr)}
    return {
        "iterations": iterations,
        "megabytes": megabytes,
        "files": [*files, len(os.listdir("/proc/self/fd"))],
        **growth,
    }
