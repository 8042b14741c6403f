"""Training: the trainer, its training loop, evaluation and run folder."""
