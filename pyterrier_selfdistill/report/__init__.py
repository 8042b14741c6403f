"""Comparing systems, and the HTML page that shows the result."""
