"""The engine of the fuzz: an entry point makes valid input, changes spoil it, and an oracle judges the outcome."""

from __future__ import annotations

import dis
import itertools
import logging
import random
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pyterrier.validate import InputValidationError

PACKAGE = "pyterrier_selfdistill"
SECONDS = 30


class Outcome(Enum):
    RIGHT = "right"
    CLEAR = "clear error"
    HIDDEN = "hides its cause"
    WRONG = "silently wrong"
    REFUSED = "valid, but refused"
    HANGS = "hangs"


class Change(NamedTuple):
    """A change of the arguments. An error must name one of the names, so that its reader finds the place."""

    text: str
    apply: Callable[[Mapping[str, Any]], dict[str, Any]]
    names: Sequence[str]


class Refusal(NamedTuple):
    """The right answer to valid arguments that contradict each other: an error that names one of the names."""

    names: Sequence[str]


class WrongAnswerError(Exception):
    """An answer is wrong before it is compared."""


class Changes(NamedTuple):
    """Groups of changes.

    Equivalent ones keep the meaning of the input: the answer stays the same, or an error says why not. Damaged ones may
    keep it, and after malformed ones there is no answer.
    """

    equivalent: Sequence[Sequence[Change]] = ()
    damaged: Sequence[Sequence[Change]] = ()
    malformed: Sequence[Sequence[Change]] = ()


class Entry:
    """An entry point of the package: valid arguments, their right answer by the definition, and how to spoil them."""

    name: str
    changes: tuple[Changes, ...]
    milliseconds = 20

    def __init__(self, tools: Any) -> None:
        self.tools = tools

    def valid(self, rng: random.Random) -> dict[str, Any]:
        raise NotImplementedError

    def call(self, **arguments: Any) -> Any:
        raise NotImplementedError

    def expected(self, **arguments: Any) -> Any:
        raise NotImplementedError

    def is_right(self, answer: Any, expected: Any) -> bool:
        return same(answer, expected)


class Case(NamedTuple):
    arguments: Mapping[str, Any]
    changes: Sequence[Change]
    is_malformed: bool

    def __str__(self) -> str:
        changes = "; ".join(change.text for change in self.changes) or "nothing"
        return f"changed: {changes}\n    of: {', '.join(f'{k}={plain(v)!r}'[:400] for k, v in self.arguments.items())}"


def draw_case(entry: Entry, rng: random.Random) -> Case:
    """Draw valid arguments, up to two equivalent changes, and in two of three cases a fault."""
    equivalent, damaged, malformed = (list(itertools.chain(*groups)) for groups in zip(*entry.changes, strict=True))
    arguments = entry.valid(rng)
    drawn = [rng.choice(rng.choice(equivalent)) for _ in range(rng.randrange(3)) if equivalent]
    changes = list({change.text: change for change in drawn}.values())
    if rng.randrange(3) == 0:
        return Case(arguments, changes, is_malformed=False)
    place = rng.randrange(len(damaged) + len(malformed))
    changes.append(rng.choice([*damaged, *malformed][place]))
    return Case(arguments, changes, is_malformed=place >= len(damaged))


@dataclass
class Tally:
    """The outcomes of an entry point, and the shortest example of each kind of fault."""

    name: str
    counts: Counter[Outcome] = field(default_factory=Counter)
    findings: dict[tuple[Outcome, str, str], str] = field(default_factory=dict)

    def add(self, case: Case, outcome: Outcome, detail: str) -> None:
        self.counts[outcome] += 1
        if outcome in (Outcome.RIGHT, Outcome.CLEAR):
            return
        kind = outcome, case.changes[-1].text if case.changes else "", detail.partition(":")[0]
        finding = f"{self.name}: {outcome.value}: {' '.join(detail.split())[:300]}\n    {case}"
        self.findings[kind] = min(self.findings.get(kind, finding), finding, key=len)

    @property
    def hidden(self) -> float:
        """The share of errors that hide their cause."""
        errors = self.counts[Outcome.HIDDEN] + self.counts[Outcome.CLEAR]
        return self.counts[Outcome.HIDDEN] / max(errors, 1)

    def findings_of(self, *outcomes: Outcome) -> list[str]:
        return [finding for (outcome, *_), finding in self.findings.items() if outcome in outcomes]


def explore(entry: Entry, examples: int, seed: int) -> Tally:
    """Try an entry point; faults are counted, so that the first one does not hide the others."""
    rng = random.Random(f"{seed}/{entry.name}")
    tally = Tally(entry.name)
    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(examples):
                case = draw_case(entry, rng)
                tally.add(case, *judge(entry, case))
    finally:
        logging.disable(logging.NOTSET)
    return tally


def judge(entry: Entry, case: Case) -> tuple[Outcome, str]:
    """Call the entry point, and judge its answer or its error."""
    expected = entry.expected(**case.arguments)
    has_answer = not case.is_malformed and not isinstance(expected, Refusal)
    given = case.arguments
    for change in case.changes:
        given = change.apply(given)
    try:
        with time_limit():
            answer = entry.call(**given)
    except HangError:
        return Outcome.HANGS, f"more than {SECONDS} s"
    except WrongAnswerError as error:
        return Outcome.WRONG, str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Rust's panics are no exceptions
        if has_answer and not case.changes:
            return Outcome.REFUSED, describe(error)
        names = [name for change in case.changes for name in change.names]
        names += expected.names if isinstance(expected, Refusal) else []
        return judge_error(error, [name for name in names if name])
    if not has_answer:
        return Outcome.WRONG, f"an answer where there is none: {plain(answer)!r}"
    try:
        is_right = entry.is_right(answer, expected)
    except Exception as error:  # an answer in another form
        return Outcome.WRONG, f"{error!r} of {plain(answer)!r}"
    return (Outcome.RIGHT, "") if is_right else (Outcome.WRONG, f"{plain(answer)}, not {plain(expected)}")


def judge_error(error: BaseException, names: Sequence[str]) -> tuple[Outcome, str]:
    """Tell a clear error from an obscure one: it names the place, and a check raised it or a library says as much."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not any(module.startswith("pyterrier") for module in modules):
        raise error  # a fault of the fuzz itself
    is_named = not names or any(name.lower() in str(error).lower() for name in names)
    from_library = bool(names) and isinstance(error, TypeError | ValueError | OSError) and len(str(error).split()) > 3
    if is_named and (raised_by_a_check(error) or from_library):
        return Outcome.CLEAR, ""
    return Outcome.HIDDEN, describe(error) if is_named else f"names none of {names}: {describe(error)}"


def raised_by_a_check(error: BaseException) -> bool:
    """Say whether a line of the package raised an error, and not C code that it called, or PyTerrier's validation."""
    if isinstance(error, InputValidationError):
        return True
    top = error.__traceback__
    assert top is not None
    while top.tb_next is not None:
        top = top.tb_next
    is_ours = top.tb_frame.f_globals.get("__name__", "").startswith(PACKAGE)
    return is_ours and dis.opname[top.tb_frame.f_code.co_code[top.tb_lasti]] == "RAISE_VARARGS"


def describe(error: BaseException) -> str:
    """Name an error, the module that raised it, and the last line of the package on the way there."""
    frames = [(frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    ours = [f", called in {module}:{line}" for module, line in frames if module.startswith(PACKAGE)]
    return f"{type(error).__name__} in {frames[-1][0]}{''.join(ours[-1:])}: {error}"


def same(answer: Any, expected: Any) -> bool:
    """Compare answers; numbers as far as float32 goes."""
    if isinstance(expected, Mapping):
        return answer.keys() == expected.keys() and all(same(answer[name], expected[name]) for name in expected)
    if isinstance(expected, list | tuple):
        return len(answer) == len(expected) and all(map(same, answer, expected))
    if isinstance(expected, np.ndarray | float):
        shapes = np.shape(answer), np.shape(expected)
        return shapes[0] == shapes[1] and np.allclose(answer, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    return bool(answer == expected)


def plain(value: Any) -> Any:
    return value.to_dict(orient="list") if isinstance(value, pd.DataFrame) else value


class HangError(BaseException):
    """An example takes too long; not an exception, which code may catch."""


@contextmanager
def time_limit() -> Iterator[None]:
    def interrupt(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
