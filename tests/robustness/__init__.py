"""Malformed input to all entry points: the right answer or a clear error, and never a wrong answer in silence."""
