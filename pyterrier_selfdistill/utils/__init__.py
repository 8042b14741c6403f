"""Checks of input, folders, processes, and workarounds for other libraries."""
