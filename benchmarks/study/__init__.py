"""Studies of what losses and settings achieve on collections of one's own, and what they cost.

A study (:mod:`.config`) is a list of runs (:mod:`.run`). Each run trains one encoder (:mod:`.encoders`) with one loss
(:mod:`.losses`) on a test collection (:mod:`.collection`), searches the whole collection with it (:mod:`.evaluation`),
and becomes one record (:mod:`.records`). The :mod:`.runner` does what has no record yet. :mod:`.comparison` compares
systems by their records, :mod:`.significance` says what that allows to claim, and :mod:`.report` writes a page of it.

``python -m benchmarks.study --help`` is the way in. It needs ``pip install pyterrier-selfdistill[study]``.
"""

import importlib.util

REQUIRED = ("pyterrier_pisa", "statsmodels", "yaml")
"""The modules that the extra ``study`` brings, and that the rest of the package does without."""

_missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(
        f"studies need {', '.join(_missing)}, which the extra 'study' brings: pip install pyterrier-selfdistill[study]"
    )
