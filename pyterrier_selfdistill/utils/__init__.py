"""Utilities: input validation, atomic folders, processes, and workarounds for other libraries."""
