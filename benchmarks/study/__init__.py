"""Studies of what losses achieve, how much data they need, and what they cost.

A study (:mod:`~benchmarks.study.config`) is a list of runs. Each run trains one encoder with one loss
(:mod:`~benchmarks.study.losses`) on a test collection (:mod:`~benchmarks.study.collection`), searches the whole
collection with it (:mod:`~benchmarks.study.evaluation`), and becomes one record (:mod:`~benchmarks.study.records`).
The :mod:`~benchmarks.study.runner` does what has no record yet. :mod:`~benchmarks.study.comparison` compares systems
by their records, :mod:`~benchmarks.study.significance` says what that allows to claim, and
:mod:`~benchmarks.study.report` writes a page of it.
"""
