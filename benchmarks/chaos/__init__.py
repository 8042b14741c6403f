"""Whether the package holds when processes are killed, disks fail, neighbours interfere, and hours pass.

``python -m benchmarks.chaos`` does the damage and writes what came of it into ``benchmarks/RELIABILITY.md``.
"""
