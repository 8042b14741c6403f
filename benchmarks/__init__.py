"""Benchmarks of the package, run as modules from the root of the repository.

:mod:`benchmarks.throughput` measures speed and memory next to the peers, :mod:`benchmarks.quality` what ways to train
give, and :mod:`benchmarks.chaos` kills, fills disks and gets in the way. :mod:`benchmarks.study` compares losses:
``configs/`` has its studies, ``records/`` the records of their runs.
"""
