"""Training: the trainer, and what it needs to run, to evaluate and to report."""
