"""Kills, full disks, processes in each other's way and hours of searching: ``python -m benchmarks.chaos``."""
