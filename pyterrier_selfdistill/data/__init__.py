"""Training data: turn topics, judgements, results and corpora of PyTerrier into triples of texts."""
