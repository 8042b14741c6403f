"""Compare systems, and show the result on an HTML page."""
