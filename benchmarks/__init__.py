"""Benchmarks of the package, run as modules from the root of the repository.

:mod:`benchmarks.triples` and :mod:`benchmarks.retrieval` measure speed and memory; :mod:`benchmarks.chaos` kills, fills
disks and gets in the way. ``configs/`` has the studies (:mod:`benchmarks.study`) that compare losses,
``records/`` what came of them, and :mod:`benchmarks.experimental` losses that were only tried.
"""
