"""Systems beside each other: their measures, what became of single queries, and a page that shows both."""
