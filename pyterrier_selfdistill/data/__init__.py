"""Training data: from what PyTerrier has to triples of texts."""
