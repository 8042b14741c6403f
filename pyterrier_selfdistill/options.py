"""Check options by their types.

Options are checked because they are typed. :func:`checked` reads the annotations of a function, or of a class's
``__init__``, and has pydantic check the arguments against them, strictly: a string is no number, and a number is no
flag. NumPy's scalars count as Python's. So a new option needs a type and nothing else: a plain one, a ``Literal`` of
choices, one of those below, or ``Annotated[..., Field(...), Expected("what it must be")]``::

    @checked
    def search(query: str, num_results: PositiveInteger = 1000, mode: Literal["exact", "fast"] = "exact") -> None: ...

What only two options together make wrong is checked where they meet. Frames are checked by :mod:`.validate`.
"""

from __future__ import annotations

import inspect
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import numpy as np
from ir_measures import Measure
from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, WrapValidator

Checked = TypeVar("Checked", bound=Callable[..., Any])


def Expected(description: str) -> WrapValidator:  # noqa: N802 - it reads as a type
    """Say in the error of a type what it expects, in place of pydantic's words.

    Args:
        description: What the option must be.

    Returns:
        What ``Annotated`` takes.
    """

    def validate(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValueError(f"be {description}") from error

    return WrapValidator(validate)


PositiveInteger = Annotated[int, Field(ge=1), Expected("a positive integer")]
Count = Annotated[int, Field(ge=0), Expected("0 or a positive integer")]
PositiveNumber = Annotated[float, Field(gt=0, allow_inf_nan=False), Expected("a positive number")]
Seed = Annotated[int, Field(ge=0, lt=2**32), Expected("an integer from 0 to 4294967295")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Expected("a number from 0 to 1")]
ShareBetween = Annotated[
    float, Field(gt=0, lt=1, allow_inf_nan=False), Expected("a number between 0 and 1, such as 0.1")
]
FieldNames = Annotated[Sequence[str], Field(min_length=1), Expected("a list of field names such as ['title', 'text']")]
Measures = Annotated[
    Sequence[Measure],
    Field(min_length=1),
    Expected("a list of measures such as [nDCG @ 10], imported from pyterrier.measures"),
]
FolderPath = Annotated[Annotated[str, Field(min_length=1)] | Path, Expected("the path of a folder")]
FilePath = Annotated[Annotated[str, Field(min_length=1)] | Path, Expected("the path of a file")]

STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""The kinds of parameters that are checked; those of ``**arguments`` belong to somebody else."""


def checked(target: Checked) -> Checked:
    """Check the arguments of a function, or of a class, against their types.

    Args:
        target: The function, all of whose annotations name types that pydantic or ``isinstance`` can check; or the
            class.

    Returns:
        The function that checks and calls; or the class.

    Raises:
        ValueError: When called, if an option has a value that its type does not allow.
        TypeError: When called, if an argument is not of the class that it must be.

    Example:
        >>> @checked
        ... def search(num_results: PositiveInteger = 1000, fast: bool = False) -> int:
        ...     return num_results
        >>> search(np.int64(10))
        10
        >>> search(0)
        Traceback (most recent call last):
        ValueError: num_results must be a positive integer, got 0
        >>> search(fast="no")
        Traceback (most recent call last):
        ValueError: fast must be a valid boolean, got 'no'
    """
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    signature = inspect.signature(target)

    # when it is called first: a class that an annotation names may not be defined yet
    @cache
    def types() -> dict[str, TypeAdapter[Any]]:
        hints = get_type_hints(target, include_extras=True)
        named = [name for name, parameter in signature.parameters.items() if parameter.kind in NAMED]
        return {name: _adapter(hints[name]) for name in named if name in hints}

    @wraps(target)
    def check_and_call(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        for name, adapter in types().items():
            if name in bound.arguments:
                bound.arguments[name] = _validated(name, bound.arguments[name], adapter)
        return target(*bound.args, **bound.kwargs)

    return check_and_call  # type: ignore[return-value]


def _adapter(hint: Any) -> TypeAdapter[Any]:
    # pydantic takes no configuration beside a dataclass, which checks its own fields
    if is_dataclass(hint):
        return TypeAdapter(InstanceOf[hint])
    # annotated, since pydantic takes no configuration beside a class that may have one of its own
    return TypeAdapter(Annotated[hint, "an option"], config=STRICT)


def _validated(name: str, value: Any, adapter: TypeAdapter[Any]) -> Any:
    """Check one argument."""
    try:
        return adapter.validate_python(plain(value))
    except ValidationError as error:
        faults = error.errors()
    expected = dict.fromkeys(re.sub("^(Input should|Value error,) ", "", fault["msg"]) for fault in faults)
    message = f"{name} must {' or '.join(expected)}, got {reprlib.repr(value)}"
    if all(map(_is_of_class, faults)):
        raise TypeError(f"{message}, a {type(value).__name__}")
    raise ValueError(message) from None


def plain(value: Any) -> Any:
    """Return the scalar of Python that a scalar of NumPy stands for, and anything else as it is.

    Args:
        value: A value.

    Returns:
        The value.

    Example:
        >>> plain(np.float64(0.5)), plain("l2")
        (0.5, 'l2')
    """
    if isinstance(value, np.generic):
        return value.item()
    return value


def _is_of_class(fault: Mapping[str, Any]) -> bool:
    """Tell whether a fault is that a value is not of the class that it must be, as pydantic or ``Expected`` says it."""
    replaced = fault.get("ctx", {}).get("error")
    if replaced is None:
        return fault["type"] == "is_instance_of"
    cause = replaced.__cause__
    return isinstance(cause, ValidationError) and all(map(_is_of_class, cause.errors()))
