"""Studies: which loss and which settings are best on a test collection, and what they cost.

A study is a YAML file (:mod:`.config`). Each of its runs trains one encoder with one loss (:mod:`.losses`) on one
collection (:mod:`.collection`), searches with it, and becomes a line of a JSON-lines file (:mod:`.runner`,
:mod:`.records`). :mod:`.results` compares systems, :mod:`.statistics` says which differences can be claimed, and
:mod:`.report` writes the page. Run ``python -m benchmarks.study --help``.
"""

import importlib.util

_missing = [name for name in ("pyterrier_pisa", "statsmodels", "yaml") if importlib.util.find_spec(name) is None]
if _missing:
    raise ImportError(f"studies need {', '.join(_missing)}: pip install pyterrier-selfdistill[study]")
