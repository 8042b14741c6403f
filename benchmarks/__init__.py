"""Benchmarks of the package, run as modules from the root of the repository.

:mod:`benchmarks.study` compares losses; :mod:`benchmarks.triples` and :mod:`benchmarks.retrieval` measure speed and
memory; :mod:`benchmarks.chaos` kills, fills disks and gets in the way.
"""
