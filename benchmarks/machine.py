"""The machine that something is measured on, and the memory of this process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import threading
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pyterrier_selfdistill.training.arguments import mixed_precision

PACKAGES = ("torch", "transformers", "sentence-transformers", "pyterrier", "pyterrier-dr", "ir-measures", "numpy")
"""The packages whose versions are written next to a measurement."""


def describe_machine() -> dict[str, Any]:
    """Describe the processor, the GPU and the precision of training."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor = platform.processor()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "precision": next(iter(mixed_precision(device)), "fp32"),
        "python": platform.python_version(),
    }


def describe_versions() -> dict[str, str]:
    """Return the versions of :data:`PACKAGES`."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def commit() -> str | None:
    """Name the commit of this code; None without a repository or git."""
    git = partial(subprocess.run, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", check=False)
    try:
        name = git(["git", "rev-parse", "--short=10", "HEAD"]).stdout.strip()
        # pages change while they are measured
        is_changed = git(["git", "diff", "--quiet", "HEAD", "--", ":/*.py"]).returncode == 1
    except FileNotFoundError:
        return None
    return f"{name}-dirty" if is_changed else name or None


class PeakMemory:
    """The peak memory of this process in MB while the context is open, without the pages of mapped files.

    Attributes:
        peak: The highest value, read every 50 ms.
    """

    def __enter__(self) -> PeakMemory:
        self.peak = resident("RssAnon")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.peak = max(self.peak, resident("RssAnon"))


def resident(name: str) -> float:
    """Read a number of the process's status, such as ``RssAnon`` or ``VmHWM``, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise KeyError(f"/proc/self/status has no line {name!r}")
