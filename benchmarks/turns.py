"""Time several ways of doing the same, in turns, and compare them.

What else a machine does falls on all that is timed in turns, so that their ratio says more than their times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Rates(NamedTuple):
    """How much of something was done in a second, in each turn.

    Attributes:
        turns: The rates, in their order.

    Example:
        >>> rates = Rates([10.0, 12.0, 11.0])
        >>> rates.median, str(rates)
        (11.0, '11.0 (10.0 to 12.0)')
    """

    turns: list[float]

    @property
    def median(self) -> float:
        """The rate in the middle."""
        return statistics.median(self.turns)

    def over(self, other: Rates) -> str:
        """Write the ratio to other rates of the same turns: its median, and its spread.

        Args:
            other: What to divide by, turn by turn.

        Returns:
            The ratio in words.

        Example:
            >>> Rates([20.0, 24.0, 21.0]).over(Rates([10.0, 10.0, 10.0]))
            '2.10x (2.00 to 2.40)'
        """
        pairs = zip(self.turns, other.turns, strict=True)
        ratios = [own / others for own, others in pairs]
        return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"

    def __str__(self) -> str:
        return f"{self.median:.1f} ({min(self.turns):.1f} to {max(self.turns):.1f})"


def in_turns(works: Mapping[str, Callable[[], Any]], amount: float, turns: int = 3) -> dict[str, Rates]:
    """Do several works in turns.

    Args:
        works: What to do, by name. One that returns a number says itself how many seconds count.
        amount: How much each of them does, such as the number of documents.
        turns: How often to do each.

    Returns:
        How much of the amount each did in a second.

    Example:
        >>> rates = in_turns({"sleep": lambda: time.sleep(0.01), "told": lambda: 0.5}, amount=1, turns=2)
        >>> rates["told"].turns
        [2.0, 2.0]
    """
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            rates[name].append(amount / seconds(work))
    return {name: Rates(values) for name, values in rates.items()}


def seconds(work: Callable[[], Any]) -> float:
    """Time a work, or take its word for it if it returns a number."""
    started = time.perf_counter()
    told = work()
    elapsed = time.perf_counter() - started
    if isinstance(told, float):
        return told
    return elapsed
