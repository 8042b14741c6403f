"""The engine of the fuzz: draw valid input and changes of it, and judge the answer or the error."""

import dis
import logging
import random
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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


class Effect(Enum):
    SAME = "the answer stays the same, or an error says why not"
    UNSURE = "as before, but no other change may follow"
    NONE = "there is no answer"


class Change(NamedTuple):
    """A change of the arguments. An error must name one of the names, so that its reader finds the place."""

    text: str
    apply: Callable[[Mapping[str, Any]], dict[str, Any]]
    names: Sequence[str]
    effect: Effect


class Entry(NamedTuple):
    """An entry point: how to draw valid arguments, how to call it, and groups of changes of the arguments."""

    name: str
    changes: Sequence[Sequence[Change]]
    valid: Callable[..., dict[str, Any]]
    call: Callable[..., Any]
    is_right: Callable[[Any, Mapping[str, Any]], bool] | None  # by default, compare with the call without changes
    milliseconds: int


ENTRIES: list[Entry] = []


def entry(name, changes, valid, call, is_right=None, milliseconds=20):
    ENTRIES.append(Entry(name, changes, valid, call, is_right, milliseconds))


def draw_changes(entry, rng):
    """Draw up to two changes that keep the answer, and in two of three cases a fault."""
    harmless = [group for group in entry.changes if group[0].effect is Effect.SAME]
    faults = [group for group in entry.changes if group[0].effect is not Effect.SAME]
    drawn = [rng.choice(rng.choice(harmless)) for _ in range(rng.randrange(3)) if harmless]
    changes = list({change.text: change for change in drawn}.values())
    return [*changes, rng.choice(rng.choice(faults))] if rng.randrange(3) else changes


def explore(entry, tools, examples, seed):
    """Try an entry point; return the counts of outcomes, and the shortest example of each fault."""
    rng, counts, findings = random.Random(f"{seed}/{entry.name}"), Counter(), {}
    logging.disable()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with warnings.catch_warnings(action="ignore"):
            for _ in range(examples):
                arguments, changes = entry.valid(tools, rng), draw_changes(entry, rng)
                outcome, detail = judge(entry, tools, arguments, changes)
                counts[outcome] += 1
                if outcome not in (Outcome.RIGHT, Outcome.CLEAR):
                    shown = {name: str(plain(value))[:300] for name, value in arguments.items()}
                    texts = [change.text for change in changes]
                    text = f"{entry.name}: {outcome.value}: {detail[:400]}\n    changed {texts}\n    of {shown}"
                    kind = outcome, str(texts[-1:]), detail.partition(":")[0]
                    findings[kind] = min(findings.get(kind, text), text, key=len)
    finally:
        signal.signal(signal.SIGALRM, before)
        logging.disable(logging.NOTSET)
    return counts, findings


class HangError(BaseException):
    """An example takes too long; not an exception, which code may catch."""


def interrupt(*_):
    raise HangError


def judge(entry, tools, arguments, changes):
    """Call the entry point, and judge its answer or its error."""
    given = arguments
    for change in changes:
        given = change.apply(given)
    signal.alarm(SECONDS)
    try:
        answer = entry.call(tools, **given)
    except HangError:
        return Outcome.HANGS, f"more than {SECONDS} s"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # Rust's panics are no exceptions
        names = [name for change in changes for name in change.names if name]
        return judge_error(error, names) if changes else (Outcome.REFUSED, repr(error))
    finally:
        signal.alarm(0)
    if any(change.effect is Effect.NONE for change in changes):
        return Outcome.WRONG, f"an answer where there is none: {plain(answer)!r}"
    if entry.is_right:
        is_right = entry.is_right(answer, arguments)
    else:
        is_right = same(answer, entry.call(tools, **arguments))
    return (Outcome.RIGHT if is_right else Outcome.WRONG), f"the answer is {plain(answer)!r}"


def judge_error(error, names):
    """Judge an error: a clear one names the place, and a check raised it, or a library says as much."""
    trace = [(frame.f_globals.get("__name__", ""), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if not any(module.startswith("pyterrier") for module, _ in trace):
        raise error  # a fault of the fuzz itself
    end = error.__traceback__
    while end.tb_next is not None:
        end = end.tb_next
    # a line of the package itself raised it, and not C code that the line called
    is_raised = dis.opname[end.tb_frame.f_code.co_code[end.tb_lasti]] == "RAISE_VARARGS"
    by_a_check = is_raised and trace[-1][0].startswith(PACKAGE)
    is_named = not names or any(name.lower() in str(error).lower() for name in names)
    from_library = bool(names) and isinstance(error, TypeError | ValueError | OSError) and len(str(error).split()) > 3
    if is_named and (by_a_check or from_library or isinstance(error, InputValidationError)):
        return Outcome.CLEAR, ""
    ours = [f"{module}:{line}" for module, line in trace if module.startswith(PACKAGE)]
    return Outcome.HIDDEN, f"{error!r} of {trace[-1][0]}, called in {ours[-1:]}, and the names are {names}"


def same(answer, expected):
    """Compare answers; numbers as far as float32 goes."""
    if isinstance(expected, Mapping):
        return answer.keys() == expected.keys() and all(same(answer[name], expected[name]) for name in expected)
    if isinstance(expected, list | tuple):
        return len(answer) == len(expected) and all(map(same, answer, expected))
    if isinstance(expected, np.ndarray | float):
        shapes = np.shape(answer), np.shape(expected)
        return shapes[0] == shapes[1] and np.allclose(answer, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    return bool(answer == expected)


def plain(value):
    return value.to_dict(orient="list") if isinstance(value, pd.DataFrame) else value
