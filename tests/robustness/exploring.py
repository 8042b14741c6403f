"""Explore entry points: make examples, say what became of each, and count."""

from __future__ import annotations

import dis
import logging
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
from hypothesis import HealthCheck, Phase
from pyterrier.validate import InputValidationError

PACKAGE = "pyterrier_selfdistill"

SECONDS = 30
"""After how long an example hangs; the dearest takes about one."""


class Outcome(Enum):
    """What became of an example."""

    RIGHT = "right"
    CLEAR = "clear error"
    HIDDEN = "hides its cause"
    WRONG = "silently wrong"
    REFUSED = "valid, but refused"
    HANGS = "hangs"


class Mutation(NamedTuple):
    """A change of arguments.

    Attributes:
        description: What is changed, and how.
        change: Takes arguments by name, and gives others; those that it takes stay as they are.
        names: An error must name one of these, so that its reader finds the place.
    """

    description: str
    change: Callable[[Mapping[str, Any]], dict[str, Any]]
    names: Sequence[str]


class WrongAnswerError(Exception):
    """Something about an answer is wrong that is seen before it is compared."""


class Refusal(NamedTuple):
    """The right answer is an error, since the arguments contradict each other.

    Attributes:
        names: The error must name one of these.
    """

    names: Sequence[str]


class Case(NamedTuple):
    """An example.

    Attributes:
        arguments: Valid arguments.
        mutations: What is done to them before they are given.
        is_malformed: Whether the last mutation leaves nothing to answer.
    """

    arguments: Mapping[str, Any]
    mutations: Sequence[Mutation]
    is_malformed: bool

    def given(self) -> Mapping[str, Any]:
        """Return the arguments as they are given."""
        given = self.arguments
        for mutation in self.mutations:
            given = mutation.change(given)
        return given

    def __str__(self) -> str:
        changes = [mutation.description for mutation in self.mutations] or ["nothing"]
        arguments = [f"{name}={plain(value)!r}"[:400] for name, value in self.arguments.items()]
        return f"changed: {'; '.join(changes)}\n    of: {', '.join(arguments)}"


class EntryPoint:
    """A way into the package.

    Args:
        tools: What examples share, such as an encoder; see ``conftest.py``.

    Attributes:
        name: What users call.
        valid: Makes valid arguments.
        equivalent: Mutations after which the arguments mean what they meant. One or two of them at once.
        damaged: Mutations after which the answer is the same, or cannot be found. At most one, after those.
        malformed: Mutations after which there is no answer. At most one, after those.
        milliseconds: About how long an example takes.
    """

    name: ClassVar[str]
    valid: ClassVar[st.SearchStrategy[dict[str, Any]]]
    equivalent: ClassVar[Sequence[st.SearchStrategy[Mutation]]] = ()
    damaged: ClassVar[Sequence[st.SearchStrategy[Mutation]]] = ()
    malformed: ClassVar[Sequence[st.SearchStrategy[Mutation]]] = ()
    milliseconds: ClassVar[int] = 20

    def __init__(self, tools: Any) -> None:
        self.tools = tools

    def call(self, **arguments: Any) -> Any:
        """Give arguments to the package, and return what it answers."""
        raise NotImplementedError

    def expected(self, **arguments: Any) -> Any:
        """Return the right answer to valid arguments, by the definition, or a :class:`Refusal`."""
        raise NotImplementedError

    def is_right(self, answer: Any, expected: Any) -> bool:
        """Compare an answer with the right one."""
        return same(answer, expected)

    def cases(self) -> st.SearchStrategy[Case]:
        """Make examples, two thirds of them malformed or damaged."""
        equivalent = st.lists(st.one_of(*self.equivalent), max_size=2, unique_by=lambda change: change.description)
        faults = [st.tuples(changes, st.just(False)) for changes in self.damaged]
        faults += [st.tuples(changes, st.just(True)) for changes in self.malformed]

        @st.composite
        def cases(draw: st.DrawFn) -> Case:
            arguments, mutations = draw(self.valid), draw(equivalent)
            if draw(st.sampled_from([True, False, True])):
                fault, is_malformed = draw(st.one_of(faults))
                return Case(arguments, [*mutations, fault], is_malformed)
            return Case(arguments, mutations, is_malformed=False)

        return cases()


def same(answer: Any, expected: Any) -> bool:
    """Say whether two answers are equal, numbers as far as float32 goes."""
    if isinstance(expected, Mapping):
        return answer.keys() == expected.keys() and all(same(answer[name], expected[name]) for name in expected)
    if isinstance(expected, list | tuple):
        return len(answer) == len(expected) and all(map(same, answer, expected))
    if isinstance(expected, np.ndarray | float):
        shapes = np.shape(answer), np.shape(expected)
        return shapes[0] == shapes[1] and np.allclose(answer, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    return bool(answer == expected)


def plain(value: Any) -> Any:
    """Show a frame by its columns."""
    if isinstance(value, pd.DataFrame):
        return value.to_dict(orient="list")
    return value


@dataclass
class Tally:
    """How often what became of the examples of an entry point.

    Attributes:
        name: The entry point.
        counts: The outcomes.
        findings: For each kind of fault, the shortest example.
    """

    name: str
    counts: Counter[Outcome] = field(default_factory=Counter)
    findings: dict[tuple[Outcome, str, str], str] = field(default_factory=dict)

    def add(self, case: Case, outcome: Outcome, detail: str) -> None:
        """Count an example."""
        self.counts[outcome] += 1
        if outcome in (Outcome.RIGHT, Outcome.CLEAR):
            return
        changes = [mutation.description for mutation in case.mutations] or ["nothing"]
        kind = outcome, changes[-1], detail.partition(":")[0]
        detail = " ".join(detail.split())[:300]
        finding = f"{self.name}: {outcome.value}: {detail}\n    {case}"
        self.findings[kind] = min(self.findings.get(kind, finding), finding, key=len)

    @property
    def hidden(self) -> float:
        """The share of errors that hide their cause."""
        errors = self.counts[Outcome.HIDDEN] + self.counts[Outcome.CLEAR]
        return self.counts[Outcome.HIDDEN] / max(errors, 1)

    def findings_of(self, *outcomes: Outcome) -> list[str]:
        """List the examples with some outcomes."""
        return [finding for (outcome, _, _), finding in self.findings.items() if outcome in outcomes]


def explore(entry_point: EntryPoint, examples: int, seed: int) -> Tally:
    """Make examples of an entry point, and count what becomes of them.

    Args:
        entry_point: The entry point.
        examples: How many.
        seed: Which.

    Returns:
        The counts.
    """
    tally = Tally(entry_point.name)

    # counted, not asserted: the first fault is not to hide the others
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(entry_point.cases())
    def count(case: Case) -> None:
        tally.add(case, *classify(entry_point, case))

    logging.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            count()
    finally:
        logging.disable(logging.NOTSET)
    return tally


def classify(entry_point: EntryPoint, case: Case) -> tuple[Outcome, str]:
    """Say what becomes of an example, and what there is to see of it."""
    expected = entry_point.expected(**case.arguments)
    has_answer = not case.is_malformed and not isinstance(expected, Refusal)
    given = case.given()
    try:
        with time_limit(SECONDS):
            answer = entry_point.call(**given)
    except HangError:
        return Outcome.HANGS, f"more than {SECONDS} s"
    except WrongAnswerError as error:
        return Outcome.WRONG, str(error)
    except KeyboardInterrupt:
        raise
    # Rust's panics are no exceptions
    except BaseException as error:
        if has_answer and not case.mutations:
            return Outcome.REFUSED, describe(error)
        return classify_error(error, names_of(case, expected))
    if not has_answer:
        return Outcome.WRONG, f"an answer where there is none: {plain(answer)!r}"
    return classify_answer(entry_point, answer, expected)


def classify_answer(entry_point: EntryPoint, answer: Any, expected: Any) -> tuple[Outcome, str]:
    """Say whether an answer is right."""
    try:
        is_right = entry_point.is_right(answer, expected)
    except Exception as error:  # an answer in another form
        return Outcome.WRONG, f"{error!r} of {plain(answer)!r}"
    if is_right:
        return Outcome.RIGHT, ""
    return Outcome.WRONG, f"{plain(answer)}, not {plain(expected)}"


def names_of(case: Case, expected: Any) -> list[str]:
    """List what an error must name one of; nothing if anything will do."""
    names = [name for mutation in case.mutations for name in mutation.names]
    if isinstance(expected, Refusal):
        names.extend(expected.names)
    return [name for name in names if name]


def classify_error(error: BaseException, names: Sequence[str]) -> tuple[Outcome, str]:
    """Say whether an error says what is wrong."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not any(module.startswith("pyterrier") for module in modules):
        raise error  # a fault of the examples themselves
    if not raised_by_a_check(error):
        return Outcome.HIDDEN, describe(error)
    message = str(error).lower()
    if names and not any(name.lower() in message for name in names):
        return Outcome.HIDDEN, f"names none of {names}: {describe(error)}"
    return Outcome.CLEAR, ""


def raised_by_a_check(error: BaseException) -> bool:
    """Say whether a check of the package raised an error, or PyTerrier's validation, which it calls.

    An error from C, such as that of a missing key, has a line of this package on top of its traceback too; but the
    instruction there is not to raise.
    """
    if isinstance(error, InputValidationError):
        return True
    top = _top(error)
    if not top.tb_frame.f_globals.get("__name__", "").startswith(PACKAGE):
        return False
    instruction = top.tb_frame.f_code.co_code[top.tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"


def _top(error: BaseException) -> TracebackType:
    top = error.__traceback__
    assert top is not None
    while top.tb_next is not None:
        top = top.tb_next
    return top


def describe(error: BaseException) -> str:
    """Name an error, the module that raised it, and the last line of the package on the way there."""
    frames = list(traceback.walk_tb(error.__traceback__))
    modules = [frame.f_globals.get("__name__", "") for frame, _ in frames]
    places = [f"{module}:{line}" for module, (_, line) in zip(modules, frames, strict=True)]
    own = [place for place in places if place.startswith(PACKAGE)]
    origin = modules[-1]
    if own:
        origin = f"{origin}, called in {own[-1]}"
    return f"{type(error).__name__} in {origin}: {error}"


class HangError(BaseException):
    """An example takes too long; not an exception, which code may catch."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt what takes too long."""

    def interrupt(*_: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
