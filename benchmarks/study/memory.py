"""Moved to :mod:`benchmarks.machine`."""

from benchmarks.machine import PeakMemory as PeakMemory
from benchmarks.machine import resident as resident
